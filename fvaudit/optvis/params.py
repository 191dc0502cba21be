"""How numbers become a valid image: latent -> pixels in [0, 1].

    pixels    z ~ N(0, sd^2) per pixel
    fourier   spectrum s ~ N(0, sd^2), real and imaginary part, shape of the real FFT;
              z = irfft2(s / max(f, 1 / max(h, w))^decay, orthonormal) / 4
    both      image = sigmoid(C z): C is the colour correlation's square root (rows R, G, B),
              divided by its largest column norm, as measured on ImageNet by lucid

Constants and formulas: lucid `optvis/param` (Olah et al. 2017), with the orthonormal transform in
place of lucid's sqrt(w h) factor, which is the same map.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from fvaudit.records import AuditError


_CORRELATION = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOURS = (_CORRELATION / np.linalg.norm(_CORRELATION, axis=0).max()).astype(np.float32)
_EDGE = 1e-6  # encode() keeps this far from 0 and 1, where the sigmoid's inverse is infinite

Image = Float[Array, "h w c"]
Shape = tuple[int, int, int]  # (rows, columns, channels) that the network takes


class Parameterization(NamedTuple):
    """Three pure functions and the call text that makes them again."""

    text: str
    init: Callable[[Key[Array, ""], Shape], Any]  # (key, (h, w, c)) -> latent, any pytree
    decode: Callable[[Any, Shape], Image]  # (latent, (h, w, c)) -> image in [0, 1]
    encode: (
        Callable[[Image], Any] | None
    )  # the latent of a given image; None: decode has no inverse
    alpha: bool = False  # decode appends a channel, the image's opacity in [0, 1]


@functools.cache  # the same settings are the same object, so nothing is traced twice
def pixels(sd: float = 0.01, decorrelate: bool = True) -> Parameterization:
    """Independent pixels.

    Args:
        sd: standard deviation of the start, in latent units; > 0.
        decorrelate: optimize in lucid's decorrelated colour space.
    """
    _require_positive("sd", sd)

    def init(key, shape):
        return sd * jax.random.normal(key, shape)

    def decode(latent, shape):
        return _to_image(latent, decorrelate)

    def encode(image):
        return _to_latent(image, decorrelate)

    return Parameterization(f"pixels(sd={sd}, decorrelate={decorrelate})", init, decode, encode)


@functools.cache
def fourier(sd: float = 0.01, decay: float = 1.0, decorrelate: bool = True) -> Parameterization:
    """A Fourier spectrum whose low frequencies move faster: a change of metric, not of minimum.

    Args:
        sd: standard deviation of the start, per real and imaginary part; > 0.
        decay: exponent of 1 / frequency; >= 0.
        decorrelate: optimize in lucid's decorrelated colour space.
    """
    _require_positive("sd", sd)
    if decay < 0:
        raise AuditError(f"fourier: decay must be >= 0, got {decay}.")

    def init(key, shape):
        h, w, c = shape
        return sd * jax.random.normal(key, (2, h, w // 2 + 1, c))

    def decode(latent, shape):
        size = shape[:2]
        spectrum = jax.lax.complex(latent[0], latent[1]) * _frequency_scale(size, decay)
        z = jnp.fft.irfft2(spectrum, s=size, axes=(0, 1), norm="ortho") / 4
        return _to_image(z, decorrelate)

    def encode(image):
        size = image.shape[:2]
        z = 4 * _to_latent(image, decorrelate)
        spectrum = jnp.fft.rfft2(z, axes=(0, 1), norm="ortho") / _frequency_scale(size, decay)
        return jnp.stack([spectrum.real, spectrum.imag])

    text = f"fourier(sd={sd}, decay={decay}, decorrelate={decorrelate})"
    return Parameterization(text, init, decode, encode)


def _frequency_scale(size: tuple[int, int], decay: float) -> Float[np.ndarray, "h f 1"]:
    h, w = size
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])
    scale = 1 / np.maximum(frequency, 1 / max(h, w)) ** decay
    return scale[:, :, None].astype(np.float32)


def _colours(channels: int, decorrelate: bool) -> Float[np.ndarray, "c c"]:
    if decorrelate and channels == 3:
        return COLOURS
    return np.eye(channels, dtype=np.float32)


def _to_image(z: Image, decorrelate: bool) -> Image:
    return jax.nn.sigmoid(z @ _colours(z.shape[-1], decorrelate).T)


def _to_latent(image: Image, decorrelate: bool) -> Image:
    inside = jnp.clip(image, _EDGE, 1 - _EDGE)
    z = jnp.log(inside) - jnp.log1p(-inside)
    root = _colours(z.shape[-1], decorrelate).astype(np.float64)
    return z @ np.linalg.inv(root.T).astype(np.float32)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise AuditError(
            f"{name} must be > 0, got {value}: a start without noise is the same for every seed."
        )
