"""Small pictures as data URIs, of a size that keeps the whole page below its limit.

A page for 30 units can afford large pictures, one for 500 units cannot. A sample of units is
encoded at each size, largest first, and the first size whose extrapolated total fits is taken.
"""

import base64
import io
import pathlib
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from fvaudit.records import UnitResult
from fvaudit.store import Run, exemplar_name


EXEMPLARS = 6  # shown per unit
FRAMES = 8  # of a trajectory, at most
_SAMPLE = 12  # units that sizes are tried on


class Size(NamedTuple):
    """Edge lengths in pixels, and the encoder's quality."""

    fv: int
    frame: int
    exemplar: int
    quality: int


SIZES = (
    Size(200, 72, 96, 84),
    Size(176, 64, 88, 80),
    Size(160, 56, 80, 74),
    Size(128, 48, 64, 68),
    Size(112, 40, 56, 60),
    Size(96, 36, 48, 52),
    Size(80, 32, 40, 45),
    Size(64, 28, 32, 36),
    Size(56, 20, 28, 25),
    Size(40, 16, 24, 12),
)


class Trajectory(NamedTuple):
    """What the .npz beside a picture holds."""

    shots: UInt8[np.ndarray, "k h w c"]
    steps: tuple[int, ...]  # how many updates each shot had seen
    trace: tuple[float, ...]  # the objective at each step


def choose(run: Run, budget: int) -> int:
    """The index of the largest of `SIZES` whose pictures fit into so many bytes."""
    units = run.units
    if not units:
        return 0
    step = max(1, len(units) // _SAMPLE)
    sample = units[::step][:_SAMPLE]
    naturals = len({name for r in units for name in r.exemplars[:EXEMPLARS]})
    for index, size in enumerate(SIZES):
        made = sum(_own_bytes(run.folder, r, size) for r in sample) * len(units) / len(sample)
        natural = [
            len(exemplar(run.folder, name, size) or "")
            for name in dict.fromkeys(n for r in sample for n in r.exemplars[:EXEMPLARS])
        ]
        if made + naturals * sum(natural) / max(1, len(natural)) <= budget:
            return index
    return len(SIZES) - 1


def _own_bytes(folder: pathlib.Path, r: UnitResult, size: Size) -> int:
    total = 0
    for name in r.images:
        total += len(picture(folder, name, size) or "")
        found = trajectory(folder, name)
        total += 0 if found is None else len(strip(found.shots, size))
    return total


def picture(folder: pathlib.Path, name: str, size: Size) -> str | None:
    """The data URI of a feature visualization; None where the file is missing or damaged."""
    return _thumbnail(folder / name, size.fv, size.quality)


def exemplar(folder: pathlib.Path, image_id: str, size: Size) -> str | None:
    """The data URI of a natural image's thumbnail; None where the file is missing or damaged."""
    return _thumbnail(folder / exemplar_name(image_id), size.exemplar, size.quality)


def trajectory(folder: pathlib.Path, name: str) -> Trajectory | None:
    """Reads the .npz beside a picture; None where it is missing or damaged."""
    try:
        content = (folder / name).with_suffix(".npz").read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            shots, steps, trace = file["shots"], file["steps"], file["trace"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    if shots.ndim != 4 or shots.shape[3] not in (1, 3) or shots.dtype != np.uint8 or not len(shots):
        return None
    shots = np.broadcast_to(shots, (*shots.shape[:3], 3))  # gray ones too
    kept = np.unique(np.linspace(0, len(shots) - 1, min(FRAMES, len(shots))).round().astype(int))
    marks = tuple(int(steps[i]) for i in kept)
    return Trajectory(shots[kept], marks, tuple(map(float, trace)))


def strip(shots: UInt8[np.ndarray, "k h w c"], size: Size) -> str:
    """All frames side by side as one picture: one header instead of six."""
    edge = (size.frame, size.frame)
    box = Image.Resampling.BOX
    frames = [np.asarray(ImageOps.contain(Image.fromarray(s), edge, box)) for s in shots]
    return _uri(Image.fromarray(np.concatenate(frames, axis=1)), size.quality)


def _thumbnail(path: pathlib.Path, edge: int, quality: int) -> str | None:
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError):
        return None
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return _uri(image, quality)


def _uri(image: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shown(units: Sequence[UnitResult]) -> list[str]:
    """Ids of the natural images that the page shows, each once, in order of first use."""
    return list(dict.fromkeys(name for r in units for name in r.exemplars[:EXEMPLARS]))
