"""PyTorch's model packages as oracles, where they are installed."""

import functools
import os
import warnings

import pytest


@functools.cache
def torch():
    """PyTorch, or the test is skipped."""
    return pytest.importorskip("torch", reason="PyTorch is the oracle of this test")


@functools.cache
def torchvision():
    """torchvision's networks, or the test is skipped."""
    return _beside_cpu_torch("torchvision")


@functools.cache
def timm():
    """timm's networks, or the test is skipped."""
    return _beside_cpu_torch("timm")


@functools.cache
def keras():
    """Keras on JAX, or the test is skipped."""
    os.environ["KERAS_BACKEND"] = "jax"  # read once, when Keras is first imported
    return pytest.importorskip("keras", reason="Keras is the oracle of this test")


def _beside_cpu_torch(package):
    """Imports a package that needs torchvision, whose compiled part may not fit PyTorch's build.

    Only box operators are compiled there, which no network of ours uses: their declarations do.
    """
    _declare_box_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, not ours
        return pytest.importorskip(package, reason=f"{package} is the oracle of this test")


@functools.cache
def _declare_box_operators():
    library = torch().library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library  # operators live as long as their library
