"""Small ONNX graphs as models: values against onnxruntime, batches, names, edits, gaps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.models.imports.onnx import model_from_proto
from fvaudit.models.model import InputSpec
from fvaudit.records import AuditError, Unit
from tests import onnx_graphs as graphs
from tests import onnx_oracle as oracle


onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.extras

SPEC = InputSpec((8, 8), (0.5,) * 3, (0.25,) * 3, resize=8)
GRAPHS = {
    "open batch": graphs.convolutional,
    "batch 1": lambda: graphs.convolutional(batch=1),
    "tokens first, batch 1": graphs.attentive,
    "quantized": graphs.quantized,
}


def images(n, seed=0):
    return np.random.default_rng(seed).random((n, 8, 8, 3), np.float32)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_tap_is_onnxruntimes(name):
    proto = GRAPHS[name]()
    model = model_from_proto(proto, SPEC)
    errors = oracle.disagreement(model, proto, images(3))
    assert len(errors) > 5
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("name", GRAPHS)
def test_two_images_are_two_runs_of_one(name):
    model = model_from_proto(GRAPHS[name](), SPEC)
    x = images(2, seed=1)
    both = model.activations(x, model.layers)
    for i in range(2):
        one = model.activations(x[i : i + 1], model.layers)
        for layer in model.layers:
            np.testing.assert_allclose(both[layer][i], one[layer][0], atol=2e-6, err_msg=layer)


def test_a_batch_fixed_at_two_is_read_as_one():
    model = model_from_proto(graphs.convolutional(batch=2, rows=2), SPEC)
    open_one = model_from_proto(graphs.convolutional(), SPEC)
    for n in (1, 3):
        got, wanted = (m.activations(images(n), ["logits"])["logits"] for m in (model, open_one))
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_a_batch_that_mixes_its_images_is_refused():
    nodes = [graphs.node("ReduceMean", ["image", "zero"], "mean", keepdims=1),
             graphs.node("Sub", ["image", "mean"], "centred")]  # fmt: skip
    proto = graphs.proto(nodes, {"zero": np.array([0])}, batch=2)
    with pytest.raises(AuditError, match="exported for batches of 2 .* one image at a time"):
        model_from_proto(proto, SPEC)


def test_channels_are_shown_last_wherever_the_file_has_them():
    nodes = [
        graphs.node("Transpose", ["image"], "first", perm=[0, 3, 1, 2]),
        graphs.node("Conv", ["first", "w"], "conv", kernel_shape=[3, 3]),
        graphs.node("Transpose", ["conv"], "last", perm=[0, 2, 3, 1]),
        graphs.node("Add", ["last", "bias"], "sum"),
    ]
    w, bias = graphs.weights(4, 3, 3, 3), graphs.weights(4, seed=1)
    proto = graphs.proto(nodes, {"w": w, "bias": bias}, shape=(8, 8, 3))
    model = model_from_proto(proto, SPEC)
    x = images(2)
    got = model.activations(x, ["first", "conv", "last", "sum"])
    scaled = (x - 0.5) / 0.25
    windows = np.lib.stride_tricks.sliding_window_view(scaled, (3, 3), (1, 2))
    conv = np.einsum("npqcij,ocij->npqo", windows, w)
    for layer, wanted in {"first": scaled, "conv": conv, "last": conv, "sum": conv + bias}.items():
        np.testing.assert_allclose(got[layer], wanted, atol=1e-5, err_msg=layer)


def test_the_trunk_keeps_the_last_of_a_straight_run():
    model = model_from_proto(graphs.convolutional(), SPEC)
    assert model.trunk == ("relu", "both", "scores")
    assert model.layers[:3] == ("conv", "norm", "relu")
    assert model.aliases == {"logits": "scores"}
    assert model.shapes["relu"] == (8, 8, 4) and model.shapes["logits"] == (5,)


def test_a_final_softmax_is_not_the_logits():
    proto = graphs.convolutional()
    proto.graph.node.append(graphs.node("Softmax", ["scores"], "prob"))
    proto.graph.output[0].name = "prob"
    model = model_from_proto(proto, SPEC)
    assert model.resolve("logits") == "scores" and "prob" in model.layers
    assert model.trunk[-1] == "scores"


def test_an_edit_and_its_gradient_pass_through():
    model = model_from_proto(graphs.convolutional(), SPEC)
    doubled = model.edited("relu", lambda p, x: 2 * x)
    x = images(1)
    before, after = (m.activations(x, ["pool", "both"]) for m in (model, doubled))
    np.testing.assert_allclose(after["pool"], 2 * before["pool"], rtol=1e-6)

    def score(params, pixels):
        return dataclasses.replace(model, params=params).activations(pixels, ["logits"])["logits"][
            0, 1
        ]

    slopes, at = jax.grad(score, (0, 1))(model.params, jnp.asarray(x))
    step = 1e-2 * jnp.sign(at)
    rise = score(model.params, x + step) - score(model.params, x - step)
    assert float(rise) == pytest.approx(float(2 * (step * at).sum()), rel=0.2)
    assert float(jnp.abs(slopes["w1 (kernel)"]).max()) > 0


def test_quantized_activations_have_gradients():
    model = model_from_proto(graphs.quantized(), SPEC)
    slope = jax.grad(lambda x: model.activations(x, ["logits"])["logits"].sum())(images(1))
    assert float(jnp.abs(slope).max()) > 0


def test_names_that_units_cannot_spell_are_mapped():
    nodes = [graphs.node("Relu", ["image"], "model/act 1:0"),
             graphs.node("Relu", ["model/act 1:0"], "model/act 1@0")]  # fmt: skip
    model = model_from_proto(graphs.proto(nodes, {}), SPEC)
    assert model.layers == ("model/act_1.0", "model/act_1.0_2")
    model.require_unit(Unit.parse("model/act_1.0:2"))


def test_an_unknown_operator_ends_what_depends_on_it_alone():
    proto = graphs.convolutional()
    proto.graph.node[4].op_type = "Bernoulli"
    model = model_from_proto(proto, SPEC)
    assert model.layers == ("conv", "norm", "relu", "pool")
    assert "operator Bernoulli" in model.source
    for layer in ("logits", "both"):
        with pytest.raises(AuditError, match="node_mean_pool .* operator Bernoulli is not known"):
            model.activations(images(1), [layer])
    got = model.activations(images(2), ["pool"])["pool"]
    whole = model_from_proto(graphs.convolutional(), SPEC).activations(images(2), ["pool"])["pool"]
    np.testing.assert_array_equal(got, whole)


def test_training_mode_and_other_input_sizes_are_refused():
    proto = graphs.convolutional()
    with pytest.raises(AuditError, match="input spec says 3 colours and 9 x 9"):
        model_from_proto(proto, dataclasses.replace(SPEC, size=(9, 9)))
    proto.graph.node[1].attribute.append(onnx.helper.make_attribute("training_mode", 1))
    assert "training mode" in model_from_proto(proto, SPEC).missing["logits"]


def test_a_branch_known_at_load_time_is_taken():
    branches = [
        onnx.helper.make_graph(
            [graphs.node(kind, ["image"], kind)], kind, [],
            [onnx.helper.make_tensor_value_info(kind, 1, None)],
        )
        for kind in ("Relu", "Neg")
    ]  # fmt: skip
    nodes = [
        graphs.node("Shape", ["image"], "shape"),
        graphs.node("Gather", ["shape", "one"], "colours"),
        graphs.node("Equal", ["colours", "one"], "gray"),
        graphs.node("If", ["gray"], "out", then_branch=branches[0], else_branch=branches[1]),
    ]
    model = model_from_proto(graphs.proto(nodes, {"one": np.array(1)}), SPEC)
    x = images(1)
    np.testing.assert_allclose(model.activations(x, ["out"])["out"], (0.5 - x) / 0.25, atol=1e-6)


def test_local_functions_are_inlined():
    body = [graphs.node("Relu", ["x"], "r"), graphs.node("Neg", ["r"], "y")]
    opset = [onnx.helper.make_opsetid("", 18)]
    function = onnx.helper.make_function("mine", "Turned", ["x"], ["y"], body, opset)
    call = onnx.helper.make_node("Turned", ["image"], ["out"], domain="mine")
    model = model_from_proto(graphs.proto([call], {}, functions=[function]), SPEC)
    x = images(1)
    wanted = -np.maximum((x - 0.5) / 0.25, 0)
    np.testing.assert_allclose(model.activations(x, ["out"])["out"], wanted, atol=1e-6)


def test_aliases_are_module_paths():
    from fvaudit.models.imports.onnx.graph import Node
    from fvaudit.models.imports.onnx.names import _paths
    from fvaudit.models.imports.onnx.program import Step
    from fvaudit.models.imports.onnx.table import OPERATORS

    def paths(name, scopes=()):
        return _paths(
            Step(Node("Conv", "", 18, name, (), ("x",), {}, scopes), OPERATORS["Conv"], (), ())
        )

    assert paths("/layer1/layer1.0/conv1/Conv") == ["layer1", "layer1.0", "layer1.0.conv1"]
    assert paths("/f/f.0/f.0.1/Conv") == ["f", "f.0", "f.0.1"]
    assert paths("/encoder/layers/layers.3/mlp/Gelu")[-1] == "encoder.layers.3.mlp"
    assert paths("node_conv", ("", "layer1", "layer1.0")) == ["layer1", "layer1.0"]
    assert paths("Conv_0") == []


def test_a_global_lp_pool_is_a_norm_over_positions():
    nodes = [graphs.node("GlobalLpPool", ["image"], "out", p=2)]
    model = model_from_proto(graphs.proto(nodes, {}), SPEC)
    x = images(2)
    wanted = np.sqrt((((x - 0.5) / 0.25) ** 2).sum((1, 2), keepdims=True))
    np.testing.assert_allclose(model.activations(x, ["out"])["out"], wanted, rtol=1e-5)
