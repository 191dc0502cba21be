"""The sgemm peak of this machine, by NumPy's BLAS and by XLA, both on all cores.

One "image-step" is one product of two 2048 x 2048 float32 matrices, 2 * 2048^3 FLOPs. The NumPy
worker also counts the workload's FLOPs.
"""

import numpy as np
from sides import Runner, Side, Workload


SIDE = 2048
GFLOP = 2 * SIDE**3 / 1e9


def build(side: Side, workload: Workload, cores: int) -> Runner:
    a, b = np.random.default_rng(0).random((2, SIDE, SIDE), np.float32)
    facts: dict[str, float | str] = {"matmul_gflop": GFLOP}
    if side.mode == "numpy":
        out = np.empty_like(a)

        def once():
            np.matmul(a, b, out=out)

        return Runner(lambda: None, _repeat(once), {**facts, "gflop": _gflop(workload)})
    import jax

    product = jax.jit(lambda x, y: x @ y)
    x, y = jax.device_put((a, b))

    def run(steps):
        jax.block_until_ready([product(x, y) for _ in range(steps)][-1])
        return steps

    return Runner(lambda: None, run, facts)


def _repeat(once):
    def run(steps):
        for _ in range(steps):
            once()
        return steps

    return run


def _gflop(workload: Workload) -> float:
    import torch_nets

    layer = workload.layer.replace(".", "_")
    net = torch_nets.truncated(torch_nets.load(workload.network), layer)
    return torch_nets.gradient_flops(net) / 1e9
