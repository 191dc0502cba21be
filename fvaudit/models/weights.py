"""Weight files into networks: read by suffix, hold every shape against the network, then fill.

A file names and lays out tensors by its own rule; a `Naming` says which:

    TORCH  "layer1.0.conv1.weight", kernels (out, in, rows, columns), matrices (out, in)
    LUCID  "conv2d0_w", kernels (rows, columns, in, out), matrices (in, out)
    FLAX   "conv1.kernel", everything as the network itself holds it

Where packages name one network differently, the file's names decide which rule is meant: the one
that every tensor fits. If none does, the nearest one says what is missing.

Files are foreign: nothing in them is executed, and what does not fit is refused before it is read.
"""

import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from fvaudit.models.imports.msgpack_file import read_msgpack
from fvaudit.models.imports.npz import read_npz
from fvaudit.models.imports.pickle_ops import shown
from fvaudit.models.imports.pth import read_tensors
from fvaudit.models.imports.safetensors_file import read_safetensors
from fvaudit.models.model import InputSpec
from fvaudit.records import AuditError


SUFFIXES = (".safetensors", ".npz", ".msgpack", ".pth", ".pt")
OUTPUTS = 1000  # of every network as it is published: ImageNet-1k's classes
MOST_OUTPUTS = 2**15  # ImageNet-21k has 21,843 classes
SPARE_BYTES = 2**20  # of a .pth file beyond its numbers: names, counters
Shapes = Mapping[str, tuple[int, ...]]


class Naming(NamedTuple):
    """How a file names and lays out a network's tensors."""

    name: Callable[[tuple[Any, ...]], str]  # path of a Flax variable -> the file's name
    axes: Mapping[int, tuple[int, ...]]  # by rank: axes of the file's tensor in Flax's order
    plain: Callable[[str], str | None]  # a name in the file -> as `name` gives it; None: ignored
    shapes: Shapes = {}  # by name: of tensors whose numbers are in order, but in another shape
    label: str = ""  # whose names these are, where a network has several
    input: InputSpec | None = None  # preprocessing of who names so, if not the network's usual one


class Head(NamedTuple):
    """How a network's outputs may vary in number."""

    layer: str  # whose bias has an entry for each
    sized: Callable[[int], Any]  # their number -> the shapes of the network's state


def load(
    abstract: Any, path: str | os.PathLike, *namings: Naming, head: Head | None = None
) -> tuple[Any, Naming]:
    """An `nnx.State` of float32 arrays from a weight file, and how the file names them.

    Memory: the file's tensors, of which each is let go once it is converted.

    Args:
        abstract: the state's shapes, from `nnx.split(nnx.eval_shape(...))`.
        path: a .safetensors, .npz (float32, float16; the former also bfloat16), .msgpack, .pth or
            .pt file.
        namings: that the file may have, besides Flax's own; its names decide.
        head: the state gets as many outputs as the file has, if they may vary.

    Raises:
        AuditError: if the file cannot be read, or fits none of the namings, as `fill` says.
    """
    where = shown(os.fspath(path))

    def fitting(shapes: Shapes) -> tuple[Any, Naming]:
        naming = nearest(abstract, shapes, (*namings, FLAX))
        outputs = _outputs(shapes, naming, head.layer) if head else None
        return head.sized(outputs) if head and outputs else abstract, naming

    def check(shapes: Shapes) -> None:
        sized, naming = fitting(shapes)
        _require_fit(_wanted(sized, naming), shapes, naming=naming, where=where)

    tensors = read_weights(path, check=check, max_bytes=8 * _most(abstract, head) + SPARE_BYTES)
    sized, naming = fitting({name: x.shape for name, x in tensors.items()})
    plain = {naming.plain(name): tensors.pop(name) for name in list(tensors)}
    return _filled(sized, plain, naming), naming


def _outputs(shapes: Shapes, naming: Naming, layer: str) -> int | None:
    """How many a file's network has, if it is plausible."""
    wanted = naming.name((layer, "bias"))
    found = next((shape for name, shape in shapes.items() if naming.plain(name) == wanted), ())
    return found[0] if len(found) == 1 and 1 <= found[0] <= MOST_OUTPUTS else None


def _most(abstract: Any, head: Head | None) -> int:
    """Numbers in the state, with the most outputs that are read."""
    shapes = [(path[0], variable.shape) for path, variable in nnx.to_flat_state(abstract)]
    varied = [shape for layer, shape in shapes if head and layer == head.layer]
    fixed = [shape for layer, shape in shapes if not head or layer != head.layer]
    each = sum(math.prod(shape[:-1]) for shape in varied)  # for one output
    return sum(map(math.prod, fixed)) + MOST_OUTPUTS * each


def nearest(abstract: Any, found: Shapes, namings: Sequence[Naming]) -> Naming:
    """The naming under which the fewest of a file's tensors are missing or left over."""

    def misfits(naming: Naming) -> int:
        return len(set(_wanted(abstract, naming)) ^ ({*map(naming.plain, found)} - {None}))

    return min(namings, key=misfits)


def read_weights(
    path: str | os.PathLike, *, check: Callable[[Shapes], None], max_bytes: int
) -> dict[str, np.ndarray]:
    """Reads the tensors of a weight file by its suffix.

    Args:
        path: a file that ends in one of `SUFFIXES`.
        check: called with all shapes; raises to refuse them. For .safetensors and .npz files this
            is before any tensor is read.
        max_bytes: limit on a .msgpack, .pth or .pt file, whose shapes are known only after reading.

    Raises:
        AuditError: for another suffix, an unreadable file, and whatever `check` raises.
    """
    suffix = pathlib.Path(path).suffix.lower()
    if suffix == ".safetensors":
        return read_safetensors(path, check)
    if suffix == ".npz":
        return read_npz(path, check)
    if suffix == ".msgpack":
        return read_msgpack(path, check, max_bytes=max_bytes)
    if suffix not in SUFFIXES:
        raise AuditError(
            f"{shown(os.fspath(path))} is no weight file; expected one that ends in "
            f"{', '.join(SUFFIXES)}."
        )
    tensors = read_tensors(path, max_bytes=max_bytes)
    check({name: tensor.shape for name, tensor in tensors.items()})
    return tensors


# Flax's name of a variable -> PyTorch's; others are parameters of their own, named alike
_TORCH_VARIABLES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def _torch_name(path: Sequence[Any]) -> str:
    last = str(path[-1])
    return ".".join(map(str, (*path[:-1], _TORCH_VARIABLES.get(last, last))))


def _torch_plain(name: str) -> str | None:
    if name.endswith("num_batches_tracked"):
        return None
    return ".".join(part.removeprefix("_") for part in name.split("."))


def _lucid_name(path: Sequence[Any]) -> str:
    return f"{path[-2]}_{'w' if path[-1] == 'kernel' else 'b'}"


# Of rank 3 are tables of embeddings, which both keep alike.
TORCH = Naming(_torch_name, {4: (2, 3, 1, 0), 3: (0, 1, 2), 2: (1, 0), 1: (0,)}, _torch_plain)
LUCID = Naming(_lucid_name, {4: (0, 1, 2, 3), 2: (0, 1), 1: (0,)}, lambda name: name)
FLAX = Naming(  # "layer1.0.conv1.kernel", as the network's own state has it
    lambda path: ".".join(map(str, path)),
    {rank: tuple(range(rank)) for rank in range(1, 5)},
    lambda name: name,
)


def renamed(naming: Naming, label: str, rules: Sequence[tuple[str, str]], **changes: Any) -> Naming:
    """A naming whose names are another's after some replacements.

    Args:
        naming: the other.
        label: whose names these are, for people: "torchvision's names".
        rules: (regular expression, replacement), applied one after the other.
        changes: of other fields.
    """

    def name(path: tuple[Any, ...]) -> str:
        text = naming.name(path)
        for pattern, replacement in rules:
            text = re.sub(pattern, replacement, text)
        return text

    return naming._replace(name=name, label=label, **changes)


def fill(abstract: Any, tensors: Mapping[str, np.ndarray], naming: Naming = TORCH) -> Any:
    """Fills an `nnx.State` with tensors whose names follow from its modules' names.

    Under `TORCH`, underscores in front of the file's module names and counters of batches are
    ignored.

    Raises:
        AuditError: if a tensor is missing, left over or there twice, has another shape or type,
            or holds infinite numbers or NaN.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    _require_fit(_wanted(abstract, naming), shapes, naming=naming, where="The checkpoint")
    return _filled(abstract, {naming.plain(name): x for name, x in tensors.items()}, naming)


def _filled(abstract: Any, plain: dict[str | None, np.ndarray], naming: Naming) -> Any:
    """The state from tensors that fit, which are taken out of `plain` one by one."""
    filled = []
    for path, variable in nnx.to_flat_state(abstract):
        name = naming.name(path)
        tensor = plain.pop(name)
        _require_numbers(name, tensor)
        filled.append((path, variable.replace(_converted(tensor, variable.shape, naming))))
    return nnx.from_flat_state(filled)


def _wanted(abstract: Any, naming: Naming) -> dict[str, tuple[int, ...]]:
    """The file's names and, in the file's layout, shapes."""
    names = {naming.name(path): tuple(v.shape) for path, v in nnx.to_flat_state(abstract)}
    return {n: naming.shapes.get(n, _in_file(shape, naming)) for n, shape in names.items()}


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
        nearest = f" (nearest: {naming.label})" if naming.label else ""
        raise AuditError(
            f"{where} does not fit the network{nearest}: {len(missing)} tensors missing "
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


def _converted(tensor: np.ndarray, shape: tuple[int, ...], naming: Naming) -> jax.Array:
    stored = tensor.reshape(_in_file(shape, naming)).transpose(naming.axes[len(shape)])
    # The copy is the array's own, whatever becomes of the file; jnp.asarray would compile first.
    return jax.device_put(np.array(stored, np.float32, order="C"))
