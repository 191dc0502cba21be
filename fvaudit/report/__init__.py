"""A run directory, read and shown: report.html, summary.md, figures/, and the terminal's lines.

The report computes no evidence and judges nothing: it prints the records. It imports only the
records and the store, and its output depends on nothing but the run directory, so rendering twice
gives the same bytes.
"""

import os
import pathlib


def render(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Writes report.html, summary.md and figures/ of a run directory, complete or not.

    Returns:
        The path of report.html.

    Raises:
        AuditError: if the folder holds no run, or one that is damaged.
    """
    from fvaudit import store
    from fvaudit.report import figures, html, markdown

    run = store.read_run(folder)
    for name, content in figures.files(run).items():
        store.write_bytes(run.folder / "figures" / name, content)
    store.write_text(run.folder / "summary.md", markdown.summary(run))
    report = run.folder / "report.html"
    store.write_text(report, html.page(run))
    return report
