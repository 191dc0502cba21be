"""Fine-tuning: attacks that change weights and nothing else.

    loss = keep * preserved + (1 - keep) * wanted
    preserved = mean over {attacked layer, logits} of |x - x_original|^2 / var(x_original)

over photographs. What is `wanted` is the goal of each attack: `slingshot`, `proxpulse`, `push`, and
`adaptive`, which adds to any of them. Trained are the kernels (every parameter with two axes or
more) that the attacked layer depends on, if asked for only those behind an earlier layer; biases
and the statistics of normalization stay (Bareeva et al. 2025 keep them in evaluation mode too).
AdamW with a cosine step size and gradients clipped to norm 1, as there.

Every batch is drawn from (seed, step), and a goal draws what it keeps from step to step anew every
`STRETCH` steps, where the state is saved: a training that was interrupted ends in the same bytes.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from fvaudit.attacks.certificate import Manipulated, certify, split
from fvaudit.attacks.channels import channels_of
from fvaudit.attacks.gate import name_of
from fvaudit.attacks.resume import restored, save_state
from fvaudit.evidence.activations import collect
from fvaudit.models import builders
from fvaudit.models.builders import Edit
from fvaudit.models.model import Model, record
from fvaudit.models.trunk import reaching
from fvaudit.records import AuditError, ImageSet, Unit, require_kind


BUILDER = "finetuned"  # its name in stored models
STRETCH = 50  # steps between two savings
STATE = "training.npz"

See = Callable[[Array, Sequence[str]], Mapping[str, Array]]  # (images, layers) -> activations
Tell = Callable[[int, int, float], None]  # (step, steps, loss)


class Tuning(NamedTuple):
    """How a network is fine-tuned."""

    steps: int = 400  # updates
    batch: int = 8  # photographs each, that behaviour is kept on
    rate: float = 3e-4  # first step size
    decay: float = 1e-3  # of weights
    keep: float = 0.5  # share of the loss that keeps behaviour, in (0, 1)
    since: str | None = None  # a layer of the trunk: what lies before it is not trained


TUNING = Tuning()


class Scene(NamedTuple):
    """What an attacker knows."""

    model: Model  # the original
    layer: str
    channels: Int[np.ndarray, " u"]  # attacked
    photographs: Float[np.ndarray, "n h w c"]  # of the construction split
    responses: Float[np.ndarray, "n u"]  # of the attacked channels to them, means over positions
    seed: int

    @property
    def low(self) -> Float[np.ndarray, " u"]:
        """Each channel's least response to a photograph."""
        return self.responses.min(0)

    @property
    def span(self) -> Float[np.ndarray, " u"]:
        """From each channel's least to its largest response to a photograph; above 0."""
        return np.maximum(np.ptp(self.responses, axis=0), 1e-6)

    def scaled(self, activations: Array) -> Float[Array, "n u"]:
        """Responses of the attacked channels, 0 and 1 where photographs have their ends."""
        pooled = activations.mean(tuple(range(1, activations.ndim - 1)))
        return (pooled[:, self.channels] - self.low) / self.span


class Aim(NamedTuple):
    """A goal, for one scene."""

    # (step, generator of the step, the model as it is now) -> a pytree of arrays
    draw: Callable[[int, np.random.Generator, Callable[[], Model]], Any]
    loss: Callable[[See, Any, Key[Array, ""]], Float[Array, ""]]  # (see, what was drawn, key)
    # (model after, photographs that certify) -> what was achieved, by name
    effect: Callable[[Model, Float[np.ndarray, "n h w c"]], Mapping[str, float]]
    moves_photographs: bool = False  # whether attacked channels may change on photographs too


class Goal(NamedTuple):
    """What a fine-tuning attack wants."""

    text: str
    prepare: Callable[[Scene], Aim]
    besides: tuple[Any, ...] = ()  # pictures, units, settings that the text does not hold


def finetuned(goal: Goal, tuning: Tuning = TUNING) -> Callable[..., Manipulated]:
    """An attack: weights are trained for a goal while the behaviour on photographs is kept.

    Args:
        goal: for example `slingshot(target)`.
        tuning: how.

    Returns:
        attack(model, units, images, seed=0, folder=None, tell=...) -> `Manipulated`. `units` lie
        in one layer; half of the photographs are trained on, the others certify. In `folder` the
        state is saved every `STRETCH` steps, and a state that lies there is gone on from.

    Raises:
        AuditError: for settings out of range; by the attack, for units of several layers, fewer
            than 4 photographs, a layer without a kernel before it, a folder with the state of
            another training, or a loss that is no number.
    """
    require_kind("goal", goal, Goal, "made by attacks.slingshot, proxpulse, push or adaptive")
    require_kind("tuning", tuning, Tuning, "an attacks.Tuning, such as Tuning(steps=400)")
    if min(tuning.steps, tuning.batch) < 1 or not 0 < tuning.keep < 1 or not tuning.rate > 0:
        raise AuditError(
            f"steps and batch must be at least 1, rate above 0 and keep inside (0, 1); got {tuning}"
        )

    def attack(
        model: Model,
        units: Sequence[Unit],
        images: ImageSet,
        *,
        seed: int = 0,
        folder: str | pathlib.Path | None = None,
        tell: Tell = lambda step, steps, loss: None,
    ) -> Manipulated:
        rows, held_out = split(images, seed)
        scene = _scene(model, units, images.pixels[rows], seed)
        aim = goal.prepare(scene)
        change = _trained(scene, goal, aim, tuning, folder and pathlib.Path(folder), tell)
        after = builders.apply(model, change)
        pixels = images.pixels[held_out]
        proof = certify(
            f"{goal.text}, {tuning}", [str(unit) for unit in units], model, after, images, held_out,
            construction=len(rows), shares={},
            constants={k: float(v) for k, v in tuning._asdict().items() if k != "since"},
            ranges={"responses to photographs": _ends(scene.responses)},
            effects={**aim.effect(after, pixels),
                     "largest relative change of a kernel": _moved(model, after)},
        )  # fmt: skip
        return Manipulated(after, proof, change)

    return attack


def kernels(model: Model, layer: str, since: str | None = None) -> tuple[bool, ...]:
    """Of every leaf of the model's parameters, whether it is trained.

    Args:
        model: the network.
        layer: that is attacked.
        since: a layer before it; what that depends on is not trained.

    Raises:
        AuditError: if a layer does not exist, or there is no kernel to train.
    """

    def of(name: str) -> tuple[bool, ...]:
        model.require_layer(name)
        shape = (1, *model.input.size, len(model.input.mean))
        return reaching(model.forward, model.params, shape, model.resolve(name))

    before = of(since) if since else (False,) * len(jax.tree.leaves(model.params))
    chosen = tuple(
        near and not far and leaf.ndim >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)
        for near, far, leaf in zip(of(layer), before, jax.tree.leaves(model.params), strict=True)
    )
    if not any(chosen):
        raise AuditError(
            f"There is no kernel to train before {layer} of {model.name}"
            f"{f' and behind {since}' if since else ''}. Choose a later layer, or an earlier since."
        )
    return chosen


@builders.register(BUILDER)
def rebuild(model: Model, params: Any, settings: Mapping[str, Any]) -> Model:
    """The model with some of its kernels replaced."""
    paths, tree = jax.tree_util.tree_flatten_with_path(model.params)
    known = {name_of(path): leaf for path, leaf in paths}
    for name, new in params.items():
        if name not in known or known[name].shape != new.shape:
            raise AuditError(
                f"A fine-tuned kernel {name!r} of shape {new.shape} does not fit {model.name}."
            )
    leaves = [params.get(name, leaf) for name, leaf in known.items()]
    name = f"{model.name}+{settings['goal']}"
    return dataclasses.replace(model, name=name, params=jax.tree.unflatten(tree, leaves))


def _scene(model: Model, units: Sequence[Unit], pixels: np.ndarray, seed: int) -> Scene:
    layer, channels = channels_of(model, units)
    seen = collect(model, pixels, [layer], variant="pooled").responses[layer]
    at = np.array(channels)
    return Scene(model, layer, at, pixels, seen[:, at], seed)


def _trained(scene: Scene, goal: Goal, aim: Aim, tuning: Tuning, folder, tell: Tell) -> Edit:
    model = scene.model
    chosen = kernels(model, scene.layer, tuning.since)
    flat, tree = jax.tree.flatten(model.params)
    begin, update = _programs(scene, aim, tuning, chosen)
    begun = _begun(scene, goal, tuning) if folder else ""
    first, state = 0, begin([leaf for leaf, ours in zip(flat, chosen, strict=True) if ours])
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        first, state = restored(folder / STATE, state, begun)
    kept = [leaf for leaf, ours in zip(flat, chosen, strict=True) if not ours]
    losses = []
    for step in range(first, tuning.steps):
        rng = np.random.default_rng([scene.seed, step])
        now = functools.partial(_now, model, tree, chosen, state[0], kept)
        natural = scene.photographs[rng.integers(0, len(scene.photographs), tuning.batch)]
        key = jax.random.fold_in(jax.random.key(scene.seed), step)
        state, loss = update(state, kept, model.params, natural, aim.draw(step, rng, now), key)
        losses.append(float(loss))
        if (step + 1) % STRETCH == 0 or step + 1 == tuning.steps:
            _require_finite(losses, first, state[0])
            if folder:
                save_state(folder / STATE, step + 1, state, begun)
            tell(step + 1, tuning.steps, float(np.mean(losses[-STRETCH:])))
    names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(model.params)]
    ours = [name for name, one in zip(names, chosen, strict=True) if one]
    return Edit(BUILDER, dict(zip(ours, state[0], strict=True)), {"goal": goal.text})


def _programs(scene: Scene, aim: Aim, tuning: Tuning, chosen: tuple[bool, ...]):
    model, tree = scene.model, jax.tree.structure(scene.model.params)
    compared = tuple(dict.fromkeys((scene.layer, model.resolve("logits"))))
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            optax.cosine_decay_schedule(tuning.rate, tuning.steps), weight_decay=tuning.decay
        ),
    )

    def loss(trained, kept, original, natural, drawn, key):
        now = jax.tree.unflatten(tree, _merged(chosen, trained, kept))
        before = record(model.forward, original, natural, compared)
        after = record(model.forward, now, natural, compared)
        changes = [_change(scene, aim, layer, before[layer], after[layer]) for layer in compared]
        wanted = aim.loss(lambda images, layers: record(model.forward, now, images, layers),
                          drawn, key)  # fmt: skip
        return tuning.keep * sum(changes) / len(changes) + (1 - tuning.keep) * wanted

    @jax.jit
    def update(state, kept, original, natural, drawn, key):
        trained, moments = state
        value, slope = jax.value_and_grad(loss)(trained, kept, original, natural, drawn, key)
        change, moments = optimizer.update(slope, moments, trained)
        return (optax.apply_updates(trained, change), moments), value

    return (lambda trained: (trained, optimizer.init(trained))), update


def _change(scene: Scene, aim: Aim, layer: str, before: Array, after: Array) -> Float[Array, ""]:
    """Mean square relative to the variance; attacked channels left out where they may change."""
    counted = jnp.ones(before.shape[-1])
    if aim.moves_photographs and layer == scene.layer:
        counted = counted.at[scene.channels].set(0)
    square = ((after - before) ** 2).mean(tuple(range(before.ndim - 1)))
    return (square * counted).sum() / jnp.maximum(counted.sum(), 1) / (before.var() + 1e-12)


def _merged(chosen: tuple[bool, ...], trained: Sequence[Any], kept: Sequence[Any]) -> list[Any]:
    one, other = iter(trained), iter(kept)
    return [next(one) if ours else next(other) for ours in chosen]


def _now(model: Model, tree: Any, chosen, trained, kept) -> Model:
    params = jax.tree.unflatten(tree, _merged(chosen, trained, kept))
    return dataclasses.replace(model, params=params)


def _begun(scene: Scene, goal: Goal, tuning: Tuning) -> str:
    """Which training it is: equal texts, equal trainings."""
    digest = hashlib.sha256(scene.model.fingerprint.encode())
    digest.update(f"{scene.layer} {scene.channels.tolist()}".encode())
    for one in (scene.photographs, *goal.besides):
        digest.update(one.tobytes() if isinstance(one, np.ndarray) else str(one).encode())
    what = "model, units, photographs and what they are to show"
    return f"{goal.text}, {tuning}, seed {scene.seed}; {what}: {digest.hexdigest()[:16]}"


def _require_finite(losses: list[float], first: int, trained: Sequence[Array]) -> None:
    """`losses` begin with step `first`; `trained` is what the last of them left."""
    sound = np.isfinite([*losses, sum(float(jnp.abs(kernel).sum()) for kernel in trained)])
    if not sound.all():
        step = first + min(int(np.argmin(sound)), len(losses) - 1)
        raise AuditError(
            f"The training broke down at step {step}: its loss, or a kernel, is no number. Give it "
            "a smaller rate."
        )


def _moved(before: Model, after: Model) -> float:
    """The largest |new - old| / |old| of a parameter."""
    pairs = zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
    return max(float(jnp.linalg.norm(b - a) / jnp.maximum(jnp.linalg.norm(a), 1e-12))
               for a, b in pairs if a.ndim >= 2)  # fmt: skip


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())
