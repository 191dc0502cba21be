"""Audit a network written in Keras 3 on its JAX backend.

Claim: a functional Keras model needs one more model over the same layers, whose outputs are the
activations, and `stateless_call`. Duration: a minute on 2 CPU cores. Expected: the layers below.
Keras is no dependency of fvaudit: pip install keras.

    python experiments/intake/keras_example.py
"""

import os


os.environ["KERAS_BACKEND"] = "jax"  # read once, when Keras is first imported

import jax.numpy as jnp  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402

import fvaudit as fv  # noqa: E402


LAYERS = ("conv1", "norm1", "relu1", "conv2", "head")


def network() -> keras.Model:
    """Two convolutions, a batch norm and a linear head, (n, 32, 32, 3) -> (n, 10)."""
    images = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, name="conv1")(images)
    x = keras.layers.BatchNormalization(name="norm1")(x)
    x = keras.layers.ReLU(name="relu1")(x)
    x = keras.layers.Conv2D(16, 3, strides=2, activation="relu", name="conv2")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(10, name="head")(x))


def main() -> fv.Model:
    keras.utils.set_random_seed(0)
    net = network()
    wide = keras.Model(net.input, [net.output, *(net.get_layer(n).output for n in LAYERS)])
    params = {
        "trainable": [v.value for v in wide.trainable_variables],
        "fixed": [v.value for v in wide.non_trainable_variables],
    }

    def apply(params, images):
        (logits, *kept), _ = wide.stateless_call(
            params["trainable"], params["fixed"], images, training=False
        )
        return logits, dict(zip(LAYERS, kept, strict=True))

    spec = {"size": 32, "mode": "tf", "resize": 32, "interpolation": "nearest"}
    model = fv.from_intermediates(apply, params, LAYERS, input=spec, name="keras net")
    noise = jnp.asarray(np.random.default_rng(0).random((8, 32, 32, 3), np.float32))
    of_noise = model.activations(noise, ["conv2"])["conv2"].mean((1, 2))
    unit = int(of_noise.mean(0).argmax())
    vis = fv.visualize(model, [fv.Channel("conv2", unit)], steps=64, seed=0)[0]
    print(f"layers {model.layers}, trunk {model.trunk}")
    print(f"conv2:{unit} reaches {vis.activation[0]:.3f}; of noise {of_noise[:, unit].max():.3f}")
    return model


if __name__ == "__main__":
    main()
