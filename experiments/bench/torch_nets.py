"""The benchmark's networks in plain torch.nn: GoogLeNet, EfficientNet-Lite0, ResNet-50.

Each is an `nn.Sequential` of named stages, images (n, 3, 224, 224) in [0, 1] in, so that a network
is cut off after a layer by keeping the stages up to its name. Batch norms are folded into the
convolutions, as anybody would who only needs the input gradient.

GoogLeNet: Szegedy et al. 2015 in BVLC's version; EfficientNet-Lite0: Tan & Le 2019, the Lite
variant; ResNet-50: He et al. 2015 with the stride on the 3 x 3 convolution.
"""

import pathlib
from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.nn import functional as F


Tensors = Mapping[str, np.ndarray]  # kernels HWIO, matrices IO
MODELS = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "models"


def load(network: str, folder: pathlib.Path = MODELS) -> nn.Sequential:
    """A whole network in eval mode, float32; trained weights, for ResNet-50 random ones."""
    return _NETWORKS[network](folder).eval()


def truncated(net: nn.Sequential, layer: str) -> nn.Sequential:
    """The stages up to and including `layer`, frozen, channels last."""
    names = [name for name, _ in net.named_children()]
    kept = nn.Sequential(OrderedDict(list(net.named_children())[: names.index(layer) + 1]))
    kept = kept.eval().requires_grad_(False)
    return kept.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def gradient_flops(net: nn.Module) -> int:
    """Direct-convolution FLOPs of one image's forward pass and input gradient: 4 per product."""
    products = 0

    def count(module, inputs, output):
        nonlocal products
        products += module.weight.numel() * output[0, 0].numel()

    counted = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [m.register_forward_hook(count) for m in counted]
    with torch.no_grad():
        net(torch.zeros(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    return 4 * products


class Scaled(nn.Module):
    """(x - mean) / std, per channel, for x in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean, std):
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Pooled(nn.Module):
    """Mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


# GoogLeNet --------------------------------------------------------------------------------------


class ShiftedLrn(nn.Module):
    """`nn.LocalResponseNorm(5)` as five shifted sums over channels: keeps channels last."""

    def forward(self, x: Tensor) -> Tensor:
        square = F.pad(x.square(), (0, 0, 0, 0, 2, 2))
        total = square[:, : x.shape[1]]
        for i in range(1, 5):
            total = total + square[:, i : i + x.shape[1]]
        root = torch.rsqrt(1 + (1e-4 / 5) * total)
        return x * root * torch.sqrt(root)


class Inception(nn.Module):
    """Four branches side by side: 1 x 1, 3 x 3, 5 x 5, pooling."""

    def __init__(self, tensors: Tensors, name: str):
        super().__init__()
        conv = {key: _conv(tensors, f"{name}_{key}") for key in _BRANCHES}
        self.one = _relu(conv["1x1"])
        self.three = _relu(conv["3x3_bottleneck"], conv["3x3"])
        self.five = _relu(conv["5x5_bottleneck"], conv["5x5"])
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), *_relu(conv["pool_reduce"]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


_BRANCHES = ("1x1", "3x3_bottleneck", "3x3", "5x5_bottleneck", "5x5", "pool_reduce")


def googlenet(tensors: Tensors, lrn: Callable[[], nn.Module]) -> nn.Sequential:
    """BVLC GoogLeNet; `lrn` makes its two normalizations."""

    def pool():
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    stages = OrderedDict[str, nn.Module](
        scaled=Scaled([v / 255 for v in (123, 117, 104)], [1 / 255] * 3),
        conv2d0=_relu(_conv(tensors, "conv2d0", stride=2)),
        pool0=pool(),
        norm0=lrn(),
        conv2d1=_relu(_conv(tensors, "conv2d1")),
        conv2d2=_relu(_conv(tensors, "conv2d2")),
        norm1=lrn(),
        pool1=pool(),
    )
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        if name in ("4a", "5a"):
            stages[f"pool{name}"] = pool()
        stages[f"mixed{name}"] = Inception(tensors, f"mixed{name}")
    stages["avgpool"] = Pooled()
    stages["logits"] = _dense(tensors["softmax2_w"], tensors["softmax2_b"])
    return nn.Sequential(stages)


def _conv(tensors: Tensors, name: str, stride: int = 1) -> nn.Conv2d:
    kernel = tensors[f"{name}_w"]
    return _filled(kernel, tensors[f"{name}_b"], stride, kernel.shape[0] // 2)


def _relu(*convs: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(*(m for conv in convs for m in (conv, nn.ReLU(inplace=True))))


# EfficientNet-Lite0 -----------------------------------------------------------------------------

_LITE0 = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))  # blocks and stride of each stage


class MBConv(nn.Module):
    """Expand, depthwise, project, and the sum with the input where shapes allow."""

    def __init__(self, tensors: Tensors, name: str, stride: int):
        super().__init__()
        parts = []
        if f"{name}.expand_conv.weight" in tensors:
            parts += [*_folded(tensors, f"{name}.expand_conv", f"{name}.bn0"), nn.ReLU6(True)]
        parts += [*_folded(tensors, f"{name}.depthwise_conv", f"{name}.bn1", stride, True)]
        project = _folded(tensors, f"{name}.project_conv", f"{name}.bn2")
        self.body = nn.Sequential(*parts, nn.ReLU6(True), *project)
        first = tensors.get(f"{name}.expand_conv.weight")
        width = first.shape[2] if first is not None else project[-1].in_channels
        self.residual = stride == 1 and width == project[-1].out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def efficientnet_lite0(tensors: Tensors) -> nn.Sequential:
    stages = OrderedDict[str, nn.Module](scaled=Scaled([127 / 255] * 3, [128 / 255] * 3))
    stem = _folded(tensors, "conv_stem", "bn0", 2)
    stages["stem"] = nn.Sequential(*stem, nn.ReLU6(True))
    strides = [s if i == 0 else 1 for blocks, s in _LITE0 for i in range(blocks)]
    for i, stride in enumerate(strides):
        stages[f"blocks_{i}"] = MBConv(tensors, f"blocks.{i}", stride)
    stages["head"] = nn.Sequential(*_folded(tensors, "conv_head", "bn1"), nn.ReLU6(True))
    stages["avgpool"] = Pooled()
    stages["logits"] = _dense(tensors["fc.weight"], tensors["fc.bias"])
    return nn.Sequential(stages)


def _folded(
    tensors: Tensors, conv: str, norm: str, stride: int = 1, depthwise: bool = False
) -> list[nn.Module]:
    """TensorFlow's SAME padding, then the convolution with its batch norm folded in."""
    gain = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"] + 1e-3)
    bias = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * gain
    kernel = tensors[f"{conv}.weight"] * gain
    whole = kernel.shape[0] - stride  # for even sizes
    if stride == 1:
        return [_filled(kernel, bias, 1, whole // 2, depthwise)]
    before = whole // 2
    pad = nn.ZeroPad2d((before, whole - before, before, whole - before))
    return [pad, _filled(kernel, bias, stride, 0, depthwise)]


# ResNet-50 --------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 and the shortcut."""

    def __init__(self, width: int, middle: int, stride: int):
        super().__init__()
        out = 4 * middle
        relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(
            nn.Conv2d(width, middle, 1), relu,
            nn.Conv2d(middle, middle, 3, stride, 1), relu,
            nn.Conv2d(middle, out, 1),
        )  # fmt: skip
        same = width == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(width, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


def resnet50() -> nn.Sequential:
    """Random weights: PyTorch's own initialization, seed 0."""
    torch.manual_seed(0)
    stages = OrderedDict[str, nn.Module](
        scaled=Scaled([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        stem=nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(inplace=True)),
        pool=nn.MaxPool2d(3, 2, 1),
    )
    width = 64
    for i, (blocks, middle) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        group = []
        for block in range(blocks):
            group.append(Bottleneck(width, middle, 2 if block == 0 and i > 0 else 1))
            width = 4 * middle
        stages[f"layer{i + 1}"] = nn.Sequential(*group)
    stages["avgpool"] = Pooled()
    stages["logits"] = nn.Linear(width, 1000)
    return nn.Sequential(stages)


# Tensors into modules ---------------------------------------------------------------------------


def _filled(kernel, bias, stride: int, padding: int, depthwise: bool = False) -> nn.Conv2d:
    """A convolution from an HWIO kernel; depthwise kernels are (k, k, 1, c)."""
    k, _, inner, out = kernel.shape
    groups = out if depthwise else 1
    conv = nn.Conv2d(inner * groups, out, k, stride, padding, groups=groups)
    conv.weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    conv.bias = nn.Parameter(torch.from_numpy(np.array(bias)))
    return conv


def _dense(matrix: np.ndarray, bias: np.ndarray) -> nn.Linear:
    linear = nn.Linear(*matrix.shape)
    linear.weight.data = torch.from_numpy(matrix.T.copy())
    linear.bias.data = torch.from_numpy(np.array(bias))
    return linear


_NETWORKS: dict[str, Callable[[pathlib.Path], nn.Sequential]] = {
    "googlenet": lambda folder: googlenet(
        load_file(folder / "googlenet_bvlc.safetensors"), lambda: nn.LocalResponseNorm(5)
    ),
    "googlenet-own-lrn": lambda folder: googlenet(
        load_file(folder / "googlenet_bvlc.safetensors"), ShiftedLrn
    ),
    "efficientnet_lite0": lambda folder: efficientnet_lite0(
        load_file(folder / "efficientnet_lite0.safetensors")
    ),
    "resnet50": lambda folder: resnet50(),
}
