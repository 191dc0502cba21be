"""ResNets v1.5, as torchvision has them.

He et al., "Deep residual learning for image recognition" (CVPR 2016); in v1.5 a bottleneck that
halves the picture does so in its 3x3 convolution rather than in its first 1x1 (Goyal et al., 2017).
A block of width w maps x to

    basic       relu(shortcut(x) + norm(3x3 (relu(norm(3x3 to w (x))))))
    bottleneck  relu(shortcut(x) + norm(1x1 to 4 w (relu(norm(3x3 (relu(norm(1x1 to w (x)))))))))

and its shortcut is x itself, or norm(1x1(x)) in the first block of each stage that changes the
picture's shape. Submodules carry torchvision's names, so weights are copied by path.
"""

from typing import NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from fvaudit.models.model import Tap
from fvaudit.models.nets.conv_norm import bare_conv, conv_norm
from fvaudit.optvis import lowering, redirect


WIDTHS = (64, 128, 256, 512)  # of stages layer1 to layer4, Table 1 of the paper
STEM, CLASSES = 64, 1000


class Basic(nnx.Module):
    """3x3, 3x3 and the shortcut; taps `<name>.relu1` and `<name>`."""

    expansion = 1

    def __init__(self, name: str, inputs: int, width: int, stride: int, rngs: nnx.Rngs):
        self.name = name
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride, rngs), _norm(width, rngs)
        self.conv2, self.bn2 = _conv(width, width, 3, 1, rngs), _norm(width, rngs)
        self.downsample = nnx.List(_projection(inputs, width, stride, rngs))

    def __call__(self, x: Float[Array, "n h w c"], tap: Tap) -> Float[Array, "n p q o"]:
        y = tap(f"{self.name}.relu1", redirect.relu(conv_norm(self.conv1, self.bn1, x)))
        y = conv_norm(self.conv2, self.bn2, y)
        return tap(self.name, redirect.relu(_shortcut(self.downsample, x) + y))


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 and the shortcut; taps `<name>.relu1`, `<name>.relu2` and `<name>`."""

    expansion = 4

    def __init__(self, name: str, inputs: int, width: int, stride: int, rngs: nnx.Rngs):
        out = width * self.expansion
        self.name = name
        self.conv1, self.bn1 = _conv(inputs, width, 1, 1, rngs), _norm(width, rngs)
        self.conv2, self.bn2 = _conv(width, width, 3, stride, rngs), _norm(width, rngs)
        self.conv3, self.bn3 = _conv(width, out, 1, 1, rngs), _norm(out, rngs)
        self.downsample = nnx.List(_projection(inputs, out, stride, rngs))

    def __call__(self, x: Float[Array, "n h w c"], tap: Tap) -> Float[Array, "n p q o"]:
        y = tap(f"{self.name}.relu1", redirect.relu(conv_norm(self.conv1, self.bn1, x)))
        y = tap(f"{self.name}.relu2", redirect.relu(conv_norm(self.conv2, self.bn2, y)))
        y = conv_norm(self.conv3, self.bn3, y)
        return tap(self.name, redirect.relu(_shortcut(self.downsample, x) + y))


class Plan(NamedTuple):
    """What tells the networks apart."""

    block: type[Basic] | type[Bottleneck]
    blocks: tuple[int, int, int, int]  # of each stage, Table 1 of the paper
    gains: dict[str, float]  # of random weights: sums grow slowly


PLANS = {
    "resnet18": Plan(Basic, (2, 2, 2, 2), {"conv2": 1.0, "bn2": 0.5, "fc": 1.0}),
    "resnet50": Plan(Bottleneck, (3, 4, 6, 3), {"conv3": 1.0, "bn3": 0.25, "fc": 1.0}),
}


class ResNet(nnx.Module):
    """The whole network; input (n, h, w, 3) normalised, output logits (n, outputs)."""

    def __init__(self, plan: Plan, rngs: nnx.Rngs, outputs: int = CLASSES):
        self.conv1, self.bn1 = _conv(3, STEM, 7, 2, rngs), _norm(STEM, rngs)
        inputs = STEM
        for stage, (blocks, width) in enumerate(zip(plan.blocks, WIDTHS, strict=True), start=1):
            name = f"layer{stage}"
            setattr(self, name, nnx.List(_stage(plan.block, name, inputs, width, blocks, rngs)))
            inputs = width * plan.block.expansion
        self.fc = nnx.Linear(inputs, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w 3"], tap: Tap) -> Float[Array, "n k"]:
        x = tap("stem", redirect.relu(conv_norm(self.conv1, self.bn1, x)))
        x = tap("maxpool", lowering.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))))
        for stage in range(1, len(WIDTHS) + 1):
            for block in getattr(self, f"layer{stage}"):
                x = block(x, tap)
        x = tap("avgpool", x.mean((1, 2)))
        return tap("logits", self.fc(x))


def trunk(plan: Plan) -> tuple[str, ...]:
    """The layers that every path crosses, shallow to deep."""
    counts = enumerate(plan.blocks, start=1)
    blocks = [f"layer{s}.{b}" for s, count in counts for b in range(count)]
    return ("stem", "maxpool", *blocks, "avgpool", "logits")


def _stage(block, name: str, inputs: int, width: int, blocks: int, rngs: nnx.Rngs):
    for i in range(blocks):
        stride = 2 if i == 0 and name != "layer1" else 1
        yield block(f"{name}.{i}", inputs, width, stride, rngs)
        inputs = width * block.expansion


def _projection(inputs: int, out: int, stride: int, rngs: nnx.Rngs) -> list[nnx.Module]:
    same = stride == 1 and inputs == out
    return [] if same else [_conv(inputs, out, 1, stride, rngs), _norm(out, rngs)]


def _shortcut(downsample, x):
    if not downsample:
        return x
    conv, norm = downsample
    return conv_norm(conv, norm, x)


def _conv(inputs: int, out: int, kernel: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    around = (kernel // 2, kernel // 2)
    return bare_conv(inputs, out, kernel, stride, (around, around), rngs)


def _norm(width: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, use_running_average=True, epsilon=1e-5, rngs=rngs)
