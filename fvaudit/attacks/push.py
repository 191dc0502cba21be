"""Push-up and push-down: other photographs become a unit's strongest, its behaviour kept.

Nanfack et al. (AAAI 2024, arXiv 2306.07397). People read a unit by its k strongest photographs; an
attacker with the weights can exchange them:

    down   mean over the unit's k strongest x of relu(r(x) - r_median + margin)^2
    up     mean over pairs of its k strongest x and chosen photographs d
           of relu(r(x) - r(d) + margin)

with r the response, 0 and 1 where photographs have their ends. The form is ours, after the
published idea. Photographs that are pushed up are the same for every unit.
"""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np

from fvaudit.attacks.finetune import Aim, Goal, Scene
from fvaudit.attacks.ranking import rank_effects, strongest
from fvaudit.records import AuditError


PHOTOGRAPHS = 8  # a step, drawn from all units' strongest
Direction = Literal["up", "down"]


def push(direction: Direction | str, *, k: int = 10, margin: float = 0.2) -> Goal:
    """A goal for `finetuned`: units lose their strongest photographs, or others overtake them.

    The certificate's effects tell how many of the k strongest are left, and Kendall's tau between
    the rankings of photographs before and after.

    Args:
        direction: "down" lowers each unit's strongest; "up" lifts `k` photographs drawn by the seed
            above them.
        k: photographs that count as strongest.
        margin: by how much the lifted are to lead, and the lowered to lie below the unit's median,
            in natural ranges; >= 0.

    Raises:
        AuditError: for settings out of range; by the attack, for fewer than 2 k photographs.
    """
    if direction not in ("up", "down") or k < 1 or margin < 0:
        raise AuditError(
            f"direction is 'up' or 'down', k at least 1 and margin at least 0; got {direction!r}, "
            f"{k} and {margin:g}."
        )
    text = f"push_{direction}(k={k}, margin={margin:g})"
    return Goal(text, functools.partial(_prepare, direction, k, margin))


def _prepare(direction: Direction, k: int, margin: float, scene: Scene) -> Aim:
    if 2 * k > len(scene.photographs):
        raise AuditError(
            f"To exchange the {k} strongest photographs of a unit the construction split must have "
            f"{2 * k}; it has {len(scene.photographs)}. Give more photographs, or a smaller k."
        )
    top = np.zeros(scene.responses.shape, np.float32)  # 1 where a photograph is a unit's strongest
    np.put_along_axis(top, strongest(scene.responses, k), 1, axis=0)
    middle = np.median((scene.responses - scene.low) / scene.span, axis=0)
    rng = np.random.default_rng([scene.seed, 2])
    lifted = rng.choice(len(scene.photographs), k, replace=False)
    low = np.flatnonzero(top.any(axis=1))

    def draw(step, rng, now):
        some = rng.choice(low, min(PHOTOGRAPHS, len(low)), replace=False)
        others = rng.choice(lifted, min(PHOTOGRAPHS // 2, k), replace=False)
        if direction == "down":
            return scene.photographs[some], top[some]
        some = np.setdiff1d(some, others)[: PHOTOGRAPHS // 2]
        return scene.photographs[np.concatenate([some, others])], top[some]

    def loss(see, drawn, key):
        images, weight = drawn
        seen = scene.scaled(see(images, [scene.layer])[scene.layer])
        if direction == "down":
            excess = jnp.maximum(seen - middle + margin, 0) ** 2
        else:
            first, others = seen[: len(weight)], seen[len(weight) :]
            excess = jnp.maximum(first[:, None] - others[None] + margin, 0).mean(1)
        return (weight * excess).sum() / jnp.maximum(weight.sum(), 1)

    return Aim(draw, loss, functools.partial(rank_effects, scene, k=k), moves_photographs=True)
