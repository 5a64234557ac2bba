"""How much each tenant may ask for: requests and characters a second, requests at a time.

Token buckets: one holds what ``burst_seconds`` of its rate bring and starts full. A request passes
where the bucket holds what it costs, or is full where it costs more; the bucket then owes the
rest. So what is admitted in a window of W seconds is at most rate x W + one burst (and never less
than a request), one burst more where shares of the ingresses changed in it, and what is refused
costs nothing. A connection stays at one ingress, so a limit is shared among them by what a tenant
asks of each (:class:`Shares`). Pure: time is passed in, in seconds of any clock that goes forward.
Not for several threads at once.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import ceil, exp, inf
from types import TracebackType

from raytag.errors import RaytagError, SettingsError

CONCURRENT_RETRY = 1.0
"""Seconds after which to try again when too many requests are under way: nobody knows when one
of them ends."""
LATELY = 1.0
"""Seconds over which it counts what a tenant asks of an ingress."""
SPARE = 0.1
"""Of an equal share: what an ingress keeps that a tenant asks for nothing, for its next
connection."""
_SLACK = 1e-6
"""Seconds too early that a request may come: clocks and sums are not exact. It is owed."""


class OverLimit(RaytagError):  # noqa: N818 - an answer, not a fault
    """A request that a tenant's limit does not let pass.

    ``retry_after`` is in seconds, not rounded; a request of the same size passes then if the
    tenant asks for nothing meanwhile. None for one that never will.
    """

    def __init__(self, message: str, limit: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.limit = limit
        """The field of :class:`Limits` that it is over."""
        self.retry_after = retry_after


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a tenant may ask for, of all ingresses together; None is no limit."""

    requests_per_second: float | None = None
    """Requests each second, in the long run."""
    characters_per_second: float | None = None
    """Characters of text each second, in the long run."""
    concurrent_requests: int | None = None
    """Requests under way at a time."""
    burst_seconds: float = 10.0
    """Seconds of those rates that may be asked for at once, and so the largest request."""

    def __post_init__(self) -> None:
        for name in ("requests_per_second", "characters_per_second", "burst_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise SettingsError(f"{name} must be above 0, not {value}")
        if self.concurrent_requests is not None and self.concurrent_requests < 1:
            raise SettingsError(
                f"concurrent_requests must be at least 1, not {self.concurrent_requests}"
            )

    @property
    def largest_request(self) -> float:
        """In characters."""
        rate = self.characters_per_second
        return inf if rate is None else rate * self.burst_seconds


class Lease:
    """An admitted request, under way until it is released; a context manager that does so."""

    __slots__ = ("_tenant",)

    def __init__(self, tenant: "_Tenant") -> None:
        self._tenant: _Tenant | None = tenant
        tenant.under_way += 1

    def release(self) -> None:
        """Once is enough, more do no harm."""
        if self._tenant is not None:
            self._tenant.under_way -= 1
            self._tenant = None

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Limiter:
    """Admits requests of all tenants at one ingress, each tenant by itself.

    ``share`` is the part of every limit that this ingress may give, 1 / number of ingresses where
    nothing else is said of a tenant. The largest single request is the same for any share: it only
    waits longer for the next.
    """

    def __init__(
        self, default: Limits, per_tenant: Mapping[str, Limits], share: float = 1.0
    ) -> None:
        self._default = default
        self._per_tenant = dict(per_tenant)
        self._share = _checked(share)
        self._shares: Mapping[str, float] = {}
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()

    def __len__(self) -> int:
        """Tenants that it holds anything about."""
        return len(self._tenants)

    def admit(self, tenant: str, characters: int, now: float) -> Lease:
        """Raises OverLimit. The lease is to be released when the request is answered."""
        self._forget_some(now)
        limits = self._per_tenant.get(tenant, self._default)
        if characters > limits.largest_request:
            raise OverLimit(
                f"{tenant} may send at most {limits.largest_request:,.0f} characters at a time, "
                f"not {characters:,}; split the request",
                "characters_per_second",
                None,
            )
        state, share = self._tenants.get(tenant), self._shares.get(tenant, self._share)
        if state is None:
            state = self._tenants[tenant] = _Tenant(limits, share, now)
        state.asked(characters, now)
        wait, limit = state.wait(characters, share, now)
        if wait:
            raise OverLimit(
                f"{tenant} is over its limit of {getattr(limits, limit):g} {_WORDS[limit]}; try "
                f"again in {wait:.1f} seconds",
                limit,
                wait,
            )
        state.take(characters)
        return Lease(state)

    def demands(self, now: float) -> dict[str, float]:
        """What each tenant asks for here, as a part of its limits, 1 at most; without those that
        ask for no more than an ingress keeps anyway."""
        found = {tenant: state.demand(now) for tenant, state in self._tenants.items()}
        return {tenant: part for tenant, part in found.items() if part > SPARE * self._share}

    def set_share(self, share: float, shares: Mapping[str, float], now: float) -> None:
        """From now on, with ``shares`` for single tenants; what tenants have used is not
        forgotten."""
        self._share, self._shares = _checked(share), {t: _checked(s) for t, s in shares.items()}
        for tenant, state in self._tenants.items():
            state.set_share(self._shares.get(tenant, share), now)

    def _forget_some(self, now: float) -> None:
        """Looks at two tenants in turn, and so at all as often as tenants are added.

        One with full buckets and nothing under way is as one never seen, but for a share of its
        own: buckets that are full of a small one are not of an equal one, later.
        """
        for _ in range(min(2, len(self._tenants))):
            tenant, state = self._tenants.popitem(last=False)
            if tenant in self._shares or not state.is_idle(now):
                self._tenants[tenant] = state


class Shares:
    """How the ingresses share the limits of each tenant: who asks for less than an equal part gets
    what it asks for, the others the rest in equal parts.

    What one gives up is given to another once the first was told, so that all of them together
    hold one whole; and where an ingress joins or an answer is lost, more until the next renewals.
    """

    def __init__(self) -> None:
        self._demands: dict[str, Mapping[str, float]] = {}
        self._given: dict[str, dict[str, float]] = {}

    def give(
        self, ingress: str, demands: Mapping[str, float], ingresses: Collection[str]
    ) -> dict[str, float]:
        """The shares of an ingress that reports what is asked of it; of a tenant that is not
        named an equal one. ``ingresses`` are all that are live."""
        self._demands = {i: d for i, d in self._demands.items() if i in ingresses}
        self._given = {i: g for i, g in self._given.items() if i in ingresses}
        self._demands[ingress] = demands
        equal, shares = 1 / len(ingresses), {}
        for tenant in set[str]().union(*self._demands.values(), *self._given.values()):
            asked = {i: self._demands.get(i, {}).get(tenant, 0.0) for i in ingresses}
            others = sum(
                self._given.get(i, {}).get(tenant, equal) for i in ingresses if i != ingress
            )
            share = max(SPARE * equal, min(_fair(asked, SPARE * equal)[ingress], 1 - others))
            if any(asked.values()) or share < equal - _SLACK:
                shares[tenant] = share
        self._given[ingress] = shares
        return shares


def _fair(asked: Mapping[str, float], least: float) -> dict[str, float]:
    """Parts of 1; what nobody asks for goes to all alike."""
    left, parts = 1.0, {}
    for rank, one in enumerate(sorted(asked, key=lambda one: asked[one])):
        parts[one] = min(max(asked[one], least), left / (len(asked) - rank))
        left -= parts[one]
    return {one: part + left / len(asked) for one, part in parts.items()}


_WORDS = {
    "requests_per_second": "requests a second",
    "characters_per_second": "characters a second",
    "concurrent_requests": "requests at a time",
}


class _Bucket:
    """What may be asked for now. Raises nothing, goes below 0 by what it owes."""

    __slots__ = ("_at", "_burst_seconds", "_full_rate", "_level", "_rate")

    def __init__(self, rate: float, burst_seconds: float, share: float, now: float) -> None:
        self._full_rate = rate
        self._burst_seconds = burst_seconds
        self._rate = rate * share
        self._level = self._most
        self._at = now

    @property
    def _most(self) -> float:
        return self._rate * self._burst_seconds

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self._most, self._level + (now - self._at) * self._rate)
            self._at = now

    def wait(self, cost: float, now: float) -> float:
        """Seconds until this would pass, 0 for now."""
        self._fill(now)
        seconds = (min(cost, self._most) - self._level) / self._rate
        return seconds if seconds > _SLACK else 0.0

    def take(self, cost: float) -> None:
        self._level -= cost

    def is_full(self, now: float) -> bool:
        self._fill(now)
        return self._level >= self._most

    def set_share(self, share: float, now: float) -> None:
        self._fill(now)
        self._rate = self._full_rate * share
        self._level = min(self._level, self._most)


class _Tenant:
    """What one tenant has asked for of late."""

    __slots__ = ("_asked", "_asked_at", "_characters", "_limits", "_requests", "under_way")

    def __init__(self, limits: Limits, share: float, now: float) -> None:
        def bucket(rate: float | None) -> _Bucket | None:
            return None if rate is None else _Bucket(rate, limits.burst_seconds, share, now)

        self._limits = limits
        self._requests = bucket(limits.requests_per_second)
        self._characters = bucket(limits.characters_per_second)
        self.under_way = 0
        self._asked, self._asked_at = 0.0, now

    def asked(self, characters: int, now: float) -> None:
        """Note a request, whether or not it passes."""
        limits = self._limits
        seconds = max(
            1 / (limits.requests_per_second or inf),
            characters / (limits.characters_per_second or inf),
        )
        most = limits.concurrent_requests or inf
        level = self.demand(now) + seconds / LATELY
        self._asked, self._asked_at = min(1.0, max(level, (self.under_way + 1) / most)), now

    def demand(self, now: float) -> float:
        """What was asked for of late, as a part of the limits; 1 at most."""
        lately = self._asked * exp(min(0.0, self._asked_at - now) / LATELY)
        return max(lately, self.under_way / (self._limits.concurrent_requests or inf))

    @property
    def _buckets(self) -> list[_Bucket]:
        return [bucket for bucket in (self._requests, self._characters) if bucket is not None]

    def wait(self, characters: int, share: float, now: float) -> tuple[float, str]:
        """Seconds until a request would pass all limits, 0 for now, and which takes longest."""
        waits = [(0.0, "")]
        if self._requests is not None:
            waits.append((self._requests.wait(1, now), "requests_per_second"))
        if self._characters is not None:
            waits.append((self._characters.wait(characters, now), "characters_per_second"))
        most = self._limits.concurrent_requests
        # Rounded up, so that every ingress lets something pass; 3 x (1 / 3) is 3 thirds.
        if most is not None and self.under_way >= ceil(most * share - 1e-9):
            waits.append((CONCURRENT_RETRY, "concurrent_requests"))
        return max(waits, key=lambda wait: wait[0])

    def take(self, characters: int) -> None:
        if self._requests is not None:
            self._requests.take(1)
        if self._characters is not None:
            self._characters.take(characters)

    def is_idle(self, now: float) -> bool:
        return not self.under_way and all(bucket.is_full(now) for bucket in self._buckets)

    def set_share(self, share: float, now: float) -> None:
        for bucket in self._buckets:
            bucket.set_share(share, now)


def _checked(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"a share is above 0 and at most 1, not {share}")
    return share
