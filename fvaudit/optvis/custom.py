"""Any function of activations as an objective.

def brightness(activations):
    return activations["input"].mean((1, 2, 3))

Channel("blocks.8", 17) - 0.1 * Custom(brightness, layers=("input",))
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fvaudit.optvis.objectives import Activations, Objective
from fvaudit.optvis.pytrees import pytree, static
from fvaudit.records import AuditError


@pytree
class Custom(Objective):
    """Any function of activations: {layer: (n, h, w, c) or (n, c)} -> scores (n,).

    Functions are told apart by identity: pass the same one again and nothing is compiled again.

        Custom(brightness, layers=("input",))    text: "Custom(brightness, input)"

    Raises:
        AuditError: if there is no layer, or no text although the function's name alone does not
            tell it from others (lambdas, functions made by functions, methods of an object).
    """

    function: Callable[[dict[str, Array]], Array] = static()
    layers: Sequence[str] = static(default=())  # pyright: ignore[reportIncompatibleMethodOverride]
    text: str = static(default="")  # the function's __qualname__ unless given

    def __post_init__(self) -> None:
        if not isinstance(self.layers, tuple | list) or not self.layers:
            raise AuditError(
                f"layers is a sequence of names, for example ('input',); got {self.layers!r}."
            )
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "text", self.text or _name(self.function))

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        seen = _Declared((layer, activations[layer]) for layer in self.layers)
        n = seen[self.layers[0]].shape[0]
        out = self.function(seen)
        if jnp.shape(out) != (n,) or not jnp.issubdtype(jnp.result_type(out), jnp.floating):
            raise AuditError(
                f"{self} must give one float per image, shape ({n},); got "
                f"{jnp.result_type(out)} of shape {jnp.shape(out)}. "
                "Reduce every axis but the first."
            )
        return jnp.asarray(out)

    def __str__(self) -> str:
        return f"Custom({self.text}, {', '.join(self.layers)})"


class _Declared(dict):
    """Activations of the layers that a custom objective announced."""

    def __missing__(self, layer: str) -> Any:
        raise AuditError(f"A Custom objective reads {layer!r}, which its layers do not name.")


def _name(function: Callable) -> str:
    name = getattr(function, "__qualname__", "<>")
    if "<" in name or getattr(function, "__self__", None) is not None:
        raise AuditError(
            f"{function!r} has no name of its own, and the text of an objective seeds its images: "
            "give Custom(..., text=...), different for different functions."
        )
    return name
