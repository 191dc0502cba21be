"""Audit a network written in Haiku.

Claim: Haiku hands out intermediates by itself, so that not even a `tap` is needed.
Duration: half a minute on 2 CPU cores. Expected: the layers below. Haiku is no dependency of
fvaudit: pip install dm-haiku.

    python experiments/intake/haiku_example.py
"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

import fvaudit as fv


LAYERS = ("conv1", "conv2", "head")


def network(images):
    """Two convolutions and a linear head, (n, h, w, 3) -> (n, 10)."""
    x = jax.nn.relu(hk.Conv2D(8, 3, stride=2, name="conv1")(images))
    x = jax.nn.relu(hk.Conv2D(16, 3, stride=2, name="conv2")(x))
    return hk.Linear(10, name="head")(x.mean((1, 2)))


def main() -> fv.Model:
    net = hk.without_apply_rng(hk.transform(network))
    params = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))

    def apply(params, images):
        kept = {}

        def keep(following, args, kwargs, context):
            output = following(*args, **kwargs)
            if context.method_name == "__call__":
                kept[context.module.module_name] = output
            return output

        def watched(images):
            with hk.intercept_methods(keep):
                return network(images)

        logits = hk.without_apply_rng(hk.transform(watched)).apply(params, images)
        return logits, kept

    spec = {"size": 32, "range": [-1, 1], "order": "RGB", "resize": 32, "interpolation": "bicubic"}
    model = fv.from_intermediates(apply, params, LAYERS, input=spec, name="haiku net")
    noise = jnp.asarray(np.random.default_rng(0).random((8, 32, 32, 3), np.float32))
    of_noise = model.activations(noise, ["conv2"])["conv2"].mean((1, 2))
    unit = int(of_noise.mean(0).argmax())
    vis = fv.visualize(model, [fv.Channel("conv2", unit)], steps=64, seed=0)[0]
    print(f"layers {model.layers}, trunk {model.trunk}")
    print(f"conv2:{unit} reaches {vis.activation[0]:.3f}; of noise {of_noise[:, unit].max():.3f}")
    return model


if __name__ == "__main__":
    main()
