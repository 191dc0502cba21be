"""An .onnx file as a `ModelProto` whose tensors are all inside it and have the sizes they claim.

The file is foreign. Its size is looked at before it is read; tensors kept in other files must lie
in its own folder (no absolute path, no "..", no symbolic link) and be as long as their shape says,
which is decided before a byte of them is read. Local functions are inlined once their expansion is
known to be finite and small. Nothing in the file is executed.

Source: https://onnx.ai/onnx/repo-docs/IR.html and ExternalData.md, ONNX, Apache-2.0.
"""

import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from fvaudit.models.imports.pickle_ops import shown
from fvaudit.records import AuditError


MOST_BYTES = 2**31 - 1  # of a file, and of all tensors outside it: what a protobuf message can hold
MOST_NODES = 200_000  # after inlining; the largest vision networks have some ten thousand
_DEPTH = 24  # of graphs inside nodes of graphs


def read_proto(path: str | os.PathLike) -> Any:
    """Reads an .onnx file, its external tensors included.

    Args:
        path: of the file.

    Returns:
        An `onnx.ModelProto` without external tensors and local functions.

    Raises:
        AuditError: if the package onnx is missing, the file cannot be read, is too large or
            damaged, an external tensor lies outside the file's folder or has another size than its
            shape says, or local functions call themselves.
    """
    onnx = require_onnx()
    where = shown(os.fspath(path))
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(_bytes(pathlib.Path(path), where))
    except AuditError:
        raise
    except Exception as error:  # protobuf's own class depends on its backend
        raise AuditError(
            f"{where} is no ONNX model: {shown(str(error))}. Expected a file that onnx.save wrote."
        ) from None
    return checked_proto(proto, folder=pathlib.Path(path).parent, where=where)


def checked_proto(
    proto: Any, *, folder: pathlib.Path | None = None, where: str = "The model"
) -> Any:
    """Holds a `ModelProto` against the rules above.

    Args:
        proto: an `onnx.ModelProto`; external tensors are read into it.
        folder: where external tensors may lie; None refuses them.
        where: what to call the model in errors.

    Returns:
        The same message, or another one with its local functions inlined.

    Raises:
        AuditError: as `read_proto` says.
    """
    if not proto.HasField("graph") or not proto.graph.node:
        raise AuditError(f"{where} holds no graph of nodes. Was the file written completely?")
    budget = MOST_BYTES
    for tensor in _tensors(proto, where):
        if tensor.data_location == tensor.EXTERNAL:
            budget -= _embed(tensor, folder, budget, where)
    return _inlined(proto, where) if proto.functions else proto


def text(value: str | bytes) -> str:
    """A name of the file; protobuf gives bytes where they are no UTF-8."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def require_onnx() -> Any:
    """The package onnx.

    Raises:
        AuditError: if it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise AuditError(
            "Reading ONNX models needs the package onnx. Run: pip install 'fvaudit[onnx]'"
        ) from None
    return onnx


def _bytes(path: pathlib.Path, where: str) -> bytes:
    try:
        if not path.is_file():  # opening a pipe would wait
            raise AuditError(f"Cannot read {where}: there is no such file, or no regular one.")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise AuditError(
                f"{where} has {size} bytes; an ONNX file has at most {MOST_BYTES}. Save its "
                "tensors as external data."
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, AuditError):
            raise
        raise AuditError(f"Cannot read {where}: {shown(str(error))}.") from None


def _tensors(proto: Any, where: str) -> Iterator[Any]:
    """Every tensor of the model that may lie outside: initializers and attributes, at any depth."""
    nodes = [(node, 0) for function in proto.functions for node in function.node]
    graphs = [(proto.graph, 0)]
    while graphs or nodes:
        if graphs:
            graph, depth = graphs.pop()
            yield from graph.initializer
            nodes += [(node, depth) for node in graph.node]
            continue
        node, depth = nodes.pop()
        if depth > _DEPTH:
            raise AuditError(f"{where} nests graphs more than {_DEPTH} deep.")
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            graphs += [(attribute.g, depth + 1)] if attribute.HasField("g") else []
            graphs += [(graph, depth + 1) for graph in attribute.graphs]


def _embed(tensor: Any, folder: pathlib.Path | None, budget: int, where: str) -> int:
    """Reads one external tensor into the message; its number of bytes."""
    name = shown(text(tensor.name))
    facts = {text(entry.key): text(entry.value) for entry in tensor.external_data}
    path = _inside(folder, facts.get("location", ""), name, where)
    size = tensor_bytes(tensor)
    try:
        offset, length = int(facts.get("offset", 0)), int(facts.get("length", size))
    except ValueError:
        raise AuditError(f"Tensor {name} of {where}: offset and length must be numbers.") from None
    available = path.stat().st_size - offset
    if offset < 0 or length != size or available < size or size > budget:
        raise AuditError(
            f"Tensor {name} of {where} needs {size} bytes for its shape {list(tensor.dims)[:8]}, "
            f"and its file {path.name} offers {length} of {available} from byte {offset} on "
            f"({budget} may still be read)."
        )
    with path.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(size)
    del tensor.external_data[:]
    tensor.data_location = tensor.DEFAULT
    return size


def _inside(folder: pathlib.Path | None, location: str, name: str, where: str) -> pathlib.Path:
    """The file of an external tensor, if it may be read."""
    parts = pathlib.PurePosixPath(location.replace("\\", "/"))
    refused = (
        "it is kept in another file, and the model has no folder"
        if folder is None
        else "its location is empty"
        if not location or "\0" in location
        else "its location is absolute"
        if parts.is_absolute() or pathlib.PureWindowsPath(location).drive
        else "its location leaves the model's folder"
        if ".." in parts.parts
        else ""
    )
    if refused or folder is None:
        raise AuditError(f"Tensor {name} of {where} cannot be read: {refused}.")
    path = folder
    for part in parts.parts:
        path = path / part
        if path.is_symlink():
            raise AuditError(f"Tensor {name} of {where} cannot be read: {part!r} is a link.")
    try:
        regular = path.is_file()
    except OSError:  # a name too long
        regular = False
    if not regular:
        raise AuditError(
            f"Tensor {name} of {where} is kept in {shown(text(location))}, which is not there. "
            "Put it beside the .onnx file."
        )
    return path


_BITS = {  # by TensorProto.DataType
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64,
    15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip


def tensor_bytes(tensor: Any) -> int:
    """How many bytes a tensor's type and shape need.

    Raises:
        AuditError: if the type is not known or holds texts, or the shape is negative or too large.
    """
    name, dims = shown(text(tensor.name)), list(tensor.dims)
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        raise AuditError(f"Tensor {name} has type {tensor.data_type}; expected numbers or bools.")
    size = -(-math.prod(dims) * bits // 8)
    if any(d < 0 for d in dims) or len(dims) > 32 or size > MOST_BYTES:
        raise AuditError(
            f"Tensor {name} has shape {dims[:8]}; expected at most {MOST_BYTES} bytes."
        )
    return size


def _inlined(proto: Any, where: str) -> Any:
    import onnx.inliner

    sizes: dict[Any, int] = {}
    bodies = {(f.domain, f.name, getattr(f, "overload", "")): f for f in proto.functions}
    total = sum(_expansion(node, bodies, sizes, (), where) for node in proto.graph.node)
    if total > MOST_NODES:
        raise AuditError(f"{where} has more than {MOST_NODES} nodes once functions are inlined.")
    try:
        return onnx.inliner.inline_local_functions(proto)
    except Exception as error:  # the inliner's own classes
        raise AuditError(f"{where}: its functions cannot be inlined: {shown(str(error))}") from None


def _expansion(node: Any, bodies: Any, sizes: Any, callers: tuple, where: str) -> int:
    """Nodes that one node becomes."""
    key = (node.domain, node.op_type, getattr(node, "overload", ""))
    inner = [n for a in node.attribute for g in (a.g, *a.graphs) for n in g.node]
    below = sum(_expansion(n, bodies, sizes, callers, where) for n in inner)
    if key not in bodies:
        return 1 + below
    if key in callers or len(callers) > _DEPTH:
        raise AuditError(
            f"{where}: function {shown(text(node.op_type))} calls itself, or too deep."
        )
    if key not in sizes:
        body = bodies[key].node
        sizes[key] = sum(_expansion(n, bodies, sizes, (*callers, key), where) for n in body)
    return sizes[key] + below
