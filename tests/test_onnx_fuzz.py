"""Mutated files: an AuditError or a model, nothing else. The 5,000 take 4 to 10 minutes."""

import pathlib
import subprocess
import sys

import pytest


pytest.importorskip("onnx")
pytestmark = pytest.mark.extras

SCRIPT = pathlib.Path(__file__).parents[1] / "experiments" / "onnx" / "fuzz.py"
CODE = "import sys; sys.path.insert(0, sys.argv[1]); import fuzz; print(fuzz.run({}, {}))"


def run(first, last):
    """In a process of its own, so that a crash is a failure and no more."""
    command = [sys.executable, "-W", "ignore", "-c", CODE.format(first, last), str(SCRIPT.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    result = eval(done.stdout.strip().splitlines()[-1], {"__builtins__": {}})
    assert result["model"] + result["refused"] == last - first
    assert result["model"] > 0
    return result


def test_a_hundred_mutated_files():
    result = run(0, 100)
    assert result["refused"] > 20
    assert result["grown_mib"] < 1500


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_five_thousand_mutated_files(part):
    result = run(500 * part, 500 * (part + 1))
    assert result["slowest_s"] < 30
    assert result["grown_mib"] < 2500
