"""What a transform is."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Key


Image = Float[Array, "h w c"]
GROUND = 0.5  # what lies outside the picture: mid-grey, so that no black edge is ever seen


class Affine(NamedTuple):
    """Output pixel q reads the source at matrix @ q + shift; (row, column) from the centre."""

    matrix: Float[Array, "2 2"]
    shift: Float[Array, " 2"]


class Geometric(NamedTuple):
    """A random map of coordinates; `compose` makes a transform of it."""

    text: str
    draw: Callable[[Key[Array, ""]], Affine]
    reach: float  # largest ||matrix^-1||_inf it can draw: output pixels that a source pixel spans


class Transform(NamedTuple):
    """A function and the call text that makes it again."""

    text: str
    apply: Callable[[Key[Array, ""], Image], Image]  # the size may change
