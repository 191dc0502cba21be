"""All local devices take part, one image each.

On a CPU, two cores run two one-image programs about 1.5 times faster than one program that splits
every operation over both: so each core becomes a JAX device of its own, and operations stay on
their core. That has to be asked for before JAX starts; where JAX runs already, its devices are
used as they are.
"""

import os

import jax


def claim_cores() -> None:
    """Makes every CPU core that this process may use a JAX device, if JAX has not started yet."""
    try:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    except RuntimeError:  # JAX has started: its devices can no longer be changed
        return


def compiler_options() -> dict[str, bool]:
    """Options of `jax.jit` for programs that run one image per device."""
    if jax.default_backend() == "cpu" and jax.local_device_count() > 1:
        return {"xla_cpu_multi_thread_eigen": False}
    return {}
