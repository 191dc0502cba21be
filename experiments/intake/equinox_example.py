"""Audit a network written in Equinox.

Claim: an Equinox module needs one function of a few lines to be visualized and audited.
Duration: half a minute on 2 CPU cores. Expected: the layers below, and a picture that drives its
unit more strongly than noise does. Equinox is no dependency of fvaudit: pip install equinox.

    python experiments/intake/equinox_example.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import fvaudit as fv


class Net(eqx.Module):
    """Two convolutions and a linear head, (3, h, w) -> (10,), as Equinox has it."""

    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(3, 8, 3, stride=2, key=keys[0])
        self.conv2 = eqx.nn.Conv2d(8, 16, 3, stride=2, key=keys[1])
        self.head = eqx.nn.Linear(16, 10, key=keys[2])


def main() -> fv.Model:
    params, static = eqx.partition(Net(jax.random.key(0)), eqx.is_array)

    def apply(params, images, tap):
        net = eqx.combine(params, static)
        x = tap("conv1", jax.nn.relu(jax.vmap(net.conv1)(images)))
        x = tap("conv2", jax.nn.relu(jax.vmap(net.conv2)(x)))
        return jax.vmap(net.head)(x.mean((2, 3)))

    spec = {"size": 32, "range": [0, 1], "order": "RGB", "resize": 32, "interpolation": "bilinear"}
    model = fv.from_function(apply, params, input=spec, name="equinox net", layout="NCHW")
    noise = jnp.asarray(np.random.default_rng(0).random((8, 32, 32, 3), np.float32))
    of_noise = model.activations(noise, ["conv2"])["conv2"].mean((1, 2))
    unit = int(of_noise.mean(0).argmax())
    vis = fv.visualize(model, [fv.Channel("conv2", unit)], steps=64, seed=0)[0]
    print(f"layers {model.layers}, trunk {model.trunk}")
    print(f"conv2:{unit} reaches {vis.activation[0]:.3f}; of noise {of_noise[:, unit].max():.3f}")
    return model


if __name__ == "__main__":
    main()
