"""Operators along axes: sums and other reductions, softmax, extremes and their places."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from fvaudit.models.imports.onnx.operators import (
    Kind,
    NotDirect,
    Operator,
    data_type,
    numbers,
)
from fvaudit.records import AuditError


# Operator set from which the axes of a reduction are an input and no attribute.
_AXES_INPUT = {"ReduceSum": 13}
_AXES_INPUT_OTHERS = 18


def _reduction(reduce):
    def run(call, x, axes=None):
        if call.version < _AXES_INPUT.get(call.node.op, _AXES_INPUT_OTHERS):
            axes = call.get("axes")
        axes = [] if axes is None else numbers(axes)
        if not axes and call.get("noop_with_empty_axes", 0):
            return _unreduced(call, x)
        places = call.axes(axes or range(x.ndim), x.ndim)
        keep = bool(call.get("keepdims", 1))
        if not keep:
            _require_order(call, places, x.ndim)
        return reduce(call.xp, x, places, keep).astype(x.dtype)

    return run


def _unreduced(call, x):
    """Reductions of no axis at all still apply their formula to each number."""
    xp = call.xp
    formulas = {
        "ReduceL1": xp.abs, "ReduceL2": xp.abs, "ReduceSumSquare": xp.square,
        "ReduceLogSum": xp.log, 
    }  # fmt: skip
    return formulas.get(call.node.op, lambda y: y)(x)


def _require_order(call, removed, rank):
    """What stays must be in ONNX's order once axes are dropped."""
    if call.order is not None:
        left = [axis for place, axis in enumerate(call.order) if place not in removed]
        if left != sorted(left):
            raise NotDirect


def _log_sum_exp(xp, x, axes, keep):
    top = xp.max(x, axes, keepdims=True, initial=-np.inf)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    total = xp.log(xp.sum(xp.exp(x - top), axes, keepdims=True)) + top
    return total if keep else xp.squeeze(total, axes)


def _extreme(largest):
    def reduce(xp, x, axes, keep):
        find = xp.max if largest else xp.min
        if math.prod(x.shape[a] for a in axes):
            return find(x, axes, keepdims=keep)
        return find(x, axes, keepdims=keep, initial=_bound(x.dtype, lowest=largest))

    return reduce


def _bound(dtype, lowest):
    """The extreme of nothing: the type's own bound."""
    if dtype.kind == "b":
        return not lowest
    if dtype.kind in "iu":
        return np.iinfo(dtype).min if lowest else np.iinfo(dtype).max
    return -np.inf if lowest else np.inf


_REDUCTIONS = {
    "ReduceSum": lambda xp, x, axes, keep: xp.sum(x, axes, keepdims=keep),
    "ReduceMean": lambda xp, x, axes, keep: xp.mean(x, axes, keepdims=keep),
    "ReduceProd": lambda xp, x, axes, keep: xp.prod(x, axes, keepdims=keep),
    "ReduceMax": _extreme(largest=True),
    "ReduceMin": _extreme(largest=False),
    "ReduceL1": lambda xp, x, axes, keep: xp.sum(xp.abs(x), axes, keepdims=keep),
    "ReduceL2": lambda xp, x, axes, keep: xp.sqrt(xp.sum(x * x, axes, keepdims=keep)),
    "ReduceSumSquare": lambda xp, x, axes, keep: xp.sum(x * x, axes, keepdims=keep),
    "ReduceLogSum": lambda xp, x, axes, keep: xp.log(xp.sum(x, axes, keepdims=keep)),
    "ReduceLogSumExp": _log_sum_exp,
}


def _softmax(function):
    def run(call, x):
        if call.version >= 13:
            return function(x, axis=call.axis(call.get("axis", -1), x.ndim))
        axis = call.get("axis", 1)  # before 13, everything from the axis on is one axis
        axis = axis + x.ndim if axis < 0 else axis
        if x.ndim - 1 == axis or all(s == 1 for s in x.shape[axis + 1 :]):
            return function(x, axis=call.axis(axis, x.ndim))
        if call.order is not None or call.images:
            raise NotDirect
        rows = x.reshape(math.prod(x.shape[:axis]), -1)
        return function(rows, axis=1).reshape(x.shape)

    return run


def _hardmax(x, axis):
    return jax.nn.one_hot(jnp.argmax(x, axis), x.shape[axis], axis=axis, dtype=x.dtype)


def _arg(largest):
    def run(call, x):
        xp, axis = call.xp, call.axis(call.get("axis", 0), x.ndim)
        keep = bool(call.get("keepdims", 1))
        if not keep:
            _require_order(call, (axis,), x.ndim)
        find = xp.argmax if largest else xp.argmin
        if call.get("select_last_index", 0):
            place = x.shape[axis] - 1 - find(xp.flip(x, axis), axis=axis)
        else:
            place = find(x, axis=axis)
        place = place.astype(data_type(xp, 7))
        return xp.expand_dims(place, axis) if keep else place

    return run


def _top_k(call, x, k=None):
    xp, axis = call.xp, call.axis(call.get("axis", -1), x.ndim)
    count = int(np.asarray(call.get("k") if call.version < 10 else k).reshape(()))
    if not 0 <= count <= x.shape[axis]:
        raise AuditError(f"the {count} largest of {x.shape[axis]} are asked for")
    key = x
    if call.get("largest", 1):
        key = ~x if x.dtype.kind == "u" else -x
    order = xp.argsort(key, axis=axis, stable=True)
    order = (
        jax.lax.slice_in_dim(order, 0, count, axis=axis)
        if xp is jnp
        else order.take(range(count), axis)
    )
    return xp.take_along_axis(x, order, axis), order.astype(data_type(xp, 7))


def _cumulative(start):
    def run(call, x, axis):
        xp, at = call.xp, call.axis(int(np.asarray(axis).reshape(())), x.ndim)
        if call.get("reverse", 0):
            x = xp.flip(x, at)
        total = (xp.cumprod if start else xp.cumsum)(x, at, dtype=x.dtype)
        if call.get("exclusive", 0):
            first = xp.full([1 if i == at else s for i, s in enumerate(x.shape)], start, x.dtype)
            rest = total[tuple(slice(0, -1) if i == at else slice(None) for i in range(x.ndim))]
            total = xp.concatenate([first, rest], at)
        return xp.flip(total, at) if call.get("reverse", 0) else total

    return run


OPERATORS = {
    **{name: Operator(_reduction(f), Kind.ALONG, static=(1,)) for name, f in _REDUCTIONS.items()},
    "Softmax": Operator(_softmax(jax.nn.softmax), Kind.ALONG),
    "LogSoftmax": Operator(_softmax(jax.nn.log_softmax), Kind.ALONG),
    "Hardmax": Operator(_softmax(_hardmax), Kind.ALONG),
    "ArgMax": Operator(_arg(largest=True), Kind.ALONG),
    "ArgMin": Operator(_arg(largest=False), Kind.ALONG),
    "TopK": Operator(_top_k, Kind.ALONG, static=(1,)),
    "CumSum": Operator(_cumulative(0), Kind.ALONG, static=(1,)),
    "CumProd": Operator(_cumulative(1), Kind.ALONG, static=(1,)),
}
