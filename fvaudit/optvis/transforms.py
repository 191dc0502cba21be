"""Random transforms that a good visualization must survive.

A transform maps (key, image) to an image of the same size; each image of a batch has its own key.
Geometric transforms are maps of coordinates: output pixel q reads the source at A q + b, both
counted from the picture's centre. Neighbours in a composition are multiplied out and the picture
is resampled once, bilinearly, on a mid-grey ground. (lucid pads by 12 pixels of grey and resamples
up to three times; magnitudes and distributions are lucid's.)

    jitter(d)   b uniform on {-d//2, ..., d - d//2 - 1} in both directions, A = 1
    scale(s)    A = 1 / s, s drawn from the given factors
    rotate(a)   A = rotation by an angle drawn from the given degrees
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from fvaudit.optvis import lowering
from fvaudit.records import AuditError


Image = Float[Array, "h w c"]
GROUND = 0.5  # what lies outside the picture


class Affine(NamedTuple):
    """Output pixel q reads the source at matrix @ q + shift; (row, column) from the centre."""

    matrix: Float[Array, "2 2"]
    shift: Float[Array, " 2"]


class Geometric(NamedTuple):
    """A random map of coordinates."""

    text: str
    draw: Callable[[Key[Array, ""]], Affine]
    reach: float  # largest ||matrix^-1||_inf it can draw: output pixels that a source pixel spans


class Transform(NamedTuple):
    """A function and the call text that makes it again."""

    text: str
    apply: Callable[[Key[Array, ""], Image], Image]


@functools.cache
def jitter(pixels: int) -> Geometric:
    """Moves the picture by whole pixels, uniformly within a square of side `pixels`.

    Raises:
        AuditError: if `pixels` < 1.
    """
    if pixels < 1:
        raise AuditError(f"jitter needs at least 1 pixel, got {pixels}; leave it out instead.")

    def draw(key):
        shift = jax.random.randint(key, (2,), 0, pixels) - pixels // 2
        return Affine(jnp.eye(2), shift.astype(jnp.float32))

    return Geometric(f"jitter({pixels})", draw, 1.0)


@functools.cache
def scale(factors: tuple[float | int, ...]) -> Geometric:
    """Magnifies by a factor drawn from `factors`, all > 0.

    Raises:
        AuditError: if there are none, or one is not positive.
    """
    if not factors or min(factors) <= 0:
        raise AuditError(f"scale needs factors > 0, got {factors}.")

    def draw(key):
        return Affine(jnp.eye(2) / _choice(key, factors), jnp.zeros(2))

    return Geometric(f"scale({_span(factors)})", draw, max(factors))


@functools.cache
def rotate(degrees: tuple[float | int, ...]) -> Geometric:
    """Turns by an angle drawn from `degrees`; positive turns the picture anticlockwise.

    Raises:
        AuditError: if there are no angles.
    """
    if not degrees:
        raise AuditError("rotate needs at least one angle in degrees, got none.")

    def draw(key):
        angle = _choice(key, degrees) * (math.pi / 180)
        c, s = jnp.cos(angle), jnp.sin(angle)
        return Affine(jnp.array([[c, s], [-s, c]]), jnp.zeros(2))

    return Geometric(f"rotate({_span(degrees)})", draw, math.sqrt(2))


@functools.cache
def compose(*parts: Geometric) -> Transform:
    """Applies `parts` in order, with one resampling."""
    reach = math.prod(part.reach for part in parts)

    def apply(key, image):
        if not parts:
            return image
        keys = jax.random.split(key, len(parts))
        whole = functools.reduce(_after, [p.draw(k) for p, k in zip(parts, keys, strict=True)])
        return lowering.affine_sample(image, whole.matrix, whole.shift, GROUND, reach)

    return Transform(" > ".join(part.text for part in parts) or "none", apply)


def standard() -> Transform:
    """lucid's standard set: jitter 8, scale 0.90 to 1.10, rotate -10 to 10 degrees, jitter 4."""
    factors = tuple(round(1 + (i - 5) / 50, 2) for i in range(11))
    degrees = (*range(-10, 11), *(0,) * 5)  # five more zeros, as in lucid
    return compose(jitter(8), scale(factors), rotate(degrees), jitter(4))


def none() -> Transform:
    """Leaves the picture as it is."""
    return compose()


def _after(first: Affine, second: Affine) -> Affine:
    """`first` applied to the picture, then `second`: source = first(second(q))."""
    return Affine(first.matrix @ second.matrix, first.matrix @ second.shift + first.shift)


def _choice(key, values) -> Float[Array, ""]:
    return jnp.asarray(np.asarray(values, np.float32))[jax.random.randint(key, (), 0, len(values))]


def _span(values) -> str:
    return f"{min(values)}..{max(values)}, n={len(values)}"
