"""One image file's bytes -> an RGB picture.

Orientation follows EXIF. Transparent pixels show white. CMYK goes through Pillow's conversion,
16-bit gray is divided by 65535 (Pillow alone would clip it), animations give their first frame.
The header is read before any pixel: pictures over `MAX_PIXELS` are refused undecoded.
"""

import io
import warnings

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError


MAX_PIXELS = 64 * 10**6  # 64 megapixels: above any photograph's, below what hurts
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")


class BadImage(Exception):
    """Why a file cannot be used; the text follows the file's name in reports."""


def decode(content: bytes) -> Image.Image:
    """Decodes a picture to mode RGB, upright.

    Raises:
        BadImage: if the bytes are no picture, a truncated one, or one that is too large.
    """
    if not content:
        raise BadImage("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is checked here, and of odd tags
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                _require_size(picture)
                return _to_rgb(ImageOps.exif_transpose(picture))
        except BadImage:
            raise
        except UnidentifiedImageError:  # whose own text names an address in memory
            raise BadImage(f"it is no picture; known kinds are {', '.join(FORMATS)}") from None
        except Image.DecompressionBombError:
            raise BadImage(f"more than {MAX_PIXELS // 10**6} megapixels") from None
        except Exception as error:  # decoders raise nearly anything on damaged data
            raise BadImage(f"cannot be decoded ({type(error).__name__}: {error})") from None


def values(picture: Image.Image, channels: int) -> Float[np.ndarray, "h w c"]:
    """An RGB picture's values in [0, 1]; for one channel gray by ITU-R 601, as in torchvision."""
    chosen = picture.convert("L") if channels == 1 else picture
    return np.atleast_3d(np.asarray(chosen, np.float32) / 255)


def _require_size(picture: Image.Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels are more than {MAX_PIXELS // 10**6} megapixels")
    if min(width, height) < 1:
        raise BadImage("it has no pixels")


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        return _from_deep_gray(picture)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return picture.convert("RGB")


def _from_deep_gray(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture, np.float64)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise BadImage(f"gray values of mode {picture.mode} have no known range")
    gray = np.round(values * (255 / 65535)).astype(np.uint8)
    return Image.fromarray(np.repeat(gray[:, :, None], 3, axis=2))
