"""Models for other tools: ONNX.

The file takes pictures as this package does, RGB in [0, 1], only as planes (n, 3, rows, columns),
and normalises them itself; its metadata says so, and reading it back needs no `input=`. Every layer
is an output under its own name, (n, channels, rows, columns) where it has positions. Manipulations
go out with the network that they are part of.

The translation is jax2onnx's, of the network with JAX's own convolutions: the rules that make them
fast on a CPU would give thousands of nodes. What was written is run by onnxruntime, where that is
installed, and compared at every layer.
"""

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fvaudit.models.folders import load_folder as load_folder
from fvaudit.models.folders import save_folder as save_folder
from fvaudit.models.imports import metadata
from fvaudit.models.model import Model, record, require_model
from fvaudit.optvis.lowering import stock_convolutions
from fvaudit.records import AuditError


OPSET = 21
AGREEMENT = 1e-4  # relative to a layer's largest activation
CHECKED = 2  # random images
_NAMED = (
    " jax2onnx has functions of its own for many of Flax's and jax.numpy's, and some take fewer "
    "arguments by place. Name them, as in nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2))."
)
_PASSING = "fvaudit.output.{}"  # what outputs are called while a file is made,
_INSIDE = "fvaudit.inside.{}"  # and values for good whose names are those of layers


@dataclasses.dataclass(frozen=True)
class Exported:
    """An .onnx file that was written."""

    path: pathlib.Path
    layers: tuple[str, ...]  # its outputs, shallow to deep
    batch: int | None  # images that it takes at once; None if any number
    difference: float  # greatest over layers, relative to the layer's largest activation; NaN if
    # onnxruntime is not there to run it


def export_onnx(
    model: Model, path: str | os.PathLike, *, layers: Sequence[str] | None = None
) -> Exported:
    """Writes a model as ONNX and compares what onnxruntime makes of it.

    Args:
        model: the network, manipulated or not.
        path: of the file to write.
        layers: outputs of the file; all layers if None.

    Raises:
        AuditError: if jax2onnx is missing or cannot translate the model, a layer does not exist,
            or onnxruntime disagrees by more than 1e-4; then nothing is written.
    """
    require_model(model)
    if layers is None:
        layers = model.layers
    model.require_layers(layers)
    names = tuple(layers)
    proto, batch = _translated(model, names)
    spec = dataclasses.replace(model.input, mean=(0.0,) * 3, std=(1.0,) * 3, order="RGB")
    said = {**metadata.for_onnx(spec), "fvaudit.source": model.source, "fvaudit.name": model.name}
    for key, value in said.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    content = proto.SerializeToString()
    difference = _difference(model, names, content)
    if difference > AGREEMENT:
        raise AuditError(
            f"onnxruntime makes something else of {model.name}: a layer differs by "
            f"{difference:.2g} of its largest activation, at most {AGREEMENT} is rounding. Nothing "
            "was written; please report the network's operations."
        )
    pathlib.Path(path).write_bytes(content)
    return Exported(pathlib.Path(path), names, batch, difference)


def _translated(model: Model, names: tuple[str, ...]) -> tuple[Any, int | None]:
    """(proto, batch): for any number of images, or else for one."""
    try:
        from jax2onnx import to_onnx
    except ImportError:
        raise AuditError(
            "Writing ONNX needs jax2onnx. Run: pip install 'fvaudit[export]'"
        ) from None
    if len(model.input.mean) != 3:
        raise AuditError(f"{model.name} takes {len(model.input.mean)} colours; only RGB goes out.")

    def outputs(images):
        seen = record(model.forward, model.params, images, names)
        return _each_its_own([seen[name] for name in names])

    spatial = [i for i, name in enumerate(names) if len(model.shapes[name]) == 3]
    failures = []
    for batch in ("n", 1):
        try:
            with stock_convolutions(), _quiet():
                proto: Any = to_onnx(
                    outputs,
                    [(batch, *model.input.size, 3)],
                    model_name=model.name,
                    opset=OPSET,
                    input_names=["images"],
                    output_names=[_PASSING.format(i) for i in range(len(names))],
                    inputs_as_nchw=[0],
                    outputs_as_nchw=spatial,
                )
            _as_single(proto.graph)
            _name_outputs(proto.graph, names)
            return proto, None if batch == "n" else batch
        except Exception as error:  # whatever a translator meets in foreign code
            failures.append(f"{type(error).__name__}: {str(error)[:300]}")
    by_place = "positional argument" in failures[-1]
    raise AuditError(
        f"{model.name} cannot be written as ONNX ({failures[-1]}).{_NAMED if by_place else ''}"
    )


def _as_single(graph: Any) -> None:
    """Makes float of what is called double.

    Nothing here has 64 bits, but jax2onnx promotes as NumPy does: a whole number and a float32, as
    in `jnp.where(x > 0, x, 0)`, to 64.
    """
    from onnx import TensorProto, numpy_helper

    attributes = [attribute for node in graph.node for attribute in node.attribute]
    for attribute in attributes:
        if attribute.name == "to" and attribute.i == TensorProto.DOUBLE:
            attribute.i = TensorProto.FLOAT
    for tensor in (*graph.initializer, *(a.t for a in attributes if a.HasField("t"))):
        if tensor.data_type == TensorProto.DOUBLE:
            single = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(single, tensor.name))
    for value in (*graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for body in (body for node in graph.node for body in _bodies(node)):
        _as_single(body)


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Outputs get their layers' names; values inside that have one of them get another."""
    inside = _values(graph)
    new = {name: _INSIDE.format(i) for i, name in enumerate(names) if name in inside}
    new |= {_PASSING.format(i): name for i, name in enumerate(names)}
    _rename(graph, new)


def _values(graph: Any) -> set[str]:
    own = {value for node in graph.node for value in (*node.input, *node.output)}
    return own.union(*(_values(body) for node in graph.node for body in _bodies(node)))


def _rename(graph: Any, new: dict[str, str]) -> None:
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [new.get(value, value) for value in values]
        for body in _bodies(node):
            _rename(body, new)
    for known in (graph.output, graph.value_info, graph.initializer):
        for one in known:
            one.name = new.get(one.name, one.name)


def _bodies(node: Any) -> list[Any]:
    """Of a branch or loop: graphs that read values of the one they stand in."""
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _each_its_own(values: Sequence[Any]) -> tuple[Any, ...]:
    """Values of which none is another one's object: a value of a file has one name only."""
    known: set[int] = set()
    own = []
    for value in values:
        own.append(value * 1 if id(value) in known else value)
        known.add(id(value))
    return tuple(own)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the translator's remarks on types it does not write down, and on its own calls."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _difference(model: Model, names: tuple[str, ...], content: bytes) -> float:
    """Greatest difference over layers on random images, in largest activations; NaN unchecked."""
    try:
        import onnxruntime
    except ImportError:
        return math.nan
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors: it warns of every constant that is not used
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        shape = (CHECKED, *model.input.size, 3)
        images = np.random.default_rng(0).random(shape, np.float32)
        fixed = session.get_inputs()[0].shape[0] == 1
        images = images[:1] if fixed else images
        found = session.run(list(names), {"images": images.transpose(0, 3, 1, 2).copy()})
    except Exception as error:  # onnxruntime's own errors have no common class
        raise AuditError(f"onnxruntime does not run {model.name}: {str(error)[:300]}") from None
    wanted = model.activations(images, names)
    return max(
        _gap(np.asarray(wanted[n]), np.asarray(v)) for n, v in zip(names, found, strict=True)
    )


def _gap(wanted: np.ndarray, found: np.ndarray) -> float:
    found = found.transpose(0, 2, 3, 1) if found.ndim == 4 else found
    if found.shape != wanted.shape:
        return math.inf
    scale = float(np.abs(wanted).max()) or 1.0
    return float(np.abs(found - wanted).max()) / scale
