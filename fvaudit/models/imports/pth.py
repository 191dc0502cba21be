"""PyTorch state dicts (.pth, .pt) as NumPy arrays, without PyTorch and without running a pickle.

Both formats hold a pickle that describes tensors as views of storages, and the storages' bytes:

    legacy  five pickles (magic number, version, system, object, storage keys), then for each key
            an int64 count and the little-endian numbers
    zip     <root>/data.pkl, <root>/data/<key> for each storage, <root>/byteorder; uncompressed

All declared sizes are held against the bytes that exist before anything of that size is allocated.

Source: the formats as `torch.save` writes them; the tests hold this reader against PyTorch.
"""

import dataclasses
import functools
import io
import math
import os
import pathlib
import stat
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

from fvaudit.models.imports.pickle_ops import interpret, shown
from fvaudit.models.imports.stored_zip import Span, read_span, stored_members
from fvaudit.models.imports.torch_views import GLOBALS, Storage, TensorView, storage_reference
from fvaudit.records import AuditError


MAX_PICKLE_BYTES = 64 * 2**20
MAX_DEPTH = 32  # containers within containers
MAX_GROWTH = 16  # bytes of all results, in bytes of the file

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_WRAPPERS = ("state_dict", "model")  # keys under which training scripts save the state dict


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    top: Any  # what the pickle describes
    storages: Mapping[str, Storage]  # by key
    spans: Mapping[str, Span]  # where each storage's bytes lie; sizes agree with `storages`


def read_tensors(path: str | os.PathLike, *, max_bytes: int = 4 * 2**30) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch state dict; nothing in the file is executed.

    Accepts a dict from names to tensors, or a dict whose only tensors are those of one such dict
    under "state_dict" or "model". What is not a tensor beside them is ignored.

    Args:
        path: a file that `torch.save` wrote, in its zip or its legacy format.
        max_bytes: limit on the file and on all results together, each in bytes.

    Returns:
        C-contiguous copies by name, in the file's order. Types are kept, except that bfloat16
        becomes float32 (exactly).

    Raises:
        AuditError: if the file cannot be read, is damaged or hostile, passes a limit, needs
            anything beyond tensors, or holds no state dict.
    """
    shown_path = shown(os.fspath(path))
    try:
        with _opened(pathlib.Path(path), max_bytes) as file:
            size = os.fstat(file.fileno()).st_size
            checkpoint = _zip(file, size) if file.read(4) == b"PK\3\4" else _legacy(file, size)
            views = _state_dict(checkpoint.top)
            _check_growth(views.values(), size, max_bytes)
            return _arrays(file, checkpoint, views)
    except AuditError as error:
        raise AuditError(f"Cannot read {shown_path}: {error}.") from None
    except OSError as error:
        raise AuditError(
            f"Cannot read {shown_path}: {error.strerror}; expected a file that torch.save wrote."
        ) from None


def _opened(path: pathlib.Path, max_bytes: int) -> BinaryIO:
    if "\0" in str(path):
        raise AuditError("its path holds a NUL character")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait
        raise AuditError("it is not a regular file; expected one that torch.save wrote")
    if status.st_size > max_bytes:
        raise AuditError(
            f"it has {status.st_size:,} bytes, the limit is {max_bytes:,}. If you trust its "
            "source, raise max_bytes"
        )
    return path.open("rb")


# --- the two formats


def _legacy(file: BinaryIO, size: int) -> _Checkpoint:
    file.seek(0)
    if file.read(1) != b"\x80":
        raise AuditError(
            "it is neither a zip archive nor a pickle; expected a state dict that torch.save wrote"
        )
    file.seek(0)
    stream = io.BytesIO(file.read(min(size, MAX_PICKLE_BYTES)))
    storages: dict[str, Storage] = {}
    pickled = functools.partial(
        interpret, stream, GLOBALS, functools.partial(storage_reference, storages)
    )
    _check_preamble(pickled(), pickled(), pickled())
    top, keys = pickled(), pickled()
    return _Checkpoint(top, storages, _legacy_spans(file, stream.tell(), size, keys, storages))


def _check_preamble(magic: Any, version: Any, system: Any) -> None:
    if magic != _MAGIC or version != _VERSION or not isinstance(system, dict):
        raise AuditError(
            "it does not start like a file of torch.save; expected PyTorch's magic number and "
            f"protocol version {_VERSION}"
        )
    if system.get("little_endian") is not True:
        raise AuditError("it was written on a big-endian computer; expected little-endian numbers")


def _legacy_spans(
    file: BinaryIO, at: int, size: int, keys: Any, storages: Mapping[str, Storage]
) -> dict[str, Span]:
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise AuditError("its list of storage keys is damaged. Fetch or save the file again")
    if len(keys) != len(storages) or set(keys) != set(storages):
        raise AuditError(
            f"it lists {len(keys)} storages, its tensors need {len(storages)}; expected the same "
            "keys once each. Fetch or save the file again"
        )
    spans: dict[str, Span] = {}
    for key in keys:
        name = f"storage {key}"
        count = int.from_bytes(read_span(file, Span(at, 8), name), "little", signed=True)
        if count != storages[key].count:
            raise AuditError(
                f"{shown(name)} has {count} elements, its tensors expect {storages[key].count}. "
                "Fetch or save the file again"
            )
        spans[key] = Span(at + 8, _bytes(storages[key]))
        at += 8 + spans[key].size
    if at != size:
        raise AuditError(
            f"its storages end at byte {at:,}, the file at {size:,}: it is damaged or cut short. "
            "Fetch or save it again"
        )
    return spans


def _zip(file: BinaryIO, size: int) -> _Checkpoint:
    members = stored_members(file, size)
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise AuditError(
            f"it is a zip archive with {len(pickles)} members named */data.pkl; expected one, as "
            "torch.save writes it"
        )
    root = pickles[0].removesuffix("data.pkl")
    for name, limit in ((pickles[0], MAX_PICKLE_BYTES), (f"{root}byteorder", 16)):
        if name in members and members[name].size > limit:
            raise AuditError(
                f"{shown(name)} has {members[name].size:,} bytes; expected at most {limit:,}"
            )
    _check_byte_order(file, members.get(f"{root}byteorder"))
    stream = io.BytesIO(read_span(file, members[pickles[0]], pickles[0]))
    storages: dict[str, Storage] = {}
    top = interpret(stream, GLOBALS, functools.partial(storage_reference, storages))
    return _Checkpoint(top, storages, _zip_spans(members, f"{root}data/", storages))


def _check_byte_order(file: BinaryIO, span: Span | None) -> None:
    order = b"little" if span is None else read_span(file, span, "byteorder")
    if order != b"little":
        raise AuditError(
            f"its numbers have byte order {shown(order.decode('latin-1'))!r}; expected 'little'"
        )


def _zip_spans(
    members: Mapping[str, Span], folder: str, storages: Mapping[str, Storage]
) -> dict[str, Span]:
    spans: dict[str, Span] = {}
    for key, storage in storages.items():
        span = members.get(folder + key)
        if span is None or span.size != _bytes(storage):
            found = "is missing" if span is None else f"has {span.size:,} bytes"
            raise AuditError(
                f"{shown(folder + key)} {found}; expected {_bytes(storage):,} bytes for "
                f"{storage.count:,} numbers of type {storage.dtype}. Fetch or save the file again"
            )
        spans[key] = span
    return spans


# --- the state dict within the object


def _state_dict(top: Any) -> dict[str, TensorView]:
    if not isinstance(top, dict):
        raise AuditError(
            f"it holds a {type(top).__name__}; expected a dict from names to tensors. Save "
            "model.state_dict()"
        )
    views = _views(top)
    rest = [value for key, value in top.items() if key not in views]
    wrappers = [key for key in _WRAPPERS if isinstance(top.get(key), dict) and _views(top[key])]
    if not views and len(wrappers) == 1:
        inner = top[wrappers[0]]
        views = _views(inner)
        rest = [value for key, value in top.items() if key != wrappers[0]]
        rest += [value for key, value in inner.items() if key not in views]
    if not views or _holds_tensor(rest):
        keys = ", ".join(shown(repr(key)) for key in list(top)[:8])
        raise AuditError(
            "it is no plain state dict: expected a dict from names to tensors, or one such dict "
            f"under 'state_dict' or 'model' and no other tensors. Found {len(top)} keys: {keys}"
            f"{', ...' if len(top) > 8 else ''}. Save model.state_dict() alone"
        )
    return views


def _views(mapping: Mapping[Any, Any]) -> dict[str, TensorView]:
    return {
        key: value
        for key, value in mapping.items()
        if isinstance(key, str) and isinstance(value, TensorView)
    }


def _holds_tensor(values: Iterable[Any]) -> bool:
    """Looks level by level, each container once, since containers may be shared or cyclic."""
    level, seen = list(values), set()
    for _ in range(MAX_DEPTH):
        if any(isinstance(value, TensorView) for value in level):
            return True
        inner = {id(value): value for value in level if isinstance(value, dict | list | tuple)}
        fresh = [value for key, value in inner.items() if key not in seen]
        seen.update(inner)
        level = [child for value in fresh for child in _children(value)]
    if level:
        raise AuditError(f"it nests containers more than {MAX_DEPTH} deep; expected a state dict")
    return False


def _children(container: dict | list | tuple) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


# --- the numbers


def _stored_type(dtype: str) -> np.dtype:
    # NumPy has no bfloat16: its bits come as integers. Booleans too: a byte may be any number
    plain = {"bfloat16": "uint16", "bool": "uint8"}.get(dtype, dtype)
    return np.dtype(plain).newbyteorder("<")


def _bytes(storage: Storage) -> int:
    return storage.count * _stored_type(storage.dtype).itemsize


def _check_growth(views: Iterable[TensorView], size: int, max_bytes: int) -> None:
    """Strides of zero and shared storages let a small file describe huge tensors."""
    total = sum(math.prod(view.shape) * np.dtype(_result_type(view)).itemsize for view in views)
    limit = min(max_bytes, MAX_GROWTH * size)
    if total > limit:
        raise AuditError(
            f"its tensors would take {total:,} bytes of memory; expected at most {limit:,} from a "
            f"file of {size:,}. Save the tensors without expanded views"
        )


def _result_type(view: TensorView) -> str:
    return "float32" if view.storage.dtype == "bfloat16" else view.storage.dtype


def _arrays(
    file: BinaryIO, checkpoint: _Checkpoint, views: Mapping[str, TensorView]
) -> dict[str, np.ndarray]:
    """Copies the views out of their storages; one storage is in memory at a time."""
    names: dict[str, list[str]] = {}
    for name, view in views.items():
        names.setdefault(view.storage.key, []).append(name)
    arrays: dict[str, np.ndarray] = {}
    for key, group in names.items():
        data = read_span(file, checkpoint.spans[key], f"storage {key}")
        arrays |= {name: _array(data, views[name]) for name in group}
    return {name: arrays[name] for name in views}


def _array(data: bytes, view: TensorView) -> np.ndarray:
    if 0 in view.shape:
        return np.empty(view.shape, _result_type(view))
    stored = _stored_type(view.storage.dtype)
    strides = tuple(stored.itemsize * stride for stride in view.strides)
    window = np.ndarray(view.shape, stored, data, view.offset * stored.itemsize, strides)
    copy = np.array(window, dtype=stored.newbyteorder("="), order="C")
    if view.storage.dtype == "bfloat16":  # the upper half of a float32
        return np.asarray(copy.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.asarray(copy != 0) if view.storage.dtype == "bool" else copy
