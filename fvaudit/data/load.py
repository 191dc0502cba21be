"""`load_images`: a spec and a model -> natural images at the model's input size.

Photographs are resized as the model's input spec says, and their centre is cut out. Further crops
are random resized crops (a quarter to all of the area, aspect 3/4 to 4/3, mirrored half of the
time), drawn from a stream of the photograph's own: which other photographs are loaded does not
matter. Crops of one photograph share its `group`.
"""

import hashlib
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from fvaudit.data import npz
from fvaudit.data.decode import MAX_PIXELS, BadImage, decode, values
from fvaudit.data.naming import Classes, Names, indices, names_of, numbers_of
from fvaudit.data.samples import samples
from fvaudit.data.sources import Entry, folder_entries, zip_entries
from fvaudit.records import AuditError, ImageSet, require_kind


THREADS = 4  # Pillow releases the interpreter lock while it decodes and resizes


@runtime_checkable
class ForModel(Protocol):
    """What loading needs to know of a model: `input` (an `InputSpec`), `classes`."""

    @property
    def input(self) -> Any: ...
    @property
    def classes(self) -> Sequence[Classes]: ...


class _Cut(NamedTuple):
    mark: bytes  # of the whole picture: equal marks, equal pictures
    crops: list[np.ndarray]


class _Photograph(NamedTuple):
    name: str
    label: int  # -1: not known
    picture: Callable[[], Image.Image]  # raises BadImage


def load_images(
    spec: Any,
    model: ForModel,
    *,
    limit: int | None = None,
    crops: int = 1,
    on_bad: str = "skip",
    classes: Sequence[Classes | str] | None = None,
    labels: bool = True,
    seed: int = 0,
) -> ImageSet:
    """Loads natural images for a model.

    Args:
        spec: a folder of images, a folder with a folder per class, a zip of either, an `.npz`
            (`images` (n, h, w, 3), or (n, h, w, 1) for gray ones, uint8 or float in [0, 1];
            optionally `labels`, numbers or names of classes, -1 where none is known; `ids`; and
            `group`, numbers or text: images that stem from one photograph share it), or "samples".
        model: gives input size, resize rule, and class names for class folders.
        limit: at most this many photographs, spread evenly over classes and drawn by the seed.
        crops: images per photograph, the centre crop first.
        on_bad: "skip" files that cannot be used, and pictures that are there already pixel for
            pixel, and list them in `skipped`; or "refuse" to go on.
        classes: what class folders are called, if the model does not know: names in the order of
            the model's outputs, or what `fvaudit.models.classes.load_classes` reads.
        labels: whether folders name classes; if not, images are unlabelled, whatever the source
            says.
        seed: of `limit` and of random crops.

    Raises:
        AuditError: if the source does not exist, holds no usable image or one folder under two
            names, has labels that are no classes, would not fit in memory, or has bad images that
            are refused; or if the model takes neither colours nor gray.
    """
    require_kind("model", model, ForModel, "a Model, as load_model makes it")
    if (channels := len(model.input.mean)) not in (1, 3):
        raise AuditError(
            f"The model takes {channels} numbers a pixel; photographs have 3, or 1 if gray. Make "
            "an fvaudit.ImageSet of your own arrays and use the calls that take one."
        )
    if crops < 1 or (limit is not None and limit < 1):
        raise AuditError(f"crops and limit must be at least 1, got crops={crops}, limit={limit}.")
    if on_bad not in ("skip", "refuse"):
        raise AuditError(f"on_bad must be 'skip' or 'refuse', got {on_bad!r}.")
    names = _names(model) if classes is None else names_of(classes)
    found, group = _photographs(spec, names, labels)
    chosen = _limited(found, limit, seed)
    _require_memory(len(chosen), crops, model)
    with ThreadPoolExecutor(THREADS) as pool:
        cut = list(pool.map(lambda i: _cut(found[i], model.input, crops, seed), chosen))
    return _assembled(spec, found, group, chosen, cut, crops, on_bad)


def _names(model: ForModel) -> Names:
    return names_of(model.classes) if model.classes else numbers_of(model)


def _photographs(
    spec: Any, names: Names, labelled: bool
) -> tuple[list[_Photograph], Sequence[int | str]]:
    """All photographs that a spec names, sorted by name, and the group of each."""
    if isinstance(spec, str) and spec == "samples":
        found = [
            _Photograph(
                s.path.name,
                s.label if labelled else -1,
                lambda s=s: decode(s.path.read_bytes()),
            )
            for s in samples()
        ]
        return found, list(range(len(found)))
    require_kind("spec", spec, (str, os.PathLike), "a folder, a .zip, an .npz, or 'samples'")
    path = pathlib.Path(spec)
    if not path.exists():
        raise AuditError(
            f"There are no images at {path}. Expected a folder, a .zip, an .npz, or 'samples'."
        )
    if path.suffix.lower() == ".npz":
        return _from_npz(path, names, labelled)
    if path.is_dir():
        entries = folder_entries(path)
    elif zipfile.is_zipfile(path) or path.suffix.lower() == ".zip":
        entries = zip_entries(path)
    else:
        raise AuditError(f"{path} is neither a folder nor a .zip nor an .npz of images.")
    if not entries:
        raise AuditError(f"{path} holds no image files (.jpg, .png, .webp, ...).")
    labels = _labels(path, entries, names) if labelled else [-1] * len(entries)
    found = [
        _Photograph(e.name, label, lambda e=e: decode(e.read()))
        for e, label in zip(entries, labels, strict=True)
    ]
    return found, list(range(len(found)))


def _labels(path: pathlib.Path, entries: list[Entry], names: Names) -> list[int]:
    folders = sorted({e.folder for e in entries})
    if folders == [""]:
        return [-1] * len(entries)
    if "" in folders:
        loose = next(e.name for e in entries if not e.folder)
        raise AuditError(
            f"{path} holds images beside class folders ({loose}, {folders[1]}/). Move the images "
            "into folders, or say that folders are no classes (images.labels: false)."
        )
    known = dict(zip(folders, indices(folders, names, f"{path}: class folders"), strict=True))
    return [known[e.folder] for e in entries]


def _from_npz(
    path: pathlib.Path, names: Names, labelled: bool
) -> tuple[list[_Photograph], Sequence[int | str]]:
    arrays = npz.read(path)
    images, n = arrays["images"], len(arrays["images"])
    labels, group = arrays.get("labels"), arrays.get("group", np.arange(n))
    ids = arrays.get("ids", np.array([f"{i:06d}" for i in range(n)]))
    if group.dtype.kind not in "iuU":
        raise AuditError(f"{path}: 'group' must be whole numbers or text, got {group.dtype}.")
    known = [-1] * n if labels is None or not labelled else _npz_labels(path, labels, names)
    found = [
        _Photograph(str(name), label, lambda image=image: npz.picture(image))
        for name, label, image in zip(ids, known, images, strict=True)
    ]
    return found, group.tolist()


def _npz_labels(path: pathlib.Path, labels: np.ndarray, names: Names) -> list[int]:
    """Indices of classes, -1 where none is known; they may be given by name, as folders are."""
    if labels.dtype.kind == "U":
        return indices(labels.tolist(), names, f"{path}: labels")
    if labels.dtype.kind not in "iu":
        raise AuditError(
            f"{path}: 'labels' must be whole numbers, or names of classes, got {labels.dtype}."
        )
    known = {*names.exact.values()}
    outside = sorted({*labels.tolist()} - {-1, *known})
    if known and outside:
        raise AuditError(
            f"{path}: 'labels' hold {outside[0]}, and the model's classes are numbered "
            f"{min(known)} to {max(known)}, from 0; -1 says that none is known."
        )
    return labels.tolist()


def _limited(found: list[_Photograph], limit: int | None, seed: int) -> list[int]:
    """Which photographs to use: classes take turns, each in an order drawn by the seed."""
    if limit is None or limit >= len(found):
        return list(range(len(found)))
    rng = np.random.default_rng(seed)
    turns: dict[int, list[int]] = {}
    for i in rng.permutation(len(found)):
        turns.setdefault(found[i].label, []).append(int(i))
    queue = [(turn, label, i) for label, mine in turns.items() for turn, i in enumerate(mine)]
    return sorted(i for _, _, i in sorted(queue)[:limit])


def _require_memory(photographs: int, crops: int, model: ForModel) -> None:
    height, width = model.input.size
    needed = photographs * crops * height * width * len(model.input.mean) * 4
    if needed > npz.MAX_MEMORY:
        fit = npz.MAX_MEMORY * photographs // needed
        remedy = f"set limit to {fit} or fewer" if fit else "ask for fewer crops or a smaller input"
        raise AuditError(
            f"{photographs} photographs of {height} x {width} pixels with {crops} crops need "
            f"{needed / 2**30:.0f} GiB of memory; {remedy}."
        )


def _cut(photograph: _Photograph, spec: Any, crops: int, seed: int) -> _Cut | str:
    """The crops of one photograph, or the reason why there are none."""
    try:
        picture = photograph.picture()
        cut = [centre_crop(picture, spec)]
    except BadImage as reason:
        return str(reason)
    mark = hashlib.sha256(b"%dx%d" % picture.size + picture.tobytes()).digest()
    stream = hashlib.sha256(photograph.name.encode()).digest()[:8]
    rng = np.random.default_rng([seed, int.from_bytes(stream, "little")])
    cut += [_random_crop(picture, spec, rng) for _ in range(crops - 1)]
    return _Cut(mark, [values(c, len(spec.mean)) for c in cut])


def centre_crop(picture: Image.Image, spec: Any) -> Image.Image:
    """The picture at `spec.resize` and the centre of that at `spec.size`; a fit is left alone.

    With `spec.fit` "crop" and "squash" pixels equal those of torchvision's `Resize` and
    `CenterCrop` on a Pillow image, save that a picture too small for `size` is enlarged, not
    framed; with "pad" those of timm's crop mode "border".

    Raises:
        BadImage: for a picture so long and thin that it would grow past `MAX_PIXELS`.
    """
    height, width = spec.size
    if picture.size == (width, height):
        return picture
    resized = picture.resize(_within_limits(picture, _resized(picture, spec)), _filter(spec))
    left, top = _offset(resized.width, width), _offset(resized.height, height)
    if spec.fit != "pad":
        return resized.crop((left, top, left + width, top + height))
    ground = spec.mean if len(spec.mean) == 3 else spec.mean * 3
    framed = Image.new("RGB", (width, height), tuple(round(255 * v) for v in ground))
    framed.paste(resized, (-left, -top))
    return framed


def _resized(picture: Image.Image, spec: Any) -> tuple[int, int]:
    """(columns, rows) before the centre is cut out."""
    if spec.fit == "squash":
        return tuple(spec.resize * side // min(spec.size) for side in reversed(spec.size))
    if spec.fit == "pad":
        longest = max(picture.size)
        columns, rows = (round(side * spec.resize / longest) for side in picture.size)
        return max(1, columns), max(1, rows)
    size = tuple(spec.resize * side // min(picture.size) for side in picture.size)
    height, width = spec.size
    if size[0] >= width and size[1] >= height:
        return size
    scale = max(width / picture.width, height / picture.height)
    return max(width, round(picture.width * scale)), max(height, round(picture.height * scale))


def _within_limits(picture: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    if math.prod(size) > MAX_PIXELS:
        raise BadImage(
            f"{picture.width} x {picture.height} pixels would be resized to {size[0]} x {size[1]}, "
            f"more than {MAX_PIXELS // 10**6} megapixels"
        )
    return size


def _offset(have: int, want: int) -> int:
    """Where the cut begins; negative where the picture is smaller."""
    return round((have - want) / 2) if have >= want else -((want - have) // 2)


def _random_crop(picture: Image.Image, spec: Any, rng: np.random.Generator) -> Image.Image:
    height, width = spec.size
    area = rng.uniform(0.25, 1) * picture.width * picture.height
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w = min(picture.width, math.sqrt(area * aspect))
    h = min(picture.height, math.sqrt(area / aspect))
    left, top = rng.uniform(0, picture.width - w), rng.uniform(0, picture.height - h)
    crop = picture.resize((width, height), _filter(spec), box=(left, top, left + w, top + h))
    mirror = rng.random() < 0.5
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else crop


def _filter(spec: Any) -> Image.Resampling:
    return Image.Resampling[spec.interpolation.upper()]


def _without_repeats(names: Sequence[str], cut: Sequence[_Cut | str]) -> list[_Cut | str]:
    """Of equal pictures the first; two would count as two photographs, and are one."""
    first: dict[bytes, str] = {}
    kept: list[_Cut | str] = []
    for name, one in zip(names, cut, strict=True):
        known = name if isinstance(one, str) else first.setdefault(one.mark, name)
        kept.append(one if known == name else f"it is the same picture as {known}")
    return kept


def _assembled(spec, found, group, chosen, cut, crops, on_bad) -> ImageSet:
    cut = _without_repeats([found[i].name for i in chosen], cut)
    bad = tuple((found[i].name, c) for i, c in zip(chosen, cut, strict=True) if isinstance(c, str))
    if bad and on_bad == "refuse":
        listed = "; ".join(f"{name}: {reason}" for name, reason in bad[:5])
        raise AuditError(
            f"{len(bad)} images of {spec} cannot be used: {listed}. Remove or repair them, or set "
            "images.on_bad to skip."
        )
    good = [(i, c) for i, c in zip(chosen, cut, strict=True) if isinstance(c, _Cut)]
    if not good:
        raise AuditError(f"None of the {len(chosen)} images of {spec} can be used: {bad[:3]}.")
    labels = np.array([found[i].label for i, _ in good for _ in range(crops)])
    _, groups = np.unique([group[i] for i, _ in good for _ in range(crops)], return_inverse=True)
    names = [f"{found[i].name}#{k}" if k else found[i].name for i, _ in good for k in range(crops)]
    return ImageSet(
        pixels=np.stack([c for _, mine in good for c in mine.crops]),
        ids=tuple(names),
        labels=labels if (labels >= 0).any() else None,
        group=groups,
        skipped=bad,
        source=str(spec),
    )
