"""Errors of a gate that ships, on visualizations made anew and with other recipes than its own.

    claim      the gates were trained on ascents of Adam with momentum, the default of then; they
               hold on today's default and on lucid's own recipe as well, and not on MACO's, whose
               pictures have a photograph's spectrum
    command    python experiments/gate/measure.py CONFIG RECIPE ...     CONFIG: one of this folder
               (some 4 minutes a recipe on 2 cores; killed, the same command goes on)
    expected   results/gate/recipes.csv, a row for each network and recipe

Units are the config's held-out ones, which no gate was trained on; every unit is looked at in 16
moments of its ascent.
"""

import csv
import pathlib
import sys

import numpy as np

import fvaudit as fv
from fvaudit.attacks import gate as gates
from fvaudit.attacks import gate_training, trajectories
from fvaudit.gates import GateTraining, units_of
from fvaudit.yamlfile import read_yaml, validated


ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT, WORK = ROOT / "results" / "gate" / "recipes.csv", ROOT / "runs" / "gate-recipes"
COLUMNS = ("network", "recipe", "units", "units with an image taken for a photograph", "at most",
           "share of images", "share of images under an ascent's transforms")  # fmt: skip


def main(config: str, recipes: list[str]) -> None:
    path = pathlib.Path(config)
    said = validated(GateTraining, read_yaml(path, ()), config)
    model = fv.load_model(**said.arguments(path.parent))
    gate, held_out = gates.packaged(model.name), units_of(said, model)[1]
    for recipe in recipes:
        files = trajectories.make(
            model, held_out, WORK / model.name / recipe, recipe=recipe,
            tell=lambda done, total: print(f"{done} of {total} units", flush=True),
        )  # fmt: skip
        ascents = np.stack([trajectories.load(file) for file in files])
        nothing = np.zeros((1, *ascents.shape[2:]), np.uint8)  # photographs do not depend on it
        found = gate_training.rates(gate, gate_training.Images(nothing, ascents))
        missed = found.ascents
        share = float(np.mean([share for _, share in found.moments]))
        keep((model.name, recipe, missed.n, round(missed.value * missed.n), f"{missed.high:.3f}",
              f"{share:.4f}", f"{found.transformed:.4f}"))  # fmt: skip


def keep(row: tuple) -> None:
    """The row in place of an older one of the same network and recipe."""
    rows = [r for r in _rows() if tuple(r[:2]) != row[:2]] + [list(map(str, row))]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with open(OUT, "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    print(dict(zip(COLUMNS, row, strict=True)), flush=True)


def _rows() -> list[list[str]]:
    if not OUT.exists():
        return []
    with open(OUT, newline="") as file:
        return list(csv.reader(file))[1:]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
