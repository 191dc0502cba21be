"""Stride-1 convolutions with fewer multiplications: Winograd's F(m x m, r x r).

A tile of m x m outputs of an r x r kernel comes from a = m + r - 1 by a inputs d by

    y = A' [ (G g G') * (B' d B) ] A

with a^2 products instead of m^2 r^2. Over all tiles and channels the elementwise product is a^2
matrix products (tiles, in) by (in, out). The matrices evaluate and interpolate polynomials at
a - 1 points p and at infinity:

    A'[i, j] = p_j^i      G[j, i] = p_j^i / f_j,   f_j = prod over l != j of (p_j - p_l)
    B'[j]    = coefficients of prod over l != j of (x - p_l)

Lavin & Gray, "Fast algorithms for convolutional neural networks" (2016); Toom and Cook before.
The points 0, 1, -1, 2, -2 cost about one digit of float32. The input gradient is the same
algorithm with the kernel flipped and transposed. The kernel's transform reads the kernel alone,
so that whoever loops over images can hold it.
"""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from fvaudit.optvis.lowering.kernels import kernel_gradient
from fvaudit.optvis.lowering.phases import Pads


_POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)
_CACHE = 16 << 20  # bytes of transformed tiles and products, above which `lax` overtakes
_ONE_FLOAT = 4  # bytes


def winograd(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "r r c o"],
    pads: Pads,
    tile: int,
    tile_back: int,
) -> Float[Array, "n p q o"]:
    """A dense stride-1 convolution.

    Args:
        x: images, channels last.
        kernel: square.
        pads: ((above, below), (left, right)).
        tile: rows and columns of outputs computed at once; 2 to 4 for r = 3, 2 for r = 5.
        tile_back: the same for the input gradient.
    """
    return _winograd(x, kernel, pads, tile, tile_back)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _winograd(x, kernel, pads, tile, tile_back):
    return _convolve(x, kernel, pads, tile)


def _winograd_forward(x, kernel, pads, tile, tile_back):
    return _convolve(x, kernel, pads, tile), (x, kernel)


def _winograd_backward(pads, tile, tile_back, saved, g):
    x, kernel = saved
    r = kernel.shape[0]
    full = tuple((r - 1 - low, r - 1 - high) for low, high in pads)
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    dx = _convolve(g, flipped, full, tile_back)
    return dx, kernel_gradient(x, kernel, (1, 1), pads, g)


_winograd.defvjp(_winograd_forward, _winograd_backward)


def _convolve(x, kernel, pads, m):
    """In pieces that stay in cache: image by image, in strips of rows where one is too large."""
    r, _, c, o = kernel.shape
    weigh = matrices(m, r)[1]
    held = jnp.dot(jnp.asarray(np.kron(weigh, weigh), kernel.dtype), kernel.reshape(r * r, c * o))
    held = held.reshape(-1, c, o)
    n, h, w, _ = x.shape
    each = _ONE_FLOAT * (m + r - 1) ** 2 * -(-h // m) * -(-w // m) * (c + o)
    if n * each <= _CACHE:
        return _apply(x, held, pads, m, r)
    if n > 1:
        return lax.map(lambda image: _apply(image[None], held, pads, m, r)[0], x)
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (*pads[0], 0), (0, 0, 0), (0, 0, 0)])
    rows = padded.shape[1] - r + 1
    step = max(1, _CACHE * h // (each * m)) * m
    strips = [padded[:, at : min(at + step, rows) + r - 1] for at in range(0, rows, step)]
    return jnp.concatenate([_apply(s, held, ((0, 0), pads[1]), m, r) for s in strips], axis=1)


def _apply(x, held, pads, m, r):
    a, o = m + r - 1, held.shape[2]
    into, _, out = matrices(m, r)
    size = [s + low + high - r + 1 for s, (low, high) in zip(x.shape[1:3], pads, strict=True)]
    tiles = [-(-s // m) for s in size]
    seen = _tiles(x, into, pads, tiles, m)
    products = lax.dot_general(seen, held, (((2,), (1,)), ((0,), (0,))))
    y = _untiled(products.reshape(a, a, x.shape[0], *tiles, o), out)
    return y[:, : size[0], : size[1]]


def _tiles(x, into, pads, tiles, m):
    """B' d B of every tile, (a * a, n * tiles, c); columns first, then rows."""
    a = len(into)
    n, h, w, c = x.shape
    ends = [(t - 1) * m + a - s - low for t, s, (low, _) in zip(tiles, (h, w), pads, strict=True)]
    edges = [(pads[0][0], ends[0], 0), (pads[1][0], ends[1], 0)]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])

    def every(z, start, count, axis):
        return lax.slice_in_dim(z, start, start + (count - 1) * m + 1, m, axis)

    columns = _combine(into, [every(padded, i, tiles[1], 2) for i in range(a)])
    half = lax.optimization_barrier(jnp.stack(columns))  # else each row recomputes it
    rows = _combine(into, [every(half, i, tiles[0], 2) for i in range(a)])
    return jnp.stack(rows).reshape(a * a, n * tiles[0] * tiles[1], c)


def _untiled(products, out):
    """A' [...] A of every tile, put side by side: (n, rows, columns, o)."""
    a, _, n, rows, columns, o = products.shape
    m = len(out)
    half = jnp.stack(_combine(out, [products[i] for i in range(a)]))
    half = lax.optimization_barrier(half)
    y = jnp.stack(_combine(out, [half[:, j] for j in range(a)]), axis=4)  # m, n, rows, columns, m
    return y.transpose(1, 2, 0, 3, 4, 5).reshape(n, rows * m, columns * m, o)


def _combine(matrix, parts):
    """matrix @ parts for few parts, without the products by 0 and 1.

    By `lax`: it is most of a program's equations, and operators take three times as long to trace.
    """
    sums = []
    for row in matrix:
        total: Any = None
        for weight, part in zip(row, parts, strict=True):
            if weight:
                total = _add(total, float(weight), part)
        sums.append(total)
    return sums


def _add(total, weight, part):
    if weight == -1 and total is not None:
        return lax.sub(total, part)
    term = part if weight == 1 else lax.mul(part, jnp.asarray(weight, part.dtype))
    return term if total is None else lax.add(total, term)


@functools.cache
def matrices(m: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B' (a, a), G (a, r) and A' (m, a) of F(m, r), a = m + r - 1."""
    points = np.array(_POINTS[: m + r - 2])
    a = m + r - 1
    others = [np.delete(points, j) for j in range(a - 1)]
    into = np.zeros((a, a))
    weigh, out = np.zeros((a, r)), np.zeros((m, a))
    for j, p in enumerate(points):
        into[j, : a - 1] = np.poly(others[j])[::-1]
        weigh[j] = p ** np.arange(r) / np.prod(p - others[j])
        out[:, j] = p ** np.arange(m)
    into[-1] = np.poly(points)[::-1]
    weigh[-1, -1] = out[-1, -1] = 1
    return into.round(12), weigh, out
