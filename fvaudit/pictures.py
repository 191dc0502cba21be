"""Images in [0, 1] -> PNG files that say how they were made, and sheets of them.

The 8-bit picture is what people see, so it is also what evidence is taken on.
"""

import io
import math
import os
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, PngImagePlugin

import fvaudit
from fvaudit import store
from fvaudit.filenames import file_name
from fvaudit.models.model import Model
from fvaudit.optvis.render import Ascent, Job, Recipe, Watch, render
from fvaudit.records import AuditError


Shown = tuple[Float[np.ndarray, "h w c"], str]  # a picture and the line of text below it
GAP, LINE = 8, 16  # of a contact sheet, in pixels: between pictures, and for the text below one
LEAST = 96  # side of a sheet's pictures; smaller ones are enlarged, or nothing fits below them


def eight_bit(image: Any) -> UInt8[np.ndarray, "*shape"]:
    """Rounds values in [0, 1] to 0..255."""
    return np.round(np.asarray(image) * 255).astype(np.uint8)


def drawn(image: Any) -> Image.Image:
    """An image in [0, 1] or uint8, (h, w, 3) or gray (h, w, 1), for Pillow.

    Raises:
        AuditError: if it has another number of channels.
    """
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise AuditError(
            f"An array of shape {array.shape} is no picture: expected (h, w, 3), or (h, w, 1) if "
            "gray. fvaudit.visualize returns images of any channels as arrays."
        )
    whole = array if array.dtype == np.uint8 else eight_bit(array)
    return Image.fromarray(whole if array.shape[-1] == 3 else whole[..., 0])


def png(image: Any, notes: Mapping[str, Any] | None = None) -> bytes:
    """A PNG file's bytes from an image that `drawn` takes; notes go to text chunks."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in (notes or {}).items():
        chunks.add_text(f"fvaudit:{key}", str(value))
    buffer = io.BytesIO()
    drawn(image).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def read(paths: Sequence[str | os.PathLike[str]]) -> Float[np.ndarray, "n h w c"]:
    """PNG files of one size as float32 in [0, 1]; one channel if they are gray, else three."""
    found = []
    for path in paths:
        with Image.open(path) as file:
            found.append(_pixels(file))
    return np.stack(found)


def _pixels(file: Image.Image) -> Float[np.ndarray, "h w c"]:
    picture = file if file.mode == "L" else file.convert("RGB")
    return np.atleast_3d(np.asarray(picture, np.float32) / 255)


def provenance(
    job: Job, ascent: Ascent, recipe: Recipe, seed: int, model: Model
) -> Mapping[str, Any]:
    """Everything needed to make a picture again, and what it reached."""
    reached = {"activation": f"{ascent.reached:.6g}", "alive": ascent.alive}
    return {**_settings(job, recipe, seed, model), **reached}


def _settings(job: Job, recipe: Recipe, seed: int, model: Model) -> dict[str, Any]:
    return {
        "version": fvaudit.__version__,
        "model": model.name,
        "model_sha256": model.fingerprint,
        "objective": str(job.objective),
        "repeat": job.repeat,
        "seed": seed,
        **recipe.settings(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def make(
    folder: pathlib.Path,
    jobs: Sequence[Job],
    recipe: Recipe,
    seed: int,
    model: Model,
    watching: Callable[[Sequence[Job]], Watch] | None = None,
) -> list[tuple[Job, Ascent]]:
    """Pictures of jobs of one image each in a folder; those that it holds already are kept.

    Args:
        folder: is made if there is none.
        jobs: what to show; `picture_name` says where.
        recipe: how.
        seed: of all random draws.
        model: the network.
        watching: is told what is missing, and gives what `render` shows it to.

    Returns:
        Every job with what its file holds: an image of 8 bits, what it reached, no trace.

    Raises:
        AuditError: as `render`, or if the model's images are no pictures; then nothing is made.
    """
    drawn(np.zeros((1, 1, len(model.input.mean))))
    folder.mkdir(parents=True, exist_ok=True)  # fails before the pictures take time, not after
    there = [kept(folder, job, recipe, seed, model) for job in jobs]
    missing = [job for job, ascent in zip(jobs, there, strict=True) if ascent is None]
    watch = watching(missing) if watching and missing else None
    for job, ascent in render(model, missing, recipe, seed, watch=watch):
        save(folder, job, ascent, provenance(job, ascent, recipe, seed, model))
    made = [
        (job, ascent or kept(folder, job, recipe, seed, model))
        for job, ascent in zip(jobs, there, strict=True)
    ]
    return [(job, ascent) for job, ascent in made if ascent is not None]


def kept(folder: pathlib.Path, job: Job, recipe: Recipe, seed: int, model: Model) -> Ascent | None:
    """What `save` wrote of a job of one image, if it was made in just this way; else None.

    The image has 8 bits; trace and shots are empty.
    """
    path = folder / picture_name(str(job.objective), job.repeat)
    try:
        with Image.open(path, formats=("PNG",)) as file:
            image = _pixels(file)[None]  # reads the file to its end, where its notes may stand
            said = {str(k).removeprefix("fvaudit:"): v for k, v in file.info.items()}
            activation = np.asarray([float(said["activation"])], np.float32)
            alive = said["alive"] == "True"
    except (OSError, ValueError, KeyError, SyntaxError, Image.DecompressionBombError):
        return None  # missing, cut off, or another tool's
    if any(said.get(k) != str(v) for k, v in _settings(job, recipe, seed, model).items()):
        return None
    none = np.zeros(0, np.float32)
    return Ascent(image, activation, none, none.reshape(0, *image.shape), alive)


def contact_sheet(rows: Sequence[Sequence[Shown]]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Pictures in rows, each with one line of text below; all of one size, on white.

    Pictures smaller than `LEAST` pixels are enlarged by a whole number, every pixel to a square.
    """
    h, w, _ = rows[0][0][0].shape
    times = math.ceil(LEAST / max(h, w))
    h, w = h * times, w * times
    wide = max(len(row) for row in rows) * (w + GAP) + GAP
    sheet = Image.new("RGB", (wide, len(rows) * (h + LINE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        for c, (image, text) in enumerate(row):
            left, top = GAP + c * (w + GAP), GAP + r * (h + LINE + GAP)
            sheet.paste(drawn(image).resize((w, h), Image.Resampling.NEAREST), (left, top))
            draw.text((left, top + h + 2), _shortened(draw, text, w), fill="black")
    return np.asarray(sheet)


def save(folder: pathlib.Path, job: Job, ascent: Ascent, notes: Mapping[str, Any]) -> None:
    """Writes the picture of a job, or all of its set, as `picture_name` says."""
    path = folder / picture_name(str(job.objective), job.repeat)
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


def picture_name(unit: str, repeat: int) -> pathlib.PurePosixPath:
    """Where the picture of a unit's text lies: layer/channel-repeat.png, or a safe name of it."""
    layer, channel = unit.rsplit(":", 1)
    return pathlib.PurePosixPath(file_name(layer), f"{channel.replace(',', '_')}-{repeat}.png")
