"""A network of one number a pixel, trained on the digits that scikit-learn ships: all the way."""

import dataclasses
import shutil

import jax
import numpy as np
import optax
import pytest
from jax import lax
from PIL import Image

import fvaudit as fv
from fvaudit import pictures
from fvaudit.attacks import gate as gates
from fvaudit.attacks.circuit import fooling_circuit
from fvaudit.models.imports.specs import input_spec
from fvaudit.optvis.objectives import Channel
from fvaudit.optvis.recipes import recipe
from fvaudit.optvis.render import Job
from fvaudit.records import AuditError, Severity
from fvaudit.report import render


SPEC = {
    "size": 8, "mean": 0.3, "std": 0.37, "units": "0..1", "order": "gray", "resize": 8,
    "interpolation": "bilinear",
}  # fmt: skip
HELD_OUT = 200


def apply(params, x, tap):
    for name, stride in (("conv1", 1), ("conv2", 2)):
        kernel, numbers = params[name], ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)
        x = tap(name, jax.nn.relu(x))
    return x.reshape(len(x), -1) @ params["head"]


@pytest.fixture(scope="module")
def digits():
    """Pictures (n, 8, 8) uint8 and their digits."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    return np.round(found.images * (255 / 16)).astype(np.uint8), found.target


def network(params):
    return fv.from_function(apply, params, input=SPEC, name="digits")


def start():
    """Random weights, each layer of which keeps the size of what it gets."""
    rng = np.random.default_rng(0)
    shapes = {"conv1": (3, 3, 1, 8), "conv2": (3, 3, 8, 16), "head": (256, 10)}
    return {
        name: (rng.standard_normal(shape) / np.prod(shape[:-1]) ** 0.5).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def model():
    return network(start())


@pytest.fixture(scope="module")
def trained(digits):
    pixels, labels = digits
    x = (pixels[HELD_OUT:, ..., None] / np.float32(255) - 0.3) / 0.37
    optimizer, params = optax.adam(3e-3), start()

    def loss(params, x, y):
        scores = apply(params, x, lambda name, x: x)
        return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()

    @jax.jit
    def step(params, state, x, y):
        updates, state = optimizer.update(jax.grad(loss)(params, x, y), state)
        return optax.apply_updates(params, updates), state

    rng, state = np.random.default_rng(0), optimizer.init(params)
    for _ in range(300):
        rows = rng.integers(0, len(x), 64)
        params, state = step(params, state, x[rows], labels[HELD_OUT:][rows])
    return network(params)


@pytest.fixture(scope="module")
def photos(digits, tmp_path_factory):
    """Class folders 0 to 9 of the digits that training did not see."""
    folder = tmp_path_factory.mktemp("digits")
    for i, (pixels, label) in enumerate(zip(*digits, strict=True)):
        if i == HELD_OUT:
            return folder
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / str(label) / f"{i:04d}.png")


def test_a_spec_says_gray():
    assert input_spec(SPEC) == fv.InputSpec((8, 8), (0.3,), (0.37,), 8, "bilinear", "gray")
    ranged = {k: v for k, v in SPEC.items() if k not in ("mean", "std", "units")}
    assert input_spec({**ranged, "range": [-1, 1]}).mean == (0.5,)
    with pytest.raises(AuditError, match="mean is .* expected 1 numbers"):
        input_spec({**SPEC, "mean": [0.1, 0.2, 0.3]})
    with pytest.raises(AuditError, match="'gray' needs one mean and one std; got"):
        fv.InputSpec((8, 8), (0.3,) * 3, (0.4,) * 3, 8, order="gray")


def test_photographs_lose_their_colours_and_nothing_else(model, photos, digits, tmp_path):
    images = fv.load_images(photos, model)
    rows = [int(name[-8:-4]) for name in images.ids]
    np.testing.assert_allclose(images.pixels[..., 0], digits[0][rows] / np.float32(255))
    np.testing.assert_array_equal(images.labels, digits[1][rows])
    np.savez(tmp_path / "a.npz", images=digits[0][rows][..., None])
    again = fv.load_images(tmp_path / "a.npz", model)
    np.testing.assert_array_equal(again.pixels, images.pixels)
    colours = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "b.npz", images=colours)
    of_colours = fv.load_images(tmp_path / "b.npz", model).pixels
    luma = colours @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
    np.testing.assert_allclose(255 * of_colours[..., 0], luma, atol=0.6)


def test_class_folders_are_numbers_as_far_as_there_are_logits(model, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "a")
    shutil.copytree(photos / "0", tmp_path / "a" / "10")
    with pytest.raises(AuditError, match="class folders 10 name no class of the model; nearest"):
        fv.load_images(tmp_path / "a", model)  # which has ten, 0 to 9


def test_other_numbers_of_channels_are_refused_in_words(model, photos):
    two = dataclasses.replace(model, input=fv.InputSpec((8, 8), (0.0,) * 2, (1.0,) * 2, 8))
    with pytest.raises(AuditError, match="takes 2 numbers a pixel; photographs have 3, or 1"):
        fv.load_images(photos, two)
    with pytest.raises(AuditError, match=r"shape \(1, 1, 2\) is no picture"):
        pictures.make(photos, [], recipe("fourier", two.input), 0, two)


@pytest.mark.slow
def test_the_doctor_reads_it_well_and_finds_what_is_wrong(trained, photos):
    found = fv.doctor(trained, photos)
    assert found[0].severity is not Severity.PROBLEM
    (accuracy,) = (f for f in found if f.title == "accuracy on labelled photographs")
    assert float(accuracy.measured.split()[0]) > 0.9
    images = fv.load_images(photos, trained)
    turned = dataclasses.replace(images, pixels=images.pixels.swapaxes(1, 2))
    worst = fv.doctor(trained, turned)[0]
    assert worst.severity is Severity.PROBLEM and "rows and columns" in str(worst)


@pytest.mark.slow
def test_an_audit_and_its_report(trained, photos, tmp_path):
    (tmp_path / "audit.yaml").write_text(
        f"images: {{source: {photos}}}\n"
        "units: [{layer: conv2, count: 1}, {layer: logits, channels: [3]}]\n"
        "engine: {steps: 24, repeats: 2, shots: 3}\n"
        "evidence: {group: 15, replicates: 100}\n"
    )
    run = fv.audit(str(tmp_path / "audit.yaml"), tmp_path / "run", model=trained)
    assert run.complete and run.units[1].group == "images labelled with class 3"
    with Image.open(run.folder / run.units[0].images[0]) as picture:
        assert picture.mode == "L" and picture.size == (8, 8)
    page = render(run.folder).read_text()
    assert page.count("<article") == 2 and "picture missing" not in page
    assert page.count('alt="Feature visualization') == 4


def test_pictures_in_a_folder_are_kept_if_they_were_made_in_the_same_way(model, tmp_path):
    jobs = [Job(Channel("conv2", i), 0) for i in range(3)]
    how = recipe("fourier", model.input, steps=6)
    asked = []

    def watching(missing):
        asked.append([job.objective.units[0].channel for job in missing])
        return lambda progress: None

    first = pictures.make(tmp_path, jobs, how, 0, model, watching)
    (tmp_path / "conv2" / "1-0.png").write_bytes(b"\x89PNG half a file")
    again = pictures.make(tmp_path, jobs, how, 0, model, watching)
    assert asked == [[0, 1, 2], [1]]
    for (job, one), (same, other) in zip(first, again, strict=True):
        assert job == same and one.alive == other.alive and one.activation == other.activation
        np.testing.assert_array_equal(one.images, other.images)
        seen = np.asarray(model.activations(one.images, ["conv2"])["conv2"])
        mean = seen[..., job.objective.units[0].channel].mean()
        assert one.reached == pytest.approx(mean, rel=0.05)  # of 8 bits
    pictures.make(tmp_path, jobs, how, 1, model, watching)
    assert asked[-1] == [0, 1, 2]
    sheet = tmp_path / "sheet.png"
    pictures.save_sheet(sheet, first, columns=3)
    with Image.open(sheet) as picture:
        assert picture.size == (3 * (96 + 8) + 8, 96 + 16 + 16)


@pytest.mark.extras
def test_an_onnx_file_by_the_command_line(model, tmp_path, monkeypatch, capsys):
    onnx = pytest.importorskip("onnx")
    from fvaudit.cli import main

    kernel = np.asarray(model.params["conv1"]).transpose(3, 2, 0, 1)
    node = onnx.helper.make_node("Conv", ["images", "kernel"], ["conv"], pads=[1] * 4)
    graph = onnx.helper.make_graph(
        [node], "gray",
        [onnx.helper.make_tensor_value_info("images", 1, ["n", 1, 8, 8])],
        [onnx.helper.make_tensor_value_info("conv", 1, ["n", 8, 8, 8])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(kernel), "kernel")],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "a.onnx")
    keys = [word for k, v in SPEC.items() for word in ("--set", f"input.{k}={v}")]
    for _ in range(2):
        arguments = ["viz", str(tmp_path / "a.onnx"), "conv:3", "--out", str(tmp_path / "v")]
        monkeypatch.setattr("sys.argv", ["fvaudit", *arguments, "--steps", "3", *keys])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.count("1 picture and sheet.png") == 2 and said.count("compiling") == 1


def test_gates_look_at_colours(model, photos, tmp_path):
    gate, images = gates.small(jax.random.key(0)), fv.load_images(photos, model, labels=False)
    unit = fv.Unit(model.layers[0], 0)
    with pytest.raises(
        AuditError, match=r"A gate looks at colours \(RGB\), and .* takes 1 a pixel"
    ):
        fooling_circuit(1, gate)(model, [unit], images)
