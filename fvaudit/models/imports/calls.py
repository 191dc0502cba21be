"""Outputs of module calls as layers: what Flax's and our own imports share.

During a forward pass every module call reports its path and its output. A path that is called
again becomes "path#2"; the network's output is "logits". Which of them are layers is found once by
running the network abstractly for two batch sizes: arrays of real numbers with a batch axis first
and two to four axes, that is (n, c), (n, tokens, c) or (n, h, w, c). One array that goes by several
names, as a block's and its last part's, is one layer under the shortest of them; the others are
aliases.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp

from fvaudit.models.model import InputSpec, Tap
from fvaudit.records import AuditError


OUTPUT = "logits"
RANKS = (2, 3, 4)
Watch = Callable[[str, Any], Any]  # called with a call's name and output; returns the output to use


def plain(name: str) -> str:
    """A name as units may be written with: `records.LAYER_NAME`."""
    return re.sub(r"\s", "_", re.sub(r"[:@]", ".", name))


class Layers(NamedTuple):
    """The layers among a network's calls."""

    names: tuple[str, ...]  # in order of computation
    aliases: dict[str, str]  # other name -> layer


class Calls:
    """Names the calls of one forward pass and hands them on.

    Calls inside a scan, a remat or another transformation are left alone: their values exist there
    only.
    """

    def __init__(self, watch: Watch):
        self._watch = watch
        self._counts: Counter[str] = Counter()
        self._outside = jax.extend.core.get_opaque_trace_state()

    def __call__(self, path: Sequence[Any], output: Any) -> Any:
        """Hands on the output of the module at `path`."""
        if jax.extend.core.get_opaque_trace_state() != self._outside:
            return output
        name = plain(".".join(map(str, path)))
        name = f"{name}_" if name == OUTPUT else name  # the network's own output has that name
        self._counts[name] += 1
        count = self._counts[name]
        return self._watch(name if count == 1 else f"{name}#{count}", output)


def tapping(tap: Tap, layers: Collection[str]) -> Watch:
    """Hands the outputs that are layers to a tap, and leaves the others."""
    return lambda name, output: tap(name, output) if name in layers else output


def find_layers(
    run: Callable[[Any, Watch], Any],
    spec: InputSpec,
    *,
    what: str,
    wanted: Sequence[str] | None = None,
    strict: bool = False,
) -> Layers:
    """The layers of a network whose calls report to a `Watch`, the output included.

    Args:
        run: called as run(images, watch), images (n, h, w, c) in [0, 1].
        spec: of the images.
        what: the network, for errors.
        wanted: names to keep; all layers unless given.
        strict: whether everything that is reported has to be a layer.

    Raises:
        AuditError: if the output, a wanted name or, if `strict`, any other is no layer.
    """
    two, three = (_reported(run, spec, batch) for batch in (2, 3))
    fit = {name for name, x in two.items() if _is_layer(x, 2) and _is_layer(three.get(name), 3)}
    if OUTPUT not in fit:
        raise AuditError(
            f"{what} returns {_described(two.get(OUTPUT))}; expected one array of real numbers, "
            "(n, classes), or with more axes after the batch. Where a framework's module returns "
            "more, say output=, a function from that to the array."
        )
    for name in (*(two if strict else ()), *(wanted or ())):
        if name not in fit:
            raise AuditError(
                f"{what} has no layer {name!r} with a batch axis and two to four axes: "
                f"{_described(two.get(name))}. It has {', '.join(sorted(fit)[:20])}."
            )
    kept = [name for name in two if name in fit and (wanted is None or name in {*wanted, OUTPUT})]
    return _merged(kept, two)


def _reported(run: Callable[[Any, Watch], Any], spec: InputSpec, batch: int) -> dict[str, Any]:
    reported: dict[str, Any] = {}

    def watch(name: str, output: Any) -> Any:
        if name in reported:
            raise AuditError(f"Two layers are called {name!r}; every layer needs its own name.")
        reported[name] = output
        return output

    images = jax.ShapeDtypeStruct((batch, *spec.size, len(spec.mean)), jnp.float32)
    jax.eval_shape(lambda images: (run(images, watch), None)[1], images)
    return reported


def _is_layer(x: Any, batch: int) -> bool:
    real = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
    return real and x.ndim in RANKS and x.shape[0] == batch


def _merged(names: Sequence[str], values: dict[str, Any]) -> Layers:
    """One name an array: of the fewest parts, and of those the first."""
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(id(values[name]), []).append(name)
    layers, aliases = [], {}
    for group in groups.values():
        own = [name for name in group if name != OUTPUT] or [OUTPUT]
        first = min(own, key=lambda name: name.count("."))
        layers.append(first)
        aliases |= {name: first for name in group if name != first}
    return Layers(tuple(layers), aliases)


def _described(x: Any) -> str:
    if x is None:
        return "nothing"
    shape = getattr(x, "shape", None)
    return type(x).__name__ if shape is None else f"{x.dtype} of shape {tuple(shape)} for 2 images"
