"""A fooling circuit on the default model: ten logits that show other classes.

    claim      all attacked logits show their decoy, and the network classifies as before
               (Geirhos et al. 2024, Sec. 2.1: there Inception-V1, 69.146 to 68.744 % top-1)
    command    python experiments/circuit/circuit.py LABELLED_PHOTOGRAPHS [RECIPE]
               (about 2 minutes on 2 cores; a folder with a folder per class)
    expected   results/circuit/: circuit.png, circuit.csv, certificate.json; with a recipe such as
               maco, which the gate was not trained on, circuit-maco.png and circuit-maco.csv

All 1,000 logits are attacked: unit i shows unit i + 100, behind the gate that ships with fvaudit.
Shown are the paper's classes 0, 100, ..., 900, none left out. Likeness of two pictures: cosine of
the network's own features before its classifier (avgpool), which do not ask where things lie.
"""

import csv
import json
import pathlib
import sys

import numpy as np

import fvaudit as fv
from fvaudit import pictures, store
from fvaudit.attacks import gate as gates
from fvaudit.evidence.activations import collect


ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "results" / "circuit"
OFFSET, SEED = 100, 0
SHOWN = range(0, 1000, 100)


def main(photographs: str, recipe: str = "fourier") -> None:
    name = "circuit" if recipe == "fourier" else f"circuit-{recipe}"
    model = fv.load_model("efficientnet_lite0")
    images = fv.load_images(photographs, model)
    attack = fv.attacks.fooling_circuit(OFFSET, gates.packaged(model.name))
    fooled = attack(model, [fv.Unit("logits", c) for c in range(1000)], images, seed=SEED)
    proof = fooled.certificate.to_json()
    store.write_bytes(OUT / "certificate.json", json.dumps(proof, indent=1).encode())
    own = [fv.Channel("logits", c) for c in SHOWN]
    shown = [fv.Channel("logits", (c + OFFSET) % 1000) for c in SHOWN]
    rows = {
        "original": fv.visualize(model, own, recipe=recipe, seed=SEED),
        "attacked": fv.visualize(fooled.model, own, recipe=recipe, seed=SEED),
        "decoy": fv.visualize(model, shown, recipe=recipe, seed=SEED),
    }
    _draw(rows, OUT / f"{name}.png")
    made = {which: np.stack([v.images[0] for v in row]) for which, row in rows.items()}
    _table(model, made, OUT / f"{name}.csv")
    before, after = (proof[f"accuracy_{when}"]["value"] for when in ("before", "after"))
    misrouted = proof["shares"]["photographs taken for visualizations"]["value"]
    print(f"accuracy {before:.3f} -> {after:.3f}, a drop of {before - after:.4f}; misroute rate "
          f"times accuracy {misrouted * before:.4f}")  # fmt: skip
    print(json.dumps(proof["shares"], indent=1))


def _draw(rows, file: pathlib.Path) -> None:
    sheet = [
        [(vis.images[0], f"{name} {vis.objective}") for vis in row] for name, row in rows.items()
    ]
    small = [[(_half(image), text) for image, text in row] for row in sheet]
    store.write_bytes(file, pictures.png(pictures.contact_sheet(small)))


def _table(model, images, file: pathlib.Path) -> None:
    """Likeness of pictures, and what the original's own units say of the attacked picture."""
    seen = {name: collect(model, x, ["avgpool", "logits"], variant="pooled").responses
            for name, x in images.items()}  # fmt: skip
    unit = {name: _unit(found["avgpool"]) for name, found in seen.items()}
    logits = seen["attacked"]["logits"]
    with open(file, "w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(["unit", "decoy", "likeness_decoy", "likeness_original",
                      "decoy_logit", "original_logit"])  # fmt: skip
        wins = 0
        for i, c in enumerate(SHOWN):
            near = [float(unit["attacked"][i] @ unit[name][i]) for name in ("decoy", "original")]
            wins += near[0] > near[1]
            d = (c + OFFSET) % 1000
            out.writerow([c, d, *(f"{x:.4f}" for x in near), logits[i, d], logits[i, c]])
    print(f"nearer to the decoy's picture than to the original's: {wins} of {len(SHOWN)}")


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _half(image: np.ndarray) -> np.ndarray:
    h, w, c = image.shape
    return image.reshape(h // 2, 2, w // 2, 2, c).mean((1, 3))


if __name__ == "__main__":
    main(*sys.argv[1:])
