"""What is done to a latent after each update: the regularizers of Yosinski et al. 2015.

Their loop, on pixels x in 0..255 with the mean subtracted, g the gradient of the score by x:

    x <- min(255, max(0, x + mean)) - mean
    g  = gradient of the score at x
    x <- x + rate * g
    x <- (1 - decay) x
    x <- Gaussian blur of x                                    every few steps, the first included
    x <- 0 where ||x||_2 over the channels                     is under its percentile
    x <- 0 where |sum over channels of g x|                    is under its percentile

A percentile is NumPy's, linear between neighbours, and "under" is strict. 0 is the mean colour.
Here the first line comes last: the next step sees the same, and the image that remains is valid.

Source: J. Yosinski, J. Clune, A. Nguyen, T. Fuchs, H. Lipson, "Understanding neural networks
through deep visualization", 2015, and `gradient_optimizer.py` of their toolbox. Their mean is an
image; ours is one number a channel. They take no update in the last of their steps.
"""

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fvaudit.optvis.gaussian import blurred
from fvaudit.optvis.optimizers import Optimizer, progress, sgd
from fvaudit.optvis.params import Parameterization
from fvaudit.records import AuditError


class Regularizer(NamedTuple):
    """A function and the call text that makes it again."""

    text: str
    # (latent, d score / d latent, index of the step from 0) -> latent. The gradient is that of the
    # step just taken: of the score that is ascended, at the latent before the update.
    apply: Callable[[Any, Any, Any], Any]


class Published(NamedTuple):
    """A published setting: what to optimize, how, and for how long; without transforms."""

    text: str
    parameterization: Parameterization
    optimizer: Optimizer
    regularizer: Regularizer
    steps: int


@functools.cache
def decay(theta: float | int) -> Regularizer:
    """z <- (1 - theta) z, for a latent of any form.

    Raises:
        AuditError: unless 0 < theta < 1.
    """
    _require(0 < theta < 1, f"decay needs 0 < theta < 1, got {theta}.")

    def apply(latent, gradient, t):
        return jax.tree.map(lambda z: (1 - theta) * z, latent)

    return Regularizer(f"decay({theta})", apply)


@functools.cache
def blur_every(sigma: float | int, every: int) -> Regularizer:
    """Gaussian blur of a pixel latent (h, w, c) at steps 0, every, 2 every, ...

    Args:
        sigma: in pixels, > 0; the toolbox warns that less than 0.3 works poorly.
        every: >= 1.

    Raises:
        AuditError: if a setting lies outside its range; when applied, if the latent has another
            form.
    """
    _require(sigma > 0, f"blur_every: sigma must be > 0 pixels, got {sigma}.")
    _require(every >= 1, f"blur_every: every must be >= 1 steps, got {every}.")

    def apply(latent, gradient, t):
        _require_pixels("blur_every", latent)
        return jax.lax.cond(t % every == 0, lambda z: blurred(z, sigma), lambda z: z, latent)

    return Regularizer(f"blur_every({sigma}, {every})", apply)


@functools.cache
def clip_small_norm(percentile: float | int) -> Regularizer:
    """Pixels whose norm over the channels is under the percentile take the mean colour.

    Args:
        percentile: in (0, 100), of the norms of this latent (h, w, c).

    Raises:
        AuditError: as `blur_every` does.
    """
    _require_percentile("clip_small_norm", percentile)

    def apply(latent, gradient, t):
        _require_pixels("clip_small_norm", latent)
        return _without_small(latent, jnp.sqrt((latent**2).sum(-1)), percentile)

    return Regularizer(f"clip_small_norm({percentile})", apply)


@functools.cache
def clip_small_contribution(percentile: float | int) -> Regularizer:
    """Pixels that the score would hardly miss take the mean colour.

    A pixel's contribution is |sum over channels of gradient * latent|: to first order, by how much
    the score changes when the pixel is set to the mean.

    Args:
        percentile: in (0, 100), of the contributions of this latent (h, w, c).

    Raises:
        AuditError: as `blur_every` does.
    """
    _require_percentile("clip_small_contribution", percentile)

    def apply(latent, gradient, t):
        _require_pixels("clip_small_contribution", latent)
        return _without_small(latent, jnp.abs((gradient * latent).sum(-1)), percentile)

    return Regularizer(f"clip_small_contribution({percentile})", apply)


@functools.cache
def clip_range(mean: tuple[float | int, ...]) -> Regularizer:
    """Keeps a raw pixel latent (h, w, c) where it is a colour: latent + mean in [0, 255].

    Args:
        mean: one number a channel, in 0..255, as in `raw_pixels`.

    Raises:
        AuditError: if a mean is no colour; when applied, if the channels do not match.
    """
    _require_mean("clip_range", mean)

    def apply(latent, gradient, t):
        _require_pixels("clip_range", latent)
        return _to_range(latent, _centre("clip_range", mean, latent.shape[2], latent.dtype))

    return Regularizer(f"clip_range({_numbers(mean)})", apply)


@functools.cache
def compose(*parts: Regularizer) -> Regularizer:
    """Applies `parts` in order, each with the same gradient."""

    def apply(latent, gradient, t):
        for part in parts:
            latent = part.apply(latent, gradient, t)
        return latent

    return Regularizer(" > ".join(part.text for part in parts) or "none", apply)


@functools.cache
def raw_pixels(mean: tuple[float | int, ...], sd: float | int = 10.0) -> Parameterization:
    """latent = 255 image - mean, as networks of that time took it: no colour or frequency basis.

    decode clips to valid colours, and passes the gradient as if it did not: the published loop
    moves x into the range first and then takes the gradient there, all of it.

    Args:
        mean: one number a channel, in 0..255.
        sd: standard deviation of the start about the mean, in grey levels; > 0.

    Raises:
        AuditError: if a setting lies outside its range; when used, if the channels do not match.
    """
    _require_mean("raw_pixels", mean)
    _require(sd > 0, f"raw_pixels: sd must be > 0, got {sd}.")

    def centre(channels, dtype):
        return _centre("raw_pixels", mean, channels, dtype)

    def init(key, shape):
        start = sd * jax.random.normal(key, shape)
        return _to_range(start, centre(shape[2], start.dtype))

    def decode(latent, shape):
        image = (latent + centre(shape[2], latent.dtype)) / 255
        return image + jax.lax.stop_gradient(jnp.clip(image, 0, 1) - image)

    def encode(image):
        return 255 * image - centre(image.shape[2], image.dtype)

    text = f"raw_pixels({_numbers(mean)}, sd={float(sd)})"
    return Parameterization(text, init, decode, encode)


def yosinski(number: int, mean: tuple[float | int, ...]) -> Published:
    """One of the four published settings; 3 made most of the paper's figures.

    Args:
        number: 1 to 4, in the order of the paper's table.
        mean: of the network's inputs, one number a channel, in 0..255.

    Raises:
        AuditError: for another number, or a mean that is no colour.
    """
    _require(number in _PUBLISHED, f"yosinski: there are settings 1 to 4, got {number}.")
    _require_mean("yosinski", mean)
    return _yosinski(number, mean)


@functools.cache
def _yosinski(number: int, mean: tuple[float | int, ...]) -> Published:
    regularizers, optimizer, steps = _PUBLISHED[number]()
    regularizer = compose(*regularizers, clip_range(mean))
    text = f"yosinski({number}, mean={_numbers(mean)})"
    return Published(text, raw_pixels(mean), optimizer, regularizer, steps)


# theta_decay, (theta_b_width, theta_b_every), theta_n_pct, theta_c_pct; learning rate; steps
_PUBLISHED: dict[int, Callable[[], tuple[tuple[Regularizer, ...], Optimizer, int]]] = {
    1: lambda: ((blur_every(0.5, 4), clip_small_norm(50)), progress(2.0, 100.0), 500),
    2: lambda: ((decay(0.3), clip_small_norm(20)), sgd(100.0), 750),
    3: lambda: ((decay(0.0001), blur_every(1.0, 4)), sgd(100.0), 1000),
    4: lambda: ((blur_every(0.5, 4), clip_small_contribution(90)), progress(2.0, 1e8), 1000),
}


def _without_small(latent, size, percentile):
    """Pixels of `size` (h, w) strictly under its percentile become 0.

    No entry lies between two neighbours in order, so that being under the interpolated percentile
    is being under the higher neighbour, which rounding cannot blur.
    """
    rank = math.ceil(Fraction(str(percentile)) * (size.size - 1) / 100)
    threshold = jnp.sort(size, axis=None)[rank]
    return jnp.where(size[..., None] < threshold, 0, latent)


def _to_range(latent, centre):
    return jnp.clip(latent, -centre, 255 - centre)


def _centre(user: str, mean, channels: int, dtype):
    _require(
        len(mean) == channels,
        f"{user}: {len(mean)} means for images of {channels} channels; give one a channel.",
    )
    return np.asarray(mean, dtype)


def _numbers(values) -> str:
    return str(tuple(float(v) for v in values))


def _require_mean(user: str, mean) -> None:
    fine = len(mean) > 0 and all(0 <= m <= 255 for m in mean)
    _require(fine, f"{user}: means are colours in 0..255, one a channel; got {mean}.")


def _require_percentile(user: str, percentile) -> None:
    _require(0 < percentile < 100, f"{user}: percentile must lie in (0, 100), got {percentile}.")


def _require_pixels(user: str, latent) -> None:
    shape = getattr(latent, "shape", None)
    _require(
        shape is not None and len(shape) == 3,
        f"{user} acts on pixels, a latent of shape (rows, columns, channels), got "
        f"{shape or type(latent).__name__}; use it with raw_pixels.",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AuditError(message)
