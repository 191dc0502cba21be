"""PyTorch modules as models: every layer against hooks of the test's own, relative 1e-4."""

import dataclasses

import numpy as np
import pytest

from fvaudit.models.imports import torch_modules
from fvaudit.models.imports.torch_modules import from_torch
from fvaudit.models.model import InputSpec, Model
from fvaudit.optvis.objectives import Channel
from fvaudit.optvis.visualize import visualize
from fvaudit.records import AuditError
from tests import peers


pytestmark = pytest.mark.extras
SPEC = InputSpec((32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32, "bilinear")
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def packages():
    pytest.importorskip("onnxscript")
    peers.torch().manual_seed(0)


@pytest.fixture(scope="module")
def net():
    """In training mode, with an in-place ReLU, one called twice, one as a function, attention."""
    torch = peers.torch()
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(True))
            self.mix = nn.Conv2d(8, 8, 1)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.drop = nn.Dropout(0.5)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.body(x)
            x = nn.functional.relu(self.mix(nn.functional.relu_(self.mix(x))))
            x = x.flatten(2).transpose(1, 2)
            x = x + self.attention(x, x, x)[0]
            return self.head(self.drop(x).mean(1))

    module = Net()
    with torch.no_grad():
        module(torch.rand(4, 3, 32, 32))  # moves the batch statistics
    return module


def hooked(module, pixels, spec):
    """PyTorch's own outputs of every module, in order, the last call of each."""
    torch = peers.torch()
    seen = {}

    def hook(path):
        def keep(part, inputs, output):  # a copy, since what follows may work in place
            seen[path] = (output[0] if isinstance(output, tuple) else output).clone().numpy()

        return keep

    handles = [part.register_forward_hook(hook(path)) for path, part in module.named_modules()]
    x = (pixels - np.float32(1) * np.asarray(spec.mean)) / np.asarray(spec.std)
    with torch.no_grad():
        module(torch.from_numpy(x.astype(np.float32).transpose(0, 3, 1, 2).copy()))
    for handle in handles:
        handle.remove()
    return seen


def require_layers(model: Model, wanted, least: int) -> float:
    """All of PyTorch's that are layers of ours agree; returns the largest relative error."""
    pixels = np.random.default_rng(1).random((3, *model.input.size, 3), np.float32)
    wanted = wanted(pixels)
    wanted["logits"] = wanted.pop("")
    names = {path: last_call(model, path) for path in wanted if path in model.shapes}
    assert len(names) >= least
    found = model.activations(pixels, set(names.values()))
    worst = 0.0
    for path, name in names.items():
        ours = np.asarray(found[name])
        # Swin's are (n, h, w, c) already; where c = h = w the shape does not tell which it is.
        theirs = [x for x in (wanted[path], channels_last(wanted[path])) if x.shape == ours.shape]
        assert theirs, path
        error = min(np.abs(ours - x).max() / max(np.abs(x).max(), 1e-30) for x in theirs)
        worst = max(worst, error)
    assert worst <= TOLERANCE
    return worst


def channels_last(x):
    return np.moveaxis(x, 1, 3) if x.ndim == 4 else x


def last_call(model: Model, path: str) -> str:
    calls = [n for n in model.shapes if n == path or n.startswith(f"{path}#")]
    return max(calls, key=lambda n: int(n.partition("#")[2] or 1))


def evaluated(module):
    import copy

    return copy.deepcopy(module).eval()


@pytest.fixture(scope="module")
def model(net):
    return from_torch(net, input=SPEC)


def test_layers_are_pytorchs(net, model):
    require_layers(model, lambda pixels: hooked(evaluated(net), pixels, SPEC), least=7)
    assert {"body.0", "body.1", "body", "mix", "mix#2", "attention", "head"} <= set(model.shapes)
    assert model.aliases["logits"] == "head" and model.aliases["body.2"] == "body"
    assert "set to evaluation" in model.source and model.name == "Net"
    assert model.trunk[0] == "body" and model.trunk[-1] == "head"


def test_operations_between_modules_are_layers_where_all_paths_cross(model):
    """The function relu after mix is on the trunk; it has the exporter's name."""
    between = [name for name in model.trunk if name.startswith("relu")]
    assert len(between) == 2
    pixels = np.random.default_rng(1).random((2, 32, 32, 3), np.float32)
    found = model.activations(pixels, ["mix", between[0]])
    np.testing.assert_allclose(found[between[0]], np.maximum(found["mix"], 0), rtol=1e-6)


def test_names_that_no_unit_could_be_written_with_are_written_otherwise():
    nn = peers.torch().nn

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"my conv:1": nn.Conv2d(3, 4, 3)})
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            return self.head(self.parts["my conv:1"](x).mean((2, 3)))

    model = from_torch(Named(), input=SPEC)
    assert model.shapes["parts.my_conv.1"] == (30, 30, 4)


def test_the_users_module_stays_as_it_is(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    from_torch(net, input=SPEC)
    assert net.training and net.body[2].inplace
    assert not any(part._forward_hooks for part in net.modules())
    for name, value in net.state_dict().items():
        assert value.equal(before[name]), name


def test_edits_reach_the_output(net, model):
    edited = model.edited("attention", lambda params, x: 0 * x)
    pixels = np.random.default_rng(1).random((2, 32, 32, 3), np.float32)
    tokens = np.maximum(model.activations(pixels, ["mix#2"])["mix#2"], 0).mean((1, 2))
    head = {name: value.numpy() for name, value in net.head.state_dict().items()}
    np.testing.assert_allclose(
        edited.activations(pixels, ["logits"])["logits"],
        tokens @ head["weight"].T + head["bias"],
        rtol=1e-3,
        atol=1e-5,
    )


def test_a_visualization(model):
    vis = visualize(model, [Channel("mix", 3)], steps=8, repeats=1, seed=0)[0]
    assert vis.images.shape == (1, 32, 32, 3) and vis.alive.all()


def test_an_example_is_what_is_compared(net, monkeypatch):
    torch = peers.torch()
    seen = []

    def noted(found, wanted):
        seen.append(len(found))
        return 0.0

    monkeypatch.setattr(torch_modules, "relative_error", noted)
    from_torch(net, torch.rand(5, 3, 32, 32), input=dataclasses.replace(SPEC, order="BGR"))
    assert set(seen) == {5}


def test_a_layer_that_differs_is_refused(net, monkeypatch):
    monkeypatch.setattr(torch_modules, "TOLERANCE", 0.0)
    with pytest.raises(AuditError, match="of Net differs from PyTorch by"):
        from_torch(net, input=SPEC)


def test_what_cannot_be_imported(net):
    torch = peers.torch()

    class Branches(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    class Pair(torch.nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(AuditError, match="torch.export cannot trace Branches.*from_function"):
        from_torch(Branches(), input=SPEC)
    with pytest.raises(AuditError, match="Pair returns tuple; expected one tensor of logits"):
        from_torch(Pair(), input=SPEC)
    with pytest.raises(AuditError, match="takes a torch.nn.Module, got function"):
        from_torch(lambda x: x, input=SPEC)
    with pytest.raises(AuditError, match="The input of Net is not known"):
        from_torch(net)
    with pytest.raises(AuditError, match="expected a tensor of shape .n, .3, 32, 32"):
        from_torch(net, torch.rand(1, 3, 8, 8), input=SPEC)


def test_missing_packages_are_named(net, monkeypatch):
    monkeypatch.setattr(torch_modules.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AuditError, match=r"pip install 'fvaudit\[torch\]'"):
        from_torch(net, input=SPEC)


NETWORKS = {
    "resnet18": lambda: peers.torchvision().models.resnet18(weights=None),
    "squeezenet1_1": lambda: peers.torchvision().models.squeezenet1_1(weights=None),
    "mobilenet_v3_small": lambda: peers.torchvision().models.mobilenet_v3_small(weights=None),
    "convnext_atto": lambda: peers.timm().create_model("convnext_atto"),
    "densenet121": lambda: peers.torchvision().models.densenet121(weights=None),
    "vit_tiny": lambda: peers.timm().create_model("vit_tiny_patch16_224"),
    "swin_t": lambda: peers.torchvision().models.swin_t(weights=None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, capsys):
    """`from_torch` compares every call of every module itself, at the same tolerance."""
    module = NETWORKS[name]()
    own = getattr(module, "pretrained_cfg", None)
    model = from_torch(module, input=None if own else dataclasses.replace(SPEC, size=(64, 64)))
    plain = evaluated(module)
    least = sum(1 for path, _ in module.named_modules() if path in model.shapes) // 2
    worst = require_layers(model, lambda pixels: hooked(plain, pixels, model.input), least)
    with capsys.disabled():
        print(f"\n{name}: {len(model.layers)} layers, largest relative error {worst:.1e}")
