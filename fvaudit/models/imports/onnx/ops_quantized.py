"""Quantized operators, by dequantization.

Stored whole numbers become real ones at load time. Activations that a network quantizes between
its layers are rounded as the network says, so that values agree with a quantized run; they are kept
as float32 whole numbers, and the gradient passes through the rounding as if it were not there
(straight-through), zero where the range is left, so that visualizations can be made.

Source of the straight-through rule: Bengio et al., arXiv:1308.3432.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fvaudit.models.imports.onnx.operators import Kind, Operator, Unsupported, data_type
from fvaudit.models.imports.onnx.ops_spatial import convolve, kernel_last, paddings, steps


_RANGES = {
    "uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767),
    "int32": (-(2**31), 2**31 - 1), "uint4": (0, 15), "int4": (-8, 7), "uint2": (0, 3),
    "int2": (-2, 1),
}  # fmt: skip


def _quantize(call, x, scale, zero=None):
    dtype = _target(call, zero)
    x, scale = _real(x), _real(scale)
    if not call.node.op.startswith("DynamicQ"):
        scale = _spread(call, scale, x)
        zero = None if zero is None else _spread(call, _real(zero), x)
    return quantized(x / scale, 0.0 if zero is None else zero, dtype)


def _target(call, zero):
    if zero is not None:
        return np.dtype(zero.dtype)
    return np.dtype(data_type(np, call.get("output_dtype", 0) or 2))


def quantized(x, zero, dtype):
    """Whole numbers of a type as float32, rounded half to even, straight-through."""
    if dtype.name in _RANGES:
        low, high = _RANGES[dtype.name]
        shifted = jnp.clip(x + zero, low, high)
        rounded = jnp.clip(jnp.round(x) + zero, low, high)
    elif jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 1 and "e2m1" not in dtype.name:
        top = float(jnp.finfo(dtype).max)
        shifted = jnp.clip(x, -top, top)
        rounded = shifted.astype(dtype).astype(jnp.float32)
    else:
        raise Unsupported(f"quantizing to {dtype} is not known")
    return shifted + jax.lax.stop_gradient(rounded - shifted)


def _real(x):
    return jnp.asarray(np.asarray(x, np.float32) if isinstance(x, np.ndarray) else x, jnp.float32)


def _spread(call, factor, x):
    """A scale for all numbers, for each place along an axis, or for each block along it."""
    if factor.size == 1:
        return factor.reshape(())
    axis, block = call.get("axis", 1) % x.ndim, call.get("block_size", 0)
    if block:
        return jnp.take(factor, np.arange(x.shape[axis]) // block, axis=axis)
    if factor.ndim > 1:
        return factor
    return factor.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def _dequantize(call, x, scale, zero=None):
    scale = _spread(call, _real(scale), x)
    x = _real(x)
    if zero is not None:
        x = x - _spread(call, _real(zero), x)
    return x * scale


def _dynamic_quantize(call, x):
    low, high = jnp.minimum(x.min(), 0), jnp.maximum(x.max(), 0)
    scale = (high - low) / 255
    scale = jnp.where(scale == 0, 1, scale)
    zero = jax.lax.stop_gradient(jnp.round(jnp.clip(-low / scale, 0, 255)))
    return quantized(x / scale, zero, np.dtype(np.uint8)), scale, zero


def _centred(x, zero, axis=None):
    """A quantized array less its zero point, in float32; axis: of a zero point per channel."""
    x = _real(x)
    if zero is None:
        return x
    zero = _real(zero)
    if zero.size > 1 and axis is not None and zero.ndim == 1:
        zero = zero.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    return x - (zero.reshape(()) if zero.size == 1 else zero)


def _convolved(call, x, kernel):
    window = kernel.shape[:-2]
    strides, dilations = steps(call, "strides", window), steps(call, "dilations", window)
    pads = paddings(call, x.shape[1:-1], window, strides, dilations)
    return convolve(x, kernel, strides, pads, dilations, call.get("group", 1))


def _qlinear_conv(call, x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias=None):
    y = _convolved(call, _centred(x, x_zero), _centred(w, w_zero, -1))
    y = y if bias is None else y + _real(bias)
    scale = _real(x_scale).reshape(()) * _real(w_scale) / _real(y_scale).reshape(())
    scale = scale.reshape(()) if scale.size == 1 else scale
    return quantized(y * scale, _real(y_zero).reshape(()), np.dtype(y_zero.dtype))


def _conv_integer(call, x, w, x_zero=None, w_zero=None):
    return _convolved(call, _centred(x, x_zero), _centred(w, w_zero, -1))


def _qlinear_matmul(call, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero):
    y = jnp.matmul(_rows(a, a_zero), _columns(b, b_zero))
    scale = _rows_factor(a_scale, a) * _real(b_scale) / _real(y_scale)
    return quantized(y * scale, _real(y_zero), np.dtype(y_zero.dtype))


def _rows_factor(scale, a):
    scale = _real(scale)
    return scale.reshape(-1, 1) if scale.size > 1 and scale.ndim == 1 else scale


def _rows(a, zero):
    return _centred(a, zero, -2)


def _columns(b, zero):
    return _centred(b, zero, -1)


def _matmul_integer(call, a, b, a_zero=None, b_zero=None):
    return jnp.matmul(_rows(a, a_zero), _columns(b, b_zero))


OPERATORS = {
    "QuantizeLinear": Operator(_quantize, typed=(2,)),
    "DequantizeLinear": Operator(_dequantize),
    "DynamicQuantizeLinear": Operator(_dynamic_quantize),
    "QLinearConv": Operator(_qlinear_conv, Kind.SPATIAL, prepare={3: kernel_last}, typed=(7,)),
    "ConvInteger": Operator(_conv_integer, Kind.SPATIAL, prepare={1: kernel_last}),
    "QLinearMatMul": Operator(_qlinear_matmul, typed=(7,)),
    "MatMulInteger": Operator(_matmul_integer),
}
