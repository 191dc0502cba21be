"""What the taps of an ONNX graph are called, and which of them make its trunk.

A tap has the name of its value in the file, with ":" and "@" written "." and whitespace written
"_", since texts that name units give those a meaning. Aliases are what a reader would say:

- the path of a PyTorch module, for the last value computed inside it: from the names that the
  TorchScript exporter gives ("/layer1/layer1.0/conv1/Conv_output_0" -> "layer1.0.conv1") and from
  the metadata of the newer exporter;
- the node's own name, where there is no such path;
- "logits" for the first output of the graph, or for what a final Softmax reads.

The trunk are the values that every path from the image to that output crosses. Of a straight run
(a convolution or matrix product, its normalization, its activation) only the last is listed, and
values that are merely reshaped are not.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from fvaudit.models.imports.calls import plain
from fvaudit.models.imports.onnx.operators import Kind
from fvaudit.models.imports.onnx.program import Program, Step, live_inputs


_TAPPED_RANKS = (2, 3, 4)  # (n, c), (n, t, c), and images
_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "QLinearConv", "QLinearMatMul"}
_NORMS = {"BatchNormalization", "InstanceNormalization", "GroupNormalization"}
_ROUNDINGS = {"QuantizeLinear", "DequantizeLinear"}
_SAME_NUMBERS = {"Transpose", "Identity", "Cast", "Dropout"}
_ENDS = {"Softmax", "LogSoftmax"}


def tap_names(program: Program) -> dict[str, str]:
    """Value -> name of its tap, in order of computation, each once."""
    taken: Counter[str] = Counter()
    names: dict[str, str] = {}
    for step in program.steps:
        for name, output in zip(step.node.outputs, step.outputs, strict=True):
            if name and output is not None and _is_tapped(output):
                known = plain(name)
                taken[known] += 1
                names[name] = known if taken[known] == 1 else _fresh(known, taken)
    return names


def _fresh(name: str, taken: Counter[str]) -> str:
    number = next(i for i in range(2, len(taken) + 3) if f"{name}_{i}" not in taken)
    taken[f"{name}_{number}"] += 1
    return f"{name}_{number}"


def _is_tapped(output: jax.ShapeDtypeStruct) -> bool:
    images = output.shape[:1] == (1,) and 0 not in output.shape
    return (
        images and len(output.shape) in _TAPPED_RANKS and jnp.issubdtype(output.dtype, jnp.floating)
    )


def aliases(program: Program, names: Mapping[str, str]) -> dict[str, str]:
    """Further names -> name of a tap."""
    found: dict[str, str] = {}
    for step in program.steps:
        output = names.get(step.node.outputs[0])
        for path in _paths(step):
            found.pop(path, None)  # its last value counts, and stands where that does
            if output is not None:
                found[path] = output
    once = Counter(step.node.name for step in program.steps)
    for step in program.steps:
        output, name = names.get(step.node.outputs[0]), plain(step.node.name)
        if not output or not name or name in output or output in name:
            continue  # the node's name says nothing more
        if once[step.node.name] == 1 and not _paths(step):
            found.setdefault(name, output)
    end = logits(program, names)
    if end is not None:
        found["logits"] = names[end]
    layers = set(names.values())
    return {alias: layer for alias, layer in found.items() if alias not in layers}


def _paths(step: Step) -> list[str]:
    """Paths of the modules around a node, as PyTorch writes them."""
    if step.node.scopes:
        return [plain(s) for s in dict.fromkeys(step.node.scopes) if s]
    if not step.node.name.startswith("/"):
        return []
    paths: list[str] = []
    before = ""
    for part in step.node.name.split("/")[1:-1]:
        last = paths[-1] if paths else ""
        if before and part.startswith(f"{before}."):  # layer1/layer1.0: a container's child
            paths.append(last.removesuffix(before) + part)
        else:
            paths.append(f"{last}.{part}" if last else part)
        before = part
    return [plain(path) for path in paths]


def logits(program: Program, names: Mapping[str, str]) -> str | None:
    """The value that counts as the network's output, before a final Softmax; None if not tapped."""
    end = program.graph.outputs[0] if program.graph.outputs else ""
    makers = {name: step for step in program.steps for name in step.node.outputs if name}
    while end in makers and makers[end].node.op in _ENDS | {"Identity"}:
        before = live_inputs(makers[end])
        if not before or before[0] not in names:
            break
        end = before[0]
    return end if end in names else None


def trunk(program: Program, names: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the taps on every path from the image to the output, thinned."""
    end = logits(program, names) or next(reversed(list(names)), "")
    before, after = _counts(program, end)
    total = before.get(end, 0)
    crossing: list[tuple[int, str]] = []
    between: list[int] = []
    for i, step in enumerate(program.steps):
        outputs = [n for n in step.node.outputs if before.get(n, 0) and after.get(n, 0)]
        if outputs:
            between.append(i)
        crossing += [(i, n) for n in outputs if n in names and before[n] * after[n] == total]
    kept = []
    for (i, name), following in zip(crossing, [*crossing[1:], (-1, "")], strict=True):
        region = [program.steps[k] for k in between if i < k <= following[0]]
        if name == end or not _is_dropped(program.steps[i], region):
            kept.append(names[name])
    return tuple(kept)


def _is_dropped(step: Step, region: Sequence[Step]) -> bool:
    if step.operator.kind is Kind.VIEW or step.node.op in _SAME_NUMBERS:
        return True
    product = step.node.op in _PRODUCTS or _follows(step)
    return product and bool(region) and all(_follows(s) for s in region)


def _follows(step: Step) -> bool:
    """Whether a node merely finishes what a convolution or product began."""
    return step.operator.kind is Kind.ELEMENTWISE or step.node.op in _NORMS | _ROUNDINGS


def _counts(program: Program, end: str) -> tuple[dict[str, int], dict[str, int]]:
    """For each value, how many paths lead from the image to it, and from it to the end."""
    before = {program.input: 1}
    for step in program.steps:
        arriving = sum(before.get(name, 0) for name in live_inputs(step))
        before |= {name: arriving for name in step.node.outputs if name}
    after = {end: 1}
    for step in reversed(program.steps):
        leaving = sum(after.get(name, 0) for name in step.node.outputs)
        for name in live_inputs(step):
            after[name] = after.get(name, 0) + leaving
    return before, after
