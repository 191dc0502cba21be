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
    """Mean of one channel over all positions or tokens; on a dense layer, that unit's value."""

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
    r"""One channel at one position, or of one token.

    Without a position it is the centre, [h // 2, w // 2], as in lucid; tokens have none:

        5 positions: . . X . .      4 positions: . . X .

    Raises:
        AuditError: when called, if the layer has no such positions.
    """

    layer: str = static()
    index: Any = data()
    position: tuple[Any, ...] | None = data(default=None)  # (row, column), or (token,)

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        x = activations[self.layer]
        for place in position_in(self, x):
            x = jnp.take(x, place, axis=1)
        return jnp.take(x, self.index, axis=-1)

    @property
    def units(self) -> tuple[Unit, ...]:
        return (Unit(self.layer, self.index, self.position),)

    def __str__(self) -> str:
        return f"{self.layer}:{self.index}@{position_text(self.position)}"


@pytree
class Head(Objective):
    """Mean of squares over all tokens and the channels of one attention head.

    The outputs of a layer's heads lie side by side: of c channels, head i has those from
    i c / heads on. What a head says is a vector, whose basis means nothing by itself; its length
    does not depend on how that basis is turned. For one direction of it see `Direction`.

    Args:
        layer: of heads, such as "blocks.3.heads".
        index: of the head, from 0; data, so one program serves all heads of a layer.
        heads: that the layer has.

    Raises:
        AuditError: for a head that does not exist; when called, if the layer's channels cannot be
            shared out equally.
    """

    layer: str = static()
    index: Any = data()
    heads: int = static()

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.heads:
            raise AuditError(
                f"Head {self.index} of {self.layer} does not exist: it has 0 to {self.heads - 1}."
            )

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        x = activations[self.layer]
        if x.shape[-1] % self.heads:
            raise AuditError(
                f"{self} does not exist: {self.layer} has {x.shape[-1]} channels, which are not "
                f"{self.heads} equal heads."
            )
        own = jnp.take(x.reshape(*x.shape[:-1], self.heads, -1), self.index, axis=-2)
        return (own**2).mean(tuple(range(1, own.ndim)))

    def __str__(self) -> str:
        return f"Head({self.layer}, {self.index} of {self.heads})"


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


def position_in(neuron: Any, x: Float[Array, "n *positions c"]) -> tuple[Any, ...]:
    """Where a neuron lies in its layer's activation x: its position, or the centre.

    Raises:
        AuditError: if x has other positions, or tokens, which have no centre.
    """
    extent = x.shape[1:-1]
    if neuron.position is None and len(extent) == 2:
        return extent[0] // 2, extent[1] // 2
    if neuron.position is None or len(neuron.position) != len(extent):
        has = {
            0: "no positions; use a Channel or a Direction",
            1: f"{x.shape[1]} tokens; name one of them",
        }
        raise AuditError(
            f"{neuron} is a neuron, but {neuron.layer} has "
            f"{has.get(len(extent), 'rows and columns; name both')}."
        )
    return neuron.position


def position_text(position: tuple[Any, ...] | None) -> str:
    """As a unit writes it: "row,column", "token", or "centre"."""
    return "centre" if position is None else ",".join(map(str, position))


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
