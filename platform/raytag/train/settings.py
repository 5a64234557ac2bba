"""What one fine-tuning job can be told, and which combinations cannot work.

Every refusal here happens before data or models are touched.
"""

from dataclasses import dataclass
from typing import Literal

from raytag.arguments import check_accelerator, read_range
from raytag.errors import SettingsError
from raytag.model.settings import HeadName, LoadIn, LoraPlusSettings, LoraSettings
from raytag.registry.names import check_name
from raytag.text.formats import Format
from raytag.text.prompt import INSTRUCTION, ask

Zero = Literal["auto", "0", "1", "2", "3"]


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Fine-tune a base model for named entity recognition with LoRA+."""

    base: str
    """The base model: a directory, an s3:// prefix or a hub name."""
    train: str
    """Annotated text: file, folder or data set, local or s3://."""
    output: str
    """Folder for adapter, report and checkpoints, local or s3://."""
    dev: str | None = None
    """Text to stop and choose by; split off train if not given."""
    test: str | None = None
    """Held-out text to score; split off train if not given."""
    revision: str | None = None
    """Revision of the base on the hub."""
    tenant: str | None = None
    """Whose adapter it is: with a domain, it is published to the registry."""
    domain: str | None = None
    """What the adapter is for: the registry holds TENANT/DOMAIN@1, @2 and so on."""
    registry: str = "registry"
    """The registry of adapters, a folder or s3:// prefix."""
    warm_start: str | None = None
    """Begin from an adapter: tenant/domain@version, @alias, or a folder."""
    load_in: LoadIn = "auto"
    """Precision of the base: fp32, bf16, 8bit, 4bit; auto is bf16 on a GPU, fp32 elsewhere."""
    head: HeadName = "tag"
    """tag: a label per word; generate: the model writes [TYPE: entity]."""
    instruction: str = INSTRUCTION
    """Prompt of the generate head, with {text} in it."""
    format: Format = "auto"
    """Format of the data; auto looks."""
    on_bad: Literal["raise", "set-aside"] = "raise"
    """A bad row stops the job, or is set aside in OUTPUT/data/rejected.jsonl."""
    overlaps: Literal["flatten", "reject"] = "flatten"
    """Overlapping gold: keep the longer entity, or treat the row as bad."""
    dev_share: float = 0.1
    """Share of train that becomes dev where none is given."""
    test_share: float = 0.1
    """Share of train that becomes test where none is given."""
    examples: int = 0
    """Train on so many examples, drawn by seed; 0 takes all."""
    k_shot: int = 0
    """Train on a few examples with at least this many entities per type; 0 takes all."""
    seed: int = 0
    """Seed of splits, order, initial weights and dropout."""
    rank: int = 16
    """Rank of the adapter."""
    alpha: float = 32.0
    """Scale of the adapter is alpha / rank."""
    dropout: float = 0.05
    """Dropout on the adapter's input; 0 turns off every other dropout of the base too."""
    targets: tuple[str, ...] = ()
    """Layers to adapt, as [q_proj,v_proj]; none means all linear ones of attention and MLP."""
    auto: bool = False
    """Pick rates, batch_size and epochs by the number of examples, the size of the base and the
    head; what is not at its default stands."""
    lr: float = 1e-4
    """Learning rate of A."""
    ratio: float = 16.0
    """Learning rate of B divided by that of A (LoRA+); 1 is plain LoRA."""
    embedding_lr: float = 1e-6
    """Learning rate of adapted embeddings."""
    head_lr: float = 1e-3
    """Learning rate of the tagging head's own layer."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices."""
    batch_size: int = 16
    """Sentences per step, over all workers."""
    batch_tokens: int = 4096
    """Most tokens in one forward pass of one worker, padding included."""
    epochs: int = 10
    """Most passes over the training data."""
    warmup: float = 0.06
    """Share of all steps over which rates rise."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How rates fall after that."""
    clip: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    patience: int = 3
    """Evaluations without a better dev F1 before training stops; 0 never stops early."""
    eval_every: int = 0
    """Steps between evaluations on dev; 0 is once an epoch."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 is once an epoch."""
    workers: str = "1"
    """Number of training workers, or a range such as 2:8."""
    cpus: int = 1
    """CPUs of each worker, and so its threads; more pay for large models only."""
    zero: Zero = "auto"
    """ZeRO stage; auto is 2 where the base fits a worker and 3 where not, 0 for one fp32 worker."""
    offload: bool = False
    """Keep optimizer state in the CPU's memory."""
    gradient_checkpointing: bool = False
    """Trade time for activation memory."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes GPUs where the cluster has any."""
    accelerator: str | None = None
    """Kind of GPU by Ray's name, such as L4 or H100; the only kind there is if not given."""
    max_failures: int = 3
    """Worker failures the job survives; -1 is without limit."""
    wait_for_nodes: bool = False
    """Wait for an autoscaler where the cluster is too small now, rather than refuse."""
    score_untrained: bool = False
    """Score the base on test before training, for comparison."""
    threshold: float = 0.0
    """Leave out entities that score below this when scoring."""
    overwrite: bool = False
    """Replace what an earlier run left in OUTPUT."""
    dry_run: bool = False
    """Check data, settings and memory, say what would be done, and stop."""
    mlflow: str | None = None
    """Tracking URI of MLflow (needs the mlflow extra)."""

    def __post_init__(self) -> None:
        at_least = {
            "batch_size": 1,
            "batch_tokens": 1,
            "epochs": 1,
            "cpus": 1,
            "examples": 0,
            "k_shot": 0,
            "patience": 0,
        }
        at_least |= {"eval_every": 0, "checkpoint_every": 0, "max_failures": -1, "clip": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("warmup", "dev_share", "test_share", "threshold"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingsError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.dev_share + self.test_share >= 1:
            raise SettingsError("dev_share and test_share leave nothing to train on")
        if not self.output:
            raise SettingsError("output is empty; name a folder or s3:// prefix")
        if (self.tenant is None) != (self.domain is None):
            raise SettingsError("--tenant and --domain go together; give both or neither")
        if self.tenant is not None and self.domain is not None:
            check_name("tenant", self.tenant)
            check_name("domain", self.domain)
        check_accelerator(self.accelerator, self.device)
        ask("", self.instruction)
        self.lora  # noqa: B018 - the shape's and rates' own checks
        self.lora_plus  # noqa: B018
        self.worker_range  # noqa: B018
        for wrong, why in self._conflicts():
            if wrong:
                raise SettingsError(why)

    def _conflicts(self) -> list[tuple[bool, str]]:
        quantised = self.load_in in ("8bit", "4bit")
        return [
            (
                quantised and self.zero == "3",
                f"--load-in {self.load_in} does not work with --zero 3: ZeRO-3 partitions "
                "quantised weights whose scales it does not know (reported losses near 13, "
                "bitsandbytes #1451); use --zero 2",
            ),
            (
                self.offload and self.zero == "0",
                "--offload needs --zero 1, 2 or 3: without ZeRO nothing is moved",
            ),
            (
                self.load_in in ("bf16", "8bit", "4bit") and self.zero == "0",
                f"--zero 0 keeps no fp32 master weights, which --load-in {self.load_in} needs; "
                "use --zero 2",
            ),
            (
                self.auto and (self.lr == type(self).lr) != (self.ratio == type(self).ratio),
                "--auto picks --lr and --ratio together, as each is good with the other; change "
                "both or neither",
            ),
            (
                bool(self.examples and self.k_shot),
                "--examples and --k-shot both say how many to train on; give one",
            ),
            (
                self.head == "tag" and self.instruction != INSTRUCTION,
                "--instruction is for --head generate; the tag head has no prompt",
            ),
            (
                self.head == "generate" and self.head_lr != type(self).head_lr,
                "--head-lr is for --head tag; the generate head has no layer of its own",
            ),
        ]

    @property
    def lora(self) -> LoraSettings:
        return LoraSettings(
            rank=self.rank, alpha=self.alpha, dropout=self.dropout, targets=self.targets
        )

    @property
    def lora_plus(self) -> LoraPlusSettings:
        return LoraPlusSettings(
            lr=self.lr,
            ratio=self.ratio,
            embedding_lr=self.embedding_lr,
            head_lr=self.head_lr,
            weight_decay=self.weight_decay,
        )

    @property
    def worker_range(self) -> tuple[int, int]:
        """(fewest, most) workers."""
        return read_range("workers", self.workers)
