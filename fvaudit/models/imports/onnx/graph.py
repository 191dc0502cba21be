"""The graph of an ONNX model as plain records, in order of computation.

What the protobuf message leaves open is decided here once: every value has one producer, every
input exists, the order is one in which nodes can run. Nodes know the version of their operator
set, since attributes and inputs changed their meaning with it.
"""

import ast
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fvaudit.models.imports.onnx.reading import MOST_NODES, require_onnx, tensor_bytes, text
from fvaudit.models.imports.pickle_ops import shown
from fvaudit.records import AuditError


OLDEST = 7  # operator set from which broadcasting is NumPy's
_SCOPES = "pkg.torch.onnx.name_scopes"  # metadata of torch.onnx's nodes: the modules around it
_LONGEST_SCOPES = 4096  # characters


class Node(NamedTuple):
    """One operation."""

    op: str  # "Conv"
    domain: str  # "" is ONNX's own
    version: int  # of the domain's operator set
    name: str  # may be empty
    inputs: tuple[str, ...]  # "" stands for an input left out
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]  # numbers, texts, arrays, `Graph`s, lists of them
    scopes: tuple[str, ...] = ()  # paths of the modules around it, outermost first

    @property
    def label(self) -> str:
        """What to call it in errors."""
        return shown(self.name or next((o for o in self.outputs if o), "?"))

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute's value, or `default`."""
        return self.attributes.get(name, default)


class Input(NamedTuple):
    """One input of the graph that no initializer fills."""

    name: str
    shape: tuple[int | None, ...] | None  # None: an axis, or all of them, left open
    type: int  # TensorProto.DataType


class Graph(NamedTuple):
    """A validated graph."""

    nodes: tuple[Node, ...]  # each after the producers of its inputs
    constants: Mapping[str, np.ndarray]  # initializers
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]


def parse(proto: Any) -> Graph:
    """The graph of a `ModelProto` that `reading.checked_proto` returned.

    Raises:
        AuditError: if a value has two producers or none, nodes form a cycle, a tensor's data do
            not fill its shape, or the operator set is too old.
    """
    versions = {_domain(entry.domain): entry.version for entry in proto.opset_import}
    if versions.get("", OLDEST) < OLDEST:
        raise AuditError(
            f"The model uses operator set {versions['']}; expected {OLDEST} or later. "
            "Convert it with onnx.version_converter."
        )
    return _graph(proto.graph, versions, known=set())


def _graph(graph: Any, versions: Mapping[str, int], known: set[str]) -> Graph:
    if len(graph.node) > MOST_NODES:
        raise AuditError(f"The model has {len(graph.node)} nodes; expected at most {MOST_NODES}.")
    if graph.sparse_initializer:
        raise AuditError("The model holds sparse initializers. Save it with dense ones.")
    constants: dict[str, np.ndarray] = {}
    for tensor in graph.initializer:
        name = text(tensor.name)
        if not name or name in constants:
            raise AuditError(
                f"The model holds two initializers {shown(text(tensor.name))}; expected one."
            )
        constants[name] = array(tensor)
    inputs = tuple(_input(value) for value in graph.input if text(value.name) not in constants)
    given = known | set(constants) | {i.name for i in inputs}
    if len({i.name for i in inputs}) != len(inputs):
        raise AuditError("The model names two inputs alike; expected each once.")
    nodes = _ordered([_node(node, versions, given) for node in graph.node], given)
    outputs = tuple(text(value.name) for value in graph.output)
    made = given | {name for node in nodes for name in node.outputs}
    if missing := [name for name in outputs if name not in made]:
        raise AuditError(f"No node computes the output {shown(missing[0])} of the model.")
    return Graph(nodes, constants, inputs, outputs)


def _node(node: Any, versions: Mapping[str, int], known: set[str]) -> Node:
    domain = _domain(node.domain)
    return Node(
        op=text(node.op_type),
        domain=domain,
        version=versions.get(domain, 0),
        name=text(node.name),
        inputs=tuple(map(text, node.input)),
        outputs=tuple(map(text, node.output)),
        attributes={text(a.name): _attribute(a, versions, known) for a in node.attribute},
        scopes=_scopes(node),
    )


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else text(name)


def _attribute(attribute: Any, versions: Mapping[str, int], known: set[str]) -> Any:
    kinds = type(attribute)
    if attribute.type == kinds.TENSOR:
        return array(attribute.t)
    if attribute.type == kinds.GRAPH:
        return attribute.g, versions  # read where it is entered: it sees the values around it
    try:
        value = require_onnx().helper.get_attribute_value(attribute)
    except (ValueError, TypeError):
        raise AuditError(f"Attribute {shown(text(attribute.name))} has an unknown type.") from None
    return text(value) if isinstance(value, bytes) else value


def inner(attribute: Any, known: set[str]) -> Graph:
    """The graph that an attribute holds, for instance one branch of an If.

    Args:
        attribute: as found among a `Node`'s attributes.
        known: names of the values around it.

    Raises:
        AuditError: as `parse` says, and if the attribute holds no graph.
    """
    if not isinstance(attribute, tuple):
        raise AuditError("A node lacks the graph that its operator needs.")
    graph, versions = attribute
    return _graph(graph, versions, known)


def _scopes(node: Any) -> tuple[str, ...]:
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    if not scopes or len(scopes) > _LONGEST_SCOPES:
        return ()
    try:
        found = ast.literal_eval(text(scopes))  # a list of texts; literals only
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    return tuple(s for s in found[:-1] if isinstance(s, str)) if isinstance(found, list) else ()


def _input(value: Any) -> Input:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return Input(text(value.name), None, kind.elem_type)
    sizes = (d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return Input(
        value.name, tuple(s if s is None or s > 0 else None for s in sizes), kind.elem_type
    )


def _ordered(nodes: Sequence[Node], known: set[str]) -> tuple[Node, ...]:
    """Nodes after their producers; ONNX demands that order, and some writers break it."""
    producers: dict[str, int] = {}
    for i, node in enumerate(nodes):
        for name in filter(None, node.outputs):
            if name in producers or name in known:
                raise AuditError(
                    f"Two nodes of the model compute {shown(name)}; every value has one producer."
                )
            producers[name] = i
    waiting, users = _dependencies(nodes, known, producers)
    ready = [i for i, count in enumerate(waiting) if not count][::-1]
    order: list[Node] = []
    while ready:
        i = ready.pop()
        order.append(nodes[i])
        for user in users[i]:
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    if len(order) < len(nodes):
        stuck = next(node for node, count in zip(nodes, waiting, strict=True) if count)
        raise AuditError(f"The model's nodes form a cycle through {stuck.label} ({stuck.op}).")
    return tuple(nodes) if _runs(nodes, known) else tuple(order)


def _runs(nodes: Sequence[Node], known: set[str]) -> bool:
    """Whether the file's own order is already one in which nodes can run."""
    made = set(known)
    for node in nodes:
        if any(name and name not in made for name in node.inputs):
            return False
        made.update(node.outputs)
    return True


def _dependencies(nodes, known, producers):
    waiting, users = [0] * len(nodes), [[] for _ in nodes]
    for i, node in enumerate(nodes):
        for name in {n for n in node.inputs if n and n not in known}:
            if name not in producers:
                raise AuditError(
                    f"Node {node.label} ({shown(node.op)}) reads {shown(name)}, which nothing "
                    "computes."
                )
            waiting[i] += 1
            users[producers[name]].append(i)
    return waiting, users


def array(tensor: Any) -> np.ndarray:
    """A tensor's numbers, in its own type.

    Raises:
        AuditError: if its data do not fill its shape, or are no numbers.
    """
    size = tensor_bytes(tensor)
    if tensor.HasField("raw_data") and len(tensor.raw_data) != size:
        raise AuditError(
            f"Tensor {shown(text(tensor.name))} holds {len(tensor.raw_data)} bytes; its shape "
            f"{list(tensor.dims)[:8]} needs {size}."
        )
    try:
        values = np.asarray(require_onnx().numpy_helper.to_array(tensor))
    except Exception as error:  # onnx and NumPy raise many kinds
        raise AuditError(
            f"Tensor {shown(text(tensor.name))} is damaged: {shown(str(error))}"
        ) from None
    if values.shape != tuple(tensor.dims):
        raise AuditError(
            f"Tensor {shown(text(tensor.name))} does not fill its shape {list(tensor.dims)}."
        )
    return values
