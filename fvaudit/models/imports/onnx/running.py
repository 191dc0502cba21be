"""Sends images through a program's steps, with taps, channels last wherever that is free.

Steps are known for one image. Many go through at once in one of two ways:

    direct   the operator acts on each image alike (convolutions, pools, elementwise, along other
             axes): the images simply stand along the leading axis, which is 1 in the file
    else     `jax.vmap` of the step over images: right for every operator, whatever it does with
             its leading axis, and so no graph needs to be rewritten for a batch

A value is stored in ONNX's order of axes or with its channels (ONNX's axis 1) last:

    FIRST    ONNX's order; channels at axis 1
    LAST     channels moved last: (n, positions..., c). Convolutions and pools make it, elementwise
             operators keep it, a Transpose to (0, 2, 3, 1) reads it off without moving anything
    NATIVE   ONNX's order, whose last axis are the channels already: tokens, and what such a
             Transpose left
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fvaudit.models.imports.onnx.joined import joined_convolutions, run_joined
from fvaudit.models.imports.onnx.operators import Call, Kind, NotDirect, host
from fvaudit.models.imports.onnx.program import Live, Param, Program, Step, evaluate, live_inputs
from fvaudit.models.model import Tap


class Layout(enum.Enum):
    """Where a value's channels stand."""

    FIRST = enum.auto()
    LAST = enum.auto()
    NATIVE = enum.auto()


class Value(NamedTuple):
    """A value of many images."""

    array: Array  # (n, *shape), or (n, *shape[1:]) where shape starts with 1; as the layout says
    shape: tuple[int, ...]  # for one image, in ONNX's order
    layout: Layout = Layout.FIRST

    @property
    def merged(self) -> bool:
        """Whether the images stand along the value's own leading axis, which is 1."""
        return self.shape[:1] == (1,)

    @property
    def plain(self) -> Array:
        """In ONNX's order of axes."""
        return jnp.moveaxis(self.array, -1, 1) if self.layout is Layout.LAST else self.array

    @property
    def last(self) -> Array:
        """Channels last, for a merged value of more than two axes."""
        if self.layout is Layout.LAST or len(self.shape) < 3:
            return self.array
        return jnp.moveaxis(self.array, 1, -1)


def run_program(
    program: Program, names: Mapping[str, str], params: Any, x: Float[Array, "n h w c"], tap: Tap
) -> Array:
    """The last value that the program computes, for all images.

    Args:
        program: compiled.
        names: of the values that are taps, as the taps call them.
        params: as `Program.params`.
        x: what the network takes, after normalization.
        tap: called at every named value, in order, with (n, h, w, c), (n, t, c) or (n, c).
    """
    env = {program.input: _input(program, x)}
    if program.input in names:
        env[program.input] = _tapped(env[program.input], names[program.input], tap)
    joined, ready = joined_convolutions(program.steps), {}
    last_use = {name: i for i, step in enumerate(program.steps) for name in live_inputs(step)}
    kept = set(program.graph.outputs)
    result: Any = x
    for i, step in enumerate(program.steps):
        if i in joined:
            ready |= run_joined(program.steps, joined[i], params, env)
        if i in ready:
            shape = step.outputs[0].shape  # pyright: ignore[reportOptionalMemberAccess]
            values = [Value(ready.pop(i), shape, Layout.LAST)]
        else:
            values = run_step(step, [_resolved(ref, params, env) for ref in step.inputs])
        for name, value in zip(step.node.outputs, values, strict=False):
            if not name:
                continue
            env[name] = _tapped(value, names[name], tap) if name in names else value
            result = env[name].array if name in names or result is x else result
        for name in live_inputs(step):
            if last_use[name] == i and name not in kept:
                env.pop(name, None)
    finals = [env[name].array for name in program.graph.outputs if name in env]
    return finals[0] if finals else result


def _input(program: Program, x: Array) -> Value:
    batch = program.shape[0]
    layout = Layout.LAST if program.channels == 1 else Layout.NATIVE
    if batch == 1:
        return Value(x, program.shape, layout)
    plain = jnp.moveaxis(x, -1, 1) if layout is Layout.LAST else x
    return Value(plain.reshape(-1, *program.shape), program.shape)


def _resolved(ref: Any, params: Any, env: Mapping[str, Value]) -> Any:
    if isinstance(ref, Live):
        return env[ref.name]
    return params[ref.key] if isinstance(ref, Param) else ref


def _tapped(value: Value, name: str, tap: Tap) -> Value:
    shown = value.last if value.layout is Layout.FIRST and len(value.shape) == 4 else value.array
    seen = tap(name, shown)
    if seen is shown:
        return value
    if shown is value.array:
        return value._replace(array=seen)
    return value._replace(array=seen, layout=Layout.LAST)


def run_step(step: Step, inputs: Sequence[Any]) -> list[Value]:
    """One step for many images; inputs are `Value`s, arrays that all images share, or None."""
    direct = _VIEWS.get(step.node.op) or _DIRECT.get(step.operator.kind)
    live = [x for x in inputs if isinstance(x, Value)]
    if (
        direct
        and all(v.merged for v in live)
        and all(o is None or o.shape[:1] == (1,) for o in step.outputs)
    ):
        try:
            return direct(step, inputs)
        except NotDirect:
            pass
    return _each_image(step, inputs)


def _each_image(step: Step, inputs: Sequence[Any]) -> list[Value]:
    places = [i for i, x in enumerate(inputs) if isinstance(x, Value)]
    constants = [i for i, x in enumerate(inputs) if i not in places and x is not None]

    def one(*images):
        arrays = list(inputs)
        for i, image in zip(places, images, strict=True):
            arrays[i] = image[None] if inputs[i].merged else image
        return evaluate(Call(step.node, jnp), step.operator, arrays, prepared=constants)

    outputs = jax.vmap(one)(*(inputs[i].plain for i in places))
    values = []
    for output, struct in zip(outputs, step.outputs, strict=False):
        shape = output.shape[1:] if struct is None else struct.shape
        merged = shape[:1] == (1,)
        array = output.reshape(output.shape[0], *shape[1:]) if merged else output
        values.append(Value(array, shape, _native_if_kept(step, inputs, shape)))
    return values


def _native_if_kept(step: Step, inputs: Sequence[Any], shape: tuple[int, ...]) -> Layout:
    """NATIVE is kept where positions or channels stay as they are, and said where it shows."""
    first = next(x for x in inputs if isinstance(x, Value))
    if len(shape) != 4 or step.node.op == "Transpose":
        return Layout.FIRST
    if step.node.op == "MatMul" and not isinstance(inputs[1], Value) and np.ndim(inputs[1]) == 2:
        return Layout.NATIVE
    if step.node.op == "LayerNormalization" and step.node.get("axis", -1) in (-1, 3):
        return Layout.NATIVE
    same = len(first.shape) == 4 and (first.shape[1:3] == shape[1:3] or first.shape[3] == shape[3])
    return Layout.NATIVE if first.layout is Layout.NATIVE and same else Layout.FIRST


def _elementwise(step: Step, inputs: Sequence[Any]) -> list[Value]:
    rank = len(_shape(step))
    live = [x for x in inputs if isinstance(x, Value)]
    if any(len(v.shape) != rank for v in live):
        raise NotDirect
    layouts = [v.layout for v in live]
    layout = next((k for k in (Layout.LAST, Layout.NATIVE) if k in layouts), Layout.FIRST)
    last = layout is Layout.LAST
    arrays = [
        (x.last if last else x.plain) if isinstance(x, Value) else _aligned(x, rank, last)
        for x in inputs
    ]
    return _outputs(step, step.operator.run(Call(step.node, jnp), *arrays), layout)


def _aligned(x: Any, rank: int, last: bool) -> Any:
    """A constant beside images: as one image, its channels where theirs are."""
    if x is None or np.ndim(x) == 0:
        return x
    if np.ndim(x) == rank and np.shape(x)[0] != 1:
        raise NotDirect
    if not last or np.size(x) == 1:
        return x
    xp: Any = np if host(x) else jnp
    return xp.moveaxis(xp.reshape(x, (1,) * (rank - np.ndim(x)) + np.shape(x)), 1, -1)


def _spatial(step: Step, inputs: Sequence[Any]) -> list[Value]:
    first, *rest = inputs
    if any(isinstance(x, Value) for x in rest) or not isinstance(first, Value):
        raise NotDirect
    result = step.operator.run(Call(step.node, jnp, images=True), first.last, *rest)
    return _outputs(step, result, Layout.LAST if len(first.shape) > 2 else Layout.FIRST)


def _along(step: Step, inputs: Sequence[Any]) -> list[Value]:
    live = [x for x in inputs if isinstance(x, Value)]
    ranks = {len(v.shape) for v in live}
    if any(
        np.ndim(x) and i not in step.operator.static
        for i, x in enumerate(inputs)
        if not (x is None or isinstance(x, Value))
    ):
        raise NotDirect  # a constant beside images stands for one image
    layout = Layout.LAST if any(v.layout is Layout.LAST for v in live) else live[0].layout
    last = layout is Layout.LAST
    if len(ranks) > 1:
        raise NotDirect
    rank = ranks.pop()
    order = (0, *range(2, rank), 1) if last else None
    call = Call(step.node, jnp, order, images=True)
    arrays = [(x.last if last else x.plain) if isinstance(x, Value) else x for x in inputs]
    result = step.operator.run(call, *arrays)
    outputs = _outputs(step, result, layout)
    kept = all(len(v.shape) == rank for v in outputs)
    return outputs if kept else [v._replace(layout=Layout.FIRST) for v in outputs]


def _rows(step: Step, inputs: Sequence[Any]) -> list[Value]:
    first, *rest = inputs
    if any(isinstance(x, Value) for x in rest) or not isinstance(first, Value):
        raise NotDirect
    call = Call(step.node, jnp, None, images=True)
    result = step.operator.run(call, first.plain, *rest)
    return _outputs(step, result, _native_if_kept(step, inputs, _shape(step)))


def _view(step: Step, inputs: Sequence[Any]) -> list[Value]:
    """Another shape for the same numbers; axes of positions may merge under last channels."""
    x, shape = inputs[0], _shape(step)
    n = x.array.shape[0]
    if x.layout is Layout.LAST and len(shape) > 2 and shape[1] == x.shape[1]:
        return [Value(x.array.reshape(n, *shape[2:], shape[1]), shape, Layout.LAST)]
    points = x.layout is Layout.LAST and all(s == 1 for s in x.shape[2:])
    array = x.array if points else x.plain
    return [Value(array.reshape(n, *shape[1:]), shape)]


def _transposed(step: Step, inputs: Sequence[Any]) -> list[Value]:
    """A Transpose that only renames axes, or one that makes channels stand last."""
    x, shape = inputs[0], _shape(step)
    rank = len(shape)
    last = (0, *range(2, rank), 1)
    perm = tuple(step.node.get("perm", range(rank - 1, -1, -1)))
    stored = last if x.layout is Layout.LAST else tuple(range(rank))
    if rank < 3 or perm[0] != 0:
        raise NotDirect
    order = tuple(perm.index(axis) for axis in stored)
    if order == tuple(range(rank)):
        return [Value(x.array, shape, Layout.NATIVE)]
    if order == last:
        return [Value(x.array, shape, Layout.LAST)]
    layout = Layout.NATIVE if perm == last else Layout.FIRST
    return [Value(jnp.transpose(x.plain, perm), shape, layout)]


def _shape(step: Step) -> tuple[int, ...]:
    return step.outputs[0].shape  # pyright: ignore[reportOptionalMemberAccess]


def _outputs(step: Step, result: Any, layout: Layout) -> list[Value]:
    arrays = result if isinstance(result, tuple) else (result,)
    shapes = [o.shape if o is not None else None for o in step.outputs]
    return [
        Value(a, shape if shape is not None else (1, *a.shape[1:]), layout)
        for a, shape in zip(arrays, shapes, strict=False)
    ]


_DIRECT: Mapping[Kind, Callable[..., list[Value]]] = {
    Kind.ELEMENTWISE: _elementwise,
    Kind.SPATIAL: _spatial,
    Kind.ALONG: _along,
    Kind.ROWS: _rows,
    Kind.VIEW: _view,
}
_VIEWS = {"Transpose": _transposed}
