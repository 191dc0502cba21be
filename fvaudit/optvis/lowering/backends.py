"""Which rules a backend takes; all others are `lax`'s own.

On a GPU, `lax`'s gradients of pools and of sampling add with atomics, in another order every time,
and no two runs agree to the byte; ours gather. Milliseconds per image and step on an H100, 64
images a program (results/bench/gpu/rules.csv):

                                                  GoogLeNet to mixed4d    EfficientNet-Lite0
    all of lax's own                                             0.252                 0.181
    strided                                                      0.163 (0.176)
    strided, pooling, sampling: same bytes                       0.255
    normalization, pooling, sampling                             0.269
    depthwise, sampling                                                                0.294

In brackets and in the other rows before the sets of a batch shared the length of their loop. The
third row was measured without the barrier in sampling's gradient.

`lax`'s gradient of a strided convolution is slow there because its kernel is flipped before the
loop (`hoisting`), by which XLA does not recognize it any more; left in the loop it takes 0.192.
TPUs were not measured.
"""

import jax


RULES = {
    "cpu": frozenset(
        {"depthwise", "pointwise", "strided", "winograd", "pooling", "normalization", "sampling"}
    ),
    "gpu": frozenset({"strided", "pooling", "sampling"}),
}


def takes(rule: str) -> bool:
    """Whether the backend in use takes this rule."""
    return rule in RULES.get(jax.default_backend(), ())
