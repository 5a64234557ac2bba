"""A candidate beside the version in use: who is asked, what was seen, and what follows from it.

Knows the rule and the counts, not how a version is asked, moved or stopped; pure.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from raytag.errors import SettingsError
from raytag.registry.names import LAST_NUMBER
from raytag.text.spans import Entity

Found = Sequence[Sequence[Entity]]
"""The entities of a request's documents, in the documents' order."""


MOST_REQUESTS = 1_000_000
MOST_LATENCY_RATIO = 1000.0


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a candidate must hold to take the place of the version in use, the incumbent."""

    min_requests: int = 200
    """Requests that both have answered before it may go forward."""
    max_error_rate: float = 0.01
    """The most errors it may make beyond the incumbent's, as a share of the requests."""
    max_latency_ratio: float = 1.5
    """The most time it may take, in times of the incumbent's, over all requests both answered."""
    min_agreement: float = 0.8
    """The least F1 of its entities against the incumbent's."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_requests <= MOST_REQUESTS:
            raise SettingsError(f"min_requests must be from 1 to {MOST_REQUESTS:,}")
        if not 0 < self.max_latency_ratio <= MOST_LATENCY_RATIO:
            raise SettingsError(
                f"max_latency_ratio must be above 0 and at most {MOST_LATENCY_RATIO:,}, "
                f"not {self.max_latency_ratio}"
            )
        for name in ("max_error_rate", "min_agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} must be from 0 to 1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A candidate for an alias.

    Of the chosen ``share`` of requests both versions are asked. The candidate's answer goes out,
    or the incumbent's where the candidate has none soon; of a ``shadow`` always the incumbent's.
    """

    id: str
    """Its own, never used again: what is reported is added up under it."""
    version: int
    share: float
    shadow: bool = False
    rule: Rule = field(default_factory=Rule)

    def __post_init__(self) -> None:
        if not self.id:
            raise SettingsError("a canary needs an id")
        if not 1 <= self.version <= LAST_NUMBER:
            raise SettingsError(f"{self.version} is no version number; they count from 1")
        if not 0 <= self.share <= 1:
            raise SettingsError(f"share must be from 0 to 1, not {self.share}")


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Counts of what was seen of a canary; they add up."""

    requests: int = 0
    """Of which both were asked."""
    compared: int = 0
    """Which both answered: seconds and entities are of these alone."""
    candidate_errors: int = 0
    incumbent_errors: int = 0
    candidate_seconds: float = 0.0
    incumbent_seconds: float = 0.0
    both: int = 0
    """Entities that both found, with the same offsets and label."""
    only_candidate: int = 0
    only_incumbent: int = 0

    @classmethod
    def of(
        cls,
        *,
        candidate: Found | None,
        candidate_seconds: float,
        incumbent: Found | None,
        incumbent_seconds: float,
    ) -> "Observed":
        """One request; None stands for an error. Scores of entities do not matter."""
        if candidate is None or incumbent is None:
            return cls(
                requests=1,
                candidate_errors=int(candidate is None),
                incumbent_errors=int(incumbent is None),
            )
        pairs = [(set(c), set(i)) for c, i in zip(candidate, incumbent, strict=True)]
        return cls(
            requests=1,
            compared=1,
            candidate_seconds=candidate_seconds,
            incumbent_seconds=incumbent_seconds,
            both=sum(len(c & i) for c, i in pairs),
            only_candidate=sum(len(c - i) for c, i in pairs),
            only_incumbent=sum(len(i - c) for c, i in pairs),
        )

    def __add__(self, other: "Observed") -> "Observed":
        return Observed(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Observed)}
        )

    @property
    def excess_errors(self) -> int:
        """Errors beyond the incumbent's: what fails for both is not the candidate's fault."""
        return max(0, self.candidate_errors - self.incumbent_errors)

    @property
    def latency_ratio(self) -> float:
        """The candidate's seconds in times of the incumbent's; 1 where neither took any."""
        if self.incumbent_seconds > 0:
            return self.candidate_seconds / self.incumbent_seconds
        return float("inf") if self.candidate_seconds > 0 else 1.0

    @property
    def agreement(self) -> float:
        """F1 of one's entities against the other's; 1 where neither found any."""
        found = 2 * self.both + self.only_candidate + self.only_incumbent
        return 2 * self.both / found if found else 1.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule says of what was seen, and why."""

    verdict: Literal["wait", "forward", "back"]
    reason: str


def decide(rule: Rule, observed: Observed) -> Decision:
    """Back at once when there are more errors than ``min_requests`` requests may have."""
    errors, requests = observed.excess_errors, observed.requests
    if errors > rule.max_error_rate * max(rule.min_requests, requests):
        return Decision(
            "back",
            f"{errors} errors more than the version in use in {requests} requests, "
            f"over a rate of {rule.max_error_rate:g}",
        )
    if observed.compared < rule.min_requests:
        return Decision("wait", f"{observed.compared} of {rule.min_requests} requests compared")
    if observed.latency_ratio > rule.max_latency_ratio:
        return Decision(
            "back",
            f"takes {observed.latency_ratio:.2f} times the time of the version in use, "
            f"over {rule.max_latency_ratio:g}",
        )
    if observed.agreement < rule.min_agreement:
        return Decision(
            "back",
            f"agreement with the version in use is {observed.agreement:.3f}, "
            f"under {rule.min_agreement:g}",
        )
    return Decision(
        "forward",
        f"{observed.compared} requests compared: {errors} errors more, "
        f"{observed.latency_ratio:.2f} times the time, agreement {observed.agreement:.3f}",
    )


def chosen(canary: Canary, request_id: str) -> bool:
    """Whether a request is of the canary's share: always the same for one request id."""
    data = f"{canary.id}\0{request_id}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "big") < canary.share * 2**64
