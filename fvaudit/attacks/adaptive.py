"""An attacker who knows the audit: any fine-tuning attack, with losses that hide it.

    wanted' = wanted + evade * (1 - similarity) + hide * relu(r - cap)^2

Over pictures that ascents of the attacked network end in, taken anew every `STRETCH` steps:
`similarity` is Pearson's correlation of their activations with those of the unit's strongest
photographs, mean over the layers of the path that are trained (Spearman's, which the audit takes,
has no gradient); r is the response, 0 and 1 where photographs have their ends, so that `cap` bounds
the margin by which a visualization leaves natural responses. Ours.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from fvaudit.attacks.finetune import STRETCH, Aim, Goal, Scene
from fvaudit.attacks.ranking import strongest
from fvaudit.models.model import Model
from fvaudit.optvis.objectives import of_unit
from fvaudit.optvis.visualize import visualize
from fvaudit.records import SEEDS, AuditError, Unit


SHOWN = 3  # attacked units whose ascents are looked at
EXEMPLARS = 2  # photographs of each that the path is to resemble


def adaptive(
    goal: Goal,
    *,
    evade: float = 1.0,
    hide: float = 1.0,
    cap: float = 2.0,
    since: str | None = None,
    steps: int = 128,
) -> Goal:
    """A goal that is reached while the evidence of an audit is held down.

    Args:
        goal: of another attack, for example `slingshot(target)`.
        evade: weight of path similarity; >= 0.
        hide: weight of the support margin; >= 0.
        cap: how far a visualization's response may leave natural ones, in natural ranges.
        since: only layers of the path behind this one count; those that are trained.
        steps: of the ascents that are looked at.

    Returns:
        A goal for `finetune.finetuned`.

    Raises:
        AuditError: for weights below 0.
    """
    if min(evade, hide) < 0:
        raise AuditError(f"evade and hide must be at least 0, got {evade:g} and {hide:g}.")
    text = f"adaptive({goal.text}, evade={evade:g}, hide={hide:g}, cap={cap:g})"
    settings = (goal, evade, hide, cap, since, steps)
    return Goal(text, functools.partial(_prepare, *settings), (*goal.besides, since, steps))


def _prepare(goal: Goal, evade: float, hide: float, cap: float, since, steps: int, scene: Scene):
    base = goal.prepare(scene)
    looks = _Looks(scene, steps)
    path = _path(scene, since)

    def draw(step, rng, now):
        return base.draw(step, rng, now), looks.draw(step, now)

    def loss(see, drawn, key):
        wanted, (shown, exemplars, places) = drawn
        count = len(shown)
        seen = see(jnp.concatenate([shown, exemplars.reshape(-1, *shown.shape[1:])]), path)
        alike = jnp.stack([_alike(seen[layer], count) for layer in path]).mean()
        own = jnp.take_along_axis(scene.scaled(seen[scene.layer])[:count], places[:, None], axis=1)
        over = (jnp.maximum(own - cap, 0) ** 2).mean()
        return base.loss(see, wanted, key) + evade * (1 - alike) + hide * over

    return Aim(draw, loss, base.effect, base.moves_photographs)


class _Looks:
    """Pictures at the end of ascents. A class, since they are kept from step to step."""

    def __init__(self, scene: Scene, steps: int):
        self.scene, self.steps, self.kept = scene, steps, None

    def draw(self, step: int, now: Callable[[], Model]):
        """Pictures (s, h, w, c), exemplars (s, e, h, w, c), and which attacked unit each is of."""
        if self.kept is None or step % STRETCH == 0:
            self.kept = self._taken(step - step % STRETCH, now())
        return self.kept

    def _taken(self, step: int, model: Model):
        scene = self.scene
        rng = np.random.default_rng([scene.seed, step, 3])
        count = len(scene.channels)
        places = rng.choice(count, min(SHOWN, count), replace=False)
        wanted = [of_unit(Unit(scene.layer, int(scene.channels[i]))) for i in places]
        made = visualize(model, wanted, steps=self.steps, seed=(scene.seed + step + 1) % SEEDS)
        top = strongest(scene.responses[:, places], min(EXEMPLARS, len(scene.photographs))).T
        return np.concatenate([v.images for v in made]), scene.photographs[top], places


def _path(scene: Scene, since: str | None) -> tuple[str, ...]:
    path = scene.model.path_to(scene.layer)
    if since is None:
        return path
    scene.model.require_layer(since)
    at = scene.model.resolve(since)
    return path[path.index(at) + 1 :] if at in path else path


def _alike(activations, count: int):
    """Mean Pearson correlation of each shown picture with its own exemplars."""
    rows = activations.reshape(len(activations), -1)
    rows = rows - rows.mean(1, keepdims=True)
    rows = rows / jnp.maximum(jnp.sqrt((rows**2).sum(1, keepdims=True)), 1e-12)
    shown, exemplars = rows[:count], rows[count:].reshape(count, -1, rows.shape[1])
    return (shown[:, None] * exemplars).sum(-1).mean()
