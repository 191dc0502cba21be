"""Directions in the space of channels: the objectives of caricatures and activation atlases.

    dot = <a, v>,   cos = dot / (|a| |v|),   score = dot * max(0.1, cos)^p

for the activation a at a position. The dot product alone is maximized best by making a long, not
by pointing it along v; the power p of the cosine mends that, and the floor of 0.1 keeps a gradient
where a and v are at right angles (Olah et al. 2018, "The Building Blocks of Interpretability";
Carter et al. 2019, "Activation Atlas", which uses p = 4). Both lengths are divided out, so that
scaling v scales the score and nothing else.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fvaudit.optvis.objectives import Activations, Objective, position_in, position_text
from fvaudit.optvis.pytrees import constant, data, digest, pytree, static
from fvaudit.records import AuditError


_FLOOR = 0.1  # of the cosine; lucid


@pytree
class Direction(Objective):
    """Mean over all positions or tokens of <a, v> max(0.1, cos(a, v))^cosine_power.

    Args:
        layer: any, of c channels.
        vector: (c,) numbers, as float32; data, so one program serves all directions of a layer.
        cosine_power: p >= 0; 0 is the dot product alone.

    Raises:
        AuditError: for a vector that is not one row of finite numbers, or has no length; for a
            power below 0; when called, if the layer has another number of channels.
    """

    layer: str = static()
    vector: Any = data()
    cosine_power: float | int = static(default=0.0)
    channels: int = static(default=0, init=False)  # length of the vector

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        along = _along(self, activations[self.layer])
        return along.mean(tuple(range(1, along.ndim)))

    def __str__(self) -> str:
        return f"Direction({_arguments(self)})"


@pytree
class NeuronDirection(Objective):
    """`Direction` at one position, or of one token; without one at the centre, as `Neuron`.

    Raises:
        AuditError: as `Direction`; when called, if the layer has no such position.
    """

    layer: str = static()
    vector: Any = data()
    position: tuple[int, ...] | None = static(default=None)
    cosine_power: float | int = static(default=0.0)
    channels: int = static(default=0, init=False)

    def __post_init__(self) -> None:
        _check(self)
        if self.position is not None:
            object.__setattr__(self, "position", tuple(self.position))

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        x = activations[self.layer]
        position = position_in(self, x)
        if not all(0 <= p < size for p, size in zip(position, x.shape[1:-1], strict=True)):
            raise AuditError(
                f"A direction's position {position_text(position)} does not exist: {self.layer} "
                f"has {' x '.join(map(str, x.shape[1:-1]))} positions."
            )
        return _along(self, x[:, *position])

    def __str__(self) -> str:
        return f"NeuronDirection({_arguments(self)} @{position_text(self.position)})"


def unit_length(x: Float[Array, "..."], axes: tuple[int, ...]) -> Float[Array, "..."]:
    """x over its Euclidean length along `axes`; zero stays zero, and its gradient finite.

    x is first divided by its largest entry, as a constant: the quotient does not depend on it, and
    no square can underflow or overflow.
    """
    largest = jax.lax.stop_gradient(jnp.abs(x).max(axes, keepdims=True))
    x = x / jnp.where(largest > jnp.finfo(x.dtype).tiny, largest, 1)
    squares = (x**2).sum(axes, keepdims=True)
    return x / jnp.sqrt(jnp.where(squares > 0, squares, 1))


def _along(
    direction: Direction | NeuronDirection, x: Float[Array, "n *positions c"]
) -> Float[Array, " n *positions"]:
    if x.shape[-1] != direction.channels:
        raise AuditError(
            f"A direction of {direction.layer} has {direction.channels} numbers, but the layer has "
            f"{x.shape[-1]} channels."
        )
    dot = x @ direction.vector
    if direction.cosine_power == 0:
        return dot
    cosine = unit_length(x, (-1,)) @ unit_length(jnp.asarray(direction.vector), (-1,))
    return dot * jnp.maximum(_FLOOR, cosine) ** direction.cosine_power


def _check(direction: Direction | NeuronDirection) -> None:
    vector = constant("vector", direction.vector)
    if vector.ndim != 1 or not np.any(vector):
        raise AuditError(
            "vector must be one number per channel, shape (c,), and not all 0; got shape "
            f"{vector.shape}{'' if np.any(vector) else ', all 0'}."
        )
    power = float(direction.cosine_power)
    if not 0 <= power < float("inf"):
        raise AuditError(f"cosine_power must be 0 or more and finite, got {power}.")
    object.__setattr__(direction, "vector", vector)
    object.__setattr__(direction, "cosine_power", power)
    object.__setattr__(direction, "channels", len(vector))


def _arguments(direction: Direction | NeuronDirection) -> str:
    vector = f"{direction.channels} numbers sha256:{digest(direction.vector)}"
    return f"{direction.layer}, {vector}, cosine_power={direction.cosine_power!r}"
