"""Our engine: the program that `fvaudit.visualize` runs, chunk by chunk.

A call of the program makes one image for every unit, `CHUNK` steps each, and scores the result:
that last forward pass, the start and the transfers are inside the time. One unit alone takes as
long as the devices' worth of units that it is padded to.
"""

import pathlib

import jax
import jax.numpy as jnp
from sides import Runner, Side, Workload

import fvaudit
from fvaudit.models import devices
from fvaudit.models.model import Model
from fvaudit.optvis.objectives import Channel, stack
from fvaudit.optvis.params import fourier
from fvaudit.optvis.transforms import standard
from fvaudit.optvis.visualize import Recipe, program


CHUNK = 8
MODELS = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "models"


def build(side: Side, workload: Workload, cores: int) -> Runner:
    devices.start()
    ascend = ascent(load(workload.network), workload.layer, list(range(side.batch)))

    def run(steps):
        chunks = -(-steps // CHUNK)
        for seed in range(chunks):
            ascend(seed)
        return chunks * CHUNK * side.batch

    return Runner(lambda: None, run, {"jax": jax.__version__})


def ascent(model: Model, layer: str, units: list[int]):
    """`call(seed)`: `CHUNK` steps for every unit of `layer`, done when it returns."""
    recipe = Recipe(fourier(), standard(), steps=CHUNK)
    run = program(model.forward, model.input.size, (layer,), recipe)
    params = devices.replicated(model.params)
    width = jax.local_device_count()
    full = units + units[-1:] * (-len(units) % width)
    objectives = stack([Channel(layer, unit) for unit in full])

    def call(seed: int):
        keys = jnp.stack([jax.random.key(seed + i) for i in range(len(full))])
        return jax.block_until_ready(run(params, objectives, keys))

    return call


def load(network: str) -> Model:
    """The benchmark's networks as `Model`s."""
    if network == "googlenet":
        path = MODELS / "googlenet_bvlc.safetensors"
        return fvaudit.load_model("googlenet", weights=path)  # pyright: ignore[reportCallIssue]
    if network == "resnet50":
        from fvaudit.models import zoo

        return zoo.random_model("resnet50", seed=0)  # pyright: ignore[reportAttributeAccessIssue]
    return fvaudit.load_model(network)
