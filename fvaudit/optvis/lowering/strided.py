"""Dense strided convolutions: forward by `lax`, which is at the arithmetic's peak.

The input gradient of `lax` is a convolution of a dilated array, mostly zeros. Two ways around it:

    fold      one matrix product of g's pixels by all k * k taps, (pixels, out) by (out, k * k * c),
              whose parts are shifted and added by phases
    columns   for few channels c: a stride-1 convolution along columns only, to all row taps,
              row phases and column phases at once, then shifted additions along rows. Its last
              axis is long where c alone would leave most of a vector register empty
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fvaudit.optvis.lowering.kernels import NHWC, kernel_gradient
from fvaudit.optvis.lowering.phases import Pads, crop, gather


_FEW_CHANNELS = 4  # up to here, and from 5 x 5 taps, `columns` wins


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def strided(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c o"],
    strides: tuple[int, int],
    pads: Pads,
) -> Float[Array, "n p q o"]:
    """A dense convolution whose windows are `strides` apart."""
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)


def _strided_forward(x, kernel, strides, pads):
    return strided(x, kernel, strides, pads), (x, kernel)


def _strided_backward(strides, pads, saved, g):
    x, kernel = saved
    kh, kw, c, _ = kernel.shape
    rule = _columns if c <= _FEW_CHANNELS and kh * kw >= 25 else _fold
    dx = rule(g, kernel, strides, pads, x.shape[1:3])
    return dx, kernel_gradient(x, kernel, strides, pads, g)


strided.defvjp(_strided_forward, _strided_backward)


def _fold(g, kernel, strides, pads, size):
    kh, kw, c, o = kernel.shape
    taps = kernel.transpose(3, 0, 1, 2).reshape(o, kh * kw * c)
    products = jnp.dot(g.reshape(-1, o), taps).reshape(*g.shape[:3], kh * kw * c)

    def term(i, j, products):
        start = (i * kw + j) * c
        return products[..., start : start + c]

    return gather(term, [(products, 0)], (kh, kw), strides, pads, size)


def _columns(g, kernel, strides, pads, size):
    (kh, kw, c, o), (sh, sw) = kernel.shape, strides
    mh, mw = -(-kh // sh), -(-kw // sw)
    # Tap i = sh * u + a: row phase a, u windows up. The same for columns.
    whole = jnp.pad(kernel, ((0, mh * sh - kh), (0, mw * sw - kw), (0, 0), (0, 0)))
    split = whole.reshape(mh, sh, mw, sw, c, o).transpose(2, 5, 0, 1, 3, 4)[::-1]
    along = split.reshape(1, mw, o, mh * sh * sw * c)
    full = ((0, 0), (mw - 1, mw - 1))
    parts = lax.conv_general_dilated(g, along, (1, 1), full, dimension_numbers=NHWC)
    total: Any = 0
    for u, part in enumerate(jnp.split(parts, mh, axis=3)):
        total += jnp.pad(part, ((0, 0), (u, mh - 1 - u), (0, 0), (0, 0)))
    n, p, q, _ = total.shape
    grid = total.reshape(n, p, q, sh, sw, c).transpose(0, 1, 3, 2, 4, 5)
    return crop(grid.reshape(n, p * sh, q * sw, c), pads, size)
