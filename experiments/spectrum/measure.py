"""Measures `fvaudit/optvis/natural.npz`, the magnitude spectrum that `maco` holds images to.

Claim: in lucid's decorrelated colours the mean magnitude of photographs falls as about 1 / f, and
each of the three channels has about the same contrast. Expected (1000 ImageNet photographs, one a
class, their central squares at 224 pixels): 1 / f^1.23, 1 / f^1.20, 1 / f^1.07 and standard
deviations of z 2.05, 1.75, 1.88; their own colour root is lucid's within 0.02, but for the third
column's sign, which is free. Takes a minute. Of the photographs nothing but sums is kept.

    python experiments/spectrum/measure.py FOLDER_OF_PHOTOGRAPHS
"""

import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

import fvaudit
from fvaudit.data.decode import decode
from fvaudit.optvis.colours import COLOURS
from fvaudit.optvis.natural import ImageStatistics, fit_statistics


SIZE = 224
GOAL = pathlib.Path(fvaudit.__file__).parent / "optvis" / "natural.npz"


class Photographs(Sequence):
    """A folder's photographs as centre-cropped squares in [0, 1], decoded when asked for."""

    def __init__(self, folder: pathlib.Path):
        self.paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number):  # pyright: ignore[reportIncompatibleMethodOverride]
        picture = decode(self.paths[number].read_bytes())
        short = min(picture.size)
        left, top = ((length - short) // 2 for length in picture.size)
        square = picture.crop((left, top, left + short, top + short))
        resized = square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return np.asarray(resized, np.float32) / 255


def main(folder: pathlib.Path) -> None:
    photographs = Photographs(folder)
    statistics = fit_statistics(photographs, colours=COLOURS)
    full = statistics.magnitude
    opposite = full[-np.arange(SIZE) % SIZE]
    half = ((full + opposite) / 2)[: SIZE // 2 + 1]  # photographs and their mirror images
    np.savez_compressed(GOAL, magnitude=half.astype(np.float16), n=len(photographs))
    print(f"{GOAL.name}: {GOAL.stat().st_size / 1024:.0f} KB from {len(photographs)} photographs")
    print(summary(statistics))
    print("their own colour root (lucid's columns, up to noise and sign):")
    print(fit_statistics(photographs).colours.round(3))


def summary(statistics: ImageStatistics) -> str:
    """Exponent and contrast of each channel: what the picture looks like in three lines."""
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
    band = (frequency >= 2 / SIZE) & (frequency <= 0.25)
    lines = []
    for channel in range(3):
        magnitude = statistics.magnitude[:, :, channel]
        slope = np.polyfit(np.log(frequency[band]), np.log(magnitude[band]), 1)[0]
        weight = np.where((np.arange(SIZE // 2 + 1) % (SIZE // 2)) == 0, 1, 2)
        energy = (weight * magnitude**2).sum() - magnitude[0, 0] ** 2
        lines.append(f"channel {channel}: 1 / f^{-slope:.2f}, sd of z {energy**0.5 / SIZE:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
