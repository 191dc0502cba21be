"""Operators that read or write places named by an index."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np

from fvaudit.models.imports.onnx.operators import (
    Operator,
    Unsupported,
    host,
    require_numbers,
)
from fvaudit.records import AuditError


def _gather(call, x, indices):
    axis = call.axis(call.get("axis", 0), x.ndim)
    require_numbers([*x.shape, *indices.shape])  # an upper bound but for the axis itself
    if host(indices):
        _require_inside(indices, x.shape[axis])
    return call.xp.take(x, _counted(call.xp, indices, x.shape[axis]), axis=axis)


def _require_inside(indices, size):
    if indices.size and not (-size <= indices.min() and indices.max() < size):
        raise AuditError(f"an index lies outside an axis of {size}")


def _counted(xp, indices, size):
    """Indices below 0 count from the end."""
    return xp.where(indices < 0, indices + size, indices)


def _gather_elements(call, x, indices):
    axis = call.axis(call.get("axis", 0), x.ndim)
    cut = tuple(slice(0, s) if i != axis else slice(None) for i, s in enumerate(indices.shape))
    return call.xp.take_along_axis(x[cut], _counted(call.xp, indices, x.shape[axis]), axis)


def _gather_nd(call, x, indices):
    batch, depth = call.get("batch_dims", 0), indices.shape[-1]
    grids = np.meshgrid(*(np.arange(s) for s in x.shape[:batch]), indexing="ij")
    lead = [g.reshape(*g.shape, *(1,) * (indices.ndim - 1 - batch)) for g in grids]
    return x[(*lead, *(indices[..., i] for i in range(depth)))]


_WRITES = {"none": "set", "add": "add", "mul": "multiply", "max": "max", "min": "min"}


def _write(x, places, updates, call):
    rule = _WRITES.get(call.get("reduction", "none"))
    if rule is None:
        raise Unsupported(f"a scatter by {call.get('reduction')!r} is not known")
    return getattr(jnp.asarray(x).at[places], rule)(updates)


def _scatter_nd(call, x, indices, updates):
    depth = indices.shape[-1]
    return _write(x, tuple(indices[..., i] for i in range(depth)), updates, call)


def _scatter_elements(call, x, indices, updates):
    axis = call.axis(call.get("axis", 0), x.ndim)
    places = list(np.indices(indices.shape, sparse=True))
    places[axis] = _counted(jnp, indices, x.shape[axis])
    return _write(x, tuple(places), updates, call)


def _one_hot(call, indices, depth, values):
    size = int(np.asarray(depth).reshape(-1)[0])
    require_numbers([*indices.shape, max(size, 1)])
    axis = call.get("axis", -1)
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    places = call.xp.expand_dims(indices, axis)
    shape = [size if i == axis else 1 for i in range(indices.ndim + 1)]
    hot = _counted(call.xp, places, size) == np.arange(size).reshape(shape)
    return call.xp.where(hot, values[1], values[0])


def _non_zero(call, x):
    return np.asarray(np.nonzero(x), np.int64)


def _compress(call, x, keep):
    axis = call.get("axis")
    places = np.flatnonzero(np.asarray(keep))
    if axis is None:
        return call.xp.take(x.reshape(-1), places)
    return call.xp.take(x, places, axis=call.axis(axis, x.ndim))


def _unique(call, x):
    axis = call.get("axis")
    found, first, inverse, counts = np.unique(x, True, True, True, axis=axis)
    if not call.get("sorted", 1):
        order = np.argsort(first)
        found = np.take(found, order, 0 if axis is None else axis)
        inverse = np.argsort(order)[inverse]
        first, counts = first[order], counts[order]
    outputs = found, first, inverse.reshape(-1), counts
    return outputs[: len(call.node.outputs)]


def _grid_sample(call, x, grid):
    """Reads an image (or volume) where a grid of positions in [-1, 1] says."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        call.get("mode", "bilinear"), call.get("mode", "bilinear")
    )
    rule = call.get("padding_mode", "zeros")
    sizes = x.shape[2:]
    places = [_unnormalised(call, grid[..., -1 - i], s) for i, s in enumerate(sizes)]
    if mode == "nearest":
        taps = [[(jnp.round(p), 1.0)] for p in places]
    elif mode == "bilinear":
        taps = [_linear_taps(p) for p in places]
    elif mode == "bicubic":
        taps = [_cubic_taps(p) for p in places]
    else:
        raise Unsupported(f"GridSample mode {mode!r} is not known")
    total: Any = 0.0
    for combination in itertools.product(*taps):
        weight: Any = jnp.ones(places[0].shape, x.dtype)
        for _, factor in combination:
            weight = weight * factor
        value = _read(call, x, [place for place, _ in combination], sizes, rule)
        total += value * weight[:, None]
    return total.astype(x.dtype)


def _unnormalised(call, g, size):
    if call.get("align_corners", 0):
        return (g + 1) / 2 * (size - 1)
    return ((g + 1) * size - 1) / 2


def _linear_taps(p):
    low = jnp.floor(p)
    return [(low, 1 - (p - low)), (low + 1, p - low)]


def _cubic_taps(p, a=-0.75):
    low = jnp.floor(p)
    taps = []
    for offset in (-1, 0, 1, 2):
        d = jnp.abs(p - low - offset)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        taps.append((low + offset, jnp.where(d <= 1, near, far)))
    return taps


def _read(call, x, places, sizes, rule):
    inside = jnp.ones(places[0].shape, bool)
    fixed = []
    for place, size in zip(places, sizes, strict=True):
        if rule == "reflection":
            place = _reflected(place, size, call.get("align_corners", 0))
        inside = inside & (place >= 0) & (place <= size - 1)
        fixed.append(jnp.clip(place, 0, size - 1).astype(jnp.int32))
    batch = np.arange(x.shape[0]).reshape(-1, *(1,) * (places[0].ndim - 1))
    value = jnp.moveaxis(x, 1, -1)[(batch, *fixed)]
    value = jnp.where(inside[..., None], value, 0) if rule == "zeros" else value
    return jnp.moveaxis(value, -1, 1)


def _reflected(p, size, align):
    low, high = (0.0, size - 1.0) if align else (-0.5, size - 0.5)
    span = max(high - low, 1e-9)
    folded = jnp.mod(p - low, 2 * span)
    return jnp.where(folded > span, 2 * span - folded, folded) + low


OPERATORS = {
    "Gather": Operator(_gather),
    "GatherElements": Operator(_gather_elements),
    "GatherND": Operator(_gather_nd),
    "ScatterND": Operator(_scatter_nd),
    "ScatterElements": Operator(_scatter_elements),
    "Scatter": Operator(_scatter_elements),
    "OneHot": Operator(_one_hot, static=(1,)),
    "NonZero": Operator(_non_zero, static=(0,)),
    "Compress": Operator(_compress, static=(1,)),
    "Unique": Operator(_unique, static=(0,)),
    "GridSample": Operator(_grid_sample),
}
