"""Many images through a network: a fixed number per call, a few at a time within it.

What a call needs it allocates and gives back, and the system hands out every page anew, cleared:
of a forward pass on a CPU that is a third of the time. The steps of one call use the same memory.
One image a step is as fast there as eight, and its features cannot depend on its neighbours.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Num, Shaped

from fvaudit.models import devices


IMAGES = 32  # of one call, on all devices together; more take longer to fill with what they need
STEPS = 4  # of one call at least, on machines with many devices


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
    """Calls a `program` on block after block; yields which images it took, and its arrays.

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


def whole(
    program: Callable[..., Any],
    shared: tuple[Any, ...],
    images: Num[np.ndarray, "n ..."],
    lanes: int,
) -> Any:
    """What `calls` make of all images, of which there is at least one: arrays with a row each."""
    blocks = [
        jax.tree.map(functools.partial(rows, block=block), out)
        for block, out in calls(program, shared, images, lanes)
    ]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *blocks)


def of_all(
    function: Callable[..., Any], shared: tuple[Any, ...], images: Num[np.ndarray, "n ..."]
) -> Any:
    """`function` of all images, of which there is at least one, in a program made for this call.

    Args:
        function: as in `program`.
        shared: its first arguments.
        images: its last.
    """
    lanes = devices.lanes(None)
    made = program(function, len(shared), lanes)
    return whole(made, devices.replicated(shared), images, lanes)


def rows(array: jax.Array, block: slice) -> Shaped[np.ndarray, "n ..."]:
    """The rows of a block's images, in order."""
    return np.concatenate(parts(array, block))


def parts(array: jax.Array, block: slice) -> list[Shaped[np.ndarray, "k ..."]]:
    """The same by device; not copied on a CPU."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    count = block.stop - block.start
    each = _share(count)
    left = (count - each * index for index in range(len(shards)))
    return [np.asarray(s.data)[: min(each, n)] for s, n in zip(shards, left, strict=True) if n > 0]


def _share(count: int) -> int:
    """How many of so many images a device gets; the last devices may get less."""
    return -(-count // jax.local_device_count())


def _dealt(block: Num[np.ndarray, "n ..."], size: int) -> Num[np.ndarray, "m ..."]:
    """Every device's share, each followed by zeros up to the device's part of `size`."""
    if len(block) == size:
        return block
    count, each = jax.local_device_count(), _share(len(block))
    room = np.zeros((count, size // count, *block.shape[1:]), block.dtype)
    for index, own in enumerate(room):
        part = block[index * each : (index + 1) * each]
        own[: len(part)] = part
    return room.reshape(size, *block.shape[1:])
