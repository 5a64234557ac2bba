"""What one serving application can be told, and which values cannot work.

Every refusal here happens before a model is loaded or a port is opened.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from raytag.arguments import check_accelerator, read_range
from raytag.errors import SettingsError
from raytag.model.settings import HeadName
from raytag.serve.limits import Limits


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Serve the adapters of all tenants on one base model."""

    base: str
    """Base model that all adapters were trained on: a directory, an s3:// prefix or a hub name."""
    revision: str | None = None
    """Revision of a base from the hub."""
    head: HeadName = "tag"
    """Head of the adapters."""
    targets: tuple[str, ...] = ()
    """Layers the adapters adapt; all linear ones of attention and MLP if none are named."""
    registry: str = "registry"
    """The registry that versions are in, a folder or s3:// prefix."""
    keys: str = "keys"
    """Folder of the API keys, local or s3://; `raytag keys create` makes one."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    replicas: str = "1:4"
    """Models loaded at a time: a number, or a range that follows the load."""
    ingresses: int = 1
    """Processes that answer HTTP and pass texts on."""
    cpus: int = 1
    """CPUs of each model, and so its threads."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes GPUs where the cluster has any."""
    accelerator: str | None = None
    """Kind of GPU by Ray's name, such as L4 or H100; any if not given."""
    wait_for_nodes: bool = False
    """Wait for an autoscaler where the cluster is too small now, rather than refuse."""
    load_in: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of base and adapters; auto is bf16 on a GPU, fp32 elsewhere."""
    batch_tokens: int = 0
    """Most tokens in one forward pass, padding included; 0 is 1024 on a CPU, 16384 on a GPU."""
    batch_seconds: float = 0.15
    """About the longest one forward pass may take."""
    queue_seconds: float = 0.3
    """Requests that would wait longer than this for their turn are turned away."""
    timeout: float = 10.0
    """Seconds a request may take where it does not say so itself, and the most it may ask for."""
    cache_megabytes: int = 2048
    """Most memory for adapters, in each model."""
    max_texts: int = 1000
    """Most texts in one request."""
    max_characters: int = 1_000_000
    """Most characters in one request."""
    max_requests: int = 512
    """Most requests that one ingress works on at a time, half of them of one tenant; more are
    turned away."""
    lease: float = 10.0
    """Seconds an ingress may go on using what an alias pointed to without hearing of a move."""
    limits: Limits = field(default_factory=Limits)
    """What every tenant may ask for; no limits if not given."""
    tenants: Mapping[str, Limits] = field(default_factory=dict)
    """Limits of single tenants, in place of those."""
    log_texts: bool = False
    """Write the texts of requests into the log."""
    wait: bool = True
    """Serve until stopped; without it the application is left running on the cluster."""

    def __post_init__(self) -> None:
        whole = ("ingresses", "cpus", "cache_megabytes", "max_texts", "max_characters")
        for name in (*whole, "max_requests"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("batch_seconds", "queue_seconds", "timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SettingsError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 1 <= self.lease <= 60:
            raise SettingsError(f"lease must be from 1 to 60 seconds, not {self.lease}")
        if self.batch_tokens < 0:
            raise SettingsError(f"batch_tokens must be at least 0, not {self.batch_tokens}")
        if not 0 < self.port < 65536:
            raise SettingsError(f"port must be from 1 to 65535, not {self.port}")
        for name in ("base", "registry", "keys", "host"):
            if not getattr(self, name):
                raise SettingsError(f"{name} is empty")
        check_accelerator(self.accelerator, self.device)
        self.replica_range  # noqa: B018 - its own check

    @property
    def replica_range(self) -> tuple[int, int]:
        """(fewest, most) models."""
        return read_range("replicas", self.replicas)
