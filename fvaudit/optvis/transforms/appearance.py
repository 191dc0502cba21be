"""Transforms of what the pixels show, each where it is.

    blur(sigma)      convolution with a Gaussian
    noise(a, b)      x + a N(0, 1) + U(-b, b), each pixel and channel on its own
    colour_jitter    b x;  then k x + (1 - k) mean(grey);  then s x + (1 - s) grey,
                     b, k, s uniform on [1 - strength, 1 + strength], cut at 0
    collapse_alpha   a x + (1 - a) background,  a the last channel

Noise is not clipped, as in MACO: the network's input then leaves [0, 1] by a little, and no
gradient is lost. Colour jitter is clipped to [0, 1] after each of its parts, as in torchvision.
"""

import functools

import jax
import jax.numpy as jnp

from fvaudit.optvis.gaussian import blurred
from fvaudit.optvis.params import fourier
from fvaudit.optvis.transforms.records import Transform
from fvaudit.records import AuditError


_GREY = (0.2989, 0.587, 0.114)  # of R, G, B; ITU-R 601 as torchvision rounds it
_BACKGROUND_SD = 0.5  # of the noise behind an image with opacity; lucid's collapse_alpha


@functools.cache
def blur(sigma: float | int) -> Transform:
    """Gaussian blur; the picture is mirrored at its edges with the edge pixel repeated.

    Args:
        sigma: standard deviation in pixels, > 0.

    Raises:
        AuditError: if sigma is not positive.
    """
    if not sigma > 0:
        raise AuditError(f"blur: sigma must be > 0 pixels, got {sigma}; leave it out instead.")
    return Transform(f"blur({sigma})", lambda key, image: blurred(image, sigma))


@functools.cache
def noise(normal: float | int = 0.0, uniform: float | int = 0.0) -> Transform:
    """Adds noise, not clipped.

    Args:
        normal: standard deviation of the normal part, in units of the range [0, 1]; >= 0.
        uniform: half width of the uniform part, in the same units; >= 0.

    Raises:
        AuditError: if one is negative, or both are 0.
    """
    if min(normal, uniform) < 0 or normal == uniform == 0:
        raise AuditError(
            f"noise needs strengths >= 0, not both 0; got normal={normal}, uniform={uniform}."
        )

    def apply(key, image):
        first, second = jax.random.split(key)
        if normal:
            image = image + normal * jax.random.normal(first, image.shape)
        if uniform:
            image += jax.random.uniform(second, image.shape, minval=-uniform, maxval=uniform)
        return image

    return Transform(f"noise(normal={normal}, uniform={uniform})", apply)


@functools.cache
def colour_jitter(
    brightness: float | int = 0.0, contrast: float | int = 0.0, saturation: float | int = 0.0
) -> Transform:
    """Varies brightness, contrast and saturation, in this order; clipped to [0, 1] after each.

    The parts are torchvision's ColorJitter, which draws their order as well and can turn the hue.
    Where a pixel is clipped no gradient passes.

    Args:
        brightness: factors are uniform on [max(0, 1 - brightness), 1 + brightness]; >= 0.
        contrast: the same, towards the mean grey of the picture.
        saturation: the same, towards each pixel's grey; pictures of 3 channels only.

    Raises:
        AuditError: if one is negative, or all are 0; when applied, if saturation is varied and the
            picture has other than 3 channels.
    """
    strengths = (brightness, contrast, saturation)
    if min(strengths) < 0 or not any(strengths):
        raise AuditError(f"colour_jitter needs strengths >= 0, not all 0; got {strengths}.")

    def apply(key, image):
        if saturation and image.shape[2] != 3:
            raise AuditError(
                f"colour_jitter: saturation needs 3 channels, the picture has {image.shape[2]}; "
                "leave saturation out."
            )
        keys = jax.random.split(key, 3)
        for k, strength, ground in zip(keys, strengths, _GROUNDS, strict=True):
            if strength:
                factor = jax.random.uniform(k, (), minval=max(0, 1 - strength), maxval=1 + strength)
                image = jnp.clip(factor * image + (1 - factor) * ground(image), 0, 1)
        return image

    text = f"brightness={brightness}, contrast={contrast}, saturation={saturation}"
    return Transform(f"colour_jitter({text})", apply)


@functools.cache
def collapse_alpha(background: float | int | str = "noise") -> Transform:
    """Lays a picture with opacity over a background: (h, w, c + 1) -> (h, w, c).

    Args:
        background: "noise" (lucid's: a random picture with the 1/f spectrum and the colours of
            `fourier`, standard deviation 0.5), "colour" (one random colour), or a grey in [0, 1],
            the same every time, to show the result.

    Raises:
        AuditError: if background is none of these; when applied, if there is but one channel.
    """
    words = ("noise", "colour")
    if not (background in words if isinstance(background, str) else 0 <= background <= 1):
        raise AuditError(
            f"collapse_alpha: background must be noise, colour, or a grey in [0, 1]; "
            f"got {background!r}."
        )

    def apply(key, image):
        if image.shape[2] < 2:
            raise AuditError("collapse_alpha needs an opacity channel behind the colours; got 1.")
        colours, alpha = image[:, :, :-1], image[:, :, -1:]
        return alpha * colours + (1 - alpha) * _behind(background, key, colours.shape)

    return Transform(f"collapse_alpha({background!r})", apply)


def _behind(background, key, shape):
    if background == "noise":
        texture = fourier(sd=_BACKGROUND_SD)
        return texture.decode(texture.init(key, shape), shape)
    return jax.random.uniform(key, shape[2:]) if background == "colour" else background


def _grey(image):
    if image.shape[2] != 3:
        return image.mean(axis=2, keepdims=True)
    return (image @ jnp.array(_GREY))[:, :, None]


# what factor 0 leaves of a picture: black, its mean grey, its greys
_GROUNDS = (lambda image: 0.0, lambda image: _grey(image).mean(), _grey)
