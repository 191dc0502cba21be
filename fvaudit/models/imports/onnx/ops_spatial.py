"""Convolutions and pools; images come and go channels last, (n, positions..., c).

Kernels are prepared once as (positions..., in / groups, out), the layout of our own networks, and
`optvis.lowering` chooses how a two-dimensional convolution or a max pool is computed.
"""

import itertools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from fvaudit.models.imports.onnx.operators import (
    Kind,
    NotDirect,
    Operator,
    Unsupported,
    require_numbers,
)
from fvaudit.optvis import lowering
from fvaudit.records import AuditError


def kernel_last(xp, kernel):
    """A kernel (out, in / groups, positions...) as (positions..., in / groups, out)."""
    return xp.transpose(kernel, (*range(2, kernel.ndim), 1, 0))


def _conv(call, x, kernel, bias=None):
    window, groups = kernel.shape[:-2], call.get("group", 1)
    _require_channels(x.shape[-1], kernel, groups)
    strides, dilations = steps(call, "strides", window), steps(call, "dilations", window)
    pads = paddings(call, x.shape[1:-1], window, strides, dilations)
    y = convolve(x, kernel, strides, pads, dilations, groups)
    return y if bias is None else y + bias


def convolve(x, kernel, strides, pads, dilations, groups):
    """A convolution by the fastest known rule; kernel (positions..., in / groups, out)."""
    x, kernel, rank = jnp.asarray(x), jnp.asarray(kernel), len(strides)
    rest = {"rhs_dilation": dilations, "feature_group_count": groups}
    if rank == 2:
        return lowering.conv_general_dilated(
            x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), **rest
        )
    axes = "DHW"[-rank:] if rank <= 3 else "".join(map(str, range(rank)))
    layout = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=layout, **rest)


def _require_channels(channels, kernel, groups):
    if groups < 1 or kernel.shape[-2] * groups != channels or kernel.shape[-1] % groups:
        raise AuditError(
            f"a kernel for {kernel.shape[-2]} channels in each of {groups} groups, with "
            f"{kernel.shape[-1]} filters, is given {channels} channels"
        )


def steps(call, name, window):
    """Strides or dilations, one a position axis.

    Raises:
        AuditError: if they are not as many positive numbers.
    """
    given = tuple(int(s) for s in call.get(name, [1] * len(window)))
    if len(given) != len(window) or any(not 1 <= s <= 2**20 for s in given):
        raise AuditError(f"{name} {given} do not fit a window {tuple(window)}")
    return given


def paddings(call, size, window, strides, dilations):
    """((before, after), ...) by the rule auto_pad names, without ceil_mode."""
    rule = call.get("auto_pad", "NOTSET") or "NOTSET"
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    if rule in ("SAME_UPPER", "SAME_LOWER"):
        return tuple(_same(rule, *axis) for axis in zip(size, reach, strides, strict=True))
    pads = [0] * 2 * len(window) if rule == "VALID" else call.get("pads", [0] * 2 * len(window))
    if len(pads) != 2 * len(window) or len(size) != len(window):
        raise AuditError(f"paddings {list(pads)} and a window {tuple(window)} do not fit {size}")
    both = tuple((int(a), int(b)) for a, b in zip(pads, pads[len(window) :], strict=False))
    for s, r, (a, b) in zip(size, reach, both, strict=True):
        require_numbers([s + max(a, 0) + max(b, 0)])
        if s + a + b < r:
            raise AuditError(f"a window that reaches {r} does not fit {s} padded by {a} and {b}")
    return both


def _same(rule, size, reach, stride):
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if rule == "SAME_UPPER" else (large, small)


def _conv_transpose(call, x, kernel, bias=None):
    """The gradient of a convolution: x spread by the strides, convolved with the flipped kernel."""
    groups, window = call.get("group", 1), kernel.shape[2:]
    strides, dilations = steps(call, "strides", window), steps(call, "dilations", window)
    extra = call.get("output_padding", [0] * len(window))
    pads = _spread_pads(call, x.shape[1:-1], window, strides, dilations, extra)
    c, o = kernel.shape[:2]
    if groups < 1 or c != x.shape[-1] or c % groups:
        raise AuditError(f"a kernel for {c} channels in {groups} groups is given {x.shape[-1]}")
    split = kernel.reshape(groups, c // groups, o, *window)
    flipped = jnp.flip(split, range(3, split.ndim))
    turned = jnp.moveaxis(flipped, (1, 0, 2), (-3, -2, -1)).reshape(
        *window, c // groups, groups * o
    )
    axes = "DHW"[-len(window) :]
    y = lax.conv_general_dilated(
        x,
        turned,
        (1,) * len(window),
        pads,
        lhs_dilation=strides,
        rhs_dilation=dilations,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=groups,
    )
    return y if bias is None else y + bias


def _spread_pads(call, size, window, strides, dilations, extra):
    reach = [(k - 1) * d for k, d in zip(window, dilations, strict=True)]
    full = [(n - 1) * s + r + 1 + e for n, s, r, e in zip(size, strides, reach, extra, strict=True)]
    require_numbers(full)
    rule, shape = call.get("auto_pad", "NOTSET") or "NOTSET", call.get("output_shape")
    if shape is None and rule in ("SAME_UPPER", "SAME_LOWER"):
        shape = [n * s for n, s in zip(size, strides, strict=True)]
    if shape is not None:
        total = [f - t for f, t in zip(full, shape[-len(window) :], strict=True)]
        before = [t // 2 if rule == "SAME_UPPER" else t - t // 2 for t in total]
        cut = [(b, t - b) for b, t in zip(before, total, strict=True)]
    else:
        pads = call.get("pads", [0] * 2 * len(window))
        cut = list(zip(pads, pads[len(window) :], strict=False))
    return [(r - a, r - b + e) for r, (a, b), e in zip(reach, cut, extra, strict=True)]


def _pool_geometry(call, size):
    """(window, strides, dilations, given pads, pads with what ceil_mode adds)."""
    window = tuple(call.get("kernel_shape", ()))
    require_numbers(window)
    if not window or len(window) != len(size) or 0 in window:
        raise AuditError(f"a pool's window {window} does not fit {len(size)} axes")
    strides, dilations = steps(call, "strides", window), steps(call, "dilations", window)
    pads = paddings(call, size, window, strides, dilations)
    if not call.get("ceil_mode", 0):
        return window, strides, dilations, pads, pads
    grown = []
    for n, k, s, d, (a, b) in zip(size, window, strides, dilations, pads, strict=True):
        spare = n + a + b - ((k - 1) * d + 1)
        count = -(-spare // s) + 1
        if (count - 1) * s >= n + a:  # a window must not start beyond the picture
            count -= 1
        grown.append((a, (count - 1) * s + (k - 1) * d + 1 - n - a))
    return window, strides, dilations, pads, tuple(grown)


def _cropped(x, pads):
    """Where ceil_mode drops a window, what it alone would read is cut off."""
    cut = [slice(0, s + min(b, 0)) for s, (_, b) in zip(x.shape[1:-1], pads, strict=True)]
    return x[(slice(None), *cut)], tuple((a, max(b, 0)) for a, b in pads)


def _max_pool(call, x):
    window, strides, dilations, _, pads = _pool_geometry(call, x.shape[1:-1])
    if len([o for o in call.node.outputs if o]) > 1:
        return _max_and_places(call, x, window, strides, dilations, pads)
    x, pads = _cropped(jnp.asarray(x), pads)
    plain = len(window) == 2 and all(d == 1 for d in dilations)
    if plain and jnp.issubdtype(x.dtype, jnp.floating):
        return lowering.max_pool(x, window, strides, pads)  # pyright: ignore
    return lax.reduce_window(
        x, _lowest(x.dtype), lax.max, (1, *window, 1), (1, *strides, 1),
        ((0, 0), *pads, (0, 0)), window_dilation=(1, *dilations, 1),
    )  # fmt: skip


def _lowest(dtype):
    if jnp.issubdtype(dtype, jnp.floating):
        return np.asarray(-np.inf, dtype)
    return np.asarray(np.iinfo(dtype).min, dtype)


def _max_and_places(call, x, window, strides, dilations, pads):
    """Also where in the image each maximum stands, as ONNX counts (channels first)."""
    if call.images:
        raise NotDirect  # places are counted within one image
    size = x.shape[1:-1]
    x, pads = _cropped(x, pads)
    stacked = jnp.stack(list(shifted(x, window, strides, dilations, pads, _lowest(x.dtype))))
    tap = jnp.argmax(stacked, 0)
    taps = np.asarray(list(itertools.product(*map(range, window))))
    place = 0
    weights = (
        np.cumprod((1, *size[:0:-1]))[::-1]
        if not call.get("storage_order", 0)
        else np.cumprod((1, *size[:-1]))
    )
    for axis, weight in enumerate(weights):
        along = np.arange(tap.shape[1 + axis]) * strides[axis] - pads[axis][0]
        along = along.reshape([-1 if i == axis + 1 else 1 for i in range(tap.ndim)])
        place += (along + jnp.asarray(taps[:, axis] * dilations[axis])[tap]) * int(weight)
    n, c = x.shape[0], x.shape[-1]
    image = np.arange(n).reshape([-1] + [1] * (tap.ndim - 1)) * c + np.arange(c)
    return jnp.max(stacked, 0), place + image * math.prod(size)


def shifted(x, window, strides, dilations, pads, fill):
    """What each tap of a window sees: one array (n, windows..., c) a tap."""
    y = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    counts = [
        (s - (k - 1) * d - 1) // step + 1
        for s, k, d, step in zip(y.shape[1:-1], window, dilations, strides, strict=True)
    ]
    if math.prod(window) > 4096:
        raise Unsupported(f"a pool over {math.prod(window)} places is too large here")
    for tap in itertools.product(*map(range, window)):
        cut = [
            slice(i * d, i * d + (count - 1) * step + 1, step)
            for i, d, count, step in zip(tap, dilations, counts, strides, strict=True)
        ]
        yield y[(slice(None), *cut)]


def _window_sum(x, window, strides, dilations, pads):
    x, pads = _cropped(jnp.asarray(x), pads)
    return lax.reduce_window(
        x, np.zeros((), x.dtype), lax.add, (1, *window, 1), (1, *strides, 1),
        ((0, 0), *pads, (0, 0)), window_dilation=(1, *dilations, 1),
    )  # fmt: skip


def _average_pool(call, x):
    window, strides, dilations, given, pads = _pool_geometry(call, x.shape[1:-1])
    total = _window_sum(x, window, strides, dilations, pads)
    if not any(itertools.chain(*pads)):
        return total / math.prod(window)
    counted = given if call.get("count_include_pad", 0) else [(0, 0)] * len(window)
    counts = np.ones((), np.float32)
    for axis, size in enumerate(x.shape[1:-1]):
        one = _counts(size, window[axis], strides[axis], dilations[axis], pads[axis], counted[axis])
        counts = counts[..., None] * one
    return total / counts[..., None].astype(x.dtype)


def _counts(size, window, stride, dilation, pads, counted):
    """How many places of each window count, along one axis."""
    starts = np.arange(-pads[0], size + pads[1] - (window - 1) * dilation, stride)
    places = starts[:, None] + np.arange(window) * dilation
    inside = (places >= -counted[0]) & (places < size + counted[1])
    return np.maximum(inside.sum(1), 1).astype(np.float32)


def _lp_pool(call, x):
    window, strides, dilations, _, pads = _pool_geometry(call, x.shape[1:-1])
    p = call.get("p", 2)
    return _window_sum(jnp.abs(x) ** p, window, strides, dilations, pads) ** (1 / p)


def _global(reduce):
    return lambda call, x: reduce(call, x, tuple(range(1, x.ndim - 1)))


def _global_lp(call, x, axes):
    p = call.get("p", 2)
    return (abs(x) ** p).sum(axes, keepdims=True) ** (1 / p)


def _max_unpool(call, x, places, shape=None):
    """Numbers put back where a MaxPool found them, zeros elsewhere."""
    window = call.get("kernel_shape", ())
    strides, pads = steps(call, "strides", window), call.get("pads", [0] * 2 * len(window))
    size = [
        (x.shape[2 + i] - 1) * strides[i] + k - pads[i] - pads[i + len(window)]
        for i, k in enumerate(window)
    ]
    full = require_numbers([*x.shape[:2], *size])
    flat = jnp.zeros(math.prod(full), x.dtype)
    y = flat.at[places.reshape(-1)].set(x.reshape(-1)).reshape(full)
    if shape is None:
        return y
    wanted = require_numbers([int(s) for s in shape])
    return jnp.pad(y, [(0, w - s) for w, s in zip(wanted, full, strict=True)])


OPERATORS = {
    "Conv": Operator(_conv, Kind.SPATIAL, prepare={1: kernel_last}),
    "ConvTranspose": Operator(_conv_transpose, Kind.SPATIAL),
    "MaxPool": Operator(_max_pool, Kind.SPATIAL),
    "AveragePool": Operator(_average_pool, Kind.SPATIAL),
    "LpPool": Operator(_lp_pool, Kind.SPATIAL),
    "GlobalAveragePool": Operator(_global(lambda c, x, a: x.mean(a, keepdims=True)), Kind.SPATIAL),
    "GlobalMaxPool": Operator(_global(lambda c, x, a: x.max(a, keepdims=True)), Kind.SPATIAL),
    "GlobalLpPool": Operator(_global(_global_lp), Kind.SPATIAL),
    "MaxUnpool": Operator(_max_unpool, static=(2,)),
}
