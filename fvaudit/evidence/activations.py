"""Activations of image sets: streamed through the model, reduced, standardised.

Per image and layer two things are kept: channel responses (the spatial mean of each channel, which
is what `Channel` objectives maximize) and a feature vector for path similarity:

    spatial   all positions and channels, flattened; above `max_features` a subset drawn once per
              layer from the seed, the same for every image, and recorded
    pooled    channel means

Feature vectors are standardised at once (ranks for Spearman), so that all pairs are one product.
"""

import functools
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fvaudit.evidence.similarity import standardise
from fvaudit.models import devices
from fvaudit.models.model import Forward, Model, record
from fvaudit.records import AuditError


class Features(NamedTuple):
    """One image set, seen by one model."""

    responses: dict[str, Float[np.ndarray, "n c"]]  # layer -> spatial mean of each channel
    vectors: dict[str, Float[np.ndarray, "n d"]]  # layer -> standardised feature vectors


def collect(
    model: Model,
    images: Float[np.ndarray, "n h w c"],
    layers: Sequence[str],
    *,
    metric: str = "spearman",
    variant: str = "spatial",
    max_features: int = 32768,
    seed: int = 0,
    lanes: int = 8,
) -> Features:
    """Streams images through the model and keeps responses and standardised feature vectors.

    Args:
        model: the network.
        images: in [0, 1], of the model's input size.
        layers: which layers.
        metric: "spearman", "pearson" or "cosine".
        variant: "spatial" or "pooled".
        max_features: at most this many features per layer.
        seed: of the feature subset.
        lanes: images per device and program. Batches are padded to one fixed shape, and a
            matrix product may round an image's last bits by its place in a batch: equal bytes
            need equal images in equal order, so an audit passes one unit's images per call.

    Raises:
        AuditError: for unknown layers, metrics or variants, or images of another size or range.
    """
    if variant not in ("spatial", "pooled"):
        raise AuditError(f"variant must be 'spatial' or 'pooled', got {variant!r}.")
    model.require_size(images.shape)
    _require_range(images)
    devices.start()
    chosen = {layer: _subset(model, layer, variant, max_features, seed) for layer in layers}
    run = _program(model.forward, tuple(layers), variant)
    width = jax.local_device_count() * lanes
    params, picks = devices.replicated(model.params), devices.replicated(chosen)
    responses = {layer: [] for layer in layers}
    vectors = {layer: [] for layer in layers}
    for start in range(0, len(images), width):
        batch = images[start : start + width]
        full = np.concatenate([batch, np.repeat(batch[-1:], width - len(batch), axis=0)])
        for layer, (mean, vector) in jax.device_get(run(params, picks, full)).items():
            responses[layer].append(mean[: len(batch)])
            vectors[layer].append(standardise(np.asarray(vector[: len(batch)]), metric))
    return Features(
        {layer: np.concatenate(rows) for layer, rows in responses.items()},
        {layer: np.concatenate(rows) for layer, rows in vectors.items()},
    )


@functools.lru_cache(maxsize=8)
def _program(forward: Forward, layers: tuple[str, ...], variant: str):
    """Jitted (params, picks, images) -> {layer: (channel responses, features)}, on all devices."""

    def shard(params, picks, images):
        out = {}
        for layer, x in record(forward, params, images, layers).items():
            mean = x.mean(tuple(range(1, x.ndim - 1)))
            flat = mean if variant == "pooled" else x.reshape(len(x), -1)
            out[layer] = (mean, jnp.take(flat, picks[layer], axis=1))
        return out

    return devices.on_every_device(shard, shared=2)


def feature_count(model: Model, layer: str, variant: str) -> int:
    """How many features of a layer there are to compare."""
    shape = model.shapes[layer]
    return shape[-1] if variant == "pooled" else int(np.prod(shape))


def _subset(
    model: Model, layer: str, variant: str, max_features: int, seed: int
) -> Int[np.ndarray, " d"]:
    """Which features of a layer are compared: all, or a seeded subset in rising order."""
    model.require_layer(layer)
    size = feature_count(model, layer, variant)
    if size <= max_features:
        return np.arange(size)
    rng = np.random.default_rng([seed, zlib.crc32(layer.encode())])
    return np.sort(rng.choice(size, max_features, replace=False))


def _require_range(images: Float[np.ndarray, "n h w c"]) -> None:
    low, high = (float(f(images)) for f in (np.min, np.max)) if len(images) else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise AuditError(
            f"Images must lie in [0, 1], got [{low:.3g}, {high:.3g}]. Divide 0..255 by 255, and "
            "leave the mean and the standard deviation to the model."
        )
