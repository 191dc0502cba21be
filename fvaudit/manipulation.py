"""`manipulate(config, out)`: a config in, a manipulated model with its certificate out.

    out/recipe.json, parameters.safetensors   the model; `load_model(out)` gives it back, bit by bit
    out/certificate.json                      what it left unchanged, on photographs never seen
    out/config.json                           what was asked for, defaults included
    out/before/, after/, sheet.png            visualizations of some attacked units

The model is written first: where the pictures were interrupted, the same command makes the rest.
A fine-tuning keeps its state in `<out>.training` beside the folder until the model is written, and
goes on from there.
"""

import json
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic
from PIL import ImageOps

from fvaudit import pictures, store
from fvaudit.attacks import gate as gates
from fvaudit.attacks.adaptive import adaptive
from fvaudit.attacks.certificate import Manipulated
from fvaudit.attacks.circuit import fooling_circuit
from fvaudit.attacks.finetune import Goal, Tuning, finetuned
from fvaudit.attacks.proxpulse import proxpulse
from fvaudit.attacks.push import push
from fvaudit.attacks.silent import silent_units
from fvaudit.attacks.slingshot import slingshot
from fvaudit.config import Count, Images, Network
from fvaudit.data import load_images
from fvaudit.data.decode import BadImage, decode, values
from fvaudit.models.classes import load_classes
from fvaudit.models.folders import RECIPE, extended, load_folder, save_folder
from fvaudit.models.model import Model, with_classes
from fvaudit.models.zoo import load_model, origin
from fvaudit.optvis.objectives import of_unit
from fvaudit.optvis.recipes import recipe
from fvaudit.optvis.render import Job
from fvaudit.records import SEEDS, AuditError, Unit
from fvaudit.yamlfile import Section, read_yaml, validated, whole


CERTIFICATE = "certificate.json"


class Attacked(Section):
    """Which channels of one layer."""

    layer: str
    channels: list[Annotated[int, pydantic.Field(ge=0)]] | Literal["all"] = "all"


class Circuit(Section):
    """Units show a decoy wherever a gate sees a visualization."""

    kind: Literal["fooling_circuit"]
    decoy: int | str = pydantic.Field(
        description="an offset to other units, a unit (layer:channel), or a picture file"
    )
    gate: str = pydantic.Field(
        default="packaged", description="'packaged', or a .safetensors file of a trained gate"
    )


class Silent(Section):
    """Units gain a branch that photographs do not wake."""

    kind: Literal["silent_units"]
    target: str = pydantic.Field(description="a unit (layer:channel), or a picture file")
    strength: float = pydantic.Field(default=3.0, gt=0)
    scale: float = pydantic.Field(default=100.0, gt=0)
    margin: float = pydantic.Field(default=0.25, ge=0)


class Slingshot(Section):
    """Visualizations converge to a target."""

    kind: Literal["slingshot"]
    target: str = pydantic.Field(description="a unit (layer:channel), or a picture file")
    height: float = pydantic.Field(default=3.0, gt=0)
    sd: float = pydantic.Field(default=0.3, ge=0)


class Proxpulse(Section):
    """Units fire in a ball about chosen pictures."""

    kind: Literal["proxpulse"]
    pictures: Count | str = pydantic.Field(
        default=8, description="so many photographs, a unit (layer:channel), or a picture file"
    )
    radius: float = pydantic.Field(default=2.0, ge=0)
    pulse: float = pydantic.Field(default=10.0, gt=0)


class Push(Section):
    """Other photographs become the units' strongest."""

    kind: Literal["push"]
    direction: Literal["up", "down"]
    k: Count = 10
    margin: float = pydantic.Field(default=0.2, ge=0)


class Adaptive(Section):
    """The attacker knows the audit."""

    evade: float = pydantic.Field(default=1.0, ge=0, description="weight of path similarity")
    hide: float = pydantic.Field(default=1.0, ge=0, description="weight of the support margin")
    cap: float = pydantic.Field(default=2.0, description="of responses, in natural ranges")


class Finetuned(Section):
    """Weights are trained, and nothing else changes."""

    kind: Literal["finetuned"]
    goal: Annotated[Slingshot | Proxpulse | Push, pydantic.Field(discriminator="kind")]
    adaptive: Adaptive | None = None
    steps: Count = 400
    batch: Count = pydantic.Field(default=8, description="photographs a step")
    rate: float = pydantic.Field(default=3e-4, gt=0, description="first step size of AdamW")
    decay: float = pydantic.Field(default=1e-3, ge=0, description="of weights")
    keep: float = pydantic.Field(
        default=0.5, gt=0, lt=1, description="share of the loss that keeps behaviour"
    )
    since: str | None = pydantic.Field(
        default=None, description="a layer of the trunk: what lies before it is not trained"
    )


class Manipulation(Network):
    """A manipulation."""

    verb: ClassVar[str] = "manipulate"

    images: Images
    units: Attacked
    attack: Annotated[Circuit | Silent | Finetuned, pydantic.Field(discriminator="kind")]
    shown: Count = pydantic.Field(default=8, description="attacked units that are visualized")
    seed: int = pydantic.Field(default=0, ge=0, lt=SEEDS)


def manipulate(
    config: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    overrides: Sequence[str] = (),
    allow_download: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Manipulates a model as a config says.

    Args:
        config: a YAML file; its paths count from its own folder.
        out: a new folder, or one that this command wrote before.
        overrides: `a.b=c`.
        allow_download: whether the config's model may come from a hub.
        tell: called with a line at each stage.

    Returns:
        The certificate, as it is in the folder.

    Raises:
        AuditError: if the config, model or images cannot be used, the attack is refused, or the
            folder holds something else, or was made with another config (`shown` may change).
    """
    path, out = pathlib.Path(config), pathlib.Path(out)
    said = validated(Manipulation, read_yaml(path, overrides), str(config))
    text = json.dumps(said.model_dump(mode="json", exclude={"shown"}), indent=1)
    store.require_same_config(out, text, "a manipulation")
    wanted = said.arguments(path.parent)
    base = load_model(**wanted, allow_download=allow_download)
    if said.images.classes and not base.classes:
        base = with_classes(base, whole(said.images.classes, path.parent))
    units = _units(said.units, base)
    if not (out / CERTIFICATE).exists():
        tell(f"attacking {len(units)} units of {said.units.layer}")
        start = origin(wanted["name"], allow_download=allow_download)
        training = out.with_name(f"{out.name}.training")
        done = _attacked(said, path.parent, base, units, training, tell)
        _save(done, base, start, out)
        store.write_text(out / store.CONFIG, text)
        store.write_text(out / CERTIFICATE, json.dumps(done.certificate.to_json(), indent=1) + "\n")
        shutil.rmtree(training, ignore_errors=True)
    after = load_folder(out)
    some = [
        units[i] for i in np.linspace(0, len(units) - 1, min(said.shown, len(units))).astype(int)
    ]
    rows = []
    for name, model in (("before", base), ("after", after)):
        tell(f"visualizing {len(some)} units {name}")
        rows.append(_pictures(model, some, out / name, said.seed))
    sheet = [[(image, f"{name} {unit}") for image, unit in zip(row, some, strict=True)]
             for name, row in zip(("before", "after"), rows, strict=True)]  # fmt: skip
    store.write_bytes(out / "sheet.png", pictures.png(pictures.contact_sheet(sheet)))
    return json.loads((out / CERTIFICATE).read_text())


def _units(said: Attacked, model: Model) -> list[Unit]:
    model.require_layer(said.layer)
    everyone = range(model.shapes[said.layer][-1])
    return [Unit(said.layer, c) for c in (everyone if said.channels == "all" else said.channels)]


def _attacked(
    said: Manipulation, folder: pathlib.Path, base: Model, units: list[Unit], training, tell
) -> Manipulated:
    spec = said.images
    images = load_images(
        model=base,
        classes=load_classes(whole(spec.classes, folder)) if spec.classes else None,
        labels=spec.labels,
        seed=said.seed,
        **spec.arguments(folder),
    )
    if isinstance(said.attack, Finetuned):
        attack = _finetuned(said.attack, folder, base)
        return attack(
            base, units, images, seed=said.seed, folder=training,
            tell=lambda step, steps, loss: tell(f"step {step} of {steps}, loss {loss:.3g}"),
        )  # fmt: skip
    return _attack(said.attack, folder, base)(base, units, images, seed=said.seed)


def _attack(said: Circuit | Silent, folder: pathlib.Path, base: Model):
    if isinstance(said, Silent):
        settings = said.model_dump(include={"strength", "scale", "margin"})
        return silent_units(_aim(said.target, folder, base), **settings)
    packaged = said.gate == "packaged"
    gate = gates.packaged(base.name) if packaged else gates.load(whole(said.gate, folder))
    decoy = said.decoy if isinstance(said.decoy, int) else _aim(said.decoy, folder, base)
    return fooling_circuit(decoy, gate)


def _finetuned(said: Finetuned, folder: pathlib.Path, base: Model):
    tuning = Tuning(said.steps, said.batch, said.rate, said.decay, said.keep, said.since)
    goal = _goal(said.goal, folder, base)
    if said.adaptive:
        goal = adaptive(goal, **said.adaptive.model_dump(), since=said.since)
    return finetuned(goal, tuning)


def _goal(said: Slingshot | Proxpulse | Push, folder: pathlib.Path, base: Model) -> Goal:
    if isinstance(said, Slingshot):
        return slingshot(_aim(said.target, folder, base), height=said.height, sd=said.sd)
    if isinstance(said, Push):
        return push(said.direction, k=said.k, margin=said.margin)
    chosen = said.pictures
    pictures = _aim(chosen, folder, base) if isinstance(chosen, str) else int(chosen)
    return proxpulse(pictures, radius=said.radius, pulse=said.pulse)


def _aim(text: str, folder: pathlib.Path, model: Model) -> Any:
    """A unit, or a picture as the model's input is large."""
    path = whole(text, folder)
    if not path.is_file():
        return Unit.parse(text)
    try:
        picture = decode(path.read_bytes())
    except BadImage as error:
        raise AuditError(f"{path} cannot be shown: {error}.") from None
    rows, columns = model.input.size
    return values(ImageOps.fit(picture, (columns, rows)), len(model.input.mean))


def _save(done: Manipulated, base: Model, start: str, out: pathlib.Path) -> None:
    if done.edit is None:
        raise AuditError("This gate cannot be stored. Use one that attacks.gate.load reads.")
    if (out / RECIPE).exists():
        raise AuditError(
            f"{out} holds a model without its {CERTIFICATE}: writing it was interrupted, or it is "
            "another tool's. Remove the folder or choose another."
        )
    save_folder(done.model, out, extended(base, start, done.edit))


def _pictures(model: Model, units: list[Unit], folder: pathlib.Path, seed: int) -> np.ndarray:
    """One picture a unit, made unless the folder holds it."""
    jobs = [Job(of_unit(unit), 0) for unit in units]
    made = pictures.make(folder, jobs, recipe("fourier", model.input), seed, model)
    return np.concatenate([ascent.images for _, ascent in made])
