"""The parent's handle on a side: starts its workers, tells them to run, reads the clock."""

import json
import os
import pathlib
import subprocess
import sys
import time

from sides import Side, Workload


HERE = pathlib.Path(__file__).resolve().parent


class Running:
    """A side's workers, warmed up; `run(steps)` is (seconds, image-steps) of all together."""

    def __init__(self, side: Side, workload: Workload, caches: pathlib.Path, cold: bool):
        cpus = sorted(os.sched_getaffinity(0))
        shares = [[cpu] for cpu in cpus[:2]] if side.pinned else [cpus]
        self.side = side
        self.workers: list[subprocess.Popen] = []
        self.log = (caches / f"{side.name}.log").open("a+")
        begun = time.monotonic()
        for share in shares:  # one after the other: the second finds what the first compiled
            spec = {
                "side": side.name,
                "network": workload.network,
                "layer": workload.layer,
                "cpus": share,
            }
            self.workers.append(self._start(spec, environment(side, caches, cold)))
            self.facts = self._read(self.workers[-1])
        self.facts["ready_s"] = time.monotonic() - begun
        self.facts["step_s"] = self.facts["end"] - self.facts["start"]
        self.peak_mib = 0.0

    def run(self, steps: int) -> tuple[float, int]:
        for worker in self.workers:
            assert worker.stdin
            worker.stdin.write(json.dumps({"steps": steps}) + "\n")
            worker.stdin.flush()
        answers = [self._read(worker) for worker in self.workers]
        self.peak_mib = sum(a["peak_mib"] for a in answers)
        seconds = max(a["end"] for a in answers) - min(a["start"] for a in answers)
        return seconds, sum(a["image_steps"] for a in answers)

    def stop(self) -> None:
        for worker in self.workers:
            assert worker.stdin and worker.stdout
            worker.stdin.close()
            worker.wait(60)
            worker.stdout.close()
        self.log.close()

    def _start(self, spec: dict, environment: dict[str, str]) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
        )

    def _read(self, worker: subprocess.Popen) -> dict:
        assert worker.stdout
        line = worker.stdout.readline()
        if line:
            return json.loads(line)
        worker.wait()
        self.log.seek(0)
        tail = "".join(self.log.readlines()[-6:])
        raise SideFailed(f"{self.side.name} ended early:\n{tail}")


class SideFailed(Exception):
    """A worker process ended before it answered."""


def environment(side: Side, caches: pathlib.Path, cold: bool) -> dict[str, str]:
    """This process's, plus where compiled code is kept; cold: nowhere that anybody has been."""
    unset = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if side.module == "peak" else ()
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # a GPU is shared by all sides
    if side.pinned:
        environment["OMP_NUM_THREADS"] = "1"
    if cold:
        fresh = caches / f"cold-{side.name}"  # emptied by the caller
        return environment | {
            "TORCHINDUCTOR_CACHE_DIR": str(fresh),
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
    return environment | {"TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor")}
