"""Fixtures that several rooms share."""

import atexit
import os
import pathlib
import shutil
import tempfile

import pytest


SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"

# Programs that the tests' processes compile are shared between them, and not with the user's.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="fvaudit-programs-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    """Leaves LLVM's optimizations out, as JAX's and Flax's own tests do, where tests are short.

    Three quarters of their time go into compiling programs that run once. Slow tests run theirs
    for long, and as users get them.
    """
    if "not slow" in config.option.markexpr:
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real weights and photographs that stands beside a checkout in CI."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference data in ../shared/data, which this machine lacks")
    return SHARED
