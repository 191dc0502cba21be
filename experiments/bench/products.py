"""Where a step's matrix products lose time: each shape of them, timed inside the engine's program.

    claim      alone, with weights in the cache, products reach .7 to .95 of the sgemm peak
               (layers.py); in a step, those of few rows do not, because their weights are read and
               packed anew for every image
    command    taskset -c 0 python experiments/bench/products.py resnet50/logits
    expected   results/bench/products-resnet50.md: a table by shape; a minute

Times are XLA's own trace of every thunk over `STEPS` steps, shapes come from its dump of the
optimized program. Winograd's products are batches of one for each of its points; "GF" counts what
is multiplied, not direct convolution.
"""

import argparse
import collections
import gzip
import json
import os
import pathlib
import re
import tempfile


STEPS = 10
_OUTER = ("$", "Thunk", "Pjit", "while", "cond")  # hold others, which are counted themselves
_FOLDER = tempfile.TemporaryDirectory(prefix="fvaudit-products-")
_DUMP = pathlib.Path(_FOLDER.name)
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # a kept program is not dumped
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_enable_xprof_traceme=true --xla_dump_hlo_as_text",
        f"--xla_dump_to={_DUMP} --xla_dump_hlo_module_re=.*sharded.*",
    ]
)

import jax  # noqa: E402  after its settings
import layers  # noqa: E402
import networks  # noqa: E402
import numpy as np  # noqa: E402
import ours  # noqa: E402

from fvaudit.models import devices  # noqa: E402
from fvaudit.optvis.redirect import STEPS as REDIRECTED  # noqa: E402  most steps follow them


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("workload", help="network/layer, such as resnet50/logits")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/bench"))
    options = parser.parse_args()
    devices.start()
    peak = layers.one_core_peak()
    network, _, layer = options.workload.partition("/")
    count = jax.local_device_count()
    call = ours.ascent(networks.load(network), layer, list(range(count)), count)
    call(0, 2, REDIRECTED)
    with jax.profiler.trace(str(_DUMP / "trace"), create_perfetto_trace=True):
        call(0, STEPS, REDIRECTED)
    spent = _milliseconds(count)
    text = _table(options.workload, _products(), spent, peak)
    (options.out / f"products-{network}.md").write_text(text)
    print(text)


def _milliseconds(count: int) -> dict[str, float]:
    """Per image and step, of every thunk that runs in each step."""
    file = next((_DUMP / "trace").rglob("perfetto_trace.json.gz"))
    total, calls = collections.Counter(), collections.Counter()
    for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]:
        if event.get("ph") == "X" and not event["name"].startswith(_OUTER):
            total[event["name"]] += event["dur"] / 1000 / STEPS / count
            calls[event["name"]] += 1
    return {name: ms for name, ms in total.items() if calls[name] >= STEPS * count}


def _products() -> dict[str, tuple[tuple[int, ...], int]]:
    """Thunk -> ((points, rows, inner, columns), multiplications and additions) of its product."""
    file = max(_DUMP.glob("*cpu_after_optimizations.txt"), key=lambda path: path.stat().st_size)
    bodies = _bodies(file.read_text())
    found = {}
    for line in (line for body in bodies.values() for line in body):
        call = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = .* fusion\(.*calls=%?([\w.\-]+)", line)
        if call and (shape := _shape(bodies.get(call[2], []))):
            found[call[1]] = shape
    return found


def _bodies(text: str) -> dict[str, list[str]]:
    bodies, current = {}, []
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = bodies[head[1]] = []
        else:
            current.append(line)
    return bodies


def _shape(body: list[str]) -> tuple[tuple[int, ...], int] | None:
    types = dict(re.findall(r"%?([\w.\-]+) = f32\[([\d,]*)\]", "\n".join(body)))
    for line in body:
        dot = re.search(r"= f32\[([\d,]+)\]\S* dot\((.*?)\), (.*)", line)
        if not dot:
            continue
        left = [int(d) for d in types[re.findall(r"%([\w.\-]+)", dot[2])[0]].split(",")]
        along = re.search(r"lhs_contracting_dims=\{(\d+)\}", dot[3])
        out = tuple(int(d) for d in dot[1].split(","))
        if along and len(out) in (2, 3):
            inner = left[int(along[1])]
            points, rows, columns = (1, *out)[-3:]
            return (points, rows, inner, columns), 2 * points * rows * inner * columns
    return None


def _table(workload, products, spent, peak) -> str:
    rows = collections.defaultdict(lambda: np.zeros(3))  # calls, ms, GF
    for name, (shape, flops) in products.items():
        if name in spent:
            rows[shape] += [1, spent[name], flops / 1e9]
    whole, known = sum(spent.values()), sum(rows.values())
    lines = [
        f"{workload}, one image, one core; sgemm peak {peak:.0f} GF/s",
        "",
        "| points x (rows x inner) (inner x columns) | calls | ms | GF | share of the peak |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for (points, m, k, n), row in sorted(rows.items(), key=lambda item: -item[1][1]):
        many = f"{points} x " if points > 1 else ""
        lines.append(_line(f"{many}({m} x {k}) ({k} x {n})", row, peak))
    lines += [
        _line("all of these", known, peak),
        f"| everything else (XLA's own convolutions too) | | {whole - known[1]:.1f} | | |",
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, row: np.ndarray, peak: float) -> str:
    calls, ms, gf = row
    return f"| {name} | {calls:.0f} | {ms:.1f} | {gf:.2f} | {gf / ms * 1000 / peak:.2f} |"


if __name__ == "__main__":
    main()
