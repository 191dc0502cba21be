"""The lines that the terminal prints: the page's first screen in plain text, 80 columns wide."""

import textwrap
from collections.abc import Sequence

from fvaudit.records import Finding, Severity
from fvaudit.report import digest
from fvaudit.store import Run


_WIDTH = 80


def summary_lines(run: Run) -> list[str]:
    """About ten lines, none wider than 80 columns, without markup."""
    overall = digest.overall(run)
    counts = ", ".join(f"{name} {count}" for name, count in digest.counts(run).items())
    lines = [
        *_wrapped("", overall.text),
        *_wrapped("units     ", f"{len(run.units)} of {digest.planned(run)} measured: {counts}"),
    ]
    for check, row in digest.by_check(run).items():
        found = ", ".join(f"{name} {count}" for name, count in row.items() if count)
        lines += _wrapped("          ", f"{check}: {found}")
    for label, number in zip(("score", "apart", "margin"), digest.numbers(run), strict=True):
        lines += _wrapped(f"{label:<10}", f"{number.value}  {number.name.lower()}")
    lines += _wrapped("data      ", digest.photographs(run))
    lines += _wrapped("          ", digest.unusable(run)) if digest.unusable(run) else []
    lines += finding_lines([f for f in run.findings if f.severity > Severity.OK])
    if run.verdicts:
        lines.append("PASS means that no discrepancy was detected; the report names the limits.")
    return lines


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """What the doctor found, each with its fix."""
    lines: list[str] = []
    for finding in findings:
        lines += _wrapped(f"{finding.severity.name:<9}", f"{finding.title}: {finding.measured}")
        lines += _wrapped("    fix: ", finding.fix) if finding.fix else []
    return lines


def _wrapped(label: str, text: str) -> list[str]:
    """Continuation lines stand under the text, not under the label."""
    plain = "".join(c if c.isprintable() else "?" for c in text)  # no escape sequences from ids
    return textwrap.wrap(
        plain, _WIDTH, initial_indent=label, subsequent_indent=" " * len(label)
    ) or [label.rstrip()]
