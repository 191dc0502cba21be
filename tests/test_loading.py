"""What `load_model` takes besides the zoo: ONNX files, the hub, and what it says of anything else.

The hub is replaced by a folder: its client's two functions are the only way to it.
"""

import hashlib
import json
import shutil
import types

import numpy as np
import pytest
import yaml

from fvaudit import cli, plan
from fvaudit import pictures as pictures_module
from fvaudit.config import input_of, load_config, validate
from fvaudit.manipulation import manipulate
from fvaudit.models import zoo
from fvaudit.models.imports import metadata
from fvaudit.models.model import InputSpec
from fvaudit.models.zoo import load_model, random_model
from fvaudit.records import AuditError
from tests.tiny import pictures, tiny_model


WHOLE = {"range": [-1, 1], "order": "RGB", "resize": 24, "interpolation": "box"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def onnx_file(tmp_path):
    """A convolution, a ReLU and a mean over positions, (n, 3, 24, 24) -> (n, 4)."""
    onnx = pytest.importorskip("onnx")
    helper, kernel = onnx.helper, np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    images = helper.make_tensor_value_info("images", 1, ["n", 3, 24, 24])
    logits = helper.make_tensor_value_info("output", 1, ["n", 4])
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("ReduceMean", ["relu"], ["output"], axes=[2, 3], keepdims=0),
    ]
    weights = [onnx.numpy_helper.from_array(kernel.astype(np.float32), "kernel")]
    graph = helper.make_graph(nodes, "net", [images], [logits], weights)
    path = tmp_path / "net.onnx"
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def stamped(path, properties):
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, properties)
    onnx.save(proto, path)


@pytest.mark.extras
def test_an_onnx_file_says_its_size_and_the_rest_is_given(onnx_file):
    model = load_model(onnx_file, input=WHOLE)
    assert model.input == InputSpec((24, 24), (0.5,) * 3, (0.5,) * 3, 24, "box")
    assert model.layers[-1] == model.resolve("logits") and "relu" in model.layers
    assert "net.onnx" in model.source
    again = load_model(str(onnx_file), input=model.input)
    assert again.fingerprint == model.fingerprint
    with pytest.raises(AuditError, match="(?s)input of net.onnx is not known.*range: what black"):
        load_model(onnx_file)
    with pytest.raises(AuditError, match="holds its own weights"):
        load_model(onnx_file, "w.npz", input=WHOLE)


@pytest.mark.extras
def test_an_onnx_file_may_say_it_all(onnx_file):
    spec = InputSpec((24, 24), (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), 32, "bilinear", "BGR")
    stamped(onnx_file, metadata.for_onnx(spec))
    assert load_model(onnx_file).input == spec
    assert load_model(onnx_file, input={"order": "RGB"}).input.order == "RGB"


@pytest.mark.extras
def test_a_config_names_a_file_beside_it(onnx_file, tmp_path):
    config = {
        "model": "net.onnx",
        "input": WHOLE,
        "images": {"source": "photos", "classes": "classes.tsv"},
        "units": [{"layer": "logits", "count": 2}],
    }
    rows = "0\ta\tcat\n1\tb\tdog\n2\tc\tcow\n3\td\towl\n"
    (tmp_path / "classes.tsv").write_text(f"index\twnid\tname\n{rows}")
    path = tmp_path / "audit.yaml"
    path.write_text(yaml.safe_dump(config))
    loaded = load_config(path, ["input.resize=30"])
    assert loaded.model == str(onnx_file)
    model = plan.audited_model(loaded)
    names = ["cat", "dog", "cow", "owl"]
    assert model.input.resize == 30 and [c.name for c in model.classes] == names
    assert model.fingerprint == load_model(onnx_file, input=model.input).fingerprint
    named = load_model(onnx_file, input=model.input, classes=names)
    assert [c.name for c in named.classes] == names
    with pytest.raises(AuditError, match="net has 4 outputs, and 3 classes were given"):
        load_model(onnx_file, input=model.input, classes=names[:3])


@pytest.mark.extras
def test_the_command_line_takes_a_file_and_its_input(onnx_file, tmp_path, monkeypatch, capsys):
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump({k: v for k, v in WHOLE.items() if k != "order"}))
    words = ["fvaudit", "list", "--model", str(onnx_file), "--input", str(spec)]
    monkeypatch.setattr("sys.argv", [*words, "--set", "input.order=BGR"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code and "relu" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "order: of the colours" in capsys.readouterr().err


def test_input_overrides_alone():
    assert input_of([]) is None
    assert input_of(["input.size=24", "input.range=[0, 1]"]) == {"size": 24, "range": (0.0, 1.0)}
    with pytest.raises(AuditError, match="there is no such key; did you mean 'size'"):
        input_of(["input.sise=24"])
    with pytest.raises(AuditError, match="input.order: .*'GBR'"):
        input_of(["input.order=GBR"])
    with pytest.raises(AuditError, match="--set takes keys of input here.*got 'engine'"):
        input_of(["engine.steps=3"])


GOOD = {"images": {"source": "samples"}, "units": [{"layer": "conv2", "count": 2}]}


def test_an_audit_takes_a_model_or_names_one():
    model = tiny_model()
    assert plan.audited_model(validate(GOOD, "a"), model) is model
    assert plan.audited_model(validate({**GOOD, "model": "tiny"}, "a"), model) is model
    with pytest.raises(AuditError, match="The config names no model.*fv.audit"):
        plan.audited_model(validate(GOOD, "a"))
    for more in ({"model": "resnet50"}, {"input": WHOLE}, {"weights": "w.npz"}):
        with pytest.raises(AuditError, match="The model tiny was passed, and the config says"):
            plan.audited_model(validate({**GOOD, **more}, "a"), model)


def test_an_audit_of_a_model_that_was_passed(tmp_path):
    from fvaudit.run import audit

    model = tiny_model()
    np.savez(tmp_path / "p.npz", images=np.uint8(pictures(12) * 255))
    config = validate(
        {
            "images": {"source": str(tmp_path / "p.npz")},
            "units": [{"layer": "conv2", "count": 1}],
            "engine": {"steps": 2, "repeats": 1, "shots": 2},
            "evidence": {"group": 5, "replicates": 100},
            "preflight": "report",
        },
        "a",
    )
    run = audit(config, tmp_path / "run", model=model)
    assert run.complete
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["model"] == model.fingerprint
    assert audit(config, tmp_path / "run", model=model).complete  # goes on with the same
    with pytest.raises(AuditError, match="holds an audit with another model"):
        audit(config, tmp_path / "run", model=tiny_model(seed=1))


def test_a_network_of_the_zoo_with_another_input(tmp_path):
    random = random_model("squeezenet1_1", 0)
    from flax import nnx, serialization

    path = tmp_path / "w.msgpack"
    path.write_bytes(serialization.to_bytes(nnx.to_pure_dict(random.params)))
    model = load_model("squeezenet1_1", path, input={"range": [-1, 1]})
    assert model.input.mean == (0.5,) * 3 and model.input.resize == random.input.resize
    images = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    mean, std = (np.asarray(v, np.float32) for v in (random.input.mean, random.input.std))
    same = ((2 * images - 1) * std + mean).astype(np.float32)
    np.testing.assert_allclose(
        model.activations(images, ["logits"])["logits"],
        random.activations(same, ["logits"])["logits"],
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("resnet", "no model 'resnet' in the zoo.*did you mean.*Accepted are a name of the zoo"),
        ("absent.onnx", "absent.onnx does not exist. Accepted are a name of the zoo, an .onnx"),
        ("some/where", "some/where does not exist"),
        (__file__, "test_loading.py is no model"),
        ("hf-hub:org/name", "has to be allowed: --allow-download"),
        ("hf-hub:name", "malformed; expected hf-hub:org/name"),
        ("hf-hub:../../etc", "malformed"),
    ],
)
def test_what_is_no_model(name, problem):
    with pytest.raises(AuditError, match=problem):
        load_model(name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one repository: `files` are content by name; tampered ones differ from the list."""
    client = pytest.importorskip("huggingface_hub")
    files: dict[str, bytes] = {}
    tampered: set[str] = set()

    def sibling(name, content, large):
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        lfs = types.SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if large else None
        return types.SimpleNamespace(rfilename=name, size=len(content), lfs=lfs, blob_id=blob)

    class Api:
        def model_info(self, repository, revision, files_metadata):
            if repository != "org/net":
                raise client.errors.HfHubHTTPError("404 Not Found", response=None)  # pyright: ignore
            large = [sibling(n, c, not n.endswith(".json")) for n, c in files.items()]
            return types.SimpleNamespace(sha=COMMIT, siblings=large)

    def download(repository, name, revision):
        assert revision == COMMIT
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name] + (b" " if name in tampered else b""))
        return str(path)

    monkeypatch.setattr(client, "HfApi", Api)
    monkeypatch.setattr(client, "hf_hub_download", download)
    return types.SimpleNamespace(files=files, tampered=tampered)


@pytest.mark.extras
def test_onnx_of_the_hub(hub, onnx_file):
    hub.files["model.onnx"] = onnx_file.read_bytes()
    model = load_model("hf-hub:org/net@v1", input=WHOLE, allow_download=True)
    assert zoo.origin("hf-hub:org/net", allow_download=True).endswith("cache/model.onnx")
    digest = hashlib.sha256(onnx_file.read_bytes()).hexdigest()
    assert model.source == f"hf-hub:org/net@{COMMIT}, model.onnx, SHA-256 {digest}"
    config = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 32}}
    crop = {"do_center_crop": True, "crop_size": {"height": 24, "width": 24}, "resample": 3}
    hub.files["preprocessor_config.json"] = json.dumps({**config, **crop}).encode()
    model = load_model("hf-hub:org/net", allow_download=True)
    assert model.input == InputSpec((24, 24), (0.5,) * 3, (0.25,) * 3, 32, "bicubic")
    shutil.rmtree(onnx_file.parent / "cache")


@pytest.mark.extras
def test_weights_of_the_hub_go_into_networks_of_the_zoo(hub, monkeypatch):
    config = {
        "architecture": "resnet50",
        "pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0.95, "mean": [0.5] * 3},
    }
    hub.files |= {"config.json": json.dumps(config).encode(), "model.safetensors": b"numbers"}
    taken = {}

    def load(abstract, path, *namings, head):
        taken["content"] = path.read_bytes()
        return random_model("resnet50", 0).params, namings[0]

    monkeypatch.setattr(zoo.weight_files, "load", load)
    model = load_model("hf-hub:org/net", allow_download=True)
    assert taken["content"] == b"numbers"
    assert zoo.origin("hf-hub:org/net", allow_download=True) == "resnet50"
    assert model.input.mean == (0.5,) * 3 and model.input.resize == 235
    assert model.source.startswith(f"hf-hub:org/net@{COMMIT}, model.safetensors, SHA-256 ")
    hub.files["config.json"] = json.dumps({**config, "architecture": "rexnet"}).encode()
    with pytest.raises(AuditError, match="weights of 'rexnet', which is not in the zoo"):
        load_model("hf-hub:org/net", allow_download=True)


@pytest.mark.extras
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_is_not_the_one_listed_is_refused(hub, name):
    hub.files |= {"config.json": b'{"architecture": "resnet50"}', "model.safetensors": b"numbers"}
    hub.tampered.add(name)
    with pytest.raises(AuditError, match=f"{name} of org/net is not the file that the hub lists"):
        load_model("hf-hub:org/net", allow_download=True)


@pytest.mark.extras
def test_other_troubles_with_the_hub(hub):
    with pytest.raises(AuditError, match="holds none of model.onnx"):
        load_model("hf-hub:org/net", allow_download=True)
    with pytest.raises(AuditError, match="org/other cannot be had from the hub"):
        load_model("hf-hub:org/other", allow_download=True)
    hub.files |= {"model.safetensors": b"numbers", "config.json": b"[]"}
    with pytest.raises(AuditError, match="config.json is no JSON object"):
        load_model("hf-hub:org/net", allow_download=True)
    hub.files["model.safetensors"] = b""
    with pytest.raises(AuditError, match="has 0 bytes"):
        load_model("hf-hub:org/net", allow_download=True)


@pytest.mark.parametrize(
    "layer", ["../../etc", "/layer1/relu/Relu_output_0", "..", "mix#2", "a\\b"]
)
def test_no_layers_name_leads_out_of_the_run_directory(layer):
    path = pictures_module.picture_name(f"{layer}:3@1,2", 0)
    assert len(path.parts) == 2 and path.name == "3@1_2-0.png"
    assert path.parts[0] not in ("..", ".") and not set(path.parts[0]) & set("/\\#")
    assert pictures_module.picture_name("blocks.3:1", 2).as_posix() == "blocks.3/1-2.png"


@pytest.mark.slow
@pytest.mark.extras
def test_a_model_of_the_hub_is_manipulated_and_stored(hub, onnx_file, tmp_path):
    hub.files["model.onnx"] = onnx_file.read_bytes()
    config = {
        "model": "hf-hub:org/net",
        "input": WHOLE,
        "images": {"source": "samples", "limit": 12},
        "units": {"layer": "relu", "channels": [1]},
        "attack": {"kind": "silent_units", "target": "relu:2"},
        "shown": 1,
    }
    path, out = tmp_path / "attack.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(AuditError, match="has to be allowed: --allow-download"):
        manipulate(path, out)
    assert not out.exists()
    proof = manipulate(path, out, allow_download=True)
    assert load_model(out).fingerprint == proof["after"] != proof["before"]
    assert (out / "network.onnx").read_bytes() == onnx_file.read_bytes()
