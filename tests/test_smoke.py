"""The whole way as a user goes it: the console script, the real network, real photographs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.test_run import contents


SMALL = (
    "units=[{layer: blocks.1, count: 2}]",
    "engine={steps: 8, repeats: 2, shots: 3}",
    "images={source: samples, limit: 16, crops: 2}",
    "evidence={group: 8, replicates: 200}",
)
DEEP = (*SMALL, "units=[{layer: blocks.1, count: 2}, {layer: logits, channels: [281]}]")


def command(*arguments):
    return [sys.executable, "-m", "fvaudit", *map(str, arguments)]


def run_arguments(out, settings=SMALL):
    return ["run", "quickstart", "--out", out, *(a for s in settings for a in ("--set", s))]


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = run(*run_arguments(folder))
    assert result.returncode == 0, result.stderr
    return folder, result


def units_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_an_audit_of_the_default_model(finished):
    folder, result = finished
    units = units_of(folder)
    assert [u["unit"].split(":")[0] for u in units] == ["blocks.1", "blocks.1"]
    assert all(len(u["path"]) == 3 for u in units)  # stem, blocks.0, blocks.1
    assert all(u["fv_responses"][0] > u["natural_median"] for u in units)
    assert "exit code 0" in result.stdout and "Traceback" not in result.stderr
    assert (folder / "report.html").exists()


def test_check_and_report_agree_with_run(finished):
    folder, result = finished
    before = contents(folder)
    again = run("check", folder)
    assert again.returncode == 0
    assert run("report", folder).returncode == 0
    assert contents(folder) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    result = run(*run_arguments(tmp_path / "file" / "run"))
    assert result.returncode == 3 and "Traceback" not in result.stderr
    assert "Not a directory" in result.stderr


@pytest.mark.slow
def test_killed_process_finishes_with_the_same_bytes(tmp_path):
    """SIGKILL after a few files have appeared, again and again; then the same command, unbroken."""
    folder, target = tmp_path / "whole" / "run", tmp_path / "cut" / "run"  # the report has the name
    assert run(*run_arguments(folder, DEEP)).returncode == 0
    units = units_of(folder)
    assert len(units) == 3 and units[-1]["unit"] == "logits:281"
    assert units[-1]["label"] == "tabby"
    assert len(units[-1]["path"]) == 20  # stem, 16 blocks, head, avgpool, logits
    for files in (1, 6, 13, 22):
        process = subprocess.Popen(
            command(*run_arguments(target, DEEP)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.time() + 120
        while process.poll() is None and time.time() < deadline:
            if sum(p.is_file() for p in target.rglob("*")) >= files:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.02)
        process.wait()
    assert run(*run_arguments(target, DEEP)).returncode == 0
    assert contents(target) == contents(folder)
