"""Many images through a network: a fixed number per call, a few at a time within it.

What a call needs it allocates and gives back, and the system hands out every page anew, cleared:
of a forward pass on a CPU that is a third of the time. The steps of one call use the same memory.
One image a step is as fast there as eight, and its features cannot depend on its neighbours.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Num

from fvaudit.models import devices
from fvaudit.records import AuditError


LANES = 16  # images of a step on a GPU, where one image leaves most of it idle
IMAGES = 32  # of one call, on all devices together; more take longer to fill with what they need
STEPS = 4  # of one call at least, on machines with many devices


def lanes(given: int | None) -> int:
    """Images of a device in a step: as given, else 1 on a CPU and `LANES` elsewhere.

    Raises:
        AuditError: if fewer than 1 are given.
    """
    if given is None:
        return 1 if jax.default_backend() == "cpu" else LANES
    if given < 1:
        raise AuditError(f"lanes must be at least 1 image a device and step, got {given}.")
    return given


def width(lanes: int) -> int:
    """Images of one call, on all local devices together: whole steps of all of them."""
    step = jax.local_device_count() * lanes
    return step * max(STEPS, IMAGES // step)


def program(function: Callable[..., Any], shared: int, lanes: int) -> Callable[..., Any]:
    """Jitted (shared arguments, steps, images) -> arrays with a row per image, for `calls`.

    Args:
        function: takes `shared` arguments and then `lanes` images; returns arrays with as many
            rows.
        shared: how many arguments all devices get whole.
        lanes: images of a step.
    """

    def shard(*arguments: Any) -> Any:
        whole, steps, images = arguments[:shared], arguments[shared], arguments[-1]
        shapes = jax.eval_shape(function, *whole, images[:lanes])
        room = jax.tree.map(lambda x: jnp.zeros((len(images), *x.shape[1:]), x.dtype), shapes)

        def step(index: Any, found: Any) -> Any:
            at = index * lanes
            made = function(*whole, lax.dynamic_slice_in_dim(images, at, lanes))
            put = lax.dynamic_update_slice_in_dim
            return jax.tree.map(lambda rows, new: put(rows, new, at, 0), found, made)

        return lax.fori_loop(0, steps, step, room)

    return devices.on_every_device(shard, shared + 1)


def calls(
    program: Callable[..., Any],
    shared: tuple[Any, ...],
    images: Num[np.ndarray, "n ..."],
    lanes: int,
) -> Iterator[tuple[slice, Any]]:
    """Calls a `program` on block after block; yields which rows it took, and its arrays.

    Each comes once the next was called: JAX computes the one while the host has the other. A block
    that is not full costs the steps that it needs, but is no program of its own.
    """
    size, waiting = width(lanes), None
    for start in range(0, len(images), size):
        block = images[start : start + size]
        steps = -(-_share(len(block)) // lanes)
        called = slice(start, start + len(block)), program(*shared, steps, _dealt(block, size))
        if waiting:
            yield waiting
        waiting = called
    if waiting:
        yield waiting


def parts(array: jax.Array, count: int) -> list[Num[np.ndarray, "k ..."]]:
    """The rows of a block of `count` images, in order, by device; not copied on a CPU."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    each = _share(count)
    left = (count - each * index for index in range(len(shards)))
    return [np.asarray(s.data)[: min(each, n)] for s, n in zip(shards, left, strict=True) if n > 0]


def rows(array: jax.Array, count: int) -> Num[np.ndarray, "n ..."]:
    """`parts` as one array."""
    return np.concatenate(parts(array, count))


def _share(count: int) -> int:
    """How many of so many images a device gets; the last devices may get less."""
    return -(-count // jax.local_device_count())


def _dealt(block: Num[np.ndarray, "n ..."], size: int) -> Num[np.ndarray, "m ..."]:
    """Every device's share, each followed by zeros up to the device's part of `size`."""
    if len(block) == size:
        return block
    room = np.zeros((jax.local_device_count(), size // jax.local_device_count(), *block.shape[1:]),
                    block.dtype)  # fmt: skip
    each = _share(len(block))
    for index, own in enumerate(room):
        part = block[index * each : (index + 1) * each]
        own[: len(part)] = part
    return room.reshape(size, *block.shape[1:])
