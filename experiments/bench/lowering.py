"""Each lowering against lax: forward, and forward with the input gradient, on one core.

    taskset -c 0 python experiments/bench/lowering.py            # half a minute
    taskset -c 0 python experiments/bench/lowering.py tiles      # Winograd's table, a quarter more

Prints milliseconds of CPU time per call, lax's and ours, and their ratio. Shapes are GoogLeNet's,
ResNet-50's and EfficientNet-Lite0's at 224 px, one image. Kernels are transformed outside of the
measured call, as the engine's loop does it. CPU time on a pinned core hardly depends on what
else runs, except through the caches: expect 10 %.
"""

import os


os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
# Freed memory stays mapped, as it does inside a loop; else page faults are measured too.
os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "8589934592")

import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import lax  # noqa: E402

from fvaudit.optvis import hoisting, lowering  # noqa: E402


NHWC = ("NHWC", "HWIO", "NHWC")
SECONDS = 0.1  # of measurement per figure

# (picture, channels in, out, kernel, stride, groups)
CONVOLUTIONS = [
    (224, 3, 64, 7, 2, 1),
    (224, 3, 32, 3, 2, 1),
    (56, 64, 64, 1, 1, 1),
    (28, 256, 352, 1, 1, 1),
    (14, 512, 296, 1, 1, 1),
    (56, 64, 192, 3, 1, 1),
    (28, 128, 192, 3, 1, 1),
    (14, 144, 288, 3, 1, 1),
    (7, 192, 384, 3, 1, 1),
    (28, 32, 96, 5, 1, 1),
    (14, 32, 64, 5, 1, 1),
    (56, 64, 64, 3, 1, 1),
    (14, 256, 256, 3, 1, 1),
    (7, 512, 512, 3, 1, 1),
    (56, 128, 128, 3, 2, 1),
    (14, 512, 512, 3, 2, 1),
    (56, 256, 512, 1, 2, 1),
    (112, 32, 32, 3, 1, 32),
    (56, 144, 144, 5, 2, 144),
    (14, 672, 672, 5, 1, 672),
]
POOLS = [(112, 64, 2), (56, 192, 2), (28, 256, 1), (14, 512, 1)]  # (picture, channels, stride)
NORMS = [(56, 64), (56, 192)]  # (picture, channels)


def main(arguments: list[str]) -> None:
    print(f"{'':34s} {'forward':>21s}   {'with input gradient':>21s}")
    print(f"{'':34s} {'lax':>7s} {'ours':>7s} ratio   {'lax':>7s} {'ours':>7s} ratio")
    for name, stock, ours, x, kernel in cases():
        times = [milliseconds(f, kernel, x) for f in (stock, ours)]
        slopes = [milliseconds(with_gradient(f), kernel, x) for f in (stock, ours)]
        print(f"{name:34s} {row(*times)}   {row(*slopes)}", flush=True)
    if "tiles" in arguments:
        tiles()


def cases() -> Iterator[tuple[str, Callable, Callable, Any, Any]]:
    """(name, lax's function, ours, images, kernel); functions of (kernel, images)."""
    for size, c, o, k, stride, groups in CONVOLUTIONS:
        name = f"conv {k}x{k}/{stride} {size} px {c} -> {o}" + " depthwise" * (groups > 1)
        stock, ours = (convolution(f, k, stride, groups) for f in CONV_FUNCTIONS)
        yield name, stock, ours, draw(1, size, size, c), draw(k, k, c // groups, o)
    for size, c, stride in POOLS:
        pads = ((0, 1), (0, 1)) if stride == 2 else ((1, 1), (1, 1))
        stock, ours = (pool(f, stride, pads) for f in (stock_pool, lowering.max_pool))
        yield f"max pool 3x3/{stride} {size} px {c}", stock, ours, draw(1, size, size, c), ()
    for size, c in NORMS:
        x = 10 * draw(1, size, size, c)
        ours = lambda _, x: lowering.local_response_norm(x)  # noqa: E731
        yield f"response norm {size} px {c}", stock_norm, ours, x, ()


CONV_FUNCTIONS = (lax.conv_general_dilated, lowering.conv_general_dilated)


def convolution(function, k, stride, groups) -> Callable:
    pads = (k // 2, k // 2), (k // 2, k // 2)

    def call(kernel, x):
        return function(
            x, kernel, (stride, stride), pads, dimension_numbers=NHWC, feature_group_count=groups
        )

    return call


def pool(function, stride, pads) -> Callable:
    return lambda _, x: function(x, (3, 3), (stride, stride), pads)


def stock_pool(x, window, strides, pads):
    dims, steps = (1, *window, 1), (1, *strides, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, dims, steps, ((0, 0), *pads, (0, 0)))


def stock_norm(_, x):
    squares = lax.reduce_window(x * x, 0.0, lax.add, (1, 1, 1, 5), (1, 1, 1, 1), "SAME")
    return x * (1 + 1e-4 / 5 * squares) ** -0.75


def with_gradient(function) -> Callable:
    """Value and input gradient; the value itself is the gradient that comes in."""

    def call(kernel, x):
        value, pull = jax.vjp(lambda x: function(kernel, x), x)
        return value, pull(value)

    return call


def milliseconds(function, kernel, x) -> float:
    """CPU time of one call, what depends on the kernel alone computed beforehand."""
    held = jax.jit(lambda kernel: hoisting.split(function, kernel, x)[0])(kernel)
    call = jax.jit(lambda held, x: hoisting.split(function, kernel, x)[1](held, x))
    jax.block_until_ready(call(held, x))
    spent, start = [], time.process_time()
    while time.process_time() - start < SECONDS or len(spent) < 5:
        before = time.process_time()
        jax.block_until_ready(call(held, x))
        spent.append(time.process_time() - before)
    return 1e3 * statistics.median(spent)


def tiles() -> None:
    """Every tile of Winograd's algorithm for every stride-1 shape; 0 is lax."""
    for size, c, o, k, stride, groups in CONVOLUTIONS:
        if k not in (3, 5) or stride > 1 or groups > 1:
            continue
        pads = (k // 2, k // 2), (k // 2, k // 2)
        x, kernel = draw(1, size, size, c), draw(k, k, c, o)
        times = {0: milliseconds(convolution(lax.conv_general_dilated, k, 1, 1), kernel, x)}
        for m in (2, 3, 4) if k == 3 else (2, 3):
            call = lambda kernel, x, m=m: lowering.winograd(x, kernel, pads, m, m)  # noqa: B023,E731
            times[m] = milliseconds(call, kernel, x)
        text = "  ".join(f"{m}: {t:.2f}" for m, t in times.items())
        print(f"{k}x{k} {size} px {c} -> {o}   {text}", flush=True)


def row(stock: float, ours: float) -> str:
    return f"{stock:7.2f} {ours:7.2f} {ours / stock:5.2f}"


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


if __name__ == "__main__":
    main(sys.argv[1:])
