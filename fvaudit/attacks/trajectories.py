"""Visualizations at every stage of their making, kept on disk: what a gate learns to tell.

A gate that knows finished pictures only would let the first steps pass as natural, and the picture
would start towards the original unit. So each unit's images are kept at 16 moments, from the noise
that every ascent starts at to its end, spaced as in the replication of Geirhos et al. (2024),
App. C.1: 2^2 to 2^9 in 15 equal ratios, and step 0.

One file a unit: a run that was interrupted goes on where it stopped.
"""

import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from fvaudit.filenames import file_name
from fvaudit.models.model import Model
from fvaudit.optvis import objectives
from fvaudit.optvis.render import width
from fvaudit.optvis.visualize import visualize
from fvaudit.records import Unit


STEPS = 512
MOMENTS = (0, 4, 5, 8, 11, 16, 22, 32, 45, 64, 90, 128, 181, 256, 362, 512)  # updates done


def make(
    model: Model,
    units: Sequence[Unit],
    folder: str | os.PathLike[str],
    *,
    recipe: str = "fourier",
    seed: int = 0,
    lanes: int | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[pathlib.Path]:
    """Visualizes every unit that has no file yet.

    Args:
        model: the network.
        units: which units; those of one layer share a program.
        folder: where the files go.
        recipe: a name of `optvis.recipes`; its steps are `STEPS`.
        seed: of the visualizations.
        lanes: images per device and program; as in `visualize`.
        tell: called as tell(done, total) after each batch.

    Returns:
        One .npz per unit, in order.

    Raises:
        AuditError: for a unit that the model does not have.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for unit in units:
        model.require_unit(unit)
    files = [folder / f"{file_name(unit.layer)}-{unit.channel}.npz" for unit in units]
    missing = [i for i, file in enumerate(files) if not file.exists()]
    for layer in dict.fromkeys(units[i].layer for i in missing):
        own = [i for i in missing if units[i].layer == layer]
        size = max(2, width(lanes))
        for at in range(0, len(own), size):
            batch = own[at : at + size]
            wanted = [objectives.of_unit(units[i]) for i in batch]
            made = visualize(
                model, wanted, recipe=recipe, steps=STEPS, shot_steps=MOMENTS, seed=seed,
                lanes=lanes,
            )  # fmt: skip
            for i, vis in zip(batch, made, strict=True):
                _save(files[i], vis.shots[0])
            tell(sum(file.exists() for file in files), len(files))
    return files


def load(file: str | os.PathLike[str]) -> UInt8[np.ndarray, "k h w c"]:
    """One unit's images at `MOMENTS`, as `make` left them: 0..255."""
    with np.load(file, allow_pickle=False) as stored:
        return stored["images"]


def _save(file: pathlib.Path, shots: np.ndarray) -> None:
    beside = file.with_suffix(".part")
    with open(beside, "wb") as stream:
        np.savez(stream, images=np.round(255 * shots).astype(np.uint8))
    os.replace(beside, file)
