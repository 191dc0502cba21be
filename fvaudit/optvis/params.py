"""How numbers become a valid image: latent -> pixels in [0, 1].

    pixels    z ~ N(0, sd^2) per pixel
    fourier   spectrum s ~ N(0, sd^2), real and imaginary part, shape of the real FFT;
              z = irfft2(s / max(f, 1 / max(h, w))^decay, orthonormal) / 4
    both      image = sigmoid(C z), C the colour root of `colours`

Others stand in files of their own: `maco` (phases alone), `cppn` (a network of coordinates),
`alpha` (any of them, with opacity).

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

from fvaudit.optvis.colours import Image, Root, root, to_image, to_latent
from fvaudit.optvis.natural import ImageStatistics, Shape, radial
from fvaudit.records import AuditError


class Parameterization(NamedTuple):
    """Pure functions between a latent and an image, and the call text that makes them again."""

    text: str
    init: Callable[[Key[Array, ""], Shape], Any]  # (key, (h, w, c)) -> latent, any pytree
    decode: Callable[[Any, Shape], Image]  # (latent, (h, w, c)) -> image in [0, 1]
    encode: (
        Callable[[Image], Any] | None
    )  # the latent of a given image; None: decode has no inverse
    alpha: bool = False  # decode appends a channel, the image's opacity in [0, 1]


@functools.cache  # the same settings are the same object, so nothing is traced twice
def pixels(
    sd: float = 0.01, decorrelate: bool = True, statistics: ImageStatistics | None = None
) -> Parameterization:
    """Independent pixels.

    Args:
        sd: standard deviation of the start, in latent units; > 0.
        decorrelate: optimize in a decorrelated colour space: that of `statistics`, else lucid's for
            three channels; any other number of channels then stays as it is.
        statistics: of your own images, see `fit_statistics`.

    Raises:
        AuditError: if sd is not positive, or statistics are given and decorrelate is False; when
            used, if the statistics have another number of channels than the network.
    """
    _require_positive("sd", sd)
    colours_of = _colours_of("pixels", decorrelate, statistics)

    def init(key, shape):
        return sd * jax.random.normal(key, shape)

    def decode(latent, shape):
        return to_image(latent, colours_of(shape[2]))

    def encode(image):
        return to_latent(image, colours_of(image.shape[2]))

    text = f"pixels(sd={sd}, decorrelate={decorrelate}{_named(statistics)})"
    return Parameterization(text, init, decode, encode)


@functools.cache
def fourier(
    sd: float = 0.01,
    decay: float | None = 1.0,
    decorrelate: bool = True,
    statistics: ImageStatistics | None = None,
) -> Parameterization:
    """A Fourier spectrum whose low frequencies move faster: a change of metric, not of minimum.

    Args:
        sd: standard deviation of the start, per real and imaginary part; > 0.
        decay: exponent of 1 / frequency; >= 0. None takes the fall that `statistics` measured
            instead: their magnitude averaged over channels and directions (`natural.radial`).
        decorrelate: optimize in a decorrelated colour space: that of `statistics`, else lucid's for
            three channels; any other number of channels then stays as it is.
        statistics: of your own images, see `fit_statistics`.

    Raises:
        AuditError: as `pixels` does, and if decay is negative, or None without statistics.
    """
    _require_positive("sd", sd)
    _require_decay(decay, statistics)
    colours_of = _colours_of("fourier", decorrelate, statistics)

    scale = functools.partial(_scale, decay=decay, statistics=statistics)

    def init(key, shape):
        h, w, c = shape
        return sd * jax.random.normal(key, (2, h, w // 2 + 1, c))

    def decode(latent, shape):
        spectrum = jax.lax.complex(latent[0], latent[1]) * scale(shape)
        z = jnp.fft.irfft2(spectrum, s=shape[:2], axes=(0, 1), norm="ortho") / 4
        return to_image(z, colours_of(shape[2]))

    def encode(image):
        z = 4 * to_latent(image, colours_of(image.shape[2]))
        spectrum = jnp.fft.rfft2(z, axes=(0, 1), norm="ortho") / scale(image.shape)
        return jnp.stack([spectrum.real, spectrum.imag])

    text = f"fourier(sd={sd}, decay={decay}, decorrelate={decorrelate}{_named(statistics)})"
    return Parameterization(text, init, decode, encode)


def _scale(
    shape: Shape, decay: float | None, statistics: ImageStatistics | None
) -> Float[np.ndarray, "h f 1"]:
    if statistics is not None and decay is None:
        return radial(statistics, shape)
    assert decay is not None  # fourier refused it
    h, w, _ = shape
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])
    scale = 1 / np.maximum(frequency, 1 / max(h, w)) ** decay
    return scale[:, :, None].astype(np.float32)


def _colours_of(
    user: str, decorrelate: bool, statistics: ImageStatistics | None
) -> Callable[[int], Root]:
    if statistics is None:
        return functools.partial(root, decorrelate=decorrelate)
    if not decorrelate:
        raise AuditError(f"{user}: statistics give colours, decorrelate=False forbids them.")

    def fitted(channels):
        statistics.require_channels(channels, user)
        return statistics.colours

    return fitted


def _named(statistics: ImageStatistics | None) -> str:
    return "" if statistics is None else f", statistics={statistics}"


def _require_decay(decay: float | None, statistics: ImageStatistics | None) -> None:
    if decay is None and statistics is None:
        raise AuditError(
            "fourier: decay=None takes the spectrum of statistics, and there are none. Give "
            "statistics=fit_statistics(images), or a number."
        )
    if decay is not None and not decay >= 0:
        raise AuditError(f"fourier: decay must be >= 0, got {decay}.")


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise AuditError(
            f"{name} must be > 0, got {value}: a start without noise is the same for every seed."
        )
