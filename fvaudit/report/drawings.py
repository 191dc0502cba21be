"""Inline SVG, small and styled by the page: colours come from CSS classes, so dark mode works.

Round and square markers are strokes of no length with a round or square cap; coordinates are
rounded to a tenth. What is outside the axis is drawn as an arrow at its edge and said in a tooltip.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from fvaudit.records import Estimate, LayerResult, LayerSimilarity, UnitResult
from fvaudit.report import digest


CLIP = (-2.0, 2.0)  # of P at most; beyond it is an arrow
_POINTS = 24  # of a trace, at most


Pixel = float | int


class Axis(NamedTuple):
    """A linear map from values to pixels."""

    low: Pixel
    high: Pixel
    start: Pixel  # pixel of `low`
    end: Pixel  # pixel of `high`
    digits: int = 1  # decimals of a pixel; 0 where a page holds hundreds of drawings

    def at(self, value: Pixel) -> Pixel:
        """The pixel of a value, clipped to the axis."""
        clipped = min(max(value, self.low), self.high)
        span = self.high - self.low
        share = (clipped - self.low) / span if span else 0.5
        return round(self.start + share * (self.end - self.start), self.digits)


Point = tuple[Pixel, Pixel]  # pixels


def _n(value: Pixel) -> str:
    """A coordinate: a tenth of a pixel, without a trailing zero."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)


def _stretches(points: Sequence[Point | None]) -> list[list[Point]]:
    """The unbroken parts of a curve with gaps."""
    groups = itertools.groupby(points, key=lambda p: p is not None)
    return [[p for p in part if p is not None] for there, part in groups if there]


def _svg(width: Pixel, height: Pixel, label: str, body: Sequence[str], kind: str) -> Markup:
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {_n(width)} {_n(height)}" role="img" '
        f'aria-label="{escape(label)}">{"".join(body)}</svg>'
    )


def _text(x: Pixel, y: Pixel, text: str, anchor: str = "", kind: str = "") -> str:
    kinds = " ".join(filter(None, (anchor, kind)))
    more = f' class="{kinds}"' if kinds else ""
    return f'<text x="{_n(x)}" y="{_n(y)}"{more}>{escape(text)}</text>'


def _curve(points: Sequence[Point | None], kind: str, marker: str) -> str:
    lines = [
        f'<polyline class="line {kind}" points="{_points(part)}"/>'
        for part in _stretches(points)
        if len(part) > 1
    ]
    return "".join(lines) + _markers([p for p in points if p is not None], kind, marker)


def _markers(points: Sequence[Point], kind: str, marker: str) -> str:
    if not points:
        return ""
    if marker == "triangle":
        d = "".join(f"M{_n(x)},{_n(y - 3.4)}l3.2,5.6h-6.4z" for x, y in points)
    elif marker == "arrow":
        d = "".join(f"M{_n(x)},{_n(y)}l-3.2,-5.6h6.4z" for x, y in points)
    else:
        d = "".join(f"M{_n(x)},{_n(y)}h0" for x, y in points)
    return f'<path class="{marker} {kind}" d="{d}"/>'


def _band(x: Sequence[Pixel], ends: Sequence[tuple[Pixel, Pixel]], axis: Axis, kind: str) -> str:
    """The area between low and high, broken where either is NaN."""
    found = [
        (at, axis.at(low), axis.at(high)) if math.isfinite(low + high) else None
        for at, (low, high) in zip(x, ends, strict=True)
    ]
    groups = itertools.groupby(found, key=lambda p: p is not None)
    parts = [[p for p in part if p is not None] for there, part in groups if there]
    return "".join(f'<polygon class="band {kind}" points="{_outline(p)}"/>' for p in parts)


def _outline(part: Sequence[tuple[Pixel, Pixel, Pixel]]) -> str:
    if len(part) == 1:  # one layer alone still shows how wide its interval is
        x, low, high = part[0]
        part = [(x - 3, low, high), (x + 3, low, high)]
    there = [(x, low) for x, low, _ in part]
    return _points([*there, *((x, high) for x, _, high in reversed(part))])


def _columns(count: int, left: Pixel, right: Pixel) -> list[Pixel]:
    """Pixel of each layer: the middle of its share of the width."""
    step = (right - left) / max(count, 1)
    return [left + step * (i + 0.5) for i in range(count)]


def _hatched(path: Sequence[LayerSimilarity], x: Sequence[Pixel], top: Pixel, height: Pixel) -> str:
    """Neighbouring unresolvable layers as one hatched area."""
    half = (x[1] - x[0]) / 2 if len(x) > 1 else 20
    flags = [at if not row.resolvable else None for at, row in zip(x, path, strict=True)]
    groups = itertools.groupby(flags, key=lambda at: at is not None)
    parts = [[at for at in part if at is not None] for there, part in groups if there]
    return "".join(
        f'<rect class="hatch" x="{_n(p[0] - half)}" y="{_n(top)}" '
        f'width="{_n(p[-1] - p[0] + 2 * half)}" height="{_n(height)}"/>'
        for p in parts
    )


def _normalised(
    path: Sequence[LayerSimilarity], x: Sequence[Pixel], axis: Axis, marker: str
) -> str:
    """P as a curve; values outside the axis as arrows that say them."""
    values = [row.normalised.value for row in path]
    curve = [
        (at, axis.at(v)) if math.isfinite(v) else None for at, v in zip(x, values, strict=True)
    ]
    inside = [p for p, v in zip(curve, values, strict=True) if p and axis.low <= v <= axis.high]
    lines = [
        f'<polyline class="line fv" points="{_points(part)}"/>'
        for part in _stretches(curve)
        if len(part) > 1
    ]
    arrows = [
        _beyond(p, v, row.layer, axis)
        for p, v, row in zip(curve, values, path, strict=True)
        if p and not axis.low <= v <= axis.high
    ]
    return "".join(lines) + _markers(inside, "fv", marker) + "".join(arrows)


def _beyond(point: Point, value: Pixel, layer: str, axis: Axis) -> str:
    x, y = point
    tip = "l-3.2,-5.6h6.4z" if value < axis.low else "l-3.2,5.6h6.4z"
    return (
        f'<path class="arrow" d="M{_n(x)},{_n(y)}{tip}"><title>{escape(layer)}: P = '
        f"{digest.number(value)}, beyond the axis</title></path>"
    )


def _level(value: Pixel, label: str, axis: Axis, left: Pixel, right: Pixel, kind: str = "") -> str:
    y = _n(axis.at(value))
    kinds = f"grid {kind}".rstrip()
    return (
        f'<path class="{kinds}" d="M{_n(left)},{y}H{_n(right)}"/>'
        f"{_text(left - 4, axis.at(value) + 3.5, label, 'end')}"
    )


def _p_axis(path: Sequence[LayerSimilarity], bottom: Pixel, top: Pixel, digits: int = 1) -> Axis:
    """At least from -0.5 to 1.5, at most `CLIP`: one early layer must not flatten the others."""
    ends = [(r.normalised, r.band_low, r.band_high) for r in path]
    found = [v for e, low, high in ends for v in (e.value, e.low, e.high, low, high)]
    known = [v for v in found if math.isfinite(v)] or [0.0]
    low = next((v for v in (-0.5, -1.0) if v <= min(known)), CLIP[0])
    return Axis(low, 1.5 if max(known) <= 1.5 else CLIP[1], bottom, top, digits)


def _p_levels(axis: Axis, left: Pixel, right: Pixel) -> list[str]:
    """Grid lines: 0 and 1 mean something, the ends only measure."""
    ends = [_level(v, _signed(v), axis, left, right) for v in (axis.low, axis.high)]
    zero = _level(0, "0", axis, left, right, "zero")
    return [*ends, zero, _level(1, "1", axis, left, right, "one")]


def _signed(value: Pixel) -> str:
    return f"{value:.4g}".replace("-", "−")


def _spoken(path: Sequence[LayerSimilarity]) -> str:
    parts = [
        f"{row.layer} {digest.number(row.normalised.value) if row.resolvable else 'not resolvable'}"
        for row in path
    ]
    return ", ".join(parts)


def unit_path(r: UnitResult) -> Markup:
    """P(l) of one unit from shallow to deep, over the band of held-out natural images."""
    left, right, top, bottom = 26.0, 276.0, 6.0, 92.0
    axis = _p_axis(r.path, bottom, top, digits=0)
    x = [float(round(v)) for v in _columns(len(r.path), left, right)]
    label = f"Path similarity of {r.unit} by layer: {_spoken(r.path)}"
    if not r.path:
        return _svg(280, 30, label, [_text(140, 18, "no path was measured", "middle")], "plot")
    names = [_text(left, 106, r.path[0].layer)]
    if len(r.path) > 1:
        names.append(_text(right, 106, r.path[-1].layer, "end"))
    body = [
        _hatched(r.path, x, top, bottom - top),
        *_p_levels(axis, left, right),
        _band(x, [(row.band_low, row.band_high) for row in r.path], axis, "natural"),
        _normalised(r.path, x, axis, "round"),
        *names,
    ]
    if not any(row.resolvable for row in r.path):
        body.append(_text((left + right) / 2, 53, "no layer is resolvable", "middle", "said"))
    return _svg(280, 110, label, body, "plot")


def layer_panel(result: LayerResult) -> Markup:
    """S_fv, S_same and S_diff above, P below, over the same layers."""
    path, left, right = result.path, 34.0, 370.0
    x = _columns(len(path), left, right)
    label = f"Path of the {result.units} audited units of {result.layer}: {_spoken(path)}"
    if not path:
        return _svg(452, 30, label, [_text(220, 18, "no path was measured", "middle")], "panel")
    body = [
        *_similarities(path, x, left, right),
        *_normalised_part(path, x, left, right),
        *(_tick(at, 267, row.layer) for at, row in zip(x, path, strict=True)),
        *(_tooltip(at, row, (right - left) / len(path)) for at, row in zip(x, path, strict=True)),
    ]
    longest = max(len(row.layer) for row in path)
    return _svg(452, 266 + min(80, 3.9 * longest + 8), label, body, "panel")


def _similarities(
    path: Sequence[LayerSimilarity], x: Sequence[Pixel], left: Pixel, right: Pixel
) -> list[str]:
    axis = _similarity_axis(path, bottom=146, top=20)
    curves = (
        ("same", "round", "same group", lambda row: row.same),
        ("diff", "square", "others", lambda row: row.diff),
        ("fv", "triangle", "FV", lambda row: row.fv),
    )
    body = [_text(4, 11, "Similarity of activations", kind="head"), _hatched(path, x, 20, 126)]
    if any(not row.resolvable for row in path):
        body.append(_text(right, 11, "hatched: not resolvable", "end"))
    body += [_level(v, _signed(v), axis, left, right) for v in _ticks(axis)]
    ends: list[tuple[Pixel, str, str]] = []
    for kind, marker, name, pick in curves:
        body.append(_estimates(path, x, axis, kind, marker, pick))
        last = pick(path[-1]).value
        if math.isfinite(last):
            ends.append((axis.at(last), name, kind))
    return [*body, *_end_labels(ends, right + 5)]


def _estimates(
    path: Sequence[LayerSimilarity],
    x: Sequence[Pixel],
    axis: Axis,
    kind: str,
    marker: str,
    pick: Callable[[LayerSimilarity], Estimate],
) -> str:
    found = [pick(row) for row in path]
    curve = [
        (at, axis.at(e.value)) if math.isfinite(e.value) else None
        for at, e in zip(x, found, strict=True)
    ]
    return _band(x, [(e.low, e.high) for e in found], axis, kind) + _curve(curve, kind, marker)


def _normalised_part(
    path: Sequence[LayerSimilarity], x: Sequence[Pixel], left: Pixel, right: Pixel
) -> list[str]:
    axis = _p_axis(path, 256, 176)
    ends = [(row.normalised.low, row.normalised.high) for row in path]
    body = [
        _text(4, 168, "P = (FV − others) / (same − others)", kind="head"),
        _hatched(path, x, 176, 80),
        *_p_levels(axis, left, right),
        _text(right + 5, axis.at(1) + 3.5, "own group", kind="same"),
        _text(right + 5, axis.at(0) + 3.5, "any photo", kind="diff"),
        _band(x, ends, axis, "fv"),
        _normalised(path, x, axis, "triangle"),
    ]
    return body


def _similarity_axis(path: Sequence[LayerSimilarity], bottom: Pixel, top: Pixel) -> Axis:
    """From 0, or below it where a similarity is negative, to the next tenth above all."""
    found = [
        v for row in path for e in (row.fv, row.same, row.diff) for v in (e.value, e.low, e.high)
    ]
    known = [v for v in found if math.isfinite(v)] or [0.0]
    low = min(0.0, math.floor(10 * min(known)) / 10)
    return Axis(low, max(0.2, math.ceil(10 * max(known)) / 10), bottom, top)


def _ticks(axis: Axis) -> list[Pixel]:
    step = next(s for s in (0.1, 0.2, 0.5, 1.0, 5.0, math.inf) if axis.high - axis.low <= 5 * s)
    if math.isinf(step):
        return [axis.low, axis.high]
    first = math.ceil(axis.low / step - 1e-9)
    return [i * step for i in range(first, math.floor(axis.high / step + 1e-9) + 1)]


def _end_labels(ends: list[tuple[Pixel, str, str]], x: Pixel) -> list[str]:
    """Each curve's name at its end, moved apart where they would overlap."""
    body, before = [], -math.inf
    for y, name, kind in sorted(ends):
        before = max(y, before + 12)
        body.append(_text(x, before + 3.5, name, kind=kind))
    return body


def _tick(x: Pixel, y: Pixel, name: str) -> str:
    place = f"{_n(x + 3)},{_n(y)}"
    return f'<text class="end" transform="translate({place})rotate(-50)">{escape(name)}</text>'


def _tooltip(x: Pixel, row: LayerSimilarity, width: Pixel) -> str:
    found = (("FV", row.fv), ("same", row.same), ("others", row.diff), ("P", row.normalised))
    parts = "; ".join(f"{name} {digest.interval(e)}" for name, e in found)
    more = "" if row.resolvable else " (not resolvable)"
    return (
        f'<rect class="hit" x="{_n(x - width / 2)}" y="16" width="{_n(width)}" height="240">'
        f"<title>{escape(row.layer)}{more}: {parts}</title></rect>"
    )


def scale(r: UnitResult) -> Markup:
    """What drives the unit how much: median and strongest photograph, and each FV."""
    named = {"median photograph": r.natural_median, "strongest photograph": r.natural_max}
    known = {k: v for k, v in named.items() if math.isfinite(v)}
    responses = [v for v in r.fv_responses if math.isfinite(v)]
    said = ", ".join(f"{k} {digest.number(v)}" for k, v in named.items())
    made = ", ".join(digest.number(v) for v in r.fv_responses)
    label = f"Response of {r.unit}: {said}, feature visualizations {made}"
    everything = [0.0, *known.values(), *responses]
    axis = Axis(min(everything), max(everything), 8, 272, digits=0)
    body = ['<path class="grid zero" d="M4,30H276"/>', _photograph_marks(named, axis)]
    if responses:
        middle = (axis.at(min(responses)) + axis.at(max(responses))) / 2
        body.append(_markers([(axis.at(v), 26.0) for v in responses], "fv", "triangle"))
        body.append(_label(middle, 15, f"FV {made}", "fv"))
    return _svg(280, 66, label, body, "plot")


def _photograph_marks(named: dict[str, Pixel], axis: Axis) -> str:
    """A tick and a label each; the stronger one's label is the nearer, so no leader crosses it."""
    (weak, low), (strong, high) = named.items()
    parts = []
    if math.isfinite(low + high):
        parts.append(f'<path class="range" d="M{_n(axis.at(low))},30H{_n(axis.at(high))}"/>')
    parts.append(_photograph(axis, strong, high, 47, leader=True))
    parts.append(_photograph(axis, weak, low, 61, leader=axis.at(high) < 150))
    return "".join(parts)


def _photograph(axis: Axis, name: str, value: Pixel, y: Pixel, leader: bool) -> str:
    if not math.isfinite(value):
        return _text(8, y, f"{name}: {digest.UNKNOWN}", kind="same")
    x, text = axis.at(value), f"{name} {digest.number(value)}"
    mark = f'<path class="mark same" d="M{_n(x)},24V{_n(y if leader else 36)}"/>'
    if x < 150:
        return mark + _text(x + 4, y, text, kind="same")
    return mark + _text(x - 4, y, text, "end", "same")


def _label(x: Pixel, y: Pixel, text: str, kind: str) -> str:
    """Beside or over a mark, inside the drawing."""
    half = 2.7 * len(text)
    if x - half < 4:
        return _text(4, y, text, kind=kind)
    if x + half > 276:
        return _text(276, y, text, "end", kind)
    return _text(x, y, text, "middle", kind)


def trace(values: Sequence[Pixel]) -> Markup:
    """The objective over the optimization's steps, thinned."""
    known = [v for v in values if math.isfinite(v)]
    label = f"Objective over {len(values)} steps"
    if len(known) < 2:
        return _svg(150, 31, f"{label}: not recorded", [], "spark")
    label += f", from {digest.number(known[0])} to {digest.number(known[-1])}"
    step = max(1, math.ceil(len(known) / _POINTS))
    kept = [*known[::step], known[-1]]
    axis = Axis(min(kept), max(kept), 29, 2, digits=0)
    points = [(float(round(1 + 148 * i / (len(kept) - 1))), axis.at(v)) for i, v in enumerate(kept)]
    return _svg(
        150, 31, label, [f'<polyline class="line fv" points="{_points(points)}"/>'], "spark"
    )


def gauge(estimate: Estimate | None, low: Pixel, high: Pixel) -> Markup:
    """A number and its interval on an axis."""
    if estimate is None or not math.isfinite(estimate.value):
        return Markup("")
    ends = [v for v in (estimate.low, estimate.high, estimate.value) if math.isfinite(v)]
    axis = Axis(min(low, math.floor(min(ends))), max(high, math.ceil(max(ends))), 6, 234)
    body = [
        '<path class="grid zero" d="M6,12H234"/>',
        _text(6, 28, _signed(axis.low)),
        _text(234, 28, _signed(axis.high), "end"),
    ]
    if estimate.known:
        body.append(
            f'<path class="range fv" d="M{_n(axis.at(estimate.low))},12'
            f'H{_n(axis.at(estimate.high))}"/>'
        )
    body.append(f'<path class="mark fv" d="M{_n(axis.at(estimate.value))},5v14"/>')
    label = f"{digest.interval(estimate)} on an axis from {axis.low:.0f} to {axis.high:.0f}"
    return _svg(240, 31, label, body, "gauge")
