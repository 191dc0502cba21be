"""Flax modules as models: every layer against Flax's own capture or a call by hand."""

from typing import TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from fvaudit.models.imports.flax_modules import from_flax
from fvaudit.models.model import InputSpec
from fvaudit.optvis import lowering
from fvaudit.records import AuditError, Unit


SPEC = InputSpec((8, 8), (0.5,) * 3, (0.25,) * 3, resize=8)
IMAGES = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
X = (IMAGES - np.float32(0.5)) / np.float32(0.25)


class Block(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.Conv(self.width, (3, 3), name="conv")(x)
        x = linen.BatchNorm(use_running_average=not train, name="norm")(x)
        return linen.Dropout(0.5, deterministic=not train)(linen.relu(x))


class Net(linen.Module):
    def setup(self):
        self.block = Block(4)
        self.mix = linen.Dense(4)
        self.head = linen.Dense(5)

    def __call__(self, x, train: bool = True):
        x = self.block(x, train)
        x = self.mix(self.mix(x))
        return self.head(x.mean((1, 2)))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.Sequential(
            nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs), nnx.relu
        )
        self.mix = nnx.Linear(4, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.parts = nnx.List([nnx.Linear(4, 4, rngs=rngs)])
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        x = self.mix(self.mix(self.body(x)))
        x = self.drop(x)
        for part in self.parts:
            x = part(x)
        return self.head(x.mean((1, 2)))


@pytest.fixture(scope="module")
def variables():
    found = Net().init(jax.random.key(0), X, train=False)
    shifted = jax.tree.map(lambda v: v + 0.3, found["batch_stats"])
    return {**found, "batch_stats": shifted}


@pytest.fixture(scope="module")
def nnx_net():
    net = NNXNet(nnx.Rngs(0))
    net(X)  # in training: moves the batch statistics
    return net


def close(model, layer, wanted):
    found = model.activations(IMAGES, [layer])[layer]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_linen_layers_are_flaxs_own_intermediates(variables):
    model = from_flax(Net(), variables, input=SPEC)
    _, captured = Net().apply(variables, X, train=False, capture_intermediates=True)
    inner = captured["intermediates"]
    (block,) = inner["block"]["__call__"]
    assert model.layers == ("block.conv", "block.norm", "block", "mix", "mix#2", "head")
    assert model.aliases == {"block.Dropout_0": "block", "logits": "head"}
    close(model, "block.conv", inner["block"]["conv"]["__call__"][0])
    close(model, "block.norm", inner["block"]["norm"]["__call__"][0])
    close(model, "block", block)
    close(model, "mix", inner["mix"]["__call__"][0])
    close(model, "mix#2", inner["mix"]["__call__"][1])
    close(model, "logits", inner["__call__"][0])
    assert model.trunk == model.layers
    assert model.name == "Net" and model.source == "the user's Flax module; called with train=False"


def test_names_that_no_unit_could_be_written_with_are_written_otherwise():
    class Named(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(5)(linen.Conv(4, (3, 3), name="my conv:1")(x).mean((1, 2)))

    module = Named()
    model = from_flax(module, module.init(jax.random.key(0), X), input=SPEC)
    assert "my_conv.1" in model.layers
    assert Unit.parse("my_conv.1:3").layer in model.shapes


def test_edits_reach_the_output(variables):
    model = from_flax(Net(), variables, input=SPEC)
    edited = model.edited("mix#2", lambda p, x: 0 * x + p, jnp.float32(2))
    head = variables["params"]["head"]
    close(edited, "logits", np.full((3, 4), 2.0) @ head["kernel"] + head["bias"])


def test_one_image_does_not_change_anothers_activations(variables, nnx_net):
    for model in (from_flax(Net(), variables, input=SPEC), from_flax(nnx_net, input=SPEC)):
        alone = model.activations(IMAGES[:1], ["logits"])["logits"]
        np.testing.assert_allclose(alone, model.activations(IMAGES, ["logits"])["logits"][:1], 1e-5)


def test_nnx_layers_are_those_of_calls_by_hand(nnx_net):
    model = from_flax(nnx_net, input=SPEC)
    net = nnx.clone(nnx_net)
    net.eval()
    conv, norm = net.body.layers[0](X), net.body.layers[1](net.body.layers[0](X))
    body = net.body(X)
    assert set(model.layers) == {
        "body.layers.0", "body.layers.1", "body", "mix", "mix#2", "parts.0", "head",
    }  # fmt: skip
    assert model.aliases == {"drop": "mix#2", "logits": "head"}
    close(model, "body.layers.0", conv)
    close(model, "body.layers.1", norm)
    close(model, "body", body)
    close(model, "mix#2", net.mix(net.mix(body)))
    close(model, "parts.0", net.parts[0](net.mix(net.mix(body))))
    close(model, "logits", net(X))


def test_the_users_module_stays_as_it_is(nnx_net):
    before, call = nnx.state(nnx_net), NNXNet.__call__
    model = from_flax(nnx_net, input=SPEC)
    model.activations(IMAGES, ["logits"])
    assert type(nnx_net.mix) is nnx.Linear and NNXNet.__call__ is call
    assert not nnx_net.drop.deterministic and not nnx_net.body.layers[1].use_running_average
    jax.tree.map(
        np.testing.assert_array_equal, *(_numbers(s) for s in (before, nnx.state(nnx_net)))
    )
    assert len(model.fingerprint) == 64


def _numbers(state):
    return nnx.filter_state(state, nnx.Not(nnx.RngState))


def test_calls_inside_transformations_are_no_layers():
    class Scanned(linen.Module):
        @linen.compact
        def __call__(self, x):
            body = linen.scan(
                lambda module, x, _: (module(x), None),
                variable_axes={"params": 0}, split_rngs={"params": True}, length=3,
            )  # fmt: skip
            x, _ = body(linen.Dense(3, name="many"), x, None)
            x = linen.remat(linen.Dense)(4, name="again")(x)
            return linen.Dense(2, name="head")(x.mean((1, 2)))

    variables = Scanned().init(jax.random.key(0), X)
    model = from_flax(Scanned(), variables, input=SPEC)
    assert "many" not in model.shapes and "head" in model.layers
    close(model, "logits", Scanned().apply(variables, X))


def test_under_jit_and_grad(nnx_net):
    model = from_flax(nnx_net, input=SPEC)

    def loss(images):
        return model.activations(images, ["parts.0"])["parts.0"].sum()

    net = nnx.clone(nnx_net)
    net.eval()
    found = jax.jit(jax.grad(loss))(jnp.asarray(IMAGES))
    wanted = jax.grad(lambda x: net.parts[0](net.mix(net.mix(net.body(x)))).sum())(jnp.asarray(X))
    np.testing.assert_allclose(found, wanted / 0.25, rtol=1e-3, atol=1e-5)


def test_outputs_are_picked_from_what_a_module_returns(variables):
    class Pair(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Dense(4, name="pre")(x)
            return {"logits": x.mean((1, 2)), "aux": x}

    found = Pair().init(jax.random.key(0), X)
    with pytest.raises(AuditError, match="Pair returns dict.*say output="):
        from_flax(Pair(), found, input=SPEC)
    model = from_flax(Pair(), found, input=SPEC, output=lambda r: r["logits"], layers=["pre"])
    assert model.layers == ("pre", "logits")
    with pytest.raises(AuditError, match="Pair has no layer 'post'.*pre"):
        from_flax(Pair(), found, input=SPEC, output=lambda r: r["logits"], layers=["post"])


def test_what_would_train_is_refused(variables):
    with pytest.raises(AuditError, match="BatchNorm would run as in training"):
        from_flax(Net(), variables, input=SPEC, arguments={"train": True})

    class Stubborn(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(3, rngs=rngs)

        def __call__(self, x):
            return self.norm(x, use_running_average=False).mean((1, 2))

    with pytest.raises(AuditError, match="use_running_average is False"):
        from_flax(Stubborn(nnx.Rngs(0)), input=SPEC)


def test_other_mistakes(variables, nnx_net):
    with pytest.raises(AuditError, match="A Linen module needs its variables"):
        from_flax(Net(), input=SPEC)
    with pytest.raises(AuditError, match="leave variables out"):
        from_flax(nnx_net, variables, input=SPEC)
    with pytest.raises(AuditError, match="takes an nnx or linen module, got dict"):
        from_flax({}, input=SPEC)
    with pytest.raises(AuditError, match="The variables do not fit the module"):
        from_flax(Net(), {"params": {}}, input=SPEC)


class Deep(linen.Module):
    @linen.compact
    def __call__(self, x):
        for groups in (1, 16):  # the second is depthwise
            x = linen.Conv(16, (3, 3), feature_group_count=groups)(x)
        return x.mean((1, 2))


def _deep_nnx():
    rngs = nnx.Rngs(0)
    convs = [
        nnx.Conv(w, 16, (3, 3), feature_group_count=g, rngs=rngs) for w, g in ((3, 1), (16, 16))
    ]
    return nnx.Sequential(*convs, lambda x: x.mean((1, 2)))


def _is_conv(part) -> TypeGuard[nnx.Conv]:
    return isinstance(part, nnx.Conv)


def _groups(model):
    """Of every convolution that takes our lowerings."""
    seen = []
    with lowering.observing(lambda *about: seen.append(about[-1])):
        jax.eval_shape(lambda x: model.forward(model.params, x, lambda _, y: y), IMAGES)
    return seen


def test_convolutions_take_the_lowerings_that_are_fast_here_and_the_module_keeps_its_own():
    deep, module = Deep(), _deep_nnx()
    found = deep.init(jax.random.key(0), X)
    for model, expected in (
        (from_flax(deep, found, input=SPEC), np.asarray(deep.apply(found, X))),
        (from_flax(module, input=SPEC), module(jnp.asarray(X))),
    ):
        assert _groups(model) == [1, 16]
        logits = model.activations(IMAGES, ["logits"])["logits"]
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    own = {part.conv_general_dilated for _, part in nnx.iter_modules(module) if _is_conv(part)}
    assert own == {jax.lax.conv_general_dilated}


def test_a_convolution_of_the_users_own_making_is_left_alone():
    def own(*args, **kwargs):
        return 2 * jax.lax.conv_general_dilated(*args, **kwargs)

    conv = nnx.Conv(3, 4, (3, 3), conv_general_dilated=own, rngs=nnx.Rngs(0))
    model = from_flax(nnx.Sequential(conv, lambda x: x.mean((1, 2))), input=SPEC)
    expected = conv(jnp.asarray(X)).mean((1, 2))
    logits = model.activations(IMAGES, ["logits"])["logits"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
