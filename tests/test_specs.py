"""Input specs: what they are read from, what they refuse, and pixels against torchvision and timm.

Pixels are compared as 8-bit values of a real photograph: Pillow resizes in both, so they are equal.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from fvaudit.data.load import centre_crop
from fvaudit.models.imports import metadata
from fvaudit.models.imports.specs import MODES, input_spec
from fvaudit.models.model import InputSpec
from fvaudit.records import AuditError
from tests import peers


WHOLE = {
    "size": 224,
    "range": [0, 1],
    "order": "RGB",
    "resize": 256,
    "interpolation": "bilinear",
}
MEANS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "units": "0..1"}
STATED = {**{k: v for k, v in WHOLE.items() if k != "range"}, **MEANS}


def without(key):
    return {k: v for k, v in WHOLE.items() if k != key}


def test_a_range_is_where_black_and_white_go():
    for low, high in ((0, 1), (-1, 1), (0, 255), (255, 0)):
        spec = input_spec({**WHOLE, "range": [low, high]})
        ends = spec.normalise(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1).repeat(3, 3))
        np.testing.assert_allclose(ends[0, 0, :, 0], [low, high], atol=1e-4)


def test_mean_and_std_in_both_units_are_one():
    spec = input_spec(STATED)
    as_bytes = {key: [255 * v for v in STATED[key]] for key in ("mean", "std")}
    other = input_spec({**STATED, **as_bytes, "units": "0..255"})
    np.testing.assert_allclose((*other.mean, *other.std), (*spec.mean, *spec.std), rtol=1e-12)
    assert spec.size == (224, 224) and spec.resize == 256 and spec.order == "RGB"


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({}, "size: rows and columns.*\n.*range: what black.*\n.*units.*\n.*order.*\n.*resize"),
        (without("size"), "size: rows and columns"),
        (without("range"), "range: what black and white become"),
        (without("order"), "order: of the colours"),
        (without("resize"), "resize: side of a photograph"),
        (without("interpolation"), "interpolation: of that resize"),
        ({**STATED, "units": None}, "units: of mean and std"),
        ({**STATED, "std": None}, "range: what black"),
        ({**WHOLE, **MEANS}, "both range and mean"),
        ({**WHOLE, "crop_pct": 0.9}, "both resize and crop_pct"),
        ({**WHOLE, "mode": "caffe"}, "both mode caffe and range"),
        ({**without("range"), "mode": "tf"}, "both mode tf and order"),
        ({**WHOLE, "mode": "keras"}, "mode is 'keras'; known: caffe, tf, torch"),
        ({**WHOLE, "sise": 3}, "no key 'sise'; did you mean 'size'"),
        ({**WHOLE, "size": [1, 2, 3]}, r"size is \[1, 2, 3\]"),
        ({**WHOLE, "size": 0}, "size is 0"),
        ({**WHOLE, "range": [1, 1]}, "black and white must differ"),
        ({**WHOLE, "range": [0, float("nan")]}, "range is .*expected 2 numbers"),
        ({**STATED, "mean": [124, 117, 104]}, "not of pixels in 0..1. Say units: 0..255"),
        ({**STATED, "std": [0, 0, 0]}, "no std 0"),
        ({**STATED, "mean": "abc"}, "mean is 'abc'; expected 3 numbers"),
        ({**WHOLE, "order": "GBR"}, "order is 'GBR'; known: RGB, BGR"),
        ({**WHOLE, "interpolation": "cubic"}, "interpolation is 'cubic'; known: bicubic"),
        ({**WHOLE, "fit": "stretch"}, "fit is 'stretch'; known: crop, pad, squash"),
        ({**WHOLE, "fit": "pad", "size": [3, 4]}, "fit 'pad' needs a square size"),
        ({**WHOLE, "resize": 1.5}, "resize is 1.5"),
        ({**without("resize"), "crop_pct": 0}, "crop_pct is 0"),
        ({**without("resize"), "crop_pct": 0.9, "size": [3, 4]}, "a square size"),
        (3, "input= of net is int, from which no preprocessing can be read"),
        ({"input_size": 3}, "makes no sense"),
        ({"image_mean": [0, 0, 0]}, "makes no sense"),
    ],
)
def test_what_is_not_said_or_makes_no_sense_is_refused(said, problem):
    with pytest.raises(AuditError, match=problem):
        input_spec(said, what="net")


def test_known_metadata_fill_in_and_what_is_given_goes_before():
    known = {**STATED, "size": (32, 32)}
    assert input_spec(None, known) == input_spec(known)
    mixed = input_spec({"range": [-1, 1], "crop_pct": 0.5}, known)
    assert mixed.mean == (0.5,) * 3 and mixed.resize == 64 and mixed.size == (32, 32)
    caffe = input_spec({"mode": "caffe"}, known)
    assert caffe.order == "BGR" and caffe.std == (1 / 255,) * 3


def test_a_file_says_it_too(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("size: [192, 224]\nrange: [-1, 1]\norder: BGR\nresize: 256\n")
    with pytest.raises(AuditError, match="(?s)the model is not known.*interpolation"):
        input_spec(path)
    path.write_text(path.read_text() + "interpolation: box\n")
    assert input_spec(str(path)) == InputSpec(
        (192, 224), (0.5,) * 3, (0.5,) * 3, 256, "box", order="BGR"
    )
    for text, problem in (
        ("- 1", "keys and values"), ("a: [", "Cannot read"), ("\x00", "Cannot"),
        ("order: RGB\nsize: 9\norder: BGR", "stands twice.*line 3"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(AuditError, match=problem):
            input_spec(path)
    with pytest.raises(AuditError, match="Cannot read.*absent"):
        input_spec(tmp_path / "absent.yaml")


def test_hugging_faces_preprocessor_configs():
    config = {
        "do_resize": True, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2],
    }  # fmt: skip
    clip = input_spec(config)
    assert clip == InputSpec((224, 224), (0.5, 0.4, 0.3), (0.2,) * 3, 224, "bicubic")
    exact = {**config, "size": {"height": 96, "width": 96}, "do_center_crop": False, "resample": 2}
    vit = input_spec(exact)
    assert (vit.size, vit.resize, vit.fit, vit.interpolation) == (
        (96, 96),
        96,
        "squash",
        "bilinear",
    )
    with pytest.raises(AuditError, match="unusual rescale_factor"):
        input_spec({**config, "rescale_factor": 1 / 127.5})


def test_onnx_metadata():
    spec = InputSpec((24, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 1 / 255), 40, "lanczos", "BGR")
    gray = InputSpec((28, 28), (0.13,), (0.31,), 28, "bilinear", "gray")
    for known in (spec, gray):
        assert input_spec(None, metadata.of_onnx(metadata.for_onnx(known))) == known
    assert metadata.of_onnx({"Image.BitmapPixelFormat": "Gray8"}) == {"order": "gray"}
    official = {"Image.BitmapPixelFormat": "Bgr8", "Image.NominalPixelRange": "NominalRange_0_255"}
    rest = {"size": 24, "resize": 24, "interpolation": "box"}
    read = input_spec(rest, metadata.of_onnx(official))
    assert read.order == "BGR" and read.mean == (0,) * 3 and read.std == (1 / 255,) * 3
    assert metadata.of_onnx({"author": "somebody"}) == {}
    with pytest.raises(AuditError, match="fvaudit.input is no JSON object"):
        metadata.of_onnx({"fvaudit.input": json.dumps([1])})


@pytest.mark.extras
@pytest.mark.parametrize(
    ("shape", "size"),
    [(("n", 3, 8, 9), (8, 9)), (("n", 8, 9, 3), (8, 9)), (("n", 1, 8, 9), (8, 9)),
     (("n", 8, 9, 1), (8, 9))],
)  # fmt: skip
def test_the_size_stands_in_the_graph_of_an_onnx_file(shape, size):
    onnx = pytest.importorskip("onnx")
    given = onnx.helper.make_tensor_value_info("images", 1, list(shape))
    proto = onnx.helper.make_model(onnx.helper.make_graph([], "net", [given], []))
    assert metadata.of_onnx_model(proto) == {"size": size}


@pytest.mark.extras
@pytest.mark.parametrize("mode", sorted(MODES))
def test_keras_modes(mode):
    keras = peers.keras()
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype(np.float32)
    wanted = keras.applications.imagenet_utils.preprocess_input(images.copy(), mode=mode)
    rest = {"size": 24, "resize": 24, "interpolation": "box"}
    spec = input_spec({**rest, "mode": mode})
    np.testing.assert_allclose(spec.normalise(jnp.asarray(images / 255)), wanted, atol=1e-4)


def photograph(width, height):
    return Image.fromarray(photographs.chelsea()).resize((width, height))


PHOTOGRAPHS = [(451, 300), (300, 451), (333, 257), (1000, 231)]


def require_equal(spec, transforms, picture):
    """Ours and theirs, as the network gets them; 1e-5 of a std is float32 rounding."""
    ours = np.asarray(centre_crop(picture, spec), np.float32)[None] / 255
    ours = np.asarray(spec.normalise(jnp.asarray(ours)))[0]
    np.testing.assert_allclose(ours, transforms(picture).numpy().transpose(1, 2, 0), atol=1e-5)


@pytest.mark.extras
@pytest.mark.parametrize("size", PHOTOGRAPHS)
def test_pixels_are_torchvisions(size):
    models = peers.torchvision().models
    for weights in (
        models.ResNet50_Weights.IMAGENET1K_V2,
        models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1,
        models.EfficientNet_B3_Weights.IMAGENET1K_V1,
    ):
        assert input_spec(weights) == input_spec(weights.transforms())
        require_equal(input_spec(weights), weights.transforms(), photograph(*size))


@pytest.mark.extras
@pytest.mark.parametrize("size", PHOTOGRAPHS)
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("share", [0.875, 0.95, 1.0])
def test_pixels_are_timms(mode, share, size):
    timm = peers.timm()
    config = {
        "input_size": (3, 160, 160), "crop_pct": share, "crop_mode": mode,
        "interpolation": "bicubic", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25),
    }  # fmt: skip
    settings = timm.data.resolve_data_config(pretrained_cfg=config)
    require_equal(input_spec(config), timm.data.create_transform(**settings), photograph(*size))


@pytest.mark.extras
def test_timms_modules_and_composed_transforms_say_it():
    timm = peers.timm()
    module = timm.create_model("vit_tiny_patch16_224")
    settings = timm.data.resolve_data_config(model=module)
    spec = input_spec(module)
    assert spec == input_spec(None, metadata.of_module(module))
    assert spec.size == settings["input_size"][1:] and spec.mean == settings["mean"]
    assert input_spec(timm.data.create_transform(**settings)) == spec
    with pytest.raises(AuditError, match="RandomResizedCrop.* of its transforms is not known"):
        input_spec(timm.data.create_transform(**settings, is_training=True))
