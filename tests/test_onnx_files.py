"""Damaged and hostile ONNX files: a clear error, before anything large is read or made."""

import pathlib
import sys

import numpy as np
import pytest

from fvaudit.models.imports.onnx import load_onnx, model_from_proto, read_proto, reading
from fvaudit.models.model import InputSpec
from fvaudit.records import AuditError
from tests import onnx_graphs as graphs


onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.extras

SPEC = InputSpec((8, 8), (0.5,) * 3, (0.25,) * 3, resize=8)


def saved(proto, folder) -> pathlib.Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def outside(folder, **facts):
    """A model whose kernel is kept in another file."""
    proto = graphs.convolutional()
    tensor = proto.graph.initializer[0]
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    for key, value in {"location": "w.bin", **facts}.items():
        tensor.external_data.add(key=key, value=str(value))
    return saved(proto, folder)


def test_external_tensors_are_read(tmp_path):
    inside = model_from_proto(graphs.convolutional(), SPEC)
    model = load_onnx(outside(tmp_path), SPEC)
    np.testing.assert_array_equal(model.params["w1 (kernel)"], inside.params["w1 (kernel)"])
    assert model.name == "model" and "model.onnx, SHA-256" in model.source


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"location": "../w.bin"}, "leaves the model's folder"),
        ({"location": "a/../../w.bin"}, "leaves the model's folder"),
        ({"location": "/etc/passwd"}, "is absolute"),
        ({"location": "C:\\w.bin"}, "is absolute"),
        ({"location": ""}, "is empty"),
        ({"location": "link.bin"}, "is a link"),
        ({"location": "folder/w.bin"}, "is a link"),
        ({"location": "nothing.bin"}, "not there"),
        ({"offset": 8}, "needs 432 bytes"),
        ({"offset": -8}, "needs 432 bytes"),
        ({"length": 10**15}, "needs 432 bytes"),
        ({"offset": "x"}, "must be numbers"),
    ],
)
def test_external_tensors_stay_in_the_folder_and_fit(tmp_path, facts, message):
    path = outside(tmp_path, **facts)
    (tmp_path / "link.bin").symlink_to(tmp_path / "w.bin")
    (tmp_path / "folder").symlink_to(tmp_path)
    with pytest.raises(AuditError, match=message):
        load_onnx(path, SPEC)


def test_a_huge_external_shape_is_refused_before_reading(tmp_path):
    path = outside(tmp_path)
    proto = onnx.ModelProto.FromString(path.read_bytes())
    proto.graph.initializer[0].dims[0] = 2**40
    with pytest.raises(AuditError, match="expected at most"):
        load_onnx(saved(proto, tmp_path), SPEC)


def test_external_tensors_in_memory_are_refused(tmp_path):
    proto = onnx.ModelProto.FromString(outside(tmp_path).read_bytes())
    with pytest.raises(AuditError, match="the model has no folder"):
        model_from_proto(proto, SPEC)


def test_files_that_are_no_models(tmp_path, monkeypatch):
    with pytest.raises(AuditError, match="no such file"):
        read_proto(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("not a model, but a text")
    with pytest.raises(AuditError, match="no ONNX model|holds no graph"):
        read_proto(tmp_path / "text.onnx")
    path = saved(graphs.convolutional(), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AuditError, match="no ONNX model"):
        read_proto(path)
    monkeypatch.setattr(reading, "MOST_BYTES", 100)
    with pytest.raises(AuditError, match="an ONNX file has at most 100"):
        read_proto(path)


def test_a_missing_package_says_which_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(AuditError, match=r"pip install 'fvaudit\[onnx\]'"):
        read_proto(tmp_path / "model.onnx")


def test_cycles_doubles_and_gaps():
    proto = graphs.convolutional()
    proto.graph.node[0].input[0] = "both"
    with pytest.raises(AuditError, match="form a cycle"):
        model_from_proto(proto, SPEC)
    proto = graphs.convolutional()
    proto.graph.node[1].output[0] = "conv"
    with pytest.raises(AuditError, match="Two nodes of the model compute conv"):
        model_from_proto(proto, SPEC)
    proto = graphs.convolutional()
    proto.graph.node[2].input[0] = "nobody"
    with pytest.raises(AuditError, match="reads nobody, which nothing computes"):
        model_from_proto(proto, SPEC)
    proto = graphs.convolutional()
    proto.graph.initializer.append(proto.graph.initializer[0])
    with pytest.raises(AuditError, match="two initializers w1"):
        model_from_proto(proto, SPEC)


def test_shapes_that_do_not_fit_name_the_node():
    proto = graphs.convolutional()
    proto.graph.initializer[0].dims[:] = [4, 1, 9, 3]
    with pytest.raises(AuditError, match=r"Node node_conv \(Conv\) cannot be computed"):
        model_from_proto(proto, SPEC)
    proto.graph.initializer[0].dims[:] = [4, 3, 3, 4]
    with pytest.raises(AuditError, match="holds 432 bytes; its shape"):
        model_from_proto(proto, SPEC)


def test_nodes_out_of_order_are_sorted():
    proto = graphs.convolutional()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.output[0].name = "scores"
    model = model_from_proto(proto, SPEC)
    wanted = model_from_proto(graphs.convolutional(), SPEC)
    x = np.ones((1, 8, 8, 3), np.float32)
    got, want = (m.activations(x, ["logits"])["logits"] for m in (model, wanted))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("size", [[2**40], [2**20, 2**20], [-1]])
def test_a_small_file_cannot_ask_for_a_large_array(size):
    nodes = [
        graphs.node("ConstantOfShape", ["size"], "large"),
        graphs.node("ReduceSum", ["large"], "sum"),
        graphs.node("Add", ["image", "sum"], "out"),
    ]
    with pytest.raises(AuditError, match="expected at most"):
        model_from_proto(graphs.proto(nodes, {"size": np.array(size)}), SPEC)


def test_many_large_constants_are_refused_together():
    nodes = [graphs.node("ConstantOfShape", ["size"], f"large{i}") for i in range(9)]
    nodes.append(graphs.node("Relu", ["image"], "out"))
    with pytest.raises(AuditError, match="too large to hold"):
        model_from_proto(graphs.proto(nodes, {"size": np.array([2**23])}), SPEC)


def test_functions_that_call_themselves_or_explode():
    def function(name, calls):
        body = [
            onnx.helper.make_node(c, ["x"], [f"y{i}"], domain="mine") for i, c in enumerate(calls)
        ]
        opset = [onnx.helper.make_opsetid("mine", 1)]
        return onnx.helper.make_function("mine", name, ["x"], ["y0"], body, opset)

    call = onnx.helper.make_node("f0", ["image"], ["out"], domain="mine")
    looped = [function("f0", ["f1"]), function("f1", ["f0"])]
    with pytest.raises(AuditError, match="calls itself"):
        model_from_proto(graphs.proto([call], {}, functions=looped), SPEC)
    doubling = [function(f"f{i}", [f"f{i + 1}"] * 4) for i in range(20)]
    with pytest.raises(AuditError, match="more than 200000 nodes"):
        model_from_proto(graphs.proto([call], {}, functions=doubling), SPEC)
