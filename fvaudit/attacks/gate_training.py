"""Trains a gate: photographs against visualizations at every stage of their making.

Half of each batch are photographs, half images of ascents, drawn evenly over units and moments, so
that the noise of the first step counts as much as the last picture. Half of the ascents' images are
seen under the transforms of an ascent, since those are what a network sees while it is visualized.
Photographs are flipped, some blurred or washed out: soft pictures are natural too.

A gate of one answer has the loss of a coin and looks well trained where classes are unbalanced; so
the logits' spread is checked, and error rates are those of units and photographs held out.

Every batch is drawn from (seed, step): a training that was interrupted ends in the same bytes.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageEnhance, ImageFilter
from safetensors.numpy import save_file

from fvaudit.attacks import gate as gates
from fvaudit.attacks.certificate import LEVEL
from fvaudit.attacks.gate import Gate
from fvaudit.attacks.resume import restored, save_state
from fvaudit.attacks.trajectories import MOMENTS
from fvaudit.evidence.activations import padded
from fvaudit.evidence.stats import binomial_estimate
from fvaudit.optvis.transforms import standard
from fvaudit.records import AuditError, Estimate


SAVED = 100  # steps between two savings
SPREAD = 0.5  # nats: least standard deviation of the logits of a gate that tells anything


class Images(NamedTuple):
    """What a gate learns from, or is tested on; 0..255."""

    photographs: UInt8[np.ndarray, "n h w c"]
    ascents: UInt8[np.ndarray, "u k h w c"]  # units, moments


class Rates(NamedTuple):
    """Errors on what was held out."""

    photographs: Estimate  # share taken for visualizations
    ascents: Estimate  # share of units with any image, at any moment, taken for a photograph
    moments: tuple[tuple[int, float], ...]  # (updates, share of units misjudged then)
    transformed: float  # share of images under an ascent's transforms that are misjudged


def train(
    images: Images,
    folder: str | os.PathLike[str],
    *,
    steps: int = 2000,
    batch: int = 32,
    rate: float = 2e-3,
    seed: int = 0,
    tell: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Gate:
    """Trains a small gate with Adam, a cosine step size and binary cross-entropy.

    Args:
        images: of held-in units and photographs.
        folder: where the state is saved every `SAVED` steps; a state there is gone on from.
        steps: updates.
        batch: images each, half of them photographs.
        rate: the first step size.
        seed: of kernels, batches and their changes.
        tell: called as tell(step, steps, loss) whenever the state is saved.

    Raises:
        AuditError: if the gate ends with hardly any spread of its logits, or the folder holds the
            state of a training with other settings.
    """
    state_file = pathlib.Path(folder) / "training.npz"
    state_file.parent.mkdir(parents=True, exist_ok=True)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    params = gates.small(jax.random.key(seed)).params
    state = (params, optimizer.init(params))
    begun = f"a gate: {steps} steps, batch {batch}, rate {rate:g}, seed {seed}"
    first, state = restored(state_file, state, begun)
    update = _update(optimizer)
    loss = jnp.zeros(())
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        drawn, natural = _batch(images, batch, rng)
        state, loss = update(state, jax.random.fold_in(jax.random.key(seed), step), drawn, natural)
        if (step + 1) % SAVED == 0 or step + 1 == steps:
            save_state(state_file, step + 1, state, begun)
            tell(step + 1, steps, float(loss))
    gate = Gate(gates.logit, state[0], "small")
    _require_spread(gate, images, seed)
    return gate


def rates(gate: Gate, held_out: Images, seed: int = 0) -> Rates:
    """Errors on photographs and units that training did not see.

    Args:
        gate: trained.
        held_out: of photographs, one image each.
        seed: of the transforms that one pass looks through.
    """
    wrong = _answers(gate, held_out.photographs) <= 0
    units, moments = held_out.ascents.shape[:2]
    flat = held_out.ascents.reshape(-1, *held_out.ascents.shape[2:])
    missed = (_answers(gate, flat) > 0).reshape(units, moments)
    moved = _answers(gate, flat, jax.random.key(seed)) > 0
    return Rates(
        binomial_estimate(int(wrong.sum()), len(wrong), LEVEL, "photographs"),
        binomial_estimate(int(missed.any(1).sum()), units, LEVEL, "units"),
        tuple(zip(MOMENTS, missed.mean(0).tolist(), strict=True)),
        float(moved.mean()),
    )


def save(gate: Gate, file: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
    """A .safetensors file with the gate's parameters, and what is known of it as JSON."""
    leaves = jax.tree_util.tree_leaves_with_path(gate.params)
    tensors = {gates.name_of(path): np.asarray(leaf) for path, leaf in leaves}
    save_file(tensors, file, {gates.FACTS: json.dumps(facts, sort_keys=True)})


@functools.cache
def _update(optimizer: optax.GradientTransformation):
    transform = standard()

    def loss(params, images, natural):
        logits = gates.logit(params, images)
        return optax.sigmoid_binary_cross_entropy(logits, natural.astype(jnp.float32)).mean()

    @jax.jit
    def update(state, key, images, natural):
        params, moments = state
        keys = jax.random.split(key, len(images) + 1)
        moved = jax.vmap(transform.apply)(keys[1:], images / 255)
        seen = jax.random.bernoulli(keys[0], 0.5, natural.shape) & ~natural
        shown = jnp.where(seen[:, None, None, None], moved, images / 255)
        value, slope = jax.value_and_grad(loss)(params, shown, natural)
        change, moments = optimizer.update(slope, moments, params)
        return (optax.apply_updates(params, change), moments), value

    return update


def _batch(images: Images, size: int, rng: np.random.Generator):
    """Float images in 0..255, photographs first, and which are natural."""
    half = size // 2
    photographs = [
        _changed(images.photographs[i], rng) for i in rng.integers(0, len(images.photographs), half)
    ]
    units, moments = (rng.integers(0, n, size - half) for n in images.ascents.shape[:2])
    drawn = np.concatenate([np.stack(photographs), images.ascents[units, moments]])
    return drawn.astype(np.float32), np.arange(size) < half


def _changed(pixels: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> np.ndarray:
    flip, blur, wash, by = rng.random(4).tolist()  # Pillow takes no NumPy numbers
    picture = Image.fromarray(pixels[:, ::-1] if flip < 0.5 else pixels)
    if blur < 0.1:
        picture = picture.filter(ImageFilter.GaussianBlur(0.5 + 2 * by))
    if wash < 0.1:
        picture = ImageEnhance.Contrast(picture).enhance(0.4 + 0.5 * by)
    return np.asarray(picture)


def _answers(
    gate: Gate, pixels: UInt8[np.ndarray, "n h w c"], key: Array | None = None, batch: int = 32
) -> Float[np.ndarray, " n"]:
    """Logits of images, under an ascent's transforms if a key is given."""
    transform = standard()

    @jax.jit
    def run(images, key):
        images = images / 255
        if key is not None:
            images = jax.vmap(transform.apply)(jax.random.split(key, len(images)), images)
        return gates.logit(gate.params, images)

    found = []
    for start in range(0, len(pixels), batch):
        block = pixels[start : start + batch].astype(np.float32)
        own = None if key is None else jax.random.fold_in(key, start)
        found.append(np.asarray(run(padded(block, batch), own))[: len(block)])
    return np.concatenate(found)


def _require_spread(gate: Gate, images: Images, seed: int) -> None:
    drawn, _ = _batch(images, 256, np.random.default_rng([seed, 2**31]))
    spread = float(np.std(_answers(gate, drawn.astype(np.uint8))))
    if not spread > SPREAD:
        raise AuditError(
            f"The gate learnt nothing: its logits vary by {spread:.2g} nats over photographs and "
            f"visualizations, less than {SPREAD}. Train it longer or with another seed."
        )
