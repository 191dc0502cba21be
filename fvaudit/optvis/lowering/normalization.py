"""Local response normalization: shifted additions over channels, and one power for two passes.

    y_c  = x_c d_c^-b,   d_c = k + (a / size) * sum over e in N(c) of x_e^2
    dx_c = g_c d_c^-b - (2 a b / size) x_c * sum over e in N'(c) of g_e x_e d_e^(-b-1)

N(c) are the `size` channels around c, N'(c) those that have c among theirs (the same for odd
sizes). The power is made of square roots where they suffice.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fvaudit.optvis.lowering.backends import takes


def local_response_norm(
    x: Float[Array, "n h w c"],
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> Float[Array, "n h w c"]:
    """Each channel divided by a power of its neighbours' energy, as in Caffe.

        y_c = x_c * (k + alpha / size * sum over the `size` channels d around c of x_d^2) ** -beta

    Channels outside count as 0. TensorFlow's depth_radius r and alpha a are size 2 r + 1 and
    alpha a * size here. Krizhevsky et al., 2012.
    """
    if takes("normalization"):
        return _normed(x, size, alpha / size, beta, k)
    window = ((1, 1, 1, size), (1, 1, 1, 1), "SAME")
    squares = lax.reduce_window(x * x, 0.0, lax.add, *window)
    return x * (k + alpha / size * squares) ** -beta


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _normed(x, size, slope, beta, k):
    return _normed_forward(x, size, slope, beta, k)[0]


def _normed_forward(x, size, slope, beta, k):
    below = (size - 1) // 2
    energy = k + slope * _neighbour_sum(x * x, below, size - 1 - below)
    return x * _inverse_power(energy, beta), (x, energy)


def _normed_backward(size, slope, beta, k, saved, g):
    x, energy = saved
    below = (size - 1) // 2
    scale = _inverse_power(energy, beta)
    coupling = _neighbour_sum(g * x * scale / energy, size - 1 - below, below)
    return (g * scale - 2 * slope * beta * x * coupling,)


_normed.defvjp(_normed_forward, _normed_backward)


def _neighbour_sum(values, below, above):
    channels = values.shape[-1]
    padded = jnp.pad(values, ((0, 0),) * 3 + ((below, above),))
    return sum(padded[..., i : i + channels] for i in range(below + above + 1))


def _inverse_power(energy, beta):
    if beta == 0.5:
        return lax.rsqrt(energy)
    if beta == 0.75:
        root = lax.rsqrt(energy)
        return root * jnp.sqrt(root)
    return energy**-beta
