"""The natural images that drive a unit most and least, at most one per photograph."""

import numpy as np
from jaxtyping import Float, Int


def strongest(
    response: Float[np.ndarray, " n"], photograph: Int[np.ndarray, " n"], count: int
) -> Int[np.ndarray, " g"]:
    """Indices of the strongest images, strongest first, one per photograph.

    Args:
        response: of the unit to each image; NaN is left out.
        photograph: of origin of each image.
        count: how many photographs; all of them if there are fewer.
    """
    order = np.argsort(-response, kind="stable")
    order = order[~np.isnan(response[order])]
    return first_of_each(order, photograph)[:count]


def weakest(
    response: Float[np.ndarray, " n"], photograph: Int[np.ndarray, " n"], count: int
) -> Int[np.ndarray, " g"]:
    """Indices of the weakest images, weakest first, one per photograph."""
    return strongest(-response, photograph, count)


def first_of_each(
    order: Int[np.ndarray, " n"], photograph: Int[np.ndarray, " m"]
) -> Int[np.ndarray, " g"]:
    """Of the images listed in `order`, the first of each photograph, in that order."""
    _, first = np.unique(photograph[order], return_index=True)
    return order[np.sort(first)]


def strongest_of_each(
    response: Float[np.ndarray, " n"], photograph: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " p"]:
    """One value per photograph: its strongest crop's. NaN responses are left out."""
    picked = strongest(response, photograph, len(response))
    return response[np.sort(picked)]
