"""Resize and Upsample: each axis is a known matrix (new places, old places).

Row i of an axis's matrix holds the weights with which old places make up new place i. It follows
from the coordinate rule (where place i lies in the old picture) and from the kernel: nearest,
linear, or cubic, widened when `antialias` shrinks a picture.

Source: https://onnx.ai/onnx/operators/onnx__Resize.html
"""

import math

import jax.numpy as jnp
import numpy as np

from fvaudit.models.imports.onnx.operators import (
    Kind,
    Operator,
    Unsupported,
    numbers,
    require_numbers,
)
from fvaudit.records import AuditError


def _resize(call, x, *rest):
    """Before operator set 11 the second input are the scales."""
    if call.version < 11:
        roi, scales, sizes = None, rest[0], None
    else:
        roi, scales, sizes = (*rest, None, None, None)[:3]
    axes = numbers(call.get("axes", range(x.ndim)))
    factors, targets = _extent(call, x, axes, scales, sizes)
    bounds = None if roi is None or not np.size(roi) else np.asarray(roi, np.float64).reshape(2, -1)
    for i, axis in enumerate(axes):
        region = (0.0, 1.0) if bounds is None else (bounds[0, i], bounds[1, i])
        crop = call.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        size = x.shape[axis] if call.order is None else x.shape[call.order.index(axis % x.ndim)]
        if targets[i] != size or factors[i] != 1 or (crop and region != (0.0, 1.0)):
            x = _along(call, x, call.axis(axis, x.ndim), factors[i], targets[i], region)
    return x


def _extent(call, x, axes, scales, sizes):
    """(factor, new size) of each axis."""
    size = [x.shape[a if call.order is None else call.order.index(a % x.ndim)] for a in axes]
    if scales is not None and np.size(scales):
        factors = [float(s) for s in np.asarray(scales).reshape(-1)]
        if len(factors) != len(axes) or not all(0 < f < 2**20 for f in factors):
            raise AuditError(f"scales {factors[:8]} do not fit {len(axes)} axes")
        targets = [math.floor(s * f) for s, f in zip(size, factors, strict=True)]
    elif sizes is not None and np.size(sizes):
        targets = numbers(sizes)
        factors = [t / s for t, s in zip(targets, size, strict=True)]
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            one = (min if policy == "not_larger" else max)(factors)
            factors = [one] * len(axes)
            targets = [math.floor(s * one + 0.5) for s in size]
    else:
        raise AuditError("a Resize needs scales or sizes")
    require_numbers([max(t, s) for t, s in zip(targets, size, strict=True)])
    return factors, targets


def _along(call, x, axis, factor, target, region):
    mode, size = call.get("mode", "nearest"), x.shape[axis]
    places = _places(call, size, factor, target, region)
    require_numbers([target, size])
    if mode == "nearest" and size:
        chosen = np.clip(_rounded(call, places), 0, size - 1).astype(np.int64)
        y = _picked(call, x, axis, chosen, target, size)
    else:
        weights = _weights(call, mode, places, size, factor).astype(np.float32)
        y = jnp.moveaxis(jnp.tensordot(weights, jnp.asarray(x), (1, axis)), 0, axis)
        y = y.astype(x.dtype)
    if call.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        outside = (places < 0) | (places > size - 1)
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        fill = np.asarray(call.get("extrapolation_value", 0.0), x.dtype)
        y = jnp.where(outside.reshape(shape), fill, y)
    return y


def _picked(call, x, axis, chosen, target, size):
    """A whole-number enlargement is a repetition, whose gradient is a sum and no scatter."""
    if target % size == 0 and (chosen == np.arange(target) // (target // size)).all():
        return call.xp.repeat(x, target // size, axis)
    return call.xp.take(x, chosen, axis)


def _places(call, size, factor, target, region):
    """Where each new place lies among the old ones."""
    i = np.arange(target, dtype=np.float64)
    default = "asymmetric" if call.version < 11 else "half_pixel"
    rule = call.get("coordinate_transformation_mode", default)
    if rule == "asymmetric":
        return i / factor
    if rule == "align_corners":
        length = factor * size
        return i * 0 if length == 1 else i * (size - 1) / (length - 1)
    if rule == "tf_crop_and_resize":
        start, end = region
        if target > 1:
            return start * (size - 1) + i * (end - start) * (size - 1) / (target - 1)
        return np.full(1, 0.5 * (start + end) * (size - 1))
    half = (i + 0.5) / factor - 0.5
    if rule == "half_pixel":
        return half
    if rule == "pytorch_half_pixel":
        return half if target > 1 else i * 0
    if rule == "half_pixel_symmetric":
        adjust = target / (factor * size)
        return half + size / 2 * (1 - adjust)
    raise Unsupported(f"coordinate rule {rule!r} is not known")


def _rounded(call, places):
    rule = call.get("nearest_mode", "floor" if call.version < 11 else "round_prefer_floor")
    rules = {
        "round_prefer_floor": lambda p: np.ceil(p - 0.5),
        "round_prefer_ceil": lambda p: np.floor(p + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    if rule not in rules:
        raise Unsupported(f"nearest mode {rule!r} is not known")
    return rules[rule](places)


def _weights(call, mode, places, size, factor):
    """The matrix (new places, old places) of linear or cubic interpolation."""
    kernels = {"linear": (_hat, 1), "cubic": (_cubic(call.get("cubic_coeff_a", -0.75)), 2)}
    if mode not in kernels:
        raise Unsupported(f"Resize mode {mode!r} is not known")
    kernel, reach = kernels[mode]
    widen = max(1.0, 1 / factor) if call.get("antialias", 0) else 1.0
    span = math.ceil(reach * widen)
    if span > 4096:
        raise AuditError(f"a Resize that shrinks by {widen} is too strong")
    base = np.floor(places).astype(np.int64)
    taps = base[:, None] + np.arange(1 - span, span + 1)
    weights = kernel((places[:, None] - taps) / widen)
    if call.get("exclude_outside", 0):
        weights = weights * ((taps >= 0) & (taps < size))
    if call.get("exclude_outside", 0) or widen > 1:
        weights = weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((len(places), size))
    np.add.at(matrix, (np.arange(len(places))[:, None], np.clip(taps, 0, size - 1)), weights)
    return matrix


def _hat(d):
    return np.maximum(0, 1 - np.abs(d))


def _cubic(a):
    def kernel(d):
        d = np.abs(d)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    return kernel


def _upsample(call, x, scales=None):
    scales = call.get("scales") if call.version < 9 else scales
    return _resize(call, x, scales)


OPERATORS = {
    "Resize": Operator(_resize, Kind.ALONG, static=(1, 2, 3)),
    "Upsample": Operator(_upsample, Kind.ALONG, static=(1,)),
}
