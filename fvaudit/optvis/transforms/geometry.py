"""Random maps of coordinates: output pixel q reads the source at A q + b, from the centre.

    jitter(d)   b uniform on {-d//2, ..., d - d//2 - 1} in both directions, A = 1
    scale(s)    A = 1 / s, s drawn from the given factors
    rotate(a)   A = rotation by an angle drawn from the given degrees
    flip()      A = diag(1, -1) or 1, with equal chances

Magnitudes and distributions are lucid's, except that its jitter(d) is a random crop with d + 1
places to be in each direction, where here (as in lucent) there are d. lucent translates, in one
direction, and fills with black; here the picture moves in all directions on grey ground.

A step's program draws from keys that are used for nothing else, and takes their own words for
random ones: JAX's generator in between, six calls a map, was a third of the code to compile.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fvaudit.optvis.transforms.records import Affine, Geometric
from fvaudit.records import AuditError


@functools.cache
def jitter(pixels: int) -> Geometric:
    """Moves the picture by whole pixels, uniformly within a square of side `pixels`.

    Raises:
        AuditError: if `pixels` < 1.
    """
    if pixels < 1:
        raise AuditError(f"jitter needs at least 1 pixel, got {pixels}; leave it out instead.")

    def draw(key):
        shift = _below(key, pixels) - pixels // 2
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

    turned = np.radians(degrees)
    reach = (abs(np.cos(turned)) + abs(np.sin(turned))).max()
    return Geometric(f"rotate({_span(degrees)})", draw, float(reach))


@functools.cache
def flip() -> Geometric:
    """Mirrors left and right, every other time on average."""

    def draw(key):
        side = 1.0 - 2.0 * _below(key, 2)[0]
        return Affine(jnp.diag(jnp.stack([jnp.ones(()), side])), jnp.zeros(2))

    return Geometric("flip()", draw, 1.0)


def after(first: Affine, second: Affine) -> Affine:
    """`first` applied to the picture, then `second`: source = first(second(q)).

    Number by number: as products of matrices they would be a kernel each to compile.
    """
    (a, b), (c, d) = first.matrix
    (e, f), (g, h) = second.matrix
    y, x = second.shift
    matrix = [[a * e + b * g, a * f + b * h], [c * e + d * g, c * f + d * h]]
    return Affine(jnp.array(matrix), jnp.stack([a * y + b * x, c * y + d * x]) + first.shift)


def _choice(key, values) -> Float[Array, ""]:
    return jnp.asarray(np.asarray(values, np.float32))[_below(key, len(values))[0]]


def _below(key, n: int) -> Int[Array, "2"]:
    """Two numbers of 0..n - 1, as even as n divides 2^32, from a key used for nothing else."""
    words = jax.random.key_data(key)[:2]
    return (words % jnp.uint32(n)).astype(jnp.int32)


def _span(values) -> str:
    return f"{min(values)}..{max(values)}, n={len(values)}"
