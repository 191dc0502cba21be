"""Transforms in a row. Neighbouring maps of coordinates are multiplied out and resampled once."""

import functools
import itertools
import math

import jax

from fvaudit.optvis import lowering
from fvaudit.optvis.transforms.appearance import noise
from fvaudit.optvis.transforms.canvas import random_crop
from fvaudit.optvis.transforms.geometry import after, jitter, rotate, scale
from fvaudit.optvis.transforms.records import GROUND, Geometric, Transform


@functools.cache
def compose(*parts: Geometric | Transform) -> Transform:
    """Applies `parts` in order, each with a key of its own.

    Neighbouring maps of coordinates cost one bilinear resampling together, on grey ground; what
    stands between two of them keeps them apart.
    """
    text = " > ".join(part.text for part in parts) or "none"

    def apply(key, image):
        if not parts:
            return image
        pairs = zip(parts, jax.random.split(key, len(parts)), strict=True)
        for mapped, group in itertools.groupby(pairs, lambda pair: isinstance(pair[0], Geometric)):
            run = list(group)
            image = _resampled(run, image) if mapped else _in_turn(run, image)
        return image

    return Transform(text, apply)


def standard() -> Transform:
    """lucid's standard set: jitter 8, scale 0.90 to 1.10, rotate -10 to 10 degrees, jitter 4."""
    factors = tuple(round(1 + (i - 5) / 50, 2) for i in range(11))
    degrees = (*range(-10, 11), *(0,) * 5)  # five more zeros, as in lucid
    return compose(jitter(8), scale(factors), rotate(degrees), jitter(4))


def maco_crops(
    low: float | int = 0.05,
    high: float | int = 0.5,
    normal: float | int = 0.04,
    uniform: float | int = 0.02,
) -> Transform:
    """MACO's robustness: a random crop, then noise (Fel et al. 2023).

    The defaults are Xplique's. Its crops shrink from 50 % to 5 % of the side during the run; a
    transform does not know the step, so that here every step draws from that whole range. Its noise
    (normal 0.08, uniform 0.04) is meant for values in [-1, 1], twice as wide as ours. Horama's
    are maco_crops(0.20, 0.25, normal=0.01, uniform=0.005): 0.05 and 0.025 on a range of width 5.
    """
    return compose(random_crop(low, high), noise(normal, uniform))


def none() -> Transform:
    """Leaves the picture as it is."""
    return compose()


def _resampled(run, image):
    reach = math.prod(part.reach for part, _ in run)
    whole = functools.reduce(after, [part.draw(key) for part, key in run])
    matrix, shift = jax.lax.optimization_barrier(tuple(whole))  # else drawn anew in every kernel
    return lowering.affine_sample(image, matrix, shift, GROUND, reach)


def _in_turn(run, image):
    for part, key in run:
        image = part.apply(key, image)
    return image
