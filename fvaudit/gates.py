"""`train_gate(config, out)`: a config in, a trained gate with its error rates out.

    out/fvs/                each unit's visualization at 16 moments of its making
    out/training.npz        where training stands
    out/gate.safetensors    the gate; `attacks.gate.load` and `manipulate` read it
    out/rates.json          its errors on units and photographs that training did not see

Killed at any time, the same command goes on and ends in the same bytes.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pydantic
from jaxtyping import UInt8

from fvaudit import store
from fvaudit.attacks import gate_training, trajectories
from fvaudit.attacks.gate import require_colours
from fvaudit.config import Count, Network, Photographs, RecipeName
from fvaudit.data import load_images
from fvaudit.models.model import Model
from fvaudit.models.zoo import load_model
from fvaudit.records import SEEDS, AuditError, Unit
from fvaudit.yamlfile import Section, read_yaml, validated


GATE, RATES = "gate.safetensors", "rates.json"


class Shown(Section):
    """How many channels of a layer are visualized, drawn by the seed."""

    layer: str
    train: Count
    test: Count = pydantic.Field(description="other channels, that measure errors only")
    test_below: Count | None = pydantic.Field(
        default=None, description="channels below this number are for the test, all others not"
    )


class _Photographs(NamedTuple):
    pixels: UInt8[np.ndarray, "n h w c"]  # 0..255
    names: dict[str, str]  # mark of a picture, equal for equal ones -> name


class GateTraining(Network):
    """A gate: what it learns to tell apart, and for how long."""

    verb: ClassVar[str] = "train-gate"

    train: list[Photographs] = pydantic.Field(min_length=1, description="photographs to learn from")
    test: list[Photographs] = pydantic.Field(
        min_length=1, description="others, that measure errors"
    )
    units: list[Shown] = pydantic.Field(min_length=1)
    recipe: RecipeName = pydantic.Field(default="fourier", description="of the visualizations")
    lanes: Count | None = pydantic.Field(
        default=None,
        description="images per device and program; 1 on a CPU and 16 elsewhere unless given",
    )
    steps: Count = pydantic.Field(default=1500, description="updates of the gate")
    batch: Count = pydantic.Field(default=32, description="images each, half of them photographs")
    rate: float = pydantic.Field(default=2e-3, gt=0, description="first step size of Adam")
    seed: int = pydantic.Field(default=0, ge=0, lt=SEEDS)

    @pydantic.field_validator("test")
    @classmethod
    def _are_photographs(cls, test: list[Photographs]) -> list[Photographs]:
        if any(source.crops > 1 for source in test):
            raise ValueError("errors are counted in photographs; leave crops out of it")
        return test


def train_gate(
    config: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    overrides: Sequence[str] = (),
    allow_download: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Trains a gate as a config says, or goes on with it.

    Args:
        config: a YAML file; its paths count from its own folder.
        out: a new folder, or one that this command wrote before with the same config.
        overrides: `a.b=c`.
        allow_download: whether the config's model may come from a hub.
        tell: called with a line whenever something was saved.

    Returns:
        What is in rates.json.

    Raises:
        AuditError: if the config, model or images cannot be used, photographs or layers are there
            twice where errors would not be those of unseen ones, or the gate learns nothing.
    """
    path, out = pathlib.Path(config), pathlib.Path(out)
    said = validated(GateTraining, read_yaml(path, overrides), str(config))
    text = json.dumps(said.model_dump(mode="json"), indent=1)
    store.require_same_config(out, text, "a training")
    model = load_model(**said.arguments(path.parent), allow_download=allow_download)
    require_colours(model)
    held_in, held_out = units_of(said, model)
    train = _photographs(said.train, path.parent, model)
    test = _photographs(said.test, path.parent, model, one_each=True)
    _require_unseen(train, test)
    store.write_text(out / store.CONFIG, text)
    ascents = [_ascents(said, model, some, out, tell) for some in (held_in, held_out)]
    gate = gate_training.train(
        gate_training.Images(train.pixels, ascents[0]),
        out, steps=said.steps, batch=said.batch, rate=said.rate, seed=said.seed,
        tell=lambda step, steps, loss: tell(f"training: step {step} of {steps}, loss {loss:.3f}"),
    )  # fmt: skip
    found = gate_training.rates(gate, gate_training.Images(test.pixels, ascents[1]))
    counts = len(train.pixels), len(test.pixels)
    facts = _facts(said, model, held_in, held_out, counts, found)
    gate_training.save(gate, out / GATE, facts)
    store.write_text(out / RATES, json.dumps(facts, indent=1) + "\n")
    return facts


def units_of(said: GateTraining, model: Model) -> tuple[list[Unit], list[Unit]]:
    """Units to learn from and units to test on, which share no channel of a layer.

    Raises:
        AuditError: if a layer does not exist, is named twice, or has too few channels.
    """
    for shown in said.units:
        model.require_layer(shown.layer)
    model.require_once([shown.layer for shown in said.units])
    rng = np.random.default_rng(said.seed)
    held_in, held_out = [], []
    for shown in said.units:
        order = rng.permutation(model.shapes[shown.layer][-1])
        border = shown.test_below
        ours = (
            order[: shown.test] if border is None else np.sort(order[order < border][: shown.test])
        )
        rest = order[shown.test :] if border is None else order[order >= border]
        theirs = rest[: shown.train] if border is None else np.sort(rest[: shown.train])
        if len(ours) < shown.test or len(theirs) < shown.train:
            below = "" if border is None else f", {min(border, len(order))} of them below {border}"
            raise AuditError(
                f"{shown.layer} has {len(order)} channels{below}; {shown.train} to train on and "
                f"{shown.test} to test on were asked for. Ask for fewer."
            )
        held_in += [Unit(shown.layer, int(c)) for c in theirs]
        held_out += [Unit(shown.layer, int(c)) for c in ours]
    return held_in, held_out


def _ascents(said: GateTraining, model: Model, units: list[Unit], out: pathlib.Path, tell):
    files = trajectories.make(
        model, units, out / "fvs", recipe=said.recipe, seed=said.seed, lanes=said.lanes,
        tell=lambda done, total: tell(f"visualizations: {done} of {total} units"),
    )  # fmt: skip
    return np.stack([trajectories.load(file) for file in files])


def _photographs(
    sources: list[Photographs], folder: pathlib.Path, model: Model, *, one_each: bool = False
) -> _Photographs:
    """Of all sources, equal images once; if asked for, one image of each photograph."""
    pixels, names = [], []
    for source in sources:
        found = load_images(model=model, labels=False, **source.arguments(folder))
        rows = np.unique(found.group, return_index=True)[1] if one_each else range(len(found.ids))
        pixels.append(np.round(255 * found.pixels[rows]).astype(np.uint8))
        names += [found.ids[row] for row in rows]
    pixels = np.concatenate(pixels)
    marks = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
    first = sorted(np.unique(marks, return_index=True)[1])
    return _Photographs(pixels[first], {marks[i]: names[i] for i in first})


def _require_unseen(train: _Photographs, test: _Photographs) -> None:
    """Errors are measured on photographs that training did not see."""
    both = [name for mark, name in test.names.items() if mark in train.names]
    if both:
        raise AuditError(
            f"{len(both)} of the {len(test.names)} photographs to test on are there to train on "
            f"too: {', '.join(both[:3])}. Errors on those would tell nothing; give others."
        )


def _facts(said, model, held_in, held_out, photographs, found) -> dict[str, Any]:
    return {
        "model": model.name,
        "units": {"train": len(held_in), "test": len(held_out)},
        "photographs": dict(zip(("train", "test"), photographs, strict=True)),
        "steps": said.steps,
        "seed": said.seed,
        "photographs taken for visualizations": dataclasses.asdict(found.photographs),
        "units with any image taken for a photograph": dataclasses.asdict(found.ascents),
        "share of units misjudged after so many updates": dict(found.moments),
        "share misjudged under an ascent's transforms": found.transformed,
    }
