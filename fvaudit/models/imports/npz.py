"""Arrays of a .npz file, without pickles.

A .npz file is a zip archive with one .npy file an array. Types and shapes stand in each .npy
header, which is shown to the caller before any array is read, so that a few compressed bytes
cannot claim gigabytes. NumPy would evaluate a header as Python; it gets to see those only that have
the form that it writes itself.

Source: NEP 1 (a simple file format for NumPy arrays).
"""

import itertools
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping

import numpy as np
from numpy.lib import format as npy

from fvaudit.models.imports.pickle_ops import shown
from fvaudit.models.imports.safetensors_file import Check
from fvaudit.records import AuditError


TYPES = (np.dtype("<f4"), np.dtype("<f2"))
_SUFFIX = ".npy"
_MAX_HEADER = 4096  # bytes; those of plain arrays have 118
_HEADER = re.compile(
    rb"\{'descr': '(?P<type>[<>|=]?[\w]{1,8})', 'fortran_order': (True|False), "
    rb"'shape': \((?P<shape>(\d{1,18}, ?){0,32}(\d{1,18})?)\), \}\s*"
)
_DAMAGE = (  # what zipfile and numpy raise
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,  # a .npy header that makes no sense; a path with a NUL
    RuntimeError,  # an encrypted or unknown compression
    TypeError,  # a type that NumPy does not know
    MemoryError,
    struct.error,  # a header that ends in its length
)


def read_npz(path: str | os.PathLike, check: Check) -> dict[str, np.ndarray]:
    """Reads all arrays; those in half precision become float32 (exactly).

    Args:
        path: a .npz file, as `numpy.savez` writes it.
        check: called with every array's shape before any is read; raises to refuse them.

    Raises:
        AuditError: if the file cannot be read or is damaged, or holds another type than
            little-endian float32 and float16; and whatever `check` raises.
    """
    where = shown(os.fspath(path))
    try:
        if not pathlib.Path(path).is_file():  # opening a pipe would wait
            raise AuditError(f"Cannot read {where}: there is no such file, or no regular one.")
        with zipfile.ZipFile(path) as archive:
            headers = {name: _header(archive, name) for name in archive.namelist()}
            _check_once(headers, where)
            _check_types({name: dtype for name, (_, dtype) in headers.items()}, where)
            check({_plain(name): shape for name, (shape, _) in headers.items()})
            return {_plain(name): _array(archive, name) for name in headers}
    except AuditError:  # a ValueError, but not the file's
        raise
    except _DAMAGE as error:
        raise AuditError(
            f"Cannot read {where}: {shown(str(error))}; expected a .npz file without pickles."
        ) from None


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open(name) as file:
        version = npy.read_magic(file)
        width = "<H" if version == (1, 0) else "<I"
        (length,) = struct.unpack(width, file.read(struct.calcsize(width)))
        found = _HEADER.fullmatch(file.read(min(length, _MAX_HEADER)))
    if found is None:
        raise ValueError(f"{name} has no header as NumPy writes it")
    shape = tuple(int(axis) for axis in found["shape"].split(b",") if axis.strip())
    return shape, np.dtype(found["type"].decode())


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        return npy.read_array(file, allow_pickle=False).astype(np.float32)


def _plain(name: str) -> str:
    return name.removesuffix(_SUFFIX)


def _check_once(names: Collection[str], where: str) -> None:
    """`x` and `x.npy` are one array's name: only one of the shapes would be checked."""
    plain = sorted(map(_plain, names))
    twice = next((a for a, b in itertools.pairwise(plain) if a == b), None)
    if twice is not None:
        raise AuditError(f"{where} holds two arrays {shown(twice)}; expected one of each name.")


def _check_types(types: Mapping[str, np.dtype], where: str) -> None:
    wrong = next((name for name, dtype in types.items() if dtype not in TYPES), None)
    if wrong is not None:
        raise AuditError(
            f"Array {shown(wrong)} of {where} has type {types[wrong]}; expected float32 or "
            "float16. Convert it with .astype('float32')."
        )
