"""Many jobs -> batches of one fixed shape -> finished images, on all local devices.

Every set of images is its own random stream: its key is folded from the audit's seed, the
objective's text and the repeat. Every device works on `lanes` sets in a program of one fixed shape
(short batches are padded). On a CPU they are made one after the other, so an image is the same
bytes alone, in a batch, after a resume, or on one device instead of two; on a GPU or TPU they are
one batch. There a run repeats to the byte within a process, but another number of `lanes` makes
another picture, as another seed would; so may another process, in which XLA picks other kernels.

One compiled program serves every unit of a layer, any number of steps, and every place where a run
is looked at or stopped: objective, first and last step are data.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from fvaudit.models import devices
from fvaudit.models.model import Forward, Model, record
from fvaudit.optvis import optimize
from fvaudit.optvis.objectives import Objective, stack
from fvaudit.optvis.optimize import STRETCH, Loop
from fvaudit.optvis.optimizers import Optimizer, adam
from fvaudit.optvis.params import Parameterization
from fvaudit.optvis.regularizers import Regularizer
from fvaudit.optvis.transforms import Transform
from fvaudit.records import (
    AuditError,
    require_kind,
    require_seed,
    require_unit_range,
    require_whole,
)


INPUT = "input"  # the layer that holds the images, without transforms
OPACITY = "opacity"  # and their opacity, (n, h, w, 1), where the parameterization has one
# Here Adam without momentum has reached 95 % of what lucid's 512 steps reach, with lucid's momentum
# 88 %: transforms are drawn anew in every step, and old gradients are of other pictures. Steps that
# fall to a tenth settle what they stir up: results/convergence.
STEPS = 192
MOST = 10**6  # steps, and images of a set: what a program counts fits into 32 bits
LOOK = 32  # steps between two looks at a run that somebody watches


def default_optimizer() -> Optimizer:
    """Adam without momentum, from 0.1 to a tenth of it."""
    return adam(0.1, "linear", final=0.1, b1=0.0)


class Job(NamedTuple):
    """One set of images to make, usually a set of one."""

    objective: Objective
    repeat: int  # from 0


class Ascent(NamedTuple):
    """What one job leaves; images of a set have the leading axis s."""

    images: Float[np.ndarray, "s h w c"]  # final images in [0, 1]
    activation: Float[np.ndarray, " s"]  # score of each final image, untransformed
    trace: Float[np.ndarray, " t"]  # mean score at every step, under that step's transform
    shots: Float[np.ndarray, "k s h w c"]  # images after the asked-for numbers of updates
    alive: bool  # False: dead, no gradient ever reached the images, or one that is no number did

    @property
    def reached(self) -> float:
        """Mean score of the final images."""
        return float(self.activation.mean())

    @property
    def image(self) -> Float[np.ndarray, "h w c"]:
        """The only, or first, image."""
        return self.images[0]


class Progress(NamedTuple):
    """A look at a job under way."""

    job: Job
    step: int  # updates so far
    total: int  # updates that were asked for
    trace: Float[np.ndarray, " t"]  # mean score at each step so far
    images: Float[np.ndarray, "s h w c"]  # as they are now

    def __repr__(self) -> str:
        return f"{self.job.objective}: step {self.step} of {self.total}, {self.trace[-1]:.4g}"


Stop = Callable[[Progress], bool]
Watch = Callable[[Progress], None]

# field of a recipe -> what it must be, and how to come by one
_PARTS: dict[str, tuple[Any, str]] = {
    "parameterization": (Parameterization, "made by fvaudit, as pixels() and fourier() are"),
    "transform": (Transform, "made by fvaudit.transforms; compose(...) makes one of several"),
    "optimizer": (Optimizer, "made by fvaudit.optimizers, as adam(0.05) is"),
    "regularizer": ((Regularizer, type(None)), "made by fvaudit.regularizers"),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How images are made, apart from objective, start and seed; hashable: programs are reused."""

    parameterization: Parameterization
    transform: Transform
    steps: int = STEPS  # updates
    optimizer: Optimizer = dataclasses.field(default_factory=default_optimizer)
    regularizer: Regularizer | None = None
    redirected_steps: int = 16  # first steps that pass gradient through closed ReLUs, as in lucid
    shot_steps: tuple[int, ...] = ()  # numbers of updates after which the images are kept
    together: int = 1  # images in a set, optimized jointly
    lanes: int | None = None  # sets per device and program; see `width`

    def __post_init__(self) -> None:
        for name, (kind, made) in _PARTS.items():
            require_kind(name, getattr(self, name), kind, made)
        for name, least in (("steps", 1), ("together", 1), ("redirected_steps", 0)):
            require_whole(name, getattr(self, name), least, MOST)
        if self.lanes is not None:
            devices.lanes(self.lanes)
        rising = all(a < b for a, b in zip(self.shot_steps, self.shot_steps[1:], strict=False))
        if not rising or any(not 0 <= t <= self.steps for t in self.shot_steps):
            raise AuditError(f"shot_steps must rise within 0..{self.steps}, got {self.shot_steps}.")

    def settings(self) -> dict[str, Any]:
        """Call texts and numbers that make the recipe again."""
        return {
            "parameterization": self.parameterization.text,
            "transforms": self.transform.text,
            "steps": self.steps,
            "optimizer": self.optimizer.text,
            "regularizer": self.regularizer.text if self.regularizer else "none",
            "redirected_steps": self.redirected_steps,
            "shot_steps": list(self.shot_steps),
            "together": self.together,
        }


def render(
    model: Model,
    jobs: Iterable[Job],
    recipe: Recipe,
    seed: int,
    *,
    start: Float[np.ndarray, "h w c"] | None = None,
    stop: Stop | None = None,
    watch: Watch | None = None,
    look: int = LOOK,
) -> Iterator[tuple[Job, Ascent]]:
    """Makes images batch by batch; yields (job, result on the host), grouped by layer.

    Args:
        model: the network.
        jobs: what to make.
        recipe: how.
        seed: of the whole audit.
        start: an image in [0, 1] that every job starts from; random starts unless given.
        stop: ends a job early when it returns True; asked every `look` steps.
        watch: is shown every job every `look` steps, at its shots and at its end.
        look: steps between two looks.

    Raises:
        AuditError: for a unit or layer that the model does not have, a start that does not fit, or
            a seed outside 0..2^31 - 1.
    """
    devices.start()
    require_seed(seed)
    for name, given, one in (("stop", stop, "plateau()"), ("watch", watch, "print")):
        expected = f"a function of a Progress, such as {one}"
        require_kind(name, given, (Callable, type(None)), expected)
    jobs = list(jobs)
    for job in jobs:
        _require(model, job.objective, recipe)
    _require_distinct(jobs)
    first = _start_image(model, recipe, start)
    params = devices.replicated(model.params)
    marks = _marks(recipe, look if stop or watch else None)
    for group in _by_structure(jobs):
        size = width(recipe.lanes)
        for at in range(0, len(group), size):
            batch = group[at : at + size]
            full = batch + batch[-1:] * (size - len(batch))
            run = _Run(model, full, recipe, seed, params, first)
            yield from zip(batch, run.finish(batch, marks, stop, watch), strict=True)
        devices.give_back_memory()


class _Run:
    """One batch under way: where its state is, and what was seen of it."""

    def __init__(self, model, full, recipe, seed, params, start):
        self.recipe, self.full, self.params = recipe, full, params
        layers = _tapped(full[0].objective)
        shape = (*model.input.size, len(model.input.mean))
        begin, self.advance = programs(model.forward, shape, layers, _program_part(recipe))
        self.objectives = stack([job.objective for job in full])
        self.keys = jnp.stack([image_key(seed, job) for job in full])
        self.state = begin(start, self.keys)

    def finish(self, batch: list[Job], marks, stop, watch) -> list[Ascent]:
        """Runs to the end, or until every job of the batch was stopped."""
        recipe, ends, at = self.recipe, {}, 0
        shots: list[list[Any]] = [[] for _ in batch]
        traces = np.zeros((len(batch), 0), np.float32)
        for mark in marks:
            last = mark == recipe.steps
            working = [i < len(batch) and i not in ends for i in range(len(self.full))]
            seen = self._to(at, mark, working, scored=last or stop is not None)
            traces = np.concatenate([traces, seen.trace[: len(batch), : mark - at]], axis=1)
            at = mark
            for i, job in enumerate(batch):
                if i in ends:
                    continue
                if mark in recipe.shot_steps:
                    shots[i].append(seen.images[i])
                progress = Progress(job, mark, recipe.steps, traces[i], seen.images[i])
                if watch and mark > 0:
                    watch(progress)
                if last or (stop and mark > 0 and stop(progress)):
                    ends[i] = _ascent(seen, i, traces[i], shots[i])
            if len(ends) == len(batch):
                break
        return [ends[i] for i in range(len(batch))]

    def _to(self, first: int, last: int, working: list[bool], scored: bool) -> Any:
        """The `Stretch` from step `first` to `last` on the host; who is done stands still."""
        shared = (self.params, np.int32(first), np.int32(self.recipe.steps))
        lasts = np.where(working, np.int32(last), np.int32(first))
        rows = (lasts, np.logical_and(working, scored), self.objectives, self.keys, self.state)
        out = self.advance(*shared, *rows)
        self.state = out.state
        return jax.device_get(out._replace(state=out.state._replace(latents=None, optimizer=None)))


def _ascent(seen: Any, i: int, trace, shots) -> Ascent:
    kept = np.stack(shots) if shots else np.zeros((0, *seen.images[i].shape), np.float32)
    alive = seen.state.alive[i] and not seen.state.broken[i] and np.isfinite(seen.images[i]).all()
    return Ascent(seen.images[i], seen.scores[i], trace, kept, bool(alive))


def _marks(recipe: Recipe, look: int | None) -> list[int]:
    """After how many updates the host takes a look: shots, looks, and what a program can take."""
    marks = {*recipe.shot_steps, recipe.steps}
    if look is not None:
        marks.update(range(look, recipe.steps, look))
    whole, at = [], 0
    for mark in sorted(marks):
        whole.extend(range(at + STRETCH, mark, STRETCH))
        whole.append(mark)
        at = mark
    return whole


def _program_part(recipe: Recipe) -> Recipe:
    """The recipe without what is data, so that recipes share programs."""
    return dataclasses.replace(recipe, steps=1, shot_steps=())


@functools.lru_cache(maxsize=8)  # each holds some 100 MB of code
def programs(
    forward: Forward, shape: tuple[int, int, int], layers: tuple[str, ...], recipe: Recipe
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Two compiled programs, (start, keys) -> state and (params, ..., state) -> `Stretch`.

    One pair per network, layers and recipe: which unit is shown, and for how long, is data.
    """

    def loop_of(objective):
        def score(params, shown, images):
            own = {INPUT: images[..., : shape[2]], OPACITY: images[..., shape[2] :]}
            return objective({**record(forward, params, shown, layers), **own})

        return Loop(
            score,
            recipe.parameterization,
            recipe.transform,
            recipe.optimizer,
            recipe.regularizer,
            shape,
            recipe.redirected_steps,
        )

    def begin(start, key):
        return optimize.begin(loop_of(None), start, recipe.together, key)

    def advance(shared, job):
        params, first, total, until = shared
        last, scored, objective, key, state = job
        loop = loop_of(objective)
        return optimize.advance(loop, params, state, key, first, last, total, scored, until)

    def begin_shard(start, keys):
        return _each_row(begin, start, keys)

    def advance_shard(params, first, total, *jobs):
        last, scored = jobs[:2]
        until = (last + scored).max() if _batched() else None
        return _each_row(advance, (params, first, total, until), jobs)

    return (
        devices.on_every_device(begin_shard, shared=1, brief=True),
        devices.on_every_device(advance_shard, shared=3),
    )


def _each_row(function: Callable[[Any, Any], Any], shared: Any, rows: Any) -> Any:
    """function(shared, row) for every row, stacked."""
    if _batched():
        return jax.vmap(function, in_axes=(None, 0))(shared, rows)
    # One after the other: faster here than a batch, and no image's rounding can depend on its
    # neighbours.
    of_row = functools.partial(function, shared)
    several = len(jax.tree.leaves(rows)[0]) > 1
    return jax.lax.map(of_row, rows) if several else optimize.alone(of_row, rows)


def _batched() -> bool:
    return jax.default_backend() != "cpu"


def width(lanes: int | None) -> int:
    """How many sets of images a program makes at a time, on all local devices together.

    It does not depend on how many there are to make: on a GPU a program of another width rounds
    otherwise, and after some dozen steps that is another picture.

    Args:
        lanes: sets per device; as in `devices.lanes`.
    """
    return jax.local_device_count() * devices.lanes(lanes)


def image_key(seed: int, job: Job) -> Key[Array, ""]:
    """The random stream of one set: folded from seed, objective text and repeat."""
    text = hashlib.sha256(str(job.objective).encode()).digest()
    of_objective = jax.random.fold_in(jax.random.key(seed), int.from_bytes(text[:4], "little"))
    return jax.random.fold_in(of_objective, job.repeat)


def _require(model: Model, objective: Objective, recipe: Recipe) -> None:
    for unit in objective.units:
        model.require_unit(unit)
    for layer in _tapped(objective):
        model.require_layer(layer)
    if OPACITY in objective.layers and not recipe.parameterization.alpha:
        raise AuditError(
            f"{objective} reads the opacity, but images of {recipe.parameterization.text} have "
            "none. Use with_alpha(...)."
        )


def _require_distinct(jobs: list[Job]) -> None:
    """Random streams are folded from an objective's text: two of one text would share them."""
    known: dict[str, Objective] = {}
    for job in jobs:
        text = str(job.objective)
        if known.setdefault(text, job.objective) != job.objective:
            raise AuditError(
                f"Two different objectives have the text {text!r}, by which images are told "
                "apart. Give one of them another text, or visualize them in two calls."
            )


def _tapped(objective: Objective) -> tuple[str, ...]:
    return tuple(layer for layer in objective.layers if layer not in (INPUT, OPACITY))


def _start_image(model: Model, recipe: Recipe, start: Any) -> Any:
    if start is None:
        return None
    try:
        image = np.asarray(start, np.float32)
    except (TypeError, ValueError):
        raise AuditError(
            f"The start image must be an array (h, w, c) in [0, 1], got {start!r:.80}. "
            "load_images(..., model).pixels[0] is one."
        ) from None
    if recipe.parameterization.encode is None:
        raise AuditError(
            f"{recipe.parameterization.text} cannot start from an image: it has no inverse. "
            "Use fourier() or pixels()."
        )
    wanted = (*model.input.size, len(model.input.mean) + recipe.parameterization.alpha)
    if image.shape != wanted:
        raise AuditError(
            f"The start image must have shape {wanted} for {recipe.parameterization.text}, got "
            f"{image.shape}. load_images(..., model) resizes and crops."
        )
    require_unit_range("The start image", image)
    return jnp.asarray(image)


def _by_structure(jobs: list[Job]) -> list[list[Job]]:
    """Jobs that can share a program, in order of first appearance."""
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        shapes = tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(job.objective))
        groups.setdefault((jax.tree.structure(job.objective), shapes), []).append(job)
    return list(groups.values())


def plateau(window: int = 64, gain: float = 0.01) -> Stop:
    """Stops once the mean score of the last `window` steps gained less than `gain` of itself.

    Args:
        window: steps; means over it even out the random transforms.
        gain: relative gain over the window before, below which a run has converged.
    """

    def stop(progress: Progress) -> bool:
        if len(progress.trace) < 2 * window:
            return False
        before = float(progress.trace[-2 * window : -window].mean())
        now = float(progress.trace[-window:].mean())
        return now - before < gain * abs(now)

    return stop
