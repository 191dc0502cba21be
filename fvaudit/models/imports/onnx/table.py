"""All operators by name."""

from fvaudit.models.imports.onnx import (
    ops_elementwise,
    ops_index,
    ops_norm,
    ops_products,
    ops_quantized,
    ops_reduce,
    ops_resize,
    ops_shapes,
    ops_spatial,
)
from fvaudit.models.imports.onnx.graph import Node
from fvaudit.models.imports.onnx.operators import Operator, Unsupported
from fvaudit.models.imports.pickle_ops import shown


OPERATORS: dict[str, Operator] = {
    **ops_elementwise.OPERATORS,
    **ops_index.OPERATORS,
    **ops_norm.OPERATORS,
    **ops_products.OPERATORS,
    **ops_quantized.OPERATORS,
    **ops_reduce.OPERATORS,
    **ops_resize.OPERATORS,
    **ops_shapes.OPERATORS,
    **ops_spatial.OPERATORS,
}


def find(node: Node) -> Operator:
    """The operator of a node.

    Raises:
        Unsupported: if there is none here.
    """
    operator = None if node.domain else OPERATORS.get(node.op)
    if operator is None:
        name = f"{node.domain}::{node.op}" if node.domain else node.op
        raise Unsupported(
            f"operator {shown(name)} is not known here; export the model without it, or audit "
            "the layers before it"
        )
    return operator
