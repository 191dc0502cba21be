"""`doctor(model, images)`: is this network ready to be audited on these photographs?

    for finding in fv.doctor(model, "photos/"):
        print(finding)

`fvaudit.models.preflight` measures; here photographs are loaded, again where another resize rule is
tried.
"""

import dataclasses
import os
from collections.abc import Callable

from fvaudit.data import load_images
from fvaudit.models.model import InputSpec, Model, require_model
from fvaudit.models.preflight import preflight
from fvaudit.records import Finding, ImageSet


def doctor(
    model: Model,
    images: ImageSet | str | os.PathLike[str],
    *,
    limit: int = 500,
    thorough: bool = True,
    seed: int = 0,
) -> tuple[Finding, ...]:
    """Examines a model on photographs; the gravest findings come first.

    Args:
        model: the network, with the input spec that it is to be audited with.
        images: what `load_images` takes, so that photographs can be loaded under other resize
            rules too; or an image set, which is used as it is.
        limit: at most this many photographs, spread over classes.
        thorough: whether rarer mistakes, resize rules and sizes are tried too.
        seed: of the draw of photographs.

    Raises:
        AuditError: if images cannot be loaded or do not fit the model.
    """
    require_model(model)
    if isinstance(images, ImageSet):
        return preflight(model, images, limit=limit, thorough=thorough)
    load = loader(model, lambda chosen: load_images(images, chosen, limit=limit, seed=seed))
    return preflight(model, load(model.input), reload=load, limit=limit, thorough=thorough)


def loader(model: Model, load: Callable[[Model], ImageSet]) -> Callable[[InputSpec], ImageSet]:
    """`load`, under another input spec of the same model."""
    return lambda spec: load(dataclasses.replace(model, input=spec))
