"""Many adapters in one job: workers that live long take entries of a manifest in fair turn.

A worker is a Ray actor that loads a base once and trains one pack of adapters after another on it
(``pack.py``). Knows turns, deaths and what is done already; that a run is published once,
whatever is tried again, is the registry's doing. Nothing of a run is checkpointed: one that its
worker's death cuts short begins again.
"""

import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytag import storage
from raytag.cluster import check_output, check_reach, connect
from raytag.errors import RaytagError
from raytag.placement import find_seat, hide_gpus_not_given
from raytag.report.terminal import FleetTable
from raytag.train.fleet_settings import Entry, FleetSettings, read_manifest
from raytag.train.follow import Mailbox

_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of an entry."""

    name: str
    state: Literal["published", "unchanged", "failed"]
    version: str = ""
    f1: float | None = None
    """Micro F1 on test, else on dev."""
    seconds: float = 0.0
    reason: str = ""


class Turns:
    """Whose turn it is: the tenant that has had least of its share, as the manifest names them."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._waiting = list(entries)
        self._alone: set[str] = set()
        self._had = dict.fromkeys((entry.tenant for entry in entries), 0)

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self, pack: int) -> list[Entry]:
        """Up to ``pack`` entries that can be trained together; none where none wait."""
        taken: list[Entry] = []
        while len(taken) < pack and not self._alone & {entry.name for entry in taken}:
            fitting = [e for e in self._waiting if not taken or self._go_together(e, taken[0])]
            if not fitting:
                break
            # min keeps the manifest's order among equals.
            entry = min(fitting, key=lambda e: self._had[e.tenant] / e.share)
            self._waiting.remove(entry)
            self._had[entry.tenant] += 1
            taken.append(entry)
        return taken

    def again(self, entry: Entry) -> None:
        """An entry that was lost waits again, before all others, and then goes alone: it may be
        what its neighbours were lost with."""
        self._alone.add(entry.name)
        self._had[entry.tenant] -= 1
        self._waiting.insert(0, entry)

    def _go_together(self, entry: Entry, other: Entry) -> bool:
        return entry.kin == other.kin and entry.name not in self._alone


def train_fleet(settings: FleetSettings) -> list[Result]:
    """Run the job on the Ray cluster at hand; what became of each entry, in manifest order.

    Raises RaytagError for a manifest that cannot work; an entry that fails stops nothing else.
    """
    check_output(settings.output)
    check_output(settings.registry)
    entries = read_manifest(settings)
    connect("finetune_fleet.py")
    check_reach(settings.output)
    check_reach(settings.registry)
    return _Fleet(settings, entries).run()


class _Fleet:
    """A run of the job, from the driver's side."""

    def __init__(self, settings: FleetSettings, entries: Sequence[Entry]) -> None:
        self._settings = settings
        self._entries = entries
        self._turns = Turns(entries)
        self._deaths = dict.fromkeys((entry.name for entry in entries), 0)
        self._results: dict[str, Result] = {}
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, list[Entry]]] = {}
        self._seat = find_seat(settings, 1, "worker")
        # On this node: with another's death the messages would go, and the job with them.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        placed: Any = {"num_cpus": 0, "scheduling_strategy": here}
        self._mailbox: Any = ray.remote(**placed)(Mailbox).remote()

    def run(self) -> list[Result]:
        with FleetTable([entry.name for entry in self._entries]) as table:
            while self._turns or self._busy:
                self._assign(table)
                done, _ = ray.wait(list(self._busy), timeout=_POLL_SECONDS)
                for name, record in ray.get(self._mailbox.take.remote()):
                    table.step(name, record["step"], record["total_steps"], record.get("dev_f1"))
                for call in done:
                    self._settle(call, table)
        return [self._results[entry.name] for entry in self._entries]

    def _room(self) -> int:
        """How many workers the cluster holds now, or will when the nodes have come."""
        most = self._settings.workers
        if most and self._settings.wait_for_nodes:
            return most
        room = self._seat.room()
        return min(room, most or room)

    def _assign(self, table: FleetTable) -> None:
        while self._turns:
            if not self._idle:
                if len(self._busy) >= self._room():
                    return
                self._idle.append(self._new_worker())
            worker = self._idle.pop()
            group = self._turns.next(self._settings.pack)
            for entry in group:
                table.show(entry.name, "training")
            self._busy[worker.train.remote(group)] = (worker, group)

    def _new_worker(self) -> Any:
        return ray.remote(**self._seat.options)(Worker).remote(self._settings, self._mailbox)

    def _settle(self, call: Any, table: FleetTable) -> None:
        """Take what a worker gives, or what is known of its end."""
        worker, group = self._busy.pop(call)
        try:
            results: list[Result] = ray.get(call)
            self._idle.append(worker)
        except ray.exceptions.RayActorError:
            results = self._lost(group, "its worker died; is memory short?", table)
        except ray.exceptions.RayTaskError as exc:
            # A bug that one entry's data brings out stops no other.
            traceback.print_exception(exc)
            self._idle.append(worker)
            for entry in group if len(group) == 1 else ():
                self._deaths[entry.name] = self._settings.max_failures
            results = self._lost(group, f"a bug: {exc.cause!r}", table)
        for result in results:
            self._results[result.name] = result
            table.show(result.name, result.state, f1=result.f1, said=result.version + result.reason)

    def _lost(self, group: Sequence[Entry], reason: str, table: FleetTable) -> list[Result]:
        """Let entries wait again; those that were lost too often have failed."""
        failed = []
        for entry in reversed(group):
            self._deaths[entry.name] += 1
            if self._deaths[entry.name] > self._settings.max_failures:
                failed.append(Result(name=entry.name, state="failed", reason=reason))
            else:
                table.show(entry.name, "waiting")
                self._turns.again(entry)
        return failed


@dataclass
class Worker:
    """An actor of the fleet: a base that stays, and adapters trained on it, pack after pack."""

    settings: FleetSettings
    mailbox: Any
    _kin: tuple[Any, ...] = ()
    _packed: Any = field(default=None)

    def train(self, group: Sequence[Entry]) -> list[Result]:
        """Train entries that are kin; what became of each. A mistake is a result, no error."""
        import torch

        from raytag.train.pack import train_pack

        hide_gpus_not_given()
        torch.set_num_threads(self.settings.cpus)
        results: list[Result] = []
        begun: list[_Begun] = []
        for entry in group:
            began = time.monotonic()
            try:
                run = self._begin(entry)
            except RaytagError as exc:
                results.append(_failed(entry, exc))
                continue
            if isinstance(run, Result):
                results.append(run)
            else:
                run.since = began
                begun.append(run)
        if not begun:
            return results

        def on_step(index: int, record: Mapping[str, Any]) -> None:
            self.mailbox.put.remote(begun[index].entry.name, dict(record))

        outcomes = train_pack(
            self._packed,
            [run.member for run in begun],
            on_step=on_step,
            pass_tokens=self.settings.pass_tokens,
        )
        for run, outcome in zip(begun, outcomes, strict=True):
            try:
                if isinstance(outcome, RaytagError):
                    raise outcome
                results.append(run.publish(outcome))
            except RaytagError as exc:
                results.append(_failed(run.entry, exc))
        return results

    def _begin(self, entry: Entry) -> "_Begun | Result":
        """Read an entry's data; its version where this very run has been published already."""
        from raytag.registry.registry import Registry
        from raytag.train.advice import advised
        from raytag.train.data import gather, settings_fingerprint
        from raytag.train.lineage import begun_from, read_parent
        from raytag.train.pack import Member

        data = gather(entry.settings)
        self._load(entry)
        settings = advised(entry.settings, len(data.train), self._packed.base)
        weights = self._packed.fingerprint
        parent = read_parent(settings)
        start = begun_from(settings, weights, parent)
        run = settings_fingerprint(asdict(settings), data.fingerprint(), start)
        version = Registry(settings.registry).of_run(entry.tenant, str(settings.domain), run)
        if version is not None:
            return Result(name=entry.name, state="unchanged", version=str(version), f1=version.f1)
        storage.remove_folder(settings.output)
        record = {"run": run, "settings": asdict(settings)}
        storage.write_bytes(
            storage.join(settings.output, "run.json"), json.dumps(record, indent=2).encode()
        )
        data.write(storage.join(settings.output, "data"))
        return _Begun(entry, Member(settings=settings, data=data, parent=parent), run)

    def _load(self, entry: Entry) -> None:
        """Have the base of this kin in memory, instead of another."""
        from raytag.model.base import find_base
        from raytag.model.packed import PackedModel

        if self._kin != entry.kin:
            import torch

            self._kin, self._packed = (), None
            settings = entry.settings
            self._packed = PackedModel(
                find_base(settings.base, settings.revision),
                settings.head,
                targets=settings.targets,
                device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            )
            self._kin = entry.kin


@dataclass
class _Begun:
    """An entry whose training has begun."""

    entry: Entry
    member: Any
    run: str
    since: float = 0.0

    def publish(self, outcome: Any) -> Result:
        """Write what the run leaves, and make it the next version of its domain."""
        from raytag.train.lineage import register
        from raytag.train.publish import publish

        settings, data = self.member.settings, self.member.data
        publish(settings, data, outcome, {})
        version = register(settings, data, self.run, self.member.parent)
        assert version is not None
        return Result(
            name=self.entry.name,
            state="published",
            version=str(version),
            f1=version.f1,
            seconds=time.monotonic() - self.since,
        )


def _failed(entry: Entry, exc: RaytagError) -> Result:
    return Result(name=entry.name, state="failed", reason=" ".join(str(exc).split()))
