"""Everything that is measured of one unit, as one record.

natural group   images of the class, for a logit whose class the labels name; otherwise the
                unit's strongest exemplars. One image per photograph either way.
others          the remaining photographs (of other classes, where labels say so)
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from fvaudit.evidence import exemplars, path, similarity, support
from fvaudit.evidence.activations import Features
from fvaudit.records import Estimate, ImageSet, Unit, UnitResult


SHOWN = 6  # exemplars that a report shows
MIN_CLASS = 5  # photographs of a class that make it a group; with fewer there is no interval


@dataclasses.dataclass(frozen=True)
class Natural:
    """Natural images and what the model makes of them."""

    images: ImageSet
    features: Features
    pairs: Mapping[str, Float[np.ndarray, "n n"]]  # layer -> similarity of all pairs
    model: str = ""  # fingerprint of the model; empty if whoever made this did not note it
    output: str = "logits"  # the layer whose channels are the classes that labels name


@dataclasses.dataclass(frozen=True)
class Group:
    """Which natural images a visualization is compared with."""

    members: Int[np.ndarray, " g"]  # one image per photograph
    others: Int[np.ndarray, " o"]  # images of other photographs, crops included
    text: str  # how it was chosen, in words


def natural(
    images: ImageSet, features: Features, model: str = "", output: str = "logits"
) -> Natural:
    """Natural images with all their pairwise similarities, computed once for all units.

    Memory: 4 n^2 bytes per layer, 80 MB for 1,000 images and 20 layers, besides the features.

    Args:
        images: the images.
        features: theirs.
        model: fingerprint of the model.
        output: what the model itself calls its logits: `model.resolve("logits")`.
    """
    vectors = features.vectors
    pairs = {layer: similarity.similarity_matrix(v, v) for layer, v in vectors.items()}
    return Natural(images, features, pairs, model, output)


def measure(
    unit: Unit,
    label: str,
    known: Natural,
    fv: Features,
    layers: tuple[str, ...],
    *,
    images: tuple[str, ...],
    group_size: int,
    level: float,
    replicates: int,
    rng: np.random.Generator,
    responses: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " r"]] | None = None,
) -> UnitResult:
    """Path similarity, support and exemplars of one unit.

    Args:
        unit: the unit.
        label: what it stands for, if known.
        known: natural images and their features in all `layers`.
        fv: features of the unit's visualizations, one per repeat.
        layers: the path, shallow to deep, ending at the unit's layer.
        images: where the visualizations are stored, for the record.
        group_size: photographs in the natural group.
        level: of every interval.
        replicates: of every bootstrap.
        rng: drives every bootstrap and draw.
        responses: the unit's to natural images and to its visualizations; its channel's means
            unless given, as they must be for a neuron at a position.
    """
    photograph = known.images.group
    response, fv_response = responses or (
        features.responses[unit.layer][:, unit.channel] for features in (known.features, fv)
    )
    group = choose_group(unit, known, response, group_size)
    profile = _profile(known, fv, layers, group, level, replicates, rng)
    found = support.support(
        fv_response, response, photograph, level=level, replicates=replicates, rng=rng
    )
    shown = exemplars.strongest(response, photograph, SHOWN)
    return UnitResult(
        unit=str(unit),
        label=label,
        group=group.text,
        photographs=len(group.members),
        others=len(np.unique(photograph[group.others])),
        exemplars=tuple(known.images.ids[i] for i in shown),
        exemplar_responses=tuple(float(response[i]) for i in shown),
        images=images,
        fv_responses=tuple(map(float, fv_response)),
        path=profile.rows,
        score=profile.score,
        p_value=profile.p_value,
        p_attainable=profile.p_attainable,
        natural_median=found.natural_median,
        natural_max=found.natural_max,
        quantile=found.quantile,
        margin=found.margin,
    )


def without_dead(result: UnitResult, dead: int) -> UnitResult:
    """The record of a unit of which `dead` visualizations were reached by no gradient, or by NaN.

    They show noise, so that whatever was measured of them says nothing of the unit: no estimate is
    left, and every claim becomes INCONCLUSIVE.
    """
    if dead == 0:
        return result

    def unknown(e: Estimate) -> Estimate:
        return dataclasses.replace(e, value=np.nan, low=np.nan, high=np.nan)

    return dataclasses.replace(
        result,
        dead=dead,
        p_value=np.nan,
        score=unknown(result.score),
        quantile=unknown(result.quantile),
        margin=unknown(result.margin),
    )


def choose_group(unit: Unit, known: Natural, response: Float[np.ndarray, " n"], size: int) -> Group:
    """The natural group of a unit and the images that it is held against."""
    photograph, labels = known.images.group, known.images.labels
    of_class = np.zeros(len(photograph), bool)
    if labels is not None and unit.layer == known.output:
        of_class = labels == unit.channel
    if len(np.unique(photograph[of_class])) >= min(size, MIN_CLASS):
        members = exemplars.first_of_each(np.flatnonzero(of_class), photograph)[:size]
        text, own = f"images labelled with class {unit.channel}", of_class
    else:
        members = exemplars.strongest(response, photograph, size)
        text, own = "the unit's strongest natural exemplars", np.zeros(len(photograph), bool)
    own = own | np.isin(photograph, photograph[members])
    return Group(members, np.flatnonzero(~own), text)


def _profile(known, fv, layers, group, level, replicates, rng) -> path.PathProfile:
    members, others = group.members, group.others
    vectors = known.features.vectors
    blocks = [
        (
            similarity.similarity_matrix(fv.vectors[layer], vectors[layer][members]),
            known.pairs[layer][np.ix_(members, members)],
            known.pairs[layer][np.ix_(members, others)],
        )
        for layer in layers
    ]
    with_fv, same, diff = (np.stack(block) for block in zip(*blocks, strict=True))
    return path.path_profile(
        layers,
        with_fv,
        same,
        diff,
        known.images.group[others],
        level=level,
        replicates=replicates,
        rng=rng,
    )
