"""An ONNX file as a `Model`: every value a tap, PyTorch's module paths as aliases."""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fvaudit.models import devices
from fvaudit.models.classes import Classes
from fvaudit.models.imports.onnx import names as naming
from fvaudit.models.imports.onnx.graph import Graph, Input, parse
from fvaudit.models.imports.onnx.program import Program, compile_graph
from fvaudit.models.imports.onnx.reading import checked_proto, read_proto, text
from fvaudit.models.imports.onnx.running import run_program
from fvaudit.models.imports.pickle_ops import shown
from fvaudit.models.model import Forward, InputSpec, Model, build
from fvaudit.records import AuditError


_AGREEMENT = 1e-4  # relative, between a graph at its own batch and as it is read here


def load_onnx(
    path: str | os.PathLike,
    spec: InputSpec,
    *,
    name: str | None = None,
    classes: Classes = (),
) -> Model:
    """Loads an .onnx file.

    Layers and aliases are named as the module `names` says. Parameters are the file's tensors
    under its names, in float32; kernels of convolutions are (rows, columns, in, out). A node that
    is not supported ends what depends on it: `Model.missing` says why.

    Args:
        path: of the file; tensors kept outside it must lie beside it.
        spec: of the images, which the file does not say.
        name: of the model; the file's own, without suffix, if None.
        classes: what the logits mean: their names in order, or a file of them.

    Raises:
        AuditError: if the package onnx is missing, the file cannot be read or is damaged, or the
            network does not take images as `spec` describes them.
    """
    path = pathlib.Path(path)
    proto = read_proto(path)
    source = f"the user's file {path.name}, SHA-256 {_digest(path)[:16]}"
    return _model(parse(proto), spec, name or path.stem, classes, source)


def model_from_proto(
    proto: Any,
    spec: InputSpec,
    *,
    name: str | None = None,
    classes: Classes = (),
    source: str = "an ONNX model in memory",
) -> Model:
    """The same for an `onnx.ModelProto` in memory, whose tensors must be inside it.

    Args:
        proto: an `onnx.ModelProto`.
        spec: of the images.
        name: of the model; the graph's own if None.
        classes: what the logits mean: their names in order, or a file of them.
        source: where the weights come from, with their licence.

    Raises:
        AuditError: as `load_onnx` says.
    """
    name = name or naming.plain(text(proto.graph.name)) or "onnx"
    return _model(parse(checked_proto(proto)), spec, name, classes, source)


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model(graph: Graph, spec: InputSpec, name: str, classes: Any, source: str) -> Model:
    devices.start()
    program = program_for(graph, spec)
    names = naming.tap_names(program)
    why = next(iter(program.missing.values()), None)
    if not names:
        raise AuditError(
            f"{shown(name)} computes nothing from its images"
            + (f": {why}." if why else "; expected at least one layer.")
        )
    model = build(
        forward_of(program, spec, names),
        {key: jnp.asarray(value) for key, value in program.params.items()},
        spec,
        name=name,
        trunk=naming.trunk(program, names),
        aliases=naming.aliases(program, names),
        classes=classes,
        source=source if why is None else f"{source}; incomplete: {why}",
    )
    missing = {naming.plain(value): why for value, why in program.missing.items()}
    if "logits" not in model.shapes:
        end = graph.outputs[0] if graph.outputs else ""
        missing["logits"] = program.missing.get(end, "the output does not depend on the images")
    return dataclasses.replace(model, missing=missing)


def forward_of(program: Program, spec: InputSpec, names: Any) -> Forward:
    """The forward pass of a program, for `build`."""

    def forward(params, images, tap):
        return run_program(program, names, params, spec.normalise(images), tap)

    return forward


def program_for(graph: Graph, spec: InputSpec) -> Program:
    """A graph folded for images of `spec`, its batch read as 1.

    Raises:
        AuditError: if the graph takes no such images, or works only at the batch it was exported
            with.
    """
    images = _image_input(graph)
    shape, channels = _input_shape(images, spec)
    if shape[0] == 1:
        return compile_graph(graph, images.name, shape, channels)
    one = (1, *shape[1:])
    program = compile_graph(graph, images.name, one, channels, fixed=shape[0])
    _require_agreement(compile_graph(graph, images.name, shape, channels), program)
    return program


def _image_input(graph: Graph) -> Input:
    if len(graph.inputs) != 1:
        known = ", ".join(shown(i.name) for i in graph.inputs[:4])
        raise AuditError(
            f"The model has {len(graph.inputs)} inputs ({known}); expected one, of images. Export "
            "the part that takes images alone."
        )
    return graph.inputs[0]


def _input_shape(images: Input, spec: InputSpec) -> tuple[tuple[int, ...], int]:
    """(shape with batch axis in the graph's order, axis of the colours)."""
    colours = len(spec.mean)
    declared = images.shape or (None,) * 4
    if len(declared) != 4:
        raise AuditError(
            f"Input {shown(images.name)} of the model has {len(declared)} axes; expected 4: batch, "
            "colours, rows and columns in either order."
        )
    channels = 3 if declared[1] != colours and declared[3] == colours else 1
    size = (colours, *spec.size) if channels == 1 else (*spec.size, colours)
    for is_, should in zip(declared[1:], size, strict=True):
        if is_ is not None and is_ != should:
            raise AuditError(
                f"Input {shown(images.name)} of the model has shape {list(declared)}; the input "
                f"spec says {colours} colours and {spec.size[0]} x {spec.size[1]} pixels. Give "
                "the spec of this model, or export it for that size."
            )
    return (declared[0] or 1, *size), channels


def _require_agreement(whole: Program, single: Program) -> None:
    """A graph with a batch fixed at B against the same graph read image by image."""
    b = whole.shape[0]
    size = (b, *whole.shape[2:], whole.shape[1]) if whole.channels == 1 else whole.shape
    x = jnp.asarray(np.random.default_rng(0).standard_normal(size), jnp.float32)
    wanted, got = (np.asarray(_final(program, x)) for program in (whole, single))
    wanted = wanted.reshape(b, -1)
    got = got.reshape(b, -1) if got.size == wanted.size else np.full_like(wanted, np.inf)
    error = np.abs(wanted - got).max() / max(np.abs(wanted).max(), 1e-30)
    if not error <= _AGREEMENT:
        raise AuditError(
            f"The model was exported for batches of {b} images and cannot be read one image at a "
            f"time: its outputs would differ by {error:.2g} relative. Export it with batch 1 or an "
            "open batch axis."
        )


def _final(program: Program, x: Any) -> Any:
    run = jax.jit(lambda params, x: run_program(program, {}, params, x, lambda _, y: y))
    return run(program.params, x)
