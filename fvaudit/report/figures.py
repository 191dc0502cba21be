"""figures/: per-layer path curves as SVG with the CSV they were drawn from, and the headline.

The bytes must not change between renderings: no date in the SVG, ids from a fixed salt, text as
text. Curves differ by dash and marker, not by colour alone (Okabe and Ito's palette).
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fvaudit.filenames import file_name
from fvaudit.records import Estimate, LayerResult, LayerSimilarity
from fvaudit.report import digest
from fvaudit.store import Run


CLIP = (-2.0, 2.0)  # P beyond is said at the edge; one early layer would flatten all others
_CURVES = (  # attribute, label, colour, marker, dash
    ("fv", "FV with its natural group", "#D55E00", "^", "-"),
    ("same", "within the natural group", "#0072B2", "o", "--"),
    ("diff", "group with other photographs", "#555555", "s", ":"),
)
_STYLE: Any = {
    "svg.hashsalt": "fvaudit",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a layer's name may hold a dollar sign
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def files(run: Run) -> dict[str, bytes]:
    """File names in figures/ and their content."""
    found = {"counts.csv": _counts_csv(run)}
    if run.headline is not None:
        found["headline.csv"] = _headline_csv(run)
    for result in run.layers:
        stem = f"path-{file_name(result.layer)}"
        found[f"{stem}.csv"] = _path_csv(result.path)
        found[f"{stem}.svg"] = _path_svg(result)
    return found


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue().encode()


def _cell(value: Any) -> Any:
    """An empty cell where nothing was estimated; no spreadsheet formulas from names."""
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return f"'{value}"
    return value


def _counts_csv(run: Run) -> bytes:
    rows = [(check, *row.values()) for check, row in digest.by_check(run).items()]
    table = digest.counts(run)
    width = len(table) - 5  # NOT JUDGED stands last, where there is one
    rows = [(*row, *([0] * width)) for row in rows]
    return _csv(["check", *table], [*rows, ("unit, worst verdict", *table.values())])


def _headline_csv(run: Run) -> bytes:
    found = [(n.name, n.estimate) for n in digest.numbers(run) if n.estimate is not None]
    return _csv(
        ["name", "value", "low", "high", "level", "n", "unit", "method"],
        [(name, e.value, e.low, e.high, e.level, e.n, e.unit, e.method) for name, e in found],
    )


def _path_csv(path: Sequence[LayerSimilarity]) -> bytes:
    names = ("fv", "same", "diff", "normalised")
    header = ["layer", *(f"{n}{end}" for n in names for end in ("", "_low", "_high"))]
    rows = []
    for row in path:
        ends = [(e.value, e.low, e.high) for e in (getattr(row, n) for n in names)]
        rows.append((row.layer, *(v for end in ends for v in end), row.resolvable))
    return _csv([*header, "resolvable"], rows)


def _path_svg(result: LayerResult) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 5.2), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True)
        _draw_similarities(top, result.path)
        _draw_normalised(bottom, result.path)
        top.set_title(f"Path of {result.units} units of {result.layer}", loc="left")
        bottom.set_xticks(range(len(result.path)), [row.layer for row in result.path], rotation=45)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _draw_similarities(axes: Any, path: Sequence[LayerSimilarity]) -> None:
    x = np.arange(len(path))
    for name, label, colour, marker, dash in _CURVES:
        value, low, high = _curve(path, lambda row, name=name: getattr(row, name))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, value, color=colour, marker=marker, linestyle=dash, markersize=4, label=label)
    _hatch(axes, path)
    axes.set_ylabel("similarity")
    axes.legend(frameon=False, fontsize=8)


def _draw_normalised(axes: Any, path: Sequence[LayerSimilarity]) -> None:
    x = np.arange(len(path))
    value, low, high = _curve(path, lambda row: row.normalised)
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.axhline(1, color="#0072B2", linewidth=0.8, linestyle="--")
    axes.fill_between(x, np.clip(low, *CLIP), np.clip(high, *CLIP), color="#D55E00", alpha=0.15)
    axes.plot(x, np.clip(value, *CLIP), color="#D55E00", marker="^", markersize=4)
    for i in np.flatnonzero((value < CLIP[0]) | (value > CLIP[1])):
        below = value[i] < CLIP[0]
        text, at = (f"{value[i]:.1f} ↓", CLIP[0]) if below else (f"{value[i]:.1f} ↑", CLIP[1])
        offset, side = ((0, 5), "bottom") if below else ((0, -5), "top")
        axes.annotate(
            text, (i, at), offset, textcoords="offset points", fontsize=7, ha="center", va=side
        )
    _hatch(axes, path)
    axes.set_ylim(CLIP[0] - 0.1, CLIP[1] + 0.1)
    axes.set_ylabel("P: 0 other photographs,\n1 own natural group")


def _curve(
    path: Sequence[LayerSimilarity], pick: Callable[[LayerSimilarity], Estimate]
) -> np.ndarray:
    """Value, low and high as rows."""
    found = [pick(row) for row in path]
    return np.array([[e.value, e.low, e.high] for e in found], float).reshape(-1, 3).T


def _hatch(axes: Any, path: Sequence[LayerSimilarity]) -> None:
    """Marks the layers where the two natural groups cannot be told apart."""
    for i in [i for i, row in enumerate(path) if not row.resolvable]:
        axes.axvspan(i - 0.5, i + 0.5, facecolor="none", edgecolor="#bbbbbb", hatch="///", lw=0)
