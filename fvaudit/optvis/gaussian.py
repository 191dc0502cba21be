"""Gaussian blur as two small matrix products, one an axis.

    out = R image C^T,   R[i, j] = sum over k with reflect(i + k) = j of w[k]
    w[k] proportional to exp(-k^2 / (2 sigma^2)),  |k| <= floor(4 sigma + 1/2),  summing to 1

The picture is mirrored at its edges with the edge pixel repeated (b a | a b c | c b): blurring then
keeps a constant picture constant. Equal to `scipy.ndimage.gaussian_filter` with its defaults.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


_REACH = 4.0  # the kernel ends after this many standard deviations; SciPy's default


def blurred(image: Float[Array, "h w c"], sigma: float | int) -> Float[Array, "h w c"]:
    """`image` blurred along rows and columns, each channel on its own; sigma in pixels, > 0."""
    h, w, _ = image.shape
    rows, columns = (_matrix(n, float(sigma)).astype(image.dtype) for n in (h, w))
    return jnp.einsum("vh,hwc,xw->vxc", rows, image, columns, precision="highest")


@functools.cache
def _matrix(size: int, sigma: float) -> Float[np.ndarray, "n n"]:
    radius = int(_REACH * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    source = (np.arange(size)[:, None] + offsets) % (2 * size)  # mirrored pictures repeat
    source = np.minimum(source, 2 * size - 1 - source)
    matrix = np.zeros((size, size))
    row = np.broadcast_to(np.arange(size)[:, None], source.shape)
    np.add.at(matrix, (row, source), np.broadcast_to(weights / weights.sum(), source.shape))
    return matrix
