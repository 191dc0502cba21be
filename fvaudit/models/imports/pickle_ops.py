"""Pickles as data: an interpreter for the few opcodes that describe tensors.

A pickle is a program for a stack machine, and Python's unpickler lets that program call anything.
Here it may build only None, booleans, numbers, strings, tuples, lists and dicts, and use only the
globals that the caller lists, which stand for functions of our own. Nothing is imported and no
method of a foreign object runs: what is neither on that list nor in `_OPCODES` is refused by name.

Every opcode adds at most one entry to the stack and one to the memo, and no opcode's work grows
with an object that it fetched from the memo (dict keys are limited, since comparing long ones or
colliding ones could). So the limits on bytes and opcodes bound time and memory.

Source: the opcodes' documentation in CPython's `pickletools`.
"""

import dataclasses
import io
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from fvaudit.records import AuditError


MAX_OPCODES = 1_000_000  # a checkpoint has about 35 a tensor
MAX_MARKS = 64  # containers that are open at once
MAX_KEY_CHARS = 1_000
MAX_KEY = 2**31  # magnitude of an integer key


@dataclasses.dataclass(frozen=True)
class Call:
    """A global that a pickle may call."""

    build: Callable[[tuple], Any]  # from the tuple of arguments


Globals = Mapping[tuple[str, str], Any]  # (module, name) -> what stands for it


@dataclasses.dataclass(frozen=True)
class _Machine:
    names: Globals
    persistent: Callable[[Any], Any]
    stack: list = dataclasses.field(default_factory=list)
    marks: list[int] = dataclasses.field(default_factory=list)  # stack heights
    memo: dict[int, Any] = dataclasses.field(default_factory=dict)


def interpret(stream: io.BytesIO, names: Globals, persistent: Callable[[Any], Any]) -> Any:
    """Interprets one pickle and leaves the stream just behind it.

    Args:
        stream: stands at the pickle's first byte; its length bounds every argument.
        names: the globals that the pickle may name; a `Call` among them it may call.
        persistent: what stands for a persistent id, from that id.

    Returns:
        None, bool, int, float, str, tuple, list, dict and what `names` and `persistent` give,
        nested and possibly cyclic.

    Raises:
        AuditError: if the pickle needs anything else, is damaged, or passes a limit above.
    """
    machine = _Machine(names, persistent)
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
        damaged("it ends with unused values on the stack")
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
                f"its pickle is damaged or cut short ({shown(str(error))}). Fetch or save it again"
            ) from None
        yield opcode.name, argument


def _refuse_opcode(name: str, argument: Any) -> NoReturn:
    if name == "INST":  # carries the name of a class
        refuse(".".join(argument.split(" ", 1)))
    refuse(f"the pickle opcode {name}")


def refuse(what: str) -> NoReturn:
    """Raises the error for something that no tensor needs."""
    raise AuditError(
        f"holds {shown(what)}, which is not needed to rebuild tensors; expected a state dict "
        "alone. Save it with torch.save(model.state_dict(), path)"
    )


def damaged(what: str) -> NoReturn:
    """Raises the error for a pickle that contradicts itself."""
    raise AuditError(f"its pickle is damaged: {what}. Fetch or save the file again")


def kind(value: Any) -> str:
    """The type of a value, for an error message."""
    return type(value).__name__


# --- the stack


def _pop(machine: _Machine) -> Any:
    if len(machine.stack) <= (machine.marks[-1] if machine.marks else 0):
        damaged("an opcode finds too few values on the stack")
    return machine.stack.pop()


def _pop_mark(machine: _Machine) -> list:
    if not machine.marks:
        damaged("an opcode finds no mark on the stack")
    start = machine.marks.pop()
    items = machine.stack[start:]
    del machine.stack[start:]
    return items


def _top(machine: _Machine, needed: type) -> Any:
    value = _pop(machine)
    if not isinstance(value, needed):
        damaged(f"an opcode finds {kind(value)} where it needs {needed.__name__}")
    machine.stack.append(value)
    return value


# --- opcodes: (machine, argument) -> None


def _nothing(machine: _Machine, argument: Any) -> None:
    del machine, argument


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(value)


def _argument(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _mark(machine: _Machine, _: Any) -> None:
    if len(machine.marks) == MAX_MARKS:
        damaged(f"more than {MAX_MARKS} nested containers are open at once")
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
        damaged("a dict has a key without a value")
    target = _top(machine, dict)
    for key, value in zip(values[::2], values[1::2], strict=True):
        _set(target, key, value)


def _set(target: dict, key: Any, value: Any) -> None:
    match key:
        case str() if len(key) <= MAX_KEY_CHARS:
            target[key] = value
        case int() if abs(key) <= MAX_KEY:
            target[key] = value
        case _:  # a deep tuple, say, could exhaust the C stack when hashed
            damaged(
                f"a dict has a key of type {kind(key)}; expected a string of up to "
                f"{MAX_KEY_CHARS} characters or a 32-bit integer"
            )


def _put(machine: _Machine, index: int) -> None:
    value = _pop(machine)
    machine.stack.append(value)
    machine.memo[index] = value


def _memoize(machine: _Machine, _: Any) -> None:
    _put(machine, len(machine.memo))


def _get(machine: _Machine, index: int) -> None:
    if index not in machine.memo:
        damaged(f"memo entry {index} is read before it is written")
    machine.stack.append(machine.memo[index])


def _global(machine: _Machine, argument: str) -> None:
    module, name = argument.split(" ", 1)
    _push_global(machine, module, name)


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = _pop(machine), _pop(machine)
    if not isinstance(name, str) or not isinstance(module, str):
        damaged("a global's name is not a string")
    _push_global(machine, module, name)


def _push_global(machine: _Machine, module: str, name: str) -> None:
    found = machine.names.get((module, name))
    if found is None:
        refuse(f"{module}.{name}")
    machine.stack.append(found)


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = _pop(machine), _pop(machine)
    if not isinstance(function, Call) or not isinstance(arguments, tuple):
        refuse(f"a call of {kind(function)} with {kind(arguments)}")
    machine.stack.append(function.build(arguments))


def _build(machine: _Machine, _: Any) -> None:
    # A state dict is an OrderedDict with an attribute `_metadata`, which no tensor needs
    state = _pop(machine)
    target = _pop(machine)
    if not isinstance(target, OrderedDict) or not isinstance(state, dict):
        refuse(f"attributes of {kind(target)}")
    machine.stack.append(target)


def _persistent(machine: _Machine, _: Any) -> None:
    machine.stack.append(machine.persistent(_pop(machine)))


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
