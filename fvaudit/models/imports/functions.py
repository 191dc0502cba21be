"""Any function in JAX as a model: Equinox, Haiku, Keras on JAX, or code of one's own.

Two forms. `from_function` takes code that calls `tap` at its layers, as our own networks do, and
gives a model that can be audited and edited:

    def apply(params, images, tap):
        x = tap("conv1", jax.nn.relu(conv(images, params["conv1"])))
        return head(x.mean((1, 2)), params["head"])

`from_intermediates` takes code that returns its activations beside its output,

    def apply(params, images):
        return logits, {"conv1": x}

which needs no change where a framework collects them already. Such a model can be visualized and
audited, but not edited: what follows an activation is computed by then.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fvaudit.models import devices
from fvaudit.models.classes import Classes
from fvaudit.models.imports.calls import OUTPUT, find_layers, tapping
from fvaudit.models.imports.specs import input_spec
from fvaudit.models.model import Model, Tap, build
from fvaudit.models.trunk import trunk_of_outputs
from fvaudit.records import AuditError


LAYOUTS = ("NHWC", "NCHW")


def from_function(
    apply: Callable[[Any, Array, Tap], Array],
    params: Any,
    layers: Sequence[str] | None = None,
    *,
    input: Any,
    name: str,
    layout: str = "NHWC",
    classes: Classes = (),
    trunk: tuple[str, ...] | None = None,
    source: str = "",
) -> Model:
    """A model from a function that calls `x = tap(name, x)` at its layers.

    Args:
        apply: pure, called as apply(params, images, tap) with images (n, h, w, c), or (n, c, h, w)
            for layout "NCHW", normalised as `input` says, and any n; returns the logits (n, k),
            which become layer "logits" unless it taps that itself.
        params: pytree of arrays.
        layers: names to keep; all that are tapped unless given.
        input: an `InputSpec`, or what `imports.specs.input_spec` reads.
        name: for people, reports and the fingerprint.
        layout: of images, and of arrays with four axes that are tapped.
        classes: what the logits mean: their names in order, or a file of them.
        trunk: layers that every path crosses; found unless given.
        source: where the weights come from, with their licence.

    Raises:
        AuditError: if a name is tapped twice, or something tapped is no layer: an array of real
            numbers (n, c), (n, tokens, c) or (n, h, w, c).
    """
    devices.start()
    spec = input_spec(input, what=name)
    _require_usable(params, layout, name)

    def run(params, images, tap):
        tapped = []

        def inner(layer, x):
            tapped.append(layer)
            return _to(layout, tap(layer, _from(layout, x)))

        x = apply(params, _to(layout, spec.normalise(images)), inner)
        return x if OUTPUT in tapped else tap(OUTPUT, x)

    found = find_layers(
        lambda images, tap: run(params, images, tap), spec, what=name, wanted=layers, strict=True
    )

    def forward(params, images, tap):
        return run(params, images, tapping(tap, found.names))

    return build(
        forward,
        params,
        spec,
        name=name,
        trunk=trunk,
        aliases=found.aliases,
        classes=classes,
        source=source,
    )


def from_intermediates(
    apply: Callable[[Any, Array], tuple[Array, Mapping[str, Array]]],
    params: Any,
    layers: Sequence[str],
    *,
    input: Any,
    name: str,
    layout: str = "NHWC",
    classes: Classes = (),
    trunk: tuple[str, ...] | None = None,
    source: str = "",
) -> Model:
    """A model from a function that returns (logits, {name: activation}); it cannot be edited.

    Args:
        apply: pure, called as apply(params, images), otherwise as for `from_function`.
        params: pytree of arrays.
        layers: names of the activations, shallow to deep; what else is returned is left out.
        input: an `InputSpec`, or what `imports.specs.input_spec` reads.
        name: for people, reports and the fingerprint.
        layout: of images, and of activations with four axes.
        classes: what the logits mean: their names in order, or a file of them.
        trunk: layers that every path crosses; found unless given.
        source: where the weights come from, with their licence.

    Raises:
        AuditError: if an activation is missing or is no layer, as for `from_function`.
    """
    devices.start()
    spec = input_spec(input, what=name)
    _require_usable(params, layout, name)
    wanted = [layer for layer in layers if layer != OUTPUT]

    def run(params, images):
        output, activations = _pair(apply(params, _to(layout, spec.normalise(images))), name)
        if missing := [layer for layer in wanted if layer not in activations]:
            raise AuditError(f"{name} returns no activation {missing[0]!r}: {sorted(activations)}.")
        return output, {layer: activations[layer] for layer in wanted}

    def forward(params, images, tap):
        output, activations = run(params, images)
        for layer in wanted:
            _show(tap, layer, _from(layout, activations[layer]), name)
        return _show(tap, OUTPUT, output, name)

    find_layers(lambda images, tap: forward(params, images, tap), spec, what=name, strict=True)
    if trunk is None:
        crossed = trunk_of_outputs(run, params, (1, *spec.size, len(spec.mean)))
        trunk = (*(layer for layer in wanted if layer in crossed), OUTPUT)
    return build(forward, params, spec, name=name, trunk=trunk, classes=classes, source=source)


def _show(tap: Tap, layer: str, x: Array, name: str) -> Array:
    if tap(layer, x) is not x:
        raise AuditError(
            f"{name} returns its activations, so {layer} cannot be edited. Build it with "
            "from_function, which calls tap(name, x) and uses what that returns."
        )
    return x


def _pair(returned: Any, name: str) -> tuple[Array, Mapping[str, Array]]:
    pair = isinstance(returned, tuple) and len(returned) == 2
    if not pair or not isinstance(returned[1], Mapping):
        kind = "one array" if isinstance(returned, jax.Array) else type(returned).__name__
        raise AuditError(
            f"The function of {name} returns {kind}; expected (logits, {{name: activation}})."
        )
    return returned


def _require_usable(params: Any, layout: str, name: str) -> None:
    if layout not in LAYOUTS:
        raise AuditError(f"layout is {layout!r}; known: {', '.join(LAYOUTS)}.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise AuditError(
                f"Parameter {jax.tree_util.keystr(path)} of {name} is {type(leaf).__name__}; "
                "expected arrays only. Keep the rest in the function (Equinox: eqx.partition)."
            )


def _to(layout: str, x: Array) -> Array:
    return x if layout == "NHWC" or x.ndim != 4 else jnp.moveaxis(x, 3, 1)


def _from(layout: str, x: Array) -> Array:
    return x if layout == "NHWC" or x.ndim != 4 else jnp.moveaxis(x, 1, 3)
