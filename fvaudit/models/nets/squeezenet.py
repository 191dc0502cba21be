"""SqueezeNet 1.0 and 1.1, as torchvision has them: a chain of fire modules, no dense layer.

Iandola et al., "SqueezeNet" (2016); 1.1 has a smaller stem and pools earlier, and costs 2.4 times
less. A fire module squeezes to few channels and expands again:

    x -> squeeze (1x1) -> expand1x1 -- |
                       -> expand3x3 -- | -> fire

every part with its ReLU, the logits too: they are means of conv10 over all positions, never below
0. Layers carry the paper's names; torchvision's (features.N) are aliases.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fvaudit.models.model import Tap
from fvaudit.models.nets.conv_pool import conv, halved
from fvaudit.models.weights import TORCH, Naming, renamed
from fvaudit.optvis import redirect


class Plan(NamedTuple):
    """What tells the two versions apart."""

    stem: int  # channels of conv1
    kernel: int  # of conv1, at stride 2, without padding
    pools: tuple[str, ...]  # the layers that a pool follows


V1_0 = Plan(96, 7, ("conv1", "fire4", "fire8"))
V1_1 = Plan(64, 3, ("conv1", "fire3", "fire5"))
FIRES = {  # Table 1 of the paper: channels of squeeze, and of each of the two expansions
    "fire2": (16, 64),
    "fire3": (16, 64),
    "fire4": (32, 128),
    "fire5": (32, 128),
    "fire6": (48, 192),
    "fire7": (48, 192),
    "fire8": (64, 256),
    "fire9": (64, 256),
}
CLASSES = 1000
GAINS: dict[str, float] = {}  # of random weights


class Fire(nnx.Module):
    """Squeeze and expand; taps `<name>.squeeze`, `.expand1x1`, `.expand3x3` and `<name>`."""

    def __init__(self, name: str, inputs: int, squeeze: int, expand: int, rngs: nnx.Rngs):
        self.name = name
        self.squeeze = conv(inputs, squeeze, 1, rngs)
        self.expand1x1 = conv(squeeze, expand, 1, rngs)
        self.expand3x3 = conv(squeeze, expand, 3, rngs)

    def __call__(self, x: Float[Array, "n h w c"], tap: Tap) -> Float[Array, "n h w o"]:
        x = tap(f"{self.name}.squeeze", redirect.relu(self.squeeze(x)))
        one, three = redirect.relus([self.expand1x1(x), self.expand3x3(x)])
        one, three = tap(f"{self.name}.expand1x1", one), tap(f"{self.name}.expand3x3", three)
        return tap(self.name, jnp.concatenate([one, three], axis=-1))


class SqueezeNet(nnx.Module):
    """The whole network; input (n, h, w, 3) normalised, output logits (n, outputs)."""

    def __init__(self, plan: Plan, rngs: nnx.Rngs, outputs: int = CLASSES):
        self.pools = plan.pools
        self.conv1 = conv(3, plan.stem, plan.kernel, rngs, strides=2, padding=0)
        inputs = plan.stem
        for name, (squeeze, expand) in FIRES.items():
            setattr(self, name, Fire(name, inputs, squeeze, expand, rngs))
            inputs = 2 * expand
        self.conv10 = conv(inputs, outputs, 1, rngs)

    def __call__(self, x: Float[Array, "n h w 3"], tap: Tap) -> Float[Array, "n k"]:
        x = self._pooled("conv1", tap("conv1", redirect.relu(self.conv1(x))), tap)
        for name in FIRES:
            x = self._pooled(name, getattr(self, name)(x, tap), tap)
        x = tap("conv10", redirect.relu(self.conv10(x)))
        return tap("logits", x.mean((1, 2)))

    def _pooled(self, name, x, tap):
        return tap(_pool(self.pools, name), halved(x)) if name in self.pools else x


def trunk(plan: Plan) -> tuple[str, ...]:
    """The layers that every path crosses, shallow to deep: squeezed channels too."""
    fires = [n for v in _chain(plan)[2:] for n in ((f"{v}.squeeze", v) if v in FIRES else (v,))]
    return ("conv1", "pool1", *fires, "conv10", "logits")


def _chain(plan: Plan) -> tuple[str, ...]:
    """conv1, the fire modules, and the pools between them."""
    chain: list[str] = []
    for name in ("conv1", *FIRES):
        chain += [name, _pool(plan.pools, name)] if name in plan.pools else [name]
    return tuple(chain)


def _pool(pools: tuple[str, ...], name: str) -> str:
    return f"pool{pools.index(name) + 1}"


def _modules(plan: Plan) -> dict[str, int]:
    """Every module and its number among torchvision's `features`; its second is conv1's ReLU."""
    return {"conv1": 0, **{name: number for number, name in enumerate(_chain(plan)[1:], start=2)}}


def aliases(plan: Plan) -> dict[str, str]:
    """torchvision's name -> ours."""
    numbers = {**_modules(plan), "conv1": 1}  # after its ReLU
    return {**{f"features.{n}": name for name, n in numbers.items()}, "classifier.2": "conv10"}


def naming(plan: Plan) -> Naming:
    """How torchvision's state dict names the tensors."""
    rules = [(rf"^{name}\.", f"features.{n}.") for name, n in _modules(plan).items()]
    return renamed(TORCH, "", [*rules, (r"^conv10\.", "classifier.1.")])
