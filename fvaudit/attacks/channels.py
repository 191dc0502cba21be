"""What attacks take: whole channels of one layer, and pictures to show."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fvaudit.models.model import Model, require_model
from fvaudit.optvis.objectives import of_unit
from fvaudit.optvis.visualize import visualize
from fvaudit.records import AuditError, Unit, require_kind, require_unit_range


def channels_of(model: Model, units: Sequence[Unit]) -> tuple[str, tuple[int, ...]]:
    """The layer that units share, by its own name, and their channels.

    Raises:
        AuditError: for no unit, units of several layers or at positions, one given twice, or units
            that do not exist.
    """
    require_model(model)
    require_kind("units", units, Sequence, "a list of units, such as [Unit.parse('blocks.8:17')]")
    for unit in units:
        require_kind("a unit", unit, Unit, "a Unit, as Unit.parse('blocks.8:17') is")
    layers = {model.resolve(unit.layer) for unit in units}
    if len(layers) != 1 or any(unit.position for unit in units):
        raise AuditError(
            "An attack takes whole channels of one layer; got "
            f"{', '.join(map(str, units[:4])) or 'no unit'}. Attack layers one after the other."
        )
    for unit in units:
        model.require_unit(unit)
    channels = tuple(unit.channel for unit in units)
    if len(set(channels)) < len(channels):
        twice = next(c for c in channels if channels.count(c) > 1)
        raise AuditError(
            f"Channel {twice} of {units[0].layer} is to be attacked twice; name it once."
        )
    return layers.pop(), channels


def picture_of(
    model: Model, target: Unit | Float[np.ndarray, "h w c"], seed: int
) -> Float[np.ndarray, "h w c"]:
    """The picture that an attack shows: as given, or the visualization of a unit.

    Raises:
        AuditError: if the unit does not exist, or the picture has another size or range.
    """
    if isinstance(target, Unit):
        model.require_unit(target)
        return visualize(model, [of_unit(target)], seed=seed)[0].images[0]
    return require_picture(model, target)


def require_picture(model: Model, picture: np.ndarray) -> Float[np.ndarray, "h w c"]:
    """The picture in float32.

    Raises:
        AuditError: if it has another size than the model's input, or leaves [0, 1].
    """
    require_kind("target", picture, np.ndarray, "a Unit, or an array (h, w, c) in [0, 1]")
    model.require_size((1, *picture.shape))
    require_unit_range("The picture", picture)
    return picture.astype(np.float32)
