"""Images from an .npz: plain arrays, checked before they are read."""

import math
import pathlib
import zipfile

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fvaudit.records import AuditError


MAX_MEMORY = 16 * 2**30  # of decoded pixels, in bytes


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz without pickle; declared sizes are checked before anything is read.

    Returns:
        `images` (n, h, w, 1 or 3), uint8 or float in [0, 1], and those of `labels`, `ids` and
        `group` that are there, (n,).

    Raises:
        AuditError: if the file is damaged, or arrays are of other shapes or ranges.
    """
    arrays = _arrays(path)
    _require_pictures(path, arrays["images"])
    n = len(arrays["images"])
    for name, array in arrays.items():
        if name != "images" and array.shape != (n,):
            raise AuditError(f"{path}: '{name}' has shape {array.shape}, expected ({n},).")
    return arrays


def picture(array: UInt8[np.ndarray, "h w c"] | Float[np.ndarray, "h w c"]) -> Image.Image:
    """One of `images` for Pillow, in colours."""
    eight_bit = array if array.dtype == np.uint8 else np.round(array * 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(eight_bit, (*array.shape[:2], 3)))


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _require_plausible(path, archive, member)
        with np.load(path, allow_pickle=False) as file:
            if "images" not in file.files:
                raise AuditError(f"{path} has no array 'images'; it has {', '.join(file.files)}.")
            wanted = ("images", "labels", "ids", "group")
            return {name: file[name] for name in wanted if name in file.files}
    except AuditError:
        raise
    except Exception as error:  # NumPy evaluates headers: on damage, nearly any error comes out
        raise AuditError(f"{path} is not a readable .npz of plain arrays ({error}).") from None


def _require_plausible(path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """An array's header must not promise more than its member holds: NumPy allocates by it."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        shape, _, dtype = read.get(version, np.lib.format.read_array_header_2_0)(file)
    size = math.prod(shape) * dtype.itemsize
    if size > min(member.file_size, MAX_MEMORY):
        raise AuditError(
            f"{path}: {member.filename} claims {size} bytes; the file holds {member.file_size}, "
            f"and at most {MAX_MEMORY} are read."
        )


def _require_pictures(path: pathlib.Path, images: np.ndarray) -> None:
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise AuditError(
            f"{path}: 'images' has shape {images.shape}, expected (n, h, w, 3), or (n, h, w, 1)."
        )
    if images.dtype == np.uint8:
        return
    inside = images.dtype.kind == "f" and images.size and images.min() >= 0 and images.max() <= 1
    if not inside:
        raise AuditError(
            f"{path}: 'images' must be uint8, or float in [0, 1]; got {images.dtype} in "
            f"[{images.min() if images.size else 0}, {images.max() if images.size else 0}]."
        )
