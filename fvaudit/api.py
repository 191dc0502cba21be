"""Single calls for notebooks and scripts: an audit's evidence without a run directory."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fvaudit.evidence.activations import Settings, collect, responses
from fvaudit.evidence.units import Natural, measure, natural, without_dead
from fvaudit.models.model import Model, require_model
from fvaudit.optvis.objectives import of_unit
from fvaudit.records import (
    AuditError,
    ImageSet,
    Unit,
    UnitResult,
    Visualization,
    require_kind,
    require_whole,
)


MOST = 10**6  # photographs in a group, and replicates
IMAGES = "an ImageSet, as load_images makes it, or what collect_natural made of one"


def collect_natural(
    model: Model,
    images: ImageSet,
    *,
    layers: Sequence[str] = (),
    metric: str = "spearman",
    variant: str = "spatial",
    max_features: int = 32768,
    seed: int = 0,
) -> Natural:
    """Natural images and what the model makes of them, for many calls of `path_similarity`.

        known = fv.collect_natural(model, images)
        results = [fv.path_similarity(model, unit, vis, known) for unit in units]

    Memory: for Spearman 2 bytes a feature (for 1,000 images and 20 layers of at least 32768
    features 1.3 GB), and 4 n^2 bytes a layer for all pairs.

    Args:
        model: the network.
        images: natural images for this model.
        layers: of the units to come, where they lie beside the trunk.
        metric: "spearman", "pearson" or "cosine".
        variant: "spatial" or "pooled".
        max_features: features compared per layer, a seeded subset above it.
        seed: of the feature subset.

    Raises:
        AuditError: for unknown layers, metrics or variants, or images of another size or range.
    """
    require_model(model)
    require_kind("images", images, ImageSet, IMAGES)
    model.require_layers(layers)
    beside = {model.resolve(layer) for layer in layers}
    wanted = [name for name in model.layers if name in model.trunk or name in beside]
    settings = Settings(metric, variant, max_features, seed)
    return _natural(model, images, wanted, settings)


def path_similarity(
    model: Model,
    unit: Unit,
    visualization: Visualization | Sequence[Visualization],
    images: ImageSet | Natural,
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
        images: natural images for the same model, or what `collect_natural` made of them with
            the same model, metric, variant, max_features and seed: that saves collecting them
            again for every unit.
        metric: "spearman", "pearson" or "cosine".
        variant: "spatial" or "pooled".
        group: photographs in the natural group.
        max_features: features compared per layer, a seeded subset above it.
        replicates: bootstrap replicates; with too few for a level there is no interval.
        level: of every interval.
        seed: of feature subset and bootstrap.

    Returns:
        The record that an audit keeps of a unit: `.path` per layer, `.score`, `.p_value`.

    Raises:
        AuditError: if the unit does not exist, none of the visualizations shows it, natural images
            were collected otherwise, or a number is out of range.
    """
    require_model(model)
    require_kind("unit", unit, Unit, "a Unit, as Unit.parse('blocks.8:17') is")
    require_kind("images", images, (ImageSet, Natural), IMAGES)
    model.require_unit(unit)
    require_whole("group", group, 2, MOST)
    require_whole("replicates", replicates, 1, MOST)
    if not 0 < level < 1:
        raise AuditError(f"level must lie between 0 and 1, as in 0.95, got {level}.")
    shown = _of_unit(model, unit, visualization)
    unit = dataclasses.replace(unit, layer=model.resolve(unit.layer))
    layers = model.path_to(unit.layer)
    settings = Settings(metric, variant, max_features, seed)
    if isinstance(images, Natural):
        known = images
        _require_alike(known, model, layers, settings)
    else:
        known = _natural(model, images, layers, settings)
    result = measure(
        unit,
        model.label(unit),
        known,
        collect(model, shown.images, layers, **dataclasses.asdict(settings)),
        layers,
        images=(),
        group_size=group,
        level=level,
        replicates=replicates,
        rng=np.random.default_rng(seed),
        responses=_at_its_position(model, unit, known.images.pixels, shown.images),
    )
    return without_dead(result, int((~shown.alive).sum()))


def _at_its_position(model: Model, unit: Unit, *images: np.ndarray) -> Any:
    """A neuron's responses to each set of images; None for a channel, whose means are known."""
    if unit.position is None:
        return None
    return tuple(responses(model, x, unit) for x in images)


def _natural(model: Model, images: ImageSet, layers: Sequence[str], settings: Settings) -> Natural:
    features = collect(model, images.pixels, layers, **dataclasses.asdict(settings))
    return natural(images, features, model.fingerprint, model.resolve("logits"))


def _require_alike(known: Natural, model: Model, layers: Sequence[str], settings: Settings) -> None:
    """Raises `AuditError` if vectors would be compared that were not made alike."""
    if known.model != model.fingerprint:
        raise AuditError(
            f"These natural images were collected with another model than this {model.name}. "
            "Call collect_natural with this one."
        )
    if known.features.settings != settings:
        raise AuditError(
            f"These natural images were collected with {known.features.settings}, and this call "
            f"asks for {settings}. Pass the same to both."
        )
    missing = [layer for layer in layers if layer not in known.features.vectors]
    if missing:
        raise AuditError(
            f"These natural images lack {', '.join(missing)}. Call collect_natural with "
            f"layers={missing}."
        )


def _of_unit(
    model: Model, unit: Unit, visualization: Visualization | Sequence[Visualization]
) -> Visualization:
    """The one that shows the unit, under any of its layer's names."""
    given = [visualization] if isinstance(visualization, Visualization) else list(visualization)
    for one in given:
        require_kind("visualization", one, Visualization, "what visualize made")
    own = model.resolve(unit.layer)
    names = (own, *(alias for alias, layer in model.aliases.items() if layer == own))
    wanted = {str(of_unit(dataclasses.replace(unit, layer=name))) for name in names}
    for one in given:
        if one.objective in wanted:
            return one
    raise AuditError(
        f"None of the visualizations shows {of_unit(unit)}; they show "
        f"{', '.join(v.objective for v in given) or 'nothing'}."
    )
