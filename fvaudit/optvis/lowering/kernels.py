"""The kernel gradient that every convolution rule shares: `lax`'s own.

A visualization never asks for it, and where nobody asks, XLA removes it.
"""

import jax
from jax import lax


NHWC = ("NHWC", "HWIO", "NHWC")


def kernel_gradient(x, kernel, strides, pads, g, groups=1):
    """The gradient of a convolution's kernel, for the output's gradient `g`."""

    def forward(k):
        return lax.conv_general_dilated(
            x, k, strides, pads, dimension_numbers=NHWC, feature_group_count=groups
        )

    return jax.vjp(forward, kernel)[1](g)[0]
