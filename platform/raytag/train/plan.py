"""Which examples make up which step: fixed by seed and step, whatever the number of workers.

Knows lengths and counts only. The global batch of a step is a list of examples; a worker's
share of it, and the micro-batches of that share, follow from the number of workers and the
token budget, and change nothing in what the step computes.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

MEGABATCH = 16
"""Batches that are sorted by length together: enough to pad little, few enough to mix well."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The order of training. ``lengths`` are tokens per example, prompt and answer included."""

    lengths: Sequence[int]
    batch_size: int
    epochs: int
    seed: int

    @cached_property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    @cached_property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def batch(self, step: int) -> list[int]:
        """Indices of the examples of a step (counted from 0). An epoch holds each one once."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[position]

    def _epoch(self, epoch: int) -> list[list[int]]:
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = self._shuffled(epoch)
        return self._epochs[epoch]

    @cached_property
    def _epochs(self) -> dict[int, list[list[int]]]:
        return {}

    def _shuffled(self, epoch: int) -> list[list[int]]:
        """The epoch's batches: shuffled, then sorted by length within megabatches."""
        rng = random.Random(f"{self.seed}:{epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        span = MEGABATCH * self.batch_size
        batches: list[list[int]] = []
        for at in range(0, len(order), span):
            mega = sorted(order[at : at + span], key=lambda i: -self.lengths[i])
            batches += [mega[i : i + self.batch_size] for i in range(0, len(mega), self.batch_size)]
        rng.shuffle(batches)
        return batches

    def shares(self, step: int, workers: int, budget: int) -> list[list[list[int]]]:
        """The step's micro-batches as ``[worker][micro-batch] -> example indices``.

        Every worker gets the same number of micro-batches, since ZeRO's workers must call the
        model in step; one with less to do ends with empty ones. A micro-batch holds at most
        ``budget`` tokens, padding included, but always at least one example.
        """
        longest_first = sorted(self.batch(step), key=lambda i: -self.lengths[i])
        shares = [longest_first[worker::workers] for worker in range(workers)]
        split = [self._within_budget(share, budget) for share in shares]
        count = max(len(micros) for micros in split)
        return [micros + [[]] * (count - len(micros)) for micros in split]

    def _within_budget(self, share: list[int], budget: int) -> list[list[int]]:
        micros: list[list[int]] = []
        for i in share:
            # Longest first, so the first example of a micro-batch sets its width.
            if micros and (len(micros[-1]) + 1) * self.lengths[micros[-1][0]] <= budget:
                micros[-1].append(i)
            else:
                micros.append([i])
        return micros


def rate_at(step: int, total: int, warmup: float, schedule: str) -> float:
    """The share of the full learning rate at a step counted from 0.

    Rises linearly over the first ``warmup`` share of all steps, then falls to 0 along
    ``schedule``: linear, cosine, or constant (which does not fall).
    """
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    if schedule == "constant":
        return 1.0
    done = (step - rise) / max(1.0, total - rise)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
