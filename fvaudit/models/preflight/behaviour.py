"""Is the network a function of one picture? Layers in training mode make it something else.

Dropout draws random numbers; batch normalization in training mode mixes a picture's result with
the rest of its batch. Both are seen from outside: random operations in the trace, equal calls that
differ, and a picture whose result changes with its neighbours in the batch.
"""

import numpy as np
from jaxtyping import Float

from fvaudit.models.preflight import cost
from fvaudit.models.preflight.responses import Seen, Watch
from fvaudit.records import Finding, Severity


TOLERANCE = 1e-3  # of a layer's largest activation; rounding stays below 1e-5
EVAL = (
    "Build the network for inference: PyTorch model.eval() before export, Flax use_running_average="
    "True and deterministic=True (NNX: model.eval()), Keras training=False."
)
RANDOM = ("random_bits", "random_seed", "random_wrap", "threefry2x32", "rng_bit_generator")


def findings(watch: Watch, pixels: Float[np.ndarray, "n h w c"], seen: Seen) -> list[Finding]:
    """Random operations, calls that differ, and results that depend on the batch."""
    drawn = sorted({op.primitive.name for op in cost.operations(watch.operations)} & set(RANDOM))
    if drawn:
        return [Finding(
            Severity.PROBLEM, "layers in training mode",
            f"the forward pass draws random numbers ({', '.join(drawn)}), as dropout does", EVAL,
        )]  # fmt: skip
    rows = pixels[: watch.width]
    again = watch.see(rows)
    layer, gap = _largest_gap(seen, again, len(rows))
    if gap > TOLERANCE:
        return [_unlike("two calls on the same pictures", layer, gap)]
    others = np.concatenate([rows[:1], 1 - rows[:1], np.zeros_like(rows[:1])])
    layer, gap = _largest_gap(seen, watch.see(others[_places(watch.width)]), 1)
    if gap > TOLERANCE:
        return [_unlike("the same picture beside other pictures", layer, gap)]
    measured = (
        f"two calls agree, and a picture's result does not depend on its batch (n = {len(rows)})"
    )
    return [Finding(Severity.OK, "no layer is in training mode", measured, "")]


def _places(width: int) -> np.ndarray:
    """Row 0 first, then its negative and black in turn."""
    return np.concatenate([[0], 1 + np.arange(width - 1) % 2])


def _largest_gap(one: Seen, other: Seen, rows: int) -> tuple[str, float]:
    """The layer that differs most, and by how much of its largest activation."""
    gaps = {}
    for name, high in one.high.items():
        pairs = ((high, other.high[name]), (one.low[name], other.low[name]))
        scale = max(float(np.nanmax(np.abs(a[:rows]), initial=0)) for a, _ in pairs) or 1.0
        with np.errstate(invalid="ignore"):  # infinities are another finding
            gap = [float(np.nanmax(np.abs(a[:rows] - b[:rows]), initial=0)) for a, b in pairs]
        gaps[name] = max(gap) / scale
    first = next((name for name, gap in gaps.items() if gap > TOLERANCE), None)
    return (first, gaps[first]) if first else max(gaps.items(), key=lambda item: item[1])


def _unlike(when: str, layer: str, gap: float) -> Finding:
    return Finding(
        Severity.PROBLEM, "layers in training mode",
        f"{when}: activations differ, first at {layer}, by {gap:.2g} of its largest one", EVAL,
    )  # fmt: skip
