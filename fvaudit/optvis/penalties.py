"""Penalties on the images ("input") or on any layer. All are 0 or more: subtract them.

    L1              sum |x - constant|
    L2              sqrt(epsilon + sum (x - constant)^2)
    TotalVariation  sum |x[r + 1, c] - x[r, c]| + sum |x[r, c + 1] - x[r, c]|
    Proximity       mean (x - reference)^2

each over all positions and channels of one image. The first three are lucid's, sums and not means,
so that its weights mean the same here (its regularization notebook has L1 -0.05 and total
variation -0.25); a sum grows with the image, so weights belong to a size. On the images, L1 and L2
measure from mid-grey, 0.5, as that notebook does; on other layers from 0. As in lucid, "input" is
the images themselves, without the transforms of the step.
"""

import math
import numbers
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fvaudit.optvis.objectives import Activations, Objective
from fvaudit.optvis.pytrees import constant, data, digest, pytree, static
from fvaudit.records import AuditError


@pytree
class L1(Objective):
    """Sum over one image's positions and channels of |x - constant|.

    Args:
        layer: "input" for the images, which lie in [0, 1].
        constant: measured from; without one, 0.5 on "input" and 0 elsewhere.

    Raises:
        AuditError: if constant is not finite.
    """

    layer: str = static(default="input")
    constant: Any = data(default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "constant", _origin(self.layer, self.constant))

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        x = activations[self.layer]
        return _size(x - self.constant).sum(tuple(range(1, x.ndim)))

    def __str__(self) -> str:
        return f"L1({self.layer}, constant={self.constant!r})"


@pytree
class L2(Objective):
    """sqrt(epsilon + sum over one image's positions and channels of (x - constant)^2).

    Args:
        layer: "input" for the images, which lie in [0, 1].
        constant: measured from; without one, 0.5 on "input" and 0 elsewhere.
        epsilon: > 0; keeps the gradient finite where x is the constant (1e-6 in lucid).

    Raises:
        AuditError: if constant is not finite or epsilon not positive.
    """

    layer: str = static(default="input")
    constant: Any = data(default=None)
    epsilon: float | int = static(default=1e-6)

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < float("inf"):
            raise AuditError(f"epsilon must be positive and finite, got {self.epsilon}.")
        object.__setattr__(self, "constant", _origin(self.layer, self.constant))
        object.__setattr__(self, "epsilon", float(self.epsilon))

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        x = activations[self.layer]
        squares = ((x - self.constant) ** 2).sum(tuple(range(1, x.ndim)))
        return jnp.sqrt(self.epsilon + squares)

    def __str__(self) -> str:
        return f"L2({self.layer}, constant={self.constant!r}, epsilon={self.epsilon!r})"


@pytree
class TotalVariation(Objective):
    """Sum of absolute differences between vertical and horizontal neighbours, every channel alone.

    The anisotropic form, as in lucid and TensorFlow: diagonal edges cost sqrt(2) times what their
    length would (Simonyan et al. 2014 and Mahendran and Vedaldi 2015 have other exponents).

    Raises:
        AuditError: when called, if the layer has no rows and columns.
    """

    layer: str = static(default="input")

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        x = activations[self.layer]
        if x.ndim != 4:
            raise AuditError(
                f"{self} compares neighbours, but {self.layer} has no rows and columns."
            )
        down, right = jnp.diff(x, axis=1), jnp.diff(x, axis=2)
        return _size(down).sum((1, 2, 3)) + _size(right).sum((1, 2, 3))

    def __str__(self) -> str:
        return f"TotalVariation({self.layer})"


@pytree
class Proximity(Objective):
    """Mean squared distance to a reference activation, over positions and channels.

    Feature accentuation (Hamblin et al. 2024) starts from a natural image and subtracts the
    distance to that image's activation in an early layer, which keeps the natural path:

        early = model.activations(image[None], ["blocks.2"])["blocks.2"][0]
        Channel("blocks.8", 17) - 10 * Proximity("blocks.2", early)

    Args:
        layer: "input" for the images themselves.
        reference: one activation (h, w, c) or (c,) for every image of the set, or one per image
            (n, ...); as float32; data, so one program serves all references of a shape.

    Raises:
        AuditError: if the reference is not finite; when called, if its shape does not fit.
    """

    layer: str = static()
    reference: Any = data()
    shape: tuple[int, ...] = static(default=(), init=False)  # of the reference

    def __post_init__(self) -> None:
        reference = constant("reference", self.reference)
        object.__setattr__(self, "reference", reference)
        object.__setattr__(self, "shape", reference.shape)

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        x = activations[self.layer]
        if self.shape not in (x.shape, x.shape[1:]):
            raise AuditError(
                f"A reference for {self.layer} must have shape {x.shape[1:]} or {x.shape}, got "
                f"{self.shape}."
            )
        return ((x - self.reference) ** 2).mean(tuple(range(1, x.ndim)))

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return f"Proximity({self.layer}, {shape} numbers sha256:{digest(self.reference)})"


def _size(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """|x| with gradient 0 at 0, where that of `jnp.abs` is 1 and would push a flat image."""
    return x * jnp.sign(x)


def _origin(layer: str, origin: Any) -> float:
    if origin is None:
        return 0.5 if layer == "input" else 0.0
    if not isinstance(origin, numbers.Real) or not math.isfinite(origin):
        raise AuditError(f"constant must be one finite number, got {origin!r:.80}.")
    return float(origin)
