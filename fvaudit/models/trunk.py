"""Which layers does every path from the images to the output cross?

Only there can the processing of two images be compared whole: a layer beside a shortcut shows a
part of it. The forward pass is traced once with its taps marked; in the graph of its operations, a
layer lies on every path exactly when

    (paths from the images to it) * (paths from it to the output) = all paths

which whole numbers of any size decide exactly.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


MARK = "name"  # the primitive that `checkpoint_name` leaves in a trace


class _Step(NamedTuple):
    inputs: tuple[int, ...]  # numbers of values
    outputs: tuple[int, ...]
    layer: str | None  # the tap that this step marks


def trunk(forward: Any, params: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The taps that every path from images to output crosses, in order of computation.

    Args:
        forward: called as forward(params, images, tap); returns an array, or a pytree of which
            the last leaf counts as the output.
        params: pytree of arrays.
        shape: of a batch of images, float32.
    """
    closed = _traced(forward, params, shape)
    numbers: dict[Any, int] = {}
    steps = list(_steps(closed.jaxpr, numbers))
    ends = _number(closed.jaxpr.invars[-1], numbers), _number(closed.jaxpr.outvars[-1], numbers)
    marks = [(step.layer, step.outputs[0]) for step in steps if step.layer]
    return _crossed(steps, *ends, marks)


def trunk_of_outputs(forward: Any, params: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The same for a function that returns (output, {name: activation}), in order of names.

    Args:
        forward: called as forward(params, images).
        params: pytree of arrays.
        shape: of a batch of images, float32.
    """
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    closed, (_, activations) = jax.make_jaxpr(forward, return_shape=True)(params, images)
    numbers: dict[Any, int] = {}
    steps = list(_steps(closed.jaxpr, numbers))
    start = _number(closed.jaxpr.invars[-1], numbers)
    output, *values = (_number(v, numbers) for v in closed.jaxpr.outvars)
    return _crossed(steps, start, output, list(zip(sorted(activations), values, strict=True)))


def reaching(forward: Any, params: Any, shape: tuple[int, ...], layer: str) -> tuple[bool, ...]:
    """Of every leaf of `params`, whether the activations of a layer depend on it.

    Args:
        forward: called as forward(params, images, tap).
        params: pytree of arrays.
        shape: of a batch of images, float32.
        layer: that `forward` taps.
    """
    closed = _traced(forward, params, shape)
    numbers: dict[Any, int] = {}
    steps = list(_steps(closed.jaxpr, numbers))
    leaves = [_number(v, numbers) for v in closed.jaxpr.invars[:-1]]
    end = next(step.outputs[0] for step in steps if step.layer == layer)
    back = _paths([_Step(s.outputs, s.inputs, s.layer) for s in reversed(steps)], {end: 1})
    return tuple(back[leaf] > 0 for leaf in leaves)


def _traced(forward: Any, params: Any, shape: tuple[int, ...]) -> Any:
    """The trace of a forward pass with its taps marked."""

    def marked(params, images):
        return forward(params, images, lambda name, x: checkpoint_name(x, name))

    return jax.make_jaxpr(marked)(params, jax.ShapeDtypeStruct(shape, jnp.float32))


def _crossed(
    steps: list[_Step], start: int, end: int, layers: list[tuple[str, int]]
) -> tuple[str, ...]:
    """Of layers with the numbers of their values, those that all paths cross."""
    before = _paths(steps, {start: 1})
    after = _paths([_Step(s.outputs, s.inputs, s.layer) for s in reversed(steps)], {end: 1})
    every = before[end]
    return tuple(dict.fromkeys(n for n, v in layers if every and before[v] * after[v] == every))


def _paths(steps: list[_Step], sources: dict[int | None, int]) -> dict[int | None, int]:
    """How many ways lead from the sources to every value; steps in order of computation."""
    counts = defaultdict(int, sources)
    for step in steps:
        arriving = sum(counts[value] for value in step.inputs)
        for value in step.outputs:
            counts[value] += arriving
    return counts


def _steps(jaxpr: Any, numbers: dict[Any, int]) -> Iterator[_Step]:
    """The operations in order; calls of functions are entered, other control flow is one step."""
    for variable in (*jaxpr.constvars, *jaxpr.invars):
        numbers.setdefault(variable, len(numbers))
    for equation in jaxpr.eqns:
        inputs = tuple(_number(v, numbers) for v in equation.invars)
        inner = _called(equation)
        if inner is None:
            outputs = tuple(_number(v, numbers) for v in equation.outvars)
            layer = equation.params["name"] if equation.primitive.name == MARK else None
            yield _Step(inputs, outputs, layer)
            continue
        scope = _Scope(numbers, dict(zip(inner.invars, inputs, strict=True)))
        yield from _steps(inner, scope)
        for outer, result in zip(equation.outvars, inner.outvars, strict=True):
            numbers[outer] = _number(result, scope)


class _Scope(dict):
    """Numbers of one call's values, counted on from the caller's: it may be called twice."""

    def __init__(self, outer: dict[Any, int], known: dict[Any, int]):
        super().__init__(known)
        self._outer = outer

    def setdefault(self, key: Any, default: Any = None) -> int:
        if key not in self:
            self[key] = self._outer.setdefault(object(), len(self._outer))
        return self[key]

    def __len__(self) -> int:
        return len(self._outer)


def _number(variable: Any, numbers: dict[Any, int]) -> int:
    if isinstance(variable, jax.extend.core.Literal):
        return numbers.setdefault(object(), len(numbers))
    return numbers.setdefault(variable, len(numbers))


def _called(equation: Any) -> Any:
    """The body of a call that runs once and takes the equation's own inputs, or None."""
    if equation.primitive.name in ("scan", "while", "cond"):
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        body = equation.params.get(key)
        body = getattr(body, "jaxpr", body)
        if body is not None and len(body.invars) == len(equation.invars):
            return body
    return None
