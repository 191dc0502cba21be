"""Our engine: the program that `fvaudit.visualize` runs, stretch by stretch.

A call takes steps for as many units as there are devices, on a GPU for as many as the side's batch;
the start is made anew for each stretch and lies inside the time, the score of the final image does
not. One unit alone leaves all devices but one at rest.
"""

import jax
import jax.numpy as jnp
import networks
import numpy as np
from sides import Runner, Side, Workload

from fvaudit.models import devices
from fvaudit.models.model import Model
from fvaudit.optvis.objectives import Channel, stack
from fvaudit.optvis.optimize import STRETCH
from fvaudit.optvis.params import fourier
from fvaudit.optvis.render import Recipe, programs
from fvaudit.optvis.transforms import standard


def build(side: Side, workload: Workload, cores: int) -> Runner:
    devices.start()
    lanes = 1 if jax.default_backend() == "cpu" else side.batch
    width = lanes * jax.local_device_count()
    units = list(range(min(side.batch, width)))
    ascend = ascent(networks.load(workload.network), workload.layer, units, width)

    def run(steps):
        """`steps` of a queue of `batch` units: as a user's, in stretches, a device's worth each."""
        each = -(-steps * side.batch // len(units))
        for first in range(0, each, STRETCH):
            ascend(first, min(STRETCH, each - first))
        return each * len(units)

    return Runner(lambda: None, run, {"jax": jax.__version__})


def ascent(model: Model, layer: str, units: list[int], width: int):
    """`call(seed, steps, first=0)` -> images: at most STRETCH steps of every unit, from `first`.

    As many units at a time as `width`.
    """
    shape = (*model.input.size, len(model.input.mean))
    begin, advance = programs(
        model.forward, shape, (layer,), Recipe(fourier(), standard(), steps=1)
    )
    params = devices.replicated(model.params)
    batches = [units[at : at + width] for at in range(0, len(units), width)]

    def call(seed: int, steps: int, first: int = 0) -> list[jax.Array]:
        made = []
        for batch in batches:
            full = batch + batch[-1:] * (width - len(batch))
            keys = jnp.stack([jax.random.key(seed + unit) for unit in full])
            objectives = stack([Channel(layer, unit) for unit in full])
            working = np.arange(width) < len(batch)
            lasts = np.where(working, np.int32(first + steps), np.int32(first))
            at = (params, np.int32(first), np.int32(512), lasts, np.zeros(width, bool))
            out = jax.block_until_ready(advance(*at, objectives, keys, begin(None, keys)))
            made.append(out.images)
        return made

    return call
