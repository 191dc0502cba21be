"""Small ONNX graphs with random weights for tests; images 3 x 8 x 8."""

import numpy as np


SIZE = 8


def proto(
    nodes,
    tensors,
    *,
    batch: str | int = "n",
    shape=(3, SIZE, SIZE),
    outputs=None,
    opset=18,
    functions=(),
):
    """A `ModelProto` whose input is "image" and whose output is the last node's."""
    from onnx import TensorProto, helper, numpy_helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, *shape])
    outputs = outputs or [nodes[-1].output[0]]
    graph = helper.make_graph(
        nodes,
        "small",
        [image],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in tensors.items()],
    )
    sets = [helper.make_opsetid("", opset)]
    sets += [helper.make_opsetid(d, 1) for d in {f.domain for f in functions}]
    return helper.make_model(graph, opset_imports=sets, ir_version=8, functions=list(functions))


def node(kind, inputs, output, **attributes):
    """One node, named as its output with "node_" in front."""
    from onnx import helper

    outputs = [output] if isinstance(output, str) else list(output)
    return helper.make_node(kind, inputs, outputs, name=f"node_{outputs[0]}", **attributes)


def weights(*shape, seed=0):
    """Normal numbers, float32, of spread 0.3."""
    return (0.3 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def convolutional(batch: str | int = "n", rows: int = 1):
    """Convolution, batch norm, pools, a branch, and a head whose Reshape names `rows` images."""
    nodes = [
        node("Conv", ["image", "w1", "b1"], "conv", pads=[1] * 4, kernel_shape=[3, 3]),
        node("BatchNormalization", ["conv", "scale", "shift", "mean", "var"], "norm"),
        node("Relu", ["norm"], "relu"),
        node("MaxPool", ["relu"], "pool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        node("AveragePool", ["relu"], "mean_pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Concat", ["pool", "mean_pool"], "both", axis=1),
        node("Reshape", ["both", "target"], "flat"),
        node("Gemm", ["flat", "head"], "scores"),
    ]
    tensors = {
        "w1": weights(4, 3, 3, 3),
        "b1": weights(4, seed=1),
        "scale": 1 + weights(4, seed=2),
        "shift": weights(4, seed=3),
        "mean": weights(4, seed=4),
        "var": 1 + np.abs(weights(4, seed=5)),
        "target": np.array([rows, -1]),
        "head": weights(8 * 16, 5, seed=6),
    }
    return proto(nodes, tensors, batch=batch)


def attentive(batch: str | int = 1):
    """Patches, a class token, one head of attention in (t, n, c) order, as old exporters write."""
    nodes = [
        node("Conv", ["image", "w"], "patches", kernel_shape=[4, 4], strides=[4, 4]),
        node("Reshape", ["patches", "as_tokens"], "columns"),
        node("Transpose", ["columns"], "tokens", perm=[0, 2, 1]),
        node("Concat", ["cls", "tokens"], "all", axis=1),
        node("LayerNormalization", ["all", "gain", "zero"], "normed", axis=-1),
        node("Transpose", ["normed"], "first", perm=[1, 0, 2]),
        node("MatMul", ["first", "wq"], "q"),
        node("MatMul", ["first", "wk"], "k"),
        node("Reshape", ["q", "as_heads"], "q_heads"),
        node("Reshape", ["k", "as_heads"], "k_heads"),
        node("Transpose", ["q_heads"], "qt", perm=[1, 0, 2]),
        node("Transpose", ["k_heads"], "kt", perm=[1, 2, 0]),
        node("MatMul", ["qt", "kt"], "scores"),
        node("Softmax", ["scores"], "weights", axis=-1),
        node("Transpose", ["k_heads"], "values", perm=[1, 0, 2]),
        node("MatMul", ["weights", "values"], "mixed"),
        node("Transpose", ["mixed"], "back", perm=[1, 0, 2]),
        node("Reshape", ["back", "as_embedding"], "merged"),
        node("Transpose", ["merged"], "out", perm=[1, 0, 2]),
        node("Gather", ["out", "zeroth"], "token", axis=1),
        node("Gemm", ["token", "head"], "scores_out"),
    ]
    tensors = {
        "w": weights(6, 3, 4, 4),
        "as_tokens": np.array([1, 6, 4]),
        "cls": weights(1, 1, 6, seed=1),
        "gain": 1 + weights(6, seed=2),
        "zero": weights(6, seed=3),
        "wq": 3 * weights(6, 6, seed=4),
        "wk": 3 * weights(6, 6, seed=5),
        "as_heads": np.array([5, 2, 3]),
        "as_embedding": np.array([5, 1, 6]),
        "zeroth": np.array(0),
        "head": weights(6, 5, seed=6),
    }
    return proto(nodes, tensors, batch=batch)


def quantized():
    """A convolution between quantizations, and one on whole numbers."""
    nodes = [
        node("QuantizeLinear", ["image", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "dq"),
        node("DequantizeLinear", ["w8", "ws"], "w", axis=0),
        node("Conv", ["dq", "w"], "conv", kernel_shape=[3, 3]),
        node("Relu", ["conv"], "relu"),
        node("QuantizeLinear", ["relu", "s", "z"], "q2"),
        node("QLinearConv", ["q2", "s", "z", "v8", "vs", "vz", "s2", "z2"], "q3"),
        node("DequantizeLinear", ["q3", "s2", "z2"], "dq3"),
        node("GlobalAveragePool", ["dq3"], "pooled"),
        node("Flatten", ["pooled"], "scores"),
    ]
    whole = np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    # Of 7 bits: onnxruntime adds two products of 8 bits in 16, which overflow where a processor has
    # no VNNI.
    pointwise = np.random.default_rng(1).integers(-63, 64, (5, 4, 1, 1)).astype(np.int8)
    tensors = {
        "s": np.float32(0.02), "z": np.uint8(120),
        "w8": whole, "ws": np.full(4, 0.004, np.float32),
        "v8": pointwise, "vs": np.float32(0.01), "vz": np.int8(0),
        "s2": np.float32(0.05), "z2": np.uint8(130),
    }  # fmt: skip
    return proto(nodes, tensors)
