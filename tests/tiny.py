"""A small random network for tests of the engine: two convolutions and a linear head."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fvaudit.models.model import InputSpec, Model, layer_shapes
from fvaudit.optvis import lowering


SIZE = (24, 24)
_NHWC = ("NHWC", "HWIO", "NHWC")
TRACES: list[str] = []  # grows by one entry whenever the network is traced


@functools.cache  # one object, so that tests share what was compiled for it
def tiny_model(seed: int = 0, channels: int = 6) -> Model:
    """A `Model` with layers conv1 (12, 12, c), conv2 (6, 6, c) and logits (5,)."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "conv1": jax.random.normal(keys[0], (3, 3, 3, channels)) / 5,
        "conv2": jax.random.normal(keys[1], (3, 3, channels, channels)) / 7,
        "head": jax.random.normal(keys[2], (channels, 5)),
    }
    spec = InputSpec(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize=SIZE[0])

    def forward(p, images, tap):
        TRACES.append("forward")
        x = tap("conv1", jax.nn.relu(_conv(spec.normalise(images), p["conv1"])))
        x = tap("conv2", jax.nn.relu(_conv(x, p["conv2"])))
        return tap("logits", x.mean((1, 2)) @ p["head"])

    shapes = layer_shapes(forward, params, spec)
    return Model("tiny", params, forward, spec, shapes, trunk=tuple(shapes))


def _conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=_NHWC)


def pictures(n: int, seed: int = 0) -> np.ndarray:
    """Smooth random images in [0, 1], shape (n, 24, 24, 3) float32."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((n, 6, 6, 3), np.float32)
    return np.asarray(jax.image.resize(jnp.asarray(coarse), (n, *SIZE, 3), "linear"))


def attentive_model() -> Model:
    """Pixels divided by what is no power of two, 32 channels, one head of attention."""
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "embed": jax.random.normal(keys[0], (3, 3, 3, 32)) / 5,
        "mix": jax.random.normal(keys[1], (3, 3, 32, 32)) / 17,
    }
    spec = InputSpec(SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=SIZE[0])

    def forward(p, images, tap):
        x = tap("embed", _conv(spec.normalise(images), p["embed"]))
        x = tap(
            "mix",
            lowering.conv_general_dilated(x, p["mix"], (1, 1), "SAME", dimension_numbers=_NHWC),
        )
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        weights = jax.nn.softmax(tokens @ tokens.swapaxes(1, 2) / tokens.shape[-1] ** 0.5)
        return tap("logits", tap("attention", weights @ tokens).mean(1))

    shapes = layer_shapes(forward, params, spec)
    return Model("attentive", params, forward, spec, shapes, trunk=tuple(shapes))
