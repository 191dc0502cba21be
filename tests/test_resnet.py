"""ResNet-50 against PyTorch's own modules, and convolutions joined with their batch norms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fvaudit.models.model import record
from fvaudit.models.nets.conv_norm import bare_conv, conv_norm
from fvaudit.models.nets.resnet import ResNet50
from fvaudit.models.zoo import load_model, random_model
from fvaudit.optvis import hoisting
from fvaudit.records import AuditError


@functools.cache
def _program(forward, layers):
    return jax.jit(lambda params, images: record(forward, params, images, layers))


def _all_layers(model, image):
    return _program(model.forward, model.layers)(model.params, image)


@pytest.mark.extras
def test_every_layer_agrees_with_pytorch(tmp_path):
    """A state dict that PyTorch saved, read by `load_model`."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    net = _torch_resnet(torch)
    torch.save(net.state_dict(), tmp_path / "resnet50.pth")
    model = load_model("resnet50", tmp_path / "resnet50.pth")
    image = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    theirs = _torch_activations(torch, net, image)
    ours = _all_layers(model, image)
    assert set(theirs) == set(ours)
    for layer, want in theirs.items():
        error = np.abs(np.asarray(ours[layer]) - want).max() / np.abs(want).max()
        assert error < 1e-5, (layer, error)
    assert model.source == "the user's file resnet50.pth"
    assert len(model.classes) == 1000


def _torch_resnet(torch):
    """torchvision's resnet50 with its names, in torch.nn; He-normal, every statistic random."""
    nn = torch.nn
    torch.manual_seed(0)

    class Bottleneck(nn.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(4 * width)
            self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
            self.downsample = None
            if stride != 1 or inputs != 4 * width:
                projection = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
                self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

        def forward(self, x):
            y = self.relu1(self.bn1(self.conv1(x)))
            y = self.relu2(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            return self.relu3(y + (x if self.downsample is None else self.downsample(x)))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1, self.stem = nn.BatchNorm2d(64), nn.ReLU()
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            inputs = 64
            for i, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512))):  # noqa: B905
                stage = []
                for j in range(blocks):
                    stage.append(Bottleneck(inputs, width, 2 if i > 0 and j == 0 else 1))
                    inputs = 4 * width
                setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
            self.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.fc = nn.Linear(inputs, 1000)

        def forward(self, x):
            x = self.maxpool(self.stem(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(self.avgpool(x))

    net = ResNet().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.0)
                for tensor in (module.bias, module.running_mean):
                    tensor.uniform_(-0.3, 0.3)
    return net


def _torch_activations(torch, net, image):
    seen = {}

    def keep(name):
        def hook(module, arguments, x):
            x = x.detach()
            seen[name] = x.permute(0, 2, 3, 1).numpy() if x.ndim == 4 else x.numpy()

        return hook

    for name, module in net.named_modules():
        inner = name.rsplit(".")[-1] in ("relu1", "relu2")
        if inner or name in ("stem", "maxpool", "avgpool", "fc") or name.count(".") == 1:
            module.register_forward_hook(keep("logits" if name == "fc" else name))
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    with torch.no_grad():
        net(torch.from_numpy((image - mean) / std).permute(0, 3, 1, 2))
    return {name: x for name, x in seen.items() if not name.startswith("avgpool.")}


def test_layers_and_shapes():
    model = random_model("resnet50", 0)
    assert len(model.layers) == 2 + 16 * 3 + 2
    assert [n for n in model.layers if n in model.trunk] == list(model.trunk)
    assert model.shapes["layer1.2"] == (56, 56, 256)
    assert model.shapes["layer2.0.relu1"] == (56, 56, 128)  # v1.5: the stride is in the 3x3
    assert model.shapes["layer2.0.relu2"] == (28, 28, 128)
    assert model.shapes["layer4.2"] == (7, 7, 2048)
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(_shapes(), nnx.Param)))
    assert parameters == 25_557_032  # torchvision's count


def _shapes():
    return nnx.eval_shape(lambda: ResNet50(nnx.Rngs(0)))


def test_random_weights_keep_activations_near_one():
    model = random_model("resnet50", 1)
    image = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    found = _all_layers(model, image)
    sizes = {name: float(jnp.sqrt((x**2).mean())) for name, x in found.items()}
    assert all(0.1 < size < 10 for size in sizes.values()), sizes


def test_without_a_file_the_message_says_which():
    with pytest.raises(AuditError, match="resnet50 comes without weights.*torchvision"):
        load_model("resnet50")


@pytest.mark.parametrize("kernel, stride, groups", [(1, 1, 1), (3, 2, 1), (3, 1, 8)])
def test_a_joined_batch_norm_is_the_batch_norm(kernel, stride, groups):
    conv, norm, x = _conv_and_norm(kernel, stride, groups)
    np.testing.assert_allclose(conv_norm(conv, norm, x), norm(conv(x)), rtol=1e-5, atol=1e-5)


def _conv_and_norm(kernel, stride, groups):
    rng = np.random.default_rng(0)
    rngs = nnx.Rngs(0)
    conv = bare_conv(8, 16, kernel, stride, "SAME", rngs, groups=groups)
    norm = nnx.BatchNorm(16, use_running_average=True, epsilon=1e-3, rngs=rngs)
    for variable in (norm.mean, norm.var, norm.scale, norm.bias):
        variable[...] = jnp.asarray(rng.uniform(0.5, 2, 16), jnp.float32)  # pyright: ignore
    return conv, norm, jnp.asarray(rng.random((2, 9, 9, 8)), jnp.float32)


def test_the_norm_leaves_the_loop():
    """What the engine repeats is a convolution and a sum: no scaling, no root."""
    graph, params = nnx.split(_conv_and_norm(3, 1, 1)[:2])

    def forward(params, x):
        return conv_norm(*nnx.merge(graph, params), x)

    x = jnp.ones((1, 9, 9, 8))
    held, rest = hoisting.split(forward, params, x)
    repeated = {e.primitive.name for e in jax.make_jaxpr(rest)(held, x).eqns}
    assert "conv_general_dilated" in repeated
    assert not repeated & {"mul", "rsqrt", "sub"}
