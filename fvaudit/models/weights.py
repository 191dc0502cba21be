"""Weight files into networks: read by suffix, hold every shape against the network, then fill.

A file names and lays out tensors by its own rule; a `Naming` says which:

    TORCH  "layer1.0.conv1.weight", kernels (out, in, rows, columns), matrices (out, in)
    LUCID  "conv2d0_w", kernels (rows, columns, in, out), matrices (in, out)

Files are foreign: nothing in them is executed, and what does not fit is refused before it is read.
"""

import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fvaudit.models.imports.npz import read_npz
from fvaudit.models.imports.pickle_ops import shown
from fvaudit.models.imports.pth import read_tensors
from fvaudit.models.imports.safetensors_file import read_safetensors
from fvaudit.records import AuditError


SUFFIXES = (".safetensors", ".npz", ".pth", ".pt")
SPARE_BYTES = 2**20  # of a .pth file beyond its numbers: names, counters
Shapes = Mapping[str, tuple[int, ...]]


class Naming(NamedTuple):
    """How a file names and lays out a network's tensors."""

    name: Callable[[tuple[Any, ...]], str]  # path of a Flax variable -> the file's name
    axes: Mapping[int, tuple[int, ...]]  # by rank: axes of the file's tensor in Flax's order
    plain: Callable[[str], str | None]  # a name in the file -> as `name` gives it; None: ignored


def load(abstract: Any, path: str | os.PathLike, naming: Naming) -> Any:
    """An `nnx.State` of float32 arrays from a weight file.

    Args:
        abstract: the state's shapes, from `nnx.split(nnx.eval_shape(...))`.
        path: a .safetensors, .npz (float32, float16; the former also bfloat16), .pth or .pt file.
        naming: of the file.

    Raises:
        AuditError: if the file cannot be read, and as `fill` says.
    """
    wanted = _wanted(abstract, naming)
    tensors = read_weights(
        path,
        check=partial(_require_fit, wanted, naming=naming, where=shown(os.fspath(path))),
        max_bytes=8 * sum(math.prod(shape) for shape in wanted.values()) + SPARE_BYTES,
    )
    return fill(abstract, tensors, naming)


def read_weights(
    path: str | os.PathLike, *, check: Callable[[Shapes], None], max_bytes: int
) -> dict[str, np.ndarray]:
    """Reads the tensors of a weight file by its suffix.

    Args:
        path: a file that ends in one of `SUFFIXES`.
        check: called with all shapes; raises to refuse them. For .safetensors and .npz files this
            is before any tensor is read.
        max_bytes: limit on a .pth or .pt file, whose shapes are known only after reading.

    Raises:
        AuditError: for another suffix, an unreadable file, and whatever `check` raises.
    """
    suffix = pathlib.Path(path).suffix.lower()
    if suffix == ".safetensors":
        return read_safetensors(path, check)
    if suffix == ".npz":
        return read_npz(path, check)
    if suffix not in SUFFIXES:
        raise AuditError(
            f"{shown(os.fspath(path))} is no weight file; expected one that ends in "
            f"{', '.join(SUFFIXES)}."
        )
    tensors = read_tensors(path, max_bytes=max_bytes)
    check({name: tensor.shape for name, tensor in tensors.items()})
    return tensors


# Flax's name of a variable -> PyTorch's
_TORCH_VARIABLES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def _torch_name(path: Sequence[Any]) -> str:
    return ".".join(map(str, (*path[:-1], _TORCH_VARIABLES[str(path[-1])])))


def _torch_plain(name: str) -> str | None:
    if name.endswith("num_batches_tracked"):
        return None
    return ".".join(part.removeprefix("_") for part in name.split("."))


def _lucid_name(path: Sequence[Any]) -> str:
    return f"{path[-2]}_{'w' if path[-1] == 'kernel' else 'b'}"


TORCH = Naming(_torch_name, {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}, _torch_plain)
LUCID = Naming(_lucid_name, {4: (0, 1, 2, 3), 2: (0, 1), 1: (0,)}, lambda name: name)


def fill(abstract: Any, tensors: Mapping[str, np.ndarray], naming: Naming = TORCH) -> Any:
    """Fills an `nnx.State` with tensors whose names follow from its modules' names.

    Under `TORCH`, underscores in front of the file's module names and counters of batches are
    ignored.

    Raises:
        AuditError: if a tensor is missing, left over or there twice, has another shape or type,
            or holds infinite numbers or NaN.
    """
    wanted = _wanted(abstract, naming)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    _require_fit(wanted, shapes, naming=naming, where="The checkpoint")
    plain = {naming.plain(name): tensor for name, tensor in tensors.items()}
    for name in wanted:
        _require_numbers(name, plain[name])
    return nnx.from_flat_state(
        [
            (path, variable.replace(_converted(plain[naming.name(path)], naming)))
            for path, variable in nnx.to_flat_state(abstract)
        ]
    )


def _wanted(abstract: Any, naming: Naming) -> dict[str, tuple[int, ...]]:
    """The file's names and, in the file's layout, shapes."""
    return {
        naming.name(path): _in_file(tuple(variable.shape), naming)
        for path, variable in nnx.to_flat_state(abstract)
    }


def _in_file(shape: tuple[int, ...], naming: Naming) -> tuple[int, ...]:
    axes = naming.axes[len(shape)]
    return tuple(shape[axes.index(axis)] for axis in range(len(shape)))


def _require_fit(wanted: Shapes, found: Shapes, *, naming: Naming, where: str) -> None:
    plain: dict[str, tuple[int, ...]] = {}
    for name, shape in found.items():
        known = naming.plain(name)
        if known in plain:
            raise AuditError(f"{where} holds two tensors for {shown(known)}; expected one.")
        if known is not None:
            plain[known] = shape
    missing = sorted(set(wanted) - set(plain))
    unused = [shown(name) for name in sorted(set(plain) - set(wanted))]
    if missing or unused:
        raise AuditError(
            f"{where} does not fit the network: {len(missing)} tensors missing "
            f"{missing[:3]}, {len(unused)} left over {unused[:3]}."
        )
    for name, shape in wanted.items():
        if plain[name] != shape:
            raise AuditError(
                f"{where} does not fit the network: {name} has shape {plain[name]}, the network "
                f"needs {shape}."
            )


def _require_numbers(name: str, tensor: np.ndarray) -> None:
    if tensor.dtype not in (np.float32, np.float16):
        raise AuditError(
            f"Tensor {name} has type {tensor.dtype}; expected float32, float16 or bfloat16. "
            "Convert it to float32."
        )
    if not np.isfinite(tensor).all():
        raise AuditError(f"Tensor {name} holds infinite numbers or NaN; expected finite ones.")


def _converted(tensor: np.ndarray, naming: Naming) -> jax.Array:
    return jnp.asarray(tensor.transpose(naming.axes[tensor.ndim]).astype(np.float32))
