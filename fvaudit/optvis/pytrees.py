"""Frozen records that JAX can trace: fields are either data (leaves) or static (compiled in).

Two objectives that differ only in data run in one compiled program. Arrays that a user hands over
are checked and copied once, when the record is made, and are named in its text by a digest.
"""

import dataclasses
import hashlib
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.core
import numpy as np
from jaxtyping import Float

from fvaudit.records import AuditError


_T = TypeVar("_T")


def data(default: Any = dataclasses.MISSING) -> Any:
    """A field that may be traced: other values of it share one compiled program."""
    return dataclasses.field(default=default)


def static(default: Any = dataclasses.MISSING, *, init: bool = True) -> Any:
    """A hashable field that is compiled in."""
    return dataclasses.field(default=default, init=init, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(data, static))
def pytree(cls: type[_T]) -> type[_T]:
    """Makes a class a frozen record whose `data` fields are a pytree's leaves.

    Unlike `jax.tree_util.register_dataclass` it does not go through the constructor again when
    JAX rebuilds a record, so that constructors can check what users write.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    fixed = [f.name for f in fields if f.metadata.get("static")]
    free = [f.name for f in fields if not f.metadata.get("static")]

    def flatten(record):
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(record, name)) for name in free]
        return leaves, tuple(getattr(record, name) for name in fixed)

    def unflatten(aux, leaves):
        record = object.__new__(cls)
        for name, value in zip([*fixed, *free], [*aux, *leaves], strict=True):
            object.__setattr__(record, name, value)
        return record

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    cls.__eq__, cls.__hash__ = _equal, _hash  # a dataclass's own would compare arrays by ==
    return cls


def _equal(self: Any, other: Any) -> bool:
    leaves, structure = jax.tree.flatten(self)
    others, same = jax.tree.flatten(other)
    return structure == same and all(map(np.array_equal, leaves, others))


def _hash(self: Any) -> int:
    leaves, structure = jax.tree.flatten(self)
    return hash((structure, *map(digest, leaves)))


def constant(name: str, values: Any) -> Float[np.ndarray, "..."]:
    """What an objective is given as data, as float32.

    Raises:
        AuditError: if it is not numbers, or holds NaN or infinity.
    """
    try:
        array = np.array(values, np.float32)  # a copy: no later write can change the objective
    except (TypeError, ValueError) as error:
        raise AuditError(f"{name} must be an array of numbers, got {values!r:.80}.") from error
    if not np.isfinite(array).all():
        raise AuditError(f"{name} must be finite, but holds NaN or infinity.")
    array.flags.writeable = False
    return array


def digest(values: Any) -> str:
    """Twelve hex digits of the SHA-256 of an array's float32 bytes: its name in a text."""
    if isinstance(values, jax.core.Tracer):
        return "traced"
    bare = np.asarray(values, np.float32) + 0.0  # -0 and 0 are the same number
    return hashlib.sha256(bare.tobytes()).hexdigest()[:12]
