"""Affine sampling: bilinear, with the image gradient gathered over the inverse map.

    forward    out[q] = sum over p of image[p] * hat(A q + b - p),   hat(t) = max(0, 1 - |t|)
    gradient   dimage[p] = sum over q of g[q] * hat(A q + b - p), over the few q near inverse(p)

XLA's own gradient would scatter, which costs eight times as much on the CPU.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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
        reach: upper bound of ||matrix^-1||_inf; only the CPU's gradient rule needs it.
    """
    above = image - ground  # so that outside is 0 and the sampling is linear
    if jax.default_backend() == "cpu":
        sampled: Any = _sample(above, matrix, shift, math.ceil(reach))
    else:
        sampled = _gather_taps(above, matrix, shift)
    return ground + sampled


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _sample(image, matrix, shift, radius):
    return _gather_taps(image, matrix, shift)


def _sample_forward(image, matrix, shift, radius):
    return _gather_taps(image, matrix, shift), (image, matrix, shift)


def _sample_backward(radius, saved, g):
    """Source pixel p collects g[q] * hat(matrix q + shift - p) over the q near inverse(p)."""
    image, matrix, shift = saved
    h, w, _ = image.shape
    (a, b), (c, d) = matrix
    inverse = jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
    row, column = _positions(h, w)
    y, x = _map(inverse, row - shift[0], column - shift[1])
    top, left = jnp.floor(y + (h - 1) / 2), jnp.floor(x + (w - 1) / 2)
    total = jnp.zeros_like(image)
    for dy in range(1 - radius, radius + 1):
        for dx in range(1 - radius, radius + 1):
            at_y, at_x = top + dy, left + dx
            py, px = _map(matrix, at_y - (h - 1) / 2, at_x - (w - 1) / 2)
            weight = _hat(py + shift[0] - row) * _hat(px + shift[1] - column)
            total += _read(g, at_y, at_x) * weight[..., None]
    # The map's own gradient is not needed to visualize, so it is computed the stock way.
    _, pull = jax.vjp(lambda m, s: _gather_taps(image, m, s), matrix, shift)
    return total, *pull(g)


_sample.defvjp(_sample_forward, _sample_backward)


def _gather_taps(image, matrix, shift):
    h, w, _ = image.shape
    y, x = _map(matrix, *_positions(h, w))
    y, x = y + shift[0] + (h - 1) / 2, x + shift[1] + (w - 1) / 2
    top, left = jnp.floor(y), jnp.floor(x)
    total = 0.0
    for dy in (0, 1):
        for dx in (0, 1):
            weight = _hat(y - top - dy) * _hat(x - left - dx)
            total += _read(image, top + dy, left + dx) * weight[..., None]
    return total


def _read(image, row, column):
    """Pixels at whole positions; 0 outside."""
    h, w, c = image.shape
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    flat = jnp.clip(row, 0, h - 1) * w + jnp.clip(column, 0, w - 1)
    values = image.reshape(h * w, c).at[flat.astype(jnp.int32)].get(mode="promise_in_bounds")
    return values * inside[..., None]


def _positions(h, w):
    row = jnp.arange(h, dtype=jnp.float32)[:, None] - (h - 1) / 2
    column = jnp.arange(w, dtype=jnp.float32)[None] - (w - 1) / 2
    return row, column


def _map(matrix, row, column):
    y = matrix[0, 0] * row + matrix[0, 1] * column
    x = matrix[1, 0] * row + matrix[1, 1] * column
    return y, x


def _hat(t):
    return jnp.maximum(0.0, 1 - jnp.abs(t))
