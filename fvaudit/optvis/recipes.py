"""Recipes by name: parameterization, transforms, optimizer and steps that go together.

fourier      fvaudit's default: lucid's parameterization and transforms, no momentum, larger steps
             that shrink, and fewer of them (results/convergence)
lucid        lucid's own defaults: Adam at 0.05 for 512 steps (Olah et al. 2017)
pixels       lucid's, without the Fourier basis
maco         phases only, random crops with noise (Fel et al. 2023)
cppn         a network of coordinates (Mordvintsev et al. 2018), without transforms: it has no grid
             to hide in, and from its grey start moving pictures led some seeds nowhere
yosinski1-4  gradient ascent on raw pixels with the published regularizers (Yosinski et al. 2015)
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from fvaudit.models.model import InputSpec
from fvaudit.optvis import regularizers
from fvaudit.optvis.cppn import cppn
from fvaudit.optvis.maco import maco
from fvaudit.optvis.optimizers import adam, nadam
from fvaudit.optvis.params import fourier, pixels
from fvaudit.optvis.render import Recipe
from fvaudit.optvis.transforms import maco_crops, none, standard
from fvaudit.records import AuditError


YOSINSKI = 4  # published settings, numbered from 1


def recipe(name: str, spec: InputSpec, **changes: Any) -> Recipe:
    """A named recipe for networks of this input.

    Args:
        name: one of `NAMES`.
        spec: the network's; Yosinski's regularizers act in the space of mean-subtracted pixels.
        changes: fields of `Recipe` to set otherwise; None leaves a field as the recipe has it.

    Raises:
        AuditError: for another name, or fields out of range.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1) or NAMES
        raise AuditError(
            f"There is no recipe {name!r}. Known: {', '.join(NAMES)}; did you mean {near[0]!r}?"
        )
    given = {field: value for field, value in changes.items() if value is not None}
    return dataclasses.replace(_make(name, spec), **given)


def _make(name: str, spec: InputSpec) -> Recipe:
    if name.startswith("yosinski"):
        published = regularizers.yosinski(int(name[-1]), mean=tuple(255 * m for m in spec.mean))
        return Recipe(
            published.parameterization,
            none(),
            published.steps,
            published.optimizer,
            published.regularizer,
            redirected_steps=0,
        )
    return _RECIPES[name]()


_RECIPES: dict[str, Callable[[], Recipe]] = {
    "fourier": lambda: Recipe(fourier(), standard()),
    "lucid": lambda: Recipe(fourier(), standard(), 512, adam(0.05)),
    "pixels": lambda: Recipe(pixels(), standard(), 512, adam(0.05)),
    "maco": lambda: Recipe(maco(), maco_crops(), 512, nadam(0.1)),
    "cppn": lambda: Recipe(cppn(), none(), 512, adam(0.005)),
}

NAMES = (*_RECIPES, *(f"yosinski{number}" for number in range(1, YOSINSKI + 1)))
