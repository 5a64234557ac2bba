"""How much each tenant may ask for: requests and characters a second, requests at a time.

Token buckets: one holds what ``burst_seconds`` of its rate bring and starts full. A request passes
where the bucket holds what it costs, or is full where it costs more; the bucket then owes the
rest. So what is admitted in a window of W seconds is at most rate x W + one burst (and never less
than a request), one burst more where the share of this ingress changed in it, and what is refused
costs nothing. Pure: time is passed in, in seconds of any clock that goes forward. Not for several
threads at once.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf
from types import TracebackType

from raytag.errors import RaytagError, SettingsError

CONCURRENT_RETRY = 1.0
"""Seconds after which to try again when too many requests are under way: nobody knows when one
of them ends."""
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

    ``share`` is the part of every limit that this ingress may give, 1 / number of ingresses. The
    largest single request is the same for any share: it only waits longer for the next.
    """

    def __init__(
        self, default: Limits, per_tenant: Mapping[str, Limits], share: float = 1.0
    ) -> None:
        self._default = default
        self._per_tenant = dict(per_tenant)
        self._share = _checked(share)
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
        state = self._tenants.get(tenant)
        if state is None:
            state = self._tenants[tenant] = _Tenant(limits, self._share, now)
        wait, limit = state.wait(characters, self._share, now)
        if wait:
            raise OverLimit(
                f"{tenant} is over its limit of {getattr(limits, limit):g} {_WORDS[limit]}; try "
                f"again in {wait:.1f} seconds",
                limit,
                wait,
            )
        state.take(characters)
        return Lease(state)

    def set_share(self, share: float, now: float) -> None:
        """From now on; what tenants have used is not forgotten."""
        share = _checked(share)
        for state in self._tenants.values():
            state.set_share(share, now)
        self._share = share

    def _forget_some(self, now: float) -> None:
        """Looks at two tenants in turn, and so at all as often as tenants are added.

        One with full buckets and nothing under way is as one never seen.
        """
        for _ in range(min(2, len(self._tenants))):
            tenant, state = self._tenants.popitem(last=False)
            if not state.is_idle(now):
                self._tenants[tenant] = state


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

    __slots__ = ("_characters", "_limits", "_requests", "under_way")

    def __init__(self, limits: Limits, share: float, now: float) -> None:
        def bucket(rate: float | None) -> _Bucket | None:
            return None if rate is None else _Bucket(rate, limits.burst_seconds, share, now)

        self._limits = limits
        self._requests = bucket(limits.requests_per_second)
        self._characters = bucket(limits.characters_per_second)
        self.under_way = 0

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
