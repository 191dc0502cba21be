"""Operators that move numbers about: shapes, joins, cuts, paddings, permutations."""

import math

import numpy as np

from fvaudit.models.imports.onnx.operators import (
    Kind,
    Operator,
    Unsupported,
    data_type,
    numbers,
    require_numbers,
)
from fvaudit.records import AuditError


def _reshape(call, x, shape):
    wanted = numbers(shape)
    if not call.get("allowzero", 0):
        if any(s == 0 and i >= x.ndim for i, s in enumerate(wanted)):
            raise AuditError(f"a shape {wanted} copies axes that {x.shape} lacks")
        wanted = [x.shape[i] if s == 0 else s for i, s in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(call, x):
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(call, x, axes=None):
    axes = call.get("axes") if call.version < 13 else axes
    if axes is None:
        return call.xp.squeeze(x)
    return call.xp.squeeze(x, call.axes(numbers(axes), x.ndim))


def _unsqueeze(call, x, axes=None):
    axes = numbers(call.get("axes") if call.version < 13 else axes)
    return call.xp.expand_dims(x, tuple(axes))


def _transpose(call, x):
    return call.xp.transpose(x, call.get("perm"))


def _concat(call, *arrays):
    return call.xp.concatenate(arrays, axis=call.axis(call.get("axis", 1), arrays[0].ndim))


def _split(call, x, sizes=None):
    axis = call.axis(call.get("axis", 0), x.ndim)
    sizes = call.get("split") if call.version < 13 else sizes
    if sizes is None:
        count = call.get("num_outputs") or len(call.node.outputs)
        step = -(-x.shape[axis] // count)
        ends = [min(step * (i + 1), x.shape[axis]) for i in range(count)]
    else:
        ends = list(np.cumsum(numbers(sizes)))
        if any(s < 0 for s in numbers(sizes)) or not ends or ends[-1] != x.shape[axis]:
            raise AuditError(f"pieces of {numbers(sizes)} do not make up {x.shape[axis]}")
    return tuple(call.xp.split(x, ends[:-1], axis=axis))


def _slice(call, x, starts=None, ends=None, axes=None, steps=None):
    if call.version < 10:
        starts, ends, axes = (call.get(k) for k in ("starts", "ends", "axes"))
    starts, ends = numbers(starts), numbers(ends)
    axes = list(range(len(starts))) if axes is None else numbers(axes)
    steps = [1] * len(starts) if steps is None else numbers(steps)
    cut = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[call.axis(axis, x.ndim)] = _cut(start, end, step)
    return x[tuple(cut)]


def _cut(start, end, step):
    """ONNX's slice as Python's: an end far below 0 with a negative step means "to the first"."""
    if step == 0:
        raise AuditError("a slice has step 0")
    return slice(start, None if step < 0 and end < -(2**30) else end, step)


_PADDINGS = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _pad(call, x, pads=None, value=None, axes=None):
    if call.version < 11:
        pads, value = call.get("pads", call.get("paddings")), call.get("value", 0.0)
    pads = numbers(pads)
    axes = list(range(x.ndim)) if axes is None else numbers(axes)
    if len(pads) != 2 * len(axes):
        raise AuditError(f"{len(pads)} paddings are given for {len(axes)} axes")
    width = [(0, 0)] * x.ndim
    for i, axis in enumerate(axes):
        both = (pads[i], pads[i + len(axes)])
        if any(both):
            width[call.axis(axis, x.ndim)] = both
    mode = _PADDINGS.get(call.get("mode", "constant"))
    if mode is None:
        raise Unsupported(f"padding mode {call.get('mode')!r} is not known")
    return _padded(call, x, width, mode, 0 if value is None else value)


def _padded(call, x, width, mode, value):
    """Negative paddings crop."""
    require_numbers([s + max(a, 0) + max(b, 0) for s, (a, b) in zip(x.shape, width, strict=True)])
    cut = [slice(max(-a, 0), s - max(-b, 0)) for s, (a, b) in zip(x.shape, width, strict=True)]
    grow = [(max(a, 0), max(b, 0)) for a, b in width]
    fill = {"constant_values": call.xp.reshape(value, ())} if mode == "constant" else {}
    return call.xp.pad(x[tuple(cut)], grow, mode=mode, **fill)


def _expand(call, x, shape):
    return call.xp.broadcast_to(
        x, require_numbers(np.broadcast_shapes(x.shape, tuple(numbers(shape))))
    )


def _tile(call, x, repeats):
    repeats = numbers(repeats)
    require_numbers([s * r for s, r in zip(x.shape, repeats, strict=True)])
    return call.xp.tile(x, repeats)


def _constant(call):
    known = ("value", "value_float", "value_int", "value_floats", "value_ints")
    name = next((k for k in known if k in call.node.attributes), None)
    if name is None:
        raise Unsupported("only constants that are numbers can be read")
    kind = np.float32 if "float" in name else np.int64
    return call.get(name) if name == "value" else np.asarray(call.get(name), kind)


def _constant_of_shape(call, shape):
    value = call.get("value", np.zeros(1, np.float32))
    return np.full(require_numbers(numbers(shape)), value.reshape(-1)[0], value.dtype)


def _shape(call, x):
    return np.asarray(x.shape, np.int64)[call.get("start", 0) : call.get("end")]


def _size(call, x):
    return np.asarray(math.prod(x.shape), np.int64)


def _range(call, start, limit, step):
    values = [np.asarray(v).reshape(()) for v in (start, limit, step)]
    if values[2] == 0 or not all(np.isfinite(float(v)) for v in values):
        raise AuditError("a Range needs finite numbers and a step other than 0")
    count = max(math.ceil((values[1] - values[0]) / values[2]), 0)
    require_numbers([count])
    return (values[0] + np.arange(count) * values[2]).astype(values[0].dtype)


def _eye_like(call, x):
    code = call.get("dtype")
    dtype = x.dtype if code is None else data_type(call.xp, code)
    return call.xp.eye(*x.shape, k=call.get("k", 0), dtype=dtype)


def _depth_to_space(call, x):
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        y = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    else:
        y = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(call, x):
    n, c, h, w = x.shape
    b = call.get("blocksize")
    axes = (0, 1, 3, 5, 2, 4) if call.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    y = x.reshape(n, c, h // b, b, w // b, b).transpose(axes)
    return y.reshape(n, c * b**2, h // b, w // b)


def _center_crop_pad(call, x, shape):
    axes = call.get("axes", range(x.ndim))
    cut, width = [slice(None)] * x.ndim, [(0, 0)] * x.ndim
    for axis, target in zip(call.axes(axes, x.ndim), numbers(shape), strict=True):
        spare = target - x.shape[axis]
        if spare > 0:
            width[axis] = (spare // 2, spare - spare // 2)
        else:
            cut[axis] = slice(-spare // 2, -spare // 2 + target)
    return _padded(call, x[tuple(cut)], width, "constant", 0)


def _trilu(call, x, k=None):
    k = 0 if k is None else int(np.asarray(k).reshape(()))
    k = max(min(k, 2**30), -(2**30))
    return call.xp.triu(x, k) if call.get("upper", 1) else call.xp.tril(x, k)


def _reverse_sequence(call, x, lengths):
    xp = call.xp
    batch, time = call.get("batch_axis", 1), call.get("time_axis", 0)
    moved = xp.moveaxis(x, (batch, time), (0, 1))
    steps = xp.arange(moved.shape[1])[None]
    lengths = xp.asarray(lengths)[:, None]
    places = xp.where(steps < lengths, lengths - 1 - steps, steps)
    places = places.reshape(places.shape + (1,) * (moved.ndim - 2))
    return xp.moveaxis(xp.take_along_axis(moved, places, 1), (0, 1), (batch, time))


OPERATORS = {
    "Reshape": Operator(_reshape, Kind.VIEW, static=(1,)),
    "Flatten": Operator(_flatten, Kind.VIEW),
    "Squeeze": Operator(_squeeze, Kind.VIEW, static=(1,)),
    "Unsqueeze": Operator(_unsqueeze, Kind.VIEW, static=(1,)),
    "Transpose": Operator(_transpose),
    "Concat": Operator(_concat, Kind.ALONG),
    "Split": Operator(_split, Kind.ALONG, static=(1,)),
    "Slice": Operator(_slice, Kind.ALONG, static=(1, 2, 3, 4)),
    "Pad": Operator(_pad, Kind.ALONG, static=(1, 3)),
    "Expand": Operator(_expand, static=(1,)),
    "Tile": Operator(_tile, static=(1,)),
    "Constant": Operator(_constant),
    "ConstantOfShape": Operator(_constant_of_shape, static=(0,)),
    "Shape": Operator(_shape),
    "Size": Operator(_size),
    "Range": Operator(_range, static=(0, 1, 2)),
    "EyeLike": Operator(_eye_like),
    "DepthToSpace": Operator(_depth_to_space),
    "SpaceToDepth": Operator(_space_to_depth),
    "CenterCropPad": Operator(_center_crop_pad, Kind.ALONG, static=(1,)),
    "Trilu": Operator(_trilu, static=(1,)),
    "ReverseSequence": Operator(_reverse_sequence),
}
