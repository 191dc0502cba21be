"""ViT-B/16, a vision transformer, as torchvision and timm have it.

Dosovitskiy et al., "An image is worth 16x16 words" (ICLR 2021). A picture is cut into patches of
16 x 16, each a token of 768 numbers, behind one more token, CLS; twelve blocks add to a stream

    mid = x + attention(norm(x))        out = mid + mlp(norm(mid))

and the logits read the CLS token alone. Layers of block i, token activations (n, t, c) with the CLS
token first and then the patches row by row:

    blocks.i.heads       outputs of the heads side by side: channel = head * 64 + j
    blocks.i.attention   what attention adds to the stream
    blocks.i.mid         the stream after attention
    blocks.i.mlp         the MLP's neurons, after GELU
    blocks.i             the stream after the MLP

and `embedding` before the first, `norm` after the last block. Each token layer L has two views,
L.cls (n, c) and L.patches (n, rows, columns, c), for whatever needs a picture. An edit of a view
takes effect downstream, and so does one of the whole layer: it comes first.

The trunk is the stream after each block. The last one still holds all tokens, of which only CLS
goes on; `norm.cls` is what the logits read.
"""

import re

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fvaudit.models.model import InputSpec, Tap
from fvaudit.models.weights import TORCH, renamed
from fvaudit.optvis import redirect
from fvaudit.records import AuditError


BLOCKS, HEADS, WIDTH, NEURONS, PATCH, GRID = 12, 12, 768, 3072, 16, 14  # B/16 at 224
CLASSES = 1000
EPSILON = 1e-6  # of layer norms
TOKENS = ("embedding", *(f"blocks.{i}" for i in range(BLOCKS)))
TRUNK = (*TOKENS, "norm.cls", "logits")
GAINS = {"proj": 1.0, "qkv": 1.0, "fc2": 0.5, "head": 1.0}  # of random weights


class Attention(nnx.Module):
    """Every token reads every token, in `HEADS` independent ways."""

    def __init__(self, rngs: nnx.Rngs):
        self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.proj = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def heads(self, x: Float[Array, "n t c"]) -> Float[Array, "n t c"]:
        """softmax(q k^T / sqrt(64)) v of each head, side by side."""
        n, t, _ = x.shape
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(n, t, 3, HEADS, -1), 2, 0)
        weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) * q.shape[-1] ** -0.5)
        return jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, t, -1)


class MLP(nnx.Module):
    """Of each token by itself."""

    def __init__(self, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(WIDTH, NEURONS, rngs=rngs)
        self.fc2 = nnx.Linear(NEURONS, WIDTH, rngs=rngs)

    def neurons(self, x: Float[Array, "n t c"]) -> Float[Array, "n t o"]:
        """After GELU, whose exact form both packages take."""
        return redirect.gelu(self.fc1(x))


class Block(nnx.Module):
    """Attention and MLP, each added to the stream behind a layer norm of its own."""

    def __init__(self, name: str, rngs: nnx.Rngs):
        self.name = name
        self.norm1, self.norm2 = _norm(rngs), _norm(rngs)
        self.attn, self.mlp = Attention(rngs), MLP(rngs)

    def __call__(self, x: Float[Array, "n t c"], tap: Tap) -> Float[Array, "n t c"]:
        heads = _viewed(f"{self.name}.heads", self.attn.heads(self.norm1(x)), tap)
        added = _viewed(f"{self.name}.attention", self.attn.proj(heads), tap)
        x = _viewed(f"{self.name}.mid", x + added, tap)
        neurons = _viewed(f"{self.name}.mlp", self.mlp.neurons(self.norm2(x)), tap)
        return _viewed(self.name, x + self.mlp.fc2(neurons), tap)


class ViT(nnx.Module):
    """The whole network; input (n, 224, 224, 3) normalised, output logits (n, outputs)."""

    def __init__(self, rngs: nnx.Rngs, outputs: int = CLASSES):
        self.cls_token = nnx.Param(jnp.zeros((1, 1, WIDTH)))
        self.pos_embed = nnx.Param(jnp.zeros((1, 1 + GRID**2, WIDTH)))
        self.patch_embed = nnx.Conv(3, WIDTH, (PATCH, PATCH), strides=PATCH, rngs=rngs)
        self.blocks = nnx.List([Block(f"blocks.{i}", rngs) for i in range(BLOCKS)])
        self.norm = _norm(rngs)
        self.head = nnx.Linear(WIDTH, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w 3"], tap: Tap) -> Float[Array, "n k"]:
        x = _viewed("embedding", self._embedded(x), tap)
        for block in self.blocks:
            x = block(x, tap)
        cls, _ = _views("norm", self.norm(x), tap)
        return tap("logits", self.head(cls))

    def _embedded(self, x):
        """CLS and patches with their places; a convolution of disjoint patches is a product."""
        n, h, w, _ = x.shape
        if (h, w) != (PATCH * GRID, PATCH * GRID):
            raise AuditError(
                f"ViT-B/16 has learned places for {GRID} x {GRID} patches, that is images of "
                f"{PATCH * GRID} x {PATCH * GRID}; got {h} x {w}."
            )
        assert self.patch_embed.bias is not None
        patches = x.reshape(n, GRID, PATCH, GRID, PATCH, -1).swapaxes(2, 3).reshape(n, GRID**2, -1)
        kernel = self.patch_embed.kernel[...].reshape(-1, WIDTH)
        patches = patches @ kernel + self.patch_embed.bias[...]
        cls = jnp.broadcast_to(self.cls_token[...], (n, 1, WIDTH))
        return jnp.concatenate([cls, patches], axis=1) + self.pos_embed[...]


def _views(name: str, x: Float[Array, "n t c"], tap: Tap) -> tuple[Array, Array]:
    """Taps all tokens, then (n, c) of CLS and (n, rows, columns, c) of the patches."""
    n, _, c = x.shape
    cls, patches = jnp.split(tap(name, x), [1], axis=1)  # undone by a concatenation, at no cost
    grid = patches.reshape(n, GRID, GRID, c)
    return tap(f"{name}.cls", cls.reshape(n, c)), tap(f"{name}.patches", grid)


def _viewed(name: str, x: Float[Array, "n t c"], tap: Tap) -> Float[Array, "n t c"]:
    """The tokens as their views leave them."""
    cls, patches = _views(name, x, tap)
    return jnp.concatenate([cls[:, None], patches.reshape(x.shape[0], GRID**2, -1)], axis=1)


def _norm(rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(WIDTH, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)


def _from_first_torchvision(name: str) -> str:
    """Files of before torchvision 0.13, its own pretrained ones too, number the MLP's layers so."""
    return re.sub(r"mlp\.linear_([12])\.", lambda m: f"mlp.{'03'[int(m[1]) - 1]}.", name)


# The preprocessing of timm's own vit_base_patch16_224; others (DeiT) were trained with another.
TIMM = renamed(
    TORCH,
    "timm's names",
    [(r"^patch_embed\.", "patch_embed.proj.")],
    input=InputSpec((224, 224), (0.5,) * 3, (0.5,) * 3, resize=248),
)
TORCHVISION = renamed(
    TORCH,
    "torchvision's names",
    [
        (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
        (r"\.attn\.proj\.", ".self_attention.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
        (r"^norm\.", "encoder.ln."),
        (r"^head\.", "heads.head."),
        (r"^patch_embed\.", "conv_proj."),
        (r"^cls_token$", "class_token"),
        (r"^pos_embed$", "encoder.pos_embedding"),
    ],
    plain=_from_first_torchvision,
)
