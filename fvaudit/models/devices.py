"""All local devices take part, one image each.

On a CPU, two cores run two one-image programs about 1.5 times faster than one program that splits
every operation over both: so each core becomes a JAX device of its own, and operations stay on
their core. That has to be asked for before JAX starts; where JAX runs already, its devices are
used as they are.

Compiled programs are kept in the user's cache folder, so the next run starts in seconds. JAX's own
settings win: JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE.
"""

import contextlib
import ctypes
import gc
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fvaudit.records import AuditError, require_whole


LANES = 16  # on a GPU: an image alone takes 2.5 times as long as with 1, each of many a sixth
MOST_LANES = 4096  # a batch is padded to them, and no device holds more
_DEFAULT_SECONDS = 1.0  # JAX's own: programs that compile faster are compiled again in every run
_WORTH_KEEPING = 0.1  # seconds; an audit has half a dozen programs between the two


def start() -> None:
    """Asks JAX for all cores and a program cache; to be called before the first computation.

    Raises:
        AuditError: if JAX computes in 64 bits here.
    """
    if jax.dtypes.canonicalize_dtype(np.float64) == np.float64:
        raise AuditError(
            "JAX is set to 64 bits (jax_enable_x64), and fvaudit computes in 32, as networks do. "
            "Leave that off, or call fvaudit inside `with jax.enable_x64(False):`."
        )
    wanted = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    if wanted and not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        _keep_programs(cache_folder())
    if jax.config.jax_persistent_cache_min_compile_time_secs == _DEFAULT_SECONDS:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)
    try:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    except RuntimeError:  # JAX has started: its devices can no longer be changed
        return


def _keep_programs(folder: pathlib.Path) -> None:
    """In a folder, if it can be written to; JAX would complain of every program that it cannot."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    else:
        warnings.warn(
            f"Compiled programs cannot be kept in {folder}, so that every run compiles them again. "
            "Set XDG_CACHE_HOME or JAX_COMPILATION_CACHE_DIR to a folder that can be written to.",
            stacklevel=2,
        )


def cache_folder() -> pathlib.Path:
    """Where compiled programs are kept between runs."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home, "fvaudit", "programs")


def give_back_memory() -> None:
    """Returns to the system what compiling a program took and freed: hundreds of MB with glibc."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, TypeError, AttributeError):  # another C library, which has no need of it
        return


def lanes(given: int | None) -> int:
    """Images that a device takes at a time: as given, else 1 on a CPU and `LANES` elsewhere.

    Raises:
        AuditError: if fewer than 1 are given, or more than `MOST_LANES`.
    """
    if given is None:
        return 1 if jax.default_backend() == "cpu" else LANES
    require_whole("lanes (images a device and step)", given, 1, MOST_LANES)
    return given


def on_every_device(
    function: Callable[..., Any], shared: int, *, brief: bool = False
) -> Callable[..., Any]:
    """`function` over the leading axis of its arguments, an equal share for each local device.

    Args:
        function: takes `shared` arguments that every device gets whole, then arguments of which
            each device gets its rows; returns arrays with rows.
        shared: how many arguments are shared.
        brief: the program takes less time than its compilation, which is cut short on a CPU.
    """
    rows, whole = PartitionSpec("images"), PartitionSpec()

    def sharded(*arguments: Any) -> Any:
        specs = (*(whole,) * shared, *(rows,) * (len(arguments) - shared))
        mapped = jax.shard_map(
            function, mesh=_mesh(), in_specs=specs, out_specs=rows, check_vma=False
        )
        with _no_collection():
            return mapped(*arguments)

    return jax.jit(sharded, compiler_options=_compiler_options(brief))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """While a program is traced, which makes a million objects and hardly a cycle.

    Python looks for cycles whenever so many objects are new: a seventh of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def replicated(tree: Any) -> Any:
    """Copies arrays to every local device once, so that calls need not."""
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), ("images",))


def _compiler_options(brief: bool) -> dict[str, bool | int]:
    """Options of `jax.jit` for programs that run one image per device."""
    if jax.default_backend() != "cpu":
        return {}
    alone: dict[str, bool | int] = {}
    if jax.local_device_count() > 1:
        alone["xla_cpu_multi_thread_eigen"] = False
    return alone | ({"xla_backend_optimization_level": 1} if brief else {})
