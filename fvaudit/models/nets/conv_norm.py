"""A convolution and its batch norm as one convolution with a bias.

At evaluation a batch norm is affine, so with s = scale / sqrt(var + eps)

    norm(conv(x, W)) = conv(x, W * s) + (bias - mean * s)

which saves two passes over the activations. W * s depends on parameters alone, so the engine
computes it once and not at every step (`optvis.hoisting`).
"""

from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from fvaudit.optvis import lowering


def conv_norm(
    conv: nnx.Conv, norm: nnx.BatchNorm, x: Float[Array, "n h w c"]
) -> Float[Array, "n p q o"]:
    """norm(conv(x)) with running statistics, up to float32 rounding.

    Args:
        conv: made by `bare_conv`.
        norm: over the channels of its output.
        x: images.
    """
    assert norm.scale is not None and norm.bias is not None and conv.bias is None
    scale = norm.scale[...] * lax.rsqrt(norm.var[...] + norm.epsilon)
    shift = norm.bias[...] - norm.mean[...] * scale
    return shift + lowering.conv_general_dilated(
        x,
        conv.kernel[...] * scale,
        conv.strides,  # pyright: ignore[reportArgumentType]  pairs, as `bare_conv` sets them
        conv.padding,  # pyright: ignore[reportArgumentType]
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=conv.feature_group_count,
    )


def bare_conv(
    width: int,
    out: int,
    kernel: int,
    stride: int,
    padding: str | tuple[tuple[int, int], tuple[int, int]],
    rngs: nnx.Rngs,
    *,
    groups: int = 1,
) -> nnx.Conv:
    """A convolution for `conv_norm`: square kernel, no bias."""
    return nnx.Conv(
        width,
        out,
        (kernel, kernel),
        strides=(stride, stride),
        padding=padding,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=nnx.initializers.zeros_init(),  # shapes are all that is asked of it
        conv_general_dilated=lowering.conv_general_dilated,
        rngs=rngs,
    )
