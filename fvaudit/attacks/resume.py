"""Where a training stands, on disk: a file of arrays that replaces the one before at once."""

import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fvaudit.records import AuditError


BEGUN = "begun"  # the file's array that says which training it is of


def restored(file: pathlib.Path, state: Any, begun: str) -> tuple[int, Any]:
    """Steps done and the state after them; (0, `state`) if there is no file.

    Args:
        file: that `save_state` wrote.
        state: a pytree of the same structure.
        begun: which training this is, with all its settings; equal texts, equal trainings.

    Raises:
        AuditError: if the file is of another training, or damaged.
    """
    if not file.exists():
        return 0, state
    leaves, tree = jax.tree.flatten(state)
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            _require_same(file, str(stored[BEGUN]), begun)
            found = [jnp.asarray(stored[f"leaf{i}"]) for i in range(len(leaves))]
            return int(stored["step"]), jax.tree.unflatten(tree, found)
    except AuditError:  # said already
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise AuditError(
            f"{file} is not the state of a training, as this version writes it ({error}). Remove "
            "it to begin anew."
        ) from None


def save_state(file: pathlib.Path, step: int, state: Any, begun: str) -> None:
    """Writes a pytree of arrays, so that a training can go on after `step` steps."""
    leaves: Sequence[Any] = jax.tree.leaves(jax.device_get(state))
    beside = file.with_suffix(".part")
    with open(beside, "wb") as stream:
        named = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        named |= {"step": np.int64(step), BEGUN: np.array(begun)}
        np.savez(stream, allow_pickle=False, **named)
    os.replace(beside, file)


def _require_same(file: pathlib.Path, found: str, begun: str) -> None:
    if found != begun:
        raise AuditError(
            f"{file} is the state of another training: of {found!r:.300}, where this one is "
            f"{begun!r:.300}. Remove it to begin anew, or choose another folder."
        )
