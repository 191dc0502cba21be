"""Weight files, mutated by the thousand: only `AuditError`, in bounded time and memory.

Mutants are read in a process of their own, in which nothing may be executed, started, connected to
or written (Python's audit hooks raise), a file that takes ten seconds ends the process, and memory
is watched. Run by hand:  python -m tests.test_fuzz_weights npz 5000 0
"""

import faulthandler
import io
import itertools
import json
import math
import os
import pathlib
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fvaudit.models.weights import TORCH, load, read_weights
from fvaudit.records import AuditError
from tests import test_pth, test_weights


COUNT = 5000  # mutants of each kind
SECONDS = 10  # after which one file counts as a hang
GROWTH = 256 * 2**20  # bytes that reading all of them may add to the process
TOKENS = {  # what these formats give meaning to
    "pickle": [b"cos\nsystem\n", b"cbuiltins\neval\n", b"(", b"t", b"R", b"b", b".", b"\x81",
               b"X\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"h\x00", b"q\x00", b"}", b"2"],
    "safetensors": [b'"F32"', b'"F64"', b'"shape":', b"[", b"]", b"{", b"}", b"9" * 20, b"-1",
                    b"1e999", b"null", b'"data_offsets":[0,18446744073709551615]', b"__metadata__"],
    "npz": [b"'descr'", b"'|O'", b"'<f4'", b"'shape': (", b"99999999999999,", b"True", b"\x93NUMPY",
            b"PK\x01\x02", b"PK\x05\x06", b"__import__('os').system('x')", b"(" * 300, b"9" * 5000],
}  # fmt: skip
EXTREMES = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]


def mutated(data: bytes, tokens: list[bytes], rng: random.Random) -> bytes:
    """One to six changes, half of them where structure is dense: at the first or last bytes."""
    mutant = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        if not mutant:
            break
        span = min(len(mutant), rng.choice((64, 600, len(mutant))))
        at = rng.randrange(span) if rng.random() < 0.5 else len(mutant) - 1 - rng.randrange(span)
        rng.choice(CHANGES)(mutant, at, tokens, rng)
    return bytes(mutant)


def _flip(mutant, at, tokens, rng):
    mutant[at] ^= 1 << rng.randrange(8)


def _replace(mutant, at, tokens, rng):
    mutant[at] = rng.randrange(256)


def _extreme(mutant, at, tokens, rng):
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(EXTREMES) & (2 ** (8 * width) - 1)
    mutant[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _overwrite(mutant, at, tokens, rng):
    token = rng.choice(tokens)
    mutant[at : at + len(token)] = token


def _insert(mutant, at, tokens, rng):
    mutant[at:at] = rng.choice((rng.choice(tokens), rng.randbytes(rng.randint(1, 9))))


def _remove(mutant, at, tokens, rng):
    del mutant[at : at + rng.randint(1, 40)]


def _truncate(mutant, at, tokens, rng):
    del mutant[at:]


def _repeat(mutant, at, tokens, rng):
    piece = mutant[at : at + rng.randint(1, 200)]
    mutant[at:at] = piece * rng.randint(1, 30)


CHANGES = [_flip, _replace, _extreme, _overwrite, _insert, _remove, _truncate, _repeat]


def legacy_files(rng: random.Random) -> Iterator[bytes]:
    """A .pth in PyTorch's old format, then mutants of it."""
    whole = test_pth.small_file(test_pth.legacy)
    yield whole
    while True:
        yield mutated(whole, TOKENS["pickle"], rng)


def zip_files(rng: random.Random) -> Iterator[bytes]:
    """A .pth archive, then mutants of it and archives in good order around a mutated pickle."""
    whole = test_pth.small_file(test_pth.zipped)
    yield whole
    while True:
        yield mutated(whole, TOKENS["pickle"], rng)
        yield _around(whole, TOKENS["pickle"], rng, zipfile.ZIP_STORED)


def safetensors_files(rng: random.Random) -> Iterator[bytes]:
    """A file, then mutants of it and of its header with a length that is true."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "x.safetensors")
        whole = test_weights.save(path, test_weights.TENSORS).read_bytes()
    (length,) = struct.unpack_from("<Q", whole)
    header, data = whole[8 : 8 + length], whole[8 + length :]
    yield whole
    while True:
        yield mutated(whole, TOKENS["safetensors"], rng)
        changed = mutated(header, TOKENS["safetensors"], rng)
        yield struct.pack("<Q", len(changed)) + changed + data


def npz_files(rng: random.Random) -> Iterator[bytes]:
    """An archive, then mutants of it and archives in good order around mutated arrays."""
    file = io.BytesIO()
    np.savez(file, **test_weights.TENSORS)  # pyright: ignore[reportArgumentType]
    yield file.getvalue()
    while True:
        yield mutated(file.getvalue(), TOKENS["npz"], rng)
        method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        yield _around(file.getvalue(), TOKENS["npz"], rng, method)


def _around(whole: bytes, tokens: list[bytes], rng: random.Random, method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as good, zipfile.ZipFile(out, "w", method) as archive:
        chosen = rng.choice(good.namelist()[:3])
        for name in good.namelist():
            data = good.read(name)
            archive.writestr(name, mutated(data, tokens, rng) if name == chosen else data)
    return out.getvalue()


KINDS: dict[str, tuple[str, Callable[[random.Random], Iterator[bytes]]]] = {
    "pth-legacy": (".pth", legacy_files),
    "pth-zip": (".pth", zip_files),
    "safetensors": (".safetensors", safetensors_files),
    "npz": (".npz", npz_files),
}
FORBIDDEN = ("exec", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen",
             "socket.connect", "pickle.find_class", "ctypes.dlopen", "shutil.", "os.remove",
             "os.rename", "os.mkdir", "os.symlink", "import")  # fmt: skip


def read_all(kind: str, count: int, seed: int) -> dict[str, float]:
    """Reads mutants in this process, which should be good for nothing else afterwards."""
    suffix, files = KINDS[kind]
    armed: list[str] = []
    sys.addaudithook(lambda event, arguments: _guard(event, arguments) if armed else None)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"mutant{suffix}")
        mutants = files(random.Random(seed))
        path.write_bytes(next(mutants))
        _read(path)  # imports what reading needs
        before, refused, slowest, started = _memory(), 0, 0.0, time.perf_counter()
        for data in itertools.islice(mutants, count):
            path.write_bytes(data)
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            start = time.perf_counter()
            armed.append(kind)
            try:
                refused += _read(path)
            finally:
                armed.clear()
            slowest = max(slowest, time.perf_counter() - start)
        faulthandler.cancel_dump_traceback_later()
    return {"files": count, "refused": refused, "slowest": slowest,
            "seconds": time.perf_counter() - started, "growth": _memory() - before}  # fmt: skip


def _read(path: pathlib.Path) -> int:
    """1 if refused. As a network's weights, and as tensors of any shape up to the file's size."""

    def small(shapes):
        if sum(math.prod(shape) for shape in shapes.values()) > 16 * max(path.stat().st_size, 1):
            raise AuditError("larger than the file")

    refused = 0
    for read in (
        lambda: load(test_weights.ABSTRACT, path, TORCH),
        lambda: read_weights(path, check=small, max_bytes=16 * 2**20),
    ):
        try:
            read()
        except AuditError as error:
            refused += 1
            assert len(str(error)) < 2000 and str(error).isprintable(), str(error)
    return int(refused == 2)


def _guard(event: str, arguments: tuple) -> None:
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    codec = event in ("import", "exec") and "encodings" in str(arguments[0])  # Python's own
    if (writes or event.startswith(FORBIDDEN)) and not codec:
        os.write(2, f"a weight file led to {event} {str(arguments)[:300]}".encode())
        os._exit(3)  # an exception could be caught


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # bytes on Linux


def in_a_process(kind: str, count: int, seed: int) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, kind, str(count), str(seed)]
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_mutants(kind):
    found = in_a_process(kind, 100, seed=1)
    assert found["refused"] > 40 and found["growth"] < GROWTH


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_mutants(kind):
    found = in_a_process(kind, COUNT, seed=0)
    print(kind, found)
    assert found["files"] == COUNT and found["refused"] > COUNT / 3
    assert found["slowest"] < SECONDS and found["growth"] < GROWTH


if __name__ == "__main__":
    print(json.dumps(read_all(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
