"""ONNX models as JAX functions with taps."""

from fvaudit.models.imports.onnx.graph import parse as parse
from fvaudit.models.imports.onnx.load import load_onnx as load_onnx
from fvaudit.models.imports.onnx.load import model_from_proto as model_from_proto
from fvaudit.models.imports.onnx.reading import checked_proto as checked_proto
from fvaudit.models.imports.onnx.reading import read_proto as read_proto
