"""What a network does with pictures: its class output, and the range of every channel.

The network is fed pixels, in [0, 1] or not, and normalises them itself as ever. Another
preprocessing is therefore another picture:

    forward(N^-1(M(x))) gives the first layer M(x), where N is the model's own normalisation
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy import special

from fvaudit.models import devices, stream
from fvaudit.models.model import Forward, InputSpec, Model, record


@dataclasses.dataclass(frozen=True)
class Seen:
    """Images, seen by a network."""

    output: Float[np.ndarray, "n c"] | None  # logits or probabilities; None if there are none
    low: dict[str, np.ndarray]  # by layer: least activation of each channel, (n, channels)
    high: dict[str, np.ndarray]  # and the greatest, over positions


class Watch:
    """A model's program. A class, since it holds what was compiled and where parameters lie."""

    def __init__(self, model: Model, output: str | None, lanes: int):
        """Traces the model; compiles nothing yet."""
        devices.start()
        self.model, self.output = model, output
        self.lanes, self.width = lanes, jax.local_device_count() * lanes  # width: of a step
        self._looking = _extremes(model.forward, model.layers, lanes)
        self._scoring = output and _scores(model.forward, output, lanes)
        self._params = devices.replicated(model.params)
        shape = jax.ShapeDtypeStruct((1, *model.input.size, len(model.input.mean)), jnp.float32)
        self.operations: Any = jax.make_jaxpr(lambda p, x: model.forward(p, x, _untouched))(
            model.params, shape
        )

    def see(self, pixels: Float[np.ndarray, "n h w c"]) -> Seen:
        """Runs the network on images of its size, which may lie outside [0, 1]."""
        return Seen(self.scores(pixels), *self._run(self._looking, pixels))

    def scores(self, pixels: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n k"] | None:
        """The class output alone; images may have another size too. None if there is no output."""
        return None if self.output is None else self._run(self._scoring, pixels)

    def _run(self, program: Any, pixels: np.ndarray) -> Any:
        shared, pixels = (self._params,), np.asarray(pixels, np.float32)
        found = stream.whole(program, shared, pixels, self.lanes)
        return jax.tree.map(lambda x: np.asarray(x, np.float32), found)


def _untouched(name: str, x: Any) -> Any:
    return x


@functools.lru_cache(maxsize=4)
def _extremes(forward: Forward, names: tuple[str, ...], lanes: int):
    """A `stream.program`: params, images -> (least, greatest activation of each channel)."""

    def shard(params, images):
        seen = record(forward, params, images, names)
        channels = {name: x.reshape(len(x), -1, x.shape[-1]) for name, x in seen.items()}
        return tuple({n: f(x, axis=1) for n, x in channels.items()} for f in (jnp.min, jnp.max))

    return stream.program(shard, 1, lanes)


@functools.lru_cache(maxsize=4)
def _scores(forward: Forward, output: str, lanes: int):
    """A `stream.program`: params, images -> the output layer."""
    return stream.program(lambda p, x: record(forward, p, x, (output,))[output], 1, lanes)


def output_layer(model: Model) -> str | None:
    """The layer that scores classes: `logits`, else the last that is a vector; or None."""
    if "logits" in model.shapes and len(model.shapes["logits"]) == 1:
        return model.resolve("logits")
    vectors = [name for name in model.layers if len(model.shapes[name]) == 1]
    last = vectors[-1] if vectors else None
    return last if last is not None and model.shapes[last][0] > 1 else None


def log_probabilities(output: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Of classes: from logits, or from rows that are probabilities already."""
    wide = output.astype(np.float64)
    if wide.min() >= 0 and np.allclose(wide.sum(1), 1, atol=1e-3):
        return np.log(np.maximum(wide, 1e-12))
    return wide - special.logsumexp(wide, axis=1, keepdims=True)


def spread(rows: Int[np.ndarray, " n"], limit: int) -> Int[np.ndarray, " k"]:
    """At most `limit` of the rows, at even distances."""
    if len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).round().astype(int)]


def fed(spec: InputSpec, pixels: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w c"]:
    """What the first layer gets."""
    return np.asarray(spec.normalise(jnp.asarray(pixels, jnp.float32)))


def inverse(spec: InputSpec, numbers: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w c"]:
    """The pictures of which `spec.normalise` makes `numbers`."""
    ordered = numbers[..., ::-1] if spec.order == "BGR" else numbers
    return np.asarray(ordered * np.asarray(spec.std) + np.asarray(spec.mean), np.float32)
