"""The README keeps its promises: its Python runs, its names exist, its commands parse."""

import pathlib
import re
import shlex

import pytest
from typer.main import get_command

import fvaudit


README = pathlib.Path(__file__).resolve().parents[1] / "README.md"
TEXT = README.read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


@pytest.mark.slow
def test_python_snippets_run(capsys):
    assert len(blocks("python")) == 4
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "blocks.7 " in printed and "[" in printed and "(2, 224, 224, 3)" in printed


def test_names_used_are_public():
    for name in re.findall(r"\bfv\.(\w+)", TEXT):
        assert name in fvaudit.__all__


def test_commands_parse():
    from fvaudit.cli import app

    verbs = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    calls = [part for line in lines for part in line.split("&&") if re.search(r"\bfvaudit ", part)]
    assert len(calls) >= 7
    for call in calls:
        words = shlex.split(call.strip(), comments=True)
        verb, *arguments = words[1:]
        verbs[verb].make_context(verb, arguments)  # raises on a flag that does not exist


def test_files_that_are_named_exist():
    for name in re.findall(r"`((?:fvaudit|tests|experiments)/[\w./]+)`", TEXT):
        assert (README.parent / name).exists(), name
    for name in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (README.parent / name).exists(), name


def test_gates_are_those_of_the_config():
    from fvaudit.config import Gates

    for gate in Gates.model_fields:
        assert f"`{gate}`" in TEXT
