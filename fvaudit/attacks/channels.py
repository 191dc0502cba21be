"""Attacks take whole channels of one layer."""

from collections.abc import Sequence

from fvaudit.models.model import Model
from fvaudit.records import AuditError, Unit


def channels_of(model: Model, units: Sequence[Unit]) -> tuple[str, tuple[int, ...]]:
    """The layer that units share, by its own name, and their channels.

    Raises:
        AuditError: for no unit, units of several layers or at positions, or that do not exist.
    """
    layers = {model.resolve(unit.layer) for unit in units}
    if len(layers) != 1 or any(unit.position for unit in units):
        raise AuditError(
            "An attack takes whole channels of one layer; got "
            f"{', '.join(map(str, units[:4])) or 'no unit'}. Attack layers one after the other."
        )
    for unit in units:
        model.require_unit(unit)
    return layers.pop(), tuple(unit.channel for unit in units)
