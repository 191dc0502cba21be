"""What to maximize: functions of "give me layer X", as pytrees.

An objective is a record, not a closure: the channel, the position and the weights of a sum are
data, so one compiled program serves every unit of a layer and a batch may hold different units
(the vocabulary is lucid's: Olah et al., "Feature Visualization", Distill 2017). Operators return
new records and never touch their operands; the text keeps the weights.

    0.8 * Channel("blocks.8", 17) - Channel("blocks.8", 3)
    text: "0.8*(blocks.8:17) + -1*(blocks.8:3)"

The n images of one call are one set, and the engine maximizes the sum of their scores: an
objective that couples them (`fvaudit.optvis.couplings`) is an objective like any other. The layer
"input" holds the images themselves.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fvaudit.optvis.pytrees import data, pytree, static
from fvaudit.records import AuditError, Unit


Activations = Mapping[str, Float[Array, "n ..."]]


class Objective:
    """Base of all objectives: the algebra. Call: activations -> one score per image, (n,)."""

    layer: str  # the layer of an objective that reads no single unit
    __array_ufunc__ = None  # NumPy leaves its scalars' products to us, and makes no object arrays

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        """The score of each image; `activations` must hold `layers`."""
        raise NotImplementedError

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units that the objective reads, so that a model can refuse those it lacks."""
        return ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that the objective reads, each once, in order of mention."""
        return tuple(dict.fromkeys(unit.layer for unit in self.units)) or (self.layer,)

    def __add__(self, other: Any) -> "Objective":
        return Sum(self, other) if isinstance(other, Objective) else NotImplemented

    def __radd__(self, other: Any) -> "Objective":
        return self if _is_zero(other) else NotImplemented  # where Python's sum() starts

    def __sub__(self, other: Any) -> "Objective":
        return Sum(self, -other) if isinstance(other, Objective) else NotImplemented

    def __mul__(self, weight: Any) -> "Objective":
        if not isinstance(weight, numbers.Real):  # a product of objectives has no meaning here
            return NotImplemented
        if not math.isfinite(weight):
            raise AuditError(f"The weight of an objective must be finite, got {weight}.")
        return Scaled(float(weight), self)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> "Objective":
        if not isinstance(divisor, numbers.Real):
            return NotImplemented
        if not math.isfinite(divisor) or divisor == 0:
            raise AuditError(f"An objective is divided by a finite number, not 0; got {divisor}.")
        return self * (1.0 / float(divisor))

    def __neg__(self) -> "Objective":
        return Scaled(-1.0, self)


@pytree
class Channel(Objective):
    """Mean of one channel over all positions; on a dense layer, that unit's value."""

    layer: str = static()
    index: Any = data()  # int, or a traced integer inside the engine

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        x = activations[self.layer]
        pooled = x.mean(tuple(range(1, x.ndim - 1)))
        return jnp.take(pooled, self.index, axis=-1)

    @property
    def units(self) -> tuple[Unit, ...]:
        return (Unit(self.layer, self.index),)

    def __str__(self) -> str:
        return f"{self.layer}:{self.index}"


@pytree
class Neuron(Objective):
    r"""One channel at one position.

    Without a position it is the centre, [h // 2, w // 2], as in lucid:

        5 positions: . . X . .      4 positions: . . X .
    """

    layer: str = static()
    index: Any = data()
    position: tuple[Any, Any] | None = data(default=None)  # (row, column)

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        x = activations[self.layer]
        if x.ndim != 4:
            raise AuditError(
                f"{self} is a neuron, but {self.layer} has no positions; use a Channel."
            )
        row, column = self.position or (x.shape[1] // 2, x.shape[2] // 2)
        at_row = jnp.take(x, row, axis=1)
        return jnp.take(jnp.take(at_row, column, axis=1), self.index, axis=-1)

    @property
    def units(self) -> tuple[Unit, ...]:
        return (Unit(self.layer, self.index, self.position),)

    def __str__(self) -> str:
        at = "centre" if self.position is None else f"{self.position[0]},{self.position[1]}"
        return f"{self.layer}:{self.index}@{at}"


@pytree
class ClassLogit(Objective):
    """The logit of one class, before the softmax."""

    index: Any = data()

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        return jnp.take(activations["logits"], self.index, axis=-1)

    @property
    def units(self) -> tuple[Unit, ...]:
        return (Unit("logits", self.index),)

    def __str__(self) -> str:
        return f"logits:{self.index}"


@pytree
class ClassProbability(Objective):
    """The probability of one class, after the softmax.

    It also rises when the other classes' logits fall, and saturates: `ClassLogit` usually gives
    better pictures (Olah et al. 2017).
    """

    index: Any = data()

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        return jnp.take(jax.nn.softmax(activations["logits"], axis=-1), self.index, axis=-1)

    @property
    def units(self) -> tuple[Unit, ...]:
        return (Unit("logits", self.index),)

    def __str__(self) -> str:
        return f"ClassProbability({self.index})"


@pytree
class Layer(Objective):
    """Mean of squares over all positions and channels: DeepDream (Mordvintsev et al. 2015)."""

    layer: str = static()

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        x = activations[self.layer]
        return (x**2).mean(tuple(range(1, x.ndim)))

    def __str__(self) -> str:
        return f"Layer({self.layer})"


class Pair(Objective):
    """Base of objectives made of two others: it reads what either of them reads."""

    left: Objective
    right: Objective

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.left.units + self.right.units

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.left.layers + self.right.layers))


@pytree
class Sum(Pair):
    """left + right."""

    left: Objective = data()
    right: Objective = data()

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        return self.left(activations) + self.right(activations)

    def __str__(self) -> str:
        return f"{_term(self.left)} + {_term(self.right)}"


@pytree
class Scaled(Objective):
    """weight * term."""

    weight: Any = data()
    term: Objective = data()

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        return self.weight * self.term(activations)

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.term.units

    @property
    def layers(self) -> tuple[str, ...]:
        return self.term.layers

    def __str__(self) -> str:
        return f"{self.weight!r}*({self.term})".replace(".0*", "*")


def _is_zero(other: Any) -> bool:
    return isinstance(other, numbers.Real) and other == 0


def _term(objective: Objective) -> str:
    return str(objective) if isinstance(objective, Sum | Scaled) else f"({objective})"


def of_unit(unit: Unit) -> Objective:
    """The objective that visualizes a unit: its neuron if it has a position, else its channel."""
    if unit.position is not None:
        return Neuron(unit.layer, unit.channel, unit.position)
    return Channel(unit.layer, unit.channel)


def scores(objectives: Objective, activations: Activations) -> Float[Array, " n"]:
    """Scores of a batch in which image i has its own objective.

    Args:
        objectives: one record whose leaves have a leading axis n (see `stack`).
        activations: of n images.
    """

    def one(objective: Objective, x: Activations) -> Float[Array, ""]:
        return objective({layer: a[None] for layer, a in x.items()})[0]

    return jax.vmap(one)(objectives, dict(activations))


def stack(objectives: list[Objective]) -> Objective:
    """One record with a leading axis from objectives of one structure."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(v) for v in leaves]), *objectives)
