"""Rows that every variant must satisfy: name -> how to make it, and what it is by design."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fvaudit.optvis.couplings import Alignment, Diversity, Interpolation
from fvaudit.optvis.custom import Custom
from fvaudit.optvis.directions import Direction, NeuronDirection
from fvaudit.optvis.objectives import (
    Channel,
    ClassLogit,
    ClassProbability,
    Head,
    Layer,
    Neuron,
    Objective,
)
from fvaudit.optvis.penalties import L1, L2, Proximity, TotalVariation


class Row(NamedTuple):
    """One objective and what it is by design."""

    make: Callable[[], Objective]
    like: Callable[[], Objective]  # the same with other data: one structure, another text
    layers: tuple[str, ...]  # that it reads
    couples: bool = False  # whether an image's score depends on the other images of its set


SHAPES = {
    "input": (6, 5, 3),
    "a": (4, 5, 6),
    "t": (3, 6),
    "logits": (7,),
}  # without the images' axis


def doubles(n: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Random activations of n images in float64; images in [0, 1]."""
    rng = np.random.default_rng(seed)
    values = {layer: rng.normal(size=(n, *shape)) for layer, shape in SHAPES.items()}
    values["input"] = rng.random((n, *SHAPES["input"]))
    return values


def activations(n: int = 3, seed: int = 0) -> dict[str, jax.Array]:
    """`doubles` in float32, on the device."""
    return {layer: jnp.asarray(x, jnp.float32) for layer, x in doubles(n, seed).items()}


def brightness(seen):
    return seen["input"].mean((1, 2, 3))


V, W = np.random.default_rng(1).normal(size=(2, 6))
P, Q = np.random.default_rng(2).normal(size=(2, 4, 5, 6))

OBJECTIVES = {
    "channel": Row(lambda: Channel("a", 2), lambda: Channel("a", 4), ("a",)),
    "channel-dense": Row(lambda: Channel("logits", 2), lambda: Channel("logits", 3), ("logits",)),
    "neuron": Row(lambda: Neuron("a", 2), lambda: Neuron("a", 3), ("a",)),
    "neuron-at": Row(lambda: Neuron("a", 2, (0, 4)), lambda: Neuron("a", 2, (3, 0)), ("a",)),
    "channel-tokens": Row(lambda: Channel("t", 2), lambda: Channel("t", 4), ("t",)),
    "neuron-token": Row(lambda: Neuron("t", 2, (1,)), lambda: Neuron("t", 2, (0,)), ("t",)),
    "head": Row(lambda: Head("t", 1, 3), lambda: Head("t", 2, 3), ("t",)),
    "logit": Row(lambda: ClassLogit(4), lambda: ClassLogit(5), ("logits",)),
    "probability": Row(lambda: ClassProbability(4), lambda: ClassProbability(5), ("logits",)),
    "layer": Row(lambda: Layer("a"), lambda: Layer("a"), ("a",)),
    "direction": Row(lambda: Direction("a", V), lambda: Direction("a", W), ("a",)),
    "direction-power": Row(lambda: Direction("a", V, 4), lambda: Direction("a", W, 4), ("a",)),
    "direction-at": Row(lambda: NeuronDirection("a", V), lambda: NeuronDirection("a", W), ("a",)),
    "direction-at-power": Row(
        lambda: NeuronDirection("a", V, (3, 0), 2),
        lambda: NeuronDirection("a", W, (3, 0), 2),
        ("a",),
    ),
    "direction-token": Row(
        lambda: NeuronDirection("t", V, (2,), 2), lambda: NeuronDirection("t", W, (2,), 2), ("t",)
    ),
    "interpolation": Row(
        lambda: Interpolation(Channel("a", 1), ClassLogit(2)),
        lambda: Interpolation(Channel("a", 3), ClassLogit(2)),
        ("a", "logits"),
        couples=True,
    ),
    "alignment": Row(lambda: Alignment("a"), lambda: Alignment("a"), ("a",), couples=True),
    "diversity": Row(lambda: Diversity("a"), lambda: Diversity("a"), ("a",), couples=True),
    "custom": Row(
        lambda: Custom(brightness, layers=("input",)),
        lambda: Custom(brightness, layers=("input",)),
        ("input",),
    ),
    "l1": Row(lambda: L1(), lambda: L1(constant=0.25), ("input",)),
    "l2": Row(lambda: L2("a"), lambda: L2("a", 1.0), ("a",)),
    "variation": Row(lambda: TotalVariation(), lambda: TotalVariation(), ("input",)),
    "proximity": Row(lambda: Proximity("a", P), lambda: Proximity("a", Q), ("a",)),
    "sum": Row(
        lambda: 0.5 * Channel("a", 1) - 2 * L1(),
        lambda: 0.25 * Channel("a", 2) - 3 * L1(),
        ("a", "input"),
    ),
    "quotient": Row(lambda: Layer("a") / 3, lambda: Layer("a") / 7, ("a",)),
    "diverse": Row(
        lambda: Channel("a", 1) - 1e2 * Diversity("a"),
        lambda: Channel("a", 2) - 1e1 * Diversity("a"),
        ("a",),
        couples=True,
    ),
}
