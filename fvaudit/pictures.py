"""Images in [0, 1] -> PNG files that say how they were made, and sheets of them.

The 8-bit picture is what people see, so it is also what evidence is taken on.
"""

import io
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, PngImagePlugin

import fvaudit
from fvaudit import store
from fvaudit.models.model import Model
from fvaudit.optvis.render import Ascent, Job, Recipe


Shown = tuple[Float[np.ndarray, "h w 3"], str]  # a picture and the line of text below it
GAP, LINE = 8, 16  # of a contact sheet, in pixels: between pictures, and for the text below one


def eight_bit(image: Any) -> UInt8[np.ndarray, "*shape"]:
    """Rounds values in [0, 1] to 0..255."""
    return np.round(np.asarray(image) * 255).astype(np.uint8)


def png(image: Any, notes: Mapping[str, Any] | None = None) -> bytes:
    """A PNG file's bytes from an image in [0, 1] or uint8, (h, w, 3); notes go to text chunks."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in (notes or {}).items():
        chunks.add_text(f"fvaudit:{key}", str(value))
    buffer = io.BytesIO()
    array = np.asarray(image)
    Image.fromarray(array if array.dtype == np.uint8 else eight_bit(array)).save(
        buffer, "PNG", pnginfo=chunks
    )
    return buffer.getvalue()


def read(paths: Sequence[str | os.PathLike[str]]) -> Float[np.ndarray, "n h w 3"]:
    """PNG files of one size as float32 in [0, 1]."""
    found = []
    for path in paths:
        with Image.open(path) as file:
            found.append(np.asarray(file.convert("RGB"), np.float32) / 255)
    return np.stack(found)


def provenance(
    job: Job, ascent: Ascent, recipe: Recipe, seed: int, model: Model
) -> Mapping[str, Any]:
    """Everything needed to make a picture again."""
    return {
        "version": fvaudit.__version__,
        "model": model.name,
        "model_sha256": model.fingerprint,
        "objective": str(job.objective),
        "repeat": job.repeat,
        "seed": seed,
        **recipe.settings(),
        "activation": f"{ascent.reached:.6g}",
        "alive": ascent.alive,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def contact_sheet(rows: Sequence[Sequence[Shown]]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Pictures in rows, each with one line of text below; all of one size, on white."""
    h, w, _ = rows[0][0][0].shape
    wide = max(len(row) for row in rows) * (w + GAP) + GAP
    sheet = Image.new("RGB", (wide, len(rows) * (h + LINE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        for c, (image, text) in enumerate(row):
            left, top = GAP + c * (w + GAP), GAP + r * (h + LINE + GAP)
            sheet.paste(Image.fromarray(eight_bit(image)), (left, top))
            draw.text((left, top + h + 2), _shortened(draw, text, w), fill="black")
    return np.asarray(sheet)


def save(folder: pathlib.Path, job: Job, ascent: Ascent, notes: Mapping[str, Any]) -> None:
    """Writes the picture of a job, or all of its set, as `file_name` says."""
    path = folder / file_name(str(job.objective), job.repeat)
    for i, image in enumerate(ascent.images):
        beside = path if len(ascent.images) == 1 else path.with_stem(f"{path.stem}.{i}")
        store.write_bytes(beside, png(image, notes))


def save_sheet(path: pathlib.Path, made: Sequence[tuple[Job, Ascent]], columns: int) -> None:
    """Writes a contact sheet; what is dead says so instead of showing its grey start."""
    cells = [
        (image if ascent.alive else np.ones_like(image), f"{job.objective} {_reached(ascent, i)}")
        for job, ascent in made
        for i, image in enumerate(ascent.images)
    ]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    store.write_bytes(path, png(contact_sheet(rows)))


def _reached(ascent: Ascent, i: int) -> str:
    return f"{ascent.activation[i]:.2f}" if ascent.alive else "dead"


def _shortened(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    while text and draw.textlength(text) > width:
        text = text[:-1]
    return text


def file_name(unit: str, repeat: int) -> pathlib.PurePosixPath:
    """Where the picture of a unit's text lies: layer/channel-repeat.png, or a safe name of it."""
    layer, channel = unit.rsplit(":", 1)
    folder = store.file_name(layer)  # names of foreign models are anything, "../.." too
    return pathlib.PurePosixPath(folder, f"{channel.replace(',', '_')}-{repeat}.png")
