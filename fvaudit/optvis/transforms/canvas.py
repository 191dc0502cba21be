"""Transforms of the canvas: grow it, cut it to size, look closer at a part of it.

    pad(p)               h x w -> (h + 2p) x (w + 2p)
    crop_or_pad(r, c)    h x w -> r x c about the centre, an odd pixel going to bottom and right
    random_crop(a, b)    a box of s h x s w, s uniform on [a, b], its centre (y, x) normal with
                         mean 1/2 and sd 0.15, brought back to [s/2, 1 - s/2] where the box
                         would leave the picture; magnified bilinearly to h x w

The crop is that of MACO (Fel et al. 2023, Xplique and Horama), whose boxes do leave the picture and
then show black; and Horama's side length is drawn from [b, 2b - a] where it says [a, b].
"""

import functools

import jax
import jax.numpy as jnp

from fvaudit.optvis.transforms.records import GROUND, Transform
from fvaudit.records import AuditError


_CENTRE_SD = 0.15  # of the picture's side; Xplique's and Horama's
_RANDOM = ("uniform", "noise", "reflect")


@functools.cache
def pad(pixels: int, value: float | int | str = GROUND) -> Transform:
    """Adds a frame, `pixels` wide.

    Args:
        pixels: width of the frame on each side, >= 1.
        value: its grey, in [0, 1]; or "uniform" (one random grey each time), "noise" (every pixel
            and channel uniform on [0, 1]), or "reflect" (the picture mirrored in its edge pixels;
            needs more than `pixels` rows and columns).

    Raises:
        AuditError: if a setting lies outside its range; when applied, if the picture is too small.
    """
    if pixels < 1:
        raise AuditError(f"pad needs at least 1 pixel, got {pixels}; leave it out instead.")
    _require_value("pad", value, _RANDOM)
    widths = ((pixels, pixels), (pixels, pixels), (0, 0))

    def apply(key, image):
        if value == "reflect":
            _require_larger(image, pixels)
            return jnp.pad(image, widths, "reflect")
        grown = jnp.pad(image, widths)
        inside = jnp.pad(jnp.ones((*image.shape[:2], 1), bool), widths)
        return jnp.where(inside, grown, _frame(value, key, grown.shape))

    return Transform(f"pad({pixels}, {value!r})", apply)


@functools.cache
def crop_or_pad(rows: int, columns: int, value: float | int = GROUND) -> Transform:
    """Brings the canvas to `rows` x `columns` about its centre, without resampling.

    Cut where it is larger, framed in grey `value` where it is smaller (TensorFlow's function of
    this name, which lucid uses, frames in black).

    Raises:
        AuditError: if a size is below 1 or value lies outside [0, 1].
    """
    if min(rows, columns) < 1:
        raise AuditError(f"crop_or_pad needs at least 1 x 1 pixels, got {rows} x {columns}.")
    _require_value("crop_or_pad", value, ())

    def apply(key, image):
        for axis, wanted in enumerate((rows, columns)):
            image = _fitted(image, axis, wanted, value)
        return image

    return Transform(f"crop_or_pad({rows}, {columns}, {value!r})", apply)


@functools.cache
def random_crop(low: float | int, high: float | int) -> Transform:
    """Magnifies a random box whose side is a share in [low, high] of the picture's.

    The box lies inside the picture, so nothing but picture is seen.

    Raises:
        AuditError: unless 0 < low <= high <= 1.
    """
    if not 0 < low <= high <= 1:
        raise AuditError(f"random_crop needs 0 < low <= high <= 1, got {low} and {high}.")

    def apply(key, image):
        side_key, centre_key = jax.random.split(key)
        side = jax.random.uniform(side_key, (), minval=low, maxval=high)
        centre = 0.5 + _CENTRE_SD * jax.random.normal(centre_key, (2,))
        start = jnp.clip(centre - side / 2, 0, 1 - side) * jnp.array(image.shape[:2])
        magnify = jnp.full((2,), 1 / side)
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), magnify, -start * magnify, "linear", antialias=False
        )

    return Transform(f"random_crop({low}, {high})", apply)


def _frame(value, key, shape):
    if isinstance(value, str):
        return jax.random.uniform(key, shape if value == "noise" else ())
    return value


def _fitted(image, axis: int, wanted: int, value):
    size = image.shape[axis]
    if wanted <= size:
        start = (size - wanted) // 2
        return jax.lax.slice_in_dim(image, start, start + wanted, axis=axis)
    before = (wanted - size) // 2
    widths = [(0, 0)] * 3
    widths[axis] = (before, wanted - size - before)
    return jnp.pad(image, widths, constant_values=value)


def _require_value(user: str, value, words: tuple[str, ...]) -> None:
    fine = value in words if isinstance(value, str) else 0 <= value <= 1
    if not fine:
        also = f", or one of {', '.join(words)}" if words else ""
        raise AuditError(f"{user}: value must be a grey in [0, 1]{also}; got {value!r}.")


def _require_larger(image, pixels: int) -> None:
    h, w, _ = image.shape
    if min(h, w) <= pixels:
        raise AuditError(
            f"pad: a picture of {h} x {w} pixels has no {pixels} beside its edge to reflect; "
            "pad by less, or with a grey."
        )
