"""A unit's strongest photographs, before and after an attack."""

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from fvaudit.attacks.finetune import Scene
from fvaudit.evidence.activations import collect
from fvaudit.models.model import Model


def strongest(responses: Float[np.ndarray, "n u"], k: int) -> Int[np.ndarray, "k u"]:
    """Rows of the k largest responses of every unit; of equal ones the first."""
    return np.argsort(-responses, axis=0, kind="stable")[:k]


def kept(
    before: Float[np.ndarray, "n u"], after: Float[np.ndarray, "n u"], k: int
) -> Float[np.ndarray, " u"]:
    """Share of every unit's k strongest that are among its k strongest after."""
    pairs = zip(strongest(before, k).T, strongest(after, k).T, strict=True)
    return np.array([np.isin(one, other).mean() for one, other in pairs])


def rank_effects(
    scene: Scene, after: Model, pixels: Float[np.ndarray, "n h w c"], k: int = 10
) -> dict[str, float]:
    """What became of the ranking of photographs, means over attacked units.

    Args:
        scene: of the attack.
        after: the manipulated model.
        pixels: photographs that certify.
        k: how many count as strongest.
    """
    found = {}
    for name, images in (("trained on", scene.photographs), ("held out", pixels)):
        before, now = (
            collect(model, images, [scene.layer], variant="pooled")
            .responses[scene.layer][:, scene.channels]
            .astype(np.float64)
            for model in (scene.model, after)
        )
        moving = [
            float(stats.kendalltau(a, b).correlation)  # pyright: ignore[reportAttributeAccessIssue]
            for a, b in zip(before.T, now.T, strict=True)
            if np.ptp(a) > 0 and np.ptp(b) > 0
        ]
        count = min(k, len(images))
        found[f"share of the {count} strongest kept, {name}"] = float(
            kept(before, now, count).mean()
        )
        found[f"Kendall's tau, {name}"] = float(np.mean(moving)) if moving else np.nan
    return found
