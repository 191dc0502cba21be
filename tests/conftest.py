"""Fixtures that several rooms share."""

import pathlib

import pytest


SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real weights and photographs that stands beside a checkout in CI."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference data in ../shared/data, which this machine lacks")
    return SHARED
