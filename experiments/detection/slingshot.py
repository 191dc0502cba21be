"""A slingshot on a trained network, and what is left of it when the attacker hides from the audit.

    claim      the visualizations of a few units are bent to a target by weights alone, for two or
               three points of accuracy; how much of it survives when path similarity and
               responses are held near natural ones
    command    python experiments/detection/slingshot.py PHOTOGRAPHS
               (10 minutes an attack on 2 cores)
    expected   results/slingshot/: slingshot.csv, certificates.jsonl, survival.svg; the sheet of
               pictures in runs/slingshot

PHOTOGRAPHS: one of each class, <wnid>_<name>.jpg. Attacked are six channels of EfficientNet-Lite0's
blocks.10.expand, drawn by a seed that was not chosen; the target is the picture of a seventh. An
attack whose rows are there is not run again, and one that was stopped goes on.
"""

import csv
import json
import sys

import conditions
import matplotlib


matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

import fvaudit as fv
from fvaudit import pictures, store
from fvaudit.evidence.activations import collect
from fvaudit.evidence.manipulation import MEASURES, measures


matplotlib.rcParams["svg.hashsalt"] = "fvaudit"  # the same bytes each time
OUT, WORK = conditions.ROOT / "results" / "slingshot", conditions.ROOT / "runs" / "slingshot"
NETWORK = conditions.NETWORKS["efficientnet_lite0"]
UNITS, STEPS, TUNING = 6, 128, 600
HIDING = (0, 1)  # weights of both losses that hide; 0: the plain attack
COLUMNS = ("hiding", "channel", "alive", "activation", "like_target", "like_original", *MEASURES)


def main(photographs: str) -> None:
    model = fv.load_model(NETWORK.name)
    attacker, auditor = conditions.photographs(photographs, model)
    drawn = conditions.draw(NETWORK, model, NETWORK.middle)
    units = [fv.Unit(NETWORK.middle, c) for c in drawn.test[:UNITS]]
    target = _shown(model, [fv.Unit(NETWORK.middle, drawn.target)])[0].images[0]
    clean = _shown(model, units)
    rows = _known()
    sheet = [("original", clean)]
    _measure(model, auditor, model, units, clean, clean, target, -1, rows)
    for hiding in HIDING:
        done = _attack(hiding, target)(model, units, attacker, folder=WORK / f"hiding-{hiding}",
                                       tell=_tell)  # fmt: skip
        shown = _shown(done.model, units)
        sheet.append((f"hiding {hiding}", shown))
        _measure(model, auditor, done.model, units, shown, clean, target, hiding, rows)
        _certify(hiding, done.certificate)
        _sheet(sheet, target, units)
        _draw(rows)


def _attack(hiding: int, target: np.ndarray):
    goal = fv.attacks.slingshot(target)
    if hiding:
        goal = fv.attacks.adaptive(goal, evade=hiding, hide=hiding, since=NETWORK.since)
    tuning = fv.attacks.Tuning(steps=TUNING, keep=0.9, since=NETWORK.since)
    return fv.attacks.finetuned(goal, tuning)


def _shown(model: fv.Model, units):
    return fv.visualize(model, [fv.Channel(u.layer, u.channel) for u in units], steps=STEPS)


def _measure(original, auditor, model, units, shown, clean, target, hiding: int, rows) -> None:
    """Evidence by the attacked network, likeness by the original's view; -1: the original."""
    if any(int(row["hiding"]) == hiding for row in rows):
        return
    known = fv.collect_natural(model, auditor, layers=[NETWORK.middle])
    sets = [np.concatenate([v.images for v in shown]), target[None],
            np.concatenate([v.images for v in clean])]  # fmt: skip
    seen = [collect(original, x, [NETWORK.view], variant="pooled").responses[NETWORK.view]
            for x in sets]  # fmt: skip
    own, aim, before = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in seen)
    for i, (unit, vis) in enumerate(zip(units, shown, strict=True)):
        found = measures(fv.path_similarity(model, unit, vis, known))
        values = (float(vis.activation[0]), float(own[i] @ aim[0]), float(own[i] @ before[i]))
        row = (hiding, unit.channel, bool(vis.alive[0]), *values, *found)
        rows.append({k: str(v) for k, v in zip(COLUMNS, row, strict=True)})
    OUT.mkdir(parents=True, exist_ok=True)
    with open(OUT / "slingshot.csv", "w", newline="") as stream:
        out = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        out.writeheader()
        out.writerows(rows)


def _known() -> list[dict[str, str]]:
    path = OUT / "slingshot.csv"
    if not path.exists():
        return []
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def _certify(hiding: int, certificate) -> None:
    path = OUT / "certificates.jsonl"
    kept = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in kept if json.loads(line)["hiding"] != hiding]
    lines = [*kept, json.dumps({"hiding": hiding} | certificate.to_json())]
    store.write_text(path, "\n".join(lines) + "\n")


def _sheet(sheet, target: np.ndarray, units) -> None:
    rows = [[(target[::2, ::2], "target")]]
    rows += [[(v.images[0][::2, ::2], f"{name} {u.channel}")
              for u, v in zip(units, shown, strict=True)] for name, shown in sheet]  # fmt: skip
    store.write_bytes(WORK / "sheet.png", pictures.png(pictures.contact_sheet(rows)))


def _draw(rows) -> None:
    """Medians and every unit, against how hard the attacker hides."""
    steps = sorted({int(row["hiding"]) for row in rows})
    names = {"like_target": "likeness to the target", "reach": "reach, doublings",
             "own": "own: S_fv - S_diff"}  # fmt: skip
    figure, panels = plt.subplots(1, len(names), figsize=(10, 3))
    for panel, (key, title) in zip(panels, names.items(), strict=True):
        values = [[float(r[key]) for r in rows if int(r["hiding"]) == s] for s in steps]
        for at, some in enumerate(values):
            panel.plot([at] * len(some), some, "o", color="0.6", markersize=4)
        panel.plot(range(len(steps)), [np.nanmedian(v) for v in values], "_", color="C3",
                   markersize=22, markeredgewidth=2)  # fmt: skip
        words = ["original" if s < 0 else "plain" if s == 0 else f"hiding {s}" for s in steps]
        panel.set_xticks(range(len(steps)), words, fontsize=8)
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(OUT / "survival.svg", metadata={"Date": None})


def _tell(step: int, steps: int, loss: float) -> None:
    print(f"step {step} of {steps}, loss {loss:.3g}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
