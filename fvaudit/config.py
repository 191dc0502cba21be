"""The config schema: what an audit may be told, as frozen pydantic models."""

import os
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
import yaml

from fvaudit.records import SEEDS, AuditError, least_replicates, require_kind
from fvaudit.yamlfile import (
    Section,
    overridden,
    parsed,
    presets,
    problems,
    read_yaml,
    validated,
    whole,
)


Share = Annotated[float, pydantic.Field(gt=0, lt=1)]
RecipeName = Literal[
    "fourier",
    "lucid",
    "pixels",
    "maco",
    "cppn",
    "yosinski1",
    "yosinski2",
    "yosinski3",
    "yosinski4",
]
Count = Annotated[int, pydantic.Field(ge=1)]


class Input(Section):
    """How pictures become the model's input, where neither the zoo nor the file says it."""

    size: int | tuple[int, int] | None = pydantic.Field(
        default=None, description="that the network takes: 224, or [rows, columns]"
    )
    range: tuple[float, float] | None = pydantic.Field(
        default=None, description="what black and white become, as in [0, 1]; or mean and std"
    )
    mean: float | tuple[float, float, float] | None = pydantic.Field(
        default=None, description="subtracted, as RGB"
    )
    std: float | tuple[float, float, float] | None = pydantic.Field(
        default=None, description="and divided by, as RGB"
    )
    units: Literal["0..1", "0..255"] | None = pydantic.Field(
        default=None, description="of mean and std"
    )
    mode: Literal["caffe", "tf", "torch"] | None = pydantic.Field(
        default=None, description="of Keras's preprocess_input: stands for range and order"
    )
    order: Literal["RGB", "BGR", "gray"] | None = pydantic.Field(
        default=None, description="of the colours that the first layer sees; gray for one number"
    )
    resize: Count | None = pydantic.Field(
        default=None, description="side of a photograph before its centre is cut out, in pixels"
    )
    crop_pct: float | None = pydantic.Field(
        default=None, description="instead of resize: size / resize"
    )
    fit: Literal["crop", "pad", "squash"] | None = pydantic.Field(
        default=None, description="what resize measures: the short side, the long one, both"
    )
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos", "hamming", "box"] | None = (
        pydantic.Field(default=None, description="of that resize")
    )


class Photographs(Section):
    """Natural images of which nothing is asked but their pixels."""

    source: str = pydantic.Field(
        description="folder, zip, .npz, or 'samples'; relative to the config file"
    )
    crops: Count = pydantic.Field(
        default=1, description="crops per photograph, the centre crop first"
    )
    limit: Count | None = pydantic.Field(
        default=None, description="use at most this many photographs"
    )
    on_bad: Literal["skip", "refuse"] = pydantic.Field(
        default="skip", description="what to do with an image that cannot be used"
    )

    def arguments(self, folder: pathlib.Path) -> dict[str, Any]:
        """What `load_images` takes; paths count from `folder`."""
        return {
            "spec": self.source if self.source == "samples" else whole(self.source, folder),
            "limit": self.limit,
            "crops": self.crops,
            "on_bad": self.on_bad,
        }


class Images(Photographs):
    """Natural images and their classes."""

    labels: bool = pydantic.Field(default=True, description="whether folders name classes")
    classes: str | None = pydantic.Field(
        default=None,
        description="file of the model's classes, where it does not know them: a name a line in "
        "the order of its outputs, or a TSV (index, wnid, name)",
    )


class Units(Section):
    """Which units of one layer."""

    layer: str
    count: Count | None = pydantic.Field(default=None, description="so many, drawn by the seed")
    channels: list[Annotated[int, pydantic.Field(ge=0)]] | Literal["labelled"] | None = (
        pydantic.Field(
            default=None,
            description="these; or 'labelled': the classes that the images' labels name",
        )
    )

    @pydantic.model_validator(mode="after")
    def _names_units(self) -> "Units":
        if self.count is None and self.channels is None:
            raise ValueError("say which units: count, channels, or both")
        if isinstance(self.channels, list) and len(set(self.channels)) != len(self.channels):
            raise ValueError("channels holds a channel twice")
        return self


class Engine(Section):
    """How visualizations are made."""

    recipe: RecipeName = pydantic.Field(
        default="fourier", description="parameterization, transforms and optimizer"
    )
    steps: Count | None = pydantic.Field(
        default=None, description="updates per image; the recipe's own unless given"
    )
    redirected_steps: Annotated[int, pydantic.Field(ge=0)] | None = pydantic.Field(
        default=None,
        description="first steps that pass gradient through closed ReLUs; the recipe's own",
    )
    repeats: int = pydantic.Field(
        default=2, ge=1, le=1000, description="independent images per unit"
    )
    shots: int = pydantic.Field(
        default=6, ge=1, le=1000, description="images kept of each trajectory"
    )
    lanes: Count | None = pydantic.Field(
        default=None,
        description="images per device and program; 1 on a CPU and 16 elsewhere unless given",
    )


class Evidence(Section):
    """How visualizations are compared with natural images."""

    metric: Literal["spearman", "pearson", "cosine"] = "spearman"
    variant: Literal["spatial", "pooled"] = "spatial"
    layers: list[str] | None = pydantic.Field(
        default=None, description="layers of the path; the model's trunk unless given"
    )
    group: int = pydantic.Field(
        default=20, ge=2, description="photographs in a unit's natural group"
    )
    max_features: int = pydantic.Field(
        default=32768,
        ge=16,
        le=2**24,
        description="features compared per layer, a seeded subset above it",
    )
    replicates: int = pydantic.Field(
        default=1000, ge=100, le=100_000, description="bootstrap replicates"
    )
    level: Share = pydantic.Field(default=0.95, description="confidence level of every interval")

    @pydantic.model_validator(mode="after")
    def _reaches_its_tails(self) -> "Evidence":
        needed = least_replicates(self.level)
        if self.replicates < needed:
            raise ValueError(
                f"replicates is {self.replicates}, but none of fewer than {needed} lies beyond an "
                f"interval of level {self.level:g}; set more replicates, or a lower level"
            )
        return self


class Gate(Section):
    """What every gate has."""

    severity: Literal["fail", "warn"] = pydantic.Field(
        default="fail", description="what a claim that does not hold becomes"
    )
    conclusive: bool = pydantic.Field(
        default=False,
        description="whether an inconclusive verdict stops the pipeline (exit code 3)",
    )


class SamePath(Gate):
    """The FV is processed along the path of the natural images it is said to explain."""

    min_score: Share = pydantic.Field(default=0.5, description="path score that the FV must reach")


class NotDistinguishable(Gate):
    """The FV's path cannot be told from a natural image's."""

    fdr: Share = pydantic.Field(default=0.05, description="false discovery rate over all units")


class DrivesUnit(Gate):
    """The FV drives its unit more strongly than natural photographs do."""

    min_quantile: Share = pydantic.Field(
        default=0.75, description="share of photographs that must drive the unit less than the FV"
    )


class Gates(Section):
    """Which claims are judged, and how strictly; null leaves one out."""

    same_path: SamePath | None = SamePath()
    not_distinguishable: NotDistinguishable | None = NotDistinguishable()
    drives_unit: DrivesUnit | None = DrivesUnit()


class Config(Section):
    """An audit."""

    version: Literal[1] = 1
    model: str | None = pydantic.Field(
        default=None,
        description="name of a model of the zoo; an .onnx file or a folder that fvaudit wrote, "
        "relative to the config; hf-hub:org/name; null where fv.audit gets the model itself",
    )
    input: Input | None = pydantic.Field(
        default=None, description="preprocessing; the zoo's or the file's own unless given"
    )
    weights: str | None = pydantic.Field(
        default=None,
        description="weight file of the model (.safetensors, .npz, .msgpack, .pth); relative to "
        "the config",
    )
    images: Images
    units: list[Units] = pydantic.Field(min_length=1)
    engine: Engine = Engine()
    evidence: Evidence = Evidence()
    gates: Gates = Gates()
    preflight: Annotated[
        Literal["stop", "report", "off"],
        pydantic.BeforeValidator(lambda said: "off" if said is False else said),  # YAML's own `off`
    ] = pydantic.Field(
        default="stop",
        description="what problems that the doctor finds do: stop an audit, or stand in its report",
    )
    seed: int = pydantic.Field(default=0, ge=0, lt=SEEDS)

    @pydantic.model_validator(mode="after")
    def _layers_once(self) -> "Config":
        layers = [units.layer for units in self.units]
        if len(set(layers)) != len(layers):
            raise ValueError("units names a layer twice; merge the two entries")
        return self


class Network(Section):
    """The network that a manipulation or a gate's training begins with, and its preprocessing."""

    version: Literal[1] = 1
    model: str = pydantic.Field(
        description="name of a model of the zoo, an .onnx file, a folder that fvaudit wrote, or "
        "hf-hub:org/name"
    )
    weights: str | None = None
    input: Input | None = None

    def arguments(self, folder: pathlib.Path) -> dict[str, Any]:
        """What `load_model` takes; paths count from `folder`."""
        return {
            "name": _located(self.model, folder),
            "weights": self.weights and whole(self.weights, folder),
            "input": self.input and self.input.model_dump(exclude_none=True),
        }


def load_config(source: str | pathlib.Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config file or a preset and applies `a.b=c` overrides.

    Args:
        source: path of a YAML file, or a preset's name.
        overrides: dotted keys; list entries by number, as in `units.0.count=4`; values are YAML.

    Raises:
        AuditError: if there is no such file, it is not YAML, or a key or value is not allowed.
    """
    accepted = "a YAML file, a preset's name, or what load_config made"
    require_kind("config", source, (str, os.PathLike), accepted)
    path = pathlib.Path(source)
    known = presets()
    preset = path.suffix not in (".yaml", ".yml", ".json") and str(source) in known
    if preset:
        data = overridden(parsed(known[str(source)].read_text(), str(source)), overrides)
        return _resolved(validate(data, str(source)), pathlib.Path())
    return _resolved(validate(read_yaml(path, overrides), str(source)), path.parent)


def input_of(overrides: Sequence[str]) -> dict[str, Any] | None:
    """What `input.key=value` overrides alone say of a model's input; None if there are none.

    Raises:
        AuditError: if a key is none of `input`, or a value is not allowed.
    """
    data = overridden({}, overrides)
    other = next((key for key in data if key != "input"), None)
    if other is not None:
        raise AuditError(f"--set takes keys of input here, as in input.size=224; got {other!r}.")
    if not data:
        return None
    try:
        return Input.model_validate(data["input"]).model_dump(exclude_none=True)
    except pydantic.ValidationError as error:
        wrong = problems(error, Input, at="input.")
        raise AuditError(f"The input is not valid:\n{wrong}") from None


def validate(data: Any, source: str) -> Config:
    """Checks a config that was read already.

    Raises:
        AuditError: with one line per problem; an unknown key is named with the nearest known one.
    """
    return validated(Config, data, source)


def dump(config: Config) -> str:
    """A config as YAML, with every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _resolved(config: Config, folder: pathlib.Path) -> Config:
    """Paths in a config count from its own folder."""
    images = config.images

    def found(path: str | None) -> str | None:
        return None if path is None else str(whole(path, folder))

    source = str(images.arguments(folder)["spec"])
    update = images.model_copy(update={"source": source, "classes": found(images.classes)})
    model = None if config.model is None else _located(config.model, folder)
    return config.model_copy(
        update={"images": update, "weights": found(config.weights), "model": model}
    )


def _located(model: str, folder: pathlib.Path) -> str:
    """A model's name: the zoo's or a hub's, or the whole path of a file or a folder.

    A folder that happens to be called like a network, of its weights say, means nothing.
    """
    stored = (folder / model / "recipe.json").is_file()  # as `save_folder` writes it
    is_file = "/" in model or model.lower().endswith(".onnx") or stored
    if model.startswith("hf-hub:") or not is_file:
        return model
    return str(whole(model, folder))
