"""Where the members of an uncompressed zip archive lie, without unpacking anything.

A member that is stored, not compressed, is a plain run of bytes of the file, so that its size
cannot exceed the file's. All other kinds of member are refused. The directory at the archive's end
is read by our own few lines, since `zipfile` reads one of any size and raises many kinds of error.

Source: APPNOTE.TXT 6.3 (PKWARE), sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to
4.3.16 (its end), 4.5.3 (64-bit sizes).
"""

import dataclasses
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from fvaudit.models.imports.pickle_ops import shown
from fvaudit.records import AuditError


MAX_DIRECTORY_BYTES = 16 * 2**20  # about 200,000 members

_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_FULL = 0xFFFFFFFF  # in a 32-bit field: the value stands in a 64-bit field elsewhere
_ENCRYPTED = 0x1


@dataclasses.dataclass(frozen=True)
class Span:
    """A run of bytes of a file."""

    start: int  # of the first byte
    size: int  # bytes
    crc: int | None = None  # CRC-32 of the bytes; None if the file keeps none


def stored_members(file: BinaryIO, file_bytes: int) -> dict[str, Span]:
    """Finds the members of an archive whose members are all stored uncompressed.

    Raises:
        AuditError: if the archive is damaged, its directory passes 16 MiB, or a member is
            compressed, encrypted, listed twice or not within the file.
    """
    members: dict[str, Span] = {}
    for name, header, size, crc in _entries(_directory(file, file_bytes)):
        if name in members:
            raise AuditError(f"its zip archive lists {shown(name)} twice; expected each name once")
        start = _data_start(file, header, name)
        if start + size > file_bytes:
            raise AuditError(
                f"{shown(name)} would end at byte {start + size:,}, the file ends at "
                f"{file_bytes:,}: it is damaged or cut short. Fetch or save it again"
            )
        members[name] = Span(start, size, crc)
    if sum(span.size for span in members.values()) > file_bytes:
        raise AuditError("its zip members overlap; expected each byte in one member")
    return members


def read_span(file: BinaryIO, span: Span, name: str) -> bytes:
    """The bytes of a span.

    Raises:
        AuditError: if they are not all there, or have another checksum.
    """
    file.seek(span.start)
    data = file.read(span.size)
    if len(data) < span.size:
        raise AuditError(
            f"{shown(name)} needs {span.size:,} bytes, {len(data):,} are there: the file is cut "
            "short. Fetch or save it again"
        )
    if span.crc is not None and zlib.crc32(data) != span.crc:
        raise AuditError(
            f"the checksum of {shown(name)} does not match: the file is damaged, or was saved with "
            "torch.serialization.set_crc32_options(False). Fetch or save it again"
        )
    return data


def _directory(file: BinaryIO, file_bytes: int) -> bytes:
    end_at = file_bytes - _END.size
    if end_at < 0:
        _cut_short()
    end = _END.unpack(read_span(file, Span(end_at, _END.size), "the zip directory's end"))
    size, start = end[5], end[6]
    if end[0] != b"PK\5\6":
        _cut_short()
    if _FULL in (size, start) or end[4] == 0xFFFF:
        size, start = _directory64(file, end_at - _LOCATOR.size)
    if size > MAX_DIRECTORY_BYTES:
        raise AuditError(
            f"its zip directory has {size:,} bytes; expected at most {MAX_DIRECTORY_BYTES:,}"
        )
    return read_span(file, Span(start, size), "the zip directory")


def _directory64(file: BinaryIO, locator_at: int) -> tuple[int, int]:
    if locator_at < 0:
        _cut_short()
    locator = read_span(file, Span(locator_at, _LOCATOR.size), "the zip directory's locator")
    tag, _, end_at, _ = _LOCATOR.unpack(locator)
    if tag != b"PK\6\7" or end_at > locator_at:
        _cut_short()
    end = _END64.unpack(read_span(file, Span(end_at, _END64.size), "the zip directory's end"))
    if end[0] != b"PK\6\6" or end[9] > end_at:
        _cut_short()
    return end[8], end[9]


def _entries(directory: bytes) -> Iterator[tuple[str, int, int, int]]:
    """Yields name, offset of the local header, size and CRC-32 of each member."""
    at = 0
    while at < len(directory):
        if len(directory) - at < _ENTRY.size:
            _cut_short()
        entry = _ENTRY.unpack_from(directory, at)
        name_bytes, extra_bytes, comment_bytes = entry[10:13]
        name_at = at + _ENTRY.size
        extra_at = name_at + name_bytes
        at = extra_at + extra_bytes + comment_bytes
        if entry[0] != b"PK\1\2" or at > len(directory):
            _cut_short()
        name = directory[name_at:extra_at].decode("utf-8", "replace")
        extra = directory[extra_at : extra_at + extra_bytes]
        size, packed, header = _wide((entry[9], entry[8], entry[16]), extra)
        if entry[4] or entry[3] & _ENCRYPTED or packed != size:
            raise AuditError(
                f"{shown(name)} is compressed or encrypted; torch.save stores its members as they "
                "are. Save the file again with torch.save"
            )
        yield name, header, size, entry[7]


def _wide(values: tuple[int, ...], extra: bytes) -> list[int]:
    """Takes the values that do not fit 32 bits from the extra field, where they stand in order."""
    wide = iter(_wide_values(extra))
    return [next(wide, _FULL) if value == _FULL else value for value in values]


def _wide_values(extra: bytes) -> tuple[int, ...]:
    while len(extra) >= 4:
        tag, length = struct.unpack_from("<2H", extra)
        if tag == 1:
            count = len(extra[4 : 4 + length]) // 8
            return struct.unpack_from(f"<{count}Q", extra, 4)
        extra = extra[4 + length :]
    return ()


def _data_start(file: BinaryIO, header_at: int, name: str) -> int:
    if header_at >= 2**63 - 2**32:  # beyond what a file can be positioned at
        _cut_short()
    header = _LOCAL.unpack(read_span(file, Span(header_at, _LOCAL.size), name))
    if header[0] != b"PK\3\4":
        _cut_short()
    return header_at + _LOCAL.size + header[9] + header[10]


def _cut_short() -> NoReturn:
    raise AuditError(
        "its zip directory is missing or damaged: the file is cut short, or was not written by "
        "torch.save. Fetch or save it again"
    )
