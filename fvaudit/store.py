"""The run directory: the unit of resumption.

    manifest.json          schema version, status, hashes of model, config and data, counts
    doctor.json            what the doctor found before the audit, the gravest first
    config.resolved.yaml   every key, defaults included
    env.json  model.json   versions and devices; layers, input spec, weight source
    images/<layer>/<channel>-<repeat>.png   the audited picture, provenance in its text chunks
                          .npz   activation trace and trajectory of the same picture
    exemplars/<hash>.png   thumbnails of the natural images that the report shows
    results.jsonl          append-only, one line per unit
    summary.json  units.parquet  layers.parquet  figures/   derived, rebuilt from results.jsonl
    verdicts.json  report.html  summary.md                  written by `check` and `report`
    log.txt                what happened when: the only file that differs between equal runs
    .lock                  empty; held while a process works here

Every file but the two append-only ones is written beside its place and moved there, so a file
that exists is whole. Killed at any moment, the same command finishes what is missing.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from fvaudit.records import (
    AuditError,
    Finding,
    Headline,
    LayerResult,
    Severity,
    Status,
    UnitResult,
    Verdict,
)


SCHEMA = 1
CONFIG = "config.json"  # of a gate's training or a manipulation
LOCK = ".lock"  # empty; marks a folder as an audit's
_RECORD = typing.TypeVar("_RECORD")


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A run directory, read."""

    folder: pathlib.Path
    manifest: dict[str, Any]
    config: str  # YAML
    environment: dict[str, Any]
    model: dict[str, Any]
    units: tuple[UnitResult, ...]
    layers: tuple[LayerResult, ...]
    headline: Headline | None  # None until the run is complete
    data: dict[str, Any]  # natural images: photographs, skipped, source; features compared
    verdicts: tuple[Verdict, ...]  # empty until `check`
    findings: tuple[Finding, ...] = ()  # of the doctor; empty if it was not asked

    @property
    def complete(self) -> bool:
        """Whether everything was computed, and is still there."""
        whole = len(self.units) == self.manifest.get("units")
        return whole and self.manifest.get("status") == "complete"

    def __repr__(self) -> str:
        found = collections.Counter(v.status.name for v in self.verdicts)
        said = ", ".join(f"{name} {count}" for name, count in found.items()) or "none"
        measured = f"{len(self.units)} of {self.manifest.get('units', '?')} units"
        return f"Run({str(self.folder)!r}, {measured}, verdicts: {said})"


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Reads a run directory, complete or not.

    Raises:
        AuditError: if the folder holds no run, or one of another schema version, or is damaged.
    """
    folder = pathlib.Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise AuditError(
            f"{folder} holds no audit (no manifest.json). `fvaudit run CONFIG --out {folder}` "
            "makes one."
        )
    with _damage_said(folder / "summary.json"):
        summary = _read_json(folder / "summary.json", {})
        layers = tuple(revive(LayerResult, v) for v in summary.get("layers", ()))
        headline = summary.get("headline")
        headline = None if headline is None else revive(Headline, headline)
    with _damage_said(folder / "verdicts.json"):
        verdicts = tuple(revive(Verdict, v) for v in _read_json(folder / "verdicts.json", []))
    run = Run(
        folder=folder,
        manifest=manifest,
        config=_read_text(folder / "config.resolved.yaml"),
        environment=_read_json(folder / "env.json", {}),
        model=_read_json(folder / "model.json", {}),
        units=tuple(read_results(folder)),
        layers=layers,
        headline=headline,
        data=_read_json(folder / "data.json", {}),
        verdicts=verdicts,
        findings=read_findings(folder) or (),
    )
    return run if run.complete else dataclasses.replace(run, headline=None)


def read_findings(folder: pathlib.Path) -> tuple[Finding, ...] | None:
    """What the doctor found, or None where it was not asked yet.

    Raises:
        AuditError: if the file is damaged.
    """
    path = folder / "doctor.json"
    if not path.exists():
        return None
    with _damage_said(path):
        return tuple(revive(Finding, f) for f in _read_json(path, []))


def read_manifest(folder: pathlib.Path) -> dict[str, Any] | None:
    """The manifest, or None where there is no run yet.

    Raises:
        AuditError: if it was written by another schema version.
    """
    if not (folder / "manifest.json").exists():
        return None
    manifest = _read_json(folder / "manifest.json", {})
    if manifest.get("schema") != SCHEMA:
        raise AuditError(
            f"{folder} was written with run-directory schema {manifest.get('schema')}, this "
            f"version reads {SCHEMA}. Run the audit again into another folder."
        )
    return manifest


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Makes this process the only one that works in a run directory; ends with the process.

    Raises:
        AuditError: if another process is at work there, or the folder holds other files.
    """
    if not (folder / LOCK).exists() and folder.is_dir() and any(folder.iterdir()):
        raise AuditError(
            f"{folder} holds files that are not an audit's. Give --out a new or empty folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "ab") as file:
        _take(file, folder)
        for part in folder.rglob(".*.part"):  # what a killed process left
            part.unlink()
        yield


def _take(file: IO[bytes], folder: pathlib.Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such locks on this system: two processes are the user's care
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AuditError(
            f"Another process is working in {folder}. Wait for it, or give another --out."
        ) from None


def exemplar_name(image_id: str) -> str:
    """Where the thumbnail of a natural image lies in the run directory."""
    return f"exemplars/{hashlib.sha256(image_id.encode()).hexdigest()[:16]}.png"


def require_same_config(folder: pathlib.Path, text: str, what: str) -> None:
    """Raises `AuditError` if the folder holds work that began under another config than `text`."""
    kept = folder / CONFIG
    if kept.exists() and _read_text(kept) != text:
        raise AuditError(f"{folder} holds {what} with another config. Choose another folder.")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes records, mappings or sequences; NaN becomes null."""
    write_text(path, json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file in one step."""
    write_bytes(path, encoded(text))


def encoded(text: str) -> bytes:
    r"""As UTF-8; bytes in the name of a file or folder that are none are written as \udc.."""
    return text.encode("utf-8", "backslashreplace")


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file in one step: beside its place, then moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()


def append_result(folder: pathlib.Path, result: UnitResult) -> None:
    """Adds one line to results.jsonl and makes sure that it reaches the disk."""
    line = json.dumps(_plain(result), allow_nan=False) + "\n"
    with open(folder / "results.jsonl", "ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_results(folder: pathlib.Path) -> list[UnitResult]:
    """The whole lines of results.jsonl; a last line that was cut off is left out.

    Raises:
        AuditError: if a line before the last is damaged.
    """
    lines, _ = _whole_lines(folder)
    return [_result(folder, number, line) for number, line in enumerate(lines, 1)]


def drop_partial_line(folder: pathlib.Path) -> None:
    """Cuts off what a killed process left of a line, before the next one is appended."""
    _, size = _whole_lines(folder)
    path = folder / "results.jsonl"
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def _whole_lines(folder: pathlib.Path) -> tuple[list[bytes], int]:
    path = folder / "results.jsonl"
    content = path.read_bytes() if path.exists() else b""
    end = content.rfind(b"\n") + 1
    return content[:end].splitlines(), end


def _result(folder: pathlib.Path, number: int, line: bytes) -> UnitResult:
    with _damage_said(f"{folder / 'results.jsonl'}, line {number}"):
        return revive(UnitResult, json.loads(line))


def _plain(value: Any) -> Any:
    """Records to JSON's types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Status | Severity):
        return value.name
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def revive(kind: type[_RECORD], value: Any) -> _RECORD:
    """JSON's types back to records; null becomes NaN where a number belongs."""
    return _revived(kind, value)


def _revived(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return kind(**{name: _revived(hint, value[name]) for name, hint in _fields(kind)})
    if isinstance(kind, types.UnionType):
        inner = [k for k in typing.get_args(kind) if k is not types.NoneType]
        return None if value is None else _revived(inner[0], value)
    if typing.get_origin(kind) is tuple:
        return tuple(_revived(typing.get_args(kind)[0], v) for v in value)
    if kind in (Status, Severity):
        return kind[value]
    if kind is float:
        return math.nan if value is None else float(value)
    return value


@functools.cache  # reading annotations took most of the time of reading five hundred units
def _fields(kind: type) -> tuple[tuple[str, Any], ...]:
    """Names and types of a record's fields."""
    hints = typing.get_type_hints(kind)
    return tuple((f.name, hints[f.name]) for f in dataclasses.fields(kind))


def _read_json(path: pathlib.Path, default: Any) -> Any:
    """What a file holds, of the default's type; the default if there is none."""
    if not path.exists():
        return default
    with _damage_said(path):
        found = json.loads(path.read_bytes())
        if not isinstance(found, type(default)):
            raise TypeError(f"it holds a {type(found).__name__}, not a {type(default).__name__}")
        return found


def _read_text(path: pathlib.Path) -> str:
    with _damage_said(path):
        return path.read_text(encoding="utf-8") if path.exists() else ""


@contextlib.contextmanager
def _damage_said(what: object) -> Iterator[None]:
    """What reading a file raises that somebody cut off or changed, in words."""
    try:
        yield
    except AuditError:  # said already, of a part of it
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AuditError(
            f"{what} is damaged ({error}). Run the audit again with --fresh."
        ) from None
