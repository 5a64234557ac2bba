"""What a fleet of training jobs is told, and its manifest: which tenants train what.

    defaults: {base: sample/base, epochs: 6}       # any settings of finetune.py
    tenants:
      acme:
        share: 2                                   # twice the turns of a tenant with 1
        domains:
          news: {train: s3://acme/news.jsonl}
          biomedical: {train: s3://acme/bio.jsonl, rank: 8}

Every mistake in it is refused before anything is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from raytag import storage
from raytag.arguments import check_accelerator, settings_from
from raytag.errors import SettingsError
from raytag.registry.names import check_name
from raytag.train.settings import FinetuneSettings

OWN = ("tenant", "domain", "output", "registry", "overwrite", "dry_run", "mlflow")
"""Settings of one job that are the fleet's to say, or make no sense in it."""
PLACED = (
    *("workers", "cpus", "device", "accelerator", "wait_for_nodes"),
    *("zero", "max_failures"),
)


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """Train the adapters of many tenants and domains as one job."""

    manifest: str
    """YAML file that says which tenants train what; local or s3://."""
    output: str
    """Folder for what each run leaves, as OUTPUT/TENANT/DOMAIN; local or s3://."""
    registry: str = "registry"
    """The registry that adapters are published to, a folder or s3:// prefix."""
    pack: int = 1
    """Adapters that one worker trains together on one resident base."""
    pass_tokens: int = 4096
    """Most tokens in one forward pass over a pack, padding included."""
    workers: int = 0
    """Most workers at a time; 0 is as many as the cluster holds."""
    cpus: int = 1
    """CPUs of each worker, and so its threads."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes GPUs where the cluster has any."""
    accelerator: str | None = None
    """Kind of GPU by Ray's name, such as L4 or H100; any if not given."""
    wait_for_nodes: bool = False
    """Wait for an autoscaler where the cluster is too small now, rather than refuse."""
    max_failures: int = 3
    """Deaths of its worker that a run survives."""

    def __post_init__(self) -> None:
        least = {"pack": 1, "pass_tokens": 1, "workers": 0, "cpus": 1, "max_failures": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise SettingsError(f"{name} must be at least {value}, not {getattr(self, name)}")
        check_accelerator(self.accelerator, self.device)
        if not self.output:
            raise SettingsError("output is empty; name a folder or s3:// prefix")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One adapter of the manifest."""

    settings: FinetuneSettings
    share: float
    """Of its tenant."""

    @property
    def tenant(self) -> str:
        return str(self.settings.tenant)

    @property
    def name(self) -> str:
        return f"{self.settings.tenant}/{self.settings.domain}"

    @property
    def kin(self) -> tuple[Any, ...]:
        """Entries that are alike in this can be trained together."""
        s = self.settings
        return s.base, s.revision, s.head, tuple(sorted(s.targets))


def read_manifest(settings: FleetSettings) -> list[Entry]:
    """The entries, in the manifest's order. Raises SettingsError, naming the entry."""
    import yaml

    uri = settings.manifest
    try:
        content = yaml.safe_load(storage.read_bytes(uri))
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{uri} is not YAML: {' '.join(str(exc).split())}") from exc
    _check_keys(uri, content, {"defaults", "tenants"})
    defaults = _mapping(f"{uri}: defaults", content.get("defaults") or {})
    entries = []
    for tenant, told in _mapping(f"{uri}: tenants", content.get("tenants")).items():
        check_name("tenant", str(tenant))
        where = f"{uri}: {tenant}"
        _check_keys(where, told, {"share", "domains"})
        share = told.get("share", 1)
        if isinstance(share, bool) or not isinstance(share, int | float) or not share > 0:
            raise SettingsError(f"{where}: share must be a number above 0, not {share!r}")
        for domain, own in _mapping(f"{where}: domains", told.get("domains")).items():
            check_name("domain", str(domain))
            given = {**defaults, **_mapping(f"{where}/{domain}", own)}
            parsed = _parsed(settings, f"{where}/{domain}", str(tenant), str(domain), given)
            entries.append(Entry(settings=parsed, share=float(share)))
    if not entries:
        raise SettingsError(f"{uri} names no tenant with a domain; there is nothing to train")
    return entries


def _parsed(
    settings: FleetSettings, where: str, tenant: str, domain: str, given: Mapping[str, Any]
) -> FinetuneSettings:
    """An entry's settings, with the same checks as flags have."""
    for name in (*OWN, *PLACED):
        if name in given:
            raise SettingsError(f"{where}: {name} is not for one entry; the fleet decides it")
    known = {field.name for field in fields(FinetuneSettings)}
    unknown = sorted(str(name) for name in given.keys() - known)
    if unknown:
        raise SettingsError(f"{where}: finetune.py has no setting {unknown[0]}")
    output = storage.join(settings.output, tenant, domain)
    given = {"load_in": "fp32", **given}  # which a resident base is in
    place = {"tenant": tenant, "domain": domain, "registry": settings.registry, "output": output}
    try:
        return settings_from(FinetuneSettings, {**given, **place})
    except SettingsError as exc:
        raise SettingsError(f"{where}: {exc}") from exc


def _check_keys(where: str, content: Any, known: set[str]) -> None:
    odd = sorted(str(key) for key in _mapping(where, content).keys() - known)
    if odd:
        raise SettingsError(
            f"{where}: {odd[0]} is unknown here; there are {', '.join(sorted(known))}"
        )


def _mapping(where: str, content: Any) -> Mapping[Any, Any]:
    if not isinstance(content, Mapping):
        raise SettingsError(f"{where} must be names with values, not {content!r}")
    return content
