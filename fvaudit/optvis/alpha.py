"""Opacity: a further channel says where the image is needed at all.

    image with opacity = (decode(base), a)        a = sigmoid(fourier spectrum + logit(opacity))

The engine lays the image over a random background with weight a, so that what does not serve the
objective may vanish. As in lucid (`param.image(alpha=True)`) the opacity is parameterized as a
Fourier spectrum with the constants of `fourier` and one channel, whatever the image's is.

Source: Mordvintsev et al. 2018 (Distill, "Differentiable Image Parameterizations").
"""

import functools

import jax
import jax.numpy as jnp

from fvaudit.optvis.params import Parameterization, fourier
from fvaudit.records import AuditError


@functools.cache
def with_alpha(base: Parameterization, opacity: float = 0.5) -> Parameterization:
    """Adds an opacity channel; the latent is {"image": base's, "opacity": a spectrum}.

    Args:
        base: makes the image, of as many channels as the network takes.
        opacity: of the start, in (0, 1); lucid's is 0.5.

    `decode` gives, and `encode` takes, images of c + 1 channels, the last one opacity.

    Raises:
        AuditError: if base has an opacity already, or opacity is not inside (0, 1).
    """
    if base.alpha:
        raise AuditError(f"with_alpha: {base.text} has an opacity channel already.")
    if not 0 < opacity < 1:
        raise AuditError(f"with_alpha: opacity must lie inside (0, 1), got {opacity}.")
    mask = fourier(decorrelate=False)

    def init(key, shape):
        image, mask_key = jax.random.split(key)
        return {"image": base.init(image, shape), "opacity": mask.init(mask_key, _plane(shape))}

    def decode(latent, shape):
        alpha = _shifted(mask.decode(latent["opacity"], _plane(shape)), opacity)
        return jnp.concatenate([base.decode(latent["image"], shape), alpha], axis=-1)

    text = f"with_alpha({base.text}, opacity={opacity})"
    return Parameterization(text, init, decode, _encode(base, mask, opacity), alpha=True)


def _encode(base: Parameterization, mask: Parameterization, opacity: float):
    to_latent, to_spectrum = base.encode, mask.encode
    if to_latent is None or to_spectrum is None:
        return None

    def encode(image):
        alpha = to_spectrum(_shifted(image[:, :, -1:], 1 - opacity))
        return {"image": to_latent(image[:, :, :-1]), "opacity": alpha}

    return encode


def _plane(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return (*shape[:2], 1)


def _shifted(a, opacity: float):
    """sigmoid(logit(a) + logit(opacity)), without leaving [0, 1]."""
    return a * opacity / (a * opacity + (1 - a) * (1 - opacity))
