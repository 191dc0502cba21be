"""Pickles as data: an interpreter for the few opcodes that describe tensors.

A pickle is a program for a stack machine, and Python's unpickler lets that program call anything.
Here it may build only None, booleans, numbers, strings, tuples, lists and dicts, and call only the
entries of `_GLOBALS`, which make records of our own. Nothing is imported and no method of a
foreign object runs: whatever is not on the two lists, `_OPCODES` and `_GLOBALS`, is refused by
name.

Every opcode adds at most one entry to the stack and one to the memo, and no opcode's work depends
on the size of an object that it fetched from the memo. So the limits on bytes and opcodes bound
time and memory.

Source: the opcodes' documentation in CPython's `pickletools`.
"""

import dataclasses
import io
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from fvaudit.records import AuditError


MAX_OPCODES = 1_000_000  # a checkpoint has about 35 a tensor
MAX_MARKS = 64  # containers that are open at once
MAX_AXES = 32
MAX_COUNT = 2**48  # elements of one axis, stride, offset or storage


@dataclasses.dataclass(frozen=True)
class Storage:
    """A flat run of numbers, whose bytes stand elsewhere in the file."""

    key: str  # names the bytes within the file
    dtype: str  # "float32", "bfloat16", ...
    count: int  # elements


@dataclasses.dataclass(frozen=True)
class TensorView:
    """A strided view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # as many as `shape`, none negative


@dataclasses.dataclass(frozen=True)
class _StorageType:
    dtype: str


@dataclasses.dataclass(frozen=True)
class _Call:
    build: Callable[[tuple], Any]  # from the tuple of arguments


@dataclasses.dataclass(frozen=True)
class _Machine:
    stack: list = dataclasses.field(default_factory=list)
    marks: list[int] = dataclasses.field(default_factory=list)  # stack heights
    memo: dict[int, Any] = dataclasses.field(default_factory=dict)
    storages: dict[str, Storage] = dataclasses.field(default_factory=dict)


def interpret(stream: io.BytesIO) -> Any:
    """Interprets one pickle and leaves the stream just behind it.

    Args:
        stream: stands at the pickle's first byte; its length bounds every argument.

    Returns:
        None, bool, int, float, str, tuple, list, dict, `Storage` or `TensorView`, nested and
        possibly cyclic.

    Raises:
        AuditError: if the pickle needs anything else, is damaged, or passes a limit above.
    """
    machine = _Machine()
    for count, (name, argument) in enumerate(_opcodes(stream), start=1):
        if count > MAX_OPCODES:
            raise AuditError(f"its pickle has more than {MAX_OPCODES:,} opcodes; expected fewer")
        if name == "STOP":
            break
        if name not in _OPCODES:
            _refuse_opcode(name, argument)
        _OPCODES[name](machine, argument)
    value = _pop(machine)
    if machine.stack or machine.marks:
        raise AuditError("its pickle is damaged: it ends with unused values on the stack")
    return value


def shown(text: str) -> str:
    """A foreign string for an error message: printable, and at most 80 characters."""
    text = text[:81]
    safe = text if text.isprintable() else ascii(text)
    return safe if len(safe) <= 80 else safe[:77] + "..."


def _opcodes(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    tokens = pickletools.genops(stream)
    while True:
        try:
            opcode, argument, _ = next(tokens)
        # Malformed arguments; a bad escape in a string literal is a Warning, if those are errors
        except (ValueError, Warning) as error:
            raise AuditError(
                f"its pickle is damaged or cut short: {shown(str(error))}"
            ) from None
        yield opcode.name, argument


def _refuse_opcode(name: str, argument: Any) -> NoReturn:
    if name == "INST":  # carries the name of a class
        _refuse(".".join(argument.split(" ", 1)))
    _refuse(f"the pickle opcode {name}")


def _refuse(what: str) -> NoReturn:
    raise AuditError(
        f"holds {shown(what)}, which is not needed to rebuild tensors; expected a state dict "
        "alone. Save it with torch.save(model.state_dict(), path), or use another format"
    )


def _damaged(what: str) -> NoReturn:
    raise AuditError(f"its pickle is damaged: {what}")


# --- the stack


def _pop(machine: _Machine) -> Any:
    if len(machine.stack) <= (machine.marks[-1] if machine.marks else 0):
        _damaged("an opcode finds too few values on the stack")
    return machine.stack.pop()


def _pop_mark(machine: _Machine) -> list:
    if not machine.marks:
        _damaged("an opcode finds no mark on the stack")
    start = machine.marks.pop()
    items = machine.stack[start:]
    del machine.stack[start:]
    return items


def _top(machine: _Machine, kind: type) -> Any:
    value = _pop(machine)
    if not isinstance(value, kind):
        _damaged(f"an opcode finds {_kind(value)} where it needs {kind.__name__}")
    machine.stack.append(value)
    return value


def _kind(value: Any) -> str:
    return type(value).__name__.lstrip("_")


# --- opcodes: (machine, argument) -> None


def _nothing(machine: _Machine, argument: Any) -> None:
    del machine, argument


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(value)


def _argument(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _mark(machine: _Machine, _: Any) -> None:
    if len(machine.marks) == MAX_MARKS:
        _damaged(f"more than {MAX_MARKS} nested containers are open at once")
    machine.marks.append(len(machine.stack))


def _tuple_of(length: int) -> Callable[[_Machine, Any], None]:
    def build(machine: _Machine, _: Any) -> None:
        values = [_pop(machine) for _ in range(length)]
        machine.stack.append(tuple(reversed(values)))

    return build


def _tuple(machine: _Machine, _: Any) -> None:
    machine.stack.append(tuple(_pop_mark(machine)))


def _append(machine: _Machine, _: Any) -> None:
    value = _pop(machine)
    _top(machine, list).append(value)


def _appends(machine: _Machine, _: Any) -> None:
    values = _pop_mark(machine)
    _top(machine, list).extend(values)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = _pop(machine), _pop(machine)
    _set(_top(machine, dict), key, value)


def _set_items(machine: _Machine, _: Any) -> None:
    values = _pop_mark(machine)
    if len(values) % 2:
        _damaged("a dict has a key without a value")
    target = _top(machine, dict)
    for key, value in zip(values[::2], values[1::2], strict=True):
        _set(target, key, value)


def _set(target: dict, key: Any, value: Any) -> None:
    if not isinstance(key, str | int):  # a deep tuple could exhaust the C stack when hashed
        _damaged(f"a dict has a key of type {_kind(key)}, expected str or int")
    target[key] = value


def _put(machine: _Machine, index: int) -> None:
    value = _pop(machine)
    machine.stack.append(value)
    machine.memo[index] = value


def _memoize(machine: _Machine, _: Any) -> None:
    _put(machine, len(machine.memo))


def _get(machine: _Machine, index: int) -> None:
    if index not in machine.memo:
        _damaged(f"memo entry {index} is read before it is written")
    machine.stack.append(machine.memo[index])


def _global(machine: _Machine, argument: str) -> None:
    module, name = argument.split(" ", 1)
    _push_global(machine, module, name)


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = _pop(machine), _pop(machine)
    if not isinstance(name, str) or not isinstance(module, str):
        _damaged("a global's name is not a string")
    _push_global(machine, module, name)


def _push_global(machine: _Machine, module: str, name: str) -> None:
    found = _GLOBALS.get((module, name))
    if found is None:
        _refuse(f"{module}.{name}")
    machine.stack.append(found)


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = _pop(machine), _pop(machine)
    if not isinstance(function, _Call) or not isinstance(arguments, tuple):
        _refuse(f"a call of {_kind(function)} with {_kind(arguments)}")
    machine.stack.append(function.build(arguments))


def _build(machine: _Machine, _: Any) -> None:
    # A state dict is an OrderedDict with an attribute `_metadata`, which no tensor needs
    state = _pop(machine)
    target = _pop(machine)
    if not isinstance(target, OrderedDict) or not isinstance(state, dict):
        _refuse(f"attributes of {_kind(target)}")
    machine.stack.append(target)


def _persistent(machine: _Machine, _: Any) -> None:
    match _pop(machine):
        case (
            ("storage", _StorageType() as kind, str(key), str(), int(count))
            | ("storage", _StorageType() as kind, str(key), str(), int(count), None)
        ) if _is_count(count):
            storage = Storage(key, kind.dtype, count)
        case (str(tag), *_) if tag != "storage":
            _refuse(f"a reference to {tag!r}")
        case _:
            _damaged("a storage reference has another form than (tag, type, key, device, count)")
    if machine.storages.setdefault(key, storage) != storage:
        _damaged(f"storage {shown(key)} is declared twice, with another type or count")
    machine.stack.append(storage)


# --- what REDUCE may call


def _ordered_dict(arguments: tuple) -> OrderedDict:
    if arguments:
        _refuse("an OrderedDict with constructor arguments")
    return OrderedDict()


def _tensor(arguments: tuple) -> TensorView:
    match arguments:
        # Behind shape and strides: requires_grad, backward hooks, and since PyTorch 2 metadata
        # (conjugate and negative bits), which would change the values
        case (
            (Storage() as storage, offset, tuple(shape), tuple(strides), bool(), dict())
            | (
                Storage() as storage,
                offset,
                tuple(shape),
                tuple(strides),
                bool(),
                dict(),
                None | {},
            )
        ):
            view = TensorView(storage, offset, shape, strides)
        case _:
            _damaged("a tensor has other arguments than (storage, offset, shape, strides, ...)")
    if len(arguments) == 7 and arguments[6]:
        _refuse("a tensor with metadata, such as a lazy conjugate")
    _check_view(view)
    return view


def _parameter(arguments: tuple) -> TensorView:
    match arguments:
        case (TensorView() as view, bool(), dict()):
            return view
    _damaged("a parameter has other arguments than (tensor, requires_grad, hooks)")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT  # bool is an int too


def _check_view(view: TensorView) -> None:
    if len(view.shape) != len(view.strides) or len(view.shape) > MAX_AXES:
        _damaged(
            f"a tensor has {len(view.shape)} axes and {len(view.strides)} strides; expected equal "
            f"numbers up to {MAX_AXES}"
        )
    if not all(map(_is_count, (view.offset, *view.shape, *view.strides))):
        _damaged("a tensor's offset, shape or strides are negative, huge or no integers")
    steps = ((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    # An empty tensor reads nothing; any other reads up to its last element
    end = view.offset if 0 in view.shape else view.offset + sum(steps) + 1
    if end > view.storage.count:
        _damaged(
            f"a tensor reaches up to element {end} of storage {shown(view.storage.key)}, which has "
            f"{view.storage.count}"
        )


_DTYPES = {
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

_GLOBALS: dict[tuple[str, str], _Call | _StorageType] = {
    ("collections", "OrderedDict"): _Call(_ordered_dict),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(_parameter),
    **{("torch", f"{name}Storage"): _StorageType(dtype) for name, dtype in _DTYPES.items()},
}

# Those that pickle protocols 2 to 5 write for the allowed values. Not among them: text opcodes of
# protocol 0, bytes, sets, POP and DUP, and all that makes objects (INST, OBJ, NEWOBJ, EXT)
_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _nothing,
    "FRAME": _nothing,
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "BININT": _argument,
    "BININT1": _argument,
    "BININT2": _argument,
    "LONG1": _argument,
    "BINFLOAT": _argument,
    "SHORT_BINUNICODE": _argument,
    "BINUNICODE": _argument,
    "BINUNICODE8": _argument,
    "MARK": _mark,
    "EMPTY_TUPLE": _tuple_of(0),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": _tuple,
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "APPEND": _append,
    "APPENDS": _appends,
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _memoize,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
