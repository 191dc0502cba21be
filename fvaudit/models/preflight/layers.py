"""What each layer does on these photographs: NaN, types, layers and channels that never change.

A channel that is silent on n photographs is not dead: with 95 % confidence it fires on at most
1 - 0.05^(1/n) of such photographs (exact binomial bound; Clopper & Pearson 1934), which for 30 is
still 9.5 %.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fvaudit.models.model import Model
from fvaudit.models.preflight.responses import Seen
from fvaudit.records import Finding, ImageSet, Severity


LEVEL = 0.95
FEW = 60  # photographs; below, the bound on a silent channel's rate exceeds 5 %
SHOWN = 4  # layers that a finding names


def findings(model: Model, images: ImageSet, seen: Seen) -> list[Finding]:
    """NaN and infinities, types, constant layers, silent channels."""
    return [*_numbers(model, seen), *_types(model), *_constant(model, seen), *_silent(images, seen)]


def _numbers(model: Model, seen: Seen) -> list[Finding]:
    named = jax.tree_util.tree_leaves_with_path(model.params)
    bad = [jax.tree_util.keystr(path) for path, leaf in named if not _finite(leaf)]
    if bad:
        return [Finding(
            Severity.PROBLEM, "parameters are not finite",
            f"{len(bad)} of {len(named)} arrays hold NaN or infinity: {_few(bad)}",
            "Load another checkpoint: this one is damaged, or its training diverged.",
        )]  # fmt: skip
    bad = [n for n in seen.high if not (_finite(seen.high[n]) and _finite(seen.low[n]))]
    if bad:
        return [Finding(
            Severity.PROBLEM, "activations are not finite",
            f"{len(bad)} of {len(seen.high)} layers give NaN or infinity, first {bad[0]}",
            "Compute in float32, and check the input's range and the layers before that one.",
        )]  # fmt: skip
    measured = (
        f"all numbers in {len(named)} parameter arrays and {len(seen.high)} layers are finite"
    )
    return [Finding(Severity.OK, "no NaN, no infinity", measured, "")]


def _finite(leaf) -> bool:
    floating = jnp.issubdtype(getattr(leaf, "dtype", np.asarray(leaf).dtype), jnp.inexact)
    return not floating or bool(np.isfinite(np.asarray(leaf).astype(np.float64)).all())


def _types(model: Model) -> list[Finding]:
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(model.params) if hasattr(leaf, "dtype")}
    coarse = sorted(kinds & {"float16", "bfloat16"})
    if coarse:
        digits = "3" if "bfloat16" in coarse else "4"
        return [Finding(
            Severity.WARN, "parameters in half precision", f"some are {', '.join(coarse)}",
            f"Convert them to float32 (exact): activations with {digits} digits tie, and ranks of "
            "ties say little.",
        )]  # fmt: skip
    if "float64" in kinds:
        return [Finding(Severity.WARN, "parameters in float64", "some are float64",
                        "Convert them to float32: double precision halves the speed.")]  # fmt: skip
    return [Finding(Severity.OK, "number types", ", ".join(sorted(kinds)) or "no parameters", "")]


def _constant(model: Model, seen: Seen) -> list[Finding]:
    """Layers in which no channel tells any two photographs apart."""
    n = len(next(iter(seen.high.values())))
    same = [
        name for name in seen.high
        if n > 1 and all((x == x[0]).all() for x in (seen.high[name], seen.low[name]))
    ]  # fmt: skip
    crossed = [name for name in same if name in model.trunk]
    if not same:
        return []
    return [Finding(
        Severity.PROBLEM if crossed else Severity.WARN, "layers that do not see the picture",
        f"{len(same)} of {len(seen.high)} layers respond alike to all {n} photographs: "
        f"{_few(crossed or same)}",
        "Look for weights that were not loaded, an input range that saturates, or a cut "
        "connection at the first of them." if crossed else
        "Leave their units out of the audit: they hold constants.",
    )]  # fmt: skip


def _silent(images: ImageSet, seen: Seen) -> list[Finding]:
    """Channels that take one single value on all positions of all photographs."""
    still = {
        name: int((high.max(0) == seen.low[name].min(0)).sum()) for name, high in seen.high.items()
    }
    counts = {name: k for name, k in still.items() if k}
    n = images.photographs
    bound = silent_rate_bound(n)
    channels = sum(x.shape[1] for x in seen.high.values())
    if not counts:
        return [Finding(Severity.OK, "every channel responds", f"{channels} channels vary over {n} "
                        "photographs", "")]  # fmt: skip
    most = sorted(counts, key=lambda name: -counts[name] / seen.high[name].shape[1])[:SHOWN]
    listed = ", ".join(f"{name} {counts[name]} of {seen.high[name].shape[1]}" for name in most)
    heavy = any(counts[name] > seen.high[name].shape[1] / 2 for name in counts)
    more = "more photographs" if n < FEW else "photographs of other kinds"
    return [Finding(
        Severity.WARN if heavy else Severity.OK, "channels without a response",
        f"{sum(counts.values())} of {channels} channels take one value on all of {n} photographs "
        f"({listed}); each may still respond to up to {bound:.1%} of such photographs",
        f"Choose other units, or try {more} before calling these dead.",
    )]  # fmt: skip


def silent_rate_bound(photographs: int, level: float = LEVEL) -> float:
    """The rate of response that n silent photographs leave possible, in (0, 1]."""
    return 1 - (1 - level) ** (1 / photographs)


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
