"""Normalizations; channels last where they act on images.

Batch normalization uses its running statistics, as at evaluation. A file in training mode is
refused: its values would depend on which images share a batch.
"""

import jax.numpy as jnp

from fvaudit.models.imports.onnx.operators import Kind, Operator, Unsupported
from fvaudit.optvis import lowering


def _batch_norm(call, x, scale, bias, mean, variance):
    if call.get("training_mode", 0) or len([o for o in call.node.outputs if o]) > 1:
        raise Unsupported("batch normalization is in training mode; export the model in eval mode")
    factor = scale / call.xp.sqrt(variance + call.get("epsilon", 1e-5))
    return x * factor + (bias - mean * factor)


def _instance_norm(call, x, scale, bias):
    return _standardised(call, x, tuple(range(1, x.ndim - 1))) * scale + bias


def _standardised(call, x, axes):
    centred = x - x.mean(axes, keepdims=True)
    variance = (centred * centred).mean(axes, keepdims=True)
    return centred / call.xp.sqrt(variance + call.get("epsilon", 1e-5))


def _group_norm(call, x, scale, bias):
    groups, c = call.get("num_groups"), x.shape[-1]
    split = x.reshape(*x.shape[:-1], groups, c // groups)
    y = _standardised(call, split, (*range(1, x.ndim - 1), x.ndim))
    if call.version >= 21:
        return y.reshape(x.shape) * scale + bias
    return (y * scale[:, None] + bias[:, None]).reshape(x.shape)  # once a group


def _layer_norm(call, x, scale, bias=None):
    first = call.get("axis", -1) % x.ndim
    axes = tuple(range(first, x.ndim))
    mean = x.mean(axes, keepdims=True)
    centred = x - mean
    variance = (centred * centred).mean(axes, keepdims=True)
    inverse = 1 / call.xp.sqrt(variance + call.get("epsilon", 1e-5))
    y = centred * inverse * scale
    y = y if bias is None else y + bias
    return (y, mean, inverse)[: max(len(call.node.outputs), 1)]


def _rms_norm(call, x, scale):
    first = call.get("axis", -1) % x.ndim
    square = (x * x).mean(tuple(range(first, x.ndim)), keepdims=True)
    return x / call.xp.sqrt(square + call.get("epsilon", 1e-5)) * scale


def _mean_variance(call, x):
    axes = tuple(a % x.ndim for a in call.get("axes", [0, 2, 3]))
    centred = x - x.mean(axes, keepdims=True)
    return centred / (call.xp.sqrt((centred * centred).mean(axes, keepdims=True)) + 1e-9)


def _lp_norm(call, x):
    axis, p = call.axis(call.get("axis", -1), x.ndim), call.get("p", 2)
    total = (abs(x) ** p).sum(axis, keepdims=True) ** (1 / p)
    return call.xp.where(total == 0, call.xp.zeros_like(x), x / call.xp.where(total == 0, 1, total))


def _response_norm(call, x):
    size = call.get("size")
    alpha, beta, k = call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    flat = jnp.asarray(x).reshape(x.shape[0], 1, -1, x.shape[-1]) if x.ndim != 4 else jnp.asarray(x)
    return lowering.local_response_norm(flat, size, alpha, beta, k).reshape(x.shape)


OPERATORS = {
    "BatchNormalization": Operator(_batch_norm, Kind.SPATIAL),
    "InstanceNormalization": Operator(_instance_norm, Kind.SPATIAL),
    "GroupNormalization": Operator(_group_norm, Kind.SPATIAL),
    "LayerNormalization": Operator(_layer_norm),
    "RMSNormalization": Operator(_rms_norm),
    "MeanVarianceNormalization": Operator(_mean_variance),
    "LpNormalization": Operator(_lp_norm, Kind.ALONG),
    "LRN": Operator(_response_norm, Kind.SPATIAL),
}
