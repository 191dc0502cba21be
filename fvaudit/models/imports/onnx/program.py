"""A graph as a list of steps that one image goes through; everything else is folded away.

The graph is read as a function of **one** image: its batch axis, whether the file left it open or
fixed it at 1, is 1 here. So all shapes are known, and whatever does not depend on the image
(initializers, constants, shape arithmetic, reshaped or dequantized weights) is computed once, at
load time, in NumPy with the file's own types. What is left are steps with known shapes; `running`
sends any number of images through them.

A batch fixed at B > 1 is read as 1 by a rule that is then checked against the graph as it stands
(see `load`): the first entry of a Reshape's or Expand's target that B divides is divided by B, and
a constant whose B rows are equal is cut to one row where it meets an image.

Shapes are inferred before anything is computed, so that no array is made that is too large.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fvaudit.models.imports.onnx.graph import Graph, Node, inner
from fvaudit.models.imports.onnx.operators import (
    MOST_NUMBERS,
    Call,
    Kind,
    Operator,
    Unsupported,
    host,
    is_floating,
    numbers,
)
from fvaudit.models.imports.onnx.table import find
from fvaudit.models.imports.pickle_ops import shown
from fvaudit.records import AuditError


FOLDED_NUMBERS = 2**26  # of all constants made at load time, beyond ten times the file's own
_MOST_BRANCHES = 16  # of Ifs inside Ifs


class Live(NamedTuple):
    """A value that depends on the image."""

    name: str


class Param(NamedTuple):
    """A constant that is a parameter of the model."""

    key: str


class Step(NamedTuple):
    """One operation on an image."""

    node: Node
    operator: Operator
    inputs: tuple[Any, ...]  # Live, Param, a NumPy array (as `prepare` made it), or None
    outputs: tuple[jax.ShapeDtypeStruct | None, ...]  # of one image, in ONNX's order of axes


@dataclasses.dataclass
class Program:
    """What is left of a graph for one image."""

    graph: Graph
    fixed: int = 1  # batch that the file fixed and that is read as 1
    input: str = ""  # the graph's input that takes images
    shape: tuple[int, ...] = ()  # of that input, with batch axis, in ONNX's order
    channels: int = 1  # axis of colours in it
    steps: list[Step] = dataclasses.field(default_factory=list)
    params: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)  # value -> why there is none
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # folded outputs


def compile_graph(
    graph: Graph, input: str, shape: tuple[int, ...], channels: int, *, fixed: int = 1
) -> Program:
    """Folds a graph for one input shape.

    Args:
        graph: validated.
        input: name of the input that takes images.
        shape: of that input, in the graph's own order, batch axis included.
        channels: its axis of colours.
        fixed: the batch that the file was exported with, where `shape` says 1 instead.

    Raises:
        AuditError: if a node's inputs do not fit it, or a constant would be too large.
    """
    images = {input: jax.ShapeDtypeStruct(shape, jnp.float32)}
    program = fold(graph, {}, images, fixed=fixed)
    program.input, program.shape, program.channels = input, shape, channels
    return program


def fold(
    graph: Graph, known: Mapping[str, np.ndarray], traced: Mapping[str, Any], *, fixed: int = 1
) -> Program:
    """Folds whatever does not depend on the `traced` inputs.

    Args:
        graph: validated.
        known: inputs that are constants.
        traced: inputs with shape and type that are not.
        fixed: as `compile_graph` says.

    Raises:
        AuditError: as `compile_graph` says.
    """
    program = Program(graph, fixed)
    env: dict[str, Any] = {**graph.constants, **known}
    env |= {n: jax.ShapeDtypeStruct(x.shape, _dtype(x)) for n, x in traced.items()}
    own = sum(c.size for c in graph.constants.values())
    folder = _Folder(program, env, 10 * own + FOLDED_NUMBERS)
    for node in graph.nodes:
        folder.visit(node, 0)
    program.constants = {n: env[n] for n in graph.outputs if n in env and host(env[n])}
    return program


@dataclasses.dataclass
class _Folder:
    """The state of one pass over a graph: what is known about each value."""

    program: Program
    env: dict[str, Any]  # name -> NumPy array (known) or ShapeDtypeStruct (depends on the image)
    budget: int  # numbers that may still be folded

    def visit(self, node: Node, depth: int) -> None:
        """Folds one node, or makes it a step, or says why its outputs are missing."""
        lost = next((n for n in node.inputs if n in self.program.missing), None)
        if lost is not None:
            self._lose(node, self.program.missing[lost])
            return
        inputs = [self.env[name] if name else None for name in node.inputs]
        try:
            if node.op == "If" and not node.domain:
                self._branch(node, inputs, depth)
            else:
                self._compute(node, inputs)
        except Unsupported as error:
            self._lose(node, f"node {node.label} ({shown(node.op)}) cannot be computed: {error}")
        except AuditError as error:
            raise AuditError(_wrong(node, inputs, error)) from None
        except Exception as error:  # JAX and NumPy raise many kinds where shapes do not fit
            raise AuditError(_wrong(node, inputs, error)) from None

    def _lose(self, node, why):
        self.program.missing |= {name: why for name in node.outputs if name}

    def _branch(self, node, inputs, depth):
        if len(inputs) != 1 or not host(inputs[0]):
            raise Unsupported("which branch an If takes depends on the image")
        if depth >= _MOST_BRANCHES:
            raise AuditError(f"more than {_MOST_BRANCHES} Ifs lie inside one another")
        name = "then_branch" if bool(np.asarray(inputs[0]).reshape(())) else "else_branch"
        body = inner(node.get(name), set(self.env) | set(self.program.missing))
        self.env |= body.constants
        for inside in body.nodes:
            self.visit(inside, depth + 1)
        for outside, name in zip(node.outputs, body.outputs, strict=True):
            same = node._replace(op="Identity", inputs=(name,), outputs=(outside,), attributes={})
            self.visit(same, depth + 1)

    def _compute(self, node, inputs):
        operator = find(node)
        if node.op in ("Shape", "Size") and inputs[0] is not None:
            known = operator.run(Call(node, np), inputs[0])
            self.env[node.outputs[0]] = known
            return
        inputs = self._for_one_image(node, inputs)
        if not all(x is None or host(x) for x in inputs):
            inputs = [x if i in operator.typed else _single(x) for i, x in enumerate(inputs)]
        outputs = infer(node, operator, inputs)
        if all(x is None or host(x) for x in inputs):
            self._fold(node, operator, inputs, outputs)
        else:
            self._step(node, operator, inputs, outputs)

    def _fold(self, node, operator, inputs, outputs):
        self.budget -= sum(math.prod(o.shape) for o in outputs if o is not None)
        if self.budget < 0:
            raise AuditError("the constants that the model computes are too large to hold")
        with np.errstate(all="ignore"):
            values = evaluate(Call(node, np), operator, inputs)
        for name, value in zip(node.outputs, values, strict=False):
            if name:
                self.env[name] = np.asarray(value)

    def _step(self, node, operator, inputs, outputs):
        refs = []
        for i, (name, value) in enumerate(zip(node.inputs, inputs, strict=True)):
            known = value is None or host(value)
            refs.append(self._constant(node, operator, i, name, value) if known else Live(name))
        self.program.steps.append(Step(node, operator, tuple(refs), outputs))
        self.env |= {n: o for n, o in zip(node.outputs, outputs, strict=True) if n}

    def _constant(self, node, operator, i, name, value):
        """A constant input of a step: a parameter if it holds several fractions."""
        if value is None:
            return None
        prepare = operator.prepare.get(i)
        value = value if prepare is None else np.ascontiguousarray(prepare(np, value))
        weight = is_floating(value) or ("Q" in node.op and value.ndim > 1) or "Integer" in node.op
        if i in operator.static or i in operator.typed or value.size < 2 or not weight:
            return value
        key = name if prepare is None else f"{name} (kernel)"
        if value.shape != self.env[name].shape and prepare is None:
            key = f"{name} (one row)"
        self.program.params[key] = np.asarray(value, np.float32)
        return Param(key)

    def _for_one_image(self, node, inputs):
        """Undoes a batch fixed at B > 1, by the rule in the module's docstring."""
        b = self.program.fixed
        live = [x for x in inputs if x is not None and not host(x)]
        if b == 1 or not live:
            return inputs
        if node.op in ("Reshape", "Expand") and host(inputs[1]):
            return [inputs[0], _divided(inputs[1], b)]
        if node.op not in ("Concat", "Where", "Add", "Sub", "Mul", "Div"):
            return inputs
        rank = max(len(x.shape) for x in live)
        return [
            x[:1]
            if x is not None and host(x) and x.ndim == rank and len(x) == b and (x == x[:1]).all()
            else x
            for x in inputs
        ]


def _single(x: Any) -> Any:
    """Constants of 16 bits beside images are computed with in float32."""
    half = host(x) and is_floating(x) and x.dtype.itemsize == 2
    return np.asarray(x, np.float32) if half else x


def _divided(target: np.ndarray, b: int) -> np.ndarray:
    sizes = numbers(target)
    place = next((i for i, s in enumerate(sizes) if s > 0 and s % b == 0), None)
    if place is not None:
        sizes[place] //= b
    return np.asarray(sizes, np.int64)


def _wrong(node: Node, inputs: Sequence[Any], error: Exception) -> str:
    shapes = ", ".join("none" if x is None else str(tuple(x.shape)[:8]) for x in inputs[:6])
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (
        f"Node {node.label} ({shown(node.op)}) cannot be computed for inputs of shapes {shapes}: "
        f"{shown(lines[0])}. Is the file damaged, or the input size another than it was exported "
        "with?"
    )


def infer(node: Node, operator: Operator, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Shapes and types of a node's outputs, without computing them.

    Args:
        node: whose attributes count.
        operator: of the node.
        inputs: NumPy arrays (known) and `ShapeDtypeStruct`s, for one image, in ONNX's order.

    Raises:
        Unsupported: if an input must be known and is not.
        AuditError: if an output would be too large.
    """
    live = any(x is not None and not host(x) for x in inputs)
    places = [
        i
        for i, x in enumerate(inputs)
        if x is not None
        and i not in operator.static
        and not (live and host(x) and not is_floating(x))  # known indices are checked
    ]
    for i in operator.static:
        if i < len(inputs) and inputs[i] is not None and not host(inputs[i]):
            raise Unsupported(f"its input {i + 1} depends on the image; only constants will do")
    if all(x is None or host(x) for x in inputs) and not places:
        outputs = evaluate(Call(node, np), operator, inputs)  # bounded by the operator itself
        return _named(node, [jax.ShapeDtypeStruct(np.shape(o), _dtype(o)) for o in outputs])

    def run(*abstract):
        merged = list(inputs)
        for i, x in zip(places, abstract, strict=True):
            merged[i] = x
        return evaluate(Call(node, jnp), operator, merged)

    known = [jax.ShapeDtypeStruct(inputs[i].shape, _dtype(inputs[i])) for i in places]
    outputs = jax.eval_shape(run, *known)
    for output in outputs:
        if math.prod(output.shape) > MOST_NUMBERS:
            raise AuditError(f"its output of shape {output.shape[:8]} is too large")
    return _named(node, outputs)


def _dtype(array: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(array.dtype)


def _named(node: Node, outputs: Sequence[Any]) -> tuple[Any, ...]:
    wanted = node.outputs
    while wanted and not wanted[-1]:
        wanted = wanted[:-1]
    if len(outputs) < len(wanted):
        raise Unsupported(f"it has {len(wanted)} outputs; only {len(outputs)} can be computed")
    padded = [*outputs[: len(wanted)], *[None] * (len(node.outputs) - len(wanted))]
    return tuple(o if n else None for n, o in zip(node.outputs, padded, strict=True))


def evaluate(
    call: Call, operator: Operator, inputs: Sequence[Any], prepared: Sequence[int] = ()
) -> tuple[Any, ...]:
    """Runs an operator on arrays of one image in ONNX's order of axes.

    Args:
        call: with the library that the arrays are of.
        operator: of the call's node.
        inputs: arrays; None where an input is left out.
        prepared: inputs that `Operator.prepare` has already been applied to.
    """
    arrays = list(inputs)
    for i, prepare in operator.prepare.items():
        if i < len(arrays) and arrays[i] is not None and i not in prepared:
            arrays[i] = prepare(call.xp, arrays[i])
    spatial = operator.kind is Kind.SPATIAL and arrays[0].ndim > 2
    if spatial:
        arrays[0] = call.xp.moveaxis(arrays[0], 1, -1)
    result = operator.run(call, *arrays)
    outputs = result if isinstance(result, tuple) else (result,)
    xp = np if all(host(o) for o in outputs) else jnp
    return tuple(xp.moveaxis(o, -1, 1) for o in outputs) if spatial else outputs


def live_inputs(step: Step) -> tuple[str, ...]:
    """Names of the values that a step reads and that depend on the image."""
    return tuple(ref.name for ref in step.inputs if isinstance(ref, Live))


def users(steps: Sequence[Step]) -> Mapping[str, list[int]]:
    """Numbers of the steps that read each value."""
    found: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        for name in dict.fromkeys(live_inputs(step)):
            found.setdefault(name, []).append(i)
    return found
