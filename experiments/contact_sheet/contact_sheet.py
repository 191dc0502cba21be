"""FVs of 24 GoogLeNet channels, to be looked at beside their natural exemplars.

Claim: the default recipe gives recognisable pictures of the kind that the field shows. Six
channels of each of four layers, drawn by seed, no picking; their FVs go to results/contact-sheet/.
Beside each FV, its four strongest photographs are drawn on a second sheet, which stays in runs/ and
is never committed.

    python experiments/contact_sheet/contact_sheet.py GOOGLENET.safetensors PHOTOGRAPHS

About 5 minutes on 2 cores.
"""

import pathlib
import sys

import numpy as np

import fvaudit as fv
from fvaudit import pictures, store
from fvaudit.evidence.activations import collect
from fvaudit.evidence.exemplars import strongest
from fvaudit.optvis.recipes import recipe
from fvaudit.optvis.render import Ascent, Job, render
from fvaudit.pictures import Shown


ROOT = pathlib.Path(__file__).resolve().parents[2]
LAYERS = ("mixed3a", "mixed4a", "mixed4d", "mixed5a")
PER_LAYER, EXEMPLARS, SEED = 6, 4, 0


def main(weights: str, photographs: str) -> None:
    model = fv.load_model("googlenet", weights)
    made = list(render(model, jobs(model), recipe("fourier", model.input), SEED))
    sheet = ROOT / "results" / "contact-sheet" / "googlenet.png"
    pictures.save_sheet(sheet, made, columns=PER_LAYER)
    images = fv.load_images(photographs, model)
    seen = collect(model, images.pixels, LAYERS, variant="pooled")
    beside = [row(job, ascent, images, seen.responses) for job, ascent in made]
    rows = [beside[i] + beside[i + 1] for i in range(0, len(beside), 2)]
    local = ROOT / "runs" / "contact-sheet" / "beside-exemplars.png"
    store.write_bytes(local, pictures.png(pictures.contact_sheet(rows)))
    print(f"wrote {sheet.name} and, not to be committed, {local.name}")


def jobs(model: fv.Model) -> list[Job]:
    rng = np.random.default_rng(SEED)
    found = []
    for layer in LAYERS:
        channels = rng.choice(model.shapes[layer][-1], PER_LAYER, replace=False)
        found += [Job(fv.Channel(layer, int(c)), 0) for c in sorted(channels)]
    return found


def row(job: Job, ascent: Ascent, images: fv.ImageSet, responses) -> list[Shown]:
    """The FV and its strongest photographs, strongest first."""
    unit = job.objective.units[0]
    response = responses[unit.layer][:, unit.channel]
    shown = [(ascent.image, f"{unit} {ascent.reached:.1f}")]
    for i in strongest(response, images.group, EXEMPLARS):
        shown.append((images.pixels[i], f"{response[i]:.1f}"))
    return shown


if __name__ == "__main__":
    main(*sys.argv[1:])
