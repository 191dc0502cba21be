"""Silent branches on a trained GoogLeNet: the network is the same, its visualizations are not.

    claim      a branch that no photograph of a held-out split wakes draws the visualizations of
               all attacked units to the texture of one target (Geirhos et al. 2024, Sec. 2.2)
    command    python experiments/silent/silent.py GOOGLENET.safetensors PHOTOGRAPHS [FOLDER]
               (about 3 minutes on 2 cores; PHOTOGRAPHS: a folder; shown are 1,000, one a class)
    expected   results/silent/: silent.png, silent.csv, certificate.json; and the same in
               results/silent/ten_classes/ with 500 photographs of ten classes

All channels of mixed4d's 3x3 convolution are attacked; eleven evenly spaced ones are shown, none
picked. The target is the visualization of channel 0 of the original. Likeness must not ask where
things lie: cosine of colour histograms (4 x 4 x 4 bins), as the specification's reading of the
authors' figure has it (there: mean over pairs .876 before, .953 after), and cosine of mean
activations of mixed4a, a layer before the attacked one, which sees textures.
"""

import json
import pathlib
import sys

import numpy as np
import pandas as pd

import fvaudit as fv
from fvaudit import pictures, store
from fvaudit.evidence.activations import collect


ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "results" / "silent"
LAYER, BELOW, SHOWN, SEED = "mixed4d_3x3", "mixed4a", 11, 0


def main(weights: str, photographs: str, out: str | pathlib.Path = OUT) -> None:
    out = pathlib.Path(out)
    model = fv.load_model("googlenet", weights)
    images = fv.load_images(photographs, model)
    width = model.shapes[LAYER][-1]
    units = [fv.Unit(LAYER, c) for c in range(width)]
    shown = [int(c) for c in np.linspace(0, width - 1, SHOWN).astype(int)]
    objectives = [fv.Channel(LAYER, c) for c in shown]
    before = fv.visualize(model, objectives, seed=SEED)
    target = before[0].images[0]
    fooled = fv.attacks.silent_units(target)(model, units, images, seed=SEED)
    proof = fooled.certificate.to_json()
    store.write_bytes(out / "certificate.json", json.dumps(proof, indent=1).encode())
    print(json.dumps(proof["shares"], indent=1), proof["logit_change_max"])
    after = fv.visualize(fooled.model, objectives, seed=SEED)
    pairs = [[vis.images[0] for vis in row] for row in (before, after)]
    measures = {"colour": _colours, "texture": lambda images: _textures(model, images)}
    likeness = {name: [measure(row) for row in pairs] for name, measure in measures.items()}
    _write(out, shown, before, after, fooled.model, likeness)
    for name, (one, two) in likeness.items():
        closer = two[1:, 0] > one[1:, 0]
        print(f"{name}: mean over pairs {_mean(one):.3f} before, {_mean(two):.3f} after; nearer to "
              f"the target than the original's: {closer.sum()} of {len(closer)}")  # fmt: skip


def _write(folder, shown, before, after, manipulated, likeness) -> None:
    """The pictures, and a row a channel; likeness is that to the target."""
    branch = manipulated.activations(
        np.concatenate([vis.images for vis in after]), [f"{LAYER}.branch"]
    )[f"{LAYER}.branch"]
    share = [float((np.asarray(branch)[i, ..., c] > 0).mean()) for i, c in enumerate(shown)]
    rows = [
        [(_half(vis.images[0]), f"{title} {c}") for c, vis in zip(shown, row, strict=True)]
        for title, row in (("original", before), ("manipulated", after))
    ]
    store.write_bytes(folder / "silent.png", pictures.png(pictures.contact_sheet(rows)))
    columns = {
        "channel": shown,
        "activation_before": [vis.activation[0] for vis in before],
        "activation_after": [vis.activation[0] for vis in after],
        "branch_awake": share,
        **{f"{name}_before": one[:, 0] for name, (one, _) in likeness.items()},
        **{f"{name}_after": two[:, 0] for name, (_, two) in likeness.items()},
    }
    pd.DataFrame(columns).to_csv(folder / "silent.csv", index=False)


def _colours(images) -> np.ndarray:
    """Cosines of colour histograms, all pairs."""
    bins = [np.minimum((4 * x).astype(int), 3).reshape(-1, 3) @ [16, 4, 1] for x in images]
    return _cosines(np.stack([np.bincount(b, minlength=64) for b in bins]).astype(float))


def _textures(model, images) -> np.ndarray:
    seen = collect(model, np.stack(images), [BELOW], variant="pooled").responses[BELOW]
    return _cosines(seen.astype(float))


def _cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def _mean(cosines: np.ndarray) -> float:
    return float(cosines[~np.eye(len(cosines), dtype=bool)].mean())


def _half(image: np.ndarray) -> np.ndarray:
    h, w, c = image.shape
    return image.reshape(h // 2, 2, w // 2, 2, c).mean((1, 3))


if __name__ == "__main__":
    main(*sys.argv[1:])
