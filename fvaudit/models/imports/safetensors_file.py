"""Tensors of a .safetensors file as NumPy arrays.

The format is a JSON header (name, type, shape, place of each tensor) and the bytes. The package
`safetensors` holds the header against the file's size; shapes are shown to the caller before any
tensor is read.

Source: https://github.com/huggingface/safetensors, Apache-2.0.
"""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from fvaudit.models.imports.pickle_ops import shown
from fvaudit.records import AuditError


TYPES = {"F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}  # the last: from JAX
Check = Callable[[Mapping[str, tuple[int, ...]]], None]  # shapes by name; raises AuditError


def read_safetensors(path: str | os.PathLike, check: Check) -> dict[str, np.ndarray]:
    """Reads all tensors; those in half precision become float32 (exactly).

    Single whole numbers are left out: they count the batches that a batch norm has seen.

    Args:
        path: a .safetensors file.
        check: called with every tensor's shape before any is read; raises to refuse them.

    Raises:
        AuditError: if the file cannot be read or is damaged, or holds another type than
            float32, float16 and bfloat16; and whatever `check` raises.
    """
    where = shown(os.fspath(path))
    try:
        if not pathlib.Path(path).is_file():  # opening a pipe would wait
            raise AuditError(f"Cannot read {where}: there is no such file, or no regular one.")
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            slices = {name: s for name, s in slices.items() if not _counts(s)}
            _check_types({name: s.get_dtype() for name, s in slices.items()}, where)
            check({name: tuple(s.get_shape()) for name, s in slices.items()})
            return {name: file.get_tensor(name).astype(np.float32, copy=False) for name in slices}
    except AuditError:  # a ValueError, but not the file's
        raise
    except (SafetensorError, OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise AuditError(
            f"Cannot read {where}: {shown(str(error))}; expected a .safetensors file."
        ) from None


def _counts(tensor: Any) -> bool:
    return tensor.get_dtype() == "I64" and tensor.get_shape() == []


def _check_types(types: Mapping[str, str], where: str) -> None:
    wrong = next((name for name, kind in types.items() if kind not in TYPES), None)
    if wrong is not None:
        raise AuditError(
            f"Tensor {shown(wrong)} of {where} has type {types[wrong]}; expected one of "
            f"{', '.join(TYPES)}. Convert it to F32."
        )
