"""How many steps does an FV need? Activation reached against steps, for step-size schedules.

Claim: in 192 steps, Adam without momentum (b1 = 0), its step size falling from 0.1 to 0.01, reaches
more than with momentum (b1 = 0.9) at a constant 0.1 in 256: 95 % of what lucid's 512 steps of
Adam(0.05) reach, against 92 % (GoogLeNet, median of 12 units, one seed); 94 against 93 % on
EfficientNet-Lite0. It is fvaudit's default. Below 512 steps momentum costs activation nearly
everywhere: transforms are drawn anew in every step; a mean of gradients is one of other pictures.
With momentum, steps that fall along a cosine, and a constant 0.2, reach less from 64 steps on.

For every unit, setting and number of steps: the activation of the final image, untransformed,
divided by the same unit's after lucid's 512 steps of Adam(0.05); one seed. Schedules that
depend on the total are run for every total; constant ones once, with a look at every total.

    python experiments/convergence/convergence.py --googlenet GOOGLENET.safetensors

About 45 minutes on 2 cores; every run's line is kept in results/convergence/activation.csv, so the
same command goes on where it was stopped. The figure is drawn from that file.
"""

import argparse
import csv
import pathlib

import jax.numpy as jnp
import numpy as np
import pandas as pd

import fvaudit as fv
from fvaudit.optvis.optimizers import adam
from fvaudit.optvis.params import fourier
from fvaudit.optvis.render import Job, Recipe, render
from fvaudit.optvis.transforms import standard


RESULTS = pathlib.Path(__file__).resolve().parents[2] / "results" / "convergence"
TOTALS = (32, 64, 96, 128, 192, 256, 512)
UNITS = {
    "googlenet": ("mixed3b", "mixed4d", "mixed5a", "logits"),
    "efficientnet_lite0": ("blocks.4", "blocks.8", "blocks.14", "logits"),
}
PER_LAYER = 3
REFERENCE = ("constant", 0.05, 0.9, 512)  # lucid's default
SETTINGS = (  # schedule, rate, b1
    ("constant", 0.05, 0.9),
    ("constant", 0.1, 0.9),
    ("linear", 0.1, 0.0),
    ("constant", 0.1, 0.0),
    ("constant", 0.05, 0.0),
    ("constant", 0.1, 0.5),
    ("cosine", 0.1, 0.9),
    ("cosine", 0.2, 0.9),
    ("constant", 0.2, 0.9),
)
FEWER = {"efficientnet_lite0": 5}  # only so many of them
FALLING = (64, 128, 192, 256)  # totals of schedules that depend on them: each is a run of its own
FINAL = 0.1  # where linear ones end, relative to their start; cosines end at 0
COLUMNS = ("model", "unit", "schedule", "rate", "b1", "steps", "activation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--googlenet", help="its weights; left out unless given")
    parser.add_argument("--only-draw", action="store_true", help="draw what is there")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not arguments.only_draw:
        if arguments.googlenet:
            measure(fv.load_model("googlenet", weights=arguments.googlenet))
        measure(fv.load_model("efficientnet_lite0"))
    draw()


def units(model) -> list[fv.Channel]:
    """The same random units every time."""
    rng = np.random.default_rng(0)
    found = []
    for layer in UNITS[model.name]:
        chosen = rng.choice(model.shapes[layer][-1], PER_LAYER, replace=False)
        found += [fv.Channel(layer, int(c)) for c in sorted(chosen)]
    return found


def measure(model) -> None:
    for setting in SETTINGS[: FEWER.get(model.name)]:
        if setting[0] == "constant":
            run(model, setting, TOTALS[-1], TOTALS)
        else:
            for total in FALLING:
                run(model, setting, total, (total,))


def run(model, setting: tuple[str, float, float], steps: int, looks: tuple[int, ...]) -> None:
    """One setting for all units; adds the lines that are missing."""
    done = {
        (r["model"], r["unit"], r["schedule"], float(r["rate"]), float(r["b1"]), int(r["steps"]))
        for r in rows()
    }
    missing = [
        Job(unit, 0)
        for unit in units(model)
        if any((model.name, str(unit), *setting, look) not in done for look in looks)
    ]
    schedule, rate, b1 = setting
    optimizer = adam(rate, schedule, final=FINAL if schedule == "linear" else 0, b1=b1)
    recipe = Recipe(fourier(), standard(), steps=steps, optimizer=optimizer, shot_steps=looks)
    for job, ascent in render(model, missing, recipe, seed=0):
        layer = job.objective.layers[0]
        seen = model.activations(jnp.asarray(ascent.shots[:, 0]), [layer])
        for look, value in zip(looks, np.asarray(job.objective(seen)), strict=True):
            append((model.name, str(job.objective), *setting, look, f"{value:.6g}"))
        print(model.name, job.objective, *setting, steps, f"{ascent.reached:.3f}", flush=True)


def rows() -> list[dict[str, str]]:
    path = RESULTS / "activation.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def append(row: tuple) -> None:
    path = RESULTS / "activation.csv"
    fresh = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(COLUMNS)
        writer.writerow(row)


def table() -> pd.DataFrame:
    """Median over units of activation relative to the reference, by model, schedule and steps."""
    data = pd.read_csv(RESULTS / "activation.csv").drop_duplicates(list(COLUMNS[:6]), keep="last")
    is_reference = (data[["schedule", "rate", "b1", "steps"]] == list(REFERENCE)).all(axis=1)
    reference = data[is_reference].set_index(["model", "unit"]).activation
    data = data.join(reference.rename("reference"), on=["model", "unit"])
    data["relative"] = data.activation / data.reference
    groups = data.groupby(["model", "schedule", "rate", "b1", "steps"]).relative
    found = groups.agg(median="median", low=lambda x: x.quantile(0.1), units="count")
    whole = found.units == found.groupby("model").units.transform("max")  # others are unfinished
    return found[whole].round(3).reset_index()


def draw() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = table()
    found.to_csv(RESULTS / "relative.csv", index=False)
    models = sorted(found.model.unique())
    figure, axes = plt.subplots(1, len(models), figsize=(5 * len(models), 4), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        own = found[found.model == model]
        for (schedule, rate, b1), rows_ in own.groupby(["schedule", "rate", "b1"]):
            style = {"linear": "-", "constant": "--", "cosine": ":"}[schedule]
            setting = (schedule, rate, b1)
            axis.plot(rows_.steps, rows_["median"], style, marker="o", markersize=4,
                      color=f"C{SETTINGS.index(setting)}",
                      label=f"{schedule} {rate:g}, b1 {b1:g}")  # fmt: skip
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set(xscale="log", xticks=TOTALS, xticklabels=TOTALS, title=model, xlabel="steps")
        axis.minorticks_off()
    axes[0][-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[0][0].set_ylabel("activation, relative to 512 steps of Adam(0.05)\n(median over units)")
    figure.tight_layout()
    figure.savefig(RESULTS / "convergence.svg", metadata={"Date": None})
    print(found.to_string(index=False))


if __name__ == "__main__":
    main()
