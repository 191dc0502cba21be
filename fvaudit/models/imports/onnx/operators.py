"""What an operator is: a function of arrays, and how it may be run on many images at once.

    run(call, *arrays) -> array or tuple of arrays

`call` knows the node's attributes and whether the arrays are NumPy's (the operation is folded at
load time) or JAX's. The kind says how arrays may be laid out; see `running`.

    ELEMENTWISE  same value at every place; any layout, as long as all arrays share it
    SPATIAL      first input and outputs (n, positions..., c); the others as prepared
    ALONG        acts along axes that it asks `call.axis` for; any layout
    ROWS         acts on each row of its first input alike; ONNX's order
    VIEW         changes the shape alone
    PLAIN        ONNX's order, one image at a time (vectorized over images)
"""

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fvaudit.models.imports.onnx.graph import Node
from fvaudit.models.imports.pickle_ops import shown
from fvaudit.records import AuditError


MOST_NUMBERS = 2**27  # of one array: 512 MiB of float32


class Kind(enum.Enum):
    """How arrays of an operator may be laid out."""

    ELEMENTWISE = enum.auto()
    SPATIAL = enum.auto()
    ALONG = enum.auto()
    ROWS = enum.auto()
    VIEW = enum.auto()
    PLAIN = enum.auto()


class Operator(NamedTuple):
    """One operator of ONNX."""

    run: Callable[..., Any]  # run(call, *arrays)
    kind: Kind = Kind.PLAIN
    static: tuple[int, ...] = ()  # inputs whose values must be known at load time
    typed: tuple[int, ...] = ()  # inputs whose own type counts: constants stay as the file has them
    prepare: Mapping[int, Callable[[Any, Any], Any]] = {}  # input -> (xp, array) -> as run takes it


class Unsupported(AuditError):
    """A node that cannot be computed here; what comes before it can."""


class NotDirect(Exception):
    """This node must be run one image at a time."""


class Call(NamedTuple):
    """One run of a node."""

    node: Node
    xp: Any  # numpy or jax.numpy
    order: tuple[int, ...] | None = None  # ONNX's axis at each axis of the arrays; None: its own
    images: bool = False  # axis 0 of the arrays is the images', and must not be touched

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.node.get(name, default)

    @property
    def version(self) -> int:
        """Of the operator set."""
        return self.node.version

    def axis(self, axis: int, rank: int) -> int:
        """Where ONNX's axis stands in arrays of this rank.

        Raises:
            AuditError: if there is no such axis.
            NotDirect: if it is the images'.
        """
        axis = int(axis)
        if not -rank <= axis < rank:
            raise AuditError(f"axis {axis} does not exist in an array of {rank} axes")
        axis %= rank
        if self.images and axis == 0:
            raise NotDirect
        return axis if self.order is None else self.order.index(axis)

    def axes(self, axes: Sequence[int], rank: int) -> tuple[int, ...]:
        """Where several axes stand."""
        return tuple(self.axis(a, rank) for a in axes)


def require_numbers(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape, if an array of it may be made.

    Raises:
        AuditError: if it is negative or too large.
    """
    shape = tuple(int(s) for s in shape)
    if any(s < 0 for s in shape) or math.prod(shape) > MOST_NUMBERS or len(shape) > 32:
        raise AuditError(
            f"an array of shape {shape[:8]} is asked for; expected at most {MOST_NUMBERS} numbers"
        )
    return shape


def numbers(values: Any) -> list[int]:
    """Whole numbers of a known array or attribute."""
    return [int(v) for v in np.asarray(values).reshape(-1)]


def data_type(xp: Any, code: int) -> Any:
    """The type of a TensorProto.DataType; with JAX as wide as JAX is set to.

    Raises:
        Unsupported: if it is a type of texts, or not known.
    """
    import onnx

    if code in (0, onnx.TensorProto.STRING):
        raise Unsupported(f"values of type {code} are no numbers")
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(code)
    except (KeyError, ValueError, TypeError):
        raise Unsupported(f"type {shown(str(code))} is not known") from None
    return dtype if xp is np else jax.dtypes.canonicalize_dtype(dtype)


def host(value: Any) -> bool:
    """Whether an array is known at load time."""
    return isinstance(value, np.ndarray | np.generic)


def to_numpy(value: Any) -> np.ndarray:
    """An array of either library as NumPy's."""
    return np.asarray(value)


def is_floating(array: Any) -> bool:
    """Whether an array holds fractions (half precision and smaller included)."""
    return jnp.issubdtype(array.dtype, jnp.floating)
