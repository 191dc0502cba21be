"""What a user waits for: from the start of the process to a picture as good as the peer's.

The peer is torch-lucent's loop with its defaults (512 steps) on BVLC's GoogLeNet. Its last image of
a unit sets the mark: the unit's activation, without transforms, measured for both sides by one
and the same PyTorch network. We count the time until fvaudit's image of that unit is at or above
the mark, from the start of Python to the PNG file, compilation included.

    python experiments/bench/wall.py peer   # the marks, 2 minutes a unit: wall_peer.csv
    python experiments/bench/wall.py steps  # our steps to the mark, 10 minutes: wall_steps.csv
    python experiments/bench/wall.py time   # the timing, 30 minutes with nothing else running
    python experiments/bench/wall.py stages # where the time of one unit goes, 5 minutes, the same

Units: five channels of mixed4d that fire at the start (the peer cannot move one that does not: on
this network its gradients are not redirected) and eight logits. Ours takes fvaudit's default
optimizer, chosen on other units (results/convergence). `time` runs the peer whole for one unit, in
turns with ours; for 64 it takes the peer's milliseconds per step there, or in batches of eight if
they are fewer, and multiplies. Ours is run for 1 and for `--many` units, with as many steps as the
layer's units needed on average, each for its own mark (a wait is linear in steps, so that is the
mean wait), and extrapolated linearly to 64 units if fewer were run.
`stages` says what one unit waits for. Results: results/bench/wall.csv, wall_stages.csv and wall.md.
"""

import argparse
import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable

import numpy as np
import table
from engine import CACHES
from processes import HERE, Running
from sides import ON_OURS, Workload


UNITS = {"mixed4d": (264, 500, 450, 17, 111), "logits": (0, 162, 200, 400, 600, 800, 970, 999)}
STEPS, SEED, MANY = 512, 0, 64
TOTALS = (48, 64, 96, 128, 160, *range(192, 257, 16), *range(320, 513, 64))  # each a run of its own
ROUNDS, BURST = 3, 12  # steps of the peer's batches that are timed in a round
MEDIAN = f"median of {ROUNDS}"
PROGRAMS = CACHES / "programs"  # fvaudit's compiled programs, apart from the user's


def main() -> None:
    options = _options()
    CACHES.mkdir(parents=True, exist_ok=True)
    parts = {"peer": peer, "steps": steps_to_mark, "time": timing, "stages": stages}
    for layer in options.layers:
        parts[options.part](layer, options)


def peer(layer: str, options: argparse.Namespace) -> None:
    """Marks that are not there yet, one process a unit."""
    have = {(r["layer"], r["channel"]) for r in table.read(options.out / "wall_peer.csv")}
    for channel in (c for c in UNITS[layer] if (layer, c) not in have):
        file = CACHES / f"peer-{layer}-{channel}.npy"
        _seconds(["lucent", layer, channel, STEPS, SEED, file])
        row = {
            "layer": layer,
            "channel": channel,
            "steps": STEPS,
            "seed": SEED,
            "activation": _activations(np.load(file)[None], layer, channel)[0],
        }
        table.replace(options.out / "wall_peer.csv", [row], ("layer", "channel"))
        print(row, flush=True)


def steps_to_mark(layer: str, options: argparse.Namespace) -> None:
    """The smallest total of ours at which each unit's image is at or above its mark."""
    marks = _marks(layer, options.out)
    reached: dict[int, dict[int, float]] = {channel: {} for channel in marks}
    for total in TOTALS:
        left = [c for c, mark in marks.items() if max(reached[c].values(), default=-np.inf) < mark]
        if not left:
            break
        folder = _empty(CACHES / f"ours-{layer}-{total}")
        _made("ours", layer, left, total, folder)
        for channel in left:
            image = _png(folder / f"{channel}.png")
            reached[channel][total] = _activations(image[None], layer, channel)[0]
    rows = []
    for channel, mark in marks.items():
        good = [total for total, a in reached[channel].items() if a >= mark]
        row = {"layer": layer, "channel": channel, "mark": mark, "steps": min(good, default="")}
        rows.append(row | {f"at_{total}": reached[channel].get(total, "") for total in TOTALS})
        print(rows[-1], flush=True)
    table.replace(options.out / "wall_steps.csv", rows, ("layer", "channel"))


def _png(path: pathlib.Path) -> np.ndarray:
    from fvaudit.pictures import read

    return read([path])[0]


def timing(layer: str, options: argparse.Namespace) -> None:
    """The peer's and our seconds for 1 and for 64 units."""
    steps, many = _steps_needed(layer, options.out), options.many
    folder = _empty(CACHES / "pictures")

    def seconds(n):
        return _made("ours", layer, range(0, 8 * n, 8), steps, folder)

    peer = Running(ON_OURS["lucent-bvlc-8"], Workload("googlenet", layer, ()), CACHES, cold=False)
    alone = ["shipped", layer, UNITS[layer][0], STEPS, SEED, CACHES / "peer.npy"]
    peer_wait, peer_ms, first, cached = [], [], [], []
    for _ in range(ROUNDS):  # one after the other, since the machine's speed drifts
        peer_wait.append(_seconds(alone))
        peer_ms.append(_ms_per_step(peer))
        _empty(PROGRAMS)
        first.append(seconds(1))
        cached.append(seconds(1))
        print(f"{layer}: {peer_wait[-1]:.0f}, {first[-1]:.0f}, {cached[-1]:.0f} s", flush=True)
    begun = peer.facts["ready_s"] - 2 * peer.facts["step_s"]
    peer.stop()
    wait = statistics.median(peer_wait)
    each = min((wait - begun) / STEPS, statistics.median(peer_ms) / 1e3)  # one by one, or by 8
    waits = statistics.median(first), statistics.median(cached)
    rows = [
        _row("torch-lucent", 1, STEPS, wait, MEDIAN),
        _row("torch-lucent", MANY, STEPS, begun + MANY * STEPS * each, "extrapolated"),
        *_our_rows(steps, *waits, pair=seconds(2), some=seconds(many), many=many),
    ]
    rows = [{"layer": layer, **row} for row in rows]
    table.replace(options.out / "wall.csv", rows, ("layer", "side", "units"))
    _write_page(options.out)


def stages(layer: str, options: argparse.Namespace) -> None:
    """Seconds of each stage of one unit, with an empty program cache and again; medians."""
    runs: dict[str, list[dict[str, float]]] = {"first run": [], "cached": []}
    steps, folder = _steps_needed(layer, options.out), _empty(CACHES / "pictures")
    for _ in range(ROUNDS):
        _empty(PROGRAMS)
        for seen in runs.values():
            whole = _made("stages", layer, UNITS[layer][:1], steps, folder)
            seen.append(json.loads((folder / "stages.json").read_text()) | {"whole": whole})
    rows = [
        {"layer": layer, "run": run, "steps": steps}
        | {stage: statistics.median(one[stage] for one in seen) for stage in seen[0]}
        for run, seen in runs.items()
    ]
    table.replace(options.out / "wall_stages.csv", rows, ("layer", "run"))
    _write_page(options.out)


def _ms_per_step(peer: Running) -> float:
    """Of an image; over some 20 seconds, since the machine's speed varies from one to the next."""
    elapsed, images = peer.run(BURST)
    return elapsed / images * 1e3


def _our_rows(steps: int, first: float, cached: float, *, pair: float, some: float, many: int):
    """Of seconds for a unit in the first run ever and in the next, for 2 and for many units."""
    whole = some if many == MANY else some + (MANY - many) * (some - pair) / (many - 2)
    how = "measured" if many == MANY else f"extrapolated from 2 and {many} units"
    return [
        _row("fvaudit, first run", 1, steps, first, MEDIAN),
        _row("fvaudit, cached", 1, steps, cached, MEDIAN),
        _row("fvaudit, first run", MANY, steps, whole + first - cached, how),
        _row("fvaudit, cached", MANY, steps, whole, how),
    ]


def _made(what: str, layer: str, channels: Iterable[int], steps: int, folder: pathlib.Path):
    """Seconds in which `reached.py` makes our pictures of these channels."""
    return _seconds([what, layer, ",".join(map(str, channels)), steps, SEED, folder])


def _row(side: str, units: int, steps: int, seconds: float, how: str) -> table.Row:
    return {"side": side, "units": units, "steps": steps, "seconds": seconds, "how": how}


def _seconds(arguments: list) -> float:
    """How long `reached.py` takes, from the start of Python to its end."""
    command = [sys.executable, str(HERE / "reached.py"), *map(str, arguments)]
    begun = time.monotonic()
    subprocess.run(
        command, check=True, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(PROGRAMS)}
    )
    return time.monotonic() - begun


def _activations(images: np.ndarray, layer: str, channel: int) -> list[float]:
    """The yardstick: the unit's mean activation for each image (n, 224, 224, 3); PyTorch."""
    import fair
    import torch
    import torch_nets

    net = torch_nets.truncated(torch_nets.load("googlenet"), layer)
    units = torch.full((len(images),), channel)
    with torch.no_grad():
        tensor = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)
        return fair.activation(net(tensor), units).tolist()


def _marks(layer: str, folder: pathlib.Path) -> dict[int, float]:
    rows = [r for r in table.read(folder / "wall_peer.csv") if r["layer"] == layer]
    return {int(r["channel"]): float(r["activation"]) for r in rows}


def _steps_needed(layer: str, folder: pathlib.Path) -> int:
    rows = [r for r in table.read(folder / "wall_steps.csv") if r["layer"] == layer]
    if not rows or any(r["steps"] == "" for r in rows):
        raise SystemExit(f"{layer}: not every unit reaches its mark; see wall_steps.csv.")
    return math.ceil(statistics.mean(float(r["steps"]) for r in rows))


def _write_page(folder: pathlib.Path) -> None:
    page = _waits(table.read(folder / "wall.csv"))
    if spent := table.read(folder / "wall_stages.csv"):
        page += f"\nWhere the seconds of one unit go (medians of {ROUNDS} runs):\n\n"
        page += _stages(spent)
    (folder / "wall.md").write_text(page)
    print(page)


def _waits(rows: list[table.Row]) -> str:
    head = ["layer", "side", "units", "steps", "seconds", "how"]
    lines = [head, ["---"] * 2 + ["---:"] * 3 + ["---"]]
    lines += [
        [str(r["layer"]), str(r["side"]), f"{r['units']:.0f}", f"{r['steps']:.0f}",
         f"{r['seconds']:.0f}", str(r["how"])]
        for r in rows
    ]  # fmt: skip
    return table.joined(lines)


def _stages(rows: list[table.Row]) -> str:
    head = list(rows[0])
    cells = [[str(r[k]) if k in ("layer", "run") else f"{r[k]:.3g}" for k in head] for r in rows]
    return table.joined([head, ["---"] * 2 + ["---:"] * (len(head) - 2), *cells])


def _empty(folder: pathlib.Path) -> pathlib.Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["peer", "steps", "time", "stages"])
    parser.add_argument("--layers", nargs="+", choices=list(UNITS), default=list(UNITS))
    parser.add_argument("--many", type=int, default=8, help="units really run, of 64")
    parser.add_argument("--out", type=pathlib.Path, default=table.RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    if not 2 < options.many <= MANY:
        parser.error(f"--many must be 3 to {MANY}, got {options.many}")
    return options


if __name__ == "__main__":
    main()
