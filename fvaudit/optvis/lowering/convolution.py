"""How convolutions are lowered so that they are fast on this backend.

Each rule equals `lax.conv_general_dilated` in value and gradient up to float32 rounding; only the
order of additions differs. Rules exist for the CPU, where XLA's grouped and dilated convolutions
are one to two orders of magnitude off the arithmetic's own cost. On every other backend the stock
lowering stays.

    depthwise k x k       k*k shifted multiply-adds, which XLA fuses into one loop over channels;
                          strided gradient by phases: input row r = s*o + i gets only the taps
                          i = r (mod s), so each of the s*s phases is a stride-1 sum
    1 x 1, stride 1       one matrix product of (pixels, in) by (in, out)
    strided, dense        forward by `lax`; input gradient as one stride-1 convolution to
                          s*s*c channels and an interleaving of the phases

The kernel gradient of every rule is `lax`'s own; where nobody asks for it, XLA removes it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


_NHWC = ("NHWC", "HWIO", "NHWC")
Pads = tuple[tuple[int, int], tuple[int, int]]


def conv_general_dilated(
    lhs: Float[Array, "n h w c"],
    rhs: Float[Array, "kh kw i o"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **rest: Any,
) -> Float[Array, "n p q o"]:
    """Drop-in for `lax.conv_general_dilated` that takes the fastest known rule for NHWC images.

    Arguments are `lax`'s own; anything that no rule covers goes to `lax` unchanged.
    """
    stock = partial(
        lax.conv_general_dilated,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        **rest,
    )
    plain = _is_one(lhs_dilation) and _is_one(rhs_dilation) and lhs.ndim == 4
    if jax.default_backend() != "cpu" or not plain or not _is_nhwc(dimension_numbers):
        return stock(lhs, rhs, window_strides, padding)
    strides = (window_strides[0], window_strides[1])
    pads = _explicit_padding(lhs, rhs, strides, padding)
    channels = lhs.shape[3]
    if feature_group_count == channels and rhs.shape[2:] == (1, channels):
        return depthwise(lhs, rhs, strides, pads)
    if feature_group_count != 1:
        return stock(lhs, rhs, window_strides, padding)
    if rhs.shape[:2] == strides == (1, 1) and pads == ((0, 0), (0, 0)):
        return pointwise(lhs, rhs)
    if strides != (1, 1):
        return strided(lhs, rhs, strides, pads)
    return stock(lhs, rhs, window_strides, padding)


def pointwise(
    x: Float[Array, "n h w c"], kernel: Float[Array, "1 1 c o"]
) -> Float[Array, "n h w o"]:
    """A 1 x 1 convolution as one matrix product."""
    n, h, w, c = x.shape
    return jnp.dot(x.reshape(n * h * w, c), kernel.reshape(c, -1)).reshape(n, h, w, -1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    strides: tuple[int, int],
    pads: Pads,
) -> Float[Array, "n p q c"]:
    """A depthwise convolution (one filter per channel) as shifted multiply-adds."""
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return _shifted_sum(padded, kernel[:, :, 0], strides)


def _depthwise_forward(x, kernel, strides, pads):
    return depthwise(x, kernel, strides, pads), (x, kernel)


def _depthwise_backward(strides, pads, saved, g):
    x, kernel = saved

    def phase(a, b):
        taps = kernel[a :: strides[0], b :: strides[1], 0][::-1, ::-1]
        full = tuple((k - 1, k - 1) for k in taps.shape[:2])
        return _shifted_sum(jnp.pad(g, ((0, 0), *full, (0, 0))), taps, (1, 1))

    dx = _interleave(phase, kernel.shape[:2], strides, pads, x.shape, g.shape)
    return dx, _kernel_gradient(x, kernel, strides, pads, g, groups=x.shape[3])


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def strided(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c o"],
    strides: tuple[int, int],
    pads: Pads,
) -> Float[Array, "n p q o"]:
    """A dense strided convolution whose input gradient is one undilated convolution."""
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_NHWC)


def _strided_forward(x, kernel, strides, pads):
    return strided(x, kernel, strides, pads), (x, kernel)


def _strided_backward(strides, pads, saved, g):
    x, kernel = saved
    (kh, kw, c, o), (sh, sw) = kernel.shape, strides
    mh, mw = -(-kh // sh), -(-kw // sw)
    # Kernel rows i = s*m + a, grouped by phase a; one convolution then yields all phases at once.
    whole = jnp.pad(kernel, ((0, mh * sh - kh), (0, mw * sw - kw), (0, 0), (0, 0)))
    phases = whole.reshape(mh, sh, mw, sw, c, o).transpose(0, 2, 5, 1, 3, 4)
    phases = phases[::-1, ::-1].reshape(mh, mw, o, sh * sw * c)
    full = ((mh - 1, mh - 1), (mw - 1, mw - 1))
    y = lax.conv_general_dilated(g, phases, (1, 1), full, dimension_numbers=_NHWC)
    n, p, q, _ = y.shape
    y = y.reshape(n, p, q, sh, sw, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, p * sh, q * sw, c)
    dx = _crop(y, pads, x.shape)
    return dx, _kernel_gradient(x, kernel, strides, pads, g, groups=1)


strided.defvjp(_strided_forward, _strided_backward)


def _shifted_sum(padded, taps, strides):
    """Sum over taps of taps[i, j] * padded shifted by (i, j), at stride `strides`."""
    (kh, kw), (sh, sw) = taps.shape[:2], strides
    p, q = (padded.shape[1] - kh) // sh + 1, (padded.shape[2] - kw) // sw + 1
    total: Any = None
    for i in range(kh):
        for j in range(kw):
            shifted = padded[:, i : i + (p - 1) * sh + 1 : sh, j : j + (q - 1) * sw + 1 : sw]
            term = shifted * taps[i, j]
            total = term if total is None else total + term
    return total


def _interleave(phase, kernel_shape, strides, pads, x_shape, g_shape):
    """Puts the gradient's phases (a, b) at rows a, a+s, ... and columns b, b+s, ..."""
    (kh, kw), (sh, sw) = kernel_shape, strides
    rows, columns = g_shape[1] + -(-kh // sh) - 1, g_shape[2] + -(-kw // sw) - 1
    n, c = x_shape[0], x_shape[3]

    def at(a, b):
        if a >= kh or b >= kw:  # a stride beyond the kernel leaves rows that no window reads
            return jnp.zeros((n, rows, columns, c), jnp.float32)
        y = phase(a, b)
        return jnp.pad(y, ((0, 0), (0, rows - y.shape[1]), (0, columns - y.shape[2]), (0, 0)))

    if strides == (1, 1):
        return _crop(phase(0, 0), pads, x_shape)
    grid = [jnp.stack([at(a, b) for b in range(sw)], axis=3) for a in range(sh)]
    return _crop(jnp.stack(grid, axis=2).reshape(n, rows * sh, columns * sw, c), pads, x_shape)


def _crop(padded_gradient, pads, x_shape):
    """Drops what belongs to the padding; rows past the last window have gradient 0."""
    (top, _), (left, _) = pads
    _, h, w, _ = x_shape
    short = (
        max(0, top + h - padded_gradient.shape[1]),
        max(0, left + w - padded_gradient.shape[2]),
    )
    whole = jnp.pad(padded_gradient, ((0, 0), (0, short[0]), (0, short[1]), (0, 0)))
    return whole[:, top : top + h, left : left + w]


def _kernel_gradient(x, kernel, strides, pads, g, groups):
    def forward(k):
        return lax.conv_general_dilated(
            x, k, strides, pads, dimension_numbers=_NHWC, feature_group_count=groups
        )

    return jax.vjp(forward, kernel)[1](g)[0]


def _explicit_padding(x, kernel, strides, padding) -> Pads:
    if isinstance(padding, str):
        spatial = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    else:
        spatial = padding
    (top, bottom), (left, right) = spatial
    return (int(top), int(bottom)), (int(left), int(right))


def _is_one(dilation) -> bool:
    return dilation is None or all(d == 1 for d in dilation)


def _is_nhwc(numbers) -> bool:
    if isinstance(numbers, lax.ConvDimensionNumbers):
        return numbers == lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), _NHWC)
    return numbers is not None and tuple(numbers) == _NHWC
