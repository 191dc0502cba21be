"""Input specs: what a user, a file or another package says about preprocessing -> `InputSpec`.

Wrong preprocessing is the commonest cause of wrong numbers, so nothing is guessed: whatever is not
said, and not read from metadata, is listed in the error. Every source becomes the same mapping:

    size: 224                     # or [rows, columns]
    range: [0, 1]                 # what black and white become; or instead of it:
    mean: [0.485, 0.456, 0.406]   #   subtracted, as RGB
    std: [0.229, 0.224, 0.225]    #   and divided by
    units: 0..1                   #   of mean and std: 0..1 or 0..255
    order: RGB                    # or BGR: of the colours that the first layer sees; or gray, for
                                  #   one number a pixel: then mean and std are one number too
    resize: 256                   # side of a photograph before its centre is cut out; or crop_pct
    fit: crop                     # the side that resize means: crop short, pad long, squash both
    interpolation: bilinear

`mode: caffe`, `tf` or `torch` stands for Keras's `preprocess_input` of that mode: range or mean and
std, and order.
"""

import difflib
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fvaudit import yamltext
from fvaudit.models.imports import metadata
from fvaudit.models.imports.metadata import Said
from fvaudit.models.imports.pickle_ops import shown
from fvaudit.models.model import FITS, InputSpec
from fvaudit.records import AuditError


MAX_BYTES = 2**20  # of a spec file
KEYS = (
    "size", "range", "mean", "std", "units", "mode", "order", "resize", "crop_pct", "fit",
    "interpolation",
)  # fmt: skip
UNITS = {"0..1": 1.0, "0..255": 255.0}
MODES = {  # keras.applications.imagenet_utils.preprocess_input
    "caffe": {
        "mean": (123.68, 116.779, 103.939),
        "std": (1.0, 1.0, 1.0),
        "units": "0..255",
        "order": "BGR",
    },
    "tf": {"range": (-1.0, 1.0), "order": "RGB"},
    "torch": {**metadata.IMAGENET, "order": "RGB"},
}
_NEEDED = {
    "size": "size: rows and columns that the network takes, as in 224 or [224, 224]",
    "range": "range: what black and white become, as in [0, 1]; or mean and std with units "
    "0..1 or 0..255; or mode: caffe, tf or torch",
    "units": "units: of mean and std, 0..1 or 0..255",
    "order": "order: of the colours, RGB or BGR; or gray",
    "resize": "resize: side of a photograph in pixels before its centre is cut out; or crop_pct",
    "interpolation": "interpolation: of that resize, as in bilinear or bicubic",
}


def input_spec(
    source: Any = None, known: Said | None = None, *, what: str = "the model"
) -> InputSpec:
    """An `InputSpec` from whatever says it; what is missing is an error that lists it.

    Args:
        source: an `InputSpec`; a mapping of the keys above; the path of a YAML or JSON file that
            holds one (or a timm or Hugging Face config); torchvision weights or their transforms;
            a module or a config of timm; None if only `known` is known.
        known: what metadata say; `source` goes before it, key by key.
        what: the model, for errors.

    Raises:
        AuditError: if something is missing, said twice, not known, or out of range.
    """
    if isinstance(source, InputSpec):
        return source
    given = {} if source is None else said(source, what)
    return _spec(_merged(given, known or {}), what)


def _merged(given: Said, known: Said) -> dict[str, Any]:
    """What is given, and what is known where nothing of the same kind is given."""
    kinds = ({"range", "mean", "std", "units", "mode"}, {"resize", "crop_pct"}, {"order", "mode"})
    own = {key: value for key, value in given.items() if value is not None}
    closed = {key for kind in kinds if kind & own.keys() for key in kind} | own.keys()
    return {key: value for key, value in known.items() if key not in closed} | own


def said(source: Any, what: str) -> Said:
    """What a source says, complete or not, in the keys above.

    Raises:
        AuditError: if it cannot be read, or has other keys.
    """
    if isinstance(source, str | os.PathLike):
        source = _read(source)
    if (read := metadata.read(source)) is not None:
        return read
    if not isinstance(source, Mapping):
        raise AuditError(
            f"input= of {what} is {type(source).__name__}, from which no preprocessing can be "
            f"read. {_wanted()}"
        )
    for key in source:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise AuditError(f"input of {what} has no key {key!r}{hint} {_wanted()}")
    return source


def _read(path: str | os.PathLike) -> Any:
    where = shown(os.fspath(path))
    try:
        file = pathlib.Path(path)
        if file.stat().st_size > MAX_BYTES:
            raise AuditError(f"{where} is larger than an input spec ever is.")
        found = yamltext.load(file.read_text(encoding="utf-8"))
    except AuditError:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        problem = shown(" ".join(str(error).split()))
        raise AuditError(
            f"Cannot read the input spec {where}: {problem}; expected YAML or JSON."
        ) from None
    if not isinstance(found, Mapping):
        raise AuditError(f"{where} must hold keys and values. {_wanted()}")
    return found


def _spec(said: Mapping[str, Any], what: str) -> InputSpec:
    said = _with_mode(said, what)
    _require_complete(said, what)
    rows, columns = size = _size(said["size"], what)
    mean, std = _affine(said, what)
    fit = said.get("fit", "crop")
    if fit in FITS[1:] and rows != columns:
        raise AuditError(f"input of {what}: fit {fit!r} needs a square size, got {size}.")
    return InputSpec(
        size=size,
        mean=mean,
        std=std,
        resize=_resize(said, size, what),
        interpolation=said["interpolation"],
        order=said["order"],
        fit=fit,
    )


def _with_mode(said: Mapping[str, Any], what: str) -> dict[str, Any]:
    said = {key: value for key, value in said.items() if value is not None}
    if "mode" not in said:
        return said
    mode = said.pop("mode")
    if mode not in MODES:
        raise AuditError(f"input of {what}: mode is {mode!r}; known: {', '.join(MODES)}.")
    _require_one(said, ("range", "mean", "std", "units", "order"), f"mode {mode}", what)
    return said | MODES[mode]


def _require_complete(said: Mapping[str, Any], what: str) -> None:
    ways = {"range": ("range", "mean", "std"), "resize": ("resize", "crop_pct")}
    missing = [key for key in _NEEDED if not any(k in said for k in ways.get(key, (key,)))]
    if "range" in said:
        _require_one(said, ("mean", "std", "units"), "range", what)
        missing = [key for key in missing if key != "units"]
    elif "mean" not in said or "std" not in said:
        missing = list(dict.fromkeys([*missing, "range"]))
    if "resize" in said:
        _require_one(said, ("crop_pct",), "resize", what)
    if missing:
        raise AuditError(
            f"The input of {what} is not known well enough, and wrong preprocessing gives wrong "
            f"numbers. {_wanted(missing)}"
        )


def _require_one(said: Mapping[str, Any], others: tuple[str, ...], key: str, what: str) -> None:
    if both := [other for other in others if other in said]:
        raise AuditError(f"input of {what} says both {key} and {both[0]}; give one of them.")


def _wanted(keys: Sequence[str] = tuple(_NEEDED)) -> str:
    return "Give input= (input: in a config, --input FILE) with\n" + "\n".join(
        f"  {_NEEDED[key]}" for key in keys
    )


def _size(size: Any, what: str) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else size
    pair = isinstance(sides, Sequence) and len(sides) == 2
    if not pair or not all(isinstance(s, int) and s > 0 for s in sides):
        raise AuditError(f"input of {what}: size is {size!r}; expected as in 224 or [224, 224].")
    return (sides[0], sides[1])


def _affine(said: Mapping[str, Any], what: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of pixels in [0, 1], a number a channel."""
    channels = 1 if said["order"] == "gray" else 3
    if "range" in said:
        low, high = _finite(said["range"], 2, "range", what)
        if low == high:
            raise AuditError(
                f"input of {what}: range is {[low, high]}; black and white must differ."
            )
        return (-low / (high - low),) * channels, (1 / (high - low),) * channels
    if said["units"] not in UNITS:
        raise AuditError(f"input of {what}: units is {said['units']!r}; expected 0..1 or 0..255.")
    unit = UNITS[said["units"]]
    mean, std = (_finite(said[key], channels, key, what) for key in ("mean", "std"))
    if unit == 1 and max(map(abs, (*mean, *std))) > 2:
        raise AuditError(
            f"input of {what}: mean {list(mean)} and std {list(std)} are not of pixels in 0..1. "
            "Say units: 0..255."
        )
    return tuple(m / unit for m in mean), tuple(s / unit for s in std)


def _finite(values: Any, count: int, key: str, what: str) -> tuple[float, ...]:
    """`count` numbers; one number alone stands for as many colours."""
    alone = isinstance(values, int | float) and count != 2
    many: Any = (values,) * count if alone else values
    sequence = isinstance(many, Sequence) and not isinstance(many, str) and len(many) == count
    if not sequence or not all(isinstance(v, int | float) and math.isfinite(v) for v in many):
        raise AuditError(f"input of {what}: {key} is {values!r}; expected {count} numbers.")
    return tuple(float(v) for v in many)


def _resize(said: Mapping[str, Any], size: tuple[int, int], what: str) -> int:
    if "resize" in said:
        if not isinstance(said["resize"], int) or said["resize"] < 1:
            raise AuditError(f"input of {what}: resize is {said['resize']!r}; expected pixels.")
        return said["resize"]
    (share,) = _finite(said["crop_pct"], 1, "crop_pct", what)
    if not 0 < share <= 2 or size[0] != size[1]:
        raise AuditError(
            f"input of {what}: crop_pct is {share} for the size {size}; expected a share such as "
            "0.875 and a square size. Give resize in pixels instead."
        )
    return math.floor(size[0] / share)
