"""Max pooling whose gradient is gathered, where XLA's own scatters (`select_and_scatter`).

The forward pass keeps, per window, the number of its first maximum in row-major order, one int8.
The gradient of input row r = s*o + i then reads the windows o whose tap i falls on it:

    dx[r] = sum over taps i = r (mod s) of where(first[(r - i) / s] == i, g[(r - i) / s], 0)

and so the rows of one phase r mod s are a sum of shifted arrays. Comparing with the maximum instead
of keeping its number would be shorter and wrong: ties are common behind a ReLU or another pool,
and every one of them would get the whole gradient.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fvaudit.optvis.lowering.backends import takes
from fvaudit.optvis.lowering.phases import Pads, gather


_MOST_TAPS = 127  # that an int8 can number


def max_pool(
    x: Float[Array, "n h w c"],
    window: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (2, 2),
    pads: Pads = ((0, 1), (0, 1)),
) -> Float[Array, "n p q c"]:
    """Largest value of each window; what lies outside the picture is -infinity.

    The gradient of a window goes to its first maximum in row-major order, as in `lax`.

    Args:
        x: images, channels last.
        window: rows and columns.
        strides: rows and columns.
        pads: ((above, below), (left, right)).
    """
    if not takes("pooling") or window[0] * window[1] > _MOST_TAPS:
        dims, steps = (1, *window, 1), (1, *strides, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, dims, steps, ((0, 0), *pads, (0, 0)))
    return _pool(x, window, strides, pads, (x.shape[1], x.shape[2]))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _pool(x, window, strides, pads, size):
    return _pool_forward(x, window, strides, pads, size)[0]


def _pool_forward(x, window, strides, pads, size):
    """Columns first, then rows: a later tap wins only if it is larger, so the first one stays."""
    y = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    first = None
    for axis in (2, 1):
        y, first = _first_maximum(y, first, axis, window, strides[axis - 1])
    return y, first


def _first_maximum(x, first, axis, window, stride):
    """Maximum along `axis`, and the number i * columns + j of the tap where it was found."""
    count = window[axis - 1]
    step = 1 if axis == 2 else window[1]
    windows = (x.shape[axis] - count) // stride + 1

    def tap(z, i):
        return lax.slice_in_dim(z, i, i + (windows - 1) * stride + 1, stride, axis)

    def number(i):
        at = jnp.int8(i * step)
        return at if first is None else tap(first, i) + at

    best = tap(x, 0)
    where = jnp.broadcast_to(number(0), best.shape)
    for i in range(1, count):
        candidate = tap(x, i)
        where = jnp.where(candidate > best, number(i), where)
        best = jnp.maximum(best, candidate)
    return best, where


def _pool_backward(window, strides, pads, size, first, g):
    def term(i, j, first, g):
        return jnp.where(first == jnp.int8(i * window[1] + j), g, 0)

    return (gather(term, [(first, -1), (g, 0)], window, strides, pads, size),)


_pool.defvjp(_pool_forward, _pool_backward)
