"""What will be slow, and what cannot be audited; read off the trace, nothing is timed."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fvaudit.models.model import Model
from fvaudit.records import Finding, Severity


MIN_FEATURES = 16  # of a layer: ranks of fewer say little about a path
MANY_LAYERS = 400
LARGE = 2**28  # bytes of one image's tapped activations


def findings(model: Model, trace: Any) -> list[Finding]:
    """Slow operations, large layers, and layers that path similarity cannot use."""
    return [*_slow(model, trace), *_unusable(model)]


def operations(trace: Any) -> Iterator[Any]:
    """All operations of a trace, those of called functions included."""
    jaxpr = getattr(trace, "jaxpr", trace)
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from operations(inner)


def _slow(model: Model, trace: Any) -> list[Finding]:
    seen = list(operations(trace))
    reasons = [*_slow_convolutions(seen), *_slow_shapes(model, seen)]
    if not reasons:
        return [Finding(Severity.OK, "speed", f"nothing slow in {len(seen)} operations", "")]
    return [Finding(Severity.WARN, "parts that will be slow", "; ".join(r for r, _ in reasons),
                    " ".join(dict.fromkeys(fix for _, fix in reasons)))]  # fmt: skip


def _slow_convolutions(seen: list[Any]) -> list[tuple[str, str]]:
    if jax.default_backend() != "cpu":
        return []  # the stock lowering is the fast one there
    kinds = Counter()
    for op in seen:
        if op.primitive.name == "conv_general_dilated":
            grouped = op.params["feature_group_count"] > 1
            dilated = any(d > 1 for d in op.params["rhs_dilation"])
            kinds["grouped"] += grouped
            kinds["dilated"] += dilated and not grouped
    fix = "Import the network through ONNX, whose depthwise convolutions take the fast rule, or "
    return [
        (f"{count} {kind} convolutions without a fast rule on the CPU (10 to 280 times the time of "
         "their arithmetic)", f"{fix}use a GPU.")
        for kind, count in kinds.items() if count
    ]  # fmt: skip


def _slow_shapes(model: Model, seen: list[Any]) -> Iterator[tuple[str, str]]:
    loops = sum(op.primitive.name in ("scan", "while") for op in seen)
    held = 4 * sum(int(np.prod(model.shapes[name])) for name in model.layers)
    if loops:
        yield f"{loops} loops, whose steps run one by one", "Unroll them where they are short."
    if held > LARGE:
        text = f"{held / 2**20:.0f} MiB of activations an image at {model.input.size}"
        yield text, "Lower the size in the input spec, or audit few layers (evidence.layers)."
    if len(model.layers) > MANY_LAYERS:
        text = f"{len(model.layers)} layers are tapped"
        yield text, "Choose the layers of the path in evidence.layers."


def _unusable(model: Model) -> list[Finding]:
    beside = [name for name in model.layers if name not in model.trunk]
    small = [name for name in model.trunk if np.prod(model.shapes[name]) < MIN_FEATURES]
    found = [Finding(
        Severity.OK if model.trunk else Severity.WARN, "layers of the path",
        f"{len(model.trunk)} of {len(model.layers)} layers are crossed by every path and can be "
        f"compared whole; {len(beside)} lie beside and show a part of the processing",
        "" if model.trunk else "Name the layers to compare in evidence.layers: the network has "
        "none that every path crosses.",
    )]  # fmt: skip
    if model.missing:
        name, why = next(iter(model.missing.items()))
        found.append(Finding(
            Severity.WARN if "logits" in model.missing else Severity.OK,
            "parts that cannot be audited",
            f"{len(model.missing)} layers are not there; {name}: {why}",
            "Audit layers that are there, or export the network without these operations.",
        ))  # fmt: skip
    if small:
        found.append(Finding(
            Severity.WARN, "layers too small for path similarity",
            f"{', '.join(small[:4])}: fewer than {MIN_FEATURES} features to rank",
            "Read their similarities with caution, or leave them out of evidence.layers.",
        ))  # fmt: skip
    return found
