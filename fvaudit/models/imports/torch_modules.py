"""PyTorch modules as models, by way of torch.onnx and our own reader of ONNX.

A copy of the module, set to evaluation, gets a hook on every submodule and is exported with all
hooked outputs among its results. So each module's output is a value of the graph, whatever the
exporter does to the operations, and that value is then called by the module's path. The hooks go
with the copy. What comes out is compared with PyTorch at every one of these layers.

A module that is called again is "path#2"; of a tuple, as attention returns it, the first counts.
Modules that return the same numbers, as a block and its last part do, are one layer under the
shortest path; the others are aliases. Operations outside modules that every path crosses (a ReLU
called as a function) are layers under the exporter's name.
"""

import contextlib
import copy
import dataclasses
import importlib.util
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fvaudit.models import devices
from fvaudit.models.classes import Classes
from fvaudit.models.imports import metadata
from fvaudit.models.imports.calls import plain
from fvaudit.models.imports.onnx import model_from_proto
from fvaudit.models.imports.specs import input_spec
from fvaudit.models.model import InputSpec, Model, build
from fvaudit.records import AuditError


TOLERANCE = 1e-4  # of a layer, relative to its largest number
_IMAGES, _OUTPUT = "images", "logits"


class _Exported(NamedTuple):
    proto: Any  # onnx.ModelProto whose values are called by module paths
    layers: tuple[str, ...]  # paths, in order of computation
    aliases: dict[str, str]  # other path -> path


def from_torch(
    module: Any,
    example: Any = None,
    *,
    input: Any = None,
    name: str | None = None,
    classes: Classes = (),
    source: str = "",
) -> Model:
    """A model from a PyTorch module; its layers are the outputs of its submodules.

    Needs the extra `torch`. Weights become float32. Spatial arrays (n, c, h, w) are seen as
    (n, h, w, c), tokens (n, t, c) as they are.

    Args:
        module: takes images (n, 3, h, w) and returns logits (n, k). It is not changed, and if it
            is training, its copy is not.
        example: images (n, 3, h, w) as the module takes them, to compare with PyTorch on; two
            images of noise unless given.
        input: an `InputSpec`, or what `imports.specs.input_spec` reads (torchvision's weights, for
            example); modules of timm say it themselves.
        name: for people, reports and the fingerprint; the class's name unless given.
        classes: what the logits mean: their names in order, or a file of them.
        source: where the weights come from, with their licence.

    Raises:
        AuditError: if the extra is missing, the input is not known, torch.export cannot trace the
            module, or a layer differs from PyTorch's by more than `TOLERANCE`.
    """
    torch = _torch()
    devices.start()
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    if not isinstance(module, torch.nn.Module):
        raise AuditError(f"from_torch takes a torch.nn.Module, got {type(module).__name__}.")
    name = name or type(module).__name__
    spec = input_spec(input, metadata.of_module(module), what=name)
    images = _example(torch, example, spec)
    hooked = _Hooked(torch, module, name)
    exported = _exported(torch, hooked, images[:1], name)
    model = _model(exported, spec, name, classes, source or _source(torch, module))
    _require_agreement(model, exported, hooked.run(images), images)
    return model


def _torch() -> Any:
    for package in ("torch", "onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise AuditError(
                f"from_torch needs the package {package}. Run: pip install 'fvaudit[torch]'"
            )
    import torch

    return torch


def _source(torch: Any, module: Any) -> str:
    mode = "set to evaluation, " if module.training else ""
    return f"the user's PyTorch module, {mode}exported by torch {torch.__version__}"


def _example(torch: Any, example: Any, spec: InputSpec) -> Any:
    size = (len(spec.mean), *spec.size)
    if example is None:
        pixels = np.random.default_rng(0).random((2, *spec.size, len(spec.mean)), np.float32)
        normalised = np.asarray(spec.normalise(jnp.asarray(pixels)))
        return torch.from_numpy(normalised.transpose(0, 3, 1, 2).copy())
    if not isinstance(example, torch.Tensor) or tuple(example.shape[1:]) != size:
        got = getattr(example, "shape", type(example).__name__)
        raise AuditError(f"example is {got}; expected a tensor of shape (n, {size}) as input says.")
    return example.detach().cpu().float()


class _Hooked:
    """A copy of a module that returns its output and that of every submodule."""

    def __init__(self, torch: Any, module: Any, name: str):
        self._torch = torch
        try:
            self.module = copy.deepcopy(module).cpu().float().eval()
        except Exception as error:  # whatever a module's own code raises
            raise AuditError(f"{name} cannot be copied: {_first_line(error)}") from None
        self._seen: list[tuple[str, Any]] = []
        for path, part in self.module.named_modules():
            if path:
                part.register_forward_hook(self._hook(path))

    def _hook(self, path: str) -> Any:
        def hook(part, inputs, output):
            first: Any = output[0] if type(output) is tuple and output else output
            if not isinstance(first, self._torch.Tensor) or not first.is_floating_point():
                return None
            self._seen.append((path, first))
            # What follows may work in place: it gets a copy, which the graph has as an Identity.
            copied = first.clone()
            return (copied, *output[1:]) if type(output) is tuple else copied

        return hook

    def __call__(self, images: Any) -> tuple[Any, list[tuple[str, Any]]]:
        """(output, what every call returned, by path)."""
        self._seen.clear()
        output = self.module(images)
        return output, list(self._seen)

    def run(self, images: Any) -> dict[str, np.ndarray]:
        """Every layer's numbers for images (n, c, h, w), by PyTorch."""
        with self._torch.no_grad():
            output, seen = self(images)
        named = zip(_numbered([path for path, _ in seen]), (t for _, t in seen), strict=True)
        return {_OUTPUT: output.numpy()} | {n: t.numpy() for n, t in named}


def _numbered(paths: Sequence[str]) -> list[str]:
    counts: Counter[str] = Counter()
    names = []
    for path in paths:
        path = plain(path)
        path = f"{path}_" if path == _OUTPUT else path  # the network's own output has that name
        counts[path] += 1
        names.append(path if counts[path] == 1 else f"{path}#{counts[path]}")
    return names


def _exported(torch: Any, hooked: _Hooked, images: Any, name: str) -> _Exported:
    names: list[str] = []

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = hooked.module

        def forward(self, x):
            output, seen = hooked(x)
            if not isinstance(output, torch.Tensor):
                raise AuditError(
                    f"{name} returns {type(output).__name__}; expected one tensor of logits. Wrap "
                    "it in a module that picks that."
                )
            names[:] = _numbered([path for path, _ in seen])
            return (output, *(tensor for _, tensor in seen))

    with _quiet():
        try:
            program = torch.export.export(Whole().eval(), (images,))
            slots = [f"module_output_{i}" for i in range(len(names) + 1)]
            exported = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[_IMAGES], output_names=slots
            )
        except AuditError:
            raise
        except Exception as error:  # the exporters raise nearly anything
            raise AuditError(
                f"torch.export cannot trace {name}: {_first_line(error)} Export it to an .onnx "
                "file another way and load that with load_model, or write it with from_function."
            ) from None
    return _renamed(exported.model_proto, dict(zip(slots, [_OUTPUT, *names], strict=True)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of their own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no more is known'}"


def _renamed(proto: Any, names: Mapping[str, str]) -> _Exported:
    """The graph with its values called by module paths, one output, and no copies.

    Args:
        proto: whose outputs are `names`' keys.
        names: output -> module path, in order of computation but for the first, the logits.
    """
    graph = proto.graph
    copies = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity"}
    made = {output for node in graph.node for output in node.output}
    groups: dict[str, list[str]] = {}
    for slot, name in names.items():
        groups.setdefault(_origin(slot, copies), []).append(name)
    groups = {value: group for value, group in groups.items() if value in made}
    main = {value: _shortest(group) for value, group in groups.items()}
    known = {name for group in groups.values() for name in group}
    final = _origin(graph.output[0].name, copies)

    def renamed(value: str) -> str:
        value = _origin(value, copies)
        return main.get(value, f"{value}_" if value in known else value)

    kept = [node for node in graph.node if node.op_type != "Identity" or node.input[0] not in made]
    for node in kept:
        node.input[:] = [renamed(value) for value in node.input]
        node.output[:] = [renamed(value) for value in node.output]
        node.ClearField("metadata_props")  # scopes of the copy, which would become aliases
        node.ClearField("name")
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    output = type(graph.output[0])()
    output.CopyFrom(graph.output[0])
    output.name = renamed(final)
    for field, values in (("node", kept), ("output", [output]), ("value_info", [])):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    order = {name: i for i, name in enumerate(names.values())}
    layers = sorted(main.values(), key=lambda layer: order[layer])
    aliases = {n: main[v] for v, group in groups.items() for n in group if n != main[v]}
    return _Exported(proto, tuple(layers), aliases)


def _origin(value: str, copies: Mapping[str, str]) -> str:
    while value in copies:
        value = copies[value]
    return value


def _shortest(names: Sequence[str]) -> str:
    own = [name for name in names if name != _OUTPUT] or [_OUTPUT]
    return min(own, key=lambda name: name.count("."))


def _model(exported: _Exported, spec: InputSpec, name: str, classes: Classes, source: str) -> Model:
    """The graph's model with module paths and what lies on the trunk for layers."""
    whole = model_from_proto(exported.proto, spec, name=name, classes=classes, source=source)
    kept = {*exported.layers, *whole.trunk, whole.resolve(_OUTPUT)} & {*whole.layers}
    aliases = {a: layer for a, layer in exported.aliases.items() if layer in kept}
    if _OUTPUT in whole.aliases:
        aliases[_OUTPUT] = whole.aliases[_OUTPUT]

    def forward(params, images, tap):
        return whole.forward(params, images, lambda n, x: tap(n, x) if n in kept else x)

    model = build(
        forward,
        whole.params,
        spec,
        name=name,
        trunk=whole.trunk,
        aliases=aliases,
        classes=classes,
        source=whole.source,
    )
    return dataclasses.replace(model, missing=whole.missing)


def _require_agreement(
    model: Model, exported: _Exported, wanted: Mapping[str, np.ndarray], images: Any
) -> None:
    """Every layer that is a module's output, against PyTorch on the same images."""
    layers = [layer for layer in exported.layers if layer in model.shapes]
    mean, std = (np.asarray(v, np.float32) for v in (model.input.mean, model.input.std))
    pixels = images.numpy().transpose(0, 2, 3, 1)
    pixels = (pixels[..., ::-1] if model.input.order == "BGR" else pixels) * std + mean
    found = model.activations(pixels, layers)
    for layer in layers:
        error = relative_error(np.asarray(found[layer]), wanted[layer])
        if not error <= TOLERANCE:
            raise AuditError(
                f"{layer} of {model.name} differs from PyTorch by {error:.1e} of its largest "
                f"number; expected at most {TOLERANCE:.0e}. Please report this module."
            )


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over largest number.

    PyTorch's (n, c, h, w) is read as (n, h, w, c); a module that has permuted its axes, as Swin's
    do, returns (n, h, w, c) already.
    """
    readings = [np.moveaxis(wanted, 1, 3), wanted] if wanted.ndim == 4 else [wanted]
    fitting = [x for x in readings if x.shape == found.shape]
    scale = max(np.abs(wanted).max(), 1e-30)
    return min((float(np.abs(found - x).max() / scale) for x in fitting), default=np.inf)
