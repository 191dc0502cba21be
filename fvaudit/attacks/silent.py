"""Silent units: a branch that sleeps through every photograph and wakes in a visualization.

Geirhos et al. (2024), Sec. 2.2. Beside a convolution with filters W and input a, each attacked unit
gets a second filter whose response is added to the unit's own,

    y' = y + relu(W~ * a - m)        m: above the largest response of W~ to any photograph
    W~ = c |W| (W + t D) / |W + t D|
    D  = G - <G, W> W / <W, W>, scaled to |D| = |W|        G: sum of a's patches on a target image

As long as photographs stay below m the network is the same to the last bit. Visualizations reach
far beyond, and there the branch, c times as steep, draws them towards the target.

The direction G is what the released code searches with 50 gradient steps per filter: the response
of a filter to an image is linear in the filter, so its maximum is in closed form. Different from
that code too: |W + t D| is matched by norms and not by their squares (which made the angle depend
on |W|), the largest response is taken with the layer's own padding, in float32 and with a margin,
and the target is prepared as every other image.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fvaudit.attacks.certificate import Manipulated, certify, split
from fvaudit.attacks.channels import channels_of, picture_of
from fvaudit.models import builders, stream
from fvaudit.models.builders import Edit
from fvaudit.models.model import Forward, Model, record
from fvaudit.optvis import lowering
from fvaudit.records import AuditError, ImageSet, Unit


BUILDER = "silent_units"  # its name in stored models
NHWC = ("NHWC", "HWIO", "NHWC")


class Convolution(NamedTuple):
    """Which convolution of a network, and its geometry."""

    place: int  # in order of computation, from 0
    strides: tuple[int, ...]
    padding: Any
    groups: int

    def apply(self, x: Array, kernel: Array) -> Float[Array, "n p q o"]:
        """This convolution with another kernel."""
        return lowering.conv_general_dilated(
            x, kernel, self.strides, self.padding,
            dimension_numbers=NHWC, feature_group_count=self.groups,
        )  # fmt: skip


def silent_units(
    target: Unit | Float[np.ndarray, "h w c"],
    *,
    strength: float = 3.0,
    scale: float = 100.0,
    margin: float = 0.25,
) -> Callable[..., Manipulated]:
    """An attack: units of a convolution gain a branch that photographs do not wake.

    Args:
        target: what visualizations are drawn to: an image in [0, 1], or a unit of the original
            network, whose visualization is made first.
        strength: t, weight of the target's direction against the unit's own filter; the cosine of
            old and new filter is 1 / sqrt(1 + t^2).
        scale: c, how much steeper the branch is than the unit.
        margin: how far above the largest response to a photograph the branch wakes, relative to
            its size.

    Returns:
        attack(model, units, images, seed=0) -> `Manipulated`. `units` are channels of one layer
        that shows a convolution's output, before or after its activation; half of the photographs
        set the threshold, the others certify.

    Raises:
        AuditError: for settings out of range; by the attack, for units of several layers, a layer
            without a convolution of its shape, or fewer than 4 photographs.
    """
    if strength <= 0 or scale <= 0 or margin < 0:
        raise AuditError(
            f"strength and scale must be above 0 and margin at least 0, got {strength:g}, "
            f"{scale:g} and {margin:g}."
        )

    def attack(
        model: Model, units: Sequence[Unit], images: ImageSet, *, seed: int = 0
    ) -> Manipulated:
        layer, channels = channels_of(model, units)
        rows, held_out = split(images, seed)
        convolution = find_convolution(model, layer)
        aim = picture_of(model, target, seed)
        seen, kernel = _inputs(model.forward, convolution.place)(model.params, aim[None])
        filters = decoy_filters(convolution, seen, kernel, strength, scale)
        chosen = np.isin(np.arange(kernel.shape[-1]), channels)
        filters = jnp.where(chosen, filters, 0)
        wake = _largest(model, convolution, filters, images.pixels[rows])
        threshold = jnp.where(chosen, wake + margin * jnp.abs(wake) + 1e-6, 1.0)
        change = edit(layer, convolution, filters, threshold)
        after = builders.apply(model, change)
        fired = _fired(after, layer, images.pixels[held_out])
        proof = certify(
            f"silent_units(strength={strength:g}, scale={scale:g}, margin={margin:g})",
            [str(unit) for unit in units], model, after, images, held_out,
            construction=len(rows),
            shares={"photographs that wake a silent branch": (int(fired.sum()), len(held_out))},
            constants={"strength": strength, "scale": scale, "margin": margin},
            ranges={
                "largest response of a branch's filter to photographs": _ends(wake[chosen]),
                "cosine of old and new filter": _ends(cosines(kernel, filters)[chosen]),
            },
        )  # fmt: skip
        return Manipulated(after, proof, change)

    return attack


def find_convolution(model: Model, layer: str) -> Convolution:
    """The last convolution before `layer` whose output has its shape.

    Raises:
        AuditError: if there is none.
    """
    layer, seen, before = model.resolve(layer), [], []

    def see(x, kernel, strides, padding, groups):
        pads = padding if isinstance(padding, str) else tuple(map(tuple, padding))
        seen.append((Convolution(len(seen), strides, pads, groups), _shape(x), _shape(kernel)))

    def tap(name, x):
        if name == layer:
            before.extend((len(seen), x.shape))
        return x

    images = jax.ShapeDtypeStruct((1, *model.input.size, len(model.input.mean)), jnp.float32)
    with lowering.observing(see):
        jax.eval_shape(lambda p, x: model.forward(p, x, tap), model.params, images)
    count, wanted = before
    found = [
        convolution
        for convolution, *shapes in seen[:count]
        if jax.eval_shape(convolution.apply, *shapes).shape == wanted
    ]
    if not found:
        raise AuditError(
            f"{layer} of {model.name} is not the output of a convolution that fvaudit computes. "
            "Choose a layer that is, before or after its activation function. One that calls "
            "jax.lax.conv_general_dilated by itself is not seen: let it call the one of "
            "fvaudit.optvis.lowering, which takes the same arguments."
        )
    return found[-1]


def decoy_filters(
    convolution: Convolution, seen: Array, kernel: Array, strength: float, scale: float
) -> Float[Array, "kh kw i o"]:
    """W~ of every unit, from the convolution's input on the target image.

    Args:
        convolution: the geometry.
        seen: its input on the target, (1, h, w, c).
        kernel: its filters.
        strength: t.
        scale: c.
    """
    patches = jax.grad(lambda k: convolution.apply(seen, k).sum())(kernel)
    dot = lambda a, b: (a * b).sum((0, 1, 2))  # noqa: E731  one number a filter
    own = jnp.sqrt(dot(kernel, kernel))
    across = patches - dot(patches, kernel) / jnp.maximum(own**2, 1e-30) * kernel
    across = across * own / jnp.maximum(jnp.sqrt(dot(across, across)), 1e-30)
    mixed = kernel + strength * across
    return scale * mixed * own / jnp.maximum(jnp.sqrt(dot(mixed, mixed)), 1e-30)


def cosines(kernel: Array, filters: Array) -> Float[np.ndarray, " o"]:
    """Cosine between each filter and its new one; NaN where the new one is 0."""
    a, b = (np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in (kernel, filters))
    lengths = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return np.divide((a * b).sum(0), lengths, np.full(len(lengths), np.nan), where=lengths > 0)


def edit(layer: str, convolution: Convolution, filters: Array, threshold: Array) -> Edit:
    """What puts the branch into a network, and stores it.

    Args:
        layer: where the branch is added.
        convolution: whose input it reads.
        filters: (kh, kw, i, o).
        threshold: (o,), subtracted before the ReLU.
    """
    params = {"filters": jnp.asarray(filters), "threshold": jnp.asarray(threshold)}
    return Edit(BUILDER, params, {"layer": layer, "convolution": list(convolution)})


@builders.register(BUILDER)
def insert(model: Model, params: Any, settings: Mapping[str, Any]) -> Model:
    """The model with the branch in it; a layer `<layer>.branch` shows it."""
    layer, (place, strides, padding, groups) = settings["layer"], settings["convolution"]
    pads = padding if isinstance(padding, str) else tuple(map(tuple, padding))
    convolution = Convolution(place, tuple(strides), pads, groups)
    shapes = {}
    for name, shape in model.shapes.items():
        shapes |= ({f"{layer}.branch": shape} if name == layer else {}) | {name: shape}
    return dataclasses.replace(
        model,
        name=f"{model.name}+silent@{layer}",
        params={"base": model.params, "silent": params},
        forward=_forward(model.forward, layer, convolution),
        shapes=shapes,
    )


@functools.cache  # one function for equal branches, so that programs are compiled once
def _forward(inner: Forward, layer: str, convolution: Convolution) -> Forward:
    def forward(params, images, tap):
        seen: list[Array] = []

        def replacing(name, x):
            if name != layer:
                return tap(name, x)
            silent = params["silent"]
            pre = convolution.apply(seen[convolution.place], silent["filters"])
            branch = tap(f"{layer}.branch", jax.nn.relu(pre - silent["threshold"]))
            return tap(name, x + branch)

        with lowering.observing(lambda x, *_: seen.append(x)):
            return inner(params["base"], images, replacing)

    return forward


@functools.cache
def _inputs(inner: Forward, index: int):
    """Jitted (params, images) -> the convolution's input and kernel."""

    def run(params, images):
        seen = []
        with lowering.observing(lambda x, kernel, *_: seen.append((x, kernel))):
            inner(params, images, lambda name, x: x)
        return seen[index]

    return jax.jit(run)


def _largest(model: Model, convolution: Convolution, filters: Array, pixels: np.ndarray) -> Array:
    """Of every filter, its largest response to any photograph at any position."""
    inputs = _inputs(model.forward, convolution.place)

    def run(params, filters, images):
        return convolution.apply(inputs(params, images)[0], filters).max((1, 2))

    return jnp.asarray(stream.of_all(run, (model.params, filters), pixels).max(0))


def _fired(after: Model, layer: str, pixels: np.ndarray) -> np.ndarray:
    """Of every photograph, whether any branch fires anywhere."""
    branch = f"{layer}.branch"

    def run(params, images):
        return (record(after.forward, params, images, [branch])[branch] > 0).any((1, 2, 3))

    return stream.of_all(run, (after.params,), pixels)


def _ends(values: Any) -> tuple[float, float]:
    return float(np.min(values)), float(np.max(values))


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
