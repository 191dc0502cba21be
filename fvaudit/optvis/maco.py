"""MACO: only the phases of the spectrum are free; its magnitude stays that of natural images.

    z = irfft2(r exp(i phi), orthonormal)      image = sigmoid(C z)

r is the mean magnitude of photographs in decorrelated colours (`natural`), phi the latent. High
frequencies, in which visualizations of deep networks drown, cannot gain energy.

A real z of h x w pixels has fewer phases than its half spectrum has entries. So that |rfft2(z)| = r
holds for every phi, not only for those of real images,

    columns l = 0 and, for even w, l = w / 2 hold k and -k: phi(-k) := -phi(k), r their mean
    bins that are their own mirror image are real: their phase is 0 or pi, the nearer one to phi
    the constant (0, 0) is 0: a phase could only choose between a bright and a dark image

What Horama and Xplique do besides, and why it is not done here:

    phases standardised to mean 0, sd 1        uniform phases have sd 1.81; phases near 0 are a
                                               bright spot in the corner; and no photograph's phases
                                               would survive `encode`
    pixels standardised to mean 0, sd 1        changes the magnitude, which has a scale here:
                                               photographs' contrast
    spectrum resized as if it were a picture   shifts its frequencies; here it is looked up

Their phases start as N(0, 1), ours uniformly: the start is noise with the spectrum of photographs.

Recipe: NAdam at a constant 0.1, since our latents are angles in radians. The published rate of 1.0
belongs to standardised phases, which grow while they learn and so turn ever less; here it never
settles. One logit of efficientnet_lite0 after 96 steps: 12 at 1.0, 25 at 0.3, 30 at 0.1, 27 at
0.03; standardised phases at 1.0 gave 29. The rest as published: 256 steps, crops whose side falls
from 50 % to 5 % of the image's around N(0.5, 0.15), noise of sd 0.08.

Source: Fel et al. 2023 (arXiv 2306.06805); constants as in Xplique `features_visualizations`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fvaudit.optvis.colours import to_image, to_latent
from fvaudit.optvis.natural import LEVEL, ImageStatistics, Magnitude, Shape, natural, resampled
from fvaudit.optvis.params import Parameterization


Phases = Float[Array | np.ndarray, "h f c"]


@functools.cache
def maco(statistics: ImageStatistics | None = None) -> Parameterization:
    """Phases of a spectrum of fixed magnitude.

    Args:
        statistics: whose magnitude and colours to take, see `fit_statistics`; None takes those of
            1000 ImageNet photographs, for networks with three channels.

    `encode` keeps an image's phases and forgets its magnitude: decoding gives its outlines with
    the contrast of the average photograph, around grey.

    Raises:
        AuditError: when used, if the network has another number of channels than the statistics.
    """

    def known(c):
        found = natural() if statistics is None else statistics
        found.require_channels(c, "maco")
        return found

    def init(key, shape):
        h, w, c = shape
        return jax.random.uniform(key, (h, w // 2 + 1, c), minval=-np.pi, maxval=np.pi)

    def decode(latent, shape):
        found = known(shape[2])
        return to_image(signal(latent, fixed_magnitude(found, shape), shape), found.colours)

    def encode(image):
        z = to_latent(image, known(image.shape[2]).colours, LEVEL)
        return jnp.angle(jnp.fft.rfft2(z, axes=(0, 1)))

    return Parameterization(f"maco({statistics or ''})", init, decode, encode)


def signal(phases: Phases, magnitude: Magnitude, shape: Shape) -> Float[Array, "h w c"]:
    """The z with |rfft2(z)| / sqrt(h w) = `magnitude` and these phases, whatever they are.

    Args:
        phases: in radians.
        magnitude: from `fixed_magnitude`.
        shape: of z.
    """
    h, w, _ = shape
    angles = _mirrored(jnp.asarray(phases), w)
    real = jnp.where(jnp.cos(angles) < 0, -1.0, 1.0)
    own = _own_mirror(h, w)[:, :, None]
    spectrum = jax.lax.complex(
        magnitude * jnp.where(own, real, jnp.cos(angles)),
        magnitude * jnp.where(own, 0.0, jnp.sin(angles)),
    )
    return jnp.fft.irfft2(spectrum, s=(h, w), axes=(0, 1), norm="ortho")


@functools.lru_cache(maxsize=8)
def fixed_magnitude(statistics: ImageStatistics, shape: Shape) -> Magnitude:
    """The magnitude that images of this shape are held to, float32 (h, w // 2 + 1, c)."""
    magnitude = resampled(statistics, shape).copy()
    for column in _paired_columns(shape[1]):
        magnitude[:, column] += magnitude[_opposite(shape[0]), column]
        magnitude[:, column] /= 2
    magnitude[0, 0] = 0
    return magnitude


def _mirrored(phases: Float[Array, "h f c"], w: int) -> Float[Array, "h f c"]:
    """Phases of a real image: where a column holds k and -k, the first half rules the second."""
    h = len(phases)
    second = np.arange(h) > h / 2
    for column in _paired_columns(w):
        opposite = -phases[_opposite(h), column]
        half = jnp.where(second[:, None], opposite, phases[:, column])
        phases = phases.at[:, column].set(half)
    return phases


def _paired_columns(w: int) -> tuple[int, ...]:
    return (0, w // 2) if w % 2 == 0 else (0,)


def _opposite(h: int) -> np.ndarray:
    return -np.arange(h) % h  # the row of -k


def _own_mirror(h: int, w: int) -> np.ndarray:
    own = np.zeros((h, w // 2 + 1), bool)
    rows = (0, h // 2) if h % 2 == 0 else (0,)
    own[np.ix_(rows, _paired_columns(w))] = True
    return own
