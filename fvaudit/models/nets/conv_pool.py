"""A convolution with its bias, and Caffe's pooling, which rounds sizes up."""

from flax import nnx
from jaxtyping import Array, Float

from fvaudit.optvis import lowering


def conv(
    width: int,
    out: int,
    kernel: int,
    rngs: nnx.Rngs,
    *,
    strides: int = 1,
    padding: int | None = None,
) -> nnx.Conv:
    """A square convolution with a bias; pads by half the kernel unless told."""
    return nnx.Conv(
        width,
        out,
        (kernel, kernel),
        strides=strides,
        padding=kernel // 2 if padding is None else padding,
        kernel_init=nnx.initializers.zeros_init(),  # shapes are all that is asked of it
        conv_general_dilated=lowering.conv_general_dilated,
        rngs=rngs,
    )


def halved(x: Float[Array, "n h w c"]) -> Float[Array, "n p q c"]:
    """Max over 3 x 3 at stride 2; an even size is rounded up, so one window reaches beyond it."""
    _, h, w, _ = x.shape
    return lowering.max_pool(x, (3, 3), (2, 2), ((0, 1 - h % 2), (0, 1 - w % 2)))
