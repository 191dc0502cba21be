"""Max pooling."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


Pads = tuple[tuple[int, int], tuple[int, int]]


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
    dims, steps = (1, *window, 1), (1, *strides, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, dims, steps, ((0, 0), *pads, (0, 0)))
