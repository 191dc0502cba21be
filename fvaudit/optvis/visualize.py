"""Many objectives -> batches of one fixed shape -> `Visualization` records.

Every image is its own random stream: its key is folded from the audit's seed, the objective's
text and the repeat. Every device works on `lanes` images in a program of one fixed shape (short
batches are padded). On a CPU they are made one after the other, so an image is the same bytes
alone, in a batch, or after a resume; on a GPU or TPU they are one batch, in which an image's last
bits may depend on its place (not measured yet).
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from fvaudit.models import devices
from fvaudit.models.model import Forward, Model, record
from fvaudit.optvis.objectives import Objective, stack
from fvaudit.optvis.optimize import Ascent, maximize
from fvaudit.optvis.params import Parameterization, fourier
from fvaudit.optvis.transforms import Transform, standard
from fvaudit.records import AuditError, Visualization


class Job(NamedTuple):
    """One image to make."""

    objective: Objective
    repeat: int  # from 0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How images are made, apart from objective and seed; hashable, so programs are reused."""

    parameterization: Parameterization
    transform: Transform
    steps: int = 512  # Adam updates; lucid's default
    learning_rate: float = 0.05  # lucid's default
    shot_steps: tuple[int, ...] = ()  # numbers of updates after which the image is kept
    lanes: int = 1  # images per device and program

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lanes < 1 or not self.learning_rate > 0:
            raise AuditError(
                "steps and lanes must be at least 1 and learning_rate > 0, got "
                f"steps={self.steps}, lanes={self.lanes}, learning_rate={self.learning_rate}."
            )
        rising = all(a < b for a, b in zip(self.shot_steps, self.shot_steps[1:], strict=False))
        if not rising or any(not 0 <= t <= self.steps for t in self.shot_steps):
            raise AuditError(f"shot_steps must rise within 0..{self.steps}, got {self.shot_steps}.")

    def settings(self) -> dict[str, str | int | float | list[int]]:
        """Call texts and numbers that make the recipe again."""
        return {
            "parameterization": self.parameterization.text,
            "transforms": self.transform.text,
            "steps": self.steps,
            "optimizer": f"adam({self.learning_rate})",
            "shot_steps": list(self.shot_steps),
        }


def visualize(
    model: Model,
    objectives: Sequence[Objective],
    *,
    parameterization: Parameterization | None = None,
    transforms: Transform | None = None,
    steps: int = 512,
    repeats: int = 1,
    seed: int = 0,
    learning_rate: float = 0.05,
    shot_steps: tuple[int, ...] = (),
    lanes: int = 1,
) -> tuple[Visualization, ...]:
    """Visualizes each objective `repeats` times by activation maximization.

    Args:
        model: the network; images have its input size.
        objectives: what to maximize, for example `Channel("blocks.8", 17)` or `0.8 * a + 0.2 * b`.
        parameterization: `fourier()` unless given.
        transforms: `standard()` unless given.
        steps: Adam updates.
        repeats: independent images per objective.
        seed: of the whole audit; image streams are folded from it.
        learning_rate: of Adam.
        shot_steps: numbers of updates after which the image is kept as well.
        lanes: images per device in one program; more than 1 pays off on GPUs only.

    Returns:
        One `Visualization` per objective, in order.

    Raises:
        AuditError: for a unit that the model does not have, or settings out of range.
    """
    if repeats < 1:
        raise AuditError(f"repeats must be at least 1, got {repeats}.")
    objectives = _as_objectives(objectives)
    recipe = Recipe(
        parameterization or fourier(), transforms or standard(), steps, learning_rate,
        tuple(shot_steps), lanes,
    )  # fmt: skip
    jobs = [Job(objective, r) for objective in objectives for r in range(repeats)]
    done = {(str(job.objective), job.repeat): a for job, a in render(model, jobs, recipe, seed)}
    settings = {**recipe.settings(), "seed": seed, "model": model.name}
    return tuple(
        _assemble(o, [done[str(o), r] for r in range(repeats)], recipe.shot_steps, settings)
        for o in objectives
    )


def render(
    model: Model, jobs: Iterable[Job], recipe: Recipe, seed: int
) -> Iterator[tuple[Job, Ascent]]:
    """Makes images batch by batch; yields (job, result on the host), grouped by layer.

    Raises:
        AuditError: for a unit that the model does not have.
    """
    devices.start()
    jobs = list(jobs)
    for unit in {unit for job in jobs for unit in job.objective.units}:
        model.require_unit(unit)
    params = devices.replicated(model.params)
    for group in _by_structure(jobs):
        run = program(model.forward, model.input.size, group[0].objective.layers, recipe)
        width = jax.local_device_count() * recipe.lanes
        for start in range(0, len(group), width):
            batch = group[start : start + width]
            full = batch + batch[-1:] * (width - len(batch))
            keys = jnp.stack([image_key(seed, job) for job in full])
            result = jax.device_get(run(params, stack([job.objective for job in full]), keys))
            for i, job in enumerate(batch):
                yield job, Ascent(*(np.asarray(field[i]) for field in result))


@functools.lru_cache(maxsize=32)
def program(forward: Forward, size: tuple[int, int], layers: tuple[str, ...], recipe: Recipe):
    """The compiled program (params, stacked objectives, keys) -> stacked `Ascent`.

    One per network, layer and recipe: which unit is shown is data.
    """

    def one(params, objective, key):
        def score(image):
            return objective(record(forward, params, image[None], layers))[0]

        return maximize(
            score,
            recipe.parameterization,
            recipe.transform,
            size=size,
            steps=recipe.steps,
            shot_steps=recipe.shot_steps,
            learning_rate=recipe.learning_rate,
            key=key,
        )

    def shard(params, objectives, keys):
        if jax.default_backend() != "cpu":
            return jax.vmap(one, in_axes=(None, 0, 0))(params, objectives, keys)
        # One after the other: faster here than a batch, and no image's rounding can depend on
        # its neighbours.
        return jax.lax.map(lambda job: one(params, *job), (objectives, keys))

    return devices.on_every_device(shard, shared=1)


def image_key(seed: int, job: Job) -> Key[Array, ""]:
    """The random stream of one image: folded from seed, objective text and repeat."""
    text = hashlib.sha256(str(job.objective).encode()).digest()
    of_objective = jax.random.fold_in(jax.random.key(seed), int.from_bytes(text[:4], "little"))
    return jax.random.fold_in(of_objective, job.repeat)


def _by_structure(jobs: list[Job]) -> list[list[Job]]:
    """Jobs that can share a program, in order of first appearance."""
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault(jax.tree.structure(job.objective), []).append(job)
    return list(groups.values())


def _as_objectives(objectives) -> list[Objective]:
    wrong = [o for o in objectives if not isinstance(o, Objective)]
    if wrong or not objectives:
        got = type(wrong[0]).__name__ if wrong else "none"
        raise AuditError(
            f"visualize takes a list of objectives such as Channel('blocks.8', 17), got {got}."
        )
    return list(objectives)


def _assemble(objective, ascents, shot_steps, settings) -> Visualization:
    images, activation, trace, shots = (np.stack(field) for field in zip(*ascents, strict=True))
    return Visualization(
        objective=str(objective),
        images=images,
        activation=activation,
        trace=trace,
        shots=shots,
        shot_steps=shot_steps,
        settings=settings,
    )
