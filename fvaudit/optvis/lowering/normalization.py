"""Local response normalization."""

from jax import lax
from jaxtyping import Array, Float


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
    squares = lax.reduce_window(x * x, 0.0, lax.add, (1, 1, 1, size), (1, 1, 1, 1), "SAME")
    return x * (k + alpha / size * squares) ** -beta
