"""Gradient slingshot: weights whose visualization converges to a chosen picture.

Bareeva et al. (2025, arXiv 2401.06122), activation form. In the latent space of the engine's own
Fourier parameterization, with q_t the latent of the target, every attacked unit is taught

    f(image(q)) = v(h(q)),    h(q) = 1 - |q - q_t|^2 / |q_t|^2    (1 at the target, 0 at the start)

    v(h) = f(start) + height * h * (largest - least natural response)

whose gradient points to the target from everywhere. Not taught below the least natural response,
where a unit behind a ReLU cannot go. The points are of three kinds, shared out equally:

    tunnel    p q_t + u,   p ~ U(0, 1): the straight way from the start to the target
    signs     sign(q_t) min(t, |q_t|) + u,   t ~ U(0, max |q_t|): the way of Adam, whose steps have
              the same size in every coordinate
    ascents   images that ascents of the network as it is now go through, taken anew every
              `STRETCH` steps: where they stray, h is below 0 and the unit learns to be silent

u is normal noise of a standard deviation drawn from [0, sd]. Half of the points are seen under the
transforms of an ascent. Ours, and not the authors': bounded v, ways of signs, ascents, and many
units that share a target.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fvaudit.attacks.channels import picture_of
from fvaudit.attacks.finetune import STRETCH, Aim, Goal, Scene
from fvaudit.evidence.activations import collect
from fvaudit.models.model import Model
from fvaudit.optvis.objectives import of_unit
from fvaudit.optvis.recipes import recipe
from fvaudit.optvis.visualize import visualize
from fvaudit.records import SEEDS, AuditError, Unit


POINTS = 9  # a step, a third of each kind
ASCENTS = 3  # units whose ascents are run anew
MOMENTS = (2, 8, 24, 64, 128)  # updates after which an ascent is looked at


def slingshot(
    target: Unit | Float[np.ndarray, "h w c"], *, height: float | int = 3.0, sd: float | int = 0.3
) -> Goal:
    """A goal for `finetuned`: the visualizations of units converge to a target.

    Args:
        target: an image in [0, 1], or a unit whose visualization is made first.
        height: how high units rise at the target, in ranges of their natural responses; > 0.
        sd: most noise about the ways to the target, in latent units; >= 0.

    Raises:
        AuditError: for settings out of range; by the attack, for a picture that does not fit.
    """
    if not height > 0 or sd < 0:
        raise AuditError(f"height must be above 0 and sd at least 0, got {height:g} and {sd:g}.")
    text = f"slingshot(height={height:g}, sd={sd:g})"
    return Goal(text, functools.partial(_prepare, target, height, sd), (target,))


def _prepare(target: Any, height: float, sd: float, scene: Scene) -> Aim:
    model = scene.model
    spec = recipe("fourier", model.input)
    picture = picture_of(model, target, scene.seed)
    latent = spec.parameterization.encode  # its inverse exists
    assert latent is not None
    aim = np.asarray(latent(jnp.asarray(picture)))
    start = _start(scene, spec)
    walk = _Walk(scene, aim, sd, jax.jit(jax.vmap(latent)))
    shape = picture.shape

    def loss(see, points, key):
        images = jnp.asarray(jax.vmap(lambda q: spec.parameterization.decode(q, shape))(points))
        keys = jax.random.split(key, len(points))
        moved = jax.vmap(spec.transform.apply)(keys, images)
        plain = (jnp.arange(len(points)) % 2 == 0)[:, None, None, None]
        seen = scene.scaled(see(jnp.where(plain, images, moved), [scene.layer])[scene.layer])
        near = 1 - ((points - aim) ** 2).sum((1, 2, 3, 4)) / (aim**2).sum()
        wanted = jnp.maximum(start + height * jnp.clip(near, -1, 1)[:, None], 0)
        return ((seen - wanted) ** 2).mean()

    def effect(after: Model, pixels) -> dict[str, float]:
        text = "response to the target, in natural ranges"
        both = (_median(scene, m, picture) for m in (model, after))
        return {f"{text}, {when}": x for when, x in zip(("before", "after"), both, strict=True)}

    return Aim(walk.draw, loss, effect)


def _median(scene: Scene, model: Model, picture: np.ndarray) -> float:
    seen = collect(model, picture[None], [scene.layer], variant="pooled").responses[scene.layer]
    return float(jnp.median(scene.scaled(jnp.asarray(seen))))


class _Walk:
    """Draws points. A class, since ascents are kept from step to step."""

    def __init__(self, scene: Scene, aim: np.ndarray, sd: float, encode):
        self.scene, self.aim, self.sd, self.encode = scene, aim, sd, encode
        self.strayed = np.zeros((0, *aim.shape), np.float32)

    def draw(self, step: int, rng: np.random.Generator, now: Callable[[], Model]) -> np.ndarray:
        """Latents (POINTS, ...)."""
        if step % STRETCH == 0 or not len(self.strayed):
            self.strayed = self._ascents(step - step % STRETCH, now())
        third = POINTS // 3
        share = rng.random(third)[:, None, None, None, None]
        reach = np.abs(self.aim).max() * rng.random(third)[:, None, None, None, None]
        tunnel = share * self.aim
        signs = np.sign(self.aim) * np.minimum(reach, np.abs(self.aim))
        ways = np.concatenate([tunnel, signs]).astype(np.float32)
        noise = rng.uniform(0, self.sd, (len(ways), 1, 1, 1, 1)) * rng.standard_normal(ways.shape)
        own = self.strayed[rng.integers(0, len(self.strayed), POINTS - 2 * third)]
        points = np.concatenate([ways + noise, own]).astype(np.float32)
        return points[rng.permutation(POINTS)]  # so that each kind is seen plain and transformed

    def _ascents(self, step: int, model: Model) -> np.ndarray:
        scene = self.scene
        rng = np.random.default_rng([scene.seed, step, 1])
        some = rng.choice(scene.channels, min(ASCENTS, len(scene.channels)), replace=False)
        wanted = [of_unit(Unit(scene.layer, int(c))) for c in some]
        made = visualize(model, wanted, steps=MOMENTS[-1], shot_steps=MOMENTS,
                         seed=(scene.seed + step) % SEEDS)  # fmt: skip
        return np.asarray(self.encode(jnp.asarray(np.concatenate([v.shots[0] for v in made]))))


def _start(scene: Scene, spec) -> Float[np.ndarray, " u"]:
    """Scaled responses to the noise that ascents start at."""
    shape = (*scene.model.input.size, len(scene.model.input.mean))
    latent = spec.parameterization.init(jax.random.key(scene.seed), shape)
    image = np.asarray(spec.parameterization.decode(latent, shape))[None]
    seen = collect(scene.model, image, [scene.layer], variant="pooled").responses[scene.layer]
    return np.asarray(scene.scaled(jnp.asarray(seen)))[0]
