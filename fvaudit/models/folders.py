"""A model as a folder: parameters as safetensors, and a recipe in JSON; no code, no pickle.

    recipe.json              the network it starts from, manipulations by builder name, input spec,
                             classes, source, and the SHA-256 of every other file
    parameters.safetensors   every parameter, bit by bit
    network.onnx             where the network is not one of the zoo

A folder is foreign: names of files are fixed, checksums are held against the files before they are
read, shapes and types against the network before a tensor is; and the model that comes out must
have the fingerprint of the one that went in.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fvaudit.models import builders
from fvaudit.models.builders import Edit
from fvaudit.models.classes import ImageClass
from fvaudit.models.imports.pickle_ops import shown
from fvaudit.models.model import InputSpec, Model
from fvaudit.models.weights import MOST_OUTPUTS, OUTPUTS
from fvaudit.records import AuditError


FORMAT = "fvaudit-model/1"
RECIPE, PARAMETERS, NETWORK = "recipe.json", "parameters.safetensors", "network.onnx"
MAX_RECIPE = 16 * 2**20  # bytes
TYPES = {"float32": "F32", "float16": "F16", "int32": "I32", "uint8": "U8", "bool": "BOOL"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model comes about."""

    base: Model  # before any manipulation
    network: str  # what the base is: a name of the zoo, or the path of an .onnx file
    edits: tuple[Edit, ...] = ()  # in order


def save_folder(model: Model, folder: str | os.PathLike, recipe: Recipe) -> pathlib.Path:
    """Writes a model so that `load_folder` gives it back, bit by bit.

    Args:
        model: what the recipe makes.
        folder: is made; must not exist, or be empty.
        recipe: how the model comes about.

    Returns:
        The folder.

    Raises:
        AuditError: if the folder holds anything, a parameter has a type that cannot be stored, or
            the recipe makes another model.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AuditError(f"{folder} holds something already; give a new or empty folder.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _write(model, folder, recipe)
        load_folder(folder)  # compares fingerprints
    except BaseException:
        shutil.rmtree(folder)
        raise
    return folder


def _write(model: Model, folder: pathlib.Path, recipe: Recipe) -> None:
    from safetensors.numpy import save_file

    from fvaudit.models import zoo

    is_file = _is_file(recipe.network)
    arrays = {} if is_file else _named("base", recipe.base.params)
    for i, edit in enumerate(recipe.edits):
        arrays |= _named(f"edits.{i}", edit.params)
    for name, array in arrays.items():
        if str(array.dtype) not in TYPES:
            raise AuditError(f"Parameter {name} has type {array.dtype}; known: {', '.join(TYPES)}.")
    save_file(arrays, folder / PARAMETERS)
    if is_file:
        shutil.copyfile(recipe.network, folder / NETWORK)
    text = {
        "format": FORMAT,
        "network": NETWORK if is_file else recipe.network,
        "outputs": None if is_file else zoo.outputs_of(recipe.network, recipe.base.params),
        "base": recipe.base.name,
        "edits": [{"builder": e.builder, "settings": dict(e.settings),
                   "params": _layout(e.params)} for e in recipe.edits],
        "name": model.name,
        "source": model.source,
        "input": dataclasses.asdict(model.input),
        "classes": [dataclasses.astuple(c) for c in model.classes],
        "fingerprint": model.fingerprint,
        "files": {p.name: _digest(p) for p in sorted(folder.iterdir())},
    }  # fmt: skip
    (folder / RECIPE).write_text(json.dumps(text, indent=1) + "\n")


def load_folder(folder: str | os.PathLike) -> Model:
    """Reads a model that `save_folder` wrote.

    Raises:
        AuditError: if there is no such folder, a file is missing, changed, too large or does not
            fit the network, a builder is not known, or another model comes out.
    """
    folder = pathlib.Path(folder)
    said = _read_recipe(folder)
    try:
        model = _rebuilt(folder, said)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise AuditError(f"{folder / RECIPE} is damaged ({shown(repr(error))}).") from None
    if model.fingerprint != said.get("fingerprint"):
        raise AuditError(
            f"{folder} does not give the model that was saved there: the code of its network or of "
            "its manipulations has changed since. Save it again, or use the version that wrote it."
        )
    return model


def _read_recipe(folder: pathlib.Path) -> Mapping[str, Any]:
    path = folder / RECIPE
    if not path.is_file():
        raise AuditError(f"{folder} holds no model: there is no {RECIPE} in it.")
    if path.stat().st_size > MAX_RECIPE:
        raise AuditError(f"{path} has more than {MAX_RECIPE} bytes.")
    try:
        said = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AuditError(f"{path} is no JSON ({shown(str(error))}).") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise AuditError(f'{path} does not say "format": "{FORMAT}".')
    files = said.get("files")
    wanted = {PARAMETERS, NETWORK} if said.get("network") == NETWORK else {PARAMETERS}
    if not isinstance(files, dict) or set(files) != wanted:
        raise AuditError(f"{path} must give checksums of {', '.join(sorted(wanted))} and no other.")
    for name in wanted:
        if not (folder / name).is_file() or _digest(folder / name) != files[name]:
            raise AuditError(
                f"{folder / name} is missing, or has another SHA-256 than {RECIPE} says."
            )
    return said


def extended(base: Model, network: str, edit: Edit) -> Recipe:
    """The recipe of a manipulated model; one that was manipulated before keeps that.

    Args:
        base: before this manipulation.
        network: what it was loaded from: a name of the zoo, the path of an .onnx file, or of a
            folder that `save_folder` wrote.
        edit: this manipulation.

    Raises:
        AuditError: as `load_folder`, for a folder.
    """
    from fvaudit.models import zoo

    folder = pathlib.Path(network)
    if network in zoo.zoo_names() or not (folder / RECIPE).is_file():
        return Recipe(base, network, (edit,))
    said = _read_recipe(folder)
    first, edits = _parts(folder, said)
    origin = str(folder / NETWORK) if said["network"] == NETWORK else said["network"]
    return Recipe(first, origin, (*edits, edit))


def _rebuilt(folder: pathlib.Path, said: Mapping[str, Any]) -> Model:
    model, edits = _parts(folder, said)
    for edit in edits:
        model = builders.apply(model, edit)
    return dataclasses.replace(model, name=said["name"])


def _parts(folder: pathlib.Path, said: Mapping[str, Any]) -> tuple[Model, list[Edit]]:
    """The network that a folder's model starts from, and what was done to it."""
    from fvaudit.models import zoo

    network, spec = said["network"], _spec(said["input"])
    classes = tuple(ImageClass(*row) for row in said["classes"])
    labels = {"name": said["base"], "classes": classes, "source": said["source"]}
    abstract = None
    if network != NETWORK:
        abstract = zoo.abstract_params(network, spec, _outputs(said))
    wanted = _named("base", abstract)
    for i, edit in enumerate(said["edits"]):
        wanted |= {f"edits.{i}{key}": leaf for key, leaf in _flat(edit["params"])}
    arrays = _arrays(folder / PARAMETERS, wanted)
    if abstract is None:
        model = _from_onnx(folder / NETWORK, spec, labels)
    else:
        leaves = [jnp.asarray(arrays[name]) for name in _named("base", abstract)]
        params = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
        model = zoo.with_params(network, params, spec, **labels)
    edits = [
        Edit(edit["builder"], _filled(edit["params"], f"edits.{i}", arrays), edit["settings"])
        for i, edit in enumerate(said["edits"])
    ]
    return model, edits


def _outputs(said: Mapping[str, Any]) -> int:
    """Of a network of the zoo; folders from before it could vary do not say."""
    outputs = said.get("outputs", OUTPUTS)
    if not isinstance(outputs, int) or not 1 <= outputs <= MOST_OUTPUTS:
        raise TypeError(f"outputs {outputs!r}")
    return outputs


def _spec(fields: Mapping[str, Any]) -> InputSpec:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return InputSpec(**values)


def _from_onnx(path: pathlib.Path, spec: InputSpec, labels: Mapping[str, Any]) -> Model:
    from fvaudit.models.imports.onnx import load_onnx

    model = load_onnx(path, spec, name=labels["name"], classes=labels["classes"])
    return dataclasses.replace(model, source=labels["source"])


@dataclasses.dataclass(frozen=True)
class _Abstract:
    shape: tuple[int, ...]
    dtype: str


def _layout(params: Any) -> Any:
    """Nested mappings of arrays -> of [shape, type]."""
    if params is None:
        return None
    if isinstance(params, Mapping):
        return {str(key): _layout(value) for key, value in params.items()}
    if not hasattr(params, "dtype"):
        raise AuditError(
            f"Parameters of an edit must be mappings of arrays, got {type(params).__name__}; give "
            "plain numbers as settings."
        )
    return [list(params.shape), str(params.dtype)]


def _flat(layout: Any, path: str = "") -> list[tuple[str, _Abstract]]:
    if layout is None:
        return []
    if isinstance(layout, dict):
        return [leaf for k, v in layout.items() for leaf in _flat(v, f"{path}['{k}']")]
    shape, dtype = layout
    return [(path, _Abstract(tuple(shape), dtype))]


def _filled(layout: Any, path: str, arrays: Mapping[str, np.ndarray]) -> Any:
    if layout is None:
        return None
    if isinstance(layout, dict):
        return {k: _filled(v, f"{path}['{k}']", arrays) for k, v in layout.items()}
    return jnp.asarray(arrays[path])


def _named(prefix: str, tree: Any) -> dict[str, Any]:
    """Leaves by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    concrete = (
        (path, leaf if isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf, order="C"))
        for path, leaf in leaves
    )
    return {f"{prefix}{jax.tree_util.keystr(path)}": leaf for path, leaf in concrete}


def _arrays(path: pathlib.Path, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All tensors, whose names, shapes and types must be those that are wanted."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())  # noqa: SIM118
            if names != set(wanted):
                raise AuditError(f"{path} holds other tensors than its network has: "
                                 f"{shown(sorted(names ^ set(wanted))[0])}.")  # fmt: skip
            for name, leaf in wanted.items():
                found = file.get_slice(name)
                there = (tuple(found.get_shape()), found.get_dtype())
                if there != (tuple(leaf.shape), TYPES.get(str(leaf.dtype))):
                    raise AuditError(
                        f"{path}: {shown(name)} has shape and type {there}, expected "
                        f"{tuple(leaf.shape)}, {leaf.dtype}."
                    )
            return {name: file.get_tensor(name) for name in names}
    except AuditError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise AuditError(f"Cannot read {path}: {shown(str(error))}.") from None


def _is_file(network: str) -> bool:
    return pathlib.Path(network).suffix.lower() == ".onnx"


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
