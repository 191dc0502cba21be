"""Matrix products and attention."""

import math

import jax.numpy as jnp
import numpy as np

from fvaudit.models.imports.onnx.operators import Kind, NotDirect, Operator
from fvaudit.records import AuditError


def _matmul(call, a, b):
    if call.images and (b.ndim != 2 or a.ndim < 2):
        raise NotDirect
    return call.xp.matmul(a, b)


def _gemm(call, a, b, c=None):
    if call.images and (call.get("transA", 0) or (c is not None and c.ndim > 1 and c.shape[0] > 1)):
        raise NotDirect
    a = a.T if call.get("transA", 0) else a
    b = b.T if call.get("transB", 0) else b
    y = call.xp.matmul(a, b)
    y = y if call.get("alpha", 1.0) == 1.0 else y * call.get("alpha")
    if c is None:
        return y
    return y + (c if call.get("beta", 1.0) == 1.0 else c * call.get("beta"))


def _einsum(call, *arrays):
    equation = call.get("equation", "").replace(" ", "")
    if not arrays or len(equation) > 200:
        raise AuditError("an Einsum needs inputs and a short equation")
    return call.xp.einsum(equation, *arrays)


def _attention(call, q, k, v, mask=None, past_k=None, past_v=None, lengths=None):
    """Scaled dot products of queries and keys weigh the values; heads may share keys."""
    merged = q.ndim == 3
    if merged:
        q = _heads(q, call.get("q_num_heads"))
        k, v = (_heads(x, call.get("kv_num_heads")) for x in (k, v))
    if past_k is not None and past_v is not None:
        k, v = jnp.concatenate([past_k, k], 2), jnp.concatenate([past_v, v], 2)
    present = k, v
    share = q.shape[1] // k.shape[1]
    k, v = (jnp.repeat(x, share, axis=1) if share > 1 else x for x in (k, v))
    scale = call.get("scale") or 1 / math.sqrt(q.shape[-1])
    scores = jnp.matmul(q * math.sqrt(scale), jnp.swapaxes(k, 2, 3) * math.sqrt(scale))
    past = past_k.shape[2] if past_k is not None else 0
    cap = call.get("softcap", 0.0)
    capped = cap * jnp.tanh(scores / cap) if cap else scores
    masked = capped + _bias(call, scores, mask, past, lengths)
    weights = _attention_weights(masked)
    seen = scores, capped, masked, weights
    y = jnp.matmul(weights, v)
    if merged:
        y = jnp.moveaxis(y, 1, 2).reshape(y.shape[0], y.shape[2], -1)
    outputs = (y, *present, seen[call.get("qk_matmul_output_mode", 0)])
    return outputs[: max(len(call.node.outputs), 1)]


def _attention_weights(scores):
    """Softmax; rows where every key is masked weigh none."""
    top = jnp.max(scores, -1, keepdims=True)
    parts = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0))
    total = parts.sum(-1, keepdims=True)
    return jnp.where(total == 0, 0, parts / jnp.where(total == 0, 1, total))


def _heads(x, count):
    if not count:
        raise AuditError("an Attention of three axes needs q_num_heads and kv_num_heads")
    n, t, c = x.shape
    return jnp.moveaxis(x.reshape(n, t, count, c // count), 2, 1)


def _bias(call, scores, mask, past, lengths):
    rows, columns = scores.shape[2:]
    bias = jnp.zeros((), scores.dtype)
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.dtype == bool:
            mask = jnp.where(mask, 0.0, -jnp.inf).astype(scores.dtype)
        if mask.shape[-1] < columns:
            spare = [(0, 0)] * (mask.ndim - 1) + [(0, columns - mask.shape[-1])]
            mask = jnp.pad(mask, spare, constant_values=-np.inf)
        bias = bias + mask
    if call.get("is_causal", 0):
        offset = _offset(rows, past, lengths)
        allowed = np.arange(columns) <= np.arange(rows)[:, None] + offset
        bias = bias + jnp.where(allowed, 0.0, -jnp.inf)
    bias = bias + _window(call, rows, columns, past, lengths)
    if lengths is not None:
        known = jnp.arange(columns) < jnp.asarray(lengths).reshape(-1, 1, 1, 1)
        bias = bias + jnp.where(known, 0.0, -jnp.inf)
    return bias


def _offset(rows, past, lengths):
    """How many keys come before the first query."""
    return past if lengths is None else (jnp.asarray(lengths) - rows).reshape(-1, 1, 1, 1)


def _window(call, rows, columns, past, lengths):
    """Keys further away than a sliding window are masked; -1 leaves a side open."""
    left, right = call.get("left_window_size", -1), call.get("right_window_size", -1)
    ahead = np.arange(columns) - np.arange(rows)[:, None] - _offset(rows, past, lengths)
    allowed = True
    if left >= 0:
        allowed = allowed & (ahead >= -left)
    if right >= 0:
        allowed = allowed & (ahead <= right)
    return jnp.where(allowed, 0.0, -jnp.inf)


def _rotary(call, x, cosine, sine, places=None):
    """Pairs of channels turned by an angle that grows with the position."""
    merged = x.ndim == 3
    if merged:
        x = _heads(x, call.get("num_heads"))
    if places is not None:
        cosine, sine = (jnp.asarray(t)[places] for t in (cosine, sine))
    cosine, sine = (t[:, None] for t in (cosine, sine))
    width = call.get("rotary_embedding_dim", 0) or x.shape[-1]
    part, rest = x[..., :width], x[..., width:]
    if call.get("interleaved", 0):
        a, b = part[..., 0::2], part[..., 1::2]
    else:
        a, b = jnp.split(part, 2, -1)
    turned = a * cosine - b * sine, a * sine + b * cosine
    if call.get("interleaved", 0):
        y = jnp.stack(turned, -1).reshape(part.shape)
    else:
        y = jnp.concatenate(turned, -1)
    y = jnp.concatenate([y, rest], -1)
    return jnp.moveaxis(y, 1, 2).reshape(y.shape[0], y.shape[2], -1) if merged else y


def _determinant(call, x):
    return jnp.linalg.det(x)


OPERATORS = {
    "MatMul": Operator(_matmul, Kind.ROWS),
    "Gemm": Operator(_gemm, Kind.ROWS),
    "Einsum": Operator(_einsum),
    "Attention": Operator(_attention),
    "RotaryEmbedding": Operator(_rotary),
    "Det": Operator(_determinant),
}
