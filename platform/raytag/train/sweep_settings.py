"""What a sweep is told, and the trials that follow from it.

    job: {base: sample/base, epochs: 6}            # any settings of finetune.py, for all trials
    data:                                          # what is learnt, with settings of its own
      news: {train: news/train.jsonl, dev: news/dev.jsonl, test: news/test.jsonl}
    examples: [100, 200, all]
    methods:                                       # what is compared
      lora: {ratio: 1, grid: {lr: [5.0e-4, 1.0e-3], head_lr: [1.0e-3, 5.0e-3]}}
      lora+16: {ratio: 16}
    grid: {lr: [1.0e-4, 2.0e-4], head_lr: [1.0e-3, 5.0e-3]}   # of methods that have none
    seeds: [0, 1, 2]

Every mistake in it is refused before anything is loaded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any, Literal

from raytag.arguments import check_accelerator, settings_from
from raytag.errors import SettingsError
from raytag.report.comparison import point_words
from raytag.train.settings import FinetuneSettings

SAID_ELSEWHERE = ("seed", "examples", "output")
"""Settings of a trial that the sweep has a place of its own for."""
OF_DATA = ("train", "dev", "test", "format", "on_bad", "overlaps")
"""Settings that say what is read: methods are compared on the same text."""
PLACED = ("cpus", "device", "accelerator")
NOT_FOR_TRIALS = (
    *("tenant", "domain", "registry", "overwrite", "dry_run", "mlflow", "checkpoint_every"),
    *("workers", "max_failures", "wait_for_nodes", "dev_share", "test_share", "score_untrained"),
    "auto",
    *PLACED,
)
"""Settings of one job that are the sweep's to say, or make no sense for a trial, which is one
worker and leaves scores only."""

Size = int | Literal["all"]
Cell = tuple[str, int, str]
"""Data set, number of examples (0 for all) and method: trials that compete for the best rates."""


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Compare ways of fine-tuning, each at the rates that are best for it on dev."""

    output: str
    """Folder for trials and report, local or s3://."""
    data: dict[str, dict[str, Any]]
    """By name, data sets: train, dev, test, examples, any settings of finetune.py."""
    methods: dict[str, dict[str, Any]]
    """By name, what is compared: the settings that make it, and a grid of its own."""
    job: dict[str, Any] = field(default_factory=dict)
    """Settings of finetune.py for all trials."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Settings with the values to try, for methods without a grid of their own."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """The first goes through the grid; the best of it is repeated with the others."""
    examples: tuple[Size, ...] = ("all",)
    """Numbers of training examples, drawn by seed."""
    reference: str | None = None
    """The method the others are compared with; the first one if not given."""
    grace: float = 0.0
    """Share of its steps after which ASHA may stop a trial behind others of its grid; 0: none."""
    keep_one_in: int = 3
    """Of the trials that come to one of ASHA's rungs, one in so many goes on."""
    slots: int = 0
    """Most trials at a time; 0 is as many as the cluster holds."""
    cpus: int = 1
    """CPUs of each trial, and so its threads."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes GPUs where the cluster has any."""
    accelerator: str | None = None
    """Kind of GPU by Ray's name, such as L4 or H100; the only kind there is if not given."""
    trials_per_gpu: int = 1
    """Trials that share a GPU."""
    wait_for_nodes: bool = False
    """Wait for an autoscaler where the cluster is too small now, rather than refuse."""
    max_failures: int = 3
    """Deaths of its process that a trial survives."""
    dry_run: bool = False
    """Check data, settings and memory, say what would be done, and stop."""

    def __post_init__(self) -> None:
        least = {"keep_one_in": 2, "slots": 0, "max_failures": 0}
        for name, value in {**least, "cpus": 1, "trials_per_gpu": 1}.items():
            if getattr(self, name) < value:
                raise SettingsError(f"{name} must be at least {value}, not {getattr(self, name)}")
        if not 0 <= self.grace < 1:
            raise SettingsError(f"grace must be in [0, 1), not {self.grace}")
        check_accelerator(self.accelerator, self.device)
        for name in ("output", "data", "methods", "seeds", "examples"):
            if not getattr(self, name):
                raise SettingsError(f"{name} is empty; there is nothing to compare")
        if len(set(self.seeds)) < len(self.seeds):
            raise SettingsError("seeds names one twice; a repetition needs a seed of its own")
        if self.reference is not None and self.reference not in self.methods:
            raise SettingsError(
                f"reference {self.reference} is no method; there are {', '.join(self.methods)}"
            )

    @property
    def compared_with(self) -> str:
        """The method the others are compared with."""
        return self.reference or next(iter(self.methods))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of the sweep."""

    data: str
    examples: int
    """0 for all."""
    method: str
    point: Mapping[str, Any]
    """Its values of the grid."""
    settings: FinetuneSettings
    """All of them: what finetune.py would be told, but for where it writes."""

    @property
    def cell(self) -> Cell:
        return self.data, self.examples, self.method

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def name(self) -> str:
        words = [self.data, str(self.examples or "all"), self.method, *point_words(self.point)]
        return " ".join([*words, f"seed {self.seed}"])


def read_trials(settings: SweepSettings) -> list[Trial]:
    """Every trial that can be, set by set and method by method. Raises SettingsError, naming
    where the mistake is."""
    _check_settings("job", settings.job)
    _check_settings("grid", settings.grid, refused=OF_DATA)
    trials: list[Trial] = []
    for name, own in settings.data.items():
        where = f"data {name}"
        _check_settings(where, own, besides=("examples",))
        missing = [part for part in ("train", "dev", "test") if part not in own]
        if missing:
            raise SettingsError(
                f"{where}: {missing[0]} is missing; methods are compared on the same held-out text"
            )
        for size in _sizes(where, own.get("examples", settings.examples)):
            for method, told in settings.methods.items():
                rest = {key: value for key, value in own.items() if key != "examples"}
                trials += _trials(settings, name, size, method, rest, told)
    return trials


def _trials(
    settings: SweepSettings,
    data: str,
    size: int,
    method: str,
    of_data: Mapping[str, Any],
    told: Mapping[str, Any],
) -> Iterator[Trial]:
    where = f"method {method}"
    _check_settings(where, told, besides=("grid",), refused=OF_DATA)
    makes = {key: value for key, value in told.items() if key != "grid"}
    grid = told.get("grid", settings.grid)
    _check_settings(f"{where}: grid", grid, refused=OF_DATA)
    twice = sorted(makes.keys() & grid.keys())
    if twice:
        raise SettingsError(f"{where}: {twice[0]} is both set and swept; leave one out")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise SettingsError(f"{where}: grid: {key} needs a list of values, not {values!r}")
    for values in product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        given = {**settings.job, **of_data, **makes, **point}
        given |= {"seed": settings.seeds[0], "examples": size, "output": settings.output}
        given |= {name: getattr(settings, name) for name in PLACED}
        try:
            parsed = settings_from(FinetuneSettings, {k: _in_words(v) for k, v in given.items()})
        except SettingsError as exc:
            raise SettingsError(f"data {data}, {where}: {exc}") from exc
        shown = {key: getattr(parsed, key) for key in point}
        for seed in settings.seeds:
            yield Trial(
                data=data,
                examples=size,
                method=method,
                point=shown,
                settings=replace(parsed, seed=seed),
            )


def _in_words(value: Any) -> Any:
    """A number as it was written: a setting that is words, such as zero, may look like one, and
    what a YAML file quotes comes here without the quotes."""
    return str(value) if type(value) in (int, float) else value


def _check_settings(
    where: str, told: Any, besides: tuple[str, ...] = (), refused: tuple[str, ...] = ()
) -> None:
    """Raises SettingsError for what is no setting of a trial, or not to be said here."""
    if not isinstance(told, Mapping):
        raise SettingsError(f"{where} must be names with values, not {told!r}")
    known = {item.name for item in fields(FinetuneSettings)}
    for key in told:
        if key in besides:
            continue
        if key not in known:
            raise SettingsError(f"{where}: finetune.py has no setting {key}")
        if key in SAID_ELSEWHERE:
            raise SettingsError(f"{where}: {key} is the sweep's to say, once for all methods")
        if key in NOT_FOR_TRIALS:
            raise SettingsError(f"{where}: {key} is not for a trial; leave it out")
        if key in refused:
            raise SettingsError(
                f"{where}: {key} is for data to say: methods are compared on the same text"
            )


def _sizes(where: str, told: Any) -> list[int]:
    """Numbers of examples, 0 for all."""
    listed = isinstance(told, list | tuple) and told
    if not listed or not all(size == "all" or (type(size) is int and size > 0) for size in told):
        raise SettingsError(f"{where}: examples must be a list of numbers or all, not {told!r}")
    return [0 if size == "all" else size for size in told]
