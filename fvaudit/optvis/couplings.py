"""Objectives that look at a whole set: the n images that are optimized together.

Each gives one score per image, which depends on the others; the engine maximizes the sum over the
set. Signs are lucid's: `Alignment` is a reward (0 at best) and is added, `Diversity` measures
likeness and is subtracted:

    Interpolation(Channel("a", 1), Channel("a", 2)) + Alignment("a")
    Channel("a", 1) - 1e2 * Diversity("a")

A set of one image has nothing to couple and is refused.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fvaudit.optvis.directions import unit_length
from fvaudit.optvis.objectives import Activations, Objective, Pair
from fvaudit.optvis.pytrees import data, pytree, static
from fvaudit.records import AuditError


_REACH = 4  # Alignment compares images up to this far apart in the set; lucid


@pytree
class Interpolation(Pair):
    """Image i of a set of n maximizes (1 - t) left + t right, with t = i / (n - 1).

    Raises:
        AuditError: when called on a set of one image.
    """

    left: Objective = data()  # of image 0 alone
    right: Objective = data()  # of image n - 1 alone

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        left, right = self.left(activations), self.right(activations)
        t = jnp.linspace(0, 1, _size(self, left), dtype=left.dtype)
        return (1 - t) * left + t * right

    def __str__(self) -> str:
        return f"Interpolation({self.left}, {self.right})"


@pytree
class Alignment(Objective):
    """Reward for images of a set that are alike where they are near each other in it.

        -sum over d = 1..4 and all pairs (i, i + d) of mean((x_i - x_{i+d})^2) / decay^d

    with x_i the activation of image i and the mean over positions and channels; each pair's
    penalty is shared equally by its two images. It keeps corresponding parts of the images of an
    `Interpolation` in the same place (lucid).

    Raises:
        AuditError: if decay is not positive; when called on a set of one image.
    """

    layer: str = static()
    decay: float | int = static(default=2.0)

    def __post_init__(self) -> None:
        if not 0 < self.decay < float("inf"):
            raise AuditError(f"decay must be positive and finite, got {self.decay}.")
        object.__setattr__(self, "decay", float(self.decay))

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        x = activations[self.layer]
        n = _size(self, x)
        score = jnp.zeros(n, x.dtype)
        for d in range(1, min(_REACH, n - 1) + 1):
            apart = ((x[d:] - x[:-d]) ** 2).mean(tuple(range(1, x.ndim)))
            half = apart / (2 * self.decay**d)
            score -= jnp.pad(half, (0, d)) + jnp.pad(half, (d, 0))
        return score

    def __str__(self) -> str:
        return f"Alignment({self.layer}, decay={self.decay!r})"


@pytree
class Diversity(Objective):
    """How alike the textures of a set's images are: image i's mean over j != i of <G_i, G_j>.

    G = F^T F / |F^T F| is the Gram matrix of the activations F (positions x channels) over its
    Euclidean length, so the score lies in [-1, 1] (in [0, 1] in fact: Gram matrices are positive
    semidefinite), 1 for equal textures; the sum over the set over n is the mean over all pairs.
    Subtract it. Lucid sums over j where we average: its weight is ours over n - 1.

    A layer that is 0 everywhere has likeness 0 to everything.

    Raises:
        AuditError: when called on a set of one image.
    """

    layer: str = static()

    def __call__(self, activations: Activations) -> Float[Array, " n"]:
        x = activations[self.layer]
        n = _size(self, x)
        # One length for all positions and channels first: powers of large activations overflow.
        features = unit_length(x, tuple(range(1, x.ndim))).reshape(n, -1, x.shape[-1])
        grams = unit_length(jnp.einsum("npc,npd->ncd", features, features), (1, 2))
        alike = jnp.einsum("icd,jcd->ij", grams, grams)
        return (alike.sum(1) - jnp.diagonal(alike)) / (n - 1)

    def __str__(self) -> str:
        return f"Diversity({self.layer})"


def _size(objective: Any, x: Float[Array, "n ..."]) -> int:
    n = x.shape[0]
    if n < 2:
        raise AuditError(
            f"{objective} compares the images of a set, and got a set of one. Optimize at least "
            "2 images together."
        )
    return n
