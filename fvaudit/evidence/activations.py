"""Activations of image sets: streamed through the model, reduced, ranked.

Per image and layer two things are kept: channel responses (the spatial mean of each channel, which
is what `Channel` objectives maximize) and a feature vector for path similarity:

    spatial   all positions and channels, flattened; above `max_features` a subset drawn once per
              layer from the seed, the same for every image, and recorded
    pooled    channel means

The tokens of a transformer are positions like any other: features are tokens x channels, or means
over all tokens, CLS among them. Its views "....cls" and "....patches" are layers of their own.

Feature vectors are ranked at once, once per image, on host threads while the devices compute the
next batch; all pairs are then one matrix product. `collect` keeps the vectors (for Spearman 2 bytes
a feature, exactly), `compare` only their similarities to vectors that are known already, so that
its memory does not grow with the features of the images that pass.
"""

import dataclasses
import functools
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from fvaudit.evidence.similarity import kept, rank_type, require_metric, unit_rows
from fvaudit.models import devices, stream
from fvaudit.models.model import Forward, Model, record
from fvaudit.records import AuditError, Unit, require_seed, require_unit_range, require_whole


@dataclasses.dataclass(frozen=True)
class Settings:
    """How feature vectors are made; only vectors made alike can be compared.

    Raises:
        AuditError: for no features or more than 2^24, or a seed outside 0..2^31 - 1.
    """

    metric: str = "spearman"  # or "pearson" or "cosine"
    variant: str = "spatial"  # or "pooled"
    max_features: int = 32768  # at most this many features per layer
    seed: int = 0  # of the feature subset

    def __post_init__(self) -> None:
        require_whole("max_features", self.max_features, 1, 2**24)
        require_seed(self.seed)


class Features(NamedTuple):
    """One image set, seen by one model."""

    responses: dict[str, Float[np.ndarray, "n c"]]  # layer -> spatial mean of each channel
    vectors: dict[str, Num[np.ndarray, "n d"]]  # layer -> vectors for `similarity_matrix`
    settings: Settings = Settings()  # what the vectors were made with


def collect(
    model: Model,
    images: Float[np.ndarray, "n h w c"],
    layers: Sequence[str],
    *,
    metric: str = "spearman",
    variant: str = "spatial",
    max_features: int = 32768,
    seed: int = 0,
    lanes: int | None = None,
) -> Features:
    """Streams images through the model and keeps responses and feature vectors.

    Args:
        model: the network.
        images: in [0, 1], of the model's input size.
        layers: which layers.
        metric: "spearman", "pearson" or "cosine".
        variant: "spatial" or "pooled".
        max_features: at most this many features per layer.
        seed: of the feature subset.
        lanes: images that a device takes at a time; unless given 1 on a CPU, where an image's
            vectors therefore do not depend on its neighbours, and 16 elsewhere, where they may
            in their last bits.

    Returns:
        Vectors as `similarity.kept` describes them: int16 or int32 ranks, or float32.

    Raises:
        AuditError: for unknown layers, metrics or variants, or images of another size or range.
    """
    settings = Settings(metric, variant, max_features, seed)
    found = _empty(model, len(images), layers, settings)
    for rows, part in _stream(model, images, layers, settings, lanes):
        for layer in layers:
            found.responses[layer][rows] = part.responses[layer]
            found.vectors[layer][rows] = part.vectors[layer]
    return found


def responses(
    model: Model, images: Float[np.ndarray, "n h w c"], unit: Unit, *, lanes: int | None = None
) -> Float[np.ndarray, " n"]:
    """One unit's response to every image: a neuron's activation, or a channel's mean.

    Args:
        model: the network.
        images: in [0, 1], of the model's input size.
        unit: of the network.
        lanes: images that a device takes at a time; as in `collect`.

    Raises:
        AuditError: if the unit does not exist, or for images of another size or range.
    """
    model.require_unit(unit)
    _require(model, images, Settings())
    devices.start()
    if not len(images):
        return np.empty(0, np.float32)
    lanes = devices.lanes(lanes)
    run = _response_program(model.forward, unit.layer, lanes)
    shared = (devices.replicated(model.params), unit.channel, unit.position or ())
    return stream.whole(run, shared, images, lanes)


@functools.lru_cache(maxsize=8)
def _response_program(forward: Forward, layer: str, lanes: int):
    """A `stream.program`: (params, channel, position), images -> responses."""

    def shard(params, channel, position, images):
        x = record(forward, params, images, [layer])[layer]
        for place in position:
            x = jnp.take(x, place, axis=1)
        return jnp.take(x.mean(tuple(range(1, x.ndim - 1))), channel, axis=-1)

    return stream.program(shard, 3, lanes)


def compare(
    model: Model,
    images: Float[np.ndarray, "n h w c"],
    known: Features,
    *,
    lanes: int | None = None,
) -> dict[str, Float[np.ndarray, "n m"]]:
    """Similarity of every image with every known vector, per layer; keeps no vector of theirs.

    Memory: the known vectors in float32, a few batches, and what is returned.

    Args:
        model: the network.
        images: in [0, 1], of the model's input size.
        known: features of m images; its layers and settings are used.
        lanes: images that a device takes at a time; as in `collect`.

    Returns:
        In [-1, 1]; NaN where either vector has no direction.

    Raises:
        AuditError: if the images have another size or range.
    """
    layers = tuple(known.vectors)
    held = _held(known.vectors)
    found = {v: np.empty((len(images), len(known.vectors[v])), np.float32) for v in layers}
    waiting = []
    width = stream.width(devices.lanes(lanes))
    for rows, part in _stream(model, images, layers, known.settings, lanes, responses=False):
        units = {layer: padded(unit_rows(v), width) for layer, v in part.vectors.items()}
        waiting.append((rows, _products()(units, held)))  # JAX computes while the loop goes on
    for rows, products in waiting:
        for layer, block in products.items():
            out = found[layer][rows]
            np.clip(np.asarray(block).T[: len(out), : out.shape[1]], -1, 1, out=out)
    return found


def _stream(
    model: Model,
    images: Float[np.ndarray, "n h w c"],
    layers: Sequence[str],
    settings: Settings,
    lanes: int | None,
    *,
    responses: bool = True,
) -> Iterator[tuple[slice, Features]]:
    """Features of batch after batch, with the rows of `images` that they belong to.

    Without `responses` those are left empty, which saves a pass over every layer.
    """
    _require(model, images, settings)
    devices.start()
    lanes = devices.lanes(lanes)
    run = _program(model.forward, tuple(layers), settings.variant, responses, lanes)
    shared = devices.replicated((model.params, _subsets(model, layers, settings)))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for rows, out in stream.calls(run, shared, images, lanes):
            yield rows, _reduced(out, rows, settings, pool)


def _reduced(out, rows: slice, settings: Settings, pool: ThreadPoolExecutor) -> Features:
    """What a program made of these images; layers are ranked side by side."""

    def reduce(layer: str):
        return np.concatenate([kept(x, settings.metric) for x in stream.parts(out[layer], rows)])

    means, out = out
    vectors = dict(zip(out, pool.map(reduce, out), strict=True))
    return Features({v: stream.rows(x, rows) for v, x in means.items()}, vectors, settings)


def _empty(model: Model, count: int, layers: Sequence[str], settings: Settings) -> Features:
    """Room for the features of `count` images."""
    responses, vectors = {}, {}
    for layer in layers:
        model.require_layer(layer)
        size = min(feature_count(model, layer, settings.variant), settings.max_features)
        kind = rank_type(size) if settings.metric == "spearman" else np.float32
        responses[layer] = np.empty((count, model.shapes[layer][-1]), np.float32)
        vectors[layer] = np.empty((count, size), kind)
    return Features(responses, vectors, settings)


def padded(rows: Num[np.ndarray, "n ..."], count: int) -> Num[np.ndarray, "m ..."]:
    """Filled up to `count` rows with the last one."""
    if len(rows) == count:
        return rows
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])


@functools.lru_cache(maxsize=8)
def _program(forward: Forward, layers: tuple[str, ...], variant: str, responses: bool, lanes: int):
    """A `stream.program`: (params, picks), images -> (channel responses, features) by layer."""

    def shard(params, picks, images):
        means, features = {}, {}
        for layer, x in record(forward, params, images, layers).items():
            mean = x.mean(tuple(range(1, x.ndim - 1)))
            flat = mean if variant == "pooled" else x.reshape(len(x), -1)
            features[layer] = _picked(flat, picks[layer]) if layer in picks else flat
            if responses:
                means[layer] = mean
        return means, features

    return stream.program(shard, 2, lanes)


def _picked(flat: Float[Array, "n d"], places: Int[Array, " k"]) -> Float[Array, "n k"]:
    """Columns at rising places that exist: a gather that need not check them is faster."""
    return flat.at[:, places].get(
        mode="promise_in_bounds", indices_are_sorted=True, unique_indices=True
    )


def _held(vectors: Mapping[str, Num[np.ndarray, "m d"]]) -> dict[str, Array]:
    """Unit rows on the devices, an equal share on each."""
    devices.start()
    count = jax.local_device_count()
    place = devices.on_every_device(lambda rows: rows, shared=0)
    return {v: place(padded(unit_rows(x), -(-len(x) // count) * count)) for v, x in vectors.items()}


@functools.cache
def _products():
    """Jitted (rows (n, d), held (m, d)) -> (m, n) per layer: each device multiplies what it holds.

    Host threads rank at the same time, and a BLAS of NumPy's would spin against them.
    """

    def shard(rows, held):
        return {
            layer: jnp.matmul(x, held[layer].T, precision="highest").T for layer, x in rows.items()
        }

    return devices.on_every_device(shard, shared=1)


def feature_count(model: Model, layer: str, variant: str) -> int:
    """How many features of a layer there are to compare."""
    shape = model.shapes[layer]
    return shape[-1] if variant == "pooled" else int(np.prod(shape))


def _subsets(
    model: Model, layers: Sequence[str], settings: Settings
) -> dict[str, Int[np.ndarray, " d"]]:
    """Which features are compared of the layers that have too many: seeded, in rising order."""
    picks = {}
    for layer in layers:
        model.require_layer(layer)
        size = feature_count(model, layer, settings.variant)
        if size > settings.max_features:
            rng = np.random.default_rng([settings.seed, zlib.crc32(layer.encode())])
            picks[layer] = np.sort(rng.choice(size, settings.max_features, replace=False))
    return picks


def _require(model: Model, images: Float[np.ndarray, "n h w c"], settings: Settings) -> None:
    require_metric(settings.metric)
    if settings.variant not in ("spatial", "pooled"):
        raise AuditError(f"variant must be 'spatial' or 'pooled', got {settings.variant!r}.")
    model.require_size(images.shape)
    require_unit_range("Images", images)
