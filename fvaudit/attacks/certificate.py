"""What a manipulation left unchanged, measured on photographs that its construction never saw.

    agreement      share of photographs whose top class is the same before and after
    accuracy       before and after, where photographs have labels
    logit change   largest and mean absolute difference over photographs and classes
    misrouted      photographs that the gate takes for visualizations, and the other way round
    firing         photographs in which a branch that should be silent fires

Every share is a share of photographs (one crop each) with its exact binomial interval: "none of
200" is an upper bound of 1.8 %, not a proof. Constants stand beside the ranges they came from.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fvaudit.evidence.activations import collect
from fvaudit.evidence.stats import binomial_estimate
from fvaudit.models.builders import Edit
from fvaudit.models.model import Model
from fvaudit.records import AuditError, Estimate, ImageSet, require_kind


LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Certificate:
    """The behaviour of a manipulated model beside its original's."""

    attack: str  # call text
    units: tuple[str, ...]  # whose visualizations are hijacked
    before: str  # fingerprint of the original
    after: str  # fingerprint of the manipulated model
    construction: int  # photographs that constants were chosen on
    certification: int  # photographs that everything below was measured on
    agreement: Estimate  # share of photographs with the same top class
    accuracy_before: Estimate | None  # None: no labels
    accuracy_after: Estimate | None
    logit_change_max: float
    logit_change_mean: float
    shares: Mapping[str, Estimate]  # of this kind of attack: misrouted photographs, ...
    constants: Mapping[str, float]  # chosen by the attack
    ranges: Mapping[str, tuple[float, float]]  # (lowest, highest) that they came from
    effects: Mapping[str, float] = dataclasses.field(default_factory=dict)  # what was achieved

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and texts; NaN becomes None."""
        return _plain(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Manipulated:
    """A working model, and what is known of its behaviour."""

    model: Model
    certificate: Certificate
    edit: Edit | None  # makes the model again from its original; None: it cannot be stored


def split(images: ImageSet, seed: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Rows for construction and rows for certification, half of the photographs each.

    All crops of a photograph fall on one side; certification takes one crop of each.

    Args:
        images: at least 4 photographs.
        seed: of the draw.

    Raises:
        AuditError: for fewer photographs.
    """
    require_kind("images", images, ImageSet, "an ImageSet, as load_images makes it")
    photographs = np.unique(images.group)
    if len(photographs) < 4:
        raise AuditError(
            f"An attack needs photographs to choose its constants on and others to certify it on: "
            f"at least 4, got {len(photographs)}."
        )
    drawn = np.random.default_rng(seed).permutation(photographs)
    first = drawn[: len(drawn) // 2]
    construction = np.flatnonzero(np.isin(images.group, first))
    others = np.setdiff1d(photographs, first)
    return construction, np.array([np.flatnonzero(images.group == g)[0] for g in others])


def certify(
    attack: str,
    units: Sequence[str],
    before: Model,
    after: Model,
    images: ImageSet,
    rows: Int[np.ndarray, " n"],
    *,
    construction: int,
    shares: Mapping[str, tuple[int, int]],
    constants: Mapping[str, float],
    ranges: Mapping[str, tuple[float, float]],
    effects: Mapping[str, float] | None = None,
) -> Certificate:
    """Measures the logits of both models on photographs that construction did not see.

    Args:
        attack: call text.
        units: whose visualizations are hijacked.
        before: the original.
        after: the manipulated model.
        images: natural images.
        rows: which of them; one image a photograph.
        construction: photographs that constants were chosen on.
        shares: name -> (how many, of how many) photographs.
        constants: chosen by the attack.
        ranges: that they came from.
        effects: what the attack achieved, by name.
    """
    logits = [logits_of(model, images.pixels[rows]) for model in (before, after)]
    labels = None if images.labels is None else images.labels[rows]
    change = np.abs(logits[1] - logits[0])
    top = [x.argmax(1) for x in logits]
    return Certificate(
        attack=attack,
        units=tuple(units),
        before=before.fingerprint,
        after=after.fingerprint,
        construction=construction,
        certification=len(rows),
        agreement=_share(int((top[0] == top[1]).sum()), len(rows)),
        accuracy_before=_accuracy(top[0], labels),
        accuracy_after=_accuracy(top[1], labels),
        logit_change_max=float(change.max()),
        logit_change_mean=float(change.mean()),
        shares={name: _share(*counts) for name, counts in shares.items()},
        constants=dict(constants),
        ranges=dict(ranges),
        effects=dict(effects or {}),
    )


def logits_of(model: Model, pixels: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n k"]:
    """The class logits of images."""
    return collect(model, pixels, ("logits",), variant="pooled").responses["logits"]


def _accuracy(top: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"] | None) -> Estimate | None:
    if labels is None or not (labels >= 0).any():
        return None
    known = labels >= 0
    return _share(int((top == labels)[known].sum()), int(known.sum()))


def _share(count: int, total: int) -> Estimate:
    return binomial_estimate(count, total, LEVEL)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
