"""The benchmark's networks as our `Model`s, with the weights that torch_nets.py loads as well."""

import pathlib

import fvaudit
from fvaudit.models import zoo
from fvaudit.models.model import Model


MODELS = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "models"


def load(network: str) -> Model:
    """The benchmark's networks as `Model`s."""
    if network == "resnet50":
        return zoo.random_model("resnet50", seed=0)
    if network == "googlenet":
        return fvaudit.load_model(network, weights=MODELS / "googlenet_bvlc.safetensors")
    return fvaudit.load_model(network)  # from its package; the shared file's kernels are HWIO
