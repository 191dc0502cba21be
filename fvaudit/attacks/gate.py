"""Natural photograph or visualization? The classifier that opens a fooling circuit.

A small convolutional network over the image that the model sees, after the "SimpleCNN" of Geirhos
et al. (2024), App. C.1, with these changes: input scaled to [-1, 1] and a mean over positions in
place of the last dense layer (raw inputs of +-117 collapsed to the prior in a replication), strides
from the first layer on, which make it four times as fast, and padding, so that it takes any size.

Its answer is a hard threshold, so no gradient passes: a soft gate would be attacked itself.
"""

import functools
import importlib.resources
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key
from safetensors import safe_open

from fvaudit.models.imports.safetensors_file import read_safetensors
from fvaudit.optvis import lowering
from fvaudit.records import AuditError


FACTS = "fvaudit.gate"  # where a file says what is known of its gate
WIDTH = 16
# (kernel, stride, channels in) of each convolution; all give WIDTH channels
LAYERS = ((3, 2, 3), (5, 2, WIDTH), (5, 2, WIDTH), (5, 2, WIDTH), (3, 1, WIDTH))


class Gate(NamedTuple):
    """Says of images whether they are natural."""

    logit: Callable[[Any, Float[Array, "n h w c"]], Float[Array, " n"]]  # above 0: natural
    params: Any  # pytree of arrays
    name: str  # for call texts

    def natural(self, params: Any, images: Float[Array, "n h w c"]) -> Bool[Array, " n"]:
        """Whether each image in [0, 1] is natural; passes no gradient."""
        return jax.lax.stop_gradient(self.logit(params, images)) > 0


def always(natural: bool) -> Gate:
    """A gate that gives one answer, for exact tests."""

    def logit(params, images):
        return jnp.full(images.shape[:1], params)

    return Gate(logit, jnp.float32(1.0 if natural else -1.0), f"always({natural})")


def small(key: Key[Array, ""]) -> Gate:
    """An untrained gate: He-normal kernels, so that logits vary from the start."""
    params: dict[str, Any] = {}
    for i, (size, _, channels) in enumerate(LAYERS):
        fan = size * size * channels
        draw = jax.random.normal(jax.random.fold_in(key, i), (size, size, channels, WIDTH))
        params[f"conv{i}"] = {"kernel": draw * np.sqrt(2 / fan), "bias": jnp.zeros(WIDTH)}
    last = jax.random.fold_in(key, len(LAYERS))
    params["head"] = {"kernel": jax.random.normal(last, (WIDTH,)) / 4, "bias": jnp.zeros(())}
    return Gate(logit, params, "small")


def logit(params: Any, images: Float[Array, "n h w c"]) -> Float[Array, " n"]:
    """The small network: evidence, in nats, that images in [0, 1] are natural."""
    x = 2 * images - 1
    for i, (_, stride, _) in enumerate(LAYERS):
        kernel, bias = params[f"conv{i}"]["kernel"], params[f"conv{i}"]["bias"]
        x = lowering.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + bias)
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


def require_colours(model: Any) -> None:
    """Raises `AuditError` if the small network cannot look at a model's images."""
    if len(model.input.mean) != 3:
        raise AuditError(
            f"A gate looks at colours (RGB), and {model.name} takes {len(model.input.mean)} a "
            "pixel. Give a `Gate` of your own to attacks.fooling_circuit."
        )


def load(file: str | os.PathLike[str]) -> Gate:
    """A trained gate, as `gate_training.save` wrote it.

    Raises:
        AuditError: if the file is damaged or holds another network.
    """
    wanted = small(jax.random.key(0)).params
    paths, tree = jax.tree_util.tree_flatten_with_path(wanted)
    shapes = {name_of(path): leaf.shape for path, leaf in paths}
    tensors = read_safetensors(file, functools.partial(_require_shapes, shapes))
    params = jax.tree.unflatten(tree, [jnp.asarray(tensors[name]) for name in shapes])
    return Gate(logit, params, pathlib.Path(file).stem)


def packaged(model: str) -> Gate:
    """The trained gate that ships with fvaudit for a network of the zoo.

    Its error rates on what training did not see are in `facts(model)`.

    Raises:
        AuditError: if none ships for this network.
    """
    return load(_packaged(model))


def facts(model: str) -> dict[str, Any]:
    """What is known of a packaged gate: data, settings and measured error rates.

    Raises:
        AuditError: if none ships for this network.
    """
    with safe_open(_packaged(model), framework="numpy") as file:
        return json.loads(file.metadata()[FACTS])


def _packaged(model: str) -> pathlib.Path:
    folder = pathlib.Path(str(importlib.resources.files("fvaudit.attacks") / "gates"))
    file = folder / f"{model}.safetensors"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.safetensors"))) or "none"
        raise AuditError(
            f"No gate ships for {model!r}; there is one for: {known}. Train one "
            "with `fvaudit train-gate`; a config names its file as attack.gate, attacks.gate.load "
            "reads it."
        )
    return file


def _require_shapes(wanted: dict[str, tuple[int, ...]], found: Any) -> None:
    if dict(found) != wanted:
        wrong = sorted({*wanted.items()} ^ {*found.items()})[:3]
        raise AuditError(f"This is no gate of fvaudit: it differs in {wrong}.")


def name_of(path: Any) -> str:
    """What a file calls a parameter, by its path in the pytree."""
    return jax.tree_util.keystr(path, simple=True, separator=".")
