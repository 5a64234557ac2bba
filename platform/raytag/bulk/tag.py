"""One tagging job from the driver's side: a corpus in, a manifest out.

Knows the order of things: what was planned, what is done, what is left. Ray Data carries the
shards to a pool of actors and brings back their receipts; that a shard counts once is the
store's doing, whatever Ray tries again.
"""

import logging
import pickle
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.data

from raytag import storage
from raytag.bulk.corpus import (
    CorpusFile,
    FileScan,
    Stretch,
    choose_columns,
    cut,
    find_files,
    scan,
)
from raytag.bulk.settings import TagSettings
from raytag.bulk.store import (
    Manifest,
    Plan,
    Receipt,
    Tally,
    finish,
    read_manifest,
    read_plan,
    read_receipts,
    read_rejects,
    settle_plan,
    settled_plan,
)
from raytag.cluster import check_output, check_reach, connect
from raytag.errors import DataError, ModelError, RaytagError, SettingsError
from raytag.model.files import find_model, revision_of
from raytag.placement import Seat, find_seat, hide_gpus_not_given
from raytag.report.terminal import TaggingProgress

SHAPING = (
    *("kind", "text_column", "id_column", "encoding", "max_characters", "limit"),
    *("load_in", "threshold", "keep_text", "format"),
)
"""Settings that shape the result; the rest is how it is come by."""
AGAIN = ("encoding", "max_characters")
"""Settings that may differ when what was set aside is tried again."""
SCANNED_AT_ONCE = 64
"""Files that one task counts."""
JUDGED_FROM = 100
"""Documents before which no share of rejects is too large: the first may all be odd."""


def tag(settings: TagSettings) -> Manifest:
    """Run the job on the Ray cluster at hand, or what is left of it; gives the manifest.

    Raises RaytagError, with one line for the user, for whatever they can mend.
    """
    check_output(settings.output)
    if not storage.exists(storage.join(settings.model, "card.json")):
        raise ModelError(f"{settings.model} is no model or adapter of ours: it holds no card.json")
    model = revision_of(settings.model)
    before = read_manifest(settings.output)
    if before is not None and not settings.replay:
        plan = settled_plan(settings.output, before.generation)
        _check_same(settings, plan, model, find_files(settings.input, settings.kind))
        print(f"{settings.output} is finished already")
        return before
    files = find_files(settings.input, settings.kind)
    connect("tag.py")
    check_reach(settings.output)
    pool = Pool.on_cluster(settings)
    plan = _planned(settings, files, model, before)
    done = read_receipts(settings.output, plan)
    print(f"{plan.documents:,} documents in {len(plan.shards):,} shards, {len(done):,} done")
    receipts = _follow(settings, plan, pool, done)
    finish(settings.output, plan, receipts, before)
    manifest = read_manifest(settings.output)
    assert manifest is not None
    return manifest


def _planned(
    settings: TagSettings, files: Sequence[CorpusFile], model: str, before: Manifest | None
) -> Plan:
    """The plan that stands in the output, if this job is the one it is for; or a new one."""
    generation = before.generation + 1 if before else 0
    plan = read_plan(settings.output, generation)
    if plan is None and before is None and storage.list_files(settings.output):
        raise SettingsError(
            f"{settings.output} holds files of something else; name an empty folder"
        )
    if plan is None:
        plan = _new_plan(settings, files, model) if before is None else _replay(settings, before)
        plan = settle_plan(settings.output, plan)
    _check_same(settings, plan, model, files)
    return plan


def _shaping(settings: TagSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in SHAPING}


def _check_same(settings: TagSettings, plan: Plan, model: str, files: Sequence[CorpusFile]) -> None:
    """Raises SettingsError where the output is of another job, naming what differs."""
    mine = _shaping(settings)
    differing = [
        f"{name}: {plan.settings.get(name)} there, {value} here"
        for name, value in mine.items()
        if plan.settings.get(name) != value
    ]
    if plan.model != model:
        differing.append("another model")
    theirs = {file.name: file.fingerprint for file in plan.files}
    ours = {file.name: file.fingerprint for file in files}
    changed = sorted(name for name in theirs if ours.get(name) != theirs[name])
    added = [] if settings.limit else sorted(ours.keys() - theirs.keys())
    if changed or added:
        differing.append(f"input {(changed + added)[0]} has changed, is new or is gone")
    if differing:
        raise SettingsError(
            f"{settings.output} holds another job's tags ({'; '.join(differing)}); "
            "give another --output"
        )


def _new_plan(settings: TagSettings, files: Sequence[CorpusFile], model: str) -> Plan:
    scans = _scanned(settings, files)
    files = files[: len(scans)]
    columns = choose_columns(scans, settings.text_column, settings.id_column)
    shards = cut(scans, settings.shard_documents, int(settings.shard_megabytes * 1e6))
    return Plan(
        settings=_shaping(settings), model=model, files=files, columns=columns, shards=shards
    )


def _scanned(settings: TagSettings, files: Sequence[CorpusFile]) -> list[FileScan]:
    """What stands in each file, counted on the cluster; with a limit, up to that many rows."""
    groups = [files[i : i + SCANNED_AT_ONCE] for i in range(0, len(files), SCANNED_AT_ONCE)]
    task = ray.remote(max_retries=3)(_scan_group)
    scans: list[FileScan] = []
    if settings.limit:
        left = settings.limit
        for group in groups:
            scans += _unrefused(ray.get(task.remote(group, settings.encoding, left)))
            left = settings.limit - sum(found.rows for found in scans)
            if left <= 0:
                break
        return scans
    for found in ray.get([task.remote(group, settings.encoding, None) for group in groups]):
        scans += _unrefused(found)
    return scans


def _scan_group(
    files: Sequence[CorpusFile], encoding: str, limit: int | None
) -> list[FileScan] | RaytagError:
    """A mistake of the user's comes back as a value: a raised one would be wrapped in Ray's."""
    scans: list[FileScan] = []
    try:
        for file in files:
            left = None if limit is None else limit - sum(found.rows for found in scans)
            if left is not None and left <= 0:
                break
            scans.append(scan(file, encoding=encoding, limit=left))
    except RaytagError as exc:
        return exc
    return scans


def _unrefused(found: list[FileScan] | RaytagError) -> list[FileScan]:
    if isinstance(found, RaytagError):
        raise found
    return found


def _replay(settings: TagSettings, before: Manifest) -> Plan:
    """A plan for the documents that the generation before has set aside."""
    output = settings.output
    last = settled_plan(output, before.generation)
    index = {file.name: i for i, file in enumerate(last.files)}
    held = sorted((s for shard in last.shards for s in shard), key=lambda s: (s.file, s.first))
    places = [(stretch.file, stretch.first) for stretch in held]
    shards: list[list[Stretch]] = []
    size = settings.shard_documents
    for file, row in sorted((index[r["file"]], r["row"]) for r in read_rejects(output, before)):
        if not shards or sum(stretch.rows for stretch in shards[-1]) >= size:
            shards.append([])
        at = shards[-1][-1] if shards[-1] else None
        if at and (at.file, at.first + at.rows) == (file, row):
            shards[-1][-1] = replace(at, rows=at.rows + 1)
        else:
            # Reading begins where it did for the stretch that held the row.
            old = held[bisect_right(places, (file, row)) - 1]
            skip = old.skip + row - old.first if old.offset else 0
            shards[-1].append(Stretch(file, row, 1, old.offset, skip))
    shaping = {**last.settings, **{name: getattr(settings, name) for name in AGAIN}}
    return replace(last, generation=before.generation + 1, settings=shaping, shards=shards)


def _follow(
    settings: TagSettings, plan: Plan, pool: "Pool", done: Mapping[str, Receipt]
) -> list[Receipt]:
    """Have the shards that are left tagged; the receipts of all."""
    tally, receipts = Tally(), list(done.values())
    for receipt in receipts:
        tally.add(receipt)
    before, tokens_before = tally.documents, tally.tokens
    left = [i for i in range(len(plan.shards)) if plan.shard_name(i) not in done]
    began = time.monotonic()
    with TaggingProgress() as progress:
        for receipt in _tagged(settings, plan, pool, left):
            receipts.append(receipt)
            tally.add(receipt)
            seconds = time.monotonic() - began
            speed = (tally.documents - before) / seconds
            progress.update(
                tally.documents,
                plan.documents,
                tally.labels.total(),
                (tally.tokens - tokens_before) / seconds,
                (plan.documents - tally.documents) / speed if speed else None,
            )
            _check_share(settings, tally, plan.documents)
    return receipts


def _check_share(settings: TagSettings, tally: Tally, documents: int) -> None:
    if tally.documents < min(JUDGED_FROM, documents) or settings.replay:
        return
    if tally.rejected > settings.max_rejected * tally.documents:
        raise DataError(
            f"{tally.rejected} of {tally.documents} documents had to be set aside, over the share "
            f"of {settings.max_rejected:g}; see {settings.output}/_rejected, mend the input or "
            "raise --max-rejected"
        )


def _tagged(
    settings: TagSettings, plan: Plan, pool: "Pool", shards: Sequence[int]
) -> Iterator[Receipt]:
    """The receipts of these shards, in the order in which they are done."""
    if not shards:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = ray.data.from_items([{"shard": i} for i in shards], override_num_blocks=len(shards))
    tagged = rows.map_batches(
        ShardTagger,
        fn_constructor_kwargs={"settings": settings, "generation": plan.generation},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=min(pool.fewest, len(shards)), max_size=min(pool.most, len(shards))
        ),
        **pool.seat.options,
    )
    for row in tagged.iter_rows():
        outcome: Receipt | RaytagError = pickle.loads(row["outcome"])
        if isinstance(outcome, RaytagError):
            raise outcome
        yield outcome


@dataclass(frozen=True)
class Pool:
    """How many actors there may be, and what each takes up."""

    fewest: int
    most: int
    seat: Seat

    @classmethod
    def on_cluster(cls, settings: TagSettings) -> "Pool":
        """Raises ResourceError where the cluster has no room for the fewest."""
        least, _ = settings.actor_range or (1, 1)
        seat = find_seat(settings, least, "actor")
        room = seat.room()
        fewest, most = settings.actor_range or (room, room)
        return cls(fewest, most, seat)


class ShardTagger:
    """An actor of the pool: a model, loaded once, that shards are tagged with.

    Gives receipts, pickled. A mistake of the user's comes as a value: one that is raised would
    be tried again, and wrapped in errors of Ray's.
    """

    def __init__(self, settings: TagSettings, generation: int) -> None:
        self._settings = settings
        self._generation = generation
        self._plan: Plan | None = None
        self._tagger: Any = None
        hide_gpus_not_given()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        from raytag.bulk.shard import tag_shard

        outcome: Receipt | RaytagError
        try:
            if self._plan is None:
                # From storage: nothing of the driver's has to live for an actor to start again.
                plan = settled_plan(self._settings.output, self._generation)
                self._tagger = self._load(plan.model)
                self._plan = plan
            outcome = tag_shard(self._plan, int(batch["shard"][0]), self._settings, self._tagger)
        except RaytagError as exc:
            outcome = exc
        return {"outcome": [pickle.dumps(outcome)]}

    def _load(self, revision: str) -> Any:
        import torch

        from raytag.model.merge import load_for_tagging
        from raytag.model.tagger import Tagger

        settings = self._settings
        torch.set_num_threads(settings.cpus)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found = find_model(settings.model, revision)
        loaded = load_for_tagging(
            found.path, base=settings.base, load_in=settings.load_in, device=device
        )
        # More does not fit a CPU's cache, less leaves a GPU idle.
        most = settings.batch_tokens or (16384 if device.type == "cuda" else 1024)
        return Tagger.of(loaded, most, settings.threshold)
