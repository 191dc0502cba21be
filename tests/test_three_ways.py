"""One network as an .onnx file, a PyTorch module and a Flax module: the audits say the same."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx
from PIL import Image

from fvaudit.config import load_config
from fvaudit.models.imports.flax_modules import from_flax
from fvaudit.models.imports.torch_modules import from_torch
from fvaudit.run import audit
from tests import peers
from tests.tiny import pictures


pytestmark = [pytest.mark.extras, pytest.mark.slow]
INPUT = {"size": 24, "range": [-1, 1], "order": "RGB", "resize": 24, "interpolation": "bicubic"}
WIDTHS = (3, 8, 12)
CLASSES = 5


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)

    def drawn(*shape):
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)

    kernels = [drawn(3, 3, i, o) for i, o in zip(WIDTHS, WIDTHS[1:], strict=False)]
    return [2 * k for k in kernels], drawn(WIDTHS[-1], CLASSES)


def onnx_file(folder, weights):
    onnx = pytest.importorskip("onnx")
    helper, (kernels, head) = onnx.helper, weights
    tensors = {f"kernel{i}": k.transpose(3, 2, 0, 1) for i, k in enumerate(kernels)}
    nodes, x = [], "images"
    for i in range(len(kernels)):
        made = {"pads": [1] * 4, "strides": [2, 2]}
        nodes.append(helper.make_node("Conv", [x, f"kernel{i}"], [f"conv{i}"], **made))
        nodes.append(helper.make_node("Relu", [f"conv{i}"], [x := f"block{i}"]))
    nodes.append(helper.make_node("ReduceMean", [x], ["pool"], axes=[2, 3], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["pool", "matrix"], ["head"]))
    values = {**tensors, "matrix": head}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", 1, [1, 3, 24, 24])],
        [helper.make_tensor_value_info("head", 1, [1, CLASSES])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in values.items()],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "net.onnx")


def torch_module(weights):
    torch = peers.torch()
    kernels, head = weights

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for i, kernel in enumerate(kernels):
                conv = torch.nn.Conv2d(*kernel.shape[2:], 3, 2, 1, bias=False)
                conv.weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
                setattr(self, f"block{i}", torch.nn.Sequential(conv, torch.nn.ReLU(True)))
            self.head = torch.nn.Linear(*head.shape, bias=False)
            self.head.weight.data = torch.from_numpy(head.T.copy())

        def forward(self, x):
            return self.head(self.block1(self.block0(x)).mean((2, 3)))

    return Net()


class FlaxNet(nnx.Module):
    def __init__(self, weights):
        kernels, head = weights
        blocks = []
        for kernel in kernels:
            made = {"strides": 2, "padding": 1, "use_bias": False, "rngs": nnx.Rngs(0)}
            conv = nnx.Conv(kernel.shape[2], kernel.shape[3], (3, 3), **made)
            conv.kernel.set_value(jnp.asarray(kernel))
            blocks.append(nnx.Sequential(conv, nnx.relu))
        self.block0, self.block1 = blocks
        self.head = nnx.Linear(*head.shape, use_bias=False, rngs=nnx.Rngs(0))
        self.head.kernel.set_value(jnp.asarray(head))

    def __call__(self, x):
        return self.head(self.block1(self.block0(x)).mean((1, 2)))


def test_the_three_audits_say_the_same(tmp_path, weights, capsys):
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(pictures(48)):
        Image.fromarray(np.uint8(image * 255)).save(tmp_path / "photos" / f"{i:02d}.png")
    config = {
        "images": {"source": "photos"},
        "units": [{"layer": "block1", "count": 4}, {"layer": "head", "count": 3}],
        "engine": {"steps": 24, "repeats": 2, "shots": 2},
        "evidence": {"group": 12, "layers": ["block0", "block1", "head"], "replicates": 400},
        "preflight": "report",
    }
    path = tmp_path / "audit.yaml"
    path.write_text(yaml.safe_dump(config))
    onnx_file(tmp_path, weights)
    path.with_name("onnx.yaml").write_text(
        yaml.safe_dump({**config, "model": "net.onnx", "input": INPUT})
    )
    loaded = load_config(path)
    runs = {
        "onnx": audit(path.with_name("onnx.yaml"), tmp_path / "onnx"),
        "torch": audit(
            loaded, tmp_path / "torch", model=from_torch(torch_module(weights), input=INPUT)
        ),
        "flax": audit(loaded, tmp_path / "flax", model=from_flax(FlaxNet(weights), input=INPUT)),
    }
    verdicts = {
        name: [(v.check, v.subject, v.status) for v in run.verdicts] for name, run in runs.items()
    }
    assert len(verdicts["onnx"]) > 7
    assert verdicts["onnx"] == verdicts["torch"] == verdicts["flax"]
    numbers = {
        name: np.array([(p.fv.value, p.same.value) for u in run.units for p in u.path])
        for name, run in runs.items()
    }
    worst = max(np.abs(numbers[n] - numbers["onnx"]).max() for n in ("torch", "flax"))
    assert np.isfinite(numbers["onnx"]).all() and worst < 0.02
    kinds = {status.name for _, _, status in verdicts["onnx"]}
    with capsys.disabled():
        print(f"\nsimilarities differ by at most {worst:.1e}; verdicts {sorted(kinds)}")
    sources = [
        json.loads((run.folder / "model.json").read_text())["source"] for run in runs.values()
    ]
    assert len(set(sources)) == 3
