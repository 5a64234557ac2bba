"""A service in which all goes wrong that can, in virtual time: a switch, ingresses, requests.

What a seed gives is always the same. ``World.violations`` says where the switch's promise was
broken, by what was answered and what was acknowledged alone.
"""

import contextlib
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from raytag.errors import SettingsError
from raytag.registry.names import Ref
from raytag.serve.canary import Canary, Observed, chosen
from raytag.serve.leases import LeaseEnded, Leases, PointsNowhere
from raytag.serve.switch import Switch

LEASE, DRAIN, RENEW = 5.0, 2.0, 1.0
ALIASES = (Ref("acme", "news", "production"), Ref("other", "law", "production"))
CHAOS = 90.0
"""Seconds for which things go wrong."""


def loads(version: int) -> bool:
    return version % 5 != 0


@dataclass
class Ingress:
    id: str
    leases: Leases
    offset: float
    rate: float
    alive: bool = True
    deaf_until: float = 0.0
    mute_until: float = 0.0
    paused_until: float = 0.0


@dataclass
class Alias:
    log: list[int] = field(default_factory=lambda: [1])
    looked: int = 0
    """Moves of the log that the switch of the moment has seen."""
    acknowledged: list[tuple[float, int]] = field(default_factory=list)
    """When, and up to which move of the log."""
    legal: set[int] | None = None
    """The versions that may answer: the last acknowledged, and those granted since."""


class World:
    def __init__(
        self, seed: int, leases: type[Leases] = Leases, switch: type[Switch] = Switch
    ) -> None:
        self.random = random.Random(seed)
        self.make_leases, self.make_switch = leases, switch
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.versions = itertools.count(2)
        self.aliases = {ref: Alias() for ref in ALIASES}
        self.ingresses: list[Ingress] = []
        self.violations: list[str] = []
        self.answers = self.sent = self.voided = self.restarts = self.unknown = 0
        self.compared = 0
        self.switch: Switch | None = None
        self.faults = True
        self.start_switch()
        for _ in range(3):
            self.start_ingress()
        self.every(0.1, self.tick)
        self.every(0.05, self.request)
        self.every(3.0, self.move)
        self.every(6.0, self.try_canary)
        self.every(2.5, self.break_something)

    # Time

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.numbers), do))

    def every(self, seconds: float, do: Callable[[], None]) -> None:
        def again() -> None:
            do()
            self.after(self.random.expovariate(1 / seconds), again)

        self.after(seconds, again)

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> None:
        while self.events[0][0] <= until and not stop():
            self.now, _, do = heapq.heappop(self.events)
            do()

    # The registry, the switch and what carries out its wishes

    def move(self) -> None:
        if not self.faults:
            return
        log = self.random.choice(list(self.aliases.values())).log
        back = self.random.random() < 0.3
        version = self.random.choice(log) if back else next(self.versions)
        if version != log[-1]:
            log.append(version)

    def start_switch(self) -> None:
        self.skew = self.random.uniform(-1000, 1000) - self.now
        self.switch = self.make_switch(LEASE, self.now + self.skew)
        self.loading: set[Ref] = set()
        for alias in self.aliases.values():
            alias.looked = 0

    def tick(self) -> None:
        if (switch := self.switch) is None:
            return
        now = self.now + self.skew
        for ref in sorted(switch.tracked(now), key=str):
            if self.random.random() < 0.3:
                log = self.aliases[ref].log
                switch.observe(ref, log[::-1], now)
                self.aliases[ref].looked = len(log)
        for version in [v for v in switch.to_load() if v not in self.loading]:
            self.loading.add(version)
            self.after(self.random.expovariate(3), lambda v=version: self.load(switch, v))
        for ref, canary, decision in switch.decisions():
            if decision.verdict == "forward" and self.aliases[ref].log[-1] != canary.version:
                self.aliases[ref].log.append(canary.version)
            elif decision.verdict == "back":
                switch.stop_canary(ref, now, decision.reason)
        self.look()

    def load(self, switch: Switch, version: Ref) -> None:
        if switch is not self.switch:
            return
        self.loading.discard(version)
        assert isinstance(version.version, int)
        if loads(version.version):
            switch.loaded(version, self.now + self.skew)
        else:
            switch.refused(version, "it is broken", self.now + self.skew)
        self.look()

    def try_canary(self) -> None:
        if self.switch is None or not self.faults:
            return
        ref = self.random.choice(ALIASES)
        number = next(self.versions)
        canary = Canary(
            id=f"canary-{number}",
            version=number,
            share=self.random.random(),
            shadow=self.random.random() < 0.3,
        )
        with contextlib.suppress(SettingsError):
            self.switch.start_canary(ref, canary, self.now + self.skew)
        if self.random.random() < 0.3:
            self.switch.stop_canary(ref, self.now + self.skew)
        self.look()

    def look(self) -> None:
        """Note what was granted and what was acknowledged."""
        assert self.switch
        for ref, alias in self.aliases.items():
            status = self.switch.status(ref, self.now + self.skew)
            trial = status.canary
            current = {status.version} - {None}
            if trial and trial.state == "running" and not trial.canary.shadow:
                current.add(trial.canary.version)
            if alias.legal is not None:
                alias.legal |= current
            if status.state == "live":
                alias.legal = current
                alias.acknowledged.append((self.now, alias.looked - 1))

    # Ingresses

    def start_ingress(self) -> None:
        ingress = Ingress(
            id=f"ingress-{next(self.numbers)}",
            leases=self.make_leases(drain=DRAIN, keep=60.0),
            offset=self.random.uniform(-1000, 1000),
            rate=1 + self.random.uniform(-4e-4, 4e-4),
        )
        self.ingresses.append(ingress)
        self.renew(ingress)

    def clock(self, ingress: Ingress) -> float:
        return ingress.offset + ingress.rate * self.now

    def on(self, ingress: Ingress, do: Callable[[], None]) -> None:
        """Done in the process of an ingress, which may be stopped for a while, or be gone."""
        if self.now < ingress.paused_until:
            self.after(ingress.paused_until - self.now, lambda: self.on(ingress, do))
        elif ingress.alive:
            do()

    def send(self, do: Callable[[], None]) -> None:
        """A message: lost, late or twice, while there are faults."""
        luck = self.random.random() if self.faults else 1.0
        if luck < 0.05:
            return
        for _ in range(2 if luck < 0.08 else 1):
            late = luck < 0.15
            self.after(self.random.uniform(0, 9) if late else self.random.expovariate(1 / 0.02), do)

    def renew(self, ingress: Ingress) -> None:
        def work() -> None:
            renewal = ingress.leases.renewal(self.clock(ingress))

            def arrive() -> None:
                if self.switch is None:
                    return
                grant = self.switch.renew(ingress.id, renewal, self.now + self.skew)
                self.look()
                self.send(lambda: self.on(ingress, lambda: reply(grant)))

            def reply(grant) -> None:  # type: ignore[no-untyped-def]
                if self.now >= ingress.deaf_until:
                    ingress.leases.granted(grant, self.clock(ingress))

            if self.now >= ingress.mute_until:
                self.send(arrive)
            self.after(RENEW * self.random.uniform(0.5, 1), lambda: self.on(ingress, work))

        self.on(ingress, work)

    def request(self) -> None:
        ingress = self.random.choice(self.ingresses)
        ref, sent, id_ = self.random.choice(ALIASES), self.now, str(self.sent)
        self.sent += 1

        def begin() -> None:
            try:
                route = ingress.leases.resolve(ref, self.clock(ingress))
            except (LeaseEnded, PointsNowhere):
                self.unknown += 1
                return
            if route is None:
                self.after(0.2, lambda: self.on(ingress, begin))
                return
            stack = contextlib.ExitStack()
            stack.enter_context(ingress.leases.use(route))
            canary = route.canary
            candidate = canary is not None and chosen(canary, id_)
            version = route.version
            if canary and candidate:
                good = loads(canary.version)
                ingress.leases.saw(canary.id, Observed(requests=1, compared=1))
                self.compared += 1
                version = version if canary.shadow or not good else canary.version
            slow = self.random.random() < 0.05
            seconds = self.random.uniform(0, 12) if slow else self.random.expovariate(5)
            self.after(seconds, lambda: self.on(ingress, lambda: end(stack, route, version)))

        def end(stack, route, version) -> None:  # type: ignore[no-untyped-def]
            with stack:
                may = ingress.leases.may_answer(route, self.clock(ingress), version)
            if may:
                self.answers += 1
                self.judge(ref, version, sent)
            else:
                self.voided += 1
                begin()

        self.on(ingress, begin)

    def judge(self, ref: Ref, version: int, sent: float) -> None:
        """An answer goes out."""
        alias = self.aliases[ref]
        if alias.legal is not None and version not in alias.legal:
            self.violations.append(f"{self.now:.2f} {ref}: {version}, not of {alias.legal}")
        before = [move for at, move in alias.acknowledged if at < sent]
        if before and version in alias.log:
            newest = len(alias.log) - 1 - alias.log[::-1].index(version)
            if newest < max(before):
                self.violations.append(f"{self.now:.2f} {ref}: {version}, asked after a later move")

    # Faults

    def break_something(self) -> None:
        if not self.faults:
            return
        ingress = self.random.choice(self.ingresses)
        until = self.now + self.random.uniform(0, 2 * LEASE)
        match self.random.choice(("die", "deaf", "mute", "cut", "pause", "leave", "restart")):
            case "die":
                self.end_ingress(ingress)
            case "deaf":
                ingress.deaf_until = until
            case "mute":
                ingress.mute_until = until
            case "cut":
                ingress.deaf_until = ingress.mute_until = until
            case "pause":
                ingress.paused_until = until
            case "leave":
                self.end_ingress(ingress)
                if self.switch:
                    self.switch.leave(ingress.id)
            case "restart" if self.switch:
                self.switch = None
                self.restarts += 1
                ingress.deaf_until = ingress.mute_until = until
                self.move()
                self.after(self.random.expovariate(2), self.start_switch)

    def end_ingress(self, ingress: Ingress) -> None:
        ingress.alive = False
        self.ingresses.remove(ingress)
        self.start_ingress()

    def heal(self) -> None:
        self.faults = False
        for ingress in self.ingresses:
            ingress.deaf_until = ingress.mute_until = ingress.paused_until = self.now
