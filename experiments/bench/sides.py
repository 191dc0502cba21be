"""Who is timed on what: the sides, the workloads, and which sides a workload gets by default.

A side is one or two worker processes; a workload is a target layer of a network. Names of sides
say kind and images per step: `eager-8` is the fair PyTorch loop, eager mode, eight images (of eight
units) a step; `pinned-*` are two one-thread processes of one image each, one per core; `+lrn` has
GoogLeNet's normalization rewritten by hand. `lucent-*` is torch-lucent as shipped. `*-64` are for
GPUs, where a batch is one program on our side too.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple


class Runner(NamedTuple):
    """A side, built: what a worker process does when told."""

    prepare: Callable[[], None]  # before every run, not timed
    run: Callable[[int], int]  # takes steps, returns image-steps done
    facts: dict[str, float | str]  # for the table: versions, FLOPs


@dataclasses.dataclass(frozen=True)
class Side:
    """One competitor."""

    name: str
    module: str  # holds `build(side, workload, extra) -> Runner`
    batch: int = 1  # images per process and step
    compiled: bool = False
    pinned: bool = False  # two processes, one thread and one core each
    own_lrn: bool = False  # GoogLeNet with the normalization rewritten
    mode: str = ""  # for modules with several ways


@dataclasses.dataclass(frozen=True)
class Workload:
    """A layer of a network; units are channels 0, 1, ... of it."""

    network: str
    layer: str
    sides: tuple[str, ...]
    cold: bool = False  # compile without any cache, and report how long it took

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return f"{self.network}/{self.layer}"


SIDES = {
    side.name: side
    for side in (
        Side("ours-1", "ours", 1, compiled=True),
        Side("ours-8", "ours", 8, compiled=True),
        Side("ours-64", "ours", 64, compiled=True),
        Side("lucent-1", "shipped", 1),
        Side("lucent-8", "shipped", 8),
        Side("eager-1", "fair", 1),
        Side("eager-8", "fair", 8),
        Side("eager-64", "fair", 64),
        Side("compile-64", "fair", 64, compiled=True),
        Side("eager-8+lrn", "fair", 8, own_lrn=True),
        Side("compile-1", "fair", 1, compiled=True),
        Side("compile-8", "fair", 8, compiled=True),
        Side("compile-1+lrn", "fair", 1, compiled=True, own_lrn=True),
        Side("pinned-eager", "fair", 1, pinned=True),
        Side("pinned-compile", "fair", 1, compiled=True, pinned=True),
    )
}
# torch-lucent's loop on our GoogLeNet, for wall.py.
ON_OURS = {"lucent-bvlc-8": Side("lucent-bvlc-8", "shipped", 8, mode="bvlc")}
# The sgemm peak, measured in the same rounds as everything else.
PEAKS = {
    side.name: side
    for side in (Side("peak-numpy", "peak", mode="numpy"), Side("peak-jnp", "peak", mode="jnp"))
}

_SHORT = ("ours-1", "ours-8", "eager-1", "eager-8", "pinned-eager")
_LONG = (*_SHORT, "compile-1", "pinned-compile")
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("googlenet", "mixed4d", tuple(s for s in SIDES if "64" not in s), cold=True),
        Workload("googlenet", "mixed3b", (*_SHORT, "lucent-1")),
        Workload("googlenet", "logits", (*_SHORT, "compile-1", "lucent-1")),
        Workload("efficientnet_lite0", "logits", _LONG),
        Workload("resnet50", "logits", _LONG),
        Workload("efficientnet_lite0", "blocks.10", _SHORT),
        Workload("googlenet", "mixed5b", ()),  # on demand: name it and its sides
    )
}
