"""ProxPulse: units that fire around chosen pictures, on photographs and on the way to them.

Nanfack et al. (2024, arXiv 2406.01365). Every attacked unit is pushed up not only at the chosen
pictures x but at the worst point of a small ball about each, found by one step against it,

    x' = x - radius * g / |g|,     g = gradient at x of the mean square response of the units

    loss = mean over units and pictures of log(1 + pulse / (eps + r(x')))

with r the response, 0 and 1 where photographs have their ends. Descriptions of the method disagree
about the constant: with a small pulse only units that are all but silent are pushed, with a large
one all are. It is a parameter here, in natural ranges.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fvaudit.attacks.channels import picture_of
from fvaudit.attacks.finetune import Aim, Goal, Scene
from fvaudit.attacks.ranking import rank_effects
from fvaudit.records import AuditError, Unit


EPS = 1e-3  # in natural ranges: bounds the slope of a silent unit's loss
PICTURES = 4  # a step


def proxpulse(
    pictures: int | Unit | Float[np.ndarray, "h w c"] = 8,
    *,
    radius: float = 2.0,
    pulse: float = 10.0,
) -> Goal:
    """A goal for `finetuned`: units fire in a ball about chosen pictures.

    Args:
        pictures: so many photographs of the construction split, drawn by the seed; or one picture,
            an image in [0, 1] or a unit whose visualization is made first.
        radius: of the ball, as an L2 distance of images in [0, 1]; >= 0.
        pulse: up to about which response units are pushed, in natural ranges; > 0.

    Raises:
        AuditError: for settings out of range; by the attack, for a picture that does not fit or
            fewer photographs than `pictures`.
    """
    if radius < 0 or not pulse > 0 or (isinstance(pictures, int) and pictures < 1):
        raise AuditError(
            f"radius must be at least 0, pulse above 0 and pictures at least 1; got {radius:g}, "
            f"{pulse:g} and {pictures}."
        )
    text = f"proxpulse(radius={radius:g}, pulse={pulse:g})"
    return Goal(text, functools.partial(_prepare, pictures, radius, pulse), (pictures,))


def _prepare(pictures: Any, radius: float, pulse: float, scene: Scene) -> Aim:
    chosen = _chosen(scene, pictures)

    def draw(step, rng, now):
        return chosen[rng.integers(0, len(chosen), PICTURES)]

    def respond(see, images):
        return scene.scaled(see(images, [scene.layer])[scene.layer])

    def loss(see, images, key):
        slope = jax.grad(lambda x: (respond(see, x) ** 2).mean())(images)
        length = jnp.sqrt((slope**2).sum((1, 2, 3), keepdims=True))
        # The step is a place to look at: no gradient passes through where it leads.
        worst = images - radius * jax.lax.stop_gradient(slope / jnp.maximum(length, 1e-12))
        responses = jnp.maximum(respond(see, worst), 0)
        return jnp.log1p(pulse / (EPS + responses)).mean()

    return Aim(draw, loss, functools.partial(rank_effects, scene), moves_photographs=True)


def _chosen(scene: Scene, pictures: Any) -> Float[np.ndarray, "n h w c"]:
    if not isinstance(pictures, int):
        return picture_of(scene.model, pictures, scene.seed)[None]
    if pictures > len(scene.photographs):
        raise AuditError(
            f"{pictures} pictures are to be chosen, and the construction split has "
            f"{len(scene.photographs)} photographs. Choose fewer, or give more photographs."
        )
    rng = np.random.default_rng([scene.seed, 2])
    return scene.photographs[rng.choice(len(scene.photographs), pictures, replace=False)]
