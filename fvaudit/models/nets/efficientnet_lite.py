"""EfficientNet-Lite0: MBConv blocks without squeeze-and-excitation, ReLU6 throughout.

Tan & Le, "EfficientNet" (ICML 2019), and the Lite variants of the TPU reference implementation:
TensorFlow 'SAME' padding, batch norm with eps 1e-3, block outputs linear, a residual sum in the
second and later blocks of each stage. Submodules carry the checkpoint's names, so weights are
copied by path.
"""

from typing import NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from fvaudit.models.model import Tap
from fvaudit.models.nets.conv_norm import bare_conv, conv_norm
from fvaudit.optvis import redirect


class Stage(NamedTuple):
    """Blocks that share kernel, width and expansion; the first one may stride."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    width: int  # output channels


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
GAINS = {"project_conv": 1.0, "bn2": 0.5, "fc": 1.0}  # of random weights: sums grow slowly


class MBConv(nnx.Module):
    """Expand 1 x 1, depthwise k x k, project 1 x 1; the sum with the input where shapes allow."""

    def __init__(self, name: str, width: int, stage: Stage, stride: int, rngs: nnx.Rngs):
        middle = width * stage.expand
        self.name = name
        self.residual = stride == 1 and width == stage.width
        self.expand_conv = _conv(width, middle, 1, rngs=rngs) if stage.expand > 1 else None
        self.bn0 = _norm(middle, rngs) if stage.expand > 1 else None
        self.depthwise_conv = _conv(middle, middle, stage.kernel, stride, middle, rngs=rngs)
        self.bn1 = _norm(middle, rngs)
        self.project_conv = _conv(middle, stage.width, 1, rngs=rngs)
        self.bn2 = _norm(stage.width, rngs)

    def __call__(self, x: Float[Array, "n h w c"], tap: Tap) -> Float[Array, "n p q o"]:
        y = x
        if self.expand_conv is not None and self.bn0 is not None:
            y = tap(f"{self.name}.expand", redirect.relu6(conv_norm(self.expand_conv, self.bn0, y)))
        y = tap(
            f"{self.name}.depthwise", redirect.relu6(conv_norm(self.depthwise_conv, self.bn1, y))
        )
        y = conv_norm(self.project_conv, self.bn2, y)
        return tap(self.name, x + y if self.residual else y)


class EfficientNetLite(nnx.Module):
    """The whole network; input (n, 224, 224, 3) normalised, output logits (n, outputs)."""

    def __init__(self, stages: tuple[Stage, ...], rngs: nnx.Rngs, outputs: int = CLASSES):
        self.conv_stem = _conv(3, STEM, 3, 2, rngs=rngs)
        self.bn0 = _norm(STEM, rngs)
        self.blocks = nnx.List(_blocks(stages, rngs))
        self.conv_head = _conv(stages[-1].width, HEAD, 1, rngs=rngs)
        self.bn1 = _norm(HEAD, rngs)
        self.fc = nnx.Linear(HEAD, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w 3"], tap: Tap) -> Float[Array, "n k"]:
        x = tap("stem", redirect.relu6(conv_norm(self.conv_stem, self.bn0, x)))
        for block in self.blocks:
            x = block(x, tap)
        x = tap("head", redirect.relu6(conv_norm(self.conv_head, self.bn1, x)))
        x = tap("avgpool", x.mean((1, 2)))
        return tap("logits", self.fc(x))


def trunk(stages: tuple[Stage, ...]) -> tuple[str, ...]:
    """The layers that every path crosses, shallow to deep."""
    blocks = sum(stage.blocks for stage in stages)
    return ("stem", *(f"blocks.{i}" for i in range(blocks)), "head", "avgpool", "logits")


def _blocks(stages, rngs):
    width, index = STEM, 0
    for stage in stages:
        for first in range(stage.blocks):
            stride = stage.stride if first == 0 else 1
            yield MBConv(f"blocks.{index}", width, stage, stride, rngs)
            width, index = stage.width, index + 1


def _conv(width, out, kernel, stride=1, groups=1, *, rngs) -> nnx.Conv:
    return bare_conv(width, out, kernel, stride, "SAME", rngs, groups=groups)


def _norm(width, rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, use_running_average=True, epsilon=1e-3, rngs=rngs)
