"""Operators that treat every number alike: arithmetic, comparisons, logic, activations.

Activations with a rule in `optvis.redirect` use it, as our own networks do. NumPy and JAX share
the formulas, so that the same table folds constants.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fvaudit.models.imports.onnx.operators import (
    Kind,
    Operator,
    Unsupported,
    data_type,
    host,
    is_floating,
)
from fvaudit.optvis import redirect


def _numpy_unary(name: str):
    return lambda call, x: getattr(call.xp, name)(x)


def _clip(call, x, low=None, high=None):
    if call.version < 11:
        low, high = call.get("min"), call.get("max")
    if _is(low, 0.0) and _is(high, 6.0) and is_floating(x):
        return redirect.relu6(jnp.asarray(x))
    if low is not None:
        x = call.xp.maximum(x, low if host(low) else call.xp.asarray(low, x.dtype))
    if high is not None:
        x = call.xp.minimum(x, high if host(high) else call.xp.asarray(high, x.dtype))
    return x


def _is(value: Any, number: float) -> bool:
    known = isinstance(value, float | int) or (host(value) and value.size == 1)
    return known and float(np.asarray(value).reshape(())) == number


def _relu(call, x):
    return redirect.relu(jnp.asarray(x)) if is_floating(x) else call.xp.maximum(x, 0)


def _leaky_relu(call, x):
    return call.xp.where(x < 0, call.get("alpha", 0.01) * x, x)


def _prelu(call, x, slope):
    return call.xp.where(x < 0, slope * x, x)


def _elu(call, x):
    return call.xp.where(x < 0, call.get("alpha", 1.0) * _expm1_below(call, x), x)


def _expm1_below(call, x):
    """exp(x) - 1 for x < 0; 0 elsewhere, so that no gradient overflows."""
    return call.xp.expm1(call.xp.minimum(x, 0))


def _selu(call, x):
    alpha, gamma = call.get("alpha", 1.67326319217681884765625), call.get("gamma", 1.0507009873554)
    return gamma * call.xp.where(x <= 0, alpha * _expm1_below(call, x), x)


def _celu(call, x):
    alpha = call.get("alpha", 1.0)
    return call.xp.maximum(x, 0) + alpha * _expm1_below(call, x / alpha)


def _thresholded_relu(call, x):
    return call.xp.where(x > call.get("alpha", 1.0), x, call.xp.zeros_like(x))


def _hard_sigmoid(call, x):
    return call.xp.clip(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


def _hard_swish(call, x):
    return x * call.xp.clip(x / 6 + 0.5, 0, 1)


def _swish(call, x):
    return x * jax.nn.sigmoid(call.get("alpha", 1.0) * x)


def _gelu(call, x):
    return redirect.gelu(jnp.asarray(x), approximate=call.get("approximate", "none") == "tanh")


def _shrink(call, x):
    bias, bound = call.get("bias", 0.0), call.get("lambd", 0.5)
    zero = call.xp.zeros_like(x)
    return call.xp.where(x < -bound, x + bias, call.xp.where(x > bound, x - bias, zero)).astype(
        x.dtype
    )


def _divide(call, a, b):
    """Whole numbers are divided as in C: towards zero."""
    if is_floating(a):
        return a / b
    xp = call.xp
    if xp.issubdtype(a.dtype, xp.unsignedinteger):
        return a // b
    quotient = xp.abs(a) // xp.abs(b)
    return xp.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


def _modulo(call, a, b):
    return call.xp.fmod(a, b) if call.get("fmod", 0) else call.xp.mod(a, b)


def _power(call, a, b):
    if not is_floating(a):
        return call.xp.power(a.astype(data_type(call.xp, 1)), b).astype(a.dtype)
    if host(b) and b.size == 1 and float(b.reshape(())) == 2:
        return a * a  # the gradient of a general power is NaN where a is negative
    return call.xp.power(a, b).astype(a.dtype)


def _several(combine):
    return lambda call, *arrays: functools.reduce(functools.partial(combine, call.xp), arrays)


def _mean(call, *arrays):
    return functools.reduce(operator.add, arrays) / len(arrays)


def _cast(call, x):
    dtype = data_type(call.xp, call.get("to", 1))
    return _converted(call, x, dtype)


def _cast_like(call, x, like):
    return _converted(call, x, like.dtype)


def _converted(call, x, dtype):
    """Half precision is rounded to, and then kept as float32 where JAX computes."""
    if dtype.name in _UNROUNDED:
        raise Unsupported(f"rounding to {dtype.name} is not known")
    x = _saturated(call, x, dtype)
    if call.xp is np:
        return x.astype(dtype)
    if dtype.name in _FEW_BITS:
        return _wrapped(x, *_FEW_BITS[dtype.name])
    if jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4:
        return x.astype(dtype).astype(jnp.float32)
    return x.astype(dtype)


_UNROUNDED = ("float8_e8m0fnu", "float4_e2m1fn")
_FEW_BITS = {"int4": (-8, 16), "uint4": (0, 16), "int2": (-2, 4), "uint2": (0, 4)}


def _wrapped(x, low, count):
    """Whole numbers of few bits, which XLA would saturate."""
    return (x.astype(jnp.int32) - low) % count + low


def _saturated(call, x, dtype):
    """Numbers beyond an 8-bit float's largest become that, unless saturate is 0."""
    small = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize == 1
    if not small or not call.get("saturate", 1) or not is_floating(x):
        return x
    top = jnp.finfo(dtype).max.astype(np.float32)
    return call.xp.where(call.xp.isnan(x), x, call.xp.clip(x, -top, top))


def _is_inf(call, x):
    found = call.xp.isinf(x)
    if not call.get("detect_negative", 1):
        found = found & (x > 0)
    return found if call.get("detect_positive", 1) else found & (x < 0)


def _bit_shift(call, a, b):
    shift = call.xp.left_shift if call.get("direction") == "LEFT" else call.xp.right_shift
    return shift(a, b)


def _dropout(call, x, ratio=None, training=None):
    """At evaluation nothing is dropped."""
    drops = training is not None and bool(np.asarray(training).reshape(()))
    if drops and (ratio is None or float(np.asarray(ratio).reshape(())) > 0):
        raise Unsupported("a Dropout is in training mode; export the model in eval mode")
    return (x, call.xp.ones(x.shape, bool))[: max(len(call.node.outputs), 1)]


def _same(call, x, *_):
    return x


_RUN = {
    **{name: _numpy_unary(name.lower()) for name in (
        "Abs", "Ceil", "Cos", "Cosh", "Exp", "Floor", "IsNaN", "Log", "Sign", "Sin", "Sinh",
        "Sqrt", "Tan", "Tanh",
    )},
    **{f"A{f}{h}": _numpy_unary(f"arc{f}{h}") for f in ("cos", "sin", "tan") for h in ("", "h")},
    "Neg": lambda c, x: -x,
    "Reciprocal": lambda c, x: 1 / x,
    "Round": lambda c, x: c.xp.round(x),
    "Erf": lambda c, x: jax.lax.erf(jnp.asarray(x)),
    "Sigmoid": lambda c, x: jax.nn.sigmoid(x),
    "Not": lambda c, x: c.xp.logical_not(x),
    "BitwiseNot": lambda c, x: ~x,
    "IsInf": _is_inf,
    "Softplus": lambda c, x: c.xp.logaddexp(x, c.xp.zeros_like(x)),
    "Softsign": lambda c, x: x / (1 + c.xp.abs(x)),
    "Mish": lambda c, x: x * c.xp.tanh(c.xp.logaddexp(x, c.xp.zeros_like(x))),
    "Relu": _relu,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "ThresholdedRelu": _thresholded_relu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Swish": _swish,
    "Gelu": _gelu,
    "Shrink": _shrink,
    "Clip": _clip,
    "Cast": _cast,
    "Identity": _same,
    "Add": lambda c, a, b: a + b,
    "Sub": lambda c, a, b: a - b,
    "Mul": lambda c, a, b: a * b,
    "Div": _divide,
    "Mod": _modulo,
    "Pow": _power,
    "PRelu": _prelu,
    "And": lambda c, a, b: a & b,
    "Or": lambda c, a, b: a | b,
    "Xor": lambda c, a, b: a ^ b,
    "BitwiseAnd": lambda c, a, b: a & b,
    "BitwiseOr": lambda c, a, b: a | b,
    "BitwiseXor": lambda c, a, b: a ^ b,
    "BitShift": _bit_shift,
    "Equal": lambda c, a, b: a == b,
    "Greater": lambda c, a, b: a > b,
    "Less": lambda c, a, b: a < b,
    "GreaterOrEqual": lambda c, a, b: a >= b,
    "LessOrEqual": lambda c, a, b: a <= b,
    "Where": lambda c, condition, a, b: c.xp.where(condition, a, b),
    "Max": _several(lambda xp, a, b: xp.maximum(a, b)),
    "Min": _several(lambda xp, a, b: xp.minimum(a, b)),
    "Sum": _several(lambda xp, a, b: a + b),
    "Mean": _mean,
}  # fmt: skip

OPERATORS = {
    **{name: Operator(run, Kind.ELEMENTWISE) for name, run in _RUN.items()},
    "CastLike": Operator(_cast_like, Kind.ELEMENTWISE, typed=(1,)),
    "Dropout": Operator(_dropout, Kind.ELEMENTWISE, static=(1, 2)),
}
