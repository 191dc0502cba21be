"""The official ONNX node tests, and the same nodes on two images at once in every layout."""

import collections
import importlib.util
import pathlib
import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.models.imports.onnx import checked_proto, parse
from fvaudit.models.imports.onnx.operators import Call
from fvaudit.models.imports.onnx.program import Live, Param, evaluate, fold
from fvaudit.models.imports.onnx.running import Layout, Value, run_step
from fvaudit.records import AuditError


onnx = pytest.importorskip("onnx")
pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings("ignore"),  # onnx's own, while it makes the cases
]

ROOT = pathlib.Path(__file__).parents[1]
TABLE = ROOT / "results" / "onnx" / "node_tests.md"
PARTS = 8
EACH = 3  # tests of an operator


@pytest.fixture(scope="module")
def nodes():
    """experiments/onnx/node_tests.py, which the table is made by."""
    path = ROOT / "experiments" / "onnx" / "node_tests.py"
    spec = importlib.util.spec_from_file_location("node_tests", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["node_tests"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cases(nodes):
    return nodes.cases()


def outcomes(results):
    return {r.name: r.reason for r in results if r.outcome == "failed"}


def test_a_sample_of_the_node_tests_passes(nodes, cases):
    plain = [case for case in cases if "_expanded" not in case.name]
    results = [nodes.run_case(case) for case in plain[::30]]
    assert outcomes(results) == {}
    assert sum(r.outcome == "passed" for r in results) > 20


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_node_test_passes_or_is_unsupported(nodes, cases, part):
    results = [nodes.run_case(case) for case in cases[part::PARTS]]
    assert outcomes(results) == {}
    assert sum(r.outcome == "passed" for r in results) > 0.6 * len(results)


def test_the_committed_table_has_no_failure_and_names_every_operator_of_ours(nodes):
    text = TABLE.read_text()
    count = re.search(r"(\d+) tests: (\d+) passed, (\d+) failed, (\d+) unsupported", text)
    assert count is not None
    total, passed, failed, unsupported = map(int, count.groups())
    assert failed == 0 and passed + unsupported == total and passed > 1300
    tested = set(re.findall(r"^\| (\w+) \|", text, re.MULTILINE))
    assert set(nodes.OPERATORS) - tested == {"GlobalLpPool"}  # ONNX has no test of it


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout)[:2])
def test_two_images_at_once_are_two_runs(cases, layout):
    """Direct and vectorized runs, channels first and last, against one image at a time."""
    compared = collections.Counter()
    for case in cases:
        kind = case.model.graph.node[0].op_type
        known = "_expanded" not in case.name and compared[kind] < EACH
        step = single_step(case) if known else None
        if step is not None and compare(*step, layout):
            compared[kind] += 1
    assert len(compared) > 60, sorted(compared)


def single_step(case):
    """(step, its parameters, two images) where a node acts on one float image first of all."""
    inputs = case.data_sets[0][0]
    x = inputs[0] if inputs else None
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim < 3 or x.size == 0:
        return None
    if not all(isinstance(v, np.ndarray) and v.dtype.kind in "fiub" for v in inputs):
        return None
    try:
        graph = parse(checked_proto(case.model))
        names = [i.name for i in graph.inputs]
        known = dict(zip(names[1:], inputs[1:], strict=True))
        program = fold(graph, known, {names[0]: x[:1]})
    except AuditError:  # a node that needs all rows of its input
        return None
    if program.missing or len(program.steps) != 1:
        return None
    return program.steps[0], program.params, np.concatenate([x[:1], np.flip(x[:1], -1) + 0.25])


def compare(step, params, images, layout):
    ready = [i for i, ref in enumerate(step.inputs) if not isinstance(ref, Live)]
    shared = [jnp.asarray(params[r.key]) if isinstance(r, Param) else r for r in step.inputs]
    if any(isinstance(r, Live) for r in step.inputs[1:]):
        return False
    ones = [
        evaluate(Call(step.node, jnp), step.operator, [jnp.asarray(x[None]), *shared[1:]], ready)
        for x in images
    ]
    array = jnp.asarray(images)
    array = jnp.moveaxis(array, 1, -1) if layout is Layout.LAST else array
    both = run_step(step, [Value(array, (1, *images.shape[1:]), layout), *shared[1:]])
    for k, value in enumerate(both):
        wanted = np.stack([np.asarray(one[k]) for one in ones])
        got = np.asarray(value.plain).reshape(wanted.shape)
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5, err_msg=step.node.op)
    return True
