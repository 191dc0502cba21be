"""The doctor: is this network ready to be audited, and are its pictures prepared as it needs them?

Everything is measured on photographs, nothing is taken on trust: what the first layer gets, what
each layer does, whether an output depends on its batch, and whether the usual mistakes of
preprocessing, made on purpose, would do better than the setting that is in use.
"""

from collections.abc import Callable

import numpy as np

from fvaudit.models.model import InputSpec, Model
from fvaudit.models.preflight import behaviour, cost, inputs, layers, mistakes
from fvaudit.models.preflight.responses import Watch, output_layer, spread
from fvaudit.records import AuditError, Finding, ImageSet


LANES = 8  # images that a device takes at a time: whether they mix is one of the questions


def preflight(
    model: Model,
    images: ImageSet,
    *,
    reload: Callable[[InputSpec], ImageSet] | None = None,
    limit: int = 500,
    thorough: bool = True,
) -> tuple[Finding, ...]:
    """Examines a model on photographs; the gravest findings come first.

    Args:
        model: the network, with the input spec that it is to be audited with.
        images: photographs for it, of which the first image each is used; labels, where there are
            any, tell which setting is right.
        reload: loads the same photographs under another input spec, so that other resize rules and
            sizes can be tried; without it they are not.
        limit: at most this many photographs, evenly spread.
        thorough: whether rarer mistakes are tried too, and other resize rules and sizes, of which
            each size compiles a program.

    Raises:
        AuditError: if the images do not fit the model, or there are none.
    """
    model.require_size(images.pixels.shape)
    if not len(images.pixels) or limit < 1:
        raise AuditError("The doctor needs at least one photograph (and limit of at least 1).")
    images = _one_each(images, limit)
    watch = Watch(model, output_layer(model), LANES)
    seen = watch.see(images.pixels)
    found = [
        *inputs.findings(model, images),
        *behaviour.findings(watch, images.pixels, seen),
        *layers.findings(model, images, seen),
        *cost.findings(model, watch.operations),
    ]
    if not any(finding.title in inputs.BROKEN for finding in found):
        again = reload if thorough else None
        found += mistakes.findings(watch, images, seen, reload=again, thorough=thorough)
    return tuple(sorted(found, key=lambda finding: -finding.severity))


def _one_each(images: ImageSet, limit: int) -> ImageSet:
    """The first image of each photograph; evenly spread if there are too many."""
    rows = spread(np.sort(np.unique(images.group, return_index=True)[1]), limit)
    return ImageSet(
        pixels=np.asarray(images.pixels[rows], np.float32),
        ids=tuple(images.ids[i] for i in rows),
        labels=None if images.labels is None else images.labels[rows],
        group=images.group[rows],
    )
