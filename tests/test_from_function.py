"""Functions in JAX as models: both forms against NumPy, and what they refuse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.models.imports.functions import from_function, from_intermediates
from fvaudit.models.model import InputSpec
from fvaudit.records import AuditError


SPEC = InputSpec((4, 5), (0.1, 0.2, 0.3), (0.5, 0.25, 1.0), resize=5)
RNG = np.random.default_rng(0)
PARAMS = {"mix": RNG.normal(size=(3, 6)), "head": RNG.normal(size=(6, 2))}
PARAMS = {name: value.astype(np.float32) for name, value in PARAMS.items()}
IMAGES = RNG.random((3, 4, 5, 3), np.float32)
X = ((IMAGES - SPEC.mean) / SPEC.std).astype(np.float32)
MIX = np.maximum(X @ PARAMS["mix"], 0)
LOGITS = (2 * MIX).mean((1, 2)) @ PARAMS["head"]


def tapping(params, images, tap):
    x = tap("mix", jax.nn.relu(images @ params["mix"]))
    return tap("twice", 2 * x).mean((1, 2)) @ params["head"]


def returning(params, images):
    x = jax.nn.relu(images @ params["mix"])
    beside = x.sum((1, 2))
    return (2 * x).mean((1, 2)) @ params["head"], {"mix": x, "beside": beside, "none": None}


def close(model, layer, wanted):
    np.testing.assert_allclose(model.activations(IMAGES, [layer])[layer], wanted, rtol=1e-5)


def test_taps_and_logits():
    model = from_function(tapping, PARAMS, input=SPEC, name="mine")
    assert model.shapes == {"mix": (4, 5, 6), "twice": (4, 5, 6), "logits": (2,)}
    assert model.trunk == ("mix", "twice", "logits")
    close(model, "mix", MIX)
    close(model, "logits", LOGITS)
    edited = model.edited("mix", lambda p, x: 0 * x + 1)
    close(edited, "logits", np.full((3, 6), 2) @ PARAMS["head"])


def test_a_choice_of_layers():
    model = from_function(tapping, PARAMS, ["twice"], input=SPEC, name="mine")
    assert model.layers == ("twice", "logits")
    with pytest.raises(AuditError, match="mine has no layer 'thrice'"):
        from_function(tapping, PARAMS, ["thrice"], input=SPEC, name="mine")


def test_a_tapped_output_keeps_its_name_and_is_the_logits():
    def apply(params, images, tap):
        return tap("head", images.mean((1, 2)) @ params["mix"])

    model = from_function(apply, PARAMS, input=SPEC, name="mine")
    assert model.layers == ("head",) and model.aliases == {"logits": "head"}
    close(model, "logits", X.mean((1, 2)) @ PARAMS["mix"])
    own = from_function(
        lambda p, images, tap: tap("logits", images.mean((1, 2))), {}, input=SPEC, name="mine"
    )
    assert own.layers == ("logits",)


@pytest.mark.parametrize("form", ["tap", "intermediates"])
def test_channels_first(form):
    def apply(params, images, tap):
        x = tap("mix", jnp.einsum("nchw,cd->ndhw", images, params["mix"]))
        return jax.nn.relu(x).mean((2, 3)) @ params["head"]

    def both(params, images):
        x = jnp.einsum("nchw,cd->ndhw", images, params["mix"])
        return jax.nn.relu(x).mean((2, 3)) @ params["head"], {"mix": x}

    if form == "tap":
        model = from_function(apply, PARAMS, input=SPEC, name="mine", layout="NCHW")
    else:
        model = from_intermediates(both, PARAMS, ["mix"], input=SPEC, name="mine", layout="NCHW")
    assert model.shapes["mix"] == (4, 5, 6) and model.trunk == ("mix", "logits")
    np.testing.assert_allclose(
        model.activations(IMAGES, ["mix"])["mix"], X @ PARAMS["mix"], rtol=1e-4, atol=1e-5
    )
    close(model, "logits", MIX.mean((1, 2)) @ PARAMS["head"])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_intermediates(wrap):
    def apply(params, images):
        output, found = returning(params, images)
        return output, {k: v for k, v in found.items() if v is not None}

    model = from_intermediates(wrap(apply), PARAMS, ["mix", "beside"], input=SPEC, name="mine")
    assert model.layers == ("mix", "beside", "logits")
    assert model.trunk == ("mix", "logits")  # what lies beside decides nothing
    close(model, "mix", MIX)
    close(model, "beside", MIX.sum((1, 2)))
    close(model, "logits", LOGITS)
    with pytest.raises(AuditError, match="so mix cannot be edited. Build it with from_function"):
        model.edited("mix", lambda p, x: 2 * x).activations(IMAGES, ["logits"])


def test_visualizations_of_both_forms_are_the_same():
    from fvaudit.optvis.objectives import Channel
    from fvaudit.optvis.visualize import visualize

    models = (
        from_function(tapping, PARAMS, input=SPEC, name="mine"),
        from_intermediates(returning, PARAMS, ["mix"], input=SPEC, name="mine"),
    )
    one, other = (visualize(m, [Channel("mix", 2)], steps=4)[0] for m in models)
    np.testing.assert_allclose(one.images, other.images, atol=1e-5)
    assert one.activation == pytest.approx(other.activation, rel=1e-4)


@pytest.mark.parametrize(
    ("apply", "problem"),
    [
        (lambda p, x, tap: tap("a", tap("a", x)).mean((1, 2)), "Two layers are called 'a'"),
        (
            lambda p, x, tap: x.mean((1, 2)) * tap("a", x.sum((1, 2, 3)))[0],
            "no layer 'a'.*float32 of shape .2,. for 2",
        ),
        (lambda p, x, tap: tap("a", x > 0).mean((1, 2)), "no layer 'a'.*bool of shape"),
        (lambda p, x, tap: tap("a", x.mean(0)[None]).mean((1, 2)), "no layer 'a'|mine returns"),
        (lambda p, x, tap: (x, x), "mine returns tuple"),
        (lambda p, x, tap: x.sum(), "mine returns float32 of shape"),
    ],
)
def test_what_is_no_layer_is_refused(apply, problem):
    with pytest.raises(AuditError, match=problem):
        from_function(apply, {}, input=SPEC, name="mine")


def test_other_mistakes():
    with pytest.raises(AuditError, match="layout is 'HWC'; known: NHWC, NCHW"):
        from_function(tapping, PARAMS, input=SPEC, name="mine", layout="HWC")
    with pytest.raises(AuditError, match=r"Parameter \['f'\] of mine is function.*eqx.partition"):
        from_function(tapping, {**PARAMS, "f": tapping}, input=SPEC, name="mine")
    with pytest.raises(AuditError, match="The input of mine is not known"):
        from_function(tapping, PARAMS, input={}, name="mine")
    with pytest.raises(AuditError, match="returns no activation 'nothing'"):
        from_intermediates(returning, PARAMS, ["nothing"], input=SPEC, name="mine")
    with pytest.raises(AuditError, match=r"returns one array; expected \(logits"):
        bare: Any = lambda params, images: images  # noqa: E731
        from_intermediates(bare, PARAMS, [], input=SPEC, name="mine")
