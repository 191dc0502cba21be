"""Milliseconds per image-step: our engine, torch-lucent as shipped, a fair PyTorch loop.

Claim to test: on two CPU cores our engine needs less than half of a fair PyTorch loop's time on
GoogLeNet, and less than a quarter of torch-lucent's. Every side is a worker process that has
compiled and warmed up; sides take turns in rounds (A B C, A B C, ...) with all cores to
themselves, so that a slow minute hits all of them; ratios are taken within a round. Waiting workers
cost nothing. Ratios are times: 0.5 means that ours takes half as long. A turn is long enough that
what comes before the first step (the start, transformed kernels: one or two steps' time in ours)
weighs little, as in a run of 192 steps.

    pip install -e '.[bench]'                     # and torch-lucent: see shipped.py
    python experiments/bench/engine.py --prepare  # once, 20 minutes: fills PyTorch's compile cache
    python experiments/bench/engine.py            # 25 minutes, nothing else running
    python experiments/bench/engine.py googlenet/mixed4d --sides ours-8 eager-8 --rounds 7

Results: results/bench/engine.csv, engine.md, and every measurement in engine_rounds.csv, written
workload by workload; workloads whose sides are all there are not measured again without --fresh.
"Cold start" (loading weights, compiling with empty caches, first call) is measured on
googlenet/mixed4d only; elsewhere compiled programs come from caches.
"""

import argparse
import pathlib
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import table
from processes import Running, SideFailed
from sides import PEAKS, SIDES, WORKLOADS, Side, Workload


CACHES = pathlib.Path(__file__).resolve().parents[2] / "runs" / "bench"
KEYS = ("network", "layer", "side")


def main() -> None:
    options = _options()
    CACHES.mkdir(parents=True, exist_ok=True)
    for name in options.workloads:
        workload = WORKLOADS[name]
        sides = [SIDES[side] for side in options.sides or workload.sides]
        fits = [s for s in sides if workload.network == "googlenet" or not _googlenet_only(s)]
        if options.prepare:
            prepare(workload, fits, options.cold)
        elif fits and (options.fresh or not _there(workload, fits, options.out)):
            measure(workload, fits, options)
    shown = options.out / "engine.md"
    print(shown.read_text() if shown.exists() and not options.prepare else "")


def prepare(workload: Workload, sides: list[Side], cold: bool) -> None:
    """Starts and stops what PyTorch compiles and is not timed cold: that leaves it in the cache."""
    wanted = [s for s in sides if s.compiled and s.module == "fair"]
    for side in (s for s in wanted if not (cold and _cold(workload, s))):
        running = Running(side, workload, CACHES, cold=False)
        print(f"{workload.name} {side.name}: ready in {running.facts['ready_s']:.0f} s", flush=True)
        running.stop()


def measure(workload: Workload, sides: list[Side], options: argparse.Namespace) -> None:
    """All rounds of one workload, and its rows in the files."""
    running = start(workload, [*sides, *PEAKS.values()], options.cold)
    rounds = []
    try:
        for turn in range(options.rounds):
            for one in running:
                rounds.append(timed(one, turn, options.seconds))
                print(f"{workload.name} {turn} {one.side.name}: {rounds[-1]['ms']:.1f}", flush=True)
    finally:
        for one in running:
            one.stop()
    facts = {one.side.name: {**one.facts, "peak_mib": one.peak_mib} for one in running}
    record(workload, rounds, facts, options.out)


def start(workload: Workload, sides: list[Side], cold: bool) -> list[Running]:
    """Cold sides alone, one after the other; then all the others at once."""
    alone = [s for s in sides if cold and _cold(workload, s)]
    running = {}
    for side in alone:
        shutil.rmtree(CACHES / f"cold-{side.name}", ignore_errors=True)
        one = running[side.name] = Running(side, workload, CACHES, cold=True)
        one.facts["cold_s"] = one.facts["first_s"]
    rest = [s for s in sides if s not in alone]
    with ThreadPoolExecutor(len(rest)) as pool:
        for one in pool.map(lambda s: Running(s, workload, CACHES, cold=False), rest):
            running[one.side.name] = one
    for one in running.values():  # what is slow only once, and a step's time without company
        one.facts["step_s"] = one.run(1)[0]
    return [running[side.name] for side in sides]


def timed(one: Running, turn: int, seconds: float) -> table.Row:
    """One side's turn: as many steps as fit into `seconds`, at least two."""
    first = one.facts["image_steps"] / one.side.batch  # steps that a call for one step makes
    steps = max(2, round(seconds * first / one.facts["step_s"]))
    elapsed, images = one.run(steps)
    return {
        "side": one.side.name,
        "round": turn,
        "image_steps": images,
        "ms": elapsed / images * 1e3,
    }


def record(
    workload: Workload, rounds: list[table.Row], facts: dict[str, dict], folder: pathlib.Path
) -> None:
    """Adds one workload's numbers to the files of `folder`."""
    about = {"network": workload.network, "layer": workload.layer}
    table.replace(folder / "engine_rounds.csv", [{**about, **row} for row in rounds], KEYS)
    rows = table.summary(about, rounds, facts)
    everything = table.replace(folder / "engine.csv", rows, KEYS)
    (folder / "engine.md").write_text(table.markdown(everything))


def _cold(workload: Workload, side: Side) -> bool:
    return workload.cold and side.name in ("ours-8", "compile-1")


def _googlenet_only(side: Side) -> bool:
    return side.module == "shipped" or side.own_lrn


def _there(workload: Workload, sides: list[Side], folder: pathlib.Path) -> bool:
    wanted = {(workload.network, workload.layer, side.name) for side in sides}
    return wanted <= {tuple(row[k] for k in KEYS) for row in table.read(folder / "engine.csv")}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = [name for name, workload in WORKLOADS.items() if workload.sides]
    parser.add_argument("workloads", nargs="*", default=default, help=", ".join(WORKLOADS))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), help="instead of the usual ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.5, help="a side's turn in a round")
    parser.add_argument("--no-cold", dest="cold", action="store_false", help="use all caches")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--out", type=pathlib.Path, default=table.RESULTS, metavar="FOLDER")
    parser.add_argument("--prepare", action="store_true", help="compile only")
    options = parser.parse_args()
    wrong = [name for name in options.workloads if name not in WORKLOADS]
    if wrong:
        parser.error(f"no workload {wrong[0]!r}; there are {', '.join(WORKLOADS)}")
    return options


if __name__ == "__main__":
    try:
        main()
    except SideFailed as error:
        sys.exit(str(error))
