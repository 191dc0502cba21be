"""Mutated ONNX files: what does loading them do?

Claim: nothing but an AuditError or a model; no crash, no hang, no code execution, no large memory.
Minutes: 10 for 5,000 files on two quiet cores. A count in runs/onnx-fuzz.json lets it go on.

    python experiments/onnx/fuzz.py [files, default 5000]

Files are small graphs (tests/onnx_graphs.py) with bytes flipped, cut, doubled or spliced, or with
fields of the message changed: numbers to extremes, names rewired, types of nodes swapped. File i
is made from the seed i alone. Each is loaded under an alarm; an audit hook notes whatever would
start a program, open a connection, or write or read outside the file's folder.
"""

import json
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
from typing import Any


ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import onnx_graphs  # noqa: E402

from fvaudit.models.imports.onnx import load_onnx  # noqa: E402
from fvaudit.models.model import InputSpec, Model  # noqa: E402
from fvaudit.records import AuditError  # noqa: E402


SPEC = InputSpec((8, 8), (0.5,) * 3, (0.5,) * 3, resize=8)
SECONDS = 60  # that one file may take
EXTREMES = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.", "pickle.")


def bases() -> list[Any]:
    """The graphs that are mutated."""
    fixed = onnx_graphs.convolutional(batch=2, rows=2)
    graphs = onnx_graphs.convolutional(), onnx_graphs.attentive(), onnx_graphs.quantized(), fixed
    return list(graphs)


def mutated(index: int, protos: list[Any]) -> bytes:
    """File number `index`."""
    rng = random.Random(index)
    proto = type(protos[0])()
    proto.CopyFrom(rng.choice(protos))
    if index % 2:
        for _ in range(rng.randint(1, 4)):
            _change_field(rng, proto)
        return proto.SerializeToString()
    data = bytearray(proto.SerializeToString())
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        _change_bytes(rng, data)
    return bytes(data)


def _change_bytes(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(max(len(data), 1))
    end = min(at + rng.choice((1, 4, 64, 1024)), len(data))
    kind = rng.randrange(6)
    if not data or kind == 0:
        del data[at:]
    elif kind == 1:
        data[at] = rng.randrange(256)
    elif kind == 2:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 3:
        del data[at:end]
    elif kind == 4:
        data[at:at] = data[at:end]
    else:
        data[at:end] = rng.randbytes(end - at)


def _change_field(rng: random.Random, proto: Any) -> None:
    graph = proto.graph
    node = rng.choice(graph.node)
    names = [n for other in graph.node for n in (*other.input, *other.output)]
    tensor = rng.choice(graph.initializer)
    kind = rng.randrange(9)
    if kind == 0 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", "nothing"])
    elif kind == 1 and node.output:
        node.output[0] = rng.choice([*names, ""])
    elif kind == 2:
        node.op_type = rng.choice(sorted(_operators()))
    elif kind == 3 and node.attribute:
        attribute = rng.choice(node.attribute)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(EXTREMES)
        else:
            attribute.i = rng.choice(EXTREMES)
    elif kind == 4 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(EXTREMES)
    elif kind == 5:
        tensor.data_type = rng.randrange(30)
    elif kind == 6:
        size = graph.input[0].type.tensor_type.shape.dim
        size[rng.randrange(len(size))].dim_value = rng.choice(EXTREMES)
    elif kind == 7:
        proto.opset_import[0].version = rng.choice((1, 7, 9, 11, 13, 18, 28, 10**6))
    else:
        entry = tensor.external_data.add()
        tensor.data_location = tensor.EXTERNAL
        entry.key, entry.value = "location", rng.choice(("../x", "/etc/passwd", "model.onnx", ""))


def _operators():
    from fvaudit.models.imports.onnx.table import OPERATORS

    return OPERATORS


class _Hung(BaseException):
    """Not caught by anything that catches errors."""


def _alarm(*_: Any) -> None:
    raise _Hung


_SEEN: list[str] = []
_watching = [False]


def _hook(event: str, arguments: Any) -> None:
    if not _watching[0]:
        return
    if event.startswith(FORBIDDEN):
        _SEEN.append(f"{event} {arguments!r:.100}")
    if event == "open" and isinstance(arguments[0], str) and arguments[0] == "/etc/passwd":
        _SEEN.append("open /etc/passwd")


def load(data: bytes, folder: pathlib.Path) -> str:
    """What loading one file did: "model" or "refused"; anything else is raised."""
    path = folder / "model.onnx"
    path.write_bytes(data)
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(SECONDS)
    _watching[0] = True
    try:
        model = load_onnx(path, SPEC)
        assert isinstance(model, Model)
        return "model"
    except AuditError as error:
        assert len(str(error)) < 2000
        return "refused"
    finally:
        _watching[0] = False
        signal.alarm(0)


def run(first: int, last: int) -> dict[str, Any]:
    """Loads files `first` to `last` - 1; how many of each outcome, slowest seconds, MiB grown."""
    import jax

    if not getattr(sys, "_fuzz_hook", False):
        sys.addaudithook(_hook)
        sys._fuzz_hook = True  # type: ignore[attr-defined]  hooks cannot be removed
    protos, counts, slowest = bases(), {"model": 0, "refused": 0}, 0.0
    load(protos[0].SerializeToString(), pathlib.Path(tempfile.mkdtemp()))  # imports, once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        for index in range(first, last):
            start = time.perf_counter()
            try:
                counts[load(mutated(index, protos), pathlib.Path(folder))] += 1
            except BaseException as error:
                raise AssertionError(f"file {index}: {type(error).__name__}: {error}") from error
            slowest = max(slowest, time.perf_counter() - start)
            if _SEEN:
                raise AssertionError(f"file {index}: {_SEEN}")
            if index % 250 == 249:
                jax.clear_caches()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {**counts, "slowest_s": round(slowest, 2), "grown_mib": round(grown)}


def main(files: int) -> None:
    state = ROOT / "runs" / "onnx-fuzz.json"
    done = json.loads(state.read_text()) if state.exists() else []
    while (first := sum(part["files"] for part in done)) < files:
        start, count = time.perf_counter(), min(250, files - first)
        part = {"files": count, **run(first, first + count)}
        done.append({**part, "seconds": round(time.perf_counter() - start)})
        state.parent.mkdir(exist_ok=True)
        state.write_text(json.dumps(done))
        print(first + count, done[-1], flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
