"""CPPN: the image is a small network of the pixel's coordinates; its weights are the latent.

    x_0 = (x, y)                       the longer side runs from -sqrt(3) to sqrt(3): sd 1
    a = arctan(W x + b)
    x_{i+1} = (a / 0.67, a^2 / 0.6)    odd and even half, root mean square 1 for normal x
    image = sigmoid(W' x_last + b')    W' = 0, b' = 0 at the start: grey for every key

Images are smooth compositions without a grid, and can be drawn at any size from the same weights.
The eight layers of 24 channels and the constants are lucid's `param.cppn`. Weights start as
N(0, 1 / inputs) (lucid cuts the normal off at two standard deviations), biases as N(0, 0.1^2).

Source: Stanley 2007; Mordvintsev et al. 2018 (Distill, "Differentiable Image Parameterizations").
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fvaudit.optvis.params import Parameterization
from fvaudit.records import AuditError


ODD, EVEN = 0.67, 0.6  # root mean squares of a and a^2, a = arctan of a standard normal (lucid)
BIAS = 0.1  # sd of the biases at the start (lucid)


@functools.cache
def cppn(channels: int = 24, layers: int = 8) -> Parameterization:
    """A network of coordinates. The latent is its weights; there is no way back from an image.

    Args:
        channels: of each hidden layer, before the activation doubles them; >= 1.
        layers: hidden ones; >= 1.

    Usual step size: Adam at 0.005, a tenth of that for spectra.

    Raises:
        AuditError: if either is below 1.
    """
    if min(channels, layers) < 1:
        raise AuditError(
            f"cppn: channels and layers must be >= 1, got channels={channels}, layers={layers}."
        )

    def init(key, shape):
        keys = jax.random.split(key, layers)
        inputs = [2, *[2 * channels] * (layers - 1)]
        hidden = [_start(k, n, channels) for k, n in zip(keys, inputs, strict=True)]
        output = {"weights": jnp.zeros((2 * channels, shape[2])), "biases": jnp.zeros(shape[2])}
        return [*hidden, output]

    def decode(latent, shape):
        *hidden, output = latent
        x = jnp.asarray(coordinates(shape[0], shape[1]))
        for layer in hidden:
            x = _activation(x @ layer["weights"] + layer["biases"])
        return jax.nn.sigmoid(x @ output["weights"] + output["biases"])

    return Parameterization(f"cppn(channels={channels}, layers={layers})", init, decode, None)


def coordinates(h: int, w: int) -> Float[np.ndarray, "h w 2"]:
    """(x, y) of each pixel, float32; pixels are square and the longer side has sd 1."""
    step = 2 * 3**0.5 / max(h - 1, w - 1, 1)
    y, x = ((np.arange(n) - (n - 1) / 2) * step for n in (h, w))
    return np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)


def _start(key, inputs: int, outputs: int) -> dict[str, Float[Array, "..."]]:
    weights, biases = jax.random.split(key)
    return {
        "weights": jax.random.normal(weights, (inputs, outputs)) / inputs**0.5,
        "biases": BIAS * jax.random.normal(biases, (outputs,)),
    }


def _activation(x: Float[Array, "h w c"]) -> Float[Array, "h w d"]:
    a = jnp.arctan(x)
    return jnp.concatenate([a / ODD, a**2 / EVEN], axis=-1)
