"""The trunk against networks whose graph is drawn by hand, and every zoo network's own list."""

import jax
import jax.numpy as jnp
import pytest

from fvaudit.models.model import InputSpec, build
from fvaudit.models.trunk import trunk
from fvaudit.records import AuditError


SHAPE = (1, 4, 4, 3)


def test_a_shortcut_takes_layers_off_the_trunk():
    def forward(params, images, tap):
        x = tap("stem", jnp.sin(images))
        inside = tap("inside", jnp.cos(x) * params)
        return tap("logits", tap("sum", x + inside).mean((1, 2)))

    assert trunk(forward, jnp.ones(()), SHAPE) == ("stem", "sum", "logits")


def test_squeeze_and_excitation_leaves_its_gate_beside_the_trunk():
    def forward(params, images, tap):
        x = tap("conv", images * 2)
        gate = tap("gate", jax.nn.sigmoid(x.mean((1, 2), keepdims=True)))
        return tap("out", x * gate)

    assert trunk(forward, None, SHAPE) == ("conv", "out")


def test_layers_inside_called_functions_are_found_each_time_they_are_called():
    def forward(params, images, tap):
        twice = jax.jit(lambda x: jnp.sin(x))
        x = tap("first", twice(images))
        block = jax.checkpoint(lambda x: tap("inside", x * 3))
        return tap("last", twice(block(x)))

    assert trunk(forward, None, SHAPE) == ("first", "inside", "last")


def test_a_layer_that_the_output_does_not_use_is_beside_the_trunk():
    def forward(params, images, tap):
        tap("aside", images + 1)
        tap("constant", jnp.ones((1, 3)))
        return tap("out", jnp.tanh(images))

    assert trunk(forward, None, SHAPE) == ("out",)


def test_more_paths_than_a_float_counts():
    def forward(params, images, tap):
        x = images
        for depth in range(80):
            x = tap(f"block{depth}", x + jnp.sin(x) + jnp.cos(x))
        return x

    assert len(trunk(forward, None, SHAPE)) == 80


def _aliased():
    def forward(params, images, tap):
        return tap("logits", tap("conv1", images * params).mean((1, 2)))

    spec = InputSpec((4, 4), (0.0,) * 3, (1.0,) * 3, resize=4)
    return build(forward, jnp.full((), 2.0), spec, name="tiny", aliases={"first": "conv1"})


def test_an_alias_reads_and_edits_the_layer_that_it_names():
    model = _aliased()
    images = jnp.full((2, 4, 4, 3), 0.25)
    assert model.layers == ("conv1", "logits") and model.trunk == ("conv1", "logits")
    assert model.shapes["first"] == (4, 4, 3) and model.path_to("first") == ("conv1",)
    assert (model.activations(images, ["first"])["first"] == 0.5).all()
    for name in ("first", "conv1"):
        edited = model.edited(name, lambda params, x: x + 1)
        assert (edited.activations(images, ["logits"])["logits"] == 1.5).all()
    edited = model.edited("conv1", lambda params, x: x + 1)
    assert (edited.activations(images, ["first"])["first"] == 1.5).all()


def test_an_alias_of_nothing_is_refused():
    with pytest.raises(AuditError, match="conv9"):
        build(
            lambda params, images, tap: tap("conv1", images),
            None,
            InputSpec((4, 4), (0.0,) * 3, (1.0,) * 3, resize=4),
            name="tiny",
            aliases={"first": "conv9"},
        )


def test_blue_first_networks_get_their_colours_reversed():
    spec = InputSpec((1, 1), (0.1, 0.2, 0.3), (1.0, 2.0, 4.0), resize=1, order="BGR")
    out = spec.normalise(jnp.asarray([[[[0.5, 0.6, 0.7]]]]))
    assert jnp.allclose(out, jnp.asarray([[[[0.1, 0.2, 0.4]]]]))
