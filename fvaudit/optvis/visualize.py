"""Objectives -> `Visualization` records: the engine's front door."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fvaudit.models.model import Model, require_model
from fvaudit.optvis.objectives import Objective, of_unit
from fvaudit.optvis.optimizers import Optimizer
from fvaudit.optvis.params import Parameterization
from fvaudit.optvis.recipes import recipe as named_recipe
from fvaudit.optvis.regularizers import Regularizer
from fvaudit.optvis.render import MOST, Ascent, Job, Stop, Watch, render
from fvaudit.optvis.transforms import Transform
from fvaudit.records import AuditError, Unit, Visualization, require_kind, require_whole


def visualize(
    model: Model,
    objectives: Sequence[Objective | Unit | str],
    *,
    recipe: str = "fourier",
    parameterization: Parameterization | None = None,
    transforms: Transform | None = None,
    optimizer: Optimizer | None = None,
    regularizer: Regularizer | None = None,
    steps: int | None = None,
    redirected_steps: int | None = None,
    repeats: int = 1,
    together: int = 1,
    start: Float[np.ndarray, "h w c"] | None = None,
    seed: int = 0,
    shot_steps: tuple[int, ...] = (),
    stop: Stop | None = None,
    watch: Watch | None = None,
    lanes: int | None = None,
) -> tuple[Visualization, ...]:
    """Visualizes each objective `repeats` times by activation maximization.

    Args:
        model: the network; images have its input size.
        objectives: what to maximize, for example `Channel("blocks.8", 17)` or `0.8 * a + 0.2 * b`.
            A unit or its text, "blocks.8:17", stands for its channel, with a position its neuron.
        recipe: which of `recipes.NAMES` the settings come from that are not given here.
        parameterization: how numbers become an image, for example `pixels()`.
        transforms: what a visualization must survive, for example `standard()`.
        optimizer: update rule, for example `adam(0.05)`.
        regularizer: what is done to the latent after each update.
        steps: updates.
        redirected_steps: so many first steps pass gradient through closed ReLUs; 0 for none.
        repeats: independent images (or sets) per objective.
        together: images in a set, optimized jointly; objectives such as `Diversity` need several.
        start: an image in [0, 1] to start from (feature accentuation); random noise unless given.
        seed: of the whole audit; image streams are folded from it.
        shot_steps: numbers of updates after which the images are kept as well.
        stop: ends a job early when it returns True, for example `plateau()`.
        watch: is shown each job as it goes on.
        lanes: sets per device in one program; unless given 1 on a CPU and 16 elsewhere. On a
            GPU, pictures depend on it.

    Returns:
        One `Visualization` per objective, in order.

    Raises:
        AuditError: for a unit that the model does not have, objects of another kind, or settings
            out of range.
    """
    require_model(model)
    require_whole("repeats", repeats, 1, MOST)
    objectives = _as_objectives(objectives)
    chosen = named_recipe(
        recipe,
        model.input,
        parameterization=parameterization,
        transform=transforms,
        optimizer=optimizer,
        regularizer=regularizer,
        steps=steps,
        redirected_steps=redirected_steps,
        shot_steps=tuple(shot_steps),
        together=together,
        lanes=lanes,
    )
    jobs = [Job(objective, r) for objective in objectives for r in range(repeats)]
    made = render(model, jobs, chosen, seed, start=start, stop=stop, watch=watch)
    done = {(str(job.objective), job.repeat): ascent for job, ascent in made}
    settings = {**chosen.settings(), "start": _text(start), "seed": seed, "model": model.name}
    return tuple(
        _assemble(o, [done[str(o), r] for r in range(repeats)], chosen.shot_steps, settings)
        for o in objectives
    )


def _as_objectives(objectives: Any) -> list[Objective]:
    wanted = "a list of objectives, such as [Channel('blocks.8', 17)] or ['blocks.8:17']"
    require_kind("objectives", objectives, (list, tuple), wanted)
    if not objectives:
        raise AuditError(f"objectives must be {wanted}, got an empty one.")
    units = [Unit.parse(one) if isinstance(one, str) else one for one in objectives]
    found = [of_unit(one) if isinstance(one, Unit) else one for one in units]
    for one in found:
        expected = "an objective or a unit, such as Channel('blocks.8', 17) or 'blocks.8:17'"
        require_kind("each of objectives", one, Objective, expected)
    return found


def _text(start: Any) -> str:
    if start is None:
        return "noise"
    return f"image sha256:{hashlib.sha256(np.ascontiguousarray(start).tobytes()).hexdigest()[:12]}"


def _assemble(
    objective: Objective, ascents: list[Ascent], shot_steps: tuple[int, ...], settings: Any
) -> Visualization:
    longest = max(len(a.trace) for a in ascents)
    ragged = [np.pad(a.trace, (0, longest - len(a.trace)), constant_values=np.nan) for a in ascents]
    shots = min(len(a.shots) for a in ascents)
    return Visualization(
        objective=str(objective),
        images=np.concatenate([a.images for a in ascents]),
        activation=np.concatenate([a.activation for a in ascents]),
        trace=np.stack(ragged),
        shots=np.concatenate([a.shots[:shots].swapaxes(0, 1) for a in ascents]),
        shot_steps=shot_steps[:shots],
        alive=np.repeat([a.alive for a in ascents], len(ascents[0].images)),
        settings=settings,
    )
