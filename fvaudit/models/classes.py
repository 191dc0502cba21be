"""What the logits mean: one class an output, in the order of the outputs.

The packaged table lists ImageNet-1k in ILSVRC-2012 order. Its names are the first WordNet 3.0 lemma
of each synset; the three pairs that share a lemma (crane, cardigan, maillot) carry a word in
parentheses, so that a name means one class.
"""

import dataclasses
import importlib.resources
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from fvaudit.records import AuditError


COLUMNS = ("index", "wnid", "name")


@dataclasses.dataclass(frozen=True)
class ImageClass:
    """One class of a classifier."""

    index: int  # position among the logits, from 0
    wnid: str  # WordNet synset id, "n02088364"; for other classes any unique id
    name: str  # for people, unique within a table


# Names in the order of the outputs; or a file of them, as `load_classes` reads it
Classes = str | os.PathLike | Sequence[ImageClass | str]


def as_classes(given: Any, source: str = "The list") -> tuple[ImageClass, ...]:
    """Classes from what a user has.

    Args:
        given: names, or `ImageClass`es, one for each output in their order; or the path of a file
            that `load_classes` reads. None, or an empty list: they are not known.
        source: where they are from, for people.

    Raises:
        AuditError: for anything else, a name that occurs twice, and whatever `load_classes` raises.
    """
    if isinstance(given, str | os.PathLike):
        return load_classes(given)
    rows = list(given) if isinstance(given, Sequence) else [] if given is None else [given]
    classes = tuple(ImageClass(i, c, c) if isinstance(c, str) else c for i, c in enumerate(rows))
    for place, one in enumerate(classes):
        if not isinstance(one, ImageClass) or one.index != place:
            raise AuditError(
                f"Expected the names of the classes, one for each output in their order, or a file "
                f"of them; number {place} is {one!r:.80}."
            )
    _check_unique(classes, "name", lambda c: c.name, source)
    return classes


def load_classes(path: str | os.PathLike | None = None) -> tuple[ImageClass, ...]:
    """Reads a table of classes: tab-separated, UTF-8, header `index`, `wnid`, `name`.

    Lines that start with # and empty lines are skipped. The i-th row (from 0) has index i. A file
    without any tab holds a name in each line.

    Args:
        path: the table; None reads the packaged ImageNet-1k table.

    Raises:
        AuditError: if the file cannot be read, the header or a row has other columns, the indices
            are not 0, 1, 2, ... in this order, or an id or a name is empty or occurs twice.
    """
    source = "the packaged table" if path is None else os.fspath(path)
    lines = [
        (number, line.split("\t"))
        for number, line in enumerate(_text(path, source).split("\n"), start=1)
        if line.strip() and not line.startswith("#")
    ]
    if lines and all(len(cells) == 1 for _, cells in lines):
        return as_classes([name.strip() for _, (name,) in lines], source)
    _check_header(lines[0][1] if lines else [], source)
    classes = tuple(
        _row(cells, position, f"Line {number} of {source}")
        for position, (number, cells) in enumerate(lines[1:])
    )
    if not classes:
        raise AuditError(f"{source} lists no classes below its header; expected one row a class.")
    _check_unique(classes, "wnid", lambda c: c.wnid, source)
    _check_unique(classes, "name", lambda c: c.name, source)
    return classes


def _text(path: str | os.PathLike | None, source: str) -> str:
    table = importlib.resources.files("fvaudit.models") / "imagenet1k.tsv"
    try:
        return (table if path is None else pathlib.Path(path)).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a NUL
        raise AuditError(
            f"Cannot read the classes from {source}: {error}. "
            f"Expected a UTF-8 text file: a name a line, or the columns {', '.join(COLUMNS)}."
        ) from None


def _check_header(header: Sequence[str], source: str) -> None:
    if tuple(header) != COLUMNS:
        raise AuditError(
            f"{source} starts with the columns {list(header)}; expected {list(COLUMNS)}, separated "
            "by tabs. Add the header line."
        )


def _row(cells: Sequence[str], position: int, where: str) -> ImageClass:
    if len(cells) != len(COLUMNS) or not all(cell.strip() for cell in cells):
        raise AuditError(
            f"{where} has the cells {list(cells)}; expected {', '.join(COLUMNS)}, separated by "
            "tabs, none empty."
        )
    index, wnid, name = (cell.strip() for cell in cells)
    if index != str(position):
        raise AuditError(
            f"{where} has index {index!r}; expected {position}, since rows must list the logits in "
            "their order: 0, 1, 2, ... Sort or complete the table."
        )
    return ImageClass(position, wnid, name)


def _check_unique(
    classes: Sequence[ImageClass], column: str, value: Callable[[ImageClass], str], source: str
) -> None:
    first: dict[str, int] = {}
    for entry in classes:
        other = first.setdefault(value(entry), entry.index)
        if other != entry.index:
            raise AuditError(
                f"{source} gives classes {other} and {entry.index} the same {column} "
                f"{value(entry)!r}; expected each {column} once."
            )
