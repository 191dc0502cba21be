"""What other packages' metadata say about preprocessing, in the keys of `imports.specs`.

Read are timm's `pretrained_cfg` (of a module, or in a hub's config.json), torchvision's weights and
their transforms, Hugging Face's preprocessor_config.json, and ONNX's metadata_props: the standard
image ones (docs/MetadataProps.md of the ONNX repository) and our own.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fvaudit.models.imports.pickle_ops import shown
from fvaudit.models.model import InputSpec
from fvaudit.records import AuditError


Said = Mapping[str, Any]  # a mapping of specs.KEYS
KEY = "fvaudit.input"  # of ONNX metadata: an InputSpec's fields as JSON
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "units": "0..1"}


def read(source: Any) -> Said | None:
    """What a foreign object or config says of its input; None if it is no such thing.

    Args:
        source: torchvision's weights or their transforms, a module or a config of timm, a
            preprocessor config of Hugging Face.

    Raises:
        AuditError: if it is one of these, but damaged or of a kind that no `InputSpec` can express.
    """
    try:
        return _read_mapping(source) if isinstance(source, Mapping) else _read_object(source)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        if isinstance(error, AuditError):
            raise
        raise AuditError(
            f"The preprocessing in {type(source).__name__} makes no sense "
            f"({type(error).__name__}: {shown(str(error))}). Give input= as a mapping."
        ) from None


def _read_mapping(source: Mapping) -> Said | None:
    if "pretrained_cfg" in source:
        return _of_timm(source["pretrained_cfg"])
    if "input_size" in source:
        return _of_timm(source)
    return _of_hugging_face(source) if "image_mean" in source else None


def _read_object(source: Any) -> Said | None:
    transforms = getattr(source, "transforms", None)
    if hasattr(source, "meta") and callable(transforms):  # torchvision's weights
        source = transforms()
    if hasattr(source, "crop_size") and hasattr(source, "resize_size"):
        return _of_preset(source)
    if isinstance(transforms, Sequence):  # torchvision's Compose
        return _of_steps(transforms)
    return of_module(source) or None


def of_module(module: Any) -> Said:
    """What a PyTorch module says of its input: timm's `pretrained_cfg`, or nothing."""
    config = getattr(module, "pretrained_cfg", None)
    return _of_timm(config) if isinstance(config, Mapping) and "input_size" in config else {}


def of_onnx(properties: Mapping[str, str]) -> Said:
    """What an ONNX model's `metadata_props` say of its input; the size stands in its graph.

    Raises:
        AuditError: if they are there and make no sense.
    """
    if KEY in properties:
        return _of_fields(parsed_json(properties[KEY], f"metadata {KEY}"))
    orders = {"Gray8": "gray", "Rgb8": "RGB", "Bgr8": "BGR", "Rgba8": "RGB", "Bgra8": "BGR"}
    ranges = {"NominalRange_0_255": (0, 255), "Normalized_0_1": (0, 1), "Normalized_1_1": (-1, 1)}
    order = orders.get(properties.get("Image.BitmapPixelFormat", ""))
    low_high = ranges.get(properties.get("Image.NominalPixelRange", ""))
    return {k: v for k, v in (("order", order), ("range", low_high)) if v is not None}


def of_onnx_model(proto: Any) -> Said:
    """What an `onnx.ModelProto` says of its input: its metadata, and the size in its graph."""
    said = of_onnx({entry.key: entry.value for entry in proto.metadata_props})
    filled = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in filled]
    if len(inputs) != 1:
        return said
    sides = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]  # 0: left open
    if len(sides) != 4:
        return said
    colours_last = sides[3] in (1, 3) and sides[1] not in (1, 3)
    rows, columns = sides[1:3] if colours_last else sides[2:4]
    return {"size": (rows, columns), **said} if rows and columns else said


def of_spec(spec: InputSpec) -> Said:
    """What a whole spec says."""
    return _of_fields(dataclasses.asdict(spec))


def for_onnx(spec: InputSpec) -> dict[str, str]:
    """ONNX `metadata_props` from which `of_onnx` reads the same spec."""
    return {KEY: json.dumps(dataclasses.asdict(spec))}


def parsed_json(text: str, where: str) -> Mapping:
    """An object of JSON.

    Raises:
        AuditError: if the text is anything else.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, Mapping):
        raise AuditError(f"{where} is no JSON object: {shown(text)}.")
    return found


def _of_fields(fields: Mapping) -> Said:
    """Of an `InputSpec` that was written down field by field."""
    names = ("size", "mean", "std", "resize", "interpolation", "order", "fit")
    return {"units": "0..1", **{name: fields[name] for name in names if name in fields}}


def _of_timm(config: Mapping) -> Said:
    """What timm's `create_transform(**resolve_data_config(...))` does, without augmentation."""
    known = {
        "size": tuple(config["input_size"][1:]),
        "crop_pct": config.get("crop_pct") or 0.875,  # timm's defaults, as resolve_data_config has
        "interpolation": config.get("interpolation") or "bicubic",
        "fit": {"squash": "squash", "border": "pad"}.get(config.get("crop_mode") or "", "crop"),
        "order": "RGB",
        **IMAGENET,
    }
    return known | {key: config[key] for key in ("mean", "std") if config.get(key)}


def _of_preset(preset: Any) -> Said:
    """Of torchvision's `ImageClassification`: short side, centre crop, mean and std."""
    if not hasattr(preset, "crop_size"):
        raise AuditError(f"input=: {type(preset).__name__} is not for classification.")
    return {
        "size": _whole(preset.crop_size),
        "resize": _short_side(preset.resize_size),
        "mean": preset.mean,
        "std": preset.std,
        "units": "0..1",
        "order": "RGB",
        "interpolation": _interpolation(preset.interpolation),
    }


def _of_steps(steps: Sequence[Any]) -> Said:
    """Of torchvision's `Compose` of Resize, CenterCrop and Normalize, as timm and CLIP make it."""
    said: dict[str, Any] = {"order": "RGB", "range": (0, 1)}
    for step in steps:
        kind = type(step).__name__
        if kind == "Resize":
            both = isinstance(step.size, Sequence) and len(step.size) == 2
            said |= {"resize": min(step.size) if both else _short_side(step.size)}
            said |= {"fit": "squash" if both else "crop", "size": _whole(step.size)}
            said |= {"interpolation": _interpolation(step.interpolation)}
        elif kind == "CenterCrop":
            said |= {"size": _whole(step.size)}
        elif kind == "Normalize":
            said = {key: value for key, value in said.items() if key != "range"}
            said |= {"mean": _numbers(step.mean), "std": _numbers(step.std), "units": "0..1"}
        elif kind not in ("ToTensor", "MaybeToTensor", "ToImage", "function"):
            raise AuditError(f"input=: the step {kind} of its transforms is not known.")
    return said


def _of_hugging_face(config: Mapping) -> Said:
    """Of a `preprocessor_config.json` for images."""
    size, crop = config.get("size"), config.get("crop_size")
    short = size.get("shortest_edge") if isinstance(size, Mapping) else size
    exact = None if not isinstance(size, Mapping) or short else (size["height"], size["width"])
    if config.get("rescale_factor", 1 / 255) != 1 / 255 or not config.get("do_normalize", True):
        raise AuditError(
            "The preprocessor config has an unusual rescale_factor, or does not normalise. Give "
            "input= as a mapping."
        )
    cut = (crop["height"], crop["width"]) if isinstance(crop, Mapping) else crop
    final = cut if config.get("do_center_crop") and cut else exact
    resamples = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers
    return {
        "size": final,
        "resize": short if short else min(exact or (0,)),
        "fit": "crop" if short else "squash",
        "mean": config["image_mean"],
        "std": config["image_std"],
        "units": "0..1",
        "order": "RGB",
        "interpolation": resamples[config.get("resample", 2)],
    }


def _whole(size: Any) -> tuple[int, int]:
    """(rows, columns), from one number or two, or a list of them."""
    sides = list(size) if isinstance(size, Sequence) else [size]
    return (sides[0], sides[-1])


def _short_side(size: Any) -> int:
    sides = list(size) if isinstance(size, Sequence) else [size]
    if len(sides) != 1:
        raise AuditError(f"input=: a resize to {sides} squashes; give it as a mapping.")
    return sides[0]


def _interpolation(mode: Any) -> str:
    return str(getattr(mode, "value", mode)).lower()


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
