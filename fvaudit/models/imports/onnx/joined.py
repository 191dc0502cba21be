"""1 x 1 convolutions of one value as one matrix product over joined kernels.

Inception modules read one value with several of them. Each output is cut out again and is a tap of
its own, so joining changes nothing but speed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from fvaudit.models.imports.onnx.program import Live, Param, Step
from fvaudit.optvis import lowering


def joined_convolutions(steps: Sequence[Step]) -> dict[int, tuple[int, ...]]:
    """Groups of steps that can be computed together, by their first step's number."""
    groups: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        if _is_pointwise(step):
            groups.setdefault(step.inputs[0].name, []).append(i)
    return {group[0]: tuple(group) for group in groups.values() if len(group) > 1}


def _is_pointwise(step: Step) -> bool:
    node, output = step.node, step.outputs[0]
    if node.op != "Conv" or output is None or len(output.shape) != 4 or output.shape[0] != 1:
        return False
    known = all(ref is None or isinstance(ref, Param) for ref in step.inputs[1:])
    plain = not any(node.get("pads", ())) and set(node.get("strides", ())) <= {1}
    window = set(node.get("kernel_shape", (0,))) == {1}
    return (
        isinstance(step.inputs[0], Live)
        and known
        and plain
        and window
        and node.get("group", 1) == 1
    )


def run_joined(
    steps: Sequence[Step], group: Sequence[int], params: Any, env: Mapping[str, Any]
) -> dict[int, Array]:
    """The outputs of a group's steps, channels last."""
    x = env[steps[group[0]].inputs[0].name].last
    kernels = [params[steps[i].inputs[1].key] for i in group]
    kernel = jnp.concatenate(kernels, axis=-1)
    product = lowering.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    ends = [sum(k.shape[-1] for k in kernels[: j + 1]) for j in range(len(kernels) - 1)]
    biases = [_bias(steps[i], k, params) for i, k in zip(group, kernels, strict=True)]
    parts = jnp.split(product + jnp.concatenate(biases), ends, axis=-1)
    return dict(zip(group, parts, strict=True))


def _bias(step: Step, kernel: Array, params: Any) -> Array:
    if len(step.inputs) < 3 or step.inputs[2] is None:
        return jnp.zeros(kernel.shape[-1], kernel.dtype)
    return params[step.inputs[2].key]
