"""Weight files: every format gives the same network, and what does not fit is refused unread."""

import io
import json
import os
import struct
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from fvaudit.models.imports.npz import read_npz
from fvaudit.models.imports.safetensors_file import read_safetensors
from fvaudit.models.weights import LUCID, TORCH, fill, load, renamed
from fvaudit.records import AuditError


class Net(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(2, 3, (5, 4), rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(3, 6, rngs=nnx.Rngs(0))


ABSTRACT = nnx.state(nnx.eval_shape(Net))
RNG = np.random.default_rng(0)
TENSORS = {
    "conv.weight": RNG.normal(size=(3, 2, 5, 4)).astype(np.float16),  # half precision is exact
    "conv.bias": RNG.normal(size=3).astype(np.float16),
    "fc.weight": RNG.normal(size=(6, 3)).astype(np.float16),
    "fc.bias": RNG.normal(size=6).astype(np.float16),
}
BATCHES = {"bn.num_batches_tracked": np.zeros((), np.int64)}
BFLOAT = jnp.bfloat16


def accept(shapes):
    pass


def single(**tensors):
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


pytestmark = pytest.mark.extras  # some of it; the rest is quick


def raw_safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def save(path, tensors):
    if path.suffix == ".safetensors":
        save_file({name: np.copy(t, order="C") for name, t in tensors.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **tensors)
    else:
        torch = pytest.importorskip("torch", reason="PyTorch writes the file of this test")
        torch.save({name: torch.from_numpy(t) for name, t in tensors.items()}, path)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".PT"])
def test_every_format_fills_the_same_network(tmp_path, suffix, dtype):
    path = save(tmp_path / f"net{suffix}", {n: t.astype(dtype) for n, t in TENSORS.items()})
    state, _ = load(ABSTRACT, path, TORCH)
    kernel = TENSORS["conv.weight"]
    for o, i, row, column in [(0, 0, 0, 0), (2, 1, 4, 3), (1, 0, 2, 3)]:
        assert state["conv"]["kernel"][row, column, i, o] == np.float32(kernel[o, i, row, column])
    np.testing.assert_array_equal(state["fc"]["kernel"], TENSORS["fc.weight"].T)
    np.testing.assert_array_equal(state["conv"]["bias"], TENSORS["conv.bias"])
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


def test_lucids_names_keep_the_layout():
    tensors = {"conv_w": TENSORS["conv.weight"].transpose(2, 3, 1, 0), "fc_w": np.ones((3, 6))}
    tensors |= {"conv_b": TENSORS["conv.bias"], "fc_b": TENSORS["fc.bias"]}
    state = fill(ABSTRACT, single(**tensors), LUCID)
    np.testing.assert_array_equal(state["conv"]["kernel"], tensors["conv_w"])
    np.testing.assert_array_equal(state["fc"]["bias"], tensors["fc_b"])


OTHERS = renamed(
    TORCH,
    "others' names",
    [(r"^conv\.", "stem."), (r"^fc\.", "head.proj.")],
    shapes={"head.proj.weight": (6, 3, 1, 1)},
    plain=lambda name: name.replace("tail.", "head."),
)


def as_others(tensors):
    return {n.replace("conv.", "stem.").replace("fc.", "tail.proj."): t for n, t in tensors.items()}


def test_the_files_names_decide_between_namings(tmp_path):
    """Other names, older names, and a matrix that is a 1x1 convolution there: the same numbers."""
    theirs = as_others(TENSORS)
    theirs["tail.proj.weight"] = theirs["tail.proj.weight"][..., None, None]
    plain, one = load(ABSTRACT, save(tmp_path / "a.npz", TENSORS), OTHERS, TORCH)
    other, two = load(ABSTRACT, save(tmp_path / "b.npz", theirs), OTHERS, TORCH)
    assert (one, two) == (TORCH, OTHERS)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_file_that_fits_no_naming_is_held_against_the_nearest(tmp_path):
    theirs = single(**as_others(TENSORS))
    del theirs["stem.bias"]
    path = save(tmp_path / "net.safetensors", theirs)
    with pytest.raises(AuditError, match=r"nearest: others' names\): 1 tensors missing \['stem.bi"):
        load(ABSTRACT, path, TORCH, OTHERS)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_counters_of_batches_in_files_are_ignored(tmp_path, suffix):
    path = save(tmp_path / f"net{suffix}", {**single(**TENSORS), **BATCHES})
    state, _ = load(ABSTRACT, path, TORCH)
    np.testing.assert_array_equal(state["fc"]["bias"], TENSORS["fc.bias"])


def test_bfloat16_is_read_exactly(tmp_path):
    values = np.array([1, -2.5, 3e38], BFLOAT)
    header = {"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}
    found = read_safetensors(raw_safetensors(tmp_path / "b", header, values.tobytes()), accept)["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(np.float32))


def test_counters_of_batches_and_underscores_are_ignored():
    renamed = {f"_{name}": tensor for name, tensor in TENSORS.items()}
    state = fill(ABSTRACT, {**renamed, **BATCHES})
    np.testing.assert_array_equal(state["fc"]["bias"], TENSORS["fc.bias"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fc.bias": None}, r"1 tensors missing \['fc.bias'\], 0 left over"),
        ({"fc.gain": np.ones(2)}, r"0 tensors missing \[\], 1 left over \['fc.gain'\]"),
        ({"fc.weight": np.ones((3, 6))}, r"fc.weight has shape \(3, 6\), the network needs \(6, 3"),
        ({"_fc.bias": np.ones(6)}, "two tensors for fc.bias"),
        ({"fc.bias": np.array([1, 2, np.nan, 4, 5, 6])}, "fc.bias holds infinite numbers or NaN"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_files_of_another_network_are_refused(tmp_path, suffix, change, message):
    tensors = {n: t for n, t in {**TENSORS, **change}.items() if t is not None}
    path = save(tmp_path / f"net{suffix}", single(**tensors))
    with pytest.raises(AuditError, match=message):
        load(ABSTRACT, path, TORCH)


@pytest.mark.parametrize(
    "suffix, message",
    [
        (".safetensors", "conv.bias of .* has type F64; expected one of F32, F16, BF16"),
        (".npz", "conv.bias.npy of .* has type float64; expected float32 or float16"),
        (".pth", "conv.bias has type float64; expected float32"),
    ],
)
def test_other_types_are_refused(tmp_path, suffix, message):
    path = save(tmp_path / f"net{suffix}", {**TENSORS, "conv.bias": np.zeros(3)})
    with pytest.raises(AuditError, match=message):
        load(ABSTRACT, path, TORCH)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(
        AuditError, match="net.pkl is no weight file; expected .*.safetensors, .npz"
    ):
        load(ABSTRACT, tmp_path / "net.pkl", TORCH)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_what_is_no_file_is_refused(tmp_path, suffix):
    (tmp_path / f"folder{suffix}").mkdir()
    os.mkfifo(tmp_path / f"pipe{suffix}")
    for name in ("folder", "pipe", "missing", "nul\0"):
        with pytest.raises(AuditError, match="Cannot read .*: (there is no such file|.*null)"):
            load(ABSTRACT, tmp_path / f"{name}{suffix}", TORCH)


def test_a_pth_far_larger_than_the_network_is_refused(tmp_path):
    path = tmp_path / "large.pth"
    with path.open("wb") as file:
        file.truncate(2 * 2**20)  # the network has 1 kB
    with pytest.raises(AuditError, match="2,097,152 bytes, the limit is"):
        load(ABSTRACT, path, TORCH)


@pytest.mark.parametrize(
    "header, data",
    [
        (b"", b""),
        (b"[]", b""),
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
        ({"x": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 8]}}, bytes(8)),
        ({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}, bytes(8)),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, header, data):
    path = raw_safetensors(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(AuditError, match="Cannot read .*; expected a .safetensors file"):
        read_safetensors(path, accept)


def npy(header: str, data=b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def npz(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY\x01",
        npy("{'descr': '<f4', 'fortran_order': False}\n"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9,), }\n", bytes(8)),
        npy("__import__('os').abort()\n"),
    ],
)
def test_damaged_npz_are_refused(tmp_path, content):
    with pytest.raises(AuditError, match="Cannot read .*; expected a .npz file without pickles"):
        read_npz(npz(tmp_path / "bad.npz", content), accept)


def test_damaged_archives_are_refused(tmp_path):
    whole = npz(tmp_path / "whole.npz", npy_of(np.ones(4096, np.float32)), zipfile.ZIP_DEFLATED)
    data = bytearray(whole.read_bytes())
    data[60:70] = bytes(10)
    for name, content in (("cut", data[:-30]), ("flipped", data), ("empty", b"")):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(AuditError, match="expected a .npz file without pickles"):
            read_npz(path, accept)


def npy_of(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_pickles_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    with pytest.raises(AuditError, match="x.npy of .* has type object; expected float32"):
        read_npz(tmp_path / "objects.npz", accept)


def test_claimed_gigabytes_are_refused_unread(tmp_path):
    """A header that claims 40 GB in a file of some bytes costs nothing: its shape does not fit."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (100000, 100000), }\n"
    path = npz(tmp_path / "bomb.npz", npy(header) + bytes(10**7), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    tracemalloc.start()
    with pytest.raises(AuditError, match=r"4 tensors missing .* 1 left over \['x'\]"):
        load(ABSTRACT, path, TORCH)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_two_arrays_of_one_name_are_refused_unread(tmp_path):
    """`x` would hide the 4 GB that `x.npy` claims from the check of shapes."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000,), }\n"
    with zipfile.ZipFile(tmp_path / "two.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(header))
        archive.writestr("x", npy_of(np.ones(2, np.float32)))
    with pytest.raises(AuditError, match="two arrays x; expected one of each name"):
        read_npz(tmp_path / "two.npz", accept)


@pytest.mark.parametrize("text", ["(" * 50, "{'descr': '''", "{0: " + "9" * 5000 + "}", "\\u"])
def test_headers_that_numpy_would_stumble_over_are_refused(tmp_path, text):
    with pytest.raises(AuditError, match="has no header as NumPy writes it"):
        read_npz(npz(tmp_path / "bad.npz", npy(text)), accept)


def test_a_refused_check_reads_no_tensor(tmp_path):
    def refuse(shapes):
        assert shapes == {"x": (3,)}
        raise AuditError("not this one")

    path = tmp_path / "x.npz"
    np.savez(path, x=np.ones(3, np.float32))
    with pytest.raises(AuditError, match="not this one"):
        read_npz(path, refuse)
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(AuditError, match="not this one"):
        read_safetensors(tmp_path / "x.safetensors", refuse)
