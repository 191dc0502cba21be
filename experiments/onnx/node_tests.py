"""The official ONNX backend node tests, run by our interpreter.

Claim: every test of an operator that the interpreter knows passes, and every other test is counted
as unsupported with its reason. Minutes: 8 on two cores. Writes results/onnx/node_tests.md.

    python experiments/onnx/node_tests.py

A test is one small graph with inputs and outputs. Inputs are traced by JAX ("traced"), as images
are, except those that must be known at load time (shapes, axes, scales, zero points); where a graph
computes such a value from its whole-number inputs, these are constants ("whole numbers known"); and
where nothing else is left to trace, the graph is folded in NumPy as at load time ("folded").
Tolerances are the tests' own (relative 1e-3), with an absolute 1e-5 for numbers near 0; outputs in
half precision may differ by 4 of its steps, since here they are computed in float32. Numbers of
64 bits are traced in 32, as JAX is set by default: types are not compared, values are.
"""

import collections
import pathlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fvaudit.models.imports.onnx import checked_proto, parse
from fvaudit.models.imports.onnx.graph import OLDEST, Graph, array
from fvaudit.models.imports.onnx.operators import Call, Unsupported
from fvaudit.models.imports.onnx.program import Live, Param, evaluate, fold
from fvaudit.models.imports.onnx.table import OPERATORS
from fvaudit.records import AuditError


RESULTS = pathlib.Path(__file__).parents[2] / "results" / "onnx" / "node_tests.md"
NEAR_ZERO = 1e-5
HALF_STEPS = 4  # roundings of the largest number, where the expected ones are in half precision


class Result(NamedTuple):
    """What became of one test."""

    name: str
    operator: str  # that the test is of
    outcome: str  # "passed", "failed" or "unsupported"
    reason: str  # why not, or in which mode
    error: float = 0.0


def cases() -> list[Any]:
    """All node tests that the installed package onnx generates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some tests divide by zero on purpose
        from onnx.backend.test.loader import load_model_tests

        return load_model_tests(kind="node")


def operator_of(case: Any) -> str:
    """The operator that a test is of; tests of a function's expansion belong to the function."""
    nodes = case.model.graph.node
    if len(nodes) == 1 or "_expanded" not in case.name:
        return nodes[0].op_type
    return f"{_base_operator(case.name)}"


def _numbers(value: Any) -> Any:
    """Tests of small types give messages instead of arrays."""
    if not hasattr(value, "data_type"):
        return value
    return array(value) if value.data_type != value.STRING else None


_OWNERS: dict[str, str] = {}


def _base_operator(name: str) -> str:
    return _OWNERS.get(name.split("_expanded")[0], "?")


def run_case(case: Any) -> Result:
    """Runs one test in the first mode that can compute it."""
    operator = operator_of(case)
    inputs, wanted = ([_numbers(v) for v in values] for values in case.data_sets[0])
    numeric = all(
        isinstance(v, np.ndarray | np.generic) and v.dtype.kind not in "OUS"
        for v in (*inputs, *wanted)
    )
    if not numeric:
        return Result(case.name, operator, "unsupported", "sequences, optionals, texts")
    if any(o.version < OLDEST for o in case.model.opset_import if o.domain == ""):
        return Result(case.name, operator, "unsupported", f"operator set below {OLDEST}")
    reason = "?"
    try:
        graph = parse(checked_proto(case.model))
    except AuditError as error:
        return Result(case.name, operator, "failed", str(error))
    given = {v.name: np.asarray(a) for v, a in zip(graph.inputs, inputs, strict=True)}
    for mode, known in _modes(graph, given):
        try:
            got = compute(graph, given, known)
        except Unsupported as error:
            reason = str(error)
            continue
        except Exception as error:  # a failure of ours, to be shown
            return Result(case.name, operator, "failed", f"{mode}: {type(error).__name__}: {error}")
        return _judged(case, operator, mode, got, wanted)
    return Result(case.name, operator, "unsupported", reason)


def _modes(graph: Graph, given: Mapping[str, np.ndarray]) -> Iterator[tuple[str, set[str]]]:
    """(name of the mode, inputs that are constants in it)."""
    static = {
        node.inputs[i]
        for node in graph.nodes
        if node.op in OPERATORS
        for i in (*OPERATORS[node.op].static, *OPERATORS[node.op].typed)
        if i < len(node.inputs)
    }
    whole = {n for n, a in given.items() if not jnp.issubdtype(a.dtype, jnp.floating)}
    if set(given) - static:
        yield "traced", static & set(given)
        if whole - static and set(given) - whole - static:
            yield "whole numbers known", (static | whole) & set(given)
    yield "folded", set(given)


def compute(graph: Graph, given: Mapping[str, np.ndarray], known: set[str]) -> list[np.ndarray]:
    """The graph's outputs, with `known` inputs as constants and the others traced."""
    traced = {n: _single(a) for n, a in given.items() if n not in known}
    program = fold(graph, {n: given[n] for n in known}, traced)
    for name in graph.outputs:
        if name in program.missing:
            raise Unsupported(program.missing[name])

    def run(images, params):
        env = dict(images)
        for step in program.steps:
            arrays = [_resolved(ref, env, params) for ref in step.inputs]
            ready = [i for i, ref in enumerate(step.inputs) if not isinstance(ref, Live)]
            outputs = evaluate(Call(step.node, jnp), step.operator, arrays, prepared=ready)
            env |= {n: o for n, o in zip(step.node.outputs, outputs, strict=False) if n}
        return {n: env[n] for n in graph.outputs if n in env}

    images = {n: jnp.asarray(a) for n, a in traced.items()}
    outputs = {**program.constants, **jax.jit(run)(images, program.params)}
    return [np.asarray(outputs[n]) for n in graph.outputs if n]


def _single(array: np.ndarray) -> np.ndarray:
    """Half precision is computed in float32, as images and weights are."""
    half = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if half else array


def _resolved(ref: Any, env: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
    if isinstance(ref, Live):
        return env[ref.name]
    return params[ref.key] if isinstance(ref, Param) else ref


def _judged(case, operator, mode, got, wanted) -> Result:
    error = 0.0
    for ours, theirs in zip(got, wanted, strict=True):
        theirs = np.asarray(theirs)
        if ours.shape != theirs.shape:
            return Result(case.name, operator, "failed", f"{mode}: {ours.shape}, {theirs.shape}")
        a, b = _comparable(ours), _comparable(theirs)
        rtol, atol = max(case.rtol, 1e-3), max(NEAR_ZERO, _rounding(theirs))
        if not np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
            with np.errstate(all="ignore"):
                off = np.nanmax(np.abs(a - b))
            return Result(case.name, operator, "failed", f"{mode}: off by {off:.3g}")
    return Result(case.name, operator, "passed", mode, error)


def _rounding(wanted: np.ndarray) -> float:
    """What the expected numbers may be off, themselves computed in half precision."""
    if not jnp.issubdtype(wanted.dtype, jnp.floating) or wanted.dtype.itemsize != 2:
        return 0.0
    numbers = wanted.astype(np.float64)
    finite = np.abs(numbers[np.isfinite(numbers)])
    return HALF_STEPS * float(jnp.finfo(wanted.dtype).eps) * float(finite.max(initial=0.0))


def _comparable(array: np.ndarray) -> np.ndarray:
    kind = np.complex128 if array.dtype.kind == "c" else np.float64
    return np.asarray(array).astype(kind)


def run_all(names: Any = None) -> list[Result]:
    """All tests, or those whose names are given."""
    jax.config.update("jax_disable_most_optimizations", True)  # each program runs once
    every = cases()
    _OWNERS.update(
        {c.name: c.model.graph.node[0].op_type for c in every if "_expanded" not in c.name}
    )
    results = []
    for case in every:
        if names is None or case.name in names:
            results.append(run_case(case))
            if results[-1].outcome == "failed":
                print(*results[-1], flush=True)
            if len(results) % 200 == 0:
                jax.clear_caches()  # thousands of small programs
    return results


def table(results: list[Result]) -> str:
    """The results as Markdown, an operator a line."""
    by_operator: dict[str, list[Result]] = collections.defaultdict(list)
    for result in results:
        by_operator[result.operator].append(result)
    count = collections.Counter(r.outcome for r in results)
    modes = collections.Counter(r.reason for r in results if r.outcome == "passed")
    lines = [
        "# ONNX backend node tests",
        "",
        f"{len(results)} tests: {count['passed']} passed, {count['failed']} failed, "
        f"{count['unsupported']} unsupported. Of those passed: "
        + ", ".join(f"{n} {mode}" for mode, n in modes.most_common())
        + ".",
        "",
        f"Made by experiments/onnx/node_tests.py with onnx {_version()}, whose tests these are.",
        "",
        "| operator | tests | passed | failed | unsupported | why |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for operator, group in sorted(by_operator.items()):
        n = collections.Counter(r.outcome for r in group)
        why = "; ".join(dict.fromkeys(_short(r.reason) for r in group if r.outcome != "passed"))
        lines.append(
            f"| {operator} | {len(group)} | {n['passed']} | {n['failed']} | {n['unsupported']} "
            f"| {why[:300]} |"
        )
    return "\n".join(lines) + "\n"


def _short(reason: str) -> str:
    text = reason.split("cannot be computed: ")[-1].split("; export the model")[0]
    return text.replace("|", "/").replace("\n", " ")[:120]


def _version() -> str:
    import onnx

    return onnx.__version__


if __name__ == "__main__":
    names = set(sys.argv[1:]) or None
    found = run_all(names)
    for result in found if names else ():
        print(*result)
    if names is None:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(table(found))
        print(table(found).split("\n")[2])
