"""Gradients of strided windows, gathered by phases.

Window o reads the padded input rows s*o + i for its taps i = 0 .. k-1. So input row r is read by
window (r - i) / s, for the taps i = r (mod s) only:

    dx[r] = sum over i = r (mod s) of term(i, g[(r - i) / s])

The rows of one phase a = r mod s are a sum of shifted arrays at stride 1, and the s phases are
interleaved. The same holds for columns.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


Pads = tuple[tuple[int, int], tuple[int, int]]  # ((above, below), (left, right))
Pair = tuple[int, int]  # rows, columns


def gather(
    term: Callable[..., Array],
    sources: Sequence[tuple[Array, int]],
    window: Pair,
    strides: Pair,
    pads: Pads,
    size: Pair,
) -> Array:
    """The gradient (n, h, w, c) of a window operation's input.

    Args:
        term: (i, j, *shifted sources) -> what tap (i, j) contributes, as large as the sources.
        sources: arrays (n, p, q, c) over windows, each with its value outside.
        window: taps.
        strides: of the windows.
        pads: of the input.
        size: (h, w) of the input without padding.
    """
    reach = tuple(-(-k // s) - 1 for k, s in zip(window, strides, strict=True))
    margins = ((0, 0), *((r, r) for r in reach), (0, 0))
    padded = [jnp.pad(array, margins, constant_values=fill) for array, fill in sources]
    p, q = (padded[0].shape[1 + axis] - reach[axis] for axis in (0, 1))

    def phase(a, b):
        total: Any = None
        for u, i in enumerate(range(a, window[0], strides[0])):
            for v, j in enumerate(range(b, window[1], strides[1])):
                top, left = reach[0] - u, reach[1] - v
                part = term(i, j, *(z[:, top : top + p, left : left + q] for z in padded))
                total = part if total is None else total + part
        return total

    return crop(interleave(phase, strides), pads, size)


def interleave(phase: Callable[[int, int], Array | None], strides: Pair) -> Array:
    """Puts phase (a, b) at rows a, a + s, ... and columns b, b + s, ...; None is zero."""
    if strides == (1, 1):
        whole: Any = phase(0, 0)
        return whole
    phases = [[phase(a, b) for b in range(strides[1])] for a in range(strides[0])]
    first: Any = phases[0][0]
    zero = jnp.zeros_like(first)
    rows = [jnp.stack([zero if y is None else y for y in row], axis=3) for row in phases]
    n, p, q, c = zero.shape
    return jnp.stack(rows, axis=2).reshape(n, p * strides[0], q * strides[1], c)


def crop(padded: Array, pads: Pads, size: Pair) -> Array:
    """Drops what belongs to the padding; rows that no window reads have gradient 0."""
    (top, _), (left, _) = pads
    h, w = size
    short = max(0, top + h - padded.shape[1]), max(0, left + w - padded.shape[2])
    whole = jnp.pad(padded, ((0, 0), (0, short[0]), (0, short[1]), (0, 0)))
    return whole[:, top : top + h, left : left + w]
