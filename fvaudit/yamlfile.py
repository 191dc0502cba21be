"""Keys and values in YAML files: read, overridden, and checked against a section.

Unknown keys are refused with the nearest known one; nothing in a file is executed. Presets are
plain configs that ship with the package.
"""

import difflib
import importlib.resources
import pathlib
import reprlib
import typing
from collections.abc import Sequence
from typing import Any

import pydantic
import yaml

from fvaudit import yamltext
from fvaudit.records import AuditError


class Section(pydantic.BaseModel):
    """Keys and values; unknown keys are refused."""

    verb: typing.ClassVar[str] = "run"  # of the command line, that reads such a file

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


_Valid = typing.TypeVar("_Valid", bound=Section)


def read_yaml(path: pathlib.Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Keys and values of a YAML file with `a.b=c` overrides applied; nothing is checked.

    Raises:
        AuditError: if there is no such file or it is not YAML.
    """
    return overridden(parsed(_read(path, presets()), str(path)), overrides)


def overridden(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Applies `a.b=c` overrides in place.

    Raises:
        AuditError: if one has another form or names no entry of a list.
    """
    for override in overrides:
        _override(data, override)
    return data


def presets(verb: str = "run") -> dict[str, Any]:
    """Names of the packaged configs of a verb and where they are."""
    folder = importlib.resources.files("fvaudit") / "presets" / verb
    files = sorted(folder.iterdir(), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f for f in files if f.name.endswith(".yaml")}


def whole(path: str, folder: pathlib.Path) -> pathlib.Path:
    """A path in a file of a folder: it counts from there, and ~ is the user's own."""
    return (folder / pathlib.Path(path).expanduser()).resolve()


def validated(section: type[_Valid], data: Any, source: str) -> _Valid:
    """Checks what was read against a section.

    Raises:
        AuditError: with one line per problem; an unknown key is named with the nearest known one.
    """
    try:
        return section.model_validate(data)
    except pydantic.ValidationError as error:
        raise AuditError(
            f"{source} is not a valid config:\n{problems(error, section)}\n"
            f"`fvaudit schema {section.verb}` prints all keys."
        ) from None


def parsed(text: str, source: str) -> dict[str, Any]:
    """Keys and values of a YAML text.

    Raises:
        AuditError: if it is not YAML, or no keys and values.
    """
    try:
        data = yamltext.load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise AuditError(f"{source} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise AuditError(
            f"{source} must hold keys and values (model: ..., images: ...), got "
            f"{type(data).__name__}."
        )
    return data


def problems(error: pydantic.ValidationError, section: type[Section], at: str = "") -> str:
    """What is wrong with `section`, a line each; keys begin with `at`."""
    return "\n".join(f"  {at}{_problem(each, section)}" for each in error.errors())


def _read(path: pathlib.Path, known: dict[str, Any]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AuditError(
            f"There is no config file {path}. Give a YAML file or one of the presets: "
            f"{', '.join(known)}. `fvaudit init` writes a commented one to start from."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"The config file {path} cannot be read: {error}.") from None


def _override(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise AuditError(f"--set takes key=value, for example engine.steps=64; got {text!r}.")
    *parents, last = key.split(".")
    node: Any = data
    for part in parents:
        node = _child(node, part, text)
    _assign(node, last, parsed(f"value: {value}", text)["value"], text)


def _child(node: Any, part: str, text: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, part, text)]
    if not isinstance(node.get(part), dict | list):
        node[part] = {}
    return node[part]


def _assign(node: Any, part: str, value: Any, text: str) -> None:
    if isinstance(node, list):
        node[_position(node, part, text)] = value
    else:
        node[part] = value


def _position(node: list[Any], part: str, text: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise AuditError(
            f"--set {text}: {part!r} does not number an entry of a list of {len(node)}; "
            f"entries are 0 to {len(node) - 1}."
        )
    return int(part)


def _problem(error: Any, section: type[Section]) -> str:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(
            str(error["loc"][-1]), _keys_beside(error["loc"], section), n=1
        )
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}: there is no such key{hint}"
    if error["type"] == "missing":
        return f"{where}: this key is missing"
    got = f", got {_short(error['input'])}"
    if error["type"] == "model_type":
        keys = ", ".join(_keys_beside((*error["loc"], ""), section))
        return f"{where or 'config'}: expected keys and values, of {keys}{got}"
    if error["type"].startswith("union_tag"):
        kinds = [k for k in map(_kind, _sections_at(error["loc"], section)) if k]
        return f"{where}: expected a `kind`, one of {', '.join(kinds)}{got}"
    return f"{where or 'config'}: {error['msg'].removeprefix('Value error, ')}{got}"


def _short(value: Any) -> str:
    """What was given, however large: a YAML text can name one list many times within another."""
    brief = reprlib.Repr()
    brief.maxlevel = 3
    brief.maxstring = brief.maxother = 200
    return brief.repr(value)


def _keys_beside(location: tuple[Any, ...], section: Any) -> list[str]:
    """The keys that are allowed where an unknown one stood."""
    there = _sections_at(location[:-1], section)
    return list(dict.fromkeys(key for s in there for key in s.model_fields))


def _sections_at(location: tuple[Any, ...], section: Any) -> list[type[Section]]:
    there = [section]
    for part in location:
        named = [s for s in there if part == _kind(s)]  # sections of a union are told apart so
        fields = [s.model_fields[part] for s in there if part in s.model_fields]
        inner = [s for field in fields for s in _sections_of(field.annotation)]
        there = named or inner or there
    return there


def _kind(section: type[Section]) -> Any:
    field = section.model_fields.get("kind")
    return field and typing.get_args(field.annotation)[0]


def _sections_of(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [s for a in getattr(annotation, "__args__", ()) for s in _sections_of(a)]
