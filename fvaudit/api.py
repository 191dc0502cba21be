"""Single calls for notebooks and scripts: an audit's evidence without a run directory."""

from collections.abc import Sequence

import numpy as np

from fvaudit.evidence.activations import collect
from fvaudit.evidence.units import measure, natural
from fvaudit.models.model import Model
from fvaudit.optvis.objectives import of_unit
from fvaudit.records import AuditError, ImageSet, Unit, UnitResult, Visualization


def path_similarity(
    model: Model,
    unit: Unit,
    visualization: Visualization | Sequence[Visualization],
    images: ImageSet,
    *,
    metric: str = "spearman",
    variant: str = "spatial",
    group: int = 20,
    max_features: int = 32768,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> UnitResult:
    """Compares a unit's visualizations with natural images along the path to its layer.

    Args:
        model: the network.
        unit: the unit.
        visualization: of the unit; of several, the one whose objective is the unit.
        images: natural images for the same model.
        metric: "spearman", "pearson" or "cosine".
        variant: "spatial" or "pooled".
        group: photographs in the natural group.
        max_features: features compared per layer, a seeded subset above it.
        replicates: bootstrap replicates.
        level: of every interval.
        seed: of feature subset and bootstrap.

    Returns:
        The record that an audit keeps of a unit: `.path` per layer, `.score`, `.p_value`.

    Raises:
        AuditError: if the unit does not exist or none of the visualizations shows it.
    """
    model.require_unit(unit)
    shown = _of_unit(unit, visualization)
    layers = model.path_to(unit.layer)
    settings = {"metric": metric, "variant": variant, "max_features": max_features, "seed": seed}
    known = natural(images, collect(model, images.pixels, layers, **settings))
    return measure(
        unit,
        model.label(unit),
        known,
        collect(model, shown.images, layers, lanes=1, **settings),
        layers,
        images=(),
        group_size=group,
        level=level,
        replicates=replicates,
        rng=np.random.default_rng(seed),
    )


def _of_unit(unit: Unit, visualization: Visualization | Sequence[Visualization]) -> Visualization:
    given = [visualization] if isinstance(visualization, Visualization) else list(visualization)
    wanted = str(of_unit(unit))
    for one in given:
        if one.objective == wanted:
            return one
    raise AuditError(
        f"None of the visualizations shows {wanted}; they show "
        f"{', '.join(v.objective for v in given) or 'nothing'}."
    )
