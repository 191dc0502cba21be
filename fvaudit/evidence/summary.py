"""What follows from all units together: layer curves, the three headline numbers, tables."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fvaudit.evidence.path import aggregate
from fvaudit.evidence.stats import benjamini_hochberg, binomial_estimate, bootstrap_estimate
from fvaudit.records import Headline, LayerResult, UnitResult


def by_layer(
    results: Sequence[UnitResult], level: float, replicates: int, rng: np.random.Generator
) -> tuple[LayerResult, ...]:
    """The path of each layer's units, aggregated before dividing."""
    layers = dict.fromkeys(layer_of(r) for r in results)
    found = []
    for layer in layers:
        rows = [r.path for r in results if layer_of(r) == layer]
        path = aggregate(rows, level=level, replicates=replicates, rng=rng)
        found.append(LayerResult(layer, len(rows), path))
    return tuple(found)


def headline(
    results: Sequence[UnitResult], *, level: float, replicates: int, rng: np.random.Generator
) -> Headline:
    """The three numbers that matter, over units; told apart at a false discovery rate 1 - level.

    Intervals treat the audited units as a sample of their layers' units and the photographs as
    given.
    """
    q = q_values(results)
    known = np.isfinite(q)
    settings = {"level": level, "replicates": replicates, "rng": rng}
    scores = np.array([r.score.value for r in results], float)
    margins = np.array([r.margin.value for r in results], float)
    return Headline(
        score=bootstrap_estimate(scores, np.mean, unit="P clipped to [0, 1]", **settings),
        distinguishable=binomial_estimate(
            int(np.sum(q[known] <= 1 - level + 1e-12)), int(known.sum()), level, "share of units"
        ),
        margin=bootstrap_estimate(margins, np.median, unit="natural MADs", **settings),
    )


def q_values(results: Sequence[UnitResult]) -> np.ndarray:
    """Benjamini-Hochberg over all units of the audit; NaN where there is no p-value."""
    return benjamini_hochberg(np.array([r.p_value for r in results], float))


def tables(results: Sequence[UnitResult], layers: Sequence[LayerResult]) -> dict[str, pd.DataFrame]:
    """`units`: one row per unit; `layers`: one row per unit or layer and layer of its path."""
    q = q_values(results)
    units = [_unit_row(r, float(v)) for r, v in zip(results, q, strict=True)]
    paths = [_path_row("unit", r.unit, row) for r in results for row in r.path]
    paths += [_path_row("layer", r.layer, row) for r in layers for row in r.path]
    return {"units": pd.DataFrame(units), "layers": pd.DataFrame(paths)}


def layer_of(result: UnitResult) -> str:
    """The layer of a unit's text."""
    return result.unit.rpartition(":")[0]


def _unit_row(r: UnitResult, q: float) -> dict[str, object]:
    row: dict[str, object] = {"unit": r.unit, "layer": layer_of(r), "label": r.label}
    for name in ("score", "quantile", "margin"):
        row |= _columns(name, getattr(r, name))
    for name in ("p_value", "p_attainable", "natural_median", "natural_max", "photographs",
                 "others", "group"):  # fmt: skip
        row[name] = getattr(r, name)
    row["q_value"] = q
    row["fv_responses"] = list(r.fv_responses)
    return row


def _path_row(kind, subject, similarity) -> dict[str, object]:
    row: dict[str, object] = {"kind": kind, "subject": subject, "layer": similarity.layer}
    for name in ("fv", "same", "diff", "normalised"):
        row |= _columns(name, getattr(similarity, name))
    plain = ("resolvable", "band_low", "band_high")
    return row | {name: getattr(similarity, name) for name in plain}


def _columns(name, estimate) -> dict[str, float]:
    values = dataclasses.asdict(estimate)
    return {name: values["value"], f"{name}_low": values["low"], f"{name}_high": values["high"]}
