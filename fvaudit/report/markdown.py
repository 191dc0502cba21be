"""summary.md: what a CI step summary shows; the verdict, counts, three numbers, worst units."""

import html
import re

from fvaudit.records import Severity, UnitResult
from fvaudit.report import digest
from fvaudit.store import Run


_MOST = 20  # rows of the table; the page lists all


def summary(run: Run) -> str:
    """The Markdown text; everything that comes from the run is escaped."""
    overall = digest.overall(run)
    parts = [
        f"## fvaudit: {overall.word}",
        safe(overall.sentence),
        _counts(run),
        _numbers(run),
        _worst(run),
        _doctor(run),
        "### What this audit cannot show",
        "\n".join(f"- {safe(text)}" for text in digest.limits(run)),
        safe("; ".join(f"{name} {value}" for name, value in digest.comparability(run))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def safe(text: str) -> str:
    """Text that Markdown and the HTML inside it leave as it is, on one line of a table."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text)


def _counts(run: Run) -> str:
    table = digest.counts(run)
    rows = {check: row for check, row in digest.by_check(run).items()}
    lines = [
        f"| {len(run.units)} of {digest.planned(run)} units | {' | '.join(table)} |",
        f"|---{'|---:' * len(table)}|",
        *(_count_row(safe(check), [row.get(name, 0) for name in table]) for check, row in
          rows.items()),
        _count_row("**unit, worst verdict**", list(table.values())),
    ]  # fmt: skip
    return "\n".join(lines)


def _count_row(name: str, values: list[int]) -> str:
    return f"| {name} | {' | '.join(map(str, values))} |"


def _numbers(run: Run) -> str:
    rows = [f"| {n.name} | {n.value} | {safe(n.reading)} |" for n in digest.numbers(run)]
    return "\n".join(["| Number | Value [interval] | How to read it |", "|---|---|---|", *rows])


def _worst(run: Run) -> str:
    found = digest.worst_units(run, len(run.units))
    if not found:
        return ""
    shown = f", {_MOST} of {len(found)}" if len(found) > _MOST else ""
    return "\n".join(
        [
            f"### Units that did not pass{shown}",
            "",
            "| Unit | Worst verdict | Path score | p | Why |",
            "|---|---|---|---|---|",
            *(_unit_row(run, r) for r in found[:_MOST]),
        ]
    )


def _doctor(run: Run) -> str:
    rows = [
        f"| {f.severity.name} | {safe(f.title)} | {safe(f.measured)} | {safe(f.fix)} |"
        for f in run.findings if f.severity > Severity.OK
    ]  # fmt: skip
    head = ["### Before the audit", "", "| | What | Measured | Fix |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) if rows else ""


def _unit_row(run: Run, r: UnitResult) -> str:
    status = digest.unit_status(run)[r.unit]
    why = [digest.reason(v) for v in run.verdicts if v.subject == r.unit and v.status is status]
    word = digest.NOT_JUDGED if status is None else status.name
    score, p = digest.interval(r.score), digest.number(r.p_value, 3)
    unit = f"{safe(r.unit)} {safe(r.label)}".rstrip()
    return f"| {unit} | {word} | {score} | {p} | {safe(why[0])} |"
