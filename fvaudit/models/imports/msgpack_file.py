"""Arrays of a .msgpack file, as `flax.serialization` writes them: nested names, then arrays.

An array is an extension of MessagePack that holds its shape, the name of its type and its
bytes. Nothing else is accepted: no other extension, no plain numbers, no objects. Sizes are held
against the file's own before anything is kept, and arrays are views of it.

Source: flax.serialization, https://github.com/google/flax, Apache-2.0.
"""

import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import msgpack
import numpy as np

from fvaudit.models.imports.pickle_ops import shown
from fvaudit.models.imports.safetensors_file import Check
from fvaudit.records import AuditError


TYPES = {"float32": jnp.float32, "float16": jnp.float16, "bfloat16": jnp.bfloat16}
COUNTERS = ("int32", "int64", "uint32")  # of steps; they are no weights and are left out
_ARRAYS = (1, 3)  # flax's codes of the extension: arrays and NumPy's scalars, packed alike
_MOST_NAMES = 2**17
_DEEPEST = 64
_LONGEST_NAME = 4096
_DAMAGE = (ValueError, TypeError, RecursionError, OSError, OverflowError, MemoryError)


class _Stored(NamedTuple):
    """An array as it lies in the file."""

    shape: tuple[int, ...]
    type: str
    content: memoryview


def read_msgpack(path: str | os.PathLike, check: Check, *, max_bytes: int) -> dict[str, np.ndarray]:
    """Reads all arrays under dotted names; those in half precision become float32 (exactly).

    Args:
        path: a .msgpack file, as `flax.serialization.to_bytes` writes it of nested dictionaries.
        check: called with every array's shape before any is converted; raises to refuse them.
        max_bytes: limit on the file.

    Raises:
        AuditError: if the file is too large, cannot be read or is damaged, or holds anything but
            arrays of float32, float16, bfloat16 and counters; and whatever `check` raises.
    """
    where = shown(os.fspath(path))
    try:
        file = pathlib.Path(path)
        if not file.is_file():  # opening a pipe would wait
            raise AuditError(f"Cannot read {where}: there is no such file, or no regular one.")
        if (size := file.stat().st_size) > max_bytes:
            raise AuditError(f"{where} has {size} bytes; expected at most {max_bytes}.")
        arrays = dict(_leaves(_unpacked(file.read_bytes()), (), where))
        check({name: stored.shape for name, stored in arrays.items()})
        return {name: _array(stored) for name, stored in arrays.items()}
    except AuditError:  # a ValueError, but not the file's
        raise
    except (*_DAMAGE, msgpack.UnpackException) as error:
        raise AuditError(
            f"Cannot read {where}: {shown(str(error) or type(error).__name__)}; expected a "
            ".msgpack file of flax.serialization."
        ) from None


def _unpacked(content: bytes) -> Any:
    limit = len(content)
    return msgpack.unpackb(
        content,
        ext_hook=_stored,
        strict_map_key=True,
        max_str_len=_LONGEST_NAME,
        max_bin_len=limit,
        max_array_len=_DEEPEST,
        max_map_len=_MOST_NAMES,
        max_ext_len=limit,
    )


def _stored(code: int, content: bytes) -> _Stored:
    if code not in _ARRAYS:
        raise ValueError(f"extension {code} is no array")
    shape, type_, numbers = msgpack.unpackb(
        content, max_array_len=_DEEPEST, max_map_len=0, max_ext_len=0, max_bin_len=len(content)
    )
    if not isinstance(type_, str) or not isinstance(numbers, bytes):
        raise ValueError("an array lacks its type or its numbers")
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("an array's shape makes no sense")
    if type_ in TYPES and math.prod(shape) * jnp.dtype(TYPES[type_]).itemsize != len(numbers):
        raise ValueError(f"an array of shape {shape} has {len(numbers)} bytes of {shown(type_)}")
    return _Stored(tuple(shape), type_, memoryview(numbers))


def _leaves(node: Any, path: tuple[str, ...], where: str) -> Iterator[tuple[str, _Stored]]:
    name = ".".join(path)
    if isinstance(node, dict) and len(path) < _DEEPEST:
        for key, value in node.items():
            if not isinstance(key, str) or not key or "." in key:
                raise AuditError(f"{where} names an array {shown(str(key))}; expected plain names.")
            yield from _leaves(value, (*path, key), where)
    elif not isinstance(node, _Stored) or not path:
        raise AuditError(
            f"{shown(name) or 'The whole'} of {where} is {type(node).__name__}; expected arrays "
            "under nested names (flax.serialization.to_bytes of a dictionary)."
        )
    elif node.type in TYPES:
        yield name, node
    elif node.type not in COUNTERS:
        raise AuditError(
            f"Array {shown(name)} of {where} has type {shown(node.type)}; expected one of "
            f"{', '.join(TYPES)}. Convert it to float32."
        )


def _array(stored: _Stored) -> np.ndarray:
    flat = np.frombuffer(stored.content, jnp.dtype(TYPES[stored.type]))
    return flat.reshape(stored.shape).astype(np.float32)
