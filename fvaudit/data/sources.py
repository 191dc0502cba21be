"""Where image files come from: a folder or a zip, plain or with a folder per class.

A source is a sorted list of entries whose bytes are read on demand; nothing is extracted to disk.
"""

import os
import pathlib
import stat
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fvaudit.data.decode import BadImage
from fvaudit.records import AuditError


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
MAX_BYTES = 64 * 2**20  # of one file
MAX_ENTRIES = 2_000_000  # of a zip
MAX_RATIO = 200  # of a zip's compression; photographs do not compress


class Entry(NamedTuple):
    """One image file."""

    name: str  # path inside the source, with forward slashes
    folder: str  # its class folder, or "" at the top
    read: Callable[[], bytes]  # raises BadImage


def folder_entries(root: pathlib.Path) -> list[Entry]:
    """Image files below a folder, one level of class folders deep; links to folders are followed.

    Raises:
        AuditError: if one folder is there under two names.
    """
    files = [p.relative_to(root).parts for p in sorted(_files(root, (), {}))]
    return [_entry(parts, _reader(root.joinpath(*parts))) for parts in files if _is_image(parts)]


def _files(
    folder: pathlib.Path, above: tuple[str, ...], seen: dict[str, pathlib.Path]
) -> Iterator[pathlib.Path]:
    """Everything below that is no folder; a link to a folder that it lies in leads nowhere."""
    here = os.path.realpath(folder)
    if here in above:
        return
    if here in seen:
        raise AuditError(
            f"{folder} and {seen[here]} are one folder, by a link: its images would count twice. "
            "Remove one of the two."
        )
    seen[here] = folder
    for path in folder.iterdir():
        if not path.is_dir():
            yield path
        elif not _is_hidden(path.name):
            yield from _files(path, (*above, here), seen)


def zip_entries(path: pathlib.Path) -> list[Entry]:
    """Image files in a zip.

    Raises:
        AuditError: if it is not a zip, or an implausibly large one.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise AuditError(f"{path} is not a readable zip file ({error}).") from None
    members = archive.infolist()
    if len(members) > MAX_ENTRIES:
        raise AuditError(f"{path} lists {len(members)} entries; at most {MAX_ENTRIES} are read.")
    chosen = [m for m in members if not m.is_dir() and _is_image(_parts(m.filename))]
    chosen.sort(key=lambda m: m.filename)
    # One folder around everything is how zips are commonly made; it is not a class.
    tops = {_parts(m.filename)[0] for m in chosen}
    deep = chosen and all(len(_parts(m.filename)) > 2 for m in chosen)
    skip = 1 if len(tops) == 1 and (deep or _only_folder(chosen)) else 0
    return [_entry(_parts(m.filename)[skip:], _member_reader(archive, m)) for m in chosen]


def _only_folder(chosen: list[zipfile.ZipInfo]) -> bool:
    return all(len(_parts(m.filename)) == 2 for m in chosen)


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _is_image(parts: tuple[str, ...]) -> bool:
    hidden = any(map(_is_hidden, parts))
    return bool(parts) and not hidden and parts[-1].lower().endswith(SUFFIXES)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _entry(parts: tuple[str, ...], read: Callable[[], bytes]) -> Entry:
    spoken = [_text(part) for part in parts]
    return Entry("/".join(spoken), spoken[0] if len(spoken) > 1 else "", read)


def _text(name: str) -> str:
    r"""Names on disk are bytes; what is no UTF-8 among them is written out: caf\xe9.jpg."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _reader(path: pathlib.Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise BadImage("it is no ordinary file")  # reading a pipe would never end
            if found.st_size > MAX_BYTES:
                raise BadImage(f"{found.st_size} bytes are more than {MAX_BYTES}")
            return path.read_bytes()
        except OSError as error:
            raise BadImage(f"cannot be read ({error.strerror})") from None

    return read


def _member_reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        if member.file_size > MAX_BYTES:
            raise BadImage(f"{member.file_size} bytes are more than {MAX_BYTES}")
        if member.file_size > MAX_RATIO * max(member.compress_size, 1):
            raise BadImage("it is compressed more than any photograph can be")
        try:
            with archive.open(member) as file:
                return file.read(member.file_size)
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError,
                EOFError) as error:  # fmt: skip
            raise BadImage(f"cannot be read from the zip ({error})") from None

    return read
