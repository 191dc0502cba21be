"""GoogLeNet against a reference of each layer, and against Caffe's own activations."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.models.model import record
from fvaudit.models.nets import googlenet
from fvaudit.models.zoo import load_model, random_model
from fvaudit.records import AuditError


SIZES = {"mixed3a": 28, "mixed3b": 28, "mixed4a": 14, "mixed4e": 14, "mixed5a": 7, "mixed5b": 7}


@pytest.fixture(scope="module")
def trained(shared_data):
    return load_model("googlenet", shared_data / "models" / "googlenet_bvlc.safetensors")


def _relative(got, want):
    return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


def _all_layers(model, image):
    """One compiled program serves every set of parameters."""
    return _program(model.forward, model.layers)(model.params, image)


@functools.cache
def _program(forward, layers):
    return jax.jit(lambda params, images: record(forward, params, images, layers))


def _require_statistics(found, expected):
    """Means and maxima over positions, for every layer that the reference has."""
    compared = 0
    for name in expected:
        kind, _, layer = name.partition("/")
        if kind not in ("mean", "max"):
            continue
        x = np.asarray(found[layer][0])
        x = x if x.ndim == 1 else getattr(x, kind)((0, 1))
        assert _relative(x, expected[name]) < 1e-5, name
        compared += 1
    return compared


def test_agrees_with_the_reference_at_every_layer(trained, shared_data):
    from safetensors.numpy import load_file

    expected = load_file(shared_data / "expected" / "googlenet_bvlc.safetensors")
    image = jnp.asarray(expected["input_uint8_nhwc"].astype(np.float32) / 255)
    found = _all_layers(trained, image)
    assert _relative(found["logits"][0], expected["logits"]) < 1e-5
    assert _require_statistics(found, expected) == 23  # 11 layers by mean and max; avgpool by mean
    top = np.argsort(found["logits"][0])[::-1][:3].tolist()
    assert [trained.classes[i].name for i in top][0] == "beagle"
    assert top == [162, 164, 166]


@pytest.mark.slow
def test_agrees_with_caffe(trained, shared_data):
    """Caffe's activations of a picture of 227 x 227, mean already subtracted."""
    from safetensors.numpy import load_file

    expected = load_file(shared_data / "expected" / "googlenet_bvlc_caffe_reference.safetensors")
    pixels = expected["input_nhwc_rgb_meansub"] + np.array([123, 117, 104], np.float32)
    found = _all_layers(trained, pixels / 255)
    assert _relative(found["logits"][0], expected["logits"]) < 1e-5
    assert _relative(found["avgpool"][0], expected["pool5"]) < 1e-5
    assert _require_statistics(found, expected) == 22


@pytest.mark.extras
def test_every_layer_agrees_with_pytorch():
    """The same random weights in PyTorch's own operators, branch by branch."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    model = random_model("googlenet", 0)
    image = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    ours = _all_layers(model, image)
    theirs = _torch_forward(torch, model, image)
    assert set(theirs) == set(ours)
    for layer, want in theirs.items():
        assert _relative(ours[layer], want) < 2e-5, layer


def _torch_forward(torch, model, image):
    F = torch.nn.functional
    p, seen = model.params, {}

    def tap(name, x):
        seen[name] = x.permute(0, 2, 3, 1).numpy() if x.ndim == 4 else x.numpy()
        return x

    def conv(name, x, stride=1):
        w = torch.from_numpy(np.array(p["convs"][name]["kernel"]).transpose(3, 2, 0, 1).copy())
        b = torch.from_numpy(np.array(p["convs"][name]["bias"]))
        y = F.conv2d(x, w, b, stride, padding=w.shape[2] // 2)
        return tap(name, F.relu(tap(f"{name}_pre_relu", y)))

    def pool(name, x):
        return tap(name, F.max_pool2d(x, 3, 2, ceil_mode=True))

    def norm(name, x):
        return tap(name, F.local_response_norm(x, 5, 1e-4, 0.75, 1.0))

    def mixed(name, x):
        one = conv(f"{name}_1x1", x)
        three = conv(f"{name}_3x3", conv(f"{name}_3x3_bottleneck", x))
        five = conv(f"{name}_5x5", conv(f"{name}_5x5_bottleneck", x))
        pooled = tap(f"{name}_pool", F.max_pool2d(x, 3, 1, 1))
        pooled = conv(f"{name}_pool_reduce", pooled)
        parts = [f"{name}_{part}_pre_relu" for part in ("1x1", "3x3", "5x5", "pool_reduce")]
        seen[f"{name}_pre_relu"] = np.concatenate([seen[part] for part in parts], -1)
        return tap(name, torch.cat([one, three, five, pooled], 1))

    with torch.no_grad():
        mean = np.array([123, 117, 104], np.float32)
        x = conv("conv2d0", torch.from_numpy(image * 255 - mean).permute(0, 3, 1, 2), 2)
        x = norm("localresponsenorm0", pool("maxpool0", x))
        x = conv("conv2d2", conv("conv2d1", x))
        x = pool("maxpool1", norm("localresponsenorm1", x))
        x = pool("maxpool2", mixed("mixed3b", mixed("mixed3a", x)))
        for name in ("mixed4a", "mixed4b", "mixed4c", "mixed4d", "mixed4e"):
            x = mixed(name, x)
        x = mixed("mixed5b", mixed("mixed5a", pool("maxpool3", x)))
        x = tap("avgpool", x.mean((2, 3)))
        dense = p["softmax2"]
        kernel, bias = (torch.from_numpy(np.array(dense[v])) for v in ("kernel", "bias"))
        tap("logits", x @ kernel + bias)
    return seen


def test_layers_have_lucids_names_and_the_papers_sizes():
    model = random_model("googlenet", 0)
    # Stem, pools and head; a module's 7 parts and output; convolutions and modules before ReLU.
    assert len(model.layers) == 11 + 9 * 8 + 3 + 9 * (6 + 1)
    assert set(model.trunk) < set(model.layers)
    assert [n for n in model.layers if n in model.trunk] == list(model.trunk)
    assert all(model.shapes[name][0] == size for name, size in SIZES.items())
    assert model.shapes["mixed4e_3x3_bottleneck"] == (14, 14, 160)
    assert model.shapes["mixed5b"] == (7, 7, 1024)


# As lucid lists them: (name, channels), less its auxiliary heads and its probabilities.
LUCID_5H = {
    "conv2d0": 64, "conv2d1": 64, "conv2d2": 192, "mixed3a": 256, "mixed3b": 480, "mixed4b": 512,
    "mixed4c": 512, "mixed4d": 528, "mixed4e": 832, "mixed5a": 832, "mixed5b": 1024,
    "mixed4a_3x3_bottleneck": 96, "mixed4d_pre_relu": 528, "avgpool0": 1024,
}  # fmt: skip
LUCID_CAFFE = {
    "conv1_7x7_s2/conv1_7x7_s2": 64, "conv2_3x3_reduce/conv2_3x3_reduce": 64,
    "conv2_3x3/conv2_3x3": 192, "inception_3a_output": 256, "inception_3b_output": 480,
    "inception_4a_output": 512, "inception_4b_output": 512, "inception_4c_output": 512,
    "inception_4d_output": 528, "inception_4e_output": 832, "inception_5a_output": 832,
    "inception_5b_output": 1024,
}  # fmt: skip


def test_lucids_names_are_known():
    model = random_model("googlenet", 0)
    for name, channels in {**LUCID_5H, **LUCID_CAFFE, "softmax2_pre_activation": 1000}.items():
        assert model.shapes[name][-1] == channels, name
    assert model.path_to("inception_4a_output") == model.path_to("mixed4a")
    for name, reason in (("head0_bottleneck", "auxiliary"), ("softmax2", "ClassProbability")):
        with pytest.raises(AuditError, match=f"no layer '{name}'.*{reason}"):
            model.require_layer(name)


def test_an_edit_before_the_relu_takes_effect():
    """Of all branches at once: what is lowered by a constant there is lowered before each ReLU."""
    model = random_model("googlenet", 0)
    image = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    edited = model.edited("mixed3b_pre_relu", lambda params, x: x - params, 0.5)
    layers = ["mixed3b_pre_relu", "mixed3b_3x3", "mixed3b"]
    before, after = (
        jax.jit(lambda p, x, forward=m.forward: record(forward, p, x, layers))(m.params, image)
        for m in (model, edited)
    )
    wanted = np.maximum(np.asarray(before["mixed3b_pre_relu"]) - 0.5, 0)
    np.testing.assert_allclose(after["mixed3b"], wanted, atol=1e-5)
    np.testing.assert_allclose(after["mixed3b_3x3"], wanted[..., 128:320], atol=1e-5)


def test_joined_branches_that_nobody_edits_leave_no_trace():
    def untouched(branches):
        joined = googlenet._together("a", branches, lambda name, x: x)
        return sum((x**3).sum() for x in joined.values())

    branches = {"1x1": jnp.ones((1, 4, 4, 3)), "3x3": jnp.ones((1, 4, 4, 5))}
    program = str(jax.jit(jax.grad(untouched)).lower(branches).compile().as_text())
    assert not re.search(r"\b(concatenate|slice|pad|copy)\(", program), program


def test_without_a_file_the_message_says_which():
    with pytest.raises(AuditError, match=r"googlenet comes without weights.*conv2d0_w of shape"):
        load_model("googlenet")


def test_random_weights_keep_activations_near_one():
    model = random_model("googlenet", 3)
    image = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    found = _all_layers(model, image)
    sizes = {name: float(jnp.sqrt((found[name] ** 2).mean())) for name in model.trunk}
    assert all(0.1 < size < 10 for size in sizes.values()), sizes
    assert model.classes == () and model.name == "googlenet_random3"
    assert random_model("googlenet", 3).fingerprint == model.fingerprint
