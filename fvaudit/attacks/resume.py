"""Where a training stands, on disk: a file of arrays that replaces the one before at once."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def restored(file: pathlib.Path, state: Any) -> tuple[int, Any]:
    """Steps done and the state after them; (0, `state`) if there is no file.

    Args:
        file: that `save_state` wrote.
        state: a pytree of the same structure.
    """
    if not file.exists():
        return 0, state
    leaves, tree = jax.tree.flatten(state)
    with np.load(file, allow_pickle=False) as stored:
        found = [jnp.asarray(stored[f"leaf{i}"]) for i in range(len(leaves))]
        return int(stored["step"]), jax.tree.unflatten(tree, found)


def save_state(file: pathlib.Path, step: int, state: Any) -> None:
    """Writes a pytree of arrays, so that a training can go on after `step` steps."""
    leaves: Sequence[Any] = jax.tree.leaves(jax.device_get(state))
    beside = file.with_suffix(".part")
    with open(beside, "wb") as stream:
        named = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        np.savez(stream, allow_pickle=False, step=np.int64(step), **named)
    os.replace(beside, file)
