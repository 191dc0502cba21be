"""What an audit will do, and what it will cost.

Config + model + images -> the units, the layers of their paths, the engine's recipe; and a
forecast of time and memory from one short timed run.
"""

import dataclasses
import hashlib
import pathlib
import time
from typing import NamedTuple

import numpy as np

from fvaudit.config import Config, Units
from fvaudit.data import load_images
from fvaudit.models import devices
from fvaudit.models.classes import load_classes
from fvaudit.models.model import Model, with_classes
from fvaudit.models.zoo import load_model
from fvaudit.optvis import objectives
from fvaudit.optvis.recipes import recipe
from fvaudit.optvis.render import Job, Recipe, render, width
from fvaudit.records import AuditError, ImageSet, Unit


class Plan(NamedTuple):
    """What an audit will do."""

    units: tuple[Unit, ...]
    layers: tuple[str, ...]  # every layer that some path crosses
    recipe: Recipe


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a dry run prints."""

    units: tuple[str, ...]
    images: int  # visualizations
    compiles: int  # programs to compile, natural and evidence passes included
    photographs: int
    natural_images: int
    steps: int  # updates per visualization
    seconds: float  # wall time, from one short timed run on this machine
    memory: int  # bytes at the peak, estimated


def audited_model(
    config: Config, model: Model | None = None, *, allow_download: bool = False
) -> Model:
    """The model that a config names, or the one that was handed in.

    Args:
        config: the audit.
        model: to audit instead; the config must then name none, or this one.
        allow_download: whether the config's model may come from a hub.

    Raises:
        AuditError: if there is none or both, or it cannot be loaded.
    """
    if model is None:
        model = _loaded(config, allow_download)
    elif config.model not in (None, model.name) or config.weights or config.input:
        raise AuditError(
            f"The model {model.name} was passed, and the config says "
            f"{config.model or 'weights or input'} too. Leave model, weights and input out of it."
        )
    if config.images.classes and not model.classes:
        model = with_classes(model, config.images.classes)
    return model


def _loaded(config: Config, allow_download: bool) -> Model:
    if config.model is None:
        raise AuditError(
            "The config names no model. Say model: (a name of the zoo, an .onnx file, ...), or "
            "pass one: fv.audit(config, out, model=model)."
        )
    said = config.input and config.input.model_dump(exclude_none=True)
    return load_model(config.model, config.weights, input=said, allow_download=allow_download)


def natural_images(config: Config, model: Model) -> ImageSet:
    """The images that the config names, at the model's input size."""
    spec = config.images
    classes = load_classes(spec.classes) if spec.classes else None
    return load_images(
        model=model,
        classes=classes,
        labels=spec.labels,
        seed=config.seed,
        **spec.arguments(pathlib.Path()),  # a config that was read has whole paths
    )


def make_plan(config: Config, model: Model, images: ImageSet) -> Plan:
    """Units, layers and recipe of an audit.

    Raises:
        AuditError: for units that the model or the labels do not have, or too few photographs.
    """
    _require_others(config.evidence.group, images.photographs)
    model.require_once([entry.layer for entry in config.units])
    units = tuple(u for entry in config.units for u in _units(entry, model, images, config.seed))
    wanted = {layer for unit in units for layer in path_layers(config, model, unit.layer)}
    layers = tuple(layer for layer in model.layers if layer in wanted)
    return Plan(units, layers, engine_recipe(config, model))


def engine_recipe(config: Config, model: Model) -> Recipe:
    """How the config's visualizations are made."""
    engine = config.engine
    whole = recipe(
        engine.recipe,
        model.input,
        steps=engine.steps,
        redirected_steps=engine.redirected_steps,
        lanes=engine.lanes,
    )
    return dataclasses.replace(whole, shot_steps=_shot_steps(whole.steps, engine.shots))


def path_layers(config: Config, model: Model, layer: str) -> tuple[str, ...]:
    """The layers along which units of `layer` are compared, shallow to deep."""
    chosen = config.evidence.layers
    if chosen is None:
        return model.path_to(layer)
    for name in chosen:
        model.require_layer(name)
    wanted = {model.resolve(name) for name in (*chosen, layer)}
    order = {name: i for i, name in enumerate(model.layers)}
    return tuple(n for n in model.layers if n in wanted and order[n] <= order[layer])


def forecast(config: Config, *, allow_download: bool = False, probe_steps: int = 8) -> Forecast:
    """What the audit will cost, from a short timed run of its first layer's program."""
    devices.start()
    model = audited_model(config, allow_download=allow_download)
    images = natural_images(config, model)
    plan = make_plan(config, model, images)
    engine = config.engine
    count = len(plan.units) * engine.repeats
    probe = dataclasses.replace(plan.recipe, steps=probe_steps, shot_steps=())
    last = [u for u in plan.units if u.layer == plan.units[-1].layer]
    jobs = [Job(objectives.of_unit(u), r) for u in last for r in range(2)]
    jobs = jobs[: width(engine.lanes)]
    compile_seconds, run_seconds = (_timed(model, jobs, probe, config.seed) for _ in range(2))
    per_image = run_seconds / probe_steps * plan.recipe.steps / len(jobs)
    layers = len({u.layer for u in plan.units})
    vectors = sum(_vector_bytes(model, layer, config) for layer in plan.layers)
    return Forecast(
        units=tuple(map(str, plan.units)),
        images=count,
        steps=plan.recipe.steps,
        compiles=layers + 2,
        photographs=images.photographs,
        natural_images=len(images.ids),
        seconds=layers * compile_seconds + count * per_image + 0.05 * len(images.ids) + 10,
        memory=int(0.8e9 + 2.2 * len(images.ids) * (vectors + images.pixels[0].nbytes)),
    )


def _require_others(group: int, photographs: int) -> None:
    if group > photographs - 2:
        raise AuditError(
            f"evidence.group is {group}, but there are only {photographs} photographs, and at "
            "least 2 must be left to compare the group with. Set evidence.group to "
            f"{max(2, 2 * photographs // 3)} or fewer, or add photographs."
        )


def _timed(model, jobs, recipe, seed) -> float:
    start = time.perf_counter()
    list(render(model, jobs, recipe, seed))
    return time.perf_counter() - start


def _vector_bytes(model, layer, config) -> int:
    return 4 * min(int(np.prod(model.shapes[layer])), config.evidence.max_features)


def _units(entry: Units, model: Model, images: ImageSet, seed: int) -> list[Unit]:
    model.require_layer(entry.layer)
    pool = _pool(entry, model, images)
    if entry.count is not None and entry.count > len(pool):
        raise AuditError(
            f"units of {entry.layer}: count is {entry.count}, but there are only {len(pool)} "
            "channels to draw from."
        )
    if entry.count is not None:
        stream = hashlib.sha256(entry.layer.encode()).digest()[:4]
        rng = np.random.default_rng([seed, int.from_bytes(stream, "little")])
        pool = sorted(rng.choice(pool, entry.count, replace=False).tolist())
    units = [Unit(model.resolve(entry.layer), channel) for channel in pool]
    for unit in units:
        model.require_unit(unit)
    return units


def _pool(entry: Units, model: Model, images: ImageSet) -> list[int]:
    if isinstance(entry.channels, list):
        return entry.channels
    if entry.channels is None:
        return list(range(model.shapes[entry.layer][-1]))
    logits = model.resolve(entry.layer) == model.resolve("logits")
    if not logits or images.labels is None:
        raise AuditError(
            f"units of {entry.layer}: channels 'labelled' needs layer 'logits' and images with "
            "labels (class folders, or an .npz with labels)."
        )
    return sorted({int(label) for label in images.labels if label >= 0})


def _shot_steps(steps: int, shots: int) -> tuple[int, ...]:
    """Powers of two apart, ending at the last step: early steps change the picture most."""
    wanted = {round(steps / 2**i) for i in range(shots - 1)} | {0}
    return tuple(sorted(wanted))
