"""The one loop: gradient ascent on a latent under random transforms, in one `lax.scan`.

    z_0 = init(key);   z_{t+1} = z_t + Adam(grad_z score(transform_t(decode(z_t))))

It receives score, parameterization and transform as functions and knows nothing of networks. One
image per call; `vmap` or several devices make many.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from fvaudit.optvis.params import Parameterization
from fvaudit.optvis.transforms import Transform


Score = Callable[[Float[Array, "h w c"]], Float[Array, ""]]


class Ascent(NamedTuple):
    """What one run of the loop leaves."""

    image: Float[Array | np.ndarray, "h w c"]  # final image in [0, 1]
    activation: Float[Array | np.ndarray, ""]  # score of the final image, untransformed
    trace: Float[Array | np.ndarray, " t"]  # score at every step, under that step's transform
    shots: Float[Array | np.ndarray, "k h w c"]  # images after the asked-for numbers of updates


def maximize(
    score: Score,
    parameterization: Parameterization,
    transform: Transform,
    *,
    size: tuple[int, int],
    steps: int,
    shot_steps: tuple[int, ...],
    learning_rate: float,
    key: Key[Array, ""],
) -> Ascent:
    """Maximizes `score` over images of `size`.

    Args:
        score: of one image in [0, 1].
        parameterization: latent <-> image.
        transform: applied with a fresh key at every step.
        size: (rows, columns) of the image.
        steps: number of Adam updates.
        shot_steps: after how many updates (0 is the start) to keep the image; increasing.
        learning_rate: of Adam (b1 0.9, b2 0.999), 0.05 in lucid.
        key: drives the start and every transform; equal keys give equal images.
    """
    adam = optax.adam(learning_rate)
    init_key, step_key = jax.random.split(key)
    latent: Any = parameterization.init(init_key, (*size, 3))

    def loss(z, t):
        image = parameterization.decode(z, (*size, 3))
        return -score(transform.apply(jax.random.fold_in(step_key, t), image))

    def step(carry, t):
        z, state, shots = carry
        shots = _keep(shots, shot_steps, t, lambda: parameterization.decode(z, (*size, 3)))
        value, gradient = jax.value_and_grad(loss)(z, t)
        update, state = adam.update(gradient, state)
        return (optax.apply_updates(z, update), state, shots), -value

    shots = jnp.zeros((len(shot_steps), *size, 3))
    carry = (latent, adam.init(latent), shots)
    (latent, _, shots), trace = jax.lax.scan(step, carry, jnp.arange(steps))
    image = parameterization.decode(latent, (*size, 3))
    shots = _keep(shots, shot_steps, jnp.asarray(steps), lambda: image)
    return Ascent(image, score(image), trace, shots)


def _keep(
    shots: Float[Array, "k h w c"],
    shot_steps: tuple[int, ...],
    t: Int[Array, ""],
    image: Callable[[], Float[Array, "h w c"]],
) -> Float[Array, "k h w c"]:
    if not shot_steps:
        return shots
    hit = jnp.asarray(shot_steps) == t
    return jax.lax.cond(hit.any(), lambda s: s.at[jnp.argmax(hit)].set(image()), lambda s: s, shots)
