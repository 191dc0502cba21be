"""GoogLeNet (Inception v1) as trained with Caffe by the Berkeley vision group (BVLC).

Szegedy et al., "Going deeper with convolutions" (CVPR 2015). Nine modules of four branches each,
whose outputs are concatenated:

    x -> 1x1 ----------------------------- |
    x -> 3x3_bottleneck (1x1) -> 3x3 ----- | -> mixed
    x -> 5x5_bottleneck (1x1) -> 5x5 ----- |
    x -> pool (max 3/1) -> pool_reduce --- |

Layer names are lucid's, those of tensors before a ReLU too (`conv2d0_pre_relu`; `mixed4d_pre_relu`
joins all branches), and lucid's names of this very network are aliases. It is Caffe's network, not
the "5h" one of most lucid figures, which pads like TensorFlow and has 508 channels in mixed4a, here
512: the stem pads by 3, and pools round up, so their last window may reach one pixel beyond the
edge. Response norm (Krizhevsky et al., 2012) runs over 5 channels:

    y_c = x_c / (1 + 1e-4 / 5 * sum_{|d - c| <= 2} x_d ** 2) ** 0.75

The three 1x1 convolutions of a module that read x are one matrix product over joined kernels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fvaudit.models.model import Tap
from fvaudit.models.nets.conv_pool import conv, halved
from fvaudit.optvis import lowering, redirect


class Mixed(NamedTuple):
    """Output channels of one module's convolutions."""

    one: int  # 1x1
    three_bottleneck: int
    three: int  # 3x3
    five_bottleneck: int
    five: int  # 5x5
    pool_reduce: int

    @property
    def width(self) -> int:
        """Channels of the concatenated output."""
        return self.one + self.three + self.five + self.pool_reduce


MODULES = {  # Table 1 of the paper
    "mixed3a": Mixed(64, 96, 128, 16, 32, 32),
    "mixed3b": Mixed(128, 128, 192, 32, 96, 64),
    "mixed4a": Mixed(192, 96, 208, 16, 48, 64),
    "mixed4b": Mixed(160, 112, 224, 24, 64, 64),
    "mixed4c": Mixed(128, 128, 256, 24, 64, 64),
    "mixed4d": Mixed(112, 144, 288, 32, 64, 64),
    "mixed4e": Mixed(256, 160, 320, 32, 128, 128),
    "mixed5a": Mixed(256, 160, 320, 32, 128, 128),
    "mixed5b": Mixed(384, 192, 384, 48, 128, 128),
}
POOLS = {"mixed3b": "maxpool2", "mixed4e": "maxpool3"}  # after these modules
CLASSES = 1000
STEM = 192  # channels that the first module reads
GAINS = {"conv2d0": 2 / 70**2, "softmax2": 1.0}  # of random weights; input numbers are near 70
TRUNK = (
    "conv2d0", "maxpool0", "localresponsenorm0", "conv2d1", "conv2d2", "localresponsenorm1",
    "maxpool1", "mixed3a", "mixed3b", "maxpool2", "mixed4a", "mixed4b", "mixed4c", "mixed4d",
    "mixed4e", "maxpool3", "mixed5a", "mixed5b", "avgpool", "logits",
)  # fmt: skip

ALIASES = {
    # lucid's InceptionV1, the 5h network: what goes by another name there
    "avgpool0": "avgpool",
    "maxpool4": "maxpool2",
    "maxpool10": "maxpool3",
    "softmax2_pre_activation": "logits",
    # lucid's InceptionV1_caffe, this network
    "conv1_7x7_s2/conv1_7x7_s2": "conv2d0",
    "conv2_3x3_reduce/conv2_3x3_reduce": "conv2d1",
    "conv2_3x3/conv2_3x3": "conv2d2",
    **{f"inception_{name[5:]}_output": name for name in MODULES},
}
_AUXILIARY = "BVLC's weights come without the auxiliary classifiers of training"
MISSING = {
    **{f"{part}{i}": _AUXILIARY for i in (0, 1) for part in ("head", "nn", "softmax")},
    **{f"head{i}_bottleneck": _AUXILIARY for i in (0, 1)},
    **{
        name: "it would hold probabilities; take the objective ClassProbability, or layer 'logits'"
        for name in ("softmax2", "prob", "output2")
    },
}


class GoogLeNet(nnx.Module):
    """The whole network; input (n, h, w, 3) in 0..255 less the mean, output logits (n, outputs)."""

    def __init__(self, rngs: nnx.Rngs, outputs: int = CLASSES):
        convs = {
            "conv2d0": conv(3, 64, 7, rngs, strides=2),
            "conv2d1": conv(64, 64, 1, rngs),
            "conv2d2": conv(64, STEM, 3, rngs),
        }
        width = STEM
        for name, mixed in MODULES.items():
            convs |= _module(name, width, mixed, rngs)
            width = mixed.width
        self.convs = nnx.Dict(convs)
        self.softmax2 = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w 3"], tap: Tap) -> Float[Array, "n k"]:
        x = self._stem(x, tap)
        for name in MODULES:
            x = self._mixed(name, x, tap)
            if name in POOLS:
                x = tap(POOLS[name], halved(x))
        x = tap("avgpool", x.mean((1, 2)))
        return tap("logits", self.softmax2(x))

    def _stem(self, x, tap):
        (x,) = _active({"conv2d0": self.convs["conv2d0"](x)}, tap)
        x = tap("maxpool0", halved(x))
        x = tap("localresponsenorm0", _response_norm(x))
        (x,) = _active({"conv2d1": self.convs["conv2d1"](x)}, tap)
        (x,) = _active({"conv2d2": self.convs["conv2d2"](x)}, tap)
        x = tap("localresponsenorm1", _response_norm(x))
        return tap("maxpool1", halved(x))

    def _mixed(self, name, x, tap):
        reading = [f"{name}_{part}" for part in ("1x1", "3x3_bottleneck", "5x5_bottleneck")]
        one, three, five = _joined([self.convs[part] for part in reading], x)
        three, five = _active(dict(zip(reading[1:], (three, five), strict=True)), tap)
        pool = lowering.max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)))
        pool = tap(f"{name}_pool", pool)
        branches = {
            f"{name}_1x1": one,
            f"{name}_3x3": self.convs[f"{name}_3x3"](three),
            f"{name}_5x5": self.convs[f"{name}_5x5"](five),
            f"{name}_pool_reduce": self.convs[f"{name}_pool_reduce"](pool),
        }
        branches = _together(f"{name}_pre_relu", branches, tap)
        return tap(name, jnp.concatenate(_active(branches, tap), axis=-1))


def _active(layers: dict[str, Array], tap: Tap) -> list[Array]:
    """ReLU of layers side by side, each tapped before and after."""
    before = [tap(f"{name}_pre_relu", x) for name, x in layers.items()]
    return [tap(name, x) for name, x in zip(layers, redirect.relus(before), strict=True)]


def _together(name: str, branches: dict[str, Array], tap: Tap) -> dict[str, Array]:
    """Taps all branches as one and cuts them apart again; the compiler removes what is idle."""
    widths = [y.shape[-1] for y in branches.values()]
    whole = tap(name, jnp.concatenate(list(branches.values()), axis=-1))
    ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
    return dict(zip(branches, jnp.split(whole, ends, axis=-1), strict=True))


def _joined(convs: Sequence[nnx.Conv], x: Float[Array, "n h w c"]) -> list[Array]:
    """Several 1x1 convolutions of one input as one matrix product, cut apart again."""
    kernel = jnp.concatenate([conv.kernel[...] for conv in convs], axis=-1)
    bias = jnp.concatenate([conv.bias[...] for conv in convs])  # pyright: ignore
    ends = [sum(conv.out_features for conv in convs[: i + 1]) for i in range(len(convs) - 1)]
    product = lowering.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.split(product + bias, ends, axis=-1)


def _response_norm(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    return lowering.local_response_norm(x, 5, 1e-4, 0.75, 1.0)


def _module(name: str, width: int, mixed: Mixed, rngs: nnx.Rngs) -> dict[str, nnx.Conv]:
    return {
        f"{name}_1x1": conv(width, mixed.one, 1, rngs),
        f"{name}_3x3_bottleneck": conv(width, mixed.three_bottleneck, 1, rngs),
        f"{name}_3x3": conv(mixed.three_bottleneck, mixed.three, 3, rngs),
        f"{name}_5x5_bottleneck": conv(width, mixed.five_bottleneck, 1, rngs),
        f"{name}_5x5": conv(mixed.five_bottleneck, mixed.five, 5, rngs),
        f"{name}_pool_reduce": conv(width, mixed.pool_reduce, 1, rngs),
    }
