"""Where a step's time goes: every convolution of a network alone, against the sgemm peak, one core.

    claim      what keeps ResNet-50 and EfficientNet-Lite0 from a larger lead over PyTorch is the
               arithmetic of their matrix products and the memory of their elementwise passes
    command    taskset -c 0 python experiments/bench/layers.py         (two minutes)
    expected   results/bench/layers.md

Each convolution is measured with its input gradient, as the network's step needs it, on its own
shapes, kernels transformed beforehand. The network's gradient of a logit is measured whole, in the
same process; what the convolutions do not explain is activations, pools, sums and the memory in
between. "GF" counts direct convolution; Winograd's and the peak's own share can exceed 1 of it.
"""

import argparse
import pathlib
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import lowering as bench
import numpy as np

from fvaudit.models.model import record
from fvaudit.models.zoo import random_model
from fvaudit.optvis import lowering


NETWORKS = ("resnet50", "efficientnet_lite0")
SIDE = 1024  # of the matrices whose product gives the peak


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/bench/layers.md"))
    options = parser.parse_args()
    peak = one_core_peak()
    lines = [f"sgemm peak of one core: {peak:.0f} GF/s", ""]
    for network in NETWORKS:
        lines += [*_profile(network, peak), ""]
        options.out.write_text("\n".join(lines))
    print("\n".join(lines))


def one_core_peak() -> float:
    """GF/s of a product of square matrices that fit the cache."""
    a, b = bench.draw(SIDE, SIDE), bench.draw(SIDE, SIDE)
    return 2 * SIDE**3 / 1e6 / bench.milliseconds(lambda a, b: a @ b, a, b)


def _profile(network: str, peak: float) -> list[str]:
    model = random_model(network, seed=0)
    whole = _whole(model)
    rows: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))  # calls, GF, ms
    for (x, kernel, strides, pads, groups), calls in _convolutions(model).items():
        ms = _alone(x, kernel, strides, pads, groups)
        gf = 2 * 2 * np.prod(_out(x, kernel, strides, pads)) * np.prod(kernel[:3]) / 1e9
        rows[_kind(kernel, strides, groups)] += calls * np.array([1, gf, ms])
    rows["everything else"] += [0, 0, whole - sum(row[2] for row in rows.values())]
    rows["one step's gradient"] += [0, sum(row[1] for row in rows.values()), whole]
    return [
        f"{network}, gradient of a logit, one image, one core",
        "",
        "| | calls | GF | ms | share of the time | share of the peak |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {kind} | {calls:.0f} | {gf:.2f} | {ms:.1f} | {ms / whole:.2f} | "
            f"{gf / ms * 1e3 / peak:.2f} |"
            for kind, (calls, gf, ms) in rows.items()
        ),
    ]


def _convolutions(model) -> Counter:
    """(images, kernel, strides, padding, groups) of every convolution, with the number of calls."""
    seen: Counter = Counter()

    def note(x, kernel, strides, padding, groups):
        pads = padding
        if isinstance(pads, str):
            pads = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
        seen[x.shape, kernel.shape, strides, tuple(map(tuple, pads)), groups] += 1

    with lowering.observing(note):
        images = jax.ShapeDtypeStruct((1, *model.input.size, 3), jnp.float32)
        jax.eval_shape(lambda p, x: model.forward(p, x, lambda name, y: y), model.params, images)
    return seen


def _alone(x, kernel, strides, pads, groups) -> float:
    def call(kernel, x):
        return lowering.conv_general_dilated(
            x,
            kernel,
            strides,
            pads,
            dimension_numbers=bench.NHWC,
            feature_group_count=groups,
        )

    return bench.milliseconds(bench.with_gradient(call), bench.draw(*kernel), bench.draw(*x))


def _whole(model) -> float:
    def logit(params, images):
        return record(model.forward, params, images, ["logits"])["logits"][:, 0].sum()

    return bench.milliseconds(
        jax.value_and_grad(logit, argnums=1), model.params, bench.draw(1, *model.input.size, 3)
    )


def _out(x, kernel, strides, pads) -> tuple[int, ...]:
    sides = (
        (size + sum(pad) - k) // stride + 1
        for size, k, stride, pad in zip(x[1:3], kernel[:2], strides, pads, strict=True)
    )
    return (x[0], *sides, kernel[3])


def _kind(kernel, strides, groups) -> str:
    depth = " depthwise" if groups > 1 else ""
    return f"{kernel[0]}x{kernel[1]}" + ("" if strides == (1, 1) else "/2") + depth


if __name__ == "__main__":
    main()
