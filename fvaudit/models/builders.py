"""Manipulations by name, so that a manipulated model can be built again from a file.

A saved model holds no code. It says which network it starts from and which builders were applied,
with their settings and parameters; whoever writes a manipulation registers its builder:

    @builders.register("silent_branches")
    def rebuild(model, params, settings):
        return model.edited(settings["layer"], add_branch, params)

Other packages declare theirs as entry points of the group `fvaudit.builders`: only what the user
installed is ever imported, never a module that a file names.
"""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

from fvaudit.models.model import Model
from fvaudit.records import AuditError


GROUP = "fvaudit.builders"
Builder = Callable[[Model, Any, Mapping[str, Any]], Model]  # (base, params, settings) -> model
_BUILDERS: dict[str, Builder] = {}


@dataclasses.dataclass(frozen=True)
class Edit:
    """One manipulation of a model, enough to make it again."""

    builder: str  # a registered name
    params: Any = None  # nested mappings of arrays, as the builder takes them
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # plain JSON values


def register(name: str) -> Callable[[Builder], Builder]:
    """Registers a builder under a name.

    Raises:
        AuditError: if another builder has the name.
    """

    def registered(builder: Builder) -> Builder:
        if _BUILDERS.setdefault(name, builder) is not builder:
            raise AuditError(f"There are two builders {name!r}; every one needs its own name.")
        return builder

    return registered


def apply(model: Model, edit: Edit) -> Model:
    """The model with one manipulation.

    Raises:
        AuditError: if its builder is not known.
    """
    return _builder(edit.builder)(model, edit.params, edit.settings)


def _builder(name: str) -> Builder:
    if name not in _BUILDERS:
        for entry in importlib.metadata.entry_points(group=GROUP, name=name):
            _BUILDERS[name] = entry.load()
    if name not in _BUILDERS:
        raise AuditError(
            f"The model was made with {name!r}, which is not known here "
            f"({', '.join(sorted(_BUILDERS)) or 'no manipulation is'}). Import or install the "
            "package that registers it."
        )
    return _BUILDERS[name]
