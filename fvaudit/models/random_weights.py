"""Random weights, for benchmarks and tests only: no trained network is like this.

Kernels are normal with mean 0 and variance gain / fan_in; gain 2 keeps the mean square through
ReLU (He et al., "Delving deep into rectifiers", 2015), 1 suits outputs without one. Batch norms
and biases are drawn near what keeps that: means and biases near 0, variances near 1.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx


SPREAD = 0.1  # of what is drawn around 0 or 1: large enough that forgetting it shows


def random_state(abstract: Any, gains: Mapping[str, float], seed: int) -> Any:
    """An `nnx.State` of float32 arrays.

    Args:
        abstract: the state's shapes.
        gains: by module name, the last part of its path; of a convolution or dense layer, variance
            times fan-in (2 unless given); of a batch norm, the typical scale (1 unless given).
        seed: from 0.
    """
    rng = np.random.default_rng(seed)

    def drawn(path, variable):
        gain = gains.get(str(path[-2])) if len(path) > 1 else None
        return variable.replace(_drawn(rng, str(path[-1]), variable.shape, gain))

    flat = nnx.to_flat_state(abstract)
    return nnx.from_flat_state([(path, drawn(path, variable)) for path, variable in flat])


def _drawn(rng, kind: str, shape: tuple[int, ...], gain: float | None):
    noise = rng.standard_normal(shape, np.float32)
    if kind == "kernel":
        drawn = noise * math.sqrt((2 if gain is None else gain) / math.prod(shape[:-1]))
    elif kind == "scale":
        drawn = (1 if gain is None else gain) * (1 + SPREAD * noise)
    elif kind == "var":
        drawn = np.exp(SPREAD * noise)
    else:  # bias, mean
        drawn = SPREAD * noise
    return jnp.asarray(drawn, jnp.float32)
