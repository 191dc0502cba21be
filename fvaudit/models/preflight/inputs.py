"""What goes in: the photographs' own pixels, and what the first layer gets of them."""

import numpy as np
from jaxtyping import Float

from fvaudit.models.model import Model
from fvaudit.models.preflight.responses import fed
from fvaudit.records import Finding, ImageSet, Severity


BROKEN = (  # photographs that say nothing of preprocessing, whatever the network makes of them
    "photographs are out of range",
    "photographs are black",
    "photographs have lost their colours",
)
DARK = 0.02  # greatest pixel of all photographs; 255 / 255 / 255 is 0.004
FLAT = 1 / 255  # greatest difference of colours that counts as gray


def findings(model: Model, images: ImageSet) -> list[Finding]:
    """Range, colours and size of the photographs, and of the network's input."""
    found = [_given(model, images.pixels), *_pixels(images.pixels)]
    if model.input.resize < min(model.input.size) and model.input.fit != "pad":
        found.append(_enlarged(model))
    return found


def _given(model: Model, pixels: Float[np.ndarray, "n h w c"]) -> Finding:
    spec = model.input
    means = fed(spec, pixels.mean((1, 2), keepdims=True)).mean((0, 1, 2))
    ends = fed(
        spec, np.array([pixels.min(), pixels.max()])[:, None, None, None] * np.ones(len(spec.mean))
    )
    rows, columns = spec.size
    return Finding(
        Severity.OK,
        "what the first layer gets",
        f"{rows} x {columns} pixels (fit {spec.fit!r}, side {spec.resize} before the cut), order "
        f"{spec.order}, numbers from {ends.min():.4g} to {ends.max():.4g}, on average "
        f"{', '.join(f'{v:.3g}' for v in means)} by channel",
        "",
    )


def _pixels(pixels: Float[np.ndarray, "n h w c"]) -> list[Finding]:
    n, low, high = len(pixels), float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # NaN too
        return [Finding(
            Severity.PROBLEM, BROKEN[0],
            f"pixels lie in [{low:.3g}, {high:.3g}], expected [0, 1]",
            "Divide 0..255 by 255 once, and leave mean and std to the model's input spec.",
        )]  # fmt: skip
    if high < DARK:
        return [Finding(
            Severity.PROBLEM, BROKEN[1],
            f"the brightest pixel of {n} photographs is {high:.2g} on a scale to 1",
            "Pixels seem to have been divided by 255 twice: give them as 0..1, divided once.",
        )]  # fmt: skip
    colours = np.ptp(pixels, axis=-1).max((1, 2))
    gray = int((colours <= FLAT).sum())
    if gray == n and pixels.shape[-1] == 3:
        return [Finding(
            Severity.PROBLEM, BROKEN[2],
            f"red, green and blue agree in every pixel of all {n} photographs",
            "Load them in colour (Pillow: .convert('RGB') of the original), or, if the network is "
            "meant for gray pictures, say so with preflight: report.",
        )]  # fmt: skip
    if gray > n / 2 and pixels.shape[-1] == 3:
        return [Finding(Severity.WARN, "most photographs are gray", f"{gray} of {n}",
                        "Add photographs in colour.")]  # fmt: skip
    return []


def _enlarged(model: Model) -> Finding:
    spec = model.input
    return Finding(
        Severity.WARN, "the resize rule is smaller than the input",
        f"the short side becomes {spec.resize} pixels, the network takes {spec.size}; photographs "
        "are enlarged to fit", f"Set resize to at least {min(spec.size)} in the input spec.",
    )  # fmt: skip
