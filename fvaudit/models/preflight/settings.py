"""The usual mistakes of preprocessing, as settings to try in place of the one in use.

Each is a picture that makes the network see what the other setting would have made of the same
photograph. Which convention a network was trained with stands in no weight file; these are the ones
that model zoos use:

    0..1, 0..255, -1..1     TensorFlow, Keras "tf" mode, EfficientNet-Lite's (x - 127) / 128
    ImageNet mean and std   torchvision, timm, Keras "torch" mode
    CLIP mean and std       OpenAI's CLIP and its descendants
    0..255 less a mean      Caffe and Keras "caffe" mode (BGR)
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

from fvaudit.models.model import FITS, InputSpec
from fvaudit.models.preflight.responses import fed, inverse


Pixels = Float[np.ndarray, "n h w c"]
LESS_MEAN = "0..255 less the mean (123, 117, 104)"
CONVENTIONS = {  # mean and std of pixels in 0..1
    "0..1 as they are": ((0.0,) * 3, (1.0,) * 3),
    "0..255": ((0.0,) * 3, (1 / 255,) * 3),
    "-1..1": ((0.5,) * 3, (0.5,) * 3),
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP's mean and std": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
    LESS_MEAN: ((123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3),
}
RARER = ("0..255", "CLIP's mean and std")
COMMON = tuple(name for name in CONVENTIONS if name not in RARER)
SIZES = (128, 160, 192, 224, 256, 299, 384)  # that networks of the zoos take
NEAR = 0.02  # settings that differ by less than this share are one


@dataclasses.dataclass(frozen=True)
class Setting:
    """Another way to prepare the same photographs."""

    name: str  # what is tried
    mistake: str  # what is wrong now, if this one is right
    fix: str
    pixels: Callable[[Pixels], Pixels] | None = None  # from pixels as they are prepared now, or:
    spec: InputSpec | None = None  # load the photographs again with this one


def settings(spec: InputSpec, *, reloads: bool, thorough: bool) -> list[Setting]:
    """What to try in place of `spec`, the commonest mistakes first.

    Args:
        spec: the setting in use.
        reloads: whether photographs can be loaded again with another resize rule or size.
        thorough: whether rarer mistakes are tried too, and all that needs photographs again.
    """
    if len(spec.mean) != 3:  # no colours to be exchanged, no conventions to be taken for another
        plain = [*_ranges(spec), *_exchanged(spec), *_layouts(spec)]
        return [*plain, *(_fits(spec) if reloads and thorough else ())]
    common = [*_orders(spec), *_ranges(spec), *_conventions(spec, COMMON), *_exchanged(spec)]
    if not thorough:
        return common
    rarer = [*_conventions(spec, RARER), *_caffe(spec), *_layouts(spec)]
    return [*common, *rarer, *(_fits(spec) if reloads else ()), *(_sizes(spec) if reloads else ())]


def described(spec: InputSpec) -> str:
    """The normalisation in words, or in numbers where it is no convention."""
    known = (name for name, c in CONVENTIONS.items() if _near(spec, *c))
    numbers = f"mean {_numbers(spec.mean)} and std {_numbers(spec.std)}"
    return next(known, numbers)


def _orders(spec: InputSpec) -> Iterator[Setting]:
    other = "BGR" if spec.order == "RGB" else "RGB"

    def swapped(pixels):
        return inverse(spec, fed(spec, pixels)[..., ::-1])

    yield Setting(
        f"colours in order {other}",
        f"the colours are in the wrong order: the first layer gets {spec.order} and wants {other}",
        f"Set order={other!r} in the input spec (and leave mean and std as RGB).",
        swapped,
    )


def _ranges(spec: InputSpec) -> Iterator[Setting]:
    for factor, what, why in (
        (255.0, "numbers 255 times as large", "the range is 255 times too small: the first layer "
         "gets 0..1 where it wants 0..255"),
        (1 / 255, "numbers 255 times as small", "the range is 255 times too large: the first layer "
         "gets 0..255 where it wants 0..1"),
    ):  # fmt: skip

        def scaled(pixels, factor=factor):
            return inverse(spec, fed(spec, pixels) * np.float32(factor))

        std = tuple(s / factor for s in spec.std)
        yield Setting(what, why, f"Set std={_numbers(std)} in the input spec.", scaled)


def _conventions(spec: InputSpec, names: tuple[str, ...]) -> Iterator[Setting]:
    now = described(spec)
    for name in names:
        mean, std = CONVENTIONS[name]
        if _near(spec, mean, std):
            continue
        other = dataclasses.replace(spec, mean=mean, std=std)

        def normalised(pixels, other=other):
            return inverse(spec, fed(other, pixels))

        fix = f"Set mean={_numbers(mean)} and std={_numbers(std)} in the input spec."
        yield Setting(f"pixels as {name}", _wrong(now, name), fix, normalised)


def _caffe(spec: InputSpec) -> Iterator[Setting]:
    mean, std = CONVENTIONS[LESS_MEAN]
    if spec.order == "BGR" and _near(spec, mean, std):
        return
    other = dataclasses.replace(spec, mean=mean, std=std, order="BGR")
    yield Setting(
        "Caffe's: BGR, 0..255 less the mean",
        "the network wants Caffe's preprocessing, the input spec says "
        f"{described(spec)}, {spec.order}",
        f"Set mean={_numbers(mean)}, std={_numbers(std)} and order='BGR' in the input spec.",
        lambda pixels: inverse(spec, fed(other, pixels)),
    )


def _wrong(now: str, wanted: str) -> str:
    if wanted == "0..1 as they are":
        return (f"mean and std are applied twice, or should not be applied: the network wants 0..1 "
                f"and normalises itself, the input spec says {now}")  # fmt: skip
    if now == "0..1 as they are":
        return f"the normalisation is missing: the network gets {now} and wants {wanted}"
    return f"mean and std are another network's: the input spec says {now}, it wants {wanted}"


def _exchanged(spec: InputSpec) -> Iterator[Setting]:
    if spec.size[0] == spec.size[1]:
        yield Setting(
            "rows and columns exchanged",
            "rows and columns of the photographs are exchanged (the layout is columns, rows)",
            "Transpose axes 1 and 2 of the images.",
            lambda x: x.swapaxes(1, 2),
        )


def _layouts(spec: InputSpec) -> Iterator[Setting]:
    rows, columns = spec.size
    channels = len(spec.mean)
    yield Setting("upside down", "the photographs stand on their heads", "Reverse their rows.",
                  lambda x: x[:, ::-1])  # fmt: skip
    yield Setting("negative", "black and white are exchanged", "Take 1 minus the images.",
                  lambda x: 1 - x)  # fmt: skip
    if channels == 1:  # one plane is the same either way
        return
    yield Setting(
        "planes read as pixels",
        "the layout is wrong: channel planes (n, c, h, w) were reshaped to (n, h, w, c)",
        "Transpose the axes, (0, 2, 3, 1), where the images are reshaped.",
        lambda x: x.reshape(len(x), channels, rows, columns).transpose(0, 2, 3, 1),
    )
    yield Setting(
        "pixels read as planes",
        "the layout is wrong: pixels (n, h, w, c) were reshaped to planes (n, c, h, w)",
        "Leave the axes of the images as they are: (n, h, w, c).",
        lambda x: x.transpose(0, 3, 1, 2).reshape(len(x), rows, columns, channels),
    )


def _fits(spec: InputSpec) -> Iterator[Setting]:
    side = min(spec.size)
    for resize in (side, round(side / 0.875)):
        if spec.fit == "crop" and abs(resize - spec.resize) > NEAR * resize:
            other = dataclasses.replace(spec, resize=resize)
            kept = f"{min(side / spec.resize, 1):.0%} of the short side"
            mistake = (
                f"the cut is wrong: only {kept} is kept, the network wants {side / resize:.0%}"
            )
            fix = f"Set resize={resize} in the input spec."
            yield Setting(f"short side {resize} before the cut", mistake, fix, spec=other)
    words = {"crop": "the centre cut out", "pad": "padded whole", "squash": "squashed whole"}
    for fit in FITS:
        if fit != spec.fit and spec.size[0] == spec.size[1]:
            resize = round(side / 0.875) if fit == "crop" else side
            other = dataclasses.replace(spec, fit=fit, resize=resize)
            mistake = f"photographs are {words[spec.fit]}, the network wants them {words[fit]}"
            fix = f"Set fit={fit!r} and resize={resize} in the input spec."
            yield Setting(f"photographs {words[fit]}", mistake, fix, spec=other)


def _sizes(spec: InputSpec) -> Iterator[Setting]:
    for side in SIZES:
        if (side, side) != spec.size:
            resize = round(side * spec.resize / min(spec.size))
            other = dataclasses.replace(spec, size=(side, side), resize=resize)
            mistake = (
                f"the size is wrong: the input spec says {spec.size}, the network wants {side}"
            )
            fix = f"Set size=({side}, {side}) and resize={resize} in the input spec."
            yield Setting(f"{side} x {side} pixels", mistake, fix, spec=other)


def _near(spec: InputSpec, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Whether black and white become nearly what `spec` makes of them."""
    ends = np.array([0.0, 1.0])[:, None]
    one = (ends - spec.mean) / spec.std
    other = (ends - np.array(mean)) / std
    return bool(np.abs(one - other).max() <= NEAR * np.abs(one).max())


def _numbers(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{v:.4g}' for v in values)})"
