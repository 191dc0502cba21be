"""Models that go out and come back: folders bit by bit, ONNX against onnxruntime."""

import dataclasses
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fvaudit.attacks.circuit import Plan, insert
from fvaudit.attacks.gate import small
from fvaudit.attacks.silent import silent_units
from fvaudit.models import builders
from fvaudit.models.builders import Edit
from fvaudit.models.export import export_onnx, load_folder, save_folder
from fvaudit.models.folders import Recipe
from fvaudit.models.imports.flax_modules import from_flax
from fvaudit.models.model import InputSpec, Model
from fvaudit.models.zoo import load_model, random_model
from fvaudit.records import AuditError, ImageSet, Unit
from tests import onnx_graphs
from tests.tiny import attentive_model, pictures, tiny_model


@builders.register("test_scaled")
def scaled(model: Model, params, settings) -> Model:
    """Multiplies the channels of a layer, and adds to them at one position."""

    def edit(p, x):
        return x * p["by"]["factor"] + settings["plus"]

    return model.edited(settings["layer"], edit, params)


@pytest.fixture(scope="module")
def base() -> Model:
    return random_model("squeezenet1_1", seed=3)


def manipulated(base: Model) -> tuple[Model, Recipe]:
    edits = (
        Edit("test_scaled", {"by": {"factor": jnp.linspace(0, 2, 1000, dtype=jnp.float32)}},
             {"layer": "logits", "plus": 0.25}),
        Edit("test_scaled", {"by": {"factor": jnp.float32(3)}}, {"layer": "logits", "plus": 0}),
    )  # fmt: skip
    model = base
    for edit in edits:
        model = builders.apply(model, edit)
    return model, Recipe(base, "squeezenet1_1", edits)


def test_a_manipulated_model_comes_back_bit_by_bit(base, tmp_path):
    model, recipe = manipulated(base)
    save_folder(model, tmp_path / "m", recipe)
    again = load_model(tmp_path / "m")
    assert again.fingerprint == model.fingerprint and again.source == model.source
    assert jax.tree.structure(again.params) == jax.tree.structure(model.params)
    for one, other in zip(*map(jax.tree.leaves, (again.params, model.params)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), strict=True)
    images = np.random.default_rng(0).random((1, *model.input.size, 3), np.float32)
    found, wanted, plain = (
        np.asarray(m.activations(images, ["logits"])["logits"]) for m in (again, model, base)
    )
    np.testing.assert_array_equal(found, wanted)
    factor = np.linspace(0, 2, 1000, dtype=np.float32)
    np.testing.assert_allclose(found[0], (plain[0] * factor + 0.25) * 3, rtol=1e-5, atol=1e-5)
    with pytest.raises(AuditError, match="holds something already"):
        save_folder(model, tmp_path / "m", recipe)


def test_a_recipe_of_another_model_is_refused_and_leaves_nothing(base, tmp_path):
    model, recipe = manipulated(base)
    with pytest.raises(AuditError, match="does not give the model that was saved"):
        save_folder(model, tmp_path / "m", dataclasses.replace(recipe, edits=recipe.edits[:1]))
    assert not (tmp_path / "m").exists()


@pytest.mark.extras
def test_a_model_of_an_onnx_file_comes_back_bit_by_bit(tmp_path):
    onnx = pytest.importorskip("onnx")
    file = tmp_path / "net.onnx"
    onnx.save(onnx_graphs.convolutional(), str(file))
    base = load_model(
        str(file),
        input={
            "size": (8, 8),
            "mean": (0,) * 3,
            "std": (1,) * 3,
            "units": "0..1",
            "order": "RGB",
            "interpolation": "bilinear",
            "resize": 8,
        },
    )
    width = base.shapes[base.layers[-1]][-1]
    settings = {"layer": base.layers[-1], "plus": 0.5}
    factor = {"by": {"factor": jnp.linspace(0, 2, width, dtype=jnp.float32)}}
    edit = Edit("test_scaled", factor, settings)
    model = builders.apply(base, edit)
    folder = save_folder(model, tmp_path / "m", Recipe(base, str(file), (edit,)))
    assert (folder / "network.onnx").read_bytes() == file.read_bytes()
    again = load_model(folder)
    assert again.fingerprint == model.fingerprint != base.fingerprint
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    found, wanted = (
        np.asarray(m.activations(images, [base.layers[-1]]).popitem()[1]) for m in (again, model)
    )
    np.testing.assert_array_equal(found, wanted)
    (folder / "network.onnx").write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(AuditError, match="another SHA-256"):
        load_model(folder)


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model, recipe = manipulated(base)
    return save_folder(model, folder, recipe)


@pytest.fixture
def damaged(saved, tmp_path):
    """A copy whose recipe can be changed: damaged(**changes) -> the folder."""

    def change(**changes):
        for file in saved.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        said = json.loads((saved / "recipe.json").read_text())
        (tmp_path / "recipe.json").write_text(json.dumps({**said, **changes}))
        return tmp_path

    return change


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "pickle"}, 'does not say "format"'),
        ({"files": {}}, "must give checksums of parameters.safetensors and no other"),
        ({"files": {"../../etc/passwd": "0"}}, "must give checksums"),
        ({"files": {"parameters.safetensors": "0" * 64}}, "another SHA-256"),
        ({"network": "../network.onnx"}, "no model '../network.onnx' in the zoo"),
        ({"network": "vgg16"}, "other tensors than its network has"),
        ({"edits": []}, "other tensors than its network has: edits.0"),
        ({"edits": [{"builder": "os.system", "settings": {}, "params": None}]}, "other tensors"),
        ({"edits": [{}]}, "recipe.json is damaged"),
        ({"edits": 3}, "recipe.json is damaged"),
        ({"input": {"size": [0, 0]}}, "damaged"),
        ({"classes": [1]}, "damaged"),
        ({"outputs": 10**9}, "damaged"),
        ({"outputs": "7"}, "damaged"),
        ({"outputs": 7}, "other shape|has shape"),
        ({"fingerprint": "0"}, "does not give the model that was saved"),
    ],
)
def test_damaged_recipes_are_refused(damaged, changes, message):
    with pytest.raises(AuditError, match=message):
        load_folder(damaged(**changes))


def test_unknown_builders_are_refused(damaged, saved):
    edits = json.loads((saved / "recipe.json").read_text())["edits"]
    edits[0]["builder"] = "os.system"
    with pytest.raises(
        AuditError, match="made with 'os.system', which is not known here.*test_scaled"
    ):
        load_folder(damaged(edits=edits))
    with pytest.raises(AuditError, match="two builders 'test_scaled'"):
        builders.register("test_scaled")(lambda model, params, settings: model)


def test_shapes_are_held_against_the_network_before_anything_is_read(damaged, saved):
    edits = json.loads((saved / "recipe.json").read_text())["edits"]
    edits[0]["params"]["by"]["factor"][0] = [10**9]
    with pytest.raises(AuditError, match=r"has shape and type .*1000.*expected \(1000000000,\)"):
        load_folder(damaged(edits=edits))


def test_folders_that_are_none(tmp_path):
    with pytest.raises(AuditError, match="no recipe.json in it"):
        load_folder(tmp_path)
    for text, message in (("{", "is no JSON"), ("[" * 10**5, "is no JSON"), ("[]", "does not say")):
        (tmp_path / "recipe.json").write_text(text)
        with pytest.raises(AuditError, match=message):
            load_folder(tmp_path)
    os.truncate(tmp_path / "recipe.json", 2**25)
    with pytest.raises(AuditError, match="more than 16777216 bytes"):
        load_folder(tmp_path)


def test_parameters_that_cannot_be_stored_are_named(base, tmp_path):
    odd = Edit("test_scaled", {"by": {"factor": np.float64(1)}}, {"layer": "logits", "plus": 0})
    with pytest.raises(AuditError, match=r"edits.0\['by'\]\['factor'\] has type float64"):
        save_folder(base, tmp_path / "m", Recipe(base, "squeezenet1_1", (odd,)))
    odd = Edit("test_scaled", {"by": "1.0"}, {})
    with pytest.raises(AuditError, match=r"\['by'\] has type <U3; known: float32"):
        save_folder(base, tmp_path / "m", Recipe(base, "squeezenet1_1", (odd,)))


# --- ONNX


@pytest.mark.extras
class TestOnnx:
    @pytest.fixture(autouse=True)
    def packages(self):
        for name in ("jax2onnx", "onnx", "onnxruntime"):
            pytest.importorskip(name)

    def test_every_layer_agrees_and_keeps_its_name(self, tmp_path):
        model = tiny_model().edited("conv2", lambda p, x: p * x, jnp.float32(2))
        _goes_out_whole(model, tmp_path / "tiny.onnx")

    @pytest.mark.parametrize(
        "decoys", [{"sources": (0, 3)}, {"decoy_layer": "conv1"}, {"picture": pictures(1)[0]}]
    )
    def test_fooling_circuits(self, tmp_path, decoys):
        gate = small(jax.random.key(0))
        evidence = np.sort(gate.logit(gate.params, jnp.asarray(pictures(3))))
        gate.params["head"]["bias"] = jnp.float32(-evidence[:2].mean())
        plan = Plan("conv2", (1, 2), **{"sources": (), "shift": 1.0, "gap": 40.0} | decoys)
        model = insert(tiny_model(), plan, gate)
        _goes_out_whole(model, tmp_path / "circuit.onnx")

    def test_whole_numbers_beside_floats(self, tmp_path):
        """jax2onnx promotes them to 64 bits, as NumPy does."""

        def halves(p, x):
            return jnp.concatenate([jnp.where(x > p, x, 0)[..., :3], x[..., 3:]], axis=-1)

        model = tiny_model().edited("conv2", halves, jnp.float32(0.1))
        _goes_out_whole(model, tmp_path / "halves.onnx")

    def test_silent_units(self, tmp_path):
        images = ImageSet(pictures(8), tuple("abcdefgh"), None, np.arange(8))
        attack = silent_units(pictures(9)[8])
        model = attack(attentive_model(), [Unit("mix", 1), Unit("mix", 3)], images).model
        _goes_out_whole(model, tmp_path / "silent.onnx")

    def test_it_is_read_back_without_input(self, tmp_path):
        model = tiny_model()
        export_onnx(model, tmp_path / "tiny.onnx")
        again = load_model(tmp_path / "tiny.onnx")
        assert again.input.size == model.input.size and again.input.resize == model.input.resize
        images = pictures(3)
        wanted = model.activations(images, ["conv1", "logits"])
        found = again.activations(images, ["conv1", "logits"])
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)

    def test_what_was_read_back_goes_out_again(self, tmp_path):
        """Its layers are called as jax2onnx calls values, and some are one value."""
        export_onnx(tiny_model(), tmp_path / "once.onnx")
        _goes_out_whole(load_model(tmp_path / "once.onnx"), tmp_path / "twice.onnx")

    def test_branches_go_on_reading_what_gets_another_name(self):
        """x = -in, y = relu(x), and an output that a branch copies from y: its layer is "y" too."""
        import onnx
        import onnxruntime
        from onnx import TensorProto, helper

        from fvaudit.models.export import _name_outputs

        def body(reads):
            node = helper.make_node("Identity", [reads], [f"of_{reads}"])
            seen = helper.make_tensor_value_info(f"of_{reads}", TensorProto.FLOAT, [])
            return helper.make_graph([node], reads, [], [seen])

        nodes = [
            helper.make_node("Neg", ["in"], ["x"]),
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("Greater", ["x", "y"], ["never"]),
            helper.make_node("Not", ["never"], ["always"]),
            helper.make_node(
                "If", ["always"], ["fvaudit.output.0"], then_branch=body("y"), else_branch=body("x")
            ),
        ]
        given, output = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [])
            for name in ("in", "fvaudit.output.0")
        )
        model = helper.make_model(
            helper.make_graph(nodes, "g", [given], [output]),
            opset_imports=[helper.make_opsetid("", 21)],
            ir_version=10,
        )
        _name_outputs(model.graph, ["y"])
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model.SerializeToString())
        assert [o.name for o in session.get_outputs()] == ["y"]
        for value, wanted in ((2.0, 0.0), (-2.0, 2.0)):
            assert session.run(["y"], {"in": np.array(value, np.float32)})[0] == wanted

    @pytest.mark.parametrize("named", [False, True])
    def test_arguments_that_jax2onnx_wants_named(self, tmp_path, named):
        class Net(nnx.Module):
            def __init__(self, rngs):
                self.conv = nnx.Conv(3, 16, (3, 3), rngs=rngs)

            def __call__(self, x):
                by_name: Any = {"window_shape": (2, 2), "strides": (2, 2)}
                x = jax.nn.gelu(self.conv(x))
                x = nnx.max_pool(x, **by_name) if named else nnx.max_pool(x, (2, 2), (2, 2))
                return x.mean((1, 2))

        spec = InputSpec((24, 24), (0.5,) * 3, (0.2,) * 3, resize=24)
        model = from_flax(Net(nnx.Rngs(0)), input=spec)
        if named:
            assert export_onnx(model, tmp_path / "net.onnx").difference < 1e-5
        else:
            with pytest.raises(AuditError, match="Name them, as in nnx.max_pool"):
                export_onnx(model, tmp_path / "net.onnx")

    def test_layers_can_be_chosen(self, tmp_path):
        assert export_onnx(tiny_model(), tmp_path / "a.onnx", layers=["conv1"]).layers == ("conv1",)
        with pytest.raises(AuditError, match="no layer 'conv9'"):
            export_onnx(tiny_model(), tmp_path / "b.onnx", layers=["conv9"])

    def test_what_onnxruntime_makes_something_else_of_is_not_written(self, tmp_path, monkeypatch):
        from fvaudit.models import export

        monkeypatch.setattr(export, "AGREEMENT", -1.0)
        with pytest.raises(AuditError, match="a layer differs by .* Nothing was written"):
            export_onnx(tiny_model(), tmp_path / "a.onnx")
        assert not (tmp_path / "a.onnx").exists()

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vgg16", "vit_b_16"])
    def test_every_layer_of_the_zoo(self, name, tmp_path):
        done = export_onnx(random_model(name, seed=0), tmp_path / "net.onnx")
        assert done.batch is None and done.difference < 3e-5

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["efficientnet_lite0", "googlenet"])
    def test_trained_networks(self, name, shared_data, tmp_path):
        weights = shared_data / "models" / "googlenet_bvlc.safetensors"
        model = load_model(name, weights if name == "googlenet" else None)
        done = export_onnx(model, tmp_path / "net.onnx")
        print(name, done.difference, done.batch, (tmp_path / "net.onnx").stat().st_size)
        # Rounding over sixty layers: 1.4e-5 where it was seen largest (onnxruntime, Intel Xeon).
        assert done.difference < 3e-5 and done.batch is None
        again = load_model(tmp_path / "net.onnx")
        images = np.random.default_rng(1).random((2, *model.input.size, 3), np.float32)
        for layer in (model.trunk[1], "logits"):
            wanted = np.asarray(model.activations(images, [layer])[layer])
            found = np.asarray(again.activations(images, [layer])[layer])
            assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def _goes_out_whole(model: Model, path) -> None:
    """Every layer by its name, for any number of images, as onnxruntime computes it."""
    import onnxruntime

    done = export_onnx(model, path)
    assert done.layers == model.layers and done.batch is None and done.difference < 1e-5
    session = onnxruntime.InferenceSession(path)
    assert [o.name for o in session.get_outputs()] == list(model.layers)
    images = pictures(3)
    found = session.run(None, {"images": images.transpose(0, 3, 1, 2).copy()})
    wanted = model.activations(images, model.layers)
    for name, value in zip(model.layers, found, strict=True):
        planes = np.asarray(value)
        planes = np.moveaxis(planes, 1, -1) if planes.ndim == 4 else planes
        np.testing.assert_allclose(planes, wanted[name], rtol=1e-4, atol=1e-5)


def test_a_missing_translator_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(AuditError, match=r"pip install 'fvaudit\[export\]'"):
        export_onnx(tiny_model(), tmp_path / "a.onnx")
