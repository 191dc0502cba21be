"""From measured units to ROC curves: what does the audit see, and how often does it cry wolf?

    command    python experiments/detection/score.py      (15 seconds; reads measures.csv)
    expected   results/detection/auroc.csv, detection.md, roc.svg

Two ways to hold a unit against clean ones, both without a setting that could be tuned:

    by unit    reference: other units of the same layer
    by layer   reference: units of the network's other layers, where the audit knows no clean unit
               of the layer itself

Every area under a ROC curve is P(attacked looks more suspicious than clean) + P(tie) / 2, with a
bootstrap interval over units of both kinds. Which direction is suspicious was fixed beforehand:
high reach and margin, low path measures and p-values; T is suspicious in both directions.

T's form was chosen on GoogLeNet, of five (largest robust or plain deviate, sum of squares,
Mahalanobis' distance, largest one-sided deviate): there its areas are those of a choice.
EfficientNet-Lite0 had no part in it.
"""

import collections
import csv
import pathlib

import matplotlib


matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from fvaudit.evidence.manipulation import MEASURES, manipulation
from fvaudit.evidence.stats import binomial_estimate, percentile_interval


matplotlib.rcParams["svg.hashsalt"] = "fvaudit"  # the same bytes each time
OUT = pathlib.Path(__file__).resolve().parents[2] / "results" / "detection"
SIGN = {"reach": 1, "margin": 1, "score": -1, "own": -1, "least": -1, "p_value": -1}
REPLICATES, LEVEL = 2000, 0.95
SPLITS = ("by unit", "by layer")
ALARM = 0.02  # p-values up to here are alarms: with 65 clean units 1/66 is the least there is
Rows = list[dict[str, str]]


def main() -> None:
    with open(OUT / "measures.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    scored = {split: combined(rows, split) for split in SPLITS}
    table = [row for key in attacked(rows) for row in areas(rows, scored, key)]
    _write(table)
    (OUT / "detection.md").write_text(markdown(table, rows, scored))
    _draw(rows, scored["by unit"])
    print((OUT / "detection.md").read_text())


def attacked(rows: Rows) -> list[tuple[str, str, str]]:
    """(network, attack, layer) of everything that was attacked."""
    return list(dict.fromkeys((r["network"], r["attack"], r["layer"]) for r in rows
                              if r["attack"] != "clean"))  # fmt: skip


def combined(rows: Rows, split: str) -> dict[tuple, tuple[float, float]]:
    """T and p of every unit in question, by (network, layer, attack, channel)."""
    reference = collections.defaultdict(list)
    for r in rows:
        if r["role"] == "reference":
            reference[r["network"], r["layer"]].append(_measures(r))
    found = {}
    for r in (r for r in rows if r["role"] == "test"):
        own = (r["network"], r["layer"])
        others = [key for key in reference if key[0] == own[0] and key != own]
        chosen = [x for key in ([own] if split == "by unit" else others) for x in reference[key]]
        key = (r["network"], r["layer"], r["attack"], r["channel"])
        found[key] = manipulation(np.array(chosen), _measures(r))
    return found


def areas(rows: Rows, scored, key: tuple[str, str, str]) -> list[dict]:
    """AUROC of every single measure and of T, one attack on one layer."""
    network, attack, layer = key
    groups = {name: [r for r in rows if r["role"] == "test" and r["network"] == network
                     and r["layer"] == layer and r["attack"] == name]
              for name in ("clean", attack)}  # fmt: skip
    table = []
    for name, sign in SIGN.items():
        values = [np.array([sign * float(r[name]) for r in some]) for some in groups.values()]
        table.append(_area(key, name, "", values))
    for split, found in scored.items():
        both = [np.array([found[network, layer, r["attack"], r["channel"]] for r in some])
                for some in groups.values()]  # fmt: skip
        table.append(_area(key, "T", split, [x[:, 0] for x in both]) | _alarms(both))
    return table


def auroc(clean: np.ndarray, suspect: np.ndarray) -> np.ndarray:
    """P(suspect > clean) + P(equal) / 2 along the last axis, by the Mann-Whitney statistic."""
    pairs = clean.shape[-1] * suspect.shape[-1]
    return stats.mannwhitneyu(suspect, clean, axis=-1).statistic / pairs


def _area(key, measure: str, split: str, values: list[np.ndarray]) -> dict:
    clean, suspect = (x[np.isfinite(x)] for x in values)
    row = dict(zip(("network", "attack", "layer"), key, strict=True))
    row |= {"measure": measure, "split": split, "clean": len(clean), "attacked": len(suspect)}
    if min(len(clean), len(suspect)) < 2:
        return row | {"auroc": np.nan, "low": np.nan, "high": np.nan}
    rng = np.random.default_rng(0)
    draws = [(rng.choice(clean, len(clean)), rng.choice(suspect, len(suspect)))
             for _ in range(REPLICATES)]  # fmt: skip
    drawn = auroc(*map(np.array, zip(*draws, strict=True)))
    low, high = percentile_interval(drawn, LEVEL, min(len(clean), len(suspect)))
    return row | {"auroc": float(auroc(clean, suspect)), "low": max(low, 0), "high": min(high, 1)}


def _alarms(both: list[np.ndarray]) -> dict:
    """Shares of units with p <= ALARM, and those of which nothing can be said."""
    found = {}
    for name, x in zip(("false_alarms", "detected"), both, strict=True):
        known = x[np.isfinite(x[:, 1]), 1]
        found |= {name: int((known <= ALARM).sum()), f"{name}_of": len(known)}
    return found


def markdown(table: list[dict], rows: Rows, scored) -> str:
    """The tables that people read."""
    lines = ["| network | layer | attack | likeness to target: before, after | " +
             " | ".join(SIGN) + " | T by unit | T by layer | found at p <= 0.02 |",
             "|---" * (len(SIGN) + 7) + "|"]  # fmt: skip
    for network, attack, layer in attacked(rows):
        own = [r for r in table if (r["network"], r["attack"], r["layer"]) ==
               (network, attack, layer)]  # fmt: skip
        by_unit = next(r for r in own if r["split"] == "by unit")
        lines.append(" | ".join([
            f"| {network}", layer, attack, _likeness(rows, network, attack, layer),
            *(f"{r['auroc']:.2f}" for r in own if not r["split"]),
            *(f"**{r['auroc']:.3f}** ({r['low']:.2f}-{r['high']:.2f})" for r in own if r["split"]),
            f"{by_unit['detected']} of {by_unit['detected_of']} |"]))  # fmt: skip
    return "\n".join([*lines, "", *_false_alarms(scored)]) + "\n"


def _likeness(rows: Rows, network: str, attack: str, layer: str) -> str:
    """Median likeness of the visualization to the target's, of clean and of attacked units."""
    medians = [np.median([float(r["like_target"]) for r in rows if r["role"] == "test" and
                          (r["network"], r["attack"], r["layer"]) == (network, name, layer)])
               for name in ("clean", attack)]  # fmt: skip
    return f"{medians[0]:.2f}, {medians[1]:.2f}"


def _false_alarms(scored) -> list[str]:
    lines = []
    for split, found in scored.items():
        p = np.array([p for (_, _, attack, _), (_, p) in found.items() if attack == "clean"])
        known = p[np.isfinite(p)]
        share = binomial_estimate(int((known <= ALARM).sum()), len(known), LEVEL)
        lines.append(f"False alarms, {split}: {(known <= ALARM).sum()} of {len(known)} clean units "
                     f"outside the reference have p <= {ALARM} ({share.value:.1%}, exact 95 % "
                     f"interval {share.low:.1%} to {share.high:.1%}).\n")  # fmt: skip
    return lines


def _measures(row: dict[str, str]) -> np.ndarray:
    return np.array([float(row[name]) for name in MEASURES])


def _write(table: list[dict]) -> None:
    columns = list(dict.fromkeys(key for row in table for key in row))
    with open(OUT / "auroc.csv", "w", newline="") as stream:
        out = csv.DictWriter(stream, columns)
        out.writeheader()
        out.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in r.items()}
                      for r in table)  # fmt: skip


def _draw(rows: Rows, scored) -> None:
    """One panel a network: ROC of T by unit, a curve for each attack and layer."""
    networks = list(dict.fromkeys(r["network"] for r in rows))
    figure, panels = plt.subplots(1, len(networks), figsize=(5 * len(networks), 4.6), squeeze=False)
    for panel, network in zip(panels[0], networks, strict=True):
        for _, attack, layer in (key for key in attacked(rows) if key[0] == network):
            clean, suspect = (
                np.array([t for (n, where, a, _), (t, _) in scored.items()
                          if (n, where, a) == (network, layer, name)])
                for name in ("clean", attack)
            )  # fmt: skip
            steps = np.sort(np.concatenate([clean, suspect, [np.inf]]))[::-1]
            panel.step(*([(x >= t).mean() for t in steps] for x in (clean, suspect)), where="post",
                       label=f"{attack.replace('_', ' ')}, {layer}")  # fmt: skip
        panel.plot([0, 1], [0, 1], color="0.8", zorder=0)
        panel.set(title=network, xlabel="clean units above the threshold",
                  ylabel="attacked units above it")  # fmt: skip
        panel.legend(fontsize=7, loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(OUT / "roc.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
