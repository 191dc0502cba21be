"""What folders and labels may call a class: by WordNet id, by name, or by number.

As it is written, or else in other letters: capitals and underscores do not matter where that means
one class only. Of networks that tell A from a, they do.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from fvaudit.records import AuditError, require_kind


@runtime_checkable
class Classes(Protocol):
    """One class of a model."""

    @property
    def index(self) -> int: ...
    @property
    def wnid(self) -> str: ...
    @property
    def name(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class _Named:
    index: int
    wnid: str
    name: str


class Names(NamedTuple):
    """Indices of classes by what they may be called."""

    exact: Mapping[str, int]  # as it is written
    loose: Mapping[str, int]  # by `_key`, where that means one class only


def names_of(given: Any) -> Names:
    """Of classes, or of their names in the order of the model's outputs.

    Where one is called as another's number is, it is the name that counts; before both, the id.

    Raises:
        AuditError: for anything else.
    """
    expected = "names of classes, in the order of the model's outputs"
    require_kind("classes", given, (list, tuple), expected)
    classes = [_Named(i, c, c) if isinstance(c, str) else c for i, c in enumerate(given)]
    for one in classes:
        require_kind("classes", one, Classes, expected)
    exact = {str(c.index): c.index for c in classes}
    exact |= {c.name: c.index for c in classes} | {c.wnid: c.index for c in classes}
    means: dict[str, set[int]] = {}
    for text, index in exact.items():
        means.setdefault(_key(text), set()).add(index)
    return Names(exact, {key: min(found) for key, found in means.items() if len(found) == 1})


def numbers_of(model: Any) -> Names:
    """Of a model that does not say what its classes are called: one number for each logit."""
    (*_, outputs) = getattr(model, "shapes", {}).get("logits", (0,))
    exact = {str(i): i for i in range(outputs)}
    return Names(exact, exact)


def indices(texts: Sequence[str], names: Names, what: str) -> list[int]:
    """The class of each text.

    Args:
        texts: names of folders, or labels.
        names: of the classes.
        what: the texts, for people.

    Raises:
        AuditError: if one means no class.
    """
    found = [names.exact.get(text, names.loose.get(_key(text), -1)) for text in texts]
    unknown = sorted({text for text, index in zip(texts, found, strict=True) if index < 0})
    if unknown:
        near = difflib.get_close_matches(_key(unknown[0]), names.loose, n=1)
        hint = f"; nearest to {unknown[0]!r} is {near[0]!r}" if near else ""
        raise AuditError(
            f"{what} {', '.join(unknown[:5])} name no class of the model{hint}. "
            "Name them by WordNet id, class name or index, give the model's classes in the "
            "order of its outputs (from Python classes=[...], in a config images.classes: a file "
            "of a name a line), or say that they are no classes (images.labels: false)."
        )
    return found


def _key(text: str) -> str:
    return text.lower().replace("_", " ").strip()
