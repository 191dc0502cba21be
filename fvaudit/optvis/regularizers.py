"""What is done to a latent after each update."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Regularizer(NamedTuple):
    """A function and the call text that makes it again."""

    text: str
    # (latent, gradient of the score, index of the step) -> latent
    apply: Callable[[Any, Any, Any], Any]
