"""Colour decorrelation: latent channels that vary independently -> colours, and back.

    image = sigmoid(C z)        z = C^-1 logit(image)

C is a square root of the colours' covariance, C C^T = covariance, divided by its largest column
norm, so that one unit of the strongest latent channel is one unit of contrast. For three channels
lucid measured it on ImageNet; its columns are about brightness, blue against red, and green against
both. Other channel counts have no such measurement: their C is the identity unless fitted.

Source: Olah et al. 2017, lucid `optvis/param/color.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


_CORRELATION = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOURS = (_CORRELATION / np.linalg.norm(_CORRELATION, axis=0).max()).astype(np.float32)
EDGE = 1e-6  # latents keep this far from 0 and 1, where the sigmoid's inverse is infinite

Image = Float[Array | np.ndarray, "h w c"]
Root = Float[np.ndarray, "c c"]


def root(channels: int, decorrelate: bool) -> Root:
    """C: lucid's for three channels, else the identity; float32 (c, c)."""
    if decorrelate and channels == 3:
        return COLOURS
    return np.eye(channels, dtype=np.float32)


def fitted_root(covariance: Float[np.ndarray, "c c"]) -> Root:
    """C of a measured covariance, float64 (c, c): principal axes, strongest first.

    The sign of a column, which the covariance leaves open, makes its largest entry positive.
    """
    variances, axes = np.linalg.eigh(covariance)
    columns = axes[:, ::-1] * np.sqrt(np.maximum(variances[::-1], 0))
    largest = np.take_along_axis(columns, np.abs(columns).argmax(axis=0)[None], axis=0)
    signed = columns * np.where(largest < 0, -1, 1)
    return signed / max(np.linalg.norm(signed, axis=0).max(), np.finfo(np.float64).tiny)


def to_image(z: Image, colours: Root) -> Image:
    """sigmoid(C z), in [0, 1].

    As sums of whole planes: a product with a 3 x 3 matrix takes two and a half times as long.
    """
    matrix = colours.astype(np.float32)
    planes = [z[..., i] for i in range(len(matrix))]
    mixed = [sum(w * plane for w, plane in zip(row, planes, strict=True)) for row in matrix]
    return jax.nn.sigmoid(jnp.stack(mixed, axis=-1))


def to_latent(image: Image, colours: Root, edge: float = EDGE) -> Image:
    """C^-1 logit(image), the inverse of `to_image` for colours from `edge` to 1 - `edge`."""
    inside = jnp.clip(image, edge, 1 - edge)
    return (jnp.log(inside) - jnp.log1p(-inside)) @ inverse(colours)


def inverse(colours: Root) -> Root:
    """C^-1, transposed to multiply from the right, float32."""
    return np.linalg.inv(colours.astype(np.float64).T).astype(np.float32)
