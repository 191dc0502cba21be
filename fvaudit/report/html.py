"""report.html: one file that needs no network, no fonts and no script.

The records become plain values here; the template places them and escapes every one of them. Each
natural thumbnail is embedded once and reused by reference.
"""

import dataclasses
import json
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from fvaudit import store
from fvaudit.filenames import file_name
from fvaudit.records import AuditError, Status, Unit, UnitResult, Verdict
from fvaudit.report import digest, drawings, thumbnails
from fvaudit.store import Run


LIMIT = 4_900_000  # bytes of the page: it must be sent by mail and open at once
_TEXT_PER_UNIT = 6_300  # bytes of markup that a unit's card and table rows take, measured
_OPEN_ROWS = 40  # a table of findings up to this length starts opened
SYMBOLS = {
    "PASS": "✓",
    "WARN": "!",
    "INCONCLUSIVE": "?",
    "FAIL": "✕",
    "ERROR": "■",
    digest.NOT_JUDGED: "–",
    "INCOMPLETE": "…",
    "PROBLEM": "✚",
}
_MEANING = {
    "PASS": "no discrepancy detected",
    "WARN": "the claim does not hold; the config asks only for a warning",
    "INCONCLUSIVE": "too little data, or the interval spans the threshold",
    "FAIL": "the claim does not hold",
    "ERROR": "the check could not be computed",
    digest.NOT_JUDGED: "no verdict yet",
}


@dataclasses.dataclass(frozen=True)
class Made:
    """One feature visualization of a card."""

    uri: str | None
    strip: str | None
    steps: tuple[int, ...]
    trace: Markup
    response: str


@dataclasses.dataclass(frozen=True)
class Natural:
    """One exemplar of a card."""

    key: str  # id of the embedded thumbnail; empty where there is none
    name: str
    response: str


@dataclasses.dataclass(frozen=True)
class Card:
    """One unit, ready to be placed."""

    key: str
    result: UnitResult
    status: str
    made: tuple[Made, ...]
    naturals: tuple[Natural, ...]
    path: Markup
    scale: Markup
    facts: tuple[tuple[str, str], ...]
    verdicts: tuple[Verdict, ...]
    command: str | None


def page(run: Run) -> str:
    """The whole document, as large as its pictures may make it below `LIMIT` bytes."""
    first = thumbnails.choose(run, LIMIT - 200_000 - _TEXT_PER_UNIT * len(run.units))
    text = ""
    for size in thumbnails.SIZES[first:]:
        text = _template().render(_context(run, size))
        if len(store.encoded(text)) <= LIMIT:
            break
    return text


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {
        "number": digest.number,
        "interval": digest.interval,
        "reason": digest.reason,
        "claim": digest.claim,
        "slug": lambda word: word.lower().replace(" ", "-"),
    }
    environment.filters.update(filters)
    return environment.get_template("template.html.j2")


def _context(run: Run, size: thumbnails.Size) -> dict[str, Any]:
    keys = {r.unit: f"u{i}" for i, r in enumerate(run.units)}
    embedded = _embedded(run, size)
    verdicts = digest.by_subject(run)
    cards = [
        _card(run, r, keys[r.unit], verdicts.get(r.unit, ()), embedded, size) for r in run.units
    ]
    return {
        "run": run,
        "name": run.folder.resolve().name,
        "overall": digest.overall(run),
        "planned": digest.planned(run),
        "counts": digest.counts(run),
        "by_check": digest.by_check(run),
        "numbers": _numbers(run),
        "limits": digest.limits(run),
        "comparability": digest.comparability(run),
        "findings": digest.findings(run),
        "open_rows": _OPEN_ROWS,
        "keys": keys,
        "labels": {r.unit: r.label for r in run.units if r.label},
        "panels": [_panel(result) for result in run.layers],
        "groups": _groups(cards),
        "embedded": [found for found in embedded.values() if found[1]],
        "size": size,
        "symbols": SYMBOLS,
        "meaning": _MEANING,
        "appendix": _appendix(run),
        "photographs": digest.photographs(run),
    }


def _numbers(run: Run) -> list[tuple[digest.Number, Markup]]:
    return [(n, drawings.gauge(n.estimate, 0, 1)) for n in digest.numbers(run)]


def _panel(result: Any) -> dict[str, Any]:
    return {
        "layer": result.layer,
        "units": result.units,
        "path": result.path,
        "drawing": drawings.layer_panel(result),
        "file": f"figures/path-{file_name(result.layer)}",
    }


def _embedded(run: Run, size: thumbnails.Size) -> dict[str, tuple[str, str | None]]:
    """Key and data URI of every natural image that is shown."""
    return {
        name: (f"n{i}", thumbnails.exemplar(run.folder, name, size))
        for i, name in enumerate(thumbnails.shown(run.units))
    }


def _groups(cards: Sequence[Card]) -> dict[str, list[Card]]:
    """Cards by layer, in the order of the results."""
    table: dict[str, list[Card]] = {}
    for card in cards:
        table.setdefault(card.result.unit.rpartition(":")[0], []).append(card)
    return table


def _card(
    run: Run,
    r: UnitResult,
    key: str,
    verdicts: Sequence[Verdict],
    embedded: dict[str, tuple[str, str | None]],
    size: thumbnails.Size,
) -> Card:
    status = max((v.status for v in verdicts), default=None)
    return Card(
        key=key,
        result=r,
        status=status.name if isinstance(status, Status) else digest.NOT_JUDGED,
        made=tuple(
            _made(run, r, name, response, size)
            for name, response in zip(r.images, r.fv_responses, strict=True)
        ),
        naturals=_naturals(r, embedded),
        path=drawings.unit_path(r),
        scale=drawings.scale(r),
        facts=_facts(r),
        verdicts=tuple(verdicts),
        command=command(run, r.unit),
    )


def _made(run: Run, r: UnitResult, name: str, response: float, size: thumbnails.Size) -> Made:
    found = thumbnails.trajectory(run.folder, name)
    return Made(
        uri=thumbnails.picture(run.folder, name, size),
        strip=None if found is None else thumbnails.strip(found.shots, size),
        steps=() if found is None else found.steps,
        trace=Markup("") if found is None else drawings.trace(found.trace),
        response=digest.number(response),
    )


def _naturals(r: UnitResult, embedded: dict[str, tuple[str, str | None]]) -> tuple[Natural, ...]:
    shown = zip(r.exemplars, r.exemplar_responses, strict=True)
    found = list(shown)[: thumbnails.EXEMPLARS]
    return tuple(
        Natural(embedded[name][0] if embedded[name][1] else "", name, digest.number(response))
        for name, response in found
    )


def _facts(r: UnitResult) -> tuple[tuple[str, str], ...]:
    return (
        ("Path score", digest.interval(r.score)),
        ("p-value", digest.number(r.p_value, 3)),
        ("Weaker photographs", digest.interval(r.quantile)),
        ("Resolvable layers", f"{sum(row.resolvable for row in r.path)} of {len(r.path)}"),
        ("Smallest possible p", digest.number(r.p_attainable, 3)),
        ("Margin, MADs", digest.interval(r.margin, 1)),
    )


def command(run: Run, unit: str) -> str | None:
    """What audits this unit alone again, from the folder that holds the run directory.

    None for a neuron at a position, which a config cannot name.
    """
    try:
        found = Unit.parse(unit)
    except AuditError:
        return None
    if found.position is not None:
        return None
    layer = (
        found.layer if re.fullmatch(r"[A-Za-z][\w.-]*", found.layer) else json.dumps(found.layer)
    )
    name = run.folder.resolve().name
    out = f"{name}-{file_name(found.layer)}-{found.channel}"
    change = f"units=[{{layer: {layer}, channels: [{found.channel}]}}]"
    config = shlex.quote(f"{name}/config.resolved.yaml")
    return f"fvaudit run {config} --out {shlex.quote(out)} --set {shlex.quote(change)}"


def _appendix(run: Run) -> dict[str, str]:
    model = {k: v for k, v in run.model.items() if k != "layers"}
    shapes = {name: " × ".join(map(str, s)) for name, s in run.model.get("layers", {}).items()}
    return {
        "config.resolved.yaml": run.config,
        "environment and model": _yaml({**run.environment, **model}),
        "layers of the model (rows × columns × channels)": _yaml(shapes),
    }


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True) if value else ""
