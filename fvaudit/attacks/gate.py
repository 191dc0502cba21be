"""Natural photograph or visualization? The classifier that opens a fooling circuit.

A small convolutional network over the image that the model sees, after the "SimpleCNN" of Geirhos
et al. (2024), App. C.1, with three changes: input scaled to [-1, 1] and a mean over positions in
place of the last dense layer (raw inputs of +-117 collapsed to the prior in a replication), and
strides from the first layer on, which make it four times as fast.

Its answer is a hard threshold, so no gradient passes: a soft gate would be attacked itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from fvaudit.optvis import lowering


WIDTH = 16
# (kernel, stride, channels in) of each convolution; all give WIDTH channels, without padding
LAYERS = ((3, 2, 3), (5, 2, WIDTH), (5, 2, WIDTH), (5, 2, WIDTH), (3, 1, WIDTH))


class Gate(NamedTuple):
    """Says of images whether they are natural."""

    logit: Callable[[Any, Float[Array, "n h w c"]], Float[Array, " n"]]  # above 0: natural
    params: Any  # pytree of arrays
    name: str  # for call texts

    def natural(self, params: Any, images: Float[Array, "n h w c"]) -> Bool[Array, " n"]:
        """Whether each image in [0, 1] is natural; passes no gradient."""
        return jax.lax.stop_gradient(self.logit(params, images)) > 0


def always(natural: bool) -> Gate:
    """A gate that gives one answer, for exact tests."""

    def logit(params, images):
        return jnp.full(len(images), params)

    return Gate(logit, jnp.float32(1.0 if natural else -1.0), f"always({natural})")


def small(key: Key[Array, ""]) -> Gate:
    """An untrained gate: He-normal kernels, so that logits vary from the start."""
    params: dict[str, Any] = {}
    for i, (size, _, channels) in enumerate(LAYERS):
        fan = size * size * channels
        draw = jax.random.normal(jax.random.fold_in(key, i), (size, size, channels, WIDTH))
        params[f"conv{i}"] = {"kernel": draw * np.sqrt(2 / fan), "bias": jnp.zeros(WIDTH)}
    last = jax.random.fold_in(key, len(LAYERS))
    params["head"] = {"kernel": jax.random.normal(last, (WIDTH,)) / 4, "bias": jnp.zeros(())}
    return Gate(logit, params, "small")


def logit(params: Any, images: Float[Array, "n h w c"]) -> Float[Array, " n"]:
    """The small network: evidence, in nats, that images in [0, 1] are natural."""
    x = 2 * images - 1
    for i, (_, stride, _) in enumerate(LAYERS):
        kernel, bias = params[f"conv{i}"]["kernel"], params[f"conv{i}"]["bias"]
        x = lowering.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + bias)
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
