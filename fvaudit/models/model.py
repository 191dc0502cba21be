"""One way into a network: `tap`.

A forward pass calls `x = tap("blocks.8", x)` at every named point. A recording tap collects, an
editing tap replaces; under `jit`, everything past the last point needed is never computed. An edit
of a model is again a `Model`, so whatever audits a clean network audits a manipulated one.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import numbers
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fvaudit.models.classes import Classes, ImageClass, as_classes
from fvaudit.models.trunk import trunk as find_trunk
from fvaudit.optvis.lowering import stock_convolutions
from fvaudit.records import LAYER_NAME, AuditError, Unit, require_kind


Tap = Callable[[str, Array], Array]
Forward = Callable[[Any, Float[Array, "n h w c"], Tap], Array]  # (params, images in [0, 1], tap)
# (n, h, w, c) for spatial layers, (n, t, c) for layers of tokens, else (n, c)
Activations = dict[str, Float[Array, "n ..."]]

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "hamming", "box")  # Pillow's
ORDERS = ("RGB", "BGR", "gray")
FITS = ("crop", "pad", "squash")
MAX_SIDE = 4096  # of input and of resized photographs, in pixels: far above any network's


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """How pictures become the network's input. Nothing outside `Model` repeats any of it.

    Raises:
        AuditError: for sizes outside 1..MAX_SIDE, a std of 0, or names that are not known.
    """

    size: tuple[int, int]  # (rows, columns) that the network takes
    mean: tuple[float, ...]  # subtracted from pixels in [0, 1], one number a channel (RGB)
    std: tuple[float, ...]  # and then divided by
    resize: int  # side of a photograph, before its centre is cut out, in pixels
    interpolation: str = "bicubic"  # of that resize, one of INTERPOLATIONS
    order: str = "RGB"  # of the colours that the first layer sees; mean and std are given as RGB;
    # "gray" for a network that takes one number a pixel
    fit: str = "crop"  # what gets the length `resize`: "crop" the short side, "pad" the long one
    # (what is missing shows the mean colour), "squash" both (for a square `size`)

    def __post_init__(self):
        if not 1 <= min(*self.size, self.resize) <= max(*self.size, self.resize) <= MAX_SIDE:
            raise AuditError(
                f"size {self.size} and resize {self.resize} must be 1 to {MAX_SIDE} pixels."
            )
        if len(self.mean) != len(self.std) or not self.mean or not all(self.std):
            raise AuditError(
                f"mean and std need one number a channel, no std 0; got {self.mean}, {self.std}."
            )
        for key, known in (("interpolation", INTERPOLATIONS), ("order", ORDERS), ("fit", FITS)):
            if getattr(self, key) not in known:
                raise AuditError(f"{key} is {getattr(self, key)!r}; known: {', '.join(known)}.")
        if self.order == "gray" and len(self.mean) != 1:
            raise AuditError(f"order 'gray' needs one mean and one std; got {self.mean}.")

    def normalise(self, images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Pixels in [0, 1], RGB, to what the first layer expects."""
        mean, std = (np.asarray(v, np.float32) for v in (self.mean, self.std))
        normalised = (images - mean) / std
        return normalised[..., ::-1] if self.order == "BGR" else normalised


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
    """A network with named layers, its parameters and its input spec."""

    name: str
    params: Any  # pytree of arrays
    forward: Forward  # pure function; takes images in [0, 1] and normalises them itself
    input: InputSpec
    shapes: dict[str, tuple[int, ...]]  # every tapped layer, shallow to deep, without batch axis;
    # then the aliases, which are tapped too, right after the layer that they name
    trunk: tuple[str, ...]  # layers that every path from input to output crosses, in order
    classes: tuple[ImageClass, ...] = ()  # what the logits mean; empty if not known
    source: str = ""  # where the weights come from, with their licence
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # other name -> layer
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)  # layer that an import
    # could not compute -> why

    def __repr__(self) -> str:
        size = " x ".join(map(str, (*self.input.size, len(self.input.mean))))
        return f"Model({self.name!r}, {size}, {len(self.layers)} layers, {self.source!r})"

    @property
    def layers(self) -> tuple[str, ...]:
        """All tapped layers, shallow to deep, each once."""
        return tuple(name for name in self.shapes if name not in self.aliases)

    def resolve(self, layer: str) -> str:
        """The layer's own name, whether that or an alias is given."""
        return self.aliases.get(layer, layer)

    def activations(
        self, images: Float[Array | np.ndarray, "n h w c"], layers: Collection[str]
    ) -> Activations:
        """Activations of `layers` for images in [0, 1], by a compiled program.

        Pure, so usable under `jit` and `grad` as well. Every set of layers is a program of its
        own: what is wanted of the same images is best asked for in one call.

        Raises:
            AuditError: if a layer does not exist, or the images have another size or are 0..255.
        """
        self.require_layers(layers)
        self.require_size(images.shape)
        _require_floats(images)
        run = _recording(self.forward, tuple(sorted(set(layers))))
        found = run(self.params, jnp.asarray(images))
        return {layer: found[layer] for layer in layers}

    def require_size(self, shape: tuple[int, ...]) -> None:
        """Raises `AuditError` if images of this shape (n, h, w, c) do not fit the network."""
        wanted = (*self.input.size, len(self.input.mean))
        if tuple(shape[1:]) != wanted:
            raise AuditError(
                f"{self.name} takes images of shape (n, {', '.join(map(str, wanted))}), got "
                f"{tuple(shape)}. Load them with load_images(..., model), which resizes and crops."
            )

    def edited(
        self, layer: str, edit: Callable[[Any, Array], Array], params: Any = None
    ) -> "Model":
        """The model whose activation x at `layer` is replaced by `edit(params, x)`, same shape.

        Raises:
            AuditError: if the layer does not exist.
        """
        self.require_layer(layer)
        inner = self.forward

        def forward(both, images, tap):
            def replacing(name, x):
                return tap(name, edit(both["edit"], x) if name == layer else x)

            return inner(both["base"], images, replacing)

        both = {"base": self.params, "edit": params}
        name = f"{self.name}+{getattr(edit, '__name__', 'edit')}@{layer}"
        return dataclasses.replace(self, name=name, params=both, forward=forward)

    def require_layers(self, layers: Collection[str]) -> None:
        """Raises `AuditError` if one is missing, or one name is given: its letters are none."""
        if isinstance(layers, str) or not isinstance(layers, Collection):
            raise AuditError(f"layers must be a list of names, got {layers!r}.")
        for layer in layers:
            self.require_layer(layer)

    def require_layer(self, layer: str) -> None:
        """Raises `AuditError` naming why `layer` is missing, or the nearest that exist."""
        if layer in self.missing:
            raise AuditError(f"{self.name} has no layer {layer!r}: {self.missing[layer]}.")
        if layer not in self.shapes:
            near = difflib.get_close_matches(layer, self.shapes, n=3) or self.layers[:3]
            raise AuditError(
                f"{self.name} has no layer {layer!r}. Nearest: {', '.join(near)}. "
                f"`fvaudit list --model {self.name}` prints all {len(self.layers)}."
            )

    def require_once(self, layers: Collection[str]) -> None:
        """Raises `AuditError` if a layer is named twice, under one of its names or under two."""
        known: dict[str, str] = {}
        for layer in layers:
            own = self.resolve(layer)
            if own in known:
                other = known[own]
                twice = "" if layer == other else f" is another name of {other}"
                raise AuditError(
                    f"units names a layer twice: {layer}{twice}. Merge the two entries."
                )
            known[own] = layer

    def require_unit(self, unit: Unit) -> None:
        """Raises `AuditError` if `unit` lies outside its layer."""
        self.require_layer(unit.layer)
        shape = self.shapes[unit.layer]
        if not isinstance(unit.channel, numbers.Integral) or not 0 <= unit.channel < shape[-1]:
            raise AuditError(
                f"{unit} does not exist: {unit.layer} of {self.name} has channels 0 to "
                f"{shape[-1] - 1}."
            )
        if unit.position is not None and not _inside(unit.position, shape[:-1]):
            forms = {1: "tokens, layer:channel@token", 2: "positions, layer:channel@row,column"}
            extent = f"{' x '.join(map(str, shape[:-1]))} " if len(shape) > 1 else "no "
            raise AuditError(
                f"{unit} does not exist: {unit.layer} of {self.name} has {extent}"
                f"{forms.get(len(shape) - 1, 'positions')}."
            )

    def path_to(self, layer: str) -> tuple[str, ...]:
        """The trunk up to and including `layer`: where its processing path can be compared."""
        layer = self.resolve(layer)
        order = {name: i for i, name in enumerate(self.layers)}
        before = tuple(name for name in self.trunk if order[name] < order[layer])
        return (*before, layer)

    def label(self, unit: Unit) -> str:
        """What a class logit stands for, or an empty text."""
        logit = self.resolve(unit.layer) == self.resolve("logits")
        known = logit and unit.channel < len(self.classes)
        return self.classes[unit.channel].name if known else ""

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over name, input spec, layers and every parameter's bytes."""
        digest = hashlib.sha256(repr((self.name, self.input, self.shapes)).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def require_model(given: Any) -> None:
    """Refuses a network that was not made a `Model` yet, or its name."""
    made = "a Model, as load_model, from_torch, from_flax and from_function make them"
    require_kind("model", given, Model, made)


def build(
    forward: Forward,
    params: Any,
    spec: InputSpec,
    *,
    name: str,
    trunk: tuple[str, ...] | None = None,
    aliases: Mapping[str, str] | None = None,
    classes: Classes = (),
    source: str = "",
) -> Model:
    """A model whose layers' shapes, and trunk unless given, are found by tracing `forward`.

    Args:
        forward: pure; called as forward(params, images, tap) with images (n, h, w, c) in [0, 1].
        params: pytree of arrays.
        spec: of the images.
        name: for people, reports and the fingerprint.
        trunk: layers that every path crosses, if known.
        aliases: further names of layers.
        classes: what the logits mean, as `as_classes` takes it.
        source: where the weights come from, with their licence.

    Raises:
        AuditError: if a name is tapped twice, an alias names no layer, or there are more or fewer
            classes than logits.
    """
    aliases = dict(aliases or {})
    shapes = layer_shapes(forward, params, spec)
    if trunk is None:
        trunk = find_trunk(forward, params, (1, *spec.size, len(spec.mean)))
    if missing := sorted(set(aliases.values()) - set(shapes)):
        raise AuditError(f"Aliases of {name} name layers that it does not have: {missing[:3]}.")
    shapes |= {alias: shapes[layer] for alias, layer in aliases.items()}
    if aliases:
        forward = _tapping_aliases(forward, tuple(aliases.items()))
    model = Model(name, params, forward, spec, shapes, trunk, (), source, aliases)
    return with_classes(model, classes)


def with_classes(model: Model, classes: Classes) -> Model:
    """The model whose logits mean these classes, as `as_classes` takes them.

    Raises:
        AuditError: if there are more or fewer than logits.
    """
    named, outputs = as_classes(classes), model.shapes.get("logits", ())
    if named and len(outputs) == 1 and outputs[0] != len(named):
        raise AuditError(
            f"{model.name} has {outputs[0]} outputs, and {len(named)} classes were given. Give one "
            "for each output, in their order."
        )
    return dataclasses.replace(model, classes=named)


def _require_floats(images: Array | np.ndarray) -> None:
    """Refuses what is plainly 0..255; images a little outside of [0, 1] may be meant.

    Arrays of JAX are not looked into: under `jit` their values are not there.
    """
    there = isinstance(images, np.ndarray) and images.size > 0
    if not jnp.issubdtype(images.dtype, jnp.floating) or (there and images.max() > 32):
        most = f" up to {images.max():g}" if there else ""
        raise AuditError(
            f"Images must be floats in [0, 1], got {images.dtype}{most}. Divide 0..255 by 255."
        )


def _inside(position: tuple[int, ...], extent: tuple[int, ...]) -> bool:
    within = all(0 <= p < size for p, size in zip(position, extent, strict=False))
    return within and len(position) == len(extent) > 0


@functools.lru_cache(maxsize=32)  # one function a network, so that programs are compiled once
def _tapping_aliases(forward: Forward, aliases: tuple[tuple[str, str], ...]) -> Forward:
    names: dict[str, list[str]] = {}
    for alias, layer in aliases:
        names.setdefault(layer, []).append(alias)

    def with_aliases(params, images, tap):
        def tap_all(name, x):
            for known in (name, *names.get(name, ())):
                x = tap(known, x)
            return x

        return forward(params, images, tap_all)

    return with_aliases


def record(forward: Forward, params: Any, images: Array, layers: Collection[str]) -> Activations:
    """Runs `forward` as far as the last of `layers` and collects their activations."""
    seen: Activations = {}

    def tap(name: str, x: Array) -> Array:
        if name in layers:
            seen[name] = x
        if len(seen) == len(layers):
            raise _EnoughSeen
        return x

    with contextlib.suppress(_EnoughSeen):
        forward(params, images, tap)
    return seen


@functools.lru_cache(maxsize=8)  # each may hold some 100 MB of code
def _recording(forward: Forward, layers: tuple[str, ...]) -> Callable[..., Activations]:
    """`record`, compiled: one operation after the other, each would be compiled on its own."""
    return jax.jit(lambda params, images: record(forward, params, images, layers))


class _EnoughSeen(BaseException):
    """Leaves a forward pass; no `except Exception` of a network holds it up."""


def layer_shapes(forward: Forward, params: Any, spec: InputSpec) -> dict[str, tuple[int, ...]]:
    """Every layer that `forward` taps and its shape without batch axis, in order of computation."""
    order: list[str] = []

    def run(images):
        seen: Activations = {}

        def tap(name, x):
            order.append(name)
            seen[name] = x
            return x

        forward(params, images, tap)
        return seen

    images = jax.ShapeDtypeStruct((1, *spec.size, len(spec.mean)), jnp.float32)
    with stock_convolutions():  # which are traced sooner
        shapes = jax.eval_shape(run, images)
    _require_usable(order)
    return {name: tuple(shapes[name].shape[1:]) for name in order}


def _require_usable(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not re.fullmatch(LAYER_NAME, name):
            raise AuditError(
                f"The network taps {name!r}. Names of layers may hold no colon, no @ and no space, "
                "since units are written layer:channel@position."
            )
        if name in seen:
            raise AuditError(f"The network taps {name!r} twice; every tap needs its own name.")
        seen.add(name)
