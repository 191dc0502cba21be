"""torch-lucent 0.1.8 as shipped: its render loop, image, transforms, objective, hooks, network.

    pip install --no-deps --target runs/lucent torch-lucent==0.1.8 kornia==0.4.1 tqdm decorator

`--no-deps`, because it pins old packages; a folder of its own, because nothing else wants them;
torch is the benchmark's. Not a line of it is changed: `standins.py` stands in for what it imports
of torchvision and IPython.

Its network class cannot fetch its 5h weights here. BVLC's weights are loaded wherever the shapes
agree (all but mixed4a's 3 x 3, what reads mixed4a, and the classifier, which keep the class's own
random start): the time of a step does not depend on them. Per step it does what it does as
shipped: the whole network whatever the target, gradients of all weights, a hook on every module,
its redirected ReLU, and about 1.3 times the pixels (12 of padding on each side, then scaling).
Batches show one unit, as its objective strings do.

In mode "bvlc" its loop runs on `torch_nets.load("googlenet")`, for activations that can be compared
with ours: its `preprocess` is off, since that network normalises images itself.
"""

import copy
import importlib
import pathlib
import sys
import warnings
from typing import Any

import numpy as np
import standins
import torch
import torch_nets
from safetensors.numpy import load_file
from sides import Runner, Side, Workload


FOLDER = pathlib.Path(__file__).resolve().parents[2] / "runs" / "lucent"
_LAYERS = {"logits": "softmax2_pre_activation_matmul"}


def build(side: Side, workload: Workload, cores: int) -> Runner:
    if workload.network != "googlenet":
        raise SystemExit(f"torch-lucent ships InceptionV1 only, not {workload.network}.")
    torch.set_num_threads(cores)
    own = side.mode != "bvlc"
    network = inception() if own else torch_nets.load("googlenet")
    layer = _LAYERS.get(workload.layer, workload.layer) if own else workload.layer
    nets, device = [], "cuda" if torch.cuda.is_available() else "cpu"

    def prepare():  # hooks of earlier calls would stay on the network and slow down later ones
        nets[:] = [copy.deepcopy(network).to(device)]

    def run(steps):
        render(nets[0], f"{layer}:17", steps, side.batch, preprocess=own)
        return steps * side.batch

    return Runner(prepare, run, {"torch": torch.__version__})


def render(net: torch.nn.Module, target: str, steps: int, batch: int = 1, **options) -> np.ndarray:
    """The images (n, 224, 224, 3) in [0, 1] that its `render_vis` makes of 224-pixel images."""
    vis, param = _lucent("optvis.render"), _lucent("optvis.param")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vis.render_vis(
            net, target, lambda: param.image(224, batch=batch), thresholds=(steps,),
            progress=False, show_image=False, **options,
        )[0]  # fmt: skip


def inception() -> torch.nn.Module:
    """Its InceptionV1 with BVLC's weights where the shapes agree."""
    torch.manual_seed(0)
    net = _lucent("modelzoo").inceptionv1(pretrained=False).eval()
    with torch.no_grad():
        for name, kernel in load_file(torch_nets.MODELS / "googlenet_bvlc.safetensors").items():
            layer = getattr(net, f"{name[:-2]}_pre_relu_conv", None)
            if layer is None:  # the classifier has other classes
                continue
            mine = layer.weight if name.endswith("_w") else layer.bias
            theirs = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel
            if tuple(mine.shape) == theirs.shape:
                mine.copy_(torch.from_numpy(theirs.copy()))
    return net


def _lucent(module: str) -> Any:
    standins.install()
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    try:
        return importlib.import_module(f"lucent.{module}")
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}. Install torch-lucent as shipped.py says.") from error
