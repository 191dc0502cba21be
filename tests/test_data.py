"""Natural images: every kind of source and file, against Pillow and NumPy directly."""

import dataclasses
import io
import os
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from fvaudit.data import decode, load_images, npz, sources
from fvaudit.data.samples import samples
from fvaudit.models.classes import ImageClass
from fvaudit.models.model import InputSpec
from fvaudit.records import AuditError


@dataclasses.dataclass(frozen=True)
class Wants:
    """The part of a model that loading reads."""

    input: InputSpec = InputSpec((16, 16), (0.0,) * 3, (1.0,) * 3, resize=16)
    classes: tuple[ImageClass, ...] = (
        ImageClass(0, "n01440764", "tench"),
        ImageClass(1, "n01443537", "goldfish"),
        ImageClass(2, "n02105162", "German shepherd"),
    )


MODEL = Wants()
RNG = np.random.default_rng(0)
PAIR = np.zeros((2, 4, 4, 3))


def picture(seed=0.0, size=(20, 16)):
    """A smooth colour picture (h, w) without symmetry."""
    h, w = size
    y, x = np.mgrid[0:h, 0:w] / max(size)
    return (255 * np.stack([y, x, (y + 2 * x + seed / 7) % 1], -1)).astype(np.uint8)


def save(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if array is None else array).save(path, **options)
    return path


def only(path, **settings):
    found = load_images(path, MODEL, **settings)
    assert len(found.ids) == 1
    return found.pixels[0]


def labels_of(found):
    assert found.labels is not None
    return found.labels


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        save(tmp_path / "photos" / f"{i}.png", picture(i))
    return tmp_path / "photos"


@pytest.fixture
def classes(tmp_path):
    for c, (name, n) in enumerate((("n01440764", 5), ("n01443537", 3), ("n02105162", 4))):
        for i in range(n):
            save(tmp_path / "set" / name / f"{i}.png", picture(i + c / 3))
    return tmp_path / "set"


def test_folder_of_images(folder):
    found = load_images(folder, MODEL)
    assert found.ids == tuple(f"{i}.png" for i in range(6)) and found.labels is None
    assert found.pixels.shape == (6, 16, 16, 3) and found.pixels.dtype == np.float32
    np.testing.assert_array_equal(found.pixels[1], picture(1)[2:18] / np.float32(255))
    assert found.photographs == 6 and found.skipped == ()


def test_resize_is_pillows_then_the_centre(tmp_path):
    array = RNG.integers(0, 256, (70, 40, 3), np.uint8)
    save(tmp_path / "a.png", array)
    spec = InputSpec((16, 16), (0.0,) * 3, (1.0,) * 3, resize=20)
    found = load_images(tmp_path, Wants(spec)).pixels[0]
    resized = Image.fromarray(array).resize((20, 35), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((2, 10, 18, 26)), np.float32) / 255
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """A file stored turned comes out upright: np.rot90 and flips undo each of the eight cases."""
    upright = picture(size=(16, 16))
    store = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, 3),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a.png", np.ascontiguousarray(store(upright)), exif=exif)
    np.testing.assert_allclose(only(tmp_path), upright / 255, atol=1e-6)


def test_gray_alpha_palette_and_cmyk(tmp_path):
    gray = RNG.integers(0, 256, (16, 16), np.uint8)
    save(tmp_path / "g" / "a.png", gray)
    np.testing.assert_allclose(only(tmp_path / "g"), np.repeat(gray[..., None], 3, -1) / 255)

    rgba = np.dstack([picture(size=(16, 16)), np.full((16, 16), 64, np.uint8)])
    save(tmp_path / "a" / "a.png", rgba)
    over_white = rgba[..., :3] / 255 * (64 / 255) + (1 - 64 / 255)
    np.testing.assert_allclose(only(tmp_path / "a"), over_white, atol=1.5 / 255)

    (tmp_path / "p").mkdir()
    palette = Image.fromarray(gray).convert("P")
    palette.save(tmp_path / "p" / "a.png", transparency=int(gray[0, 0]))
    assert only(tmp_path / "p")[0, 0].tolist() == [1, 1, 1]

    (tmp_path / "c").mkdir()
    colour = Image.fromarray(picture(size=(16, 16)))
    colour.convert("CMYK").save(tmp_path / "c" / "a.jpg", quality=100)
    np.testing.assert_allclose(only(tmp_path / "c"), picture(size=(16, 16)) / 255, atol=0.06)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    save(tmp_path / "a.png", ramp)
    np.testing.assert_allclose(only(tmp_path)[..., 0], ramp / 65535, atol=0.5 / 255 + 1e-6)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (16, 16), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(only(tmp_path)[3, 3], [1, 0, 0], atol=0.02)


BAD = {
    "truncated.jpg": lambda good: good[: len(good) // 2],
    "text.png": lambda good: b"this is not a picture",
    "empty.png": lambda good: b"",
    "damaged.png": lambda good: good[:40] + b"\x00" * 20 + good[60:],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_skipped_by_name_or_refused(folder, name):
    buffer = io.BytesIO()
    kind = "JPEG" if name.endswith("jpg") else "PNG"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, kind)
    (folder / name).write_bytes(BAD[name](buffer.getvalue()))
    found = load_images(folder, MODEL)
    assert len(found.ids) == 6 and [bad for bad, _ in found.skipped] == [name]
    assert " at 0x" not in found.skipped[0][1]  # an address in memory: equal runs would differ
    with pytest.raises(AuditError, match=f"1 images of .* cannot be used: {name}"):
        load_images(folder, MODEL, on_bad="refuse")


def test_a_picture_that_is_there_twice_counts_once(folder):
    Image.open(folder / "3.png").save(folder / "copy.webp", lossless=True)  # another file
    turned = picture(3).transpose(1, 0, 2).copy()  # equal bytes in another shape are another one
    save(folder / "flat.png", np.zeros((20, 16, 3), np.uint8))
    save(folder / "flat-turned.png", np.zeros_like(turned))
    found = load_images(folder, MODEL, crops=2)
    assert found.skipped == (("copy.webp", "it is the same picture as 3.png"),)
    assert found.photographs == 8 and len(found.ids) == 16
    with pytest.raises(AuditError, match="cannot be used: copy.webp: it is the same picture as 3"):
        load_images(folder, MODEL, on_bad="refuse")


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_names_that_are_no_utf_8_are_written_out(tmp_path):
    save(tmp_path / os.fsdecode(b"caf\xe9.png"))
    assert load_images(tmp_path, MODEL, crops=2).ids == ("caf\\xe9.png", "caf\\xe9.png#1")


def test_decompression_bombs_are_refused_undecoded(folder, monkeypatch):
    Image.new("1", (9000, 9000)).save(folder / "bomb.png")  # 81 megapixels in a few kilobytes
    found = load_images(folder, MODEL)
    assert found.skipped == (("bomb.png", "9000 x 9000 pixels are more than 64 megapixels"),)


def test_large_and_squeezed_members_of_a_zip_are_refused(folder, monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "0.png", "0.png")
        archive.writestr("zeros.png", b"\0" * 10**6)
    found = load_images(tmp_path / "a.zip", MODEL)
    assert "compressed more than any photograph" in found.skipped[0][1]
    monkeypatch.setattr(sources, "MAX_BYTES", 10)
    with pytest.raises(AuditError, match="bytes are more than 10"):
        load_images(tmp_path / "a.zip", MODEL)
    with pytest.raises(AuditError, match="bytes are more than 10"):
        load_images(folder, MODEL)


def _zipped(root, target, prefix=""):
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, prefix + str(path.relative_to(root)))
        archive.writestr("__MACOSX/._0.png", b"junk")
    return target


@pytest.mark.parametrize("prefix", ["", "wrapped/"])
def test_a_zip_equals_its_folder(classes, folder, tmp_path, prefix):
    for root in (classes, folder):
        want = load_images(root, MODEL, crops=2)
        got = load_images(_zipped(root, tmp_path / "a.zip", prefix), MODEL, crops=2)
        assert got.pixels.tobytes() == want.pixels.tobytes() and got.ids == want.ids
        np.testing.assert_array_equal(got.labels, want.labels)


def test_class_folders_by_id_name_and_number(tmp_path):
    for i, name in enumerate(("n01440764", "German_Shepherd", "1")):
        save(tmp_path / name / "a.png", picture(i))
    found = load_images(tmp_path, MODEL)
    assert dict(zip(found.ids, labels_of(found).tolist(), strict=True)) == {
        "n01440764/a.png": 0, "German_Shepherd/a.png": 2, "1/a.png": 1,
    }  # fmt: skip


def test_classes_may_be_names_in_order(classes):
    found = load_images(classes, MODEL, classes=["n02105162", "n01440764", "N01443537"])
    assert np.bincount(labels_of(found)).tolist() == [4, 5, 3]


def test_limit_is_balanced_and_drawn_by_the_seed(classes):
    found = load_images(classes, MODEL, limit=7)
    assert np.bincount(labels_of(found)).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])
    assert load_images(classes, MODEL, limit=7).ids == found.ids
    assert {load_images(classes, MODEL, limit=3, seed=s).ids for s in range(8)} != {found.ids}
    assert list(found.ids) == sorted(found.ids)


def test_crops_belong_to_their_photograph_and_to_no_other(folder):
    found = load_images(folder, MODEL, crops=3, seed=5)
    assert found.ids[:4] == ("0.png", "0.png#1", "0.png#2", "1.png")
    assert found.group.tolist() == [i for i in range(6) for _ in range(3)]
    assert found.photographs == 6 and len(found.ids) == 18
    (folder / "0.png").unlink()
    fewer = load_images(folder, MODEL, crops=3, seed=5)
    assert fewer.pixels.tobytes() == found.pixels[3:].tobytes()
    other = load_images(folder, MODEL, crops=3, seed=6)
    assert np.array_equal(other.pixels[0], fewer.pixels[0])
    assert not np.array_equal(other.pixels[1], fewer.pixels[1])


def test_class_folders_may_be_links(tmp_path, folder):
    """As with datasets that are too large to copy; pathlib's own walk leaves them out silently."""
    (tmp_path / "set").mkdir()
    save(tmp_path / "set" / "tench" / "own.png", picture(0.5))
    (tmp_path / "set" / "goldfish").symlink_to(folder)
    (tmp_path / "set" / "goldfish" / "round").symlink_to(tmp_path / "set")
    found = load_images(tmp_path / "set", MODEL)
    assert found.ids[0] == "goldfish/0.png" and found.ids[-1] == "tench/own.png"
    assert labels_of(found).tolist() == [1] * 6 + [0]
    (tmp_path / "set" / "German shepherd").symlink_to(folder)
    with pytest.raises(AuditError, match="are one folder, by a link: .* Remove one of the two"):
        load_images(tmp_path / "set", MODEL)


def test_what_is_no_file_is_left_out_and_named(tmp_path, folder):
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = load_images(folder, MODEL)
    assert len(found.ids) == 6
    assert found.skipped == (
        ("gone.png", "cannot be read (No such file or directory)"),
        ("pipe.png", "it is no ordinary file"),
    )


def test_npz(tmp_path):
    images = RNG.integers(0, 256, (4, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=[0, 1, 2, 0], group=[7, 7, 8, 9])
    found = load_images(tmp_path / "a.npz", MODEL)
    np.testing.assert_array_equal(found.pixels, images / np.float32(255))
    assert found.group.tolist() == [0, 0, 1, 2] and labels_of(found).tolist() == [0, 1, 2, 0]
    np.savez(tmp_path / "b.npz", images=(images / 255).astype(np.float32))
    np.testing.assert_array_equal(load_images(tmp_path / "b.npz", MODEL).pixels, found.pixels)


def test_an_npz_may_name_classes_and_groups(tmp_path):
    images = RNG.integers(0, 256, (4, 16, 16, 3), np.uint8)
    path, who = tmp_path / "a.npz", ["b", "a", "b", "c"]
    names = [MODEL.classes[2].name, "0", MODEL.classes[1].wnid, MODEL.classes[0].name.upper()]
    np.savez(path, images=images, labels=names, group=who)
    found = load_images(path, MODEL)
    assert labels_of(found).tolist() == [2, 0, 1, 0]
    assert found.group.tolist() == [1, 0, 1, 2] and found.photographs == 3


def test_without_labels_means_from_any_source(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=RNG.integers(0, 256, (2, 16, 16, 3), np.uint8), labels=["no", "class"])
    for source in (path, "samples"):
        assert load_images(source, MODEL, labels=False, limit=2).labels is None
    assert load_images("samples", MODEL, limit=2).labels is not None


def _npz(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"pictures": np.zeros(3)}, "has no array 'images'; it has pictures"),
        ({"images": np.zeros((2, 4, 4))}, r"shape \(2, 4, 4\), expected \(n, h, w, 3\)"),
        ({"images": np.full((1, 4, 4, 3), 2.0)}, r"must be uint8, or float in \[0, 1\]"),
        ({"images": np.full((1, 4, 4, 3), np.nan)}, r"must be uint8, or float in \[0, 1\]"),
        ({"images": np.zeros((1, 4, 4, 3), np.int32)}, "got int32"),
        ({"images": np.zeros((2, 4, 4, 3)), "labels": [1]}, r"'labels' has shape \(1,\)"),
        ({"images": np.array([{}], object)}, "is not a readable .npz of plain arrays"),
        ({"images": PAIR, "labels": [0.0, 1.0]}, "whole numbers, or names of classes, got float64"),
        ({"images": PAIR, "labels": [0, 3]}, "'labels' hold 3, .* numbered 0 to 2, from 0; -1"),
        ({"images": PAIR, "labels": [-2, 0]}, "'labels' hold -2, "),
        ({"images": PAIR, "labels": ["tench", "goldfsh"]}, "labels goldfsh name .*'goldfish'"),
        ({"images": PAIR, "group": [0.5, 1.0]}, "'group' must be whole numbers or text"),
    ],
)
def test_npz_messages(tmp_path, arrays, message):
    with pytest.raises(AuditError, match=message):
        load_images(_npz(tmp_path / "a.npz", **arrays), MODEL)


def test_an_npz_that_promises_more_than_it_holds(tmp_path):
    header = io.BytesIO()
    shape = (10**6, 224, 224, 3)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + b"0" * 100)
    with pytest.raises(AuditError, match="images.npy claims 150528000000 bytes"):
        load_images(tmp_path / "a.npz", MODEL)


def test_damaged_npz_and_zip(tmp_path, folder):
    whole = _npz(tmp_path / "a.npz", images=np.zeros((2, 16, 16, 3), np.uint8)).read_bytes()
    for name in ("a.npz", "b.zip"):
        (tmp_path / name).write_bytes(whole[:60])
        with pytest.raises(AuditError, match="is not a readable"):
            load_images(tmp_path / name, MODEL)
    for header in (b"(" * 50, b"{'descr': '''"):  # NumPy evaluates it
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
            archive.writestr("images.npy", content)
        with pytest.raises(AuditError, match="is not a readable .npz of plain arrays"):
            load_images(tmp_path / "c.npz", MODEL)


def test_capitals_tell_classes_apart_where_only_they_do(tmp_path):
    """EMNIST's letters: A and a are two classes, and b may be written as one likes."""
    letters = ["A", "a", "b", "a_b", "2", "x"]
    wanted = {"A": 0, "a": 1, "B": 2, "a b": 3, "2": 4, "5": 5}
    pixels = np.arange(len(wanted), dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3))
    path = _npz(tmp_path / "a.npz", images=pixels.astype(np.uint8), labels=np.array([*wanted]))
    found = load_images(path, MODEL, classes=letters).labels
    assert found is not None and found.tolist() == list(wanted.values())
    save(tmp_path / "photos" / "Ab" / "a.png")
    with pytest.raises(AuditError, match="class folders Ab name no class of the model"):
        load_images(tmp_path / "photos", MODEL, classes=["AB", "ab"])


def test_messages(tmp_path, folder, classes, monkeypatch):
    cases = [
        (tmp_path / "none", {}, "There are no images at .*none"),
        (folder, {"crops": 0}, "must be at least 1, got crops=0"),
        (folder, {"limit": 0}, "limit=0"),
        (folder, {"on_bad": "ignore"}, "on_bad must be 'skip' or 'refuse', got 'ignore'"),
        (save(tmp_path / "one.png"), {}, "neither a folder nor a .zip nor an .npz"),
    ]
    (tmp_path / "empty").mkdir()
    cases.append((tmp_path / "empty", {}, "holds no image files"))
    for spec, settings, message in cases:
        with pytest.raises(AuditError, match=message):
            load_images(spec, MODEL, **settings)
    save(classes / "goldfsh" / "a.png")
    with pytest.raises(AuditError, match="goldfsh name no class .* nearest .* is 'goldfish'"):
        load_images(classes, MODEL)
    assert load_images(classes, MODEL, labels=False).labels is None
    save(classes / "loose.png")
    with pytest.raises(AuditError, match=r"images beside class folders \(loose.png"):
        load_images(classes, MODEL)
    monkeypatch.setattr(npz, "MAX_MEMORY", 5 * 16 * 16 * 3 * 4)
    with pytest.raises(AuditError, match="set limit to 5 or fewer"):
        load_images(folder, MODEL)
    with pytest.raises(AuditError, match="of 16 x 16 pixels with 99 crops .* ask for fewer crops"):
        load_images(folder, MODEL, crops=99)


def test_a_picture_that_would_grow_past_all_bounds_is_bad(tmp_path):
    """60,000 x 1 pixels are a small file, and 16 GB once their short side has 256."""
    save(tmp_path / "long.png", np.zeros((1, 60_000, 3), np.uint8))
    save(tmp_path / "fair.png")
    wants = Wants(InputSpec((224, 224), (0.5,) * 3, (1.0,) * 3, resize=256))
    found = load_images(tmp_path, wants)
    ((name, reason),) = found.skipped
    assert (name, len(found.ids)) == ("long.png", 1)
    assert "60000 x 1 pixels would be resized to 15360000 x 256, more than 64 megapix" in reason
    framed = Wants(InputSpec((224, 224), (0.5,) * 3, (1.0,) * 3, resize=256, fit="pad"))
    found = load_images(tmp_path, framed)  # its long side has 256 here: one row, and the mean
    assert not found.skipped and (found.pixels[1][:100] == np.float32(128 / 255)).all()


def test_everything_bad_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(AuditError, match="None of the 1 images"):
        load_images(tmp_path, MODEL)


def test_samples_are_29_photographs_of_which_20_are_labelled():
    found = load_images("samples", MODEL, crops=2)
    assert found.photographs == 29 and len(found.ids) == 58 and found.skipped == ()
    assert found.labels is not None and (found.labels[::2] >= 0).sum() == 20
    assert [s.label for s in samples()] == found.labels[::2].tolist()


def test_samples_without_their_packages(monkeypatch):
    monkeypatch.setattr("fvaudit.data.samples.importlib.util.find_spec", lambda name: None)
    with pytest.raises(AuditError, match=r"pip install 'fvaudit\[samples\]'"):
        load_images("samples", MODEL)


def test_decode_never_raises_anything_else():
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG")
    good = bytearray(buffer.getvalue())
    rng, refused = np.random.default_rng(1), 0
    for _ in range(300):
        bad = good.copy()
        for at in rng.integers(0, len(bad), 5):
            bad[at] = rng.integers(0, 256)
        try:
            decode.decode(bytes(bad))
        except decode.BadImage:
            refused += 1
    assert 0 < refused < 300


def test_real_photographs(shared_data):
    from fvaudit.models.classes import load_classes

    wants = Wants(InputSpec((224, 224), (0.0,) * 3, (1.0,) * 3, resize=256), load_classes())
    found = load_images(shared_data / "images" / "imagenette160" / "val", wants, limit=50)
    assert np.unique(labels_of(found), return_counts=True)[1].tolist() == [5] * 10
    assert 0.3 < found.pixels.mean() < 0.6
