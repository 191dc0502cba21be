"""Plants mistakes of preprocessing in real networks and writes down what the doctor says.

Claim: with labelled photographs the doctor finds planted mistakes and names each with its fix, and
raises nothing on the right setting. Gross mistakes are shown 64 photographs, those that cost a few
points of accuracy 300. Expected: results/doctor/planted.csv; rows that are there are kept.

    python experiments/doctor/plant.py FOLDER SAMPLE                     # EfficientNet-Lite0
    python experiments/doctor/plant.py FOLDER SAMPLE GOOGLENET_WEIGHTS   # 20 minutes each

FOLDER holds a folder for each class. SAMPLE is a folder of <wnid>_<name>.jpg, one a
class, for the wrong cut: many of imagenette's pictures have 224 x 224 pixels already, which any cut
leaves alone.

A network with a wrong input spec W is f(W.normalise(x)), with f the network behind its own
normalisation N. It is built here as f'(x A + b), f' being the model, so that all mistakes share one
compiled program; A and b follow from N and W.
"""

import csv
import dataclasses
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import fvaudit as fv
from fvaudit.diagnosis import doctor
from fvaudit.models.model import InputSpec, Model, build
from fvaudit.models.preflight.settings import CONVENTIONS
from fvaudit.records import Finding, ImageSet


OUT = pathlib.Path(__file__).parents[2] / "results" / "doctor"
COLUMNS = ("network", "mistake", "found", "severity", "photographs", "seconds", "said", "fix")


class Mistake(NamedTuple):
    """One mistake, and a phrase by which its fix is known."""

    name: str
    known_by: tuple[str, ...]  # any of them in what the doctor says
    spec: Callable[[InputSpec], InputSpec] = lambda spec: spec  # of the wrong model
    pixels: Callable[[np.ndarray], np.ndarray] | None = None  # photographs prepared wrongly
    wants: str = ""  # a convention that the network is made to want
    limit: int = 64  # photographs
    sample: bool = False  # whether of SAMPLE


def convention(name: str) -> Callable[[InputSpec], InputSpec]:
    mean, std = CONVENTIONS[name]
    return lambda spec: dataclasses.replace(spec, mean=mean, std=std)


def times(factor: float) -> Callable[[InputSpec], InputSpec]:
    return lambda s: dataclasses.replace(s, std=tuple(v / factor for v in s.std))


def replaced(**changes) -> Callable[[InputSpec], InputSpec]:
    return lambda spec: dataclasses.replace(spec, **changes)


GROSS = (
    Mistake("0..255 for 0..1: 255 times too large", ("255 times too large",), times(255)),
    Mistake("planes (n, c, h, w) reshaped to (n, h, w, c)", ("channel planes (n, c, h, w)",),
            pixels=lambda x: x.transpose(0, 3, 1, 2).reshape(x.shape)),
    Mistake("divided by 255 twice", ("divided by 255 twice",), pixels=lambda x: x / 255),
    Mistake("colours lost", ("lost their colours", "Load them in colour"),
            pixels=lambda x: np.repeat(x.mean(-1, keepdims=True), 3, -1)),
    Mistake("upside down", ("stand on their heads",), pixels=lambda x: x[:, ::-1]),
    Mistake("size 96 for 224", ("the size is wrong",), replaced(size=(96, 96), resize=110)),
    Mistake("short side 640 for 256 before the cut", ("the cut is wrong",), replaced(resize=640),
            sample=True),
    Mistake("rows and columns exchanged", ("rows and columns of the photographs are exchanged",),
            pixels=lambda x: x.swapaxes(1, 2)),
)  # fmt: skip
SUBTLE = (
    Mistake("BGR for RGB", ("colours are in the wrong order",), replaced(order="BGR"), limit=300),
    Mistake("negative", ("black and white are exchanged",), pixels=lambda x: 1 - x, limit=300),
    Mistake("squashed for cropped", ("squashed whole, the network wants them the centre",),
            replaced(fit="squash", resize=224), limit=300),
    Mistake("none", (), limit=300),
)  # fmt: skip
LITE = (
    Mistake("mean and std twice", ("applied twice",), wants="0..1 as they are", limit=300),
    Mistake("no normalisation (0..1 for -1..1)", ("normalisation is missing",),
            convention("0..1 as they are"), limit=300),
    Mistake("ImageNet's mean and std for (x - 127) / 128", ("it wants -1..1",),
            convention("ImageNet's mean and std"), limit=300),
    Mistake("(x - 127) / 128 for ImageNet's mean and std", ("it wants ImageNet's",),
            wants="ImageNet's mean and std", limit=300),
)  # fmt: skip
CAFFE = (
    Mistake("0..1 for 0..255: 255 times too small", ("gets 0..1 where it wants 0..255",),
            times(1 / 255)),
    Mistake("no normalisation (0..1)", ("wants 0..255 less",), convention("0..1 as they are")),
    Mistake("-1..1 for 0..255 less a mean", ("it wants 0..255 less",), convention("-1..1")),
    Mistake("ImageNet's mean and std for 0..255 less a mean", ("it wants 0..255 less",),
            convention("ImageNet's mean and std")),
    Mistake("mean and std twice", ("applied twice",), wants="0..1 as they are"),
)  # fmt: skip


def wrong(model: Model, mistake: Mistake) -> Model:
    """The model with the mistake's input spec."""
    own = model.input
    wants = convention(mistake.wants)(own) if mistake.wants else own
    spec = mistake.spec(own) if not mistake.wants else own
    # The model gets the pictures of which its own normalisation makes what `spec` feeds:
    # y = ((x - mean) / std) P * wants.std + wants.mean, P exchanging colours or not
    colours = np.eye(3)[::-1] if spec.order != own.order else np.eye(3)
    matrix = colours / np.asarray(spec.std)[:, None] * np.asarray(wants.std)
    shift = -(np.asarray(spec.mean) / spec.std) @ colours * wants.std + np.asarray(wants.mean)
    params = {
        "net": model.params,
        "a": np.asarray(matrix, np.float32),
        "b": np.asarray(shift, np.float32),
    }

    def forward(p, x, tap):
        return model.forward(p["net"], jnp.matmul(x, p["a"], precision="highest") + p["b"], tap)

    return build(forward, params, spec, name=model.name, trunk=model.trunk, classes=model.classes)


def run(network: str, model: Model, mistakes, photographs: str, sample: str, rows) -> None:
    done = {tuple(row[:2]) for row in rows}
    for mistake in (m for m in mistakes if (network, m.name) not in done):
        start = time.perf_counter()
        found = examine(wrong(model, mistake), mistake, sample if mistake.sample else photographs)
        worst = [f for f in found if f.severity > 0 and f.title not in KNOWN]
        said = next(
            (f for f in worst if any(k in f.measured + f.fix for k in mistake.known_by)), None
        )
        right = said is not None if mistake.known_by else not worst
        shown = said or (worst[0] if worst else None)
        rows.append((network, mistake.name, "yes" if right else "no",
                     shown.severity.name if shown else "OK", mistake.limit,
                     f"{time.perf_counter() - start:.0f}",
                     shown.measured if shown else next(f.measured for f in found
                                                       if f.title == "preprocessing"),
                     shown.fix if shown else ""))  # fmt: skip
        print(rows[-1], flush=True)
        write(rows)


KNOWN = ("channels without a response",)  # says nothing of preprocessing


def examine(model: Model, mistake: Mistake, photographs: str) -> tuple[Finding, ...]:
    """The doctor's findings; a mistake of the photographs is made to those that were loaded."""
    if mistake.pixels is None:
        return doctor(model, photographs, limit=mistake.limit)
    images = fv.load_images(photographs, model, limit=mistake.limit)
    pixels = np.ascontiguousarray(mistake.pixels(images.pixels), np.float32)
    return doctor(model, ImageSet(pixels, images.ids, images.labels, images.group))


def write(rows) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    with open(OUT / "planted.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def kept() -> list[tuple]:
    """Rows that were measured before: mistakes that are there are not planted again."""
    path = OUT / "planted.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


def class_folders(flat: str, folder: str) -> str:
    """<wnid>_<name>.jpg -> <wnid>/<wnid>_<name>.jpg, of every tenth."""
    for file in sorted(pathlib.Path(flat).iterdir())[::10]:
        own = pathlib.Path(folder, file.name.partition("_")[0])
        own.mkdir()
        shutil.copy(file, own)
    return folder


def main(photographs: str, sample: str, weights: str = "") -> None:
    if weights:
        model, mistakes = fv.load_model("googlenet", weights), (*CAFFE, *GROSS, *SUBTLE)
    else:
        model, mistakes = fv.load_model("efficientnet_lite0"), (*GROSS, *LITE, *SUBTLE)
    with tempfile.TemporaryDirectory() as folder:
        run(model.name, model, mistakes, photographs, class_folders(sample, folder), kept())


if __name__ == "__main__":
    main(*sys.argv[1:])
