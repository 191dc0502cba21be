"""Models in files: .onnx files, and folders that fvaudit wrote.

What a file does not say of its input has to be given; see `imports.specs`.
"""

import os
import pathlib
from typing import Any

from fvaudit.models.imports import metadata
from fvaudit.models.imports.pickle_ops import shown
from fvaudit.models.imports.specs import input_spec
from fvaudit.models.model import InputSpec, Model
from fvaudit.records import AuditError


ACCEPTED = (
    "a name of the zoo, an .onnx file, a folder that `fvaudit manipulate` or an export wrote, or "
    "hf-hub:org/name"
)


def is_file_name(name: str) -> bool:
    """Whether a model's name means a file or a folder."""
    return name.lower().endswith(".onnx") or os.sep in name or "/" in name or os.path.exists(name)


def load_file(path: str | os.PathLike, input: Any = None, weights: Any = None) -> Model:
    """Loads an .onnx file or a folder.

    Args:
        path: of it.
        input: what `imports.specs.input_spec` reads; what the file says itself can be left out.
        weights: none; files hold their own.

    Raises:
        AuditError: if there is no such file, it is neither, it is damaged, or the input is not
            known.
    """
    path = pathlib.Path(path)
    where = shown(os.fspath(path))
    if weights is not None:
        raise AuditError(f"{where} holds its own weights; leave weights out.")
    if path.is_dir():
        return _folder(path, input)
    if path.suffix.lower() != ".onnx" or not path.is_file():
        problem = "is no model" if path.exists() else "does not exist"
        raise AuditError(f"{where} {problem}. Accepted are {ACCEPTED}.")
    from fvaudit.models.imports.onnx import load_onnx

    return load_onnx(path, _spec(path, input))


def _spec(path: pathlib.Path, input: Any) -> InputSpec:
    if isinstance(input, InputSpec):
        return input
    from fvaudit.models.imports.onnx import read_proto

    return input_spec(input, metadata.of_onnx_model(read_proto(path)), what=path.name)


def _folder(path: pathlib.Path, input: Any) -> Model:
    if input is not None:
        raise AuditError(f"{shown(os.fspath(path))} says its own input; leave input out.")
    from fvaudit.models.folders import load_folder

    return load_folder(path)
