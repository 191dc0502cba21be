"""onnxruntime as the oracle of imported ONNX models, and PyTorch's two exporters."""

import os
import tempfile
import warnings
from collections.abc import Mapping

import numpy as np
import pytest

from fvaudit.models.model import InputSpec, Model


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def spec(size: int) -> InputSpec:
    """Square images with torchvision's mean and std."""
    return InputSpec((size, size), *IMAGENET, resize=size)


def export(module, shape, *, dynamo: bool, **options):
    """A PyTorch module as a `ModelProto`."""
    onnx = pytest.importorskip("onnx")
    torch = pytest.importorskip("torch")
    if dynamo:
        pytest.importorskip("onnxscript")
    example = (torch.zeros(shape),)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the exporters', not ours
        path = os.path.join(folder, "model.onnx")
        torch.onnx.export(module.eval(), example, path, dynamo=dynamo, **options)
        return onnx.load(path)


def reference(proto, images: np.ndarray, names) -> dict[str, np.ndarray]:
    """Values of a graph by onnxruntime, without its own rewriting of the graph.

    A batch that the file fixed is honoured by running images one at a time.
    """
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    runs = [session.run(list(names), {given.name: image[None]}) for image in images]
    return {
        name: np.concatenate(values)
        for name, values in zip(names, zip(*runs, strict=True), strict=True)
    }


def disagreement(model: Model, proto, images: np.ndarray) -> Mapping[str, float]:
    """Largest error at every tap, relative to the largest value there; images (n, h, w, c)."""
    import jax.numpy as jnp

    from fvaudit.models.imports.onnx import names as naming

    onnx_names = {naming.plain(o): o for node in proto.graph.node for o in node.output if o}
    layers = model.layers
    got = model.activations(images, layers)
    x = np.asarray(model.input.normalise(jnp.asarray(images))).transpose(0, 3, 1, 2)
    wanted = reference(proto, np.ascontiguousarray(x), [onnx_names[name] for name in layers])
    return {name: _error(np.asarray(got[name]), wanted[onnx_names[name]]) for name in layers}


def _error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Channels may stand last in what the model shows and second in what ONNX says."""
    if got.ndim == 4 and got.shape != wanted.shape or got.ndim == 4 and _square(got):
        turned = wanted.transpose(0, 2, 3, 1)
        candidates = [turned, wanted] if turned.shape == got.shape == wanted.shape else [turned]
    elif got.ndim == 3 and got.shape != wanted.shape:
        candidates = [wanted.transpose(0, 2, 1)]
    else:
        candidates = [wanted]
    assert all(c.shape == got.shape for c in candidates), (got.shape, wanted.shape)
    scale = max(float(np.abs(wanted).max()), 1e-6)
    return min(float(np.abs(got - c).max()) / scale for c in candidates)


def _square(x: np.ndarray) -> bool:
    return len(set(x.shape[1:])) == 1
