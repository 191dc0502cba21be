"""A side in its own process: builds and warms up, then runs so many steps whenever told.

Started by `processes.py` with one JSON argument; talks in JSON lines. Between runs it waits for a
line, which costs nothing. Seconds are read from the machine-wide monotonic clock.
"""

import importlib
import json
import os
import sys
import time


def main() -> None:
    spec = json.loads(sys.argv[1])
    os.sched_setaffinity(0, spec["cpus"])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not mix with answers
    from sides import ON_OURS, PEAKS, SIDES, Workload  # after the affinity, before any thread pool

    side = (SIDES | PEAKS | ON_OURS)[spec["side"]]
    workload = Workload(spec["network"], spec["layer"], ())
    module = importlib.import_module(side.module)
    begun = time.monotonic()
    runner = module.build(side, workload, len(spec["cpus"]))
    runner.prepare()
    runner.run(1)
    first = time.monotonic() - begun
    _answer(answers, first_s=first, **_timed(runner, 1), **runner.facts)
    for line in sys.stdin:
        _answer(answers, **_timed(runner, json.loads(line)["steps"]))


def _timed(runner, steps: int) -> dict:
    runner.prepare()
    start = time.monotonic()
    done = runner.run(steps)
    return {"start": start, "end": time.monotonic(), "steps": steps, "image_steps": done}


def _answer(pipe, **fields) -> None:
    print(json.dumps({**fields, "peak_mib": _peak_mib()}), file=pipe)


def _peak_mib() -> float:
    """Most memory this process has held at once (VmHWM)."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
