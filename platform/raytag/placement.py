"""Where workers go: what each takes of a node, and nodes that are up or have yet to come.

Knows CPUs, GPUs and their kinds as Ray's nodes offer them; nothing of what workers do.
"""

import difflib
import os
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray
from ray.util.accelerators import accelerators
from ray.util.placement_group import placement_group, remove_placement_group

from raytag.cluster import nodes
from raytag.errors import ResourceError, SettingsError

_KIND = "accelerator_type:"
"""What Ray puts before the kind of a node's GPUs, as a resource of that node."""
_NODE_SECONDS = 60.0


class Placed(Protocol):
    """Settings of a job, as far as they say where its workers go."""

    @property
    def cpus(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def accelerator(self) -> str | None: ...
    @property
    def wait_for_nodes(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Seat:
    """What one worker takes up."""

    cpus: int
    gpu: bool
    kind: str | None = None
    """Of its GPU, by Ray's name; any if None."""

    def __str__(self) -> str:
        gpu = f" and a GPU{f' of kind {self.kind}' if self.kind else ''}" if self.gpu else ""
        return f"{self.cpus} CPU(s){gpu}"

    @property
    def options(self) -> dict[str, Any]:
        """As Ray's tasks and actors, Ray Data and Serve's ``ray_actor_options`` take them."""
        kind = {"accelerator_type": self.kind} if self.kind else {}
        return {"num_cpus": self.cpus, "num_gpus": int(self.gpu), **kind}

    @property
    def resources(self) -> dict[str, float]:
        """As a bundle of a placement group takes them."""
        gpu = {"GPU": 1} if self.gpu else {}
        kind = {f"{_KIND}{self.kind}": 0.001} if self.kind else {}
        return {"CPU": self.cpus, **gpu, **kind}

    def fits(self, node: dict[str, float]) -> int:
        """How many a node with these resources holds."""
        if self.kind and not node.get(f"{_KIND}{self.kind}"):
            return 0
        by_cpu = int(node.get("CPU", 0) // self.cpus)
        return min(by_cpu, int(node.get("GPU", 0))) if self.gpu else by_cpu

    def room(self) -> int:
        """How many the nodes hold that are up, were they empty."""
        return sum(map(self.fits, nodes()))

    def of_one_kind(self) -> "Seat":
        """The same, of the one kind of GPU that is up, so that those who work together stay alike
        whatever nodes come. Raises ResourceError where there are several, which it names.
        """
        if not self.gpu or self.kind:
            return self
        kinds = {_kinds(node) for node in nodes() if self.fits(node)}
        if len(kinds) > 1:
            raise ResourceError(
                f"the cluster has GPUs of several kinds ({_named(kinds)}), and workers that train "
                "together take one: name it with --accelerator"
            )
        # A node says both A100 and A100-80G: the last tells more.
        return replace(self, kind=max((name for names in kinds for name in names), default=None))


def find_seat(settings: Placed, least: int, worker: str, *, dry: bool = False) -> Seat:
    """What each worker of a job takes up; there is room for ``least`` of them.

    Where there is none it waits for nodes, if the settings say so; ``dry`` does not wait.
    ``worker`` is what one is called. Raises ResourceError where there is too little room, and
    SettingsError for a kind of GPU that Ray does not know.
    """
    _check_kind(settings.accelerator)
    while True:
        # Looked at again after waiting: with auto, the node that came may have GPUs.
        gpu = settings.device == "gpu" or (
            settings.device == "auto"
            and (settings.accelerator is not None or any(n.get("GPU", 0) >= 1 for n in nodes()))
        )
        seat = Seat(cpus=settings.cpus, gpu=gpu, kind=settings.accelerator)
        room = seat.room()
        if room >= least or (dry and settings.wait_for_nodes):
            return seat
        asked = f"room for {least} {worker}{'s' if least > 1 else ''} of {seat}"
        if not settings.wait_for_nodes:
            kinds = {_kinds(node) for node in nodes() if node.get("GPU", 0) >= 1}
            there = f" (GPUs are {_named(kinds)})" if gpu and kinds else ""
            raise ResourceError(
                f"there is no {asked}: the cluster has it for {room}{there}; ask for less, or let "
                "an autoscaler bring nodes with --wait-for-nodes true"
            )
        print(f"waiting for nodes with {asked}", flush=True)
        _wait_for(seat, least)


def hide_gpus_not_given() -> None:
    """Have this process, which Ray placed, see no GPU where it was given none: Ray leaves it those
    of its host, and what looks for CUDA would take the first. To be called before CUDA begins."""
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _wait_for(seat: Seat, count: int) -> None:
    """Have nodes come: what is asked of Ray and cannot be had, an autoscaler brings."""
    group = placement_group([seat.resources] * count)
    try:
        while not group.wait(_NODE_SECONDS):
            pass
    finally:
        remove_placement_group(group)


def _check_kind(kind: str | None) -> None:
    if kind is None:
        return
    constants = {name: v for name, v in vars(accelerators).items() if not name.startswith("_")}
    listed = {value for value in constants.values() if isinstance(value, str)}
    known = listed | {name for node in nodes() for name in _kinds(node)}
    if kind not in known:
        folded = {name.casefold(): name for name in sorted(known)}
        near = difflib.get_close_matches(kind.casefold(), folded, n=4, cutoff=0.5)
        hint = f"; near are {', '.join(folded[name] for name in near)}" if near else ""
        raise SettingsError(
            f"--accelerator {kind}: Ray knows no such GPU{hint} (ray.util.accelerators has all)"
        )


def _kinds(node: dict[str, float]) -> tuple[str, ...]:
    """The names of a node's kind of GPU; none where Ray could not tell."""
    return tuple(sorted(name.removeprefix(_KIND) for name in node if name.startswith(_KIND)))


def _named(kinds: set[tuple[str, ...]]) -> str:
    return ", ".join(sorted("/".join(names) or "one without a name" for names in kinds))
