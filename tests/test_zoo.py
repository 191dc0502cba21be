"""Networks of the zoo against torchvision's and timm's, on state dicts that PyTorch saved."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fvaudit.models import zoo
from fvaudit.models.folders import Recipe, save_folder
from fvaudit.models.nets import vit
from fvaudit.models.trunk import trunk
from fvaudit.models.weights import OUTPUTS
from fvaudit.models.zoo import load_model, random_model
from fvaudit.records import AuditError
from tests import peers


class Peer(NamedTuple):
    """A network of another package, with random weights."""

    ours: str
    package: str
    theirs: str
    suffix: str  # of the weight file


PEERS = [
    Peer("resnet18", "torchvision", "resnet18", ".pth"),
    Peer("resnet18", "timm", "resnet18", ".safetensors"),
    Peer("resnet50", "torchvision", "resnet50", ".safetensors"),
    Peer("squeezenet1_0", "torchvision", "squeezenet1_0", ".safetensors"),
    Peer("squeezenet1_1", "torchvision", "squeezenet1_1", ".pth"),
    Peer("vit_b_16", "torchvision", "vit_b_16", ".pth"),
    Peer("vit_b_16", "timm", "vit_base_patch16_224", ".safetensors"),
]
SLOW = [
    Peer("vgg16", "torchvision", "vgg16", ".pth"),
    Peer("vgg16", "timm", "vgg16", ".safetensors"),
]
PARAMETERS = {  # as torchvision counts them
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "vgg16": 138_357_544,
    "vit_b_16": 86_567_656,
}


@pytest.mark.extras
@pytest.mark.parametrize(
    "peer", [*PEERS, *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW)], ids="-".join
)
def test_every_layer_agrees(peer, tmp_path):
    net = _random_peer(peer)
    model = load_model(peer.ours, _saved(net, tmp_path / f"weights{peer.suffix}"))
    image = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    ours = model.activations(image, model.layers)
    theirs = _activations(net, _modules(peer, model), model.input, image)
    unseen = [v for v in model.layers if v not in theirs]
    assert all(".heads" in v for v in unseen) and (not unseen or peer.package == "torchvision")
    errors = {v: _relative(ours[v], want) for v, want in theirs.items()}
    worst = max(errors, key=errors.__getitem__)
    print(f"{'-'.join(peer)}: {len(errors)} layers, {worst} differs most, by {errors[worst]:.1e}")
    assert errors[worst] < 1e-4, worst
    assert model.source.startswith(f"the user's file weights{peer.suffix}")
    assert len(model.classes) == 1000


@pytest.mark.extras
@pytest.mark.parametrize(
    ("name", "outputs"),
    [("resnet18", 10), ("resnet18", 1001), ("squeezenet1_1", 2), ("vit_b_16", 7)]
    + [pytest.param("vgg16", 3, marks=pytest.mark.slow)],
)
def test_fine_tuned_networks_have_the_outputs_of_their_file(name, outputs, tmp_path):
    net = _random_peer(Peer(name, "torchvision", name, ".pth"), num_classes=outputs)
    file, names = _saved(net, tmp_path / "weights.pth"), [f"class {i}" for i in range(outputs)]
    model = load_model(name, file)
    assert (
        model.classes == () and load_model(name, file, classes=names).classes[-1].name == names[-1]
    )
    image = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    output = {"squeezenet1_1": "classifier.3", "resnet18": "fc", "vgg16": "classifier.6"}
    modules = {"logits": output.get(name, "heads.head")}
    wanted = _activations(net, modules, model.input, image)["logits"]
    got = model.activations(image, ["logits"])["logits"]
    assert got.shape == (1, outputs) and _relative(got, wanted) < 1e-5
    saved = save_folder(model, tmp_path / "folder", Recipe(model, name))
    assert load_model(saved).fingerprint == model.fingerprint


def test_no_more_outputs_are_read_than_there_are_classes_anywhere(tmp_path):
    model = random_model("squeezenet1_1", 0)
    tensors = {".".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(model.params)}
    tensors["conv10.bias"] = np.zeros(40_000, np.float32)
    np.savez(tmp_path / "weights.npz", **tensors)
    with pytest.raises(AuditError, match=r"conv10.bias has shape \(40000,\), the network needs"):
        load_model("squeezenet1_1", tmp_path / "weights.npz")


@pytest.mark.extras
def test_timms_vit_comes_with_timms_preprocessing():
    """Which was trained on [-1, 1]; torchvision's on ImageNet's mean and standard deviation."""
    assert vit.TIMM.input is not None and vit.TIMM.input.mean == vit.TIMM.input.std == (0.5,) * 3
    config = peers.timm().create_model("vit_base_patch16_224").pretrained_cfg
    assert (*config["mean"], *config["std"]) == (*vit.TIMM.input.mean, *vit.TIMM.input.std)
    assert config["interpolation"] == vit.TIMM.input.interpolation
    assert vit.TIMM.input.resize == int(224 / config["crop_pct"])


def test_files_of_older_torchvisions_are_read():
    """Its own pretrained ViT numbers the MLP's layers 1 and 2, which it renames when it loads."""
    name = "encoder.layers.encoder_layer_3.mlp.linear_{}.weight"
    found = [vit.TORCHVISION.plain(name.format(i)) for i in (1, 2)]
    wanted = [vit.TORCHVISION.name(("blocks", 3, "mlp", f"fc{i}", "kernel")) for i in (1, 2)]
    assert found == wanted == [name.format("").replace("linear_", str(i)) for i in (0, 3)]


def _relative(got, want):
    return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


def _random_peer(peer, **settings):
    """Random everywhere: many networks start with biases, tokens or heads of 0."""
    torch = peers.torch()
    torch.manual_seed(0)
    if peer.package == "timm":
        net = peers.timm().create_model(peer.theirs, pretrained=False)
    else:
        net = getattr(peers.torchvision().models, peer.theirs)(weights=None, **settings)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.2 * torch.randn_like(buffer)
            if name.endswith("running_var"):
                buffer += 0.5 * torch.rand_like(buffer)
    return net.eval()


def _saved(net, path):
    if path.suffix == ".pth":
        peers.torch().save(net.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(net.state_dict(), path)
    return path


def _modules(peer, model) -> dict[str, str]:
    """Layer -> module whose output it is; `module<`: its input, `module#k`: of its k-th call."""
    find = _VIT[peer.package] if "vit" in peer.ours else _CHAIN[peer.package, peer.ours[:3]]
    return {v: module for v in model.layers if (module := find(model, v))}


def _torchvision_resnet(model, layer):
    if inner := re.fullmatch(r"(layer.*)\.relu(\d)", layer):
        return f"{inner[1]}.relu#{int(inner[2]) - 1}"
    return {"stem": "relu", "logits": "fc"}.get(layer, layer)


def _timm_resnet(model, layer):
    names = {"stem": "act1", "avgpool": "global_pool", "logits": "fc"}
    return names.get(layer, layer.replace(".relu", ".act"))


def _by_alias(model, layer):
    """Aliases are torchvision's names: here they are put to the test."""
    found = {name: alias for alias, name in model.aliases.items()}
    if part := re.fullmatch(r"(fire\d)\.(.*)", layer):
        return f"{found[part[1]]}.{part[2]}_activation"
    return (
        "classifier.3" if model.name.startswith("squeeze") and layer == "logits" else found[layer]
    )


def _timm_vgg(model, layer):
    dense = {"fc6": "pre_logits.act1", "fc7": "pre_logits.act2", "logits": "head.fc"}
    return dense.get(layer) or _by_alias(model, layer)


_CHAIN = {
    ("torchvision", "res"): _torchvision_resnet,
    ("timm", "res"): _timm_resnet,
    ("torchvision", "squ"): _by_alias,
    ("torchvision", "vgg"): _by_alias,
    ("timm", "vgg"): _timm_vgg,
}


def _torchvision_vit(model, layer):
    base = re.sub(r"\.(cls|patches)$", "", layer)
    if base.endswith(".heads"):  # within one operator there
        return None
    block = re.sub(r"blocks\.(\d+)", r"encoder.layers.encoder_layer_\1", base)
    parts = {".attention": ".self_attention", ".mid": ".ln_2<", ".mlp": ".mlp.1"}
    for ours, theirs in parts.items():
        block = re.sub(rf"{re.escape(ours)}$", theirs, block)
    whole = {"embedding": "encoder.dropout", "norm": "encoder.ln", "logits": "heads.head"}
    return whole.get(base, block)


def _timm_vit(model, layer):
    base = re.sub(r"\.(cls|patches)$", "", layer)
    parts = {".heads": ".attn.proj<", ".attention": ".attn", ".mid": ".norm2<", ".mlp": ".mlp.act"}
    for ours, theirs in parts.items():
        base = re.sub(rf"{re.escape(ours)}$", theirs, base)
    return {"embedding": "blocks.0<", "logits": "head"}.get(base, base)


_VIT = {"torchvision": _torchvision_vit, "timm": _timm_vit}


def _activations(net, modules, spec, image) -> dict[str, np.ndarray]:
    torch = peers.torch()
    seen: dict[str, list[np.ndarray]] = {}

    def hook(name):
        def keep(module, inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            seen.setdefault(name, []).append(output.clone().numpy())

        return keep

    def input_hook(name):
        def keep(module, inputs):
            seen.setdefault(name, []).append(inputs[0].clone().numpy())

        return keep

    named = dict(net.named_modules())
    for text in set(modules.values()):
        name = re.sub(r"<|#\d", "", text)
        if text.endswith("<"):
            named[name].register_forward_pre_hook(input_hook(text))
        else:
            named[name].register_forward_hook(hook(text))
    normalised = (image - np.float32(spec.mean)) / np.float32(spec.std)
    with torch.no_grad():
        net(torch.from_numpy(normalised).permute(0, 3, 1, 2))
    return {layer: _ours(layer, _call(seen[text], text)) for layer, text in modules.items()}


def _call(outputs, text):
    return outputs[int(text.rsplit("#", 1)[1]) if "#" in text else 0]


def _ours(layer, x):
    """Their layout in ours."""
    if x.ndim == 4:
        return x.reshape(len(x), -1) if x.shape[2:] == (1, 1) else x.transpose(0, 2, 3, 1)
    if layer.endswith(".cls"):
        return x[:, 0]
    return x[:, 1:].reshape(len(x), 14, 14, -1) if layer.endswith(".patches") else x


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_torchvisions(name):
    state = nnx.state(nnx.eval_shape(lambda: zoo._ZOO[name].module(nnx.Rngs(0))), nnx.Param)
    assert sum(x.size for x in jax.tree.leaves(state)) == PARAMETERS[name]


@pytest.mark.parametrize("name", zoo.zoo_names())
def test_trunks_are_listed_rightly(name):
    """Found by tracing, but for what is left out by design: insides of blocks and modules."""
    entry = zoo._ZOO[name]
    abstract, forward = zoo._network(name, entry.input, OUTPUTS)
    found = trunk(forward, abstract, (1, *entry.input.size, 3))
    assert [v for v in found if v in entry.trunk] == list(entry.trunk)
    beside = set(found) - set(entry.trunk)
    assert all(v.endswith((".mid", "_pre_relu", ".expand", ".depthwise", "norm")) for v in beside)


@pytest.mark.parametrize(
    "name",
    ["squeezenet1_1", "vit_b_16"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "resnet50", "vgg16")],
)
def test_random_weights_keep_activations_near_one(name):
    model = random_model(name, 1)
    image = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    found = model.activations(image, model.layers)
    sizes = {layer: float(jnp.sqrt((x**2).mean())) for layer, x in found.items()}
    assert all(0.1 < size < 10 for size in sizes.values()), sizes


@pytest.mark.parametrize("name", PARAMETERS)
def test_without_a_file_the_message_says_which(name):
    with pytest.raises(AuditError, match=f"{name} comes without weights.*torchvision's"):
        load_model(name)
