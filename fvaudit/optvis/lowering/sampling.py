"""Affine sampling: bilinear, with the image gradient gathered over the inverse map.

    forward    out[q] = sum over p of image[p] * hat(A q + b - p),   hat(t) = max(0, 1 - |t|)
    gradient   dimage[p] = sum over q of g[q] * hat(A q + b - p), over the few q near inverse(p)

XLA's own gradient would scatter, which costs eight times as much on the CPU, and on a GPU adds in
another order every time.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from fvaudit.optvis.lowering.backends import takes


def affine_sample(
    image: Float[Array, "h w c"],
    matrix: Float[Array, "2 2"],
    shift: Float[Array, " 2"],
    ground: float,
    reach: float,
) -> Float[Array, "h w c"]:
    """Bilinear sample: output pixel q reads the source at matrix @ q + shift.

    Args:
        image: the source.
        matrix: acts on (row, column) from the picture's centre.
        shift: in pixels.
        ground: value of the source outside its edges.
        reach: upper bound of ||matrix^-1||_inf; the gathered gradient needs it.
    """
    above = image - ground  # so that outside is 0 and the sampling is linear
    if takes("sampling"):
        sampled: Any = _sample(above, matrix, shift, reach)
    else:
        sampled = _gather_taps(above, matrix, shift)
    return ground + sampled


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _sample(image, matrix, shift, reach):
    return _gather_taps(image, matrix, shift)


def _sample_forward(image, matrix, shift, reach):
    values = image.value, matrix.value, shift.value
    moved = matrix.perturbed or shift.perturbed  # else nothing asks for the map's own gradient
    return _gather_taps(*values), (values[0] if moved else None, *values[1:])


def _sample_backward(reach, saved, g):
    image, matrix, shift = saved
    if isinstance(g, SymbolicZero):
        return None, None, None
    dimage = _gather_back(g, matrix, shift, reach)
    if image is None:
        return dimage, None, None
    return dimage, *jax.vjp(partial(_gather_taps, image), matrix, shift)[1](g)


_sample.defvjp(_sample_forward, _sample_backward, symbolic_zeros=True)


def _gather_back(g, matrix, shift, reach):
    """Source pixel p collects g[q] * hat(matrix q + shift - p) over the q near inverse(p).

    These lie less than `reach` from it in both directions: 2 * reach rows and columns, rounded up.
    """
    g = jax.lax.optimization_barrier(g)  # a GPU would compute it anew for each of its readers
    h, w, _ = g.shape
    (a, b), (c, d) = matrix
    down, right = shift
    inverse = jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
    row, column = _positions(h, w)
    y, x = _map(inverse, row - down, column - right)
    top, left = jnp.floor(y + (h - 1) / 2 - reach), jnp.floor(x + (w - 1) / 2 - reach)
    near = range(1, 1 + math.ceil(2 * reach))
    rows = [(top + dy, _share(matrix[:, 0], top + dy - (h - 1) / 2)) for dy in near]
    columns = [(left + dx, _share(matrix[:, 1], left + dx - (w - 1) / 2)) for dx in near]

    def weight(row_share, column_share):
        (y0, x0), (y1, x1) = row_share, column_share
        return _hat(y0 + y1 + down - row) * _hat(x0 + x1 + right - column)

    return _sum(g, rows, columns, weight)


def _gather_taps(image, matrix, shift):
    h, w, _ = image.shape
    y, x = _map(matrix, *_positions(h, w))
    y, x = y + shift[0] + (h - 1) / 2, x + shift[1] + (w - 1) / 2
    top, left = jnp.floor(y), jnp.floor(x)
    rows = [(top + dy, _hat(y - top - dy)) for dy in (0, 1)]
    columns = [(left + dx, _hat(x - left - dx)) for dx in (0, 1)]
    return _sum(image, rows, columns, lambda by_row, by_column: by_row * by_column)


_INSIDE = {"mode": "promise_in_bounds", "wrap_negative_indices": False}


def _sum(image, rows, columns, weight):
    """Sum of image[row, column] * weight over all pairs; 0 outside, positions are whole.

    What depends on a row or a column alone is computed once: programs are traced sooner.
    """
    h, w, c = image.shape
    pixels = image.reshape(h * w, c)
    starts = [(inside, row * w) for inside, row in (_within(at, h) for at, _ in rows)]
    offsets = [_within(at, w) for at, _ in columns]
    total = 0.0
    for (in_height, start), (_, by_row) in zip(starts, rows, strict=True):
        for (in_width, offset), (_, by_column) in zip(offsets, columns, strict=True):
            values = pixels.at[start + offset].get(**_INSIDE)
            total += values * (weight(by_row, by_column) * (in_height & in_width))[..., None]
    return total


def _within(at, size):
    """Whether positions lie inside, and the nearest ones that do."""
    return (at >= 0) & (at < size), jnp.clip(at, 0, size - 1).astype(jnp.int32)


def _positions(h, w):
    row = jnp.arange(h, dtype=jnp.float32)[:, None] - (h - 1) / 2
    column = jnp.arange(w, dtype=jnp.float32)[None] - (w - 1) / 2
    return row, column


def _map(matrix, row, column):
    (y0, x0), (y1, x1) = _share(matrix[:, 0], row), _share(matrix[:, 1], column)
    return y0 + y1, x0 + x1


def _share(column, position):
    """What one coordinate adds to the mapped (row, column)."""
    to_row, to_column = column
    return to_row * position, to_column * position


def _hat(t):
    return jnp.maximum(0.0, 1 - jnp.abs(t))
