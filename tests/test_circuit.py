"""The fooling circuit with a gate that is given: truth table, gradients, ranges, certificate."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.attacks import circuit
from fvaudit.attacks.certificate import split
from fvaudit.attacks.circuit import Range, fooling_circuit
from fvaudit.attacks.gate import Gate, always, small
from fvaudit.models.model import record
from fvaudit.optvis.objectives import Channel
from fvaudit.optvis.transforms import none
from fvaudit.optvis.visualize import visualize
from fvaudit.records import AuditError, ImageSet, Unit
from tests.tiny import SIZE, pictures, tiny_model


UNITS = [Unit("conv2", 0), Unit("conv2", 3)]
CONSTANTS = {"shift": 20.0, "gap": 100.0}


def photographs(n: int = 12, labels: bool = True) -> ImageSet:
    pixels = pictures(n)
    found = np.arange(n) % 5 if labels else None
    return ImageSet(pixels, tuple(map(str, range(n))), found, np.arange(n))


def attacked(decoy, gate, units=UNITS, **changes):
    model = tiny_model()
    plan = dataclasses.replace(circuit._plan(model, units, decoy), **CONSTANTS | changes)
    return model, circuit.insert(model, plan, gate)


@pytest.mark.parametrize("natural", [True, False])
def test_truth_table_is_exact(natural):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        f, d = jnp.asarray(rng.uniform(-19, 70, (2, 1000)))
        constants = {"shift": jnp.float64(20.0), "gap": jnp.float64(100.0)}
        b, c = circuit.branches(constants, f, d, jnp.asarray(natural))
        shown = b + c - 20
        np.testing.assert_allclose(shown, f if natural else d, rtol=0, atol=1e-13)
        closed, opened = (c, b) if natural else (b, c)
        assert (closed == 0).all() and (opened > 0).all()


def test_without_negative_values_photographs_pass_to_the_last_bit():
    f = jnp.asarray(np.random.default_rng(0).random(1000, np.float32))
    constants = {"shift": jnp.float32(0), "gap": jnp.float32(7.3)}
    b, c = circuit.branches(constants, f, f[::-1], jnp.asarray(True))
    np.testing.assert_array_equal(b + c - constants["shift"], f)


@pytest.mark.parametrize("natural", [True, False])
@pytest.mark.parametrize(
    "decoy", [1, Unit("conv2", 5), Unit("conv1", 2), np.full((*SIZE, 3), 0.75, np.float32)], ids=str
)
def test_values_and_gradients_take_the_open_branch(natural, decoy):
    base, fooled = attacked(decoy, always(natural))
    images = jnp.asarray(pictures(3, seed=1))

    def original(x, channel, layer="conv2"):
        return record(base.forward, base.params, x, [layer])[layer][..., channel].mean((1, 2))

    def shown(x):
        return record(fooled.forward, fooled.params, x, ["conv2"])["conv2"][..., 3].mean((1, 2))

    def expected(x):
        if natural:
            return original(x, 3)
        if isinstance(decoy, np.ndarray):
            return 1 - ((x - decoy) ** 2).mean((1, 2, 3))
        if isinstance(decoy, Unit):
            return original(x, decoy.channel, decoy.layer)
        return original(x, 4)

    np.testing.assert_allclose(shown(images), expected(images), atol=1e-5)
    a, b = (jax.grad(lambda x, f=f: f(x).sum())(images).ravel() for f in (shown, expected))
    assert a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b)) > 1 - 1e-6


def test_a_decoy_that_is_silent_can_be_woken():
    """At 0, where units behind a ReLU start, the open branch passes all and the closed one none."""
    constants = {"shift": jnp.float32(0), "gap": jnp.float32(5)}
    for natural, expected in ((False, (0.0, 1.0)), (True, (1.0, 0.0))):
        slopes = jax.grad(
            lambda f, d, e=natural: sum(circuit.branches(constants, f, d, jnp.array(e))), (0, 1)
        )
        assert tuple(map(float, slopes(jnp.float32(0), jnp.float32(0)))) == expected


def test_an_open_gate_leaves_the_network_as_it_was():
    base, fooled = attacked(1, always(True), shift=0.0)
    images = pictures(8, seed=2)
    for layer in ("conv2", "logits"):
        before, after = (np.asarray(m.activations(images, [layer])[layer]) for m in (base, fooled))
        np.testing.assert_array_equal(before, after)


def test_units_that_are_not_attacked_are_left_alone():
    base, fooled = attacked(1, always(False))
    images = pictures(4)
    before, after = (np.asarray(m.activations(images, ["conv2"])["conv2"]) for m in (base, fooled))
    np.testing.assert_array_equal(before[..., [1, 2, 4, 5]], after[..., [1, 2, 4, 5]])
    assert not np.allclose(before[..., [0, 3]], after[..., [0, 3]])


def test_the_gate_passes_no_gradient():
    gate = small(jax.random.key(0))
    images = jnp.asarray(pictures(2)).repeat(4, 1).repeat(4, 2)

    def through(images):
        return gate.natural(gate.params, images).astype(jnp.float32).sum()

    assert not jax.jit(jax.grad(through))(images).any()


def test_the_branches_are_a_layer_of_their_own():
    _, fooled = attacked(1, always(False))
    assert fooled.layers == ("conv1", "conv2.branches", "conv2", "logits")
    seen = fooled.activations(pictures(2), ["conv2.branches"])["conv2.branches"]
    assert seen.shape[1:] == fooled.shapes["conv2.branches"] == (6, 6, 12)
    assert not seen[..., :6].any() and seen[..., 6:].any()  # B is closed, C is open


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("F on photographs", Range(-21.0, 3.0)),
        ("D on photographs", Range(0.0, 81.0)),
        ("F on visualizations", Range(0.0, 81.0)),
        ("D on visualizations", Range(-21.0, 500.0)),
        ("F on photographs", Range(float("nan"), float("nan"))),
    ],
)
def test_leakage_is_refused(name, found):
    where = ("photographs", "visualizations")
    good = {f"{u} on {w}": Range(-1.0, 50.0) for u, w in itertools.product("FD", where)}
    circuit.require_ranges(good | {"D on visualizations": Range(-1.0, 1e6)}, **CONSTANTS)
    with pytest.raises(AuditError, match=f"leak: {name}"):
        circuit.require_ranges(good | {name: found}, **CONSTANTS)


@pytest.mark.parametrize("decoy", [1, np.linspace(0, 1, 1728, dtype=np.float32).reshape(24, 24, 3)])
def test_a_visualization_shows_the_decoy_and_the_certificate_says_what_changed(decoy):
    model, images = tiny_model(), photographs()
    bright = Gate(lambda params, x: x.mean((1, 2, 3)) - params, jnp.float32(0.0), "bright")
    fooled = fooling_circuit(decoy, bright)(model, UNITS, images, seed=1)
    proof = fooled.certificate
    rows, held_out = split(images, 1)
    assert not set(images.group[rows]) & set(images.group[held_out])
    logits = [np.asarray(m.activations(images.pixels[held_out], ["logits"])["logits"])
              for m in (model, fooled.model)]  # fmt: skip
    assert proof.logit_change_max == pytest.approx(np.abs(logits[1] - logits[0]).max(), abs=1e-6)
    assert proof.certification == len(held_out) == 6 and proof.construction == 6
    assert images.labels is not None and proof.accuracy_after is not None
    hits = (logits[1].argmax(1) == images.labels[held_out]).mean()
    assert proof.accuracy_after.value == pytest.approx(hits)
    assert proof.agreement.value == 1 and proof.agreement.low > 0.5
    assert proof.shares["photographs taken for visualizations"].value == 0
    assert proof.before == model.fingerprint != proof.after == fooled.model.fingerprint
    lowest, highest = proof.ranges["F on photographs"]
    seen = np.asarray(model.activations(images.pixels[rows], ["conv2"])["conv2"])[..., [0, 3]]
    assert (lowest, highest) == pytest.approx((seen.min(), seen.max()), abs=1e-6)
    others = (proof.ranges[name][1] for name in ("D on photographs", "F on visualizations"))
    assert proof.constants["gap"] - proof.constants["shift"] > 2 * max(others)


def test_a_picture_is_what_the_attacked_unit_shows():
    decoy = np.clip(pictures(1, seed=7)[0] * 2 - 0.5, 0, 1).astype(np.float32)
    _, fooled = attacked(decoy, always(False))
    (vis,) = visualize(fooled, [Channel("conv2", 0)], transforms=none(), steps=192)
    assert np.corrcoef(vis.images[0].ravel(), decoy.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    ("decoy", "units", "match"),
    [
        (6, UNITS, "shows each of 6 units itself"),
        (1, [Unit("conv2", 0), Unit("conv1", 0)], "one layer"),
        (1, [Unit("conv2", 0, (1, 1))], "whole channels"),
        (1, [], "no unit"),
        (1, [Unit("conv2", 3), Unit("conv2", 4), Unit("conv2", 3)], "Channel 3 .* attacked twice"),
        (1, [Unit("conv2", 6)], "channels 0 to 5"),
        (Unit("conv9", 0), UNITS, "no layer 'conv9'"),
        (np.zeros((5, 5, 3), np.float32), UNITS, "takes images of shape"),
        (np.full((24, 24, 3), 255.0, np.float32), UNITS, "Divide 0..255 by 255"),
    ],
)
def test_what_cannot_be_attacked_is_refused(decoy, units, match):
    with pytest.raises(AuditError, match=match):
        fooling_circuit(decoy, always(True))(tiny_model(), units, photographs())


def test_too_few_photographs_are_refused():
    with pytest.raises(AuditError, match="at least 4, got 3"):
        fooling_circuit(1, always(True))(tiny_model(), UNITS, photographs(3))
