"""What natural images look like: their colours and how much contrast they have at each frequency.

    colours      C C^T = covariance of the pixels' colours, scaled as lucid's (see `colours`)
    magnitude    mean over images of |rfft2(z)| / sqrt(h w),  z = C^-1 logit(image)

z is the space in which images are optimized, so phases of a photograph with this magnitude decode
to a natural image with natural contrast. Pixels of 0 and 1 have no finite z: colours are kept half
a grey level, 1 / 512, inside.

The magnitude of photographs falls as about 1 / f and is measured once per image size; `resampled`
gives that of the same photographs at another size:

    r'(k, l) = r(k, l) sqrt(h' w' / (h w))        k, l in cycles per image

so bins are looked up, never interpolated: frequencies are whole numbers in both. Frequencies that
the stored size cannot hold continue the nearest one that it can, along the ray from the origin,
as 1 / f. By Parseval the mean square of z is sum r^2 / (h w) over the full spectrum; the scale
keeps it.

Source: Fel et al. 2023 (arXiv 2306.06805) for the averaged magnitude in decorrelated colours.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import io
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from fvaudit.optvis import colours as _colours
from fvaudit.records import AuditError, ImageSet, require_unit_range


LEVEL = 1 / 512  # half a grey level of 8 bits: measured colours are kept this far from 0 and 1
_FLAT = 1e-3  # colours that vary by less than this part of the strongest cannot be told from noise
_FAINT = 1e-6  # of the largest magnitude: less would make a latent of that frequency infinite

Shape = tuple[int, int, int]
Magnitude = Float[np.ndarray, "h f c"]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageStatistics:
    """Colours and spectrum of a set of images; equal and hashed by content."""

    shape: Shape  # of the images measured: rows, columns, channels
    colours: Float[np.ndarray, "c c"]  # C, float32; its largest column norm is 1
    magnitude: Magnitude  # mean |rfft2(z)| / sqrt(h w), float32, (h, w // 2 + 1, c)
    n: int  # images measured

    def __post_init__(self):
        h, w, c = self.shape
        wanted = {"colours": (c, c), "magnitude": (h, w // 2 + 1, c)}
        for name, shape in wanted.items():
            array = np.array(getattr(self, name), np.float32)  # a copy of our own
            if array.shape != shape or not np.isfinite(array).all():
                raise AuditError(
                    f"ImageStatistics: {name} of images {self.shape} must be finite numbers of "
                    f"shape {shape}, got shape {array.shape}. Use fit_statistics."
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @functools.cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of everything above."""
        content = hashlib.sha256(repr((self.shape, self.n)).encode())
        for array in (self.colours, self.magnitude):
            content.update(array.astype("<f4").tobytes())
        return content.hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageStatistics) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"ImageStatistics(n={self.n}, shape={self.shape}, digest='{self.digest}')"

    def require_channels(self, c: int, user: str) -> None:
        """Raises `AuditError` if the images to be made have another number of channels."""
        if c != self.shape[2]:
            raise AuditError(
                f"{user}: its statistics are of images with {self.shape[2]} channels, the network "
                f"takes {c}. Measure images of {c} channels: statistics=fit_statistics(images)."
            )


def fit_statistics(
    images: ImageSet | np.ndarray | Sequence[np.ndarray], *, colours: np.ndarray | None = None
) -> ImageStatistics:
    """Measures colours and mean magnitude spectrum of images, one image in memory at a time.

    Args:
        images: (n, h, w, c) in [0, 1], at least two: what load_images made, an array, or any
            sequence that makes an image (h, w, c) when indexed (it is read twice). Any number of
            channels.
        colours: a colour root C, (c, c), to use instead of the images' own, such as lucid's.

    Raises:
        AuditError: if there are fewer than two images, one is not in [0, 1] or not of the first
            one's shape, or the colours do not vary independently (grey photographs stored as RGB).
    """
    if isinstance(images, ImageSet):
        images = images.pixels
    if len(images) < 2:
        raise AuditError(f"fit_statistics: needs two images or more, got {len(images)}.")
    shape = np.shape(images[0])
    if len(shape) != 3:
        raise AuditError(f"fit_statistics: images must have shape (h, w, c), got {shape}.")
    if colours is None:
        colours = _colours.fitted_root(_covariance(images, shape))
    colours = np.asarray(colours, np.float64)
    _require_root(colours, shape[2])
    total = np.zeros((shape[0], shape[1] // 2 + 1, shape[2]))
    for image in _checked(images, shape):
        total += _magnitude(image, colours)
    _require_contrast(total)
    return ImageStatistics(shape, colours, total / len(images), len(images))


def _covariance(images, shape: Shape) -> Float[np.ndarray, "c c"]:
    count = len(images) * shape[0] * shape[1]
    total, squares = np.zeros(shape[2]), np.zeros((shape[2], shape[2]))
    for image in _checked(images, shape):
        pixels = image.reshape(-1, shape[2])
        total, squares = total + pixels.sum(axis=0), squares + pixels.T @ pixels
    return (squares - np.outer(total, total) / count) / (count - 1)


def _magnitude(image: Float[np.ndarray, "h w c"], colours: Float[np.ndarray, "c c"]) -> Magnitude:
    inside = np.clip(image, LEVEL, 1 - LEVEL)
    z = (np.log(inside) - np.log1p(-inside)) @ np.linalg.inv(colours.T)
    return np.abs(np.fft.rfft2(z, axes=(0, 1), norm="ortho"))


def _checked(images, shape: Shape) -> Iterator[Float[np.ndarray, "h w c"]]:
    for number in range(len(images)):
        image = np.asarray(images[number], np.float64)
        if image.shape != shape:
            raise AuditError(
                f"fit_statistics: image {number} has shape {image.shape}, the first has {shape}. "
                "Resize them to one shape."
            )
        require_unit_range(f"fit_statistics: image {number}", image)
        yield image


def _require_root(colours: Float[np.ndarray, "c c"], channels: int) -> None:
    if colours.shape != (channels, channels):
        raise AuditError(
            f"fit_statistics: colours must have shape ({channels}, {channels}) as the images have "
            f"{channels} channels, got {colours.shape}."
        )
    strengths = np.linalg.svd(colours, compute_uv=False)
    if not strengths[-1] > _FLAT * strengths[0]:
        raise AuditError(
            "fit_statistics: the channels do not vary independently: standard deviations along "
            f"their principal axes are {np.array2string(strengths, precision=4)} of the strongest. "
            "Grey images stored as colours? Keep one channel, or give colours=numpy.eye(c)."
        )


def _require_contrast(magnitude: Magnitude) -> None:
    contrast = magnitude.copy()
    contrast[0, 0] = 0
    if not (contrast.max(axis=(0, 1)) > 0).all():
        raise AuditError("fit_statistics: a channel has the same value in every pixel of an image.")


@functools.lru_cache(maxsize=8)
def resampled(statistics: ImageStatistics, shape: Shape) -> Magnitude:
    """The mean magnitude of the same photographs at another size, float32 (h, w // 2 + 1, c)."""
    rows, columns, _ = statistics.shape
    h, w, _ = shape
    k = np.fft.fftfreq(h, 1 / h)[:, None] * np.ones(w // 2 + 1)  # cycles per image
    m = np.ones((h, 1)) * np.arange(w // 2 + 1)
    reach = np.minimum(rows // 2 / np.maximum(np.abs(k), 1), columns // 2 / np.maximum(m, 1))
    inward = np.minimum(reach, 1)  # how far to go back along the ray; 1 where the bin exists
    row, column = np.rint(k * inward).astype(int), np.rint(m * inward).astype(int)
    scale = inward * np.sqrt(h * w / (rows * columns))
    return (statistics.magnitude[row % rows, column] * scale[:, :, None]).astype(np.float32)


def radial(statistics: ImageStatistics, shape: Shape) -> Float[np.ndarray, "h f 1"]:
    """The spectrum's fall with frequency alone, as a factor beside which 1 / f can stand.

    Root mean square over channels and over rings one cycle per image wide; the constant gets the
    first ring's. Scaled to the mean square of 1 / max(f, 1 / max(h, w)), f in cycles per pixel.
    """
    h, w, _ = shape
    longest = max(h, w)
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])
    ring = np.maximum(np.rint(frequency * longest).astype(int), 1)
    power = (resampled(statistics, shape).astype(np.float64) ** 2).mean(axis=2)
    inside = frequency > 0
    sums = np.bincount(ring[inside], power[inside])
    profile = np.sqrt(sums / np.maximum(np.bincount(ring[inside]), 1))[ring]
    profile = np.maximum(profile, _FAINT * profile.max())
    law = 1 / np.maximum(frequency, 1 / longest)
    profile *= np.sqrt((law**2).mean() / (profile**2).mean())
    return profile[:, :, None].astype(np.float32)


@functools.cache
def natural() -> ImageStatistics:
    """Of 1000 photographs, one of each ImageNet class, in lucid's colours, at 224 x 224 pixels.

    Measured by `experiments/spectrum`; photographs and their mirror images, so that the magnitude
    at (k, l) and (-k, l) is one number, stored as float16.
    """
    content = (importlib.resources.files("fvaudit.optvis") / "natural.npz").read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        half, n = stored["magnitude"].astype(np.float32), int(stored["n"])
    size = 2 * (len(half) - 1)
    rows = np.abs(np.fft.fftfreq(size, 1 / size)).astype(int)
    return ImageStatistics((size, size, 3), _colours.COLOURS, half[rows], n)
