"""What one tagging job can be told, and which combinations cannot work.

Every refusal here happens before the corpus or the model is touched.
"""

from dataclasses import dataclass
from typing import Literal

from raytag.arguments import check_accelerator, read_range
from raytag.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class TagSettings:
    """Tag a corpus: the entities of every document, each document exactly once."""

    input: str
    """File, folder or glob, local or s3://: text files, JSON lines, CSV or Parquet."""
    output: str
    """Folder for the entities and their manifest, local or s3://."""
    model: str
    """A merged model or an adapter: a folder, local or s3://, or tenant/domain@version."""
    registry: str = "registry"
    """The registry that versions are in, a folder or s3:// prefix."""
    base: str | None = None
    """Where an adapter's base model is, if elsewhere than its card says."""
    load_in: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the model; auto is bf16 on a GPU, fp32 elsewhere."""
    kind: Literal["auto", "text", "lines", "jsonl", "csv", "parquet"] = "auto"
    """What the input is: text is a document a file, lines a document a line; auto looks."""
    text_column: str | None = None
    """Column of the text; found by its name if not given."""
    id_column: str | None = None
    """Column of the document's id; found by its name, or made of file and row, if not given."""
    encoding: str = "utf-8"
    """Encoding of text, lines, JSON lines and CSV."""
    keep_text: bool = True
    """Write the text beside its entities; raytag show needs it."""
    format: Literal["parquet", "jsonl"] = "parquet"
    """What is written."""
    threshold: float | None = None
    """Leave out entities that score below this; that of the training if not given."""
    batch_tokens: int = 0
    """Most tokens in one forward pass, padding included; 0 is 1024 on a CPU, 16384 on a GPU."""
    max_characters: int = 0
    """Set longer documents aside; 0 takes all, in windows."""
    max_rejected: float = 0.05
    """Share of documents that may be set aside before the job stops."""
    shard_documents: int = 2000
    """Most documents in one shard, which is what is lost when a machine dies."""
    shard_megabytes: float = 4.0
    """About the most text in one shard."""
    limit: int = 0
    """Tag only the first so many documents; 0 takes all."""
    actors: str = "auto"
    """Models loaded at a time: a number, or a range such as 2:16; auto is all that fit."""
    cpus: int = 1
    """CPUs of each actor, and so its threads; more pay for large models only."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes GPUs where the cluster has any."""
    accelerator: str | None = None
    """Kind of GPU by Ray's name, such as L4 or H100; any if not given."""
    wait_for_nodes: bool = False
    """Wait for an autoscaler where the cluster is too small now, rather than refuse."""
    replay: bool = False
    """Try the documents again that a finished job set aside."""

    def __post_init__(self) -> None:
        at_least = {"batch_tokens": 0, "max_characters": 0, "shard_documents": 1, "limit": 0}
        for name, least in {**at_least, "cpus": 1}.items():
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.shard_megabytes <= 0:
            raise SettingsError(f"shard_megabytes must be above 0, not {self.shard_megabytes}")
        if not 0 <= self.max_rejected <= 1:
            raise SettingsError(f"max_rejected is a share from 0 to 1, not {self.max_rejected}")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise SettingsError(f"threshold must be in [0, 1), not {self.threshold}")
        for name in ("input", "output", "model"):
            if not getattr(self, name):
                raise SettingsError(f"{name} is empty; name a path or an s3:// URI")
        below = self.output.removeprefix(self.input.rstrip("/") + "/")
        if below != self.output and not below.startswith(("_", ".")):
            raise SettingsError(
                f"output {self.output} lies in the input, and would be tagged the next time; "
                'give another, or a name that begins with "_"'
            )
        try:
            "".encode(self.encoding)
        except LookupError as exc:
            raise SettingsError(f"encoding {self.encoding!r} is not known") from exc
        check_accelerator(self.accelerator, self.device)
        self.actor_range  # noqa: B018 - its own check

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """(fewest, most) actors; None for as many as fit."""
        if self.actors == "auto":
            return None
        return read_range("actors", self.actors, "auto, ")
