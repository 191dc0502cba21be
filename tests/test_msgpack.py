"""Weights in Flax's own format: written by flax.serialization, read by us, and hostile files."""

import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import nnx, serialization

from fvaudit.models import zoo
from fvaudit.models.imports.msgpack_file import read_msgpack
from fvaudit.records import AuditError


RNG = np.random.default_rng(0)
TREE = {
    "conv": {"kernel": RNG.normal(size=(2, 3, 4)).astype(np.float32)},
    "half": RNG.normal(size=5).astype(np.float16),
    "brain": RNG.normal(size=(2, 2)).astype(ml_dtypes.bfloat16),
    "step": np.int32(7),
    "count": np.full((), 7, np.int64),
}


def accept(shapes):
    assert shapes == {"conv.kernel": (2, 3, 4), "half": (5,), "brain": (2, 2)}


def read(path, content, check=lambda shapes: None, max_bytes=10**6):
    path.write_bytes(content)
    return read_msgpack(path, check, max_bytes=max_bytes)


def test_what_flax_writes_is_read(tmp_path):
    found = read(tmp_path / "w.msgpack", serialization.to_bytes(TREE), accept)
    np.testing.assert_array_equal(found["conv.kernel"], TREE["conv"]["kernel"])
    np.testing.assert_array_equal(found["half"], TREE["half"].astype(np.float32))
    np.testing.assert_array_equal(found["brain"], TREE["brain"].astype(np.float32))
    assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}


def test_a_network_of_the_zoo(tmp_path):
    random = zoo.random_model("squeezenet1_1", 0)
    path = tmp_path / "w.msgpack"
    path.write_bytes(serialization.to_bytes(nnx.to_pure_dict(random.params)))
    loaded = zoo.load_model("squeezenet1_1", path)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, random.params)
    path.write_bytes(serialization.to_bytes({"conv1": TREE["conv"]}))
    with pytest.raises(AuditError, match="does not fit the network"):
        zoo.load_model("squeezenet1_1", path)


def array(shape, kind, content, code=1):
    return msgpack.packb({"a": msgpack.ExtType(code, msgpack.packb((shape, kind, content)))})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Cannot read"),
        (b"\xc1", "Cannot read"),
        (serialization.to_bytes(TREE)[:-3], "Cannot read"),
        (serialization.to_bytes(TREE) + b"\x00", "Cannot read"),
        (msgpack.packb([1]), "The whole of .* is list; expected arrays"),
        (msgpack.packb({"a": 1}), "a of .* is int; expected arrays"),
        (msgpack.packb({"a.b": 1}), "names an array 'a.b'|names an array a.b"),
        (msgpack.packb({1: 1}), "Cannot read"),
        (array([2], "float32", b"1234"), "shape .2. has 4 bytes of"),
        (array([2**40, 2**40], "float32", b""), "has 0 bytes of"),
        (array([-1, -1], "float32", b"1234"), "shape makes no sense"),
        (array([True], "float32", b"1234"), "shape makes no sense"),
        (array([1], "object", b"1234"), "type .*object.*; expected one of float32"),
        (array([1], "float64", b"12345678"), "type .*float64"),
        (array([1], "float32", b"1234", code=2), "extension 2 is no array"),
        (b"\x81\xa1a" * 500 + b"\x01", "Cannot read|expected arrays"),
        (b"\xdf\xff\xff\xff\xff", "Cannot read"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "Cannot read"),
    ],
)
def test_what_is_no_plain_arrays_is_refused(tmp_path, content, problem):
    with pytest.raises(AuditError, match=problem):
        read(tmp_path / "w.msgpack", content)


def test_limits(tmp_path):
    with pytest.raises(AuditError, match="expected at most 10"):
        read(tmp_path / "w.msgpack", serialization.to_bytes(TREE), max_bytes=10)
    with pytest.raises(AuditError, match="no such file"):
        read_msgpack(tmp_path, lambda shapes: None, max_bytes=10)
    with pytest.raises(AuditError, match="not mine"):

        def refuse(shapes):
            raise AuditError("not mine")

        read(tmp_path / "w.msgpack", serialization.to_bytes(TREE), refuse)


def test_mutated_files_do_no_harm(tmp_path):
    """Bytes changed, cut and repeated: arrays or an AuditError, nothing else."""
    whole = serialization.to_bytes(TREE)
    read_count = 0
    for i in range(3000):
        rng = np.random.default_rng(i)
        mutated = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            mutated[rng.integers(len(mutated))] = rng.integers(256)
        content = bytes(mutated[: rng.integers(1, len(mutated) + 1)] if i % 3 == 0 else mutated)
        try:
            found = read(tmp_path / "w.msgpack", content)
        except AuditError:
            continue
        read_count += 1
        assert all(x.dtype == np.float32 and x.size < 100 for x in found.values())
    assert 0 < read_count < 3000
