"""The worked examples of intake run, and their layers are the frameworks' own numbers."""

import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import peers


pytestmark = pytest.mark.extras
FOLDER = pathlib.Path(__file__).resolve().parents[1] / "experiments" / "intake"
IMAGES = np.random.default_rng(1).random((2, 32, 32, 3), np.float32)


def example(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def require(model, wanted, printed):
    found = model.activations(IMAGES, list(wanted))
    for layer, value in wanted.items():
        np.testing.assert_allclose(found[layer], value, rtol=1e-4, atol=1e-5, err_msg=layer)
    reached, of_noise = re.findall(r"(?:reaches|of noise) (-?[\d.]+)", printed)
    assert float(reached) > float(of_noise)


def test_equinox(capsys):
    pytest.importorskip("equinox")
    module = example("equinox_example")
    model = module.main()
    net = module.Net(jax.random.key(0))
    x = [jax.nn.relu(net.conv1(image)) for image in jnp.moveaxis(jnp.asarray(IMAGES), 3, 1)]
    logits = [net.head(jax.nn.relu(net.conv2(image)).mean((1, 2))) for image in x]
    conv1 = np.moveaxis(np.stack(x), 1, 3)
    require(model, {"conv1": conv1, "logits": np.stack(logits)}, capsys.readouterr().out)


def test_haiku(capsys):
    hk = pytest.importorskip("haiku")
    module = example("haiku_example")
    model = module.main()
    net = hk.without_apply_rng(hk.transform(module.network))
    logits = net.apply(model.params, jnp.asarray(2 * IMAGES - 1))
    require(model, {"logits": logits, "head": logits}, capsys.readouterr().out)


def test_keras(capsys):
    keras = peers.keras()
    module = example("keras_example")
    model = module.main()
    keras.utils.set_random_seed(0)
    net = module.network()
    inner = keras.Model(net.input, net.get_layer("relu1").output)
    x = 2 * IMAGES - 1
    wanted = {"relu1": np.asarray(inner(x)), "logits": np.asarray(net(x))}
    require(model, wanted, capsys.readouterr().out)
