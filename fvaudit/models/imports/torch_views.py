"""What PyTorch's pickles say of a tensor: a strided view of a storage, with bounds checked.

Element (i, j, ...) of a view is element offset + i * strides[0] + j * strides[1] + ... of its
storage. The pickle names storages by persistent ids; their bytes stand elsewhere in the file.

Source: the arguments of `torch._utils._rebuild_tensor_v2` and `_rebuild_parameter`, and the
persistent ids that `torch.serialization` writes, as found in files of PyTorch 1.x and 2.x.
"""

import dataclasses
import math
from collections import OrderedDict
from typing import Any

from fvaudit.models.imports.pickle_ops import (
    MAX_KEY_CHARS,
    Call,
    Globals,
    damaged,
    kind,
    refuse,
    shown,
)


MAX_AXES = 32
MAX_COUNT = 2**48  # elements of one axis, stride, offset or storage

_TYPES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """A flat run of numbers."""

    key: str  # names the bytes within the file
    dtype: str  # "float32", "bfloat16", ...
    count: int  # elements


@dataclasses.dataclass(frozen=True)
class TensorView:
    """A strided view of a storage, inside its bounds; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # as many as `shape`, none negative


@dataclasses.dataclass(frozen=True)
class StorageType:
    """What stands for `torch.FloatStorage` and its like."""

    dtype: str


def storage_reference(storages: dict[str, Storage], reference: Any) -> Storage:
    """The storage that a persistent id names; adds it to `storages`.

    Args:
        storages: those declared so far, by key.
        reference: ("storage", type, key, device, count), in old files followed by None.

    Raises:
        AuditError: if the id has another form, or contradicts an earlier one of the same key.
    """
    match reference:
        case ("storage", StorageType() as found, str(key), str(), int(count)) | (
            "storage",
            StorageType() as found,
            str(key),
            str(),
            int(count),
            None,
        ) if _is_count(count) and len(key) <= MAX_KEY_CHARS:
            storage = Storage(key, found.dtype, count)
        case (str(tag), *_) if tag != "storage":
            refuse(f"a reference to {shown(tag)}")
        case _:
            damaged("a storage reference is not ('storage', type, key, device, count)")
    if storages.setdefault(key, storage) != storage:
        damaged(f"storage {shown(key)} is declared twice, with another type or count")
    return storage


def _ordered_dict(arguments: tuple) -> OrderedDict:
    if arguments:
        refuse("an OrderedDict with constructor arguments")
    return OrderedDict()


def _tensor(arguments: tuple) -> TensorView:
    # At the end: requires_grad, backward hooks, and since PyTorch 2 possibly metadata
    match arguments[:8]:
        case (
            Storage() as storage,
            offset,
            tuple(shape),
            tuple(strides),
            bool(),
            dict(),
            *more,
        ) if len(more) < 2:
            view = TensorView(storage, offset, shape, strides)
        case _:
            found = ", ".join(map(kind, arguments[:8]))
            damaged(f"a tensor has the arguments ({found}), not (storage, offset, shape, ...)")
    if any(more):  # conjugate and negative bits would change the values
        refuse("a tensor with metadata, such as a lazy conjugate")
    _check_view(view)
    return view


def _parameter(arguments: tuple) -> TensorView:
    match arguments:
        case (TensorView() as view, bool(), dict()):
            return view
    damaged("a parameter has other arguments than (tensor, requires_grad, hooks)")


def _check_view(view: TensorView) -> None:
    if len(view.shape) != len(view.strides) or len(view.shape) > MAX_AXES:
        damaged(
            f"a tensor has {len(view.shape)} axes and {len(view.strides)} strides; expected equal "
            f"numbers up to {MAX_AXES}"
        )
    if not all(map(_is_count, (view.offset, *view.shape, *view.strides))):
        damaged("a tensor's offset, shape or strides are negative, huge or not integers")
    steps = ((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    if math.prod(size or 1 for size in view.shape) > MAX_COUNT:  # NumPy's limit for empty ones too
        damaged(f"a tensor has more than {MAX_COUNT:,} elements")
    # An empty tensor reads nothing; any other reads up to its last element
    end = view.offset if 0 in view.shape else view.offset + sum(steps) + 1
    if end > view.storage.count:
        damaged(
            f"a tensor needs {end} elements of storage {shown(view.storage.key)}, which has "
            f"{view.storage.count}"
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT  # bool is an int too


GLOBALS: Globals = {
    ("collections", "OrderedDict"): Call(_ordered_dict),
    ("torch._utils", "_rebuild_tensor_v2"): Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): Call(_parameter),
    **{("torch", f"{name}Storage"): StorageType(dtype) for name, dtype in _TYPES.items()},
}
