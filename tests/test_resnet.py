"""ResNets' layers (test_zoo.py holds their values), and convolutions joined with batch norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fvaudit.models.nets.conv_norm import bare_conv, conv_norm
from fvaudit.models.zoo import random_model
from fvaudit.optvis import hoisting


def test_layers_and_shapes():
    model = random_model("resnet50", 0)
    assert len(model.layers) == 2 + 16 * 3 + 2
    assert model.shapes["layer1.2"] == (56, 56, 256)
    assert model.shapes["layer2.0.relu1"] == (56, 56, 128)  # v1.5: the stride is in the 3x3
    assert model.shapes["layer2.0.relu2"] == (28, 28, 128)
    assert model.shapes["layer4.2"] == (7, 7, 2048)
    assert random_model("resnet18", 0).shapes["layer4.1"] == (7, 7, 512)


@pytest.mark.parametrize("kernel, stride, groups", [(1, 1, 1), (3, 2, 1), (3, 1, 8)])
def test_a_joined_batch_norm_is_the_batch_norm(kernel, stride, groups):
    conv, norm, x = _conv_and_norm(kernel, stride, groups)
    np.testing.assert_allclose(conv_norm(conv, norm, x), norm(conv(x)), rtol=1e-5, atol=1e-5)


def _conv_and_norm(kernel, stride, groups):
    rng = np.random.default_rng(0)
    rngs = nnx.Rngs(0)
    conv = bare_conv(8, 16, kernel, stride, "SAME", rngs, groups=groups)
    norm = nnx.BatchNorm(16, use_running_average=True, epsilon=1e-3, rngs=rngs)
    for variable in (norm.mean, norm.var, norm.scale, norm.bias):
        variable[...] = jnp.asarray(rng.uniform(0.5, 2, 16), jnp.float32)  # pyright: ignore
    return conv, norm, jnp.asarray(rng.random((2, 9, 9, 8)), jnp.float32)


def test_the_norm_leaves_the_loop():
    """What the engine repeats is a convolution and a sum: no scaling, no root."""
    graph, params = nnx.split(_conv_and_norm(3, 1, 1)[:2])

    def forward(params, x):
        return conv_norm(*nnx.merge(graph, params), x)

    x = jnp.ones((1, 9, 9, 8))
    held, rest = hoisting.split(forward, params, x)
    repeated = {e.primitive.name for e in jax.make_jaxpr(rest)(held, x).eqns}
    assert "conv_general_dilated" in repeated
    assert not repeated & {"mul", "rsqrt", "sub"}
