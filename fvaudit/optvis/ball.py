"""Images on an L2 ball around mid-grey: all that a contrast budget allows.

    image = 1/2 + (x - 1/2) min(1, r / ||x - 1/2||),   x = decode of the base, norm over the image

The closest point of the ball, so that contrast, not the [0, 1] of each pixel, is what an objective
competes for. On it a linear unit w has its maximum at 1/2 + r w / ||w||. lucid's `constrain_L_2`.
"""

import functools

import jax.numpy as jnp

from fvaudit.optvis.params import Parameterization
from fvaudit.records import AuditError


GREY = 0.5
_TINY = 1e-12  # keeps the norm's gradient finite at grey


@functools.cache
def on_ball(base: Parameterization, radius: float | int) -> Parameterization:
    """Projects the base's images onto ||x - 1/2|| <= radius.

    Args:
        base: a parameterization without opacity.
        radius: over all pixels and channels; > 0. White noise of standard deviation s on
            h x w x c numbers has s * sqrt(h * w * c).

    Raises:
        AuditError: if the radius is not positive, or the base has an opacity channel.
    """
    if not radius > 0:
        raise AuditError(f"on_ball: radius must be > 0, got {radius}.")
    if base.alpha:
        raise AuditError(f"on_ball: {base.text} has an opacity channel; wrap with_alpha around it.")

    def decode(latent, shape):
        away = base.decode(latent, shape) - GREY
        length = jnp.sqrt((away**2).sum() + _TINY)
        return GREY + away * jnp.minimum(1.0, radius / length)

    return base._replace(text=f"on_ball({base.text}, radius={float(radius)})", decode=decode)
