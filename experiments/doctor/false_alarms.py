"""How often does the doctor speak of a wrong preprocessing where it is right?

Claim: with labels hardly ever, without labels seldom. Every setting of the same size runs once on
all photographs; the verdict is then taken on many subsets of them, which overlap, so that their
shares are no independent draws. Writes results/doctor/false_alarms.csv.

    python experiments/doctor/false_alarms.py FOLDER_OF_CLASS_FOLDERS [GOOGLENET_WEIGHTS]  # minutes
"""

import csv
import pathlib
import sys

import numpy as np

import fvaudit as fv
from fvaudit.diagnosis import loader
from fvaudit.models.model import Model
from fvaudit.models.preflight import LANES, mistakes
from fvaudit.models.preflight.responses import Watch, log_probabilities, output_layer
from fvaudit.models.preflight.settings import settings
from fvaudit.records import Severity


OUT = pathlib.Path(__file__).parents[2] / "results" / "doctor" / "false_alarms.csv"
PHOTOGRAPHS, SUBSETS, SIZES = 300, 500, (20, 40, 100)


def alarms(model: Model, photographs: str) -> list[tuple]:
    """(network, photographs, labelled, subsets, alarms, those that would stop an audit) by size."""
    images = fv.load_images(photographs, model, limit=PHOTOGRAPHS)
    load = loader(model, lambda m: fv.load_images(photographs, m, limit=PHOTOGRAPHS))
    watch = Watch(model, output_layer(model), LANES)
    scores = watch.scores(images.pixels)
    assert scores is not None  # networks of the zoo score classes
    now = log_probabilities(scores)
    trials = mistakes.Trials(watch, images, load, now.shape[1])
    options = settings(model.input, reloads=True, thorough=True)
    plain = [s for s in options if s.spec is None or s.spec.size == model.input.size]
    tried = trials.run_all(plain, np.arange(len(now)))
    rng, rows = np.random.default_rng(0), []
    for n in (*SIZES, len(now)):
        draws = [rng.permutation(len(now))[:n] for _ in range(SUBSETS if n < len(now) else 1)]
        for labelled in (True, False):
            size = model.input.size
            found = [verdict(now, images.labels, tried, d, labelled, size) for d in draws]
            spoken = sum(s > Severity.OK for s in found)
            stops = sum(s is Severity.PROBLEM for s in found)
            rows.append((model.name, n, "yes" if labelled else "no", len(draws), spoken, stops))
            print(rows[-1], flush=True)
    return rows


def verdict(now, labels, tried, draw, labelled: bool, size) -> Severity:
    part = [mistakes.Trial(t.setting, t.log_p[draw]) for t in tried]
    if labelled:
        return mistakes._by_accuracy(now[draw], labels[draw], part, len(part), size).severity
    return mistakes._by_distinctness(now[draw], part).severity


def main(photographs: str, weights: str = "") -> None:
    rows = alarms(fv.load_model("efficientnet_lite0"), photographs)
    if weights:
        rows += alarms(fv.load_model("googlenet", weights), photographs)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with open(OUT, "w", newline="") as file:
        header = ("network", "photographs", "labelled", "subsets", "alarms", "audits stopped")
        csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    main(*sys.argv[1:])
