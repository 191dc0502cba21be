"""How convolutions are lowered so that they are fast on this backend.

Each rule equals `lax.conv_general_dilated` in value and gradient up to float32 rounding; only the
order of additions differs. On the CPU, XLA's grouped and dilated convolutions are one to two orders
of magnitude off the arithmetic's own cost. Other backends take few of the rules (`backends`).

    depthwise k x k         shifted multiply-adds (`depthwise`)
    1 x 1                   one matrix product of (pixels, in) by (in, out), strided or not
    strided, dense          forward by `lax`, input gradient folded (`strided`)
    3 x 3, 5 x 5, stride 1  Winograd (`winograd`)
    anything else           `lax`

The kernel gradient of every rule is `lax`'s own; where nobody asks for it, XLA removes it.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fvaudit.optvis.lowering.backends import takes
from fvaudit.optvis.lowering.depthwise import depthwise
from fvaudit.optvis.lowering.kernels import NHWC, kernel_gradient
from fvaudit.optvis.lowering.phases import Pads
from fvaudit.optvis.lowering.strided import strided
from fvaudit.optvis.lowering.winograd import winograd


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
    for see in _observers.get():
        see(lhs, rhs, tuple(window_strides), padding, feature_group_count)
    plain = _is_one(lhs_dilation) and _is_one(rhs_dilation) and lhs.ndim == 4
    plain = plain and lhs.dtype == rhs.dtype and lhs.dtype.itemsize >= _LEAST_BYTES
    if _stock.get() or not plain or not _is_nhwc(dimension_numbers):
        return stock(lhs, rhs, window_strides, padding)
    strides = (window_strides[0], window_strides[1])
    pads = _explicit_padding(lhs, rhs, strides, padding)
    channels = lhs.shape[3]
    if feature_group_count == channels and rhs.shape[2:] == (1, channels):
        if takes("depthwise"):
            return depthwise(lhs, rhs, strides, pads)
    elif feature_group_count == 1:
        if rhs.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
            if takes("pointwise"):
                return pointwise(lhs[:, :: strides[0], :: strides[1]], rhs)
        elif strides != (1, 1):
            if takes("strided"):
                return strided(lhs, rhs, strides, pads)
        elif takes("winograd") and (tile := _tile(lhs.shape, rhs.shape)):
            return winograd(lhs, rhs, pads, tile, tile)
    return stock(lhs, rhs, window_strides, padding)


# Called with (images, kernel, strides, padding, groups) of every convolution.
Observer = Callable[[Any, Any, tuple[int, ...], Any, int], None]
_observers: contextvars.ContextVar[tuple[Observer, ...]] = contextvars.ContextVar(
    "observers", default=()
)


@contextlib.contextmanager
def observing(see: Observer) -> Iterator[None]:
    """Shows every convolution that networks compute, or trace, inside the context, in order."""
    token = _observers.set((*_observers.get(), see))
    try:
        yield
    finally:
        _observers.reset(token)


_stock = contextvars.ContextVar("stock", default=False)


@contextlib.contextmanager
def stock_convolutions() -> Iterator[None]:
    """Leaves every convolution that is traced inside the context to `lax`, as exports need it."""
    token = _stock.set(True)
    try:
        yield
    finally:
        _stock.reset(token)


# Winograd's tile by kernel size, first row whose size the picture's shorter side reaches. From
# experiments/bench/lowering.py on one core (AVX-512, 1 MB second-level cache), milliseconds:
#
#     kernel, picture, channels    lax    m = 2   m = 3   m = 4
#     3 x 3   56 px   64 -> 192    6.9     4.2     3.8     2.5
#     3 x 3   56 px   64 -> 64     2.2     1.3     1.1     0.9
#     3 x 3   28 px  128 -> 192    3.4     1.7     1.5     1.0
#     3 x 3   14 px  144 -> 288    1.5     0.67    0.55    0.61
#     3 x 3   14 px  256 -> 256    2.4     1.1     0.90    0.88
#     3 x 3    7 px  192 -> 384    0.79    0.39    0.41    0.30
#     3 x 3    7 px  512 -> 512    3.4     3.2     4.4     5.0
#     5 x 5   28 px   32 -> 96     1.2     0.59    0.46
#     5 x 5   14 px   32 -> 64     0.22    0.13    0.10
#
# Small pictures have few tiles to a kernel that grows by (m + r - 1)^2 / r^2 and is read in full.
# In float32 the largest error, relative to the largest value, is 1e-6, 3e-6 and 1e-5.
_TILES = {3: ((28, 4), (14, 3), (4, 2)), 5: ((28, 3), (4, 2))}
_LEAST_CHANNELS = 16  # below, the transforms cost more than the products they save
_LEAST_BYTES = 4  # of a number: half precision has no digit to spare for transforms


def _tile(images, kernel):
    """Winograd's tile, or 0 where `lax` is as fast."""
    rows, columns, c, o = kernel
    if rows != columns or min(c, o) < _LEAST_CHANNELS:
        return 0
    side = min(images[1:3])
    return next((m for least, m in _TILES.get(rows, ()) if side >= least), 0)


@jax.custom_vjp
def pointwise(
    x: Float[Array, "n h w c"], kernel: Float[Array, "1 1 c o"]
) -> Float[Array, "n h w o"]:
    """A 1 x 1 convolution as one matrix product of pixels by channels."""
    n, h, w, c = x.shape
    return jnp.dot(x.reshape(n * h * w, c), kernel.reshape(kernel.shape[2:])).reshape(n, h, w, -1)


def _pointwise_forward(x, kernel):
    return pointwise(x, kernel), (x, kernel)


def _pointwise_backward(saved, g):
    x, kernel = saved
    dx = pointwise(g, kernel.transpose(0, 1, 3, 2))  # on its own, so that it can be held
    return dx, kernel_gradient(x, kernel, (1, 1), ((0, 0), (0, 0)), g)


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


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
        return numbers == lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), NHWC)
    return numbers is not None and tuple(numbers) == NHWC
