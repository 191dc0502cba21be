"""GoogLeNet as an ONNX graph, as Caffe's converter writes it, from our network's parameters.

Every convolution, activation and pool is a node of its own, named as our layers are, so that
values can be held against ours and against onnxruntime's. Pools round up and response norm is LRN.
"""

from typing import Any

import numpy as np
from flax import nnx

from fvaudit.models.model import Model
from fvaudit.models.nets.googlenet import MODULES, POOLS


def googlenet_proto(model: Model) -> Any:
    """The `onnx.ModelProto` of a GoogLeNet with the parameters of `model`.

    Args:
        model: of the zoo's googlenet.
    """
    from onnx import helper

    nodes, tensors = [], []
    weights = _tensors(model)

    def node(kind, inputs, output, **attributes):
        nodes.append(
            helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **attributes)
        )
        return output

    def given(name, array):
        tensors.append(_initializer(name, array))
        return name

    def conv(x, name, stride=1):
        kernel, bias = weights[name]
        size = kernel.shape[-1]
        inputs = [x, given(f"{name}_w", kernel), given(f"{name}_b", bias)]
        shape = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [size // 2] * 4}
        return node("Relu", [node("Conv", inputs, f"{name}_pre", **shape)], name)

    def pool(x, name, stride, pad):
        shape = {"kernel_shape": [3, 3], "strides": [stride] * 2, "pads": [pad] * 4}
        return node("MaxPool", [x], name, ceil_mode=1, **shape)

    def norm(x, name):
        return node("LRN", [x], name, size=5, alpha=1e-4, beta=0.75, bias=1.0)

    x = norm(pool(conv("data", "conv2d0", 2), "maxpool0", 2, 0), "localresponsenorm0")
    x = norm(conv(conv(x, "conv2d1"), "conv2d2"), "localresponsenorm1")
    x = pool(x, "maxpool1", 2, 0)
    for name in MODULES:
        three = conv(conv(x, f"{name}_3x3_bottleneck"), f"{name}_3x3")
        five = conv(conv(x, f"{name}_5x5_bottleneck"), f"{name}_5x5")
        reduced = conv(pool(x, f"{name}_pool", 1, 1), f"{name}_pool_reduce")
        x = node("Concat", [conv(x, f"{name}_1x1"), three, five, reduced], name, axis=1)
        x = pool(x, POOLS[name], 2, 0) if name in POOLS else x
    x = node("Flatten", [node("GlobalAveragePool", [x], "avgpool2d")], "avgpool")
    matrix, bias = weights["softmax2"]
    node("Gemm", [x, given("softmax2_w", matrix), given("softmax2_b", bias)], "logits", transB=1)
    node("Softmax", ["logits"], "prob", axis=1)
    return _model(nodes, tensors)


def _tensors(model: Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(kernel (out, in, rows, columns) or matrix (out, in), bias) of every layer."""
    flat: dict[str, dict[str, np.ndarray]] = {}
    for path, variable in nnx.to_flat_state(model.params):
        flat.setdefault(path[-2], {})[path[-1]] = np.asarray(variable[...])
    return {
        name: (
            pair["kernel"].transpose(3, 2, 0, 1) if pair["kernel"].ndim == 4 else pair["kernel"].T,
            pair["bias"],
        )
        for name, pair in flat.items()
    }


def _initializer(name, array):
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name)


def _model(nodes, tensors):
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, 224, 224])
    output = helper.make_tensor_value_info("prob", TensorProto.FLOAT, ["n", 1000])
    graph = helper.make_graph(nodes, "googlenet", [images], [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
