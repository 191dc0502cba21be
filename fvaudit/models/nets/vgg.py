"""VGG-16, as torchvision has it: 13 convolutions of 3x3 in five stages, three dense layers.

Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition" (ICLR
2015), configuration D, without batch norm. Layers carry the paper's names, each after its ReLU:
conv1_1 ... conv5_3, pool1 ... pool5, fc6, fc7; torchvision's (features.N, classifier.N, those of
the ReLU and pooling modules) are aliases. fc6 reads the last picture channel by channel.
"""

from flax import nnx
from jaxtyping import Array, Float

from fvaudit.models.model import Tap
from fvaudit.models.nets.conv_pool import conv
from fvaudit.models.weights import TORCH, renamed
from fvaudit.optvis import lowering, redirect
from fvaudit.records import AuditError


STAGES = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)  # output channels
NAMES = {
    f"conv{s}_{i}": width for s, stage in enumerate(STAGES, 1) for i, width in enumerate(stage, 1)
}
LAST = 7  # rows and columns of the last picture
WIDTH, CLASSES = 4096, 1000
GAINS = {"fc8": 1.0}  # of random weights


class VGG16(nnx.Module):
    """The whole network; input (n, 224, 224, 3) normalised, output logits (n, outputs)."""

    def __init__(self, rngs: nnx.Rngs, outputs: int = CLASSES):
        inputs = (3, *NAMES.values())
        self.convs = nnx.Dict(
            {name: conv(i, o, 3, rngs) for i, (name, o) in zip(inputs, NAMES.items(), strict=False)}
        )
        self.fc6 = nnx.Linear(STAGES[-1][-1] * LAST**2, WIDTH, rngs=rngs)
        self.fc7 = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.fc8 = nnx.Linear(WIDTH, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w 3"], tap: Tap) -> Float[Array, "n k"]:
        for s, stage in enumerate(STAGES, 1):
            for i in range(1, len(stage) + 1):
                name = f"conv{s}_{i}"
                x = tap(name, redirect.relu(self.convs[name](x)))
            x = tap(f"pool{s}", lowering.max_pool(x, (2, 2), (2, 2), ((0, 0), (0, 0))))
        x = tap("fc6", redirect.relu(self.fc6(_by_channel(x))))
        x = tap("fc7", redirect.relu(self.fc7(x)))
        return tap("logits", self.fc8(x))


def _by_channel(x: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
    """Flat, one channel after the other, as PyTorch lays pictures out."""
    if x.shape[1:3] != (LAST, LAST):
        raise AuditError(
            f"VGG-16's dense layers read {LAST} x {LAST} positions, that is images of "
            f"{32 * LAST} x {32 * LAST}; got {x.shape[1]} x {x.shape[2]} positions."
        )
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def trunk() -> tuple[str, ...]:
    """The layers that every path crosses, shallow to deep: all of them."""
    stages = [[*(n for n in NAMES if n[4] == str(s)), f"pool{s}"] for s in range(1, 6)]
    return (*sum(stages, []), "fc6", "fc7", "logits")


def _modules() -> dict[str, int]:
    """Every convolution and pool and its number among torchvision's `features`."""
    numbers, number = {}, 0
    for name in trunk()[: len(NAMES) + len(STAGES)]:
        numbers[name] = number
        number += 2 if name in NAMES else 1  # a convolution and its ReLU
    return numbers


_DENSE = {"fc6": 0, "fc7": 3, "fc8": 6}  # and among its `classifier`, with dropout between
ALIASES = {
    **{f"features.{n + (name in NAMES)}": name for name, n in _modules().items()},
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "logits",
}
_FEATURES = [(rf"^convs\.{name}\.", f"features.{n}.") for name, n in _modules().items()]
TORCHVISION = renamed(
    TORCH,
    "torchvision's names",
    [*_FEATURES, *((rf"^{name}\.", f"classifier.{n}.") for name, n in _DENSE.items())],
)
TIMM = renamed(  # fc6 and fc7 are convolutions there
    TORCH,
    "timm's names",
    [
        *_FEATURES,
        (r"^fc8\.", "head.fc."),
        (r"^fc6\.", "pre_logits.fc1."),
        (r"^fc7\.", "pre_logits.fc2."),
    ],
    shapes={
        "pre_logits.fc1.weight": (WIDTH, STAGES[-1][-1], LAST, LAST),
        "pre_logits.fc2.weight": (WIDTH, WIDTH, 1, 1),
    },
)
NAMINGS = (TORCHVISION, TIMM)
