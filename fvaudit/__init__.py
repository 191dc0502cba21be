"""Audits feature visualizations: how far can each be believed, with statistics.

    import fvaudit as fv

    model = fv.load_model("efficientnet_lite0")
    images = fv.load_images("photos/", model)
    vis = fv.visualize(model, [fv.Channel("blocks.8", 17)], steps=256, repeats=2, seed=0)
    path = fv.path_similarity(model, fv.Unit.parse("blocks.8:17"), vis, images)

Importing this package imports neither JAX nor anything else that is slow: each name is fetched
from its module when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any


# Pictures, and whatever is derived from them, are the same bytes within a version: an audit that
# another one began is not gone on with.
__version__ = "0.3.0"

if TYPE_CHECKING:
    from fvaudit import attacks as attacks
    from fvaudit.api import collect_natural as collect_natural
    from fvaudit.api import path_similarity as path_similarity
    from fvaudit.config import load_config as load_config
    from fvaudit.data import load_images as load_images
    from fvaudit.diagnosis import doctor as doctor
    from fvaudit.models.export import export_onnx as export_onnx
    from fvaudit.models.export import save_folder as save_folder
    from fvaudit.models.imports.flax_modules import from_flax as from_flax
    from fvaudit.models.imports.functions import from_function as from_function
    from fvaudit.models.imports.functions import from_intermediates as from_intermediates
    from fvaudit.models.imports.torch_modules import from_torch as from_torch
    from fvaudit.models.model import InputSpec as InputSpec
    from fvaudit.models.model import Model as Model
    from fvaudit.models.zoo import load_model as load_model
    from fvaudit.optvis import optimizers as optimizers
    from fvaudit.optvis import regularizers as regularizers
    from fvaudit.optvis import transforms as transforms
    from fvaudit.optvis.alpha import with_alpha as with_alpha
    from fvaudit.optvis.ball import on_ball as on_ball
    from fvaudit.optvis.couplings import Alignment as Alignment
    from fvaudit.optvis.couplings import Diversity as Diversity
    from fvaudit.optvis.couplings import Interpolation as Interpolation
    from fvaudit.optvis.cppn import cppn as cppn
    from fvaudit.optvis.custom import Custom as Custom
    from fvaudit.optvis.directions import Direction as Direction
    from fvaudit.optvis.directions import NeuronDirection as NeuronDirection
    from fvaudit.optvis.maco import maco as maco
    from fvaudit.optvis.natural import ImageStatistics as ImageStatistics
    from fvaudit.optvis.natural import fit_statistics as fit_statistics
    from fvaudit.optvis.objectives import Channel as Channel
    from fvaudit.optvis.objectives import ClassLogit as ClassLogit
    from fvaudit.optvis.objectives import ClassProbability as ClassProbability
    from fvaudit.optvis.objectives import Head as Head
    from fvaudit.optvis.objectives import Layer as Layer
    from fvaudit.optvis.objectives import Neuron as Neuron
    from fvaudit.optvis.params import fourier as fourier
    from fvaudit.optvis.params import pixels as pixels
    from fvaudit.optvis.penalties import L1 as L1
    from fvaudit.optvis.penalties import L2 as L2
    from fvaudit.optvis.penalties import Proximity as Proximity
    from fvaudit.optvis.penalties import TotalVariation as TotalVariation
    from fvaudit.optvis.recipes import recipe as recipe
    from fvaudit.optvis.render import plateau as plateau
    from fvaudit.optvis.visualize import visualize as visualize
    from fvaudit.records import AuditError as AuditError
    from fvaudit.records import Estimate as Estimate
    from fvaudit.records import Finding as Finding
    from fvaudit.records import ImageSet as ImageSet
    from fvaudit.records import Severity as Severity
    from fvaudit.records import Status as Status
    from fvaudit.records import Unit as Unit
    from fvaudit.records import UnitResult as UnitResult
    from fvaudit.records import Verdict as Verdict
    from fvaudit.records import Visualization as Visualization
    from fvaudit.run import audit as audit

_HOME = {
    "Alignment": "optvis.couplings",
    "AuditError": "records",
    "Channel": "optvis.objectives",
    "ClassLogit": "optvis.objectives",
    "ClassProbability": "optvis.objectives",
    "Custom": "optvis.custom",
    "Direction": "optvis.directions",
    "Diversity": "optvis.couplings",
    "Estimate": "records",
    "Finding": "records",
    "Head": "optvis.objectives",
    "ImageSet": "records",
    "InputSpec": "models.model",
    "ImageStatistics": "optvis.natural",
    "Interpolation": "optvis.couplings",
    "L1": "optvis.penalties",
    "L2": "optvis.penalties",
    "Layer": "optvis.objectives",
    "Model": "models.model",
    "Neuron": "optvis.objectives",
    "NeuronDirection": "optvis.directions",
    "Proximity": "optvis.penalties",
    "Severity": "records",
    "Status": "records",
    "TotalVariation": "optvis.penalties",
    "Unit": "records",
    "UnitResult": "records",
    "Verdict": "records",
    "Visualization": "records",
    "audit": "run",
    "collect_natural": "api",
    "cppn": "optvis.cppn",
    "doctor": "diagnosis",
    "export_onnx": "models.export",
    "fit_statistics": "optvis.natural",
    "fourier": "optvis.params",
    "from_flax": "models.imports.flax_modules",
    "from_function": "models.imports.functions",
    "from_intermediates": "models.imports.functions",
    "from_torch": "models.imports.torch_modules",
    "load_config": "config",
    "load_images": "data",
    "load_model": "models.zoo",
    "maco": "optvis.maco",
    "on_ball": "optvis.ball",
    "path_similarity": "api",
    "pixels": "optvis.params",
    "plateau": "optvis.render",
    "recipe": "optvis.recipes",
    "save_folder": "models.export",
    "visualize": "optvis.visualize",
    "with_alpha": "optvis.alpha",
}

_MODULES = {  # whose names are too many to be here
    "attacks": "attacks",
    "optimizers": "optvis.optimizers",
    "regularizers": "optvis.regularizers",
    "transforms": "optvis.transforms",
}

__all__ = [*_HOME, *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = importlib.import_module(f"fvaudit.{_MODULES[name]}")
        globals()[name] = value
        return value
    if name not in _HOME:
        raise AttributeError(f"module 'fvaudit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fvaudit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
