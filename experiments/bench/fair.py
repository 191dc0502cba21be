"""The fair PyTorch loop: what somebody who knows PyTorch would write for the same work as ours.

On a GPU if there is one. The network ends at the target layer, its parameters are frozen, tensors
are channels last; the image is a Fourier spectrum in lucid's decorrelated colours, jitter, scale
and rotation are one bilinear resample with each image's own draw, Adam is PyTorch's fused one.
Different images of a batch show different units; a channel that never fires has a zero gradient, at
the same cost.

    image = sigmoid(C irfft2(s / max(f, 1 / 224)) / 4),   s <- s + Adam(d/ds mean activation)
"""

import math
import os
from collections.abc import Callable

import numpy as np
import torch
import torch_nets
from sides import Runner, Side, Workload
from torch import Tensor, nn
from torch.nn import functional as F


SIZE = 224
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TF32 = os.environ.get("JAX_DEFAULT_MATMUL_PRECISION") != "highest"  # as on our side
GROUND = 0.5  # outside the picture
_CORRELATION = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_COLOURS = _CORRELATION / np.linalg.norm(_CORRELATION, axis=0).max()
COLOURS = torch.tensor(_COLOURS, dtype=torch.float32, device=DEVICE)
_FREQUENCY = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
_SCALE = torch.tensor(1 / np.maximum(_FREQUENCY, 1 / SIZE), dtype=torch.float32, device=DEVICE)[
    :, :, None
]


def build(side: Side, workload: Workload, cores: int) -> Runner:
    torch.set_num_threads(1 if side.pinned else cores)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = TF32
    network = f"{workload.network}-own-lrn" if side.own_lrn else workload.network
    net = torch_nets.truncated(torch_nets.load(network), workload.layer.replace(".", "_"))
    ascent = Ascent(net.to(DEVICE), list(range(side.batch)), side.compiled)

    def run(steps):
        for _ in range(steps):
            ascent.step()
        ascent.reached.item()  # on a GPU, work is under way until somebody asks for a result
        return steps * side.batch

    return Runner(lambda: None, run, {"torch": torch.__version__})


class Ascent:
    """A batch of images under gradient ascent; `step()` is one update of all of them."""

    def __init__(self, net: nn.Module, units: list[int], compiled: bool, seed: int = 0):
        self.draws = np.random.default_rng(seed)
        self.units = torch.tensor(units, device=DEVICE)
        spectrum = 0.01 * torch.randn(
            (len(units), 3, SIZE, SIZE // 2 + 1, 2), generator=torch.Generator().manual_seed(seed)
        )
        self.spectrum = spectrum.to(DEVICE).requires_grad_()
        self.adam = torch.optim.Adam([self.spectrum], lr=0.05, fused=True)
        loss = _loss_of(net)
        self.loss = torch.compile(loss) if compiled else loss
        self.reached = torch.zeros(())

    def step(self) -> None:
        """One update; `reached` is the summed activation before it."""
        self.adam.zero_grad()
        loss = self.loss(self.spectrum, draw_maps(self.draws, len(self.units)), self.units)
        loss.backward()
        self.adam.step()
        self.reached = -loss.detach()

    def images(self) -> Tensor:
        """(n, 3, 224, 224) in [0, 1]."""
        with torch.no_grad():
            return decoded(self.spectrum)


def decoded(spectrum: Tensor) -> Tensor:
    """Spectra (n, 3, 224, 113, 2) to images in [0, 1], channels last."""
    scaled = torch.view_as_complex(spectrum * _SCALE)
    z = torch.fft.irfft2(scaled, s=(SIZE, SIZE), norm="ortho") / 4
    colours = torch.einsum("nchw,oc->nhwo", z, COLOURS)
    return torch.sigmoid(colours).permute(0, 3, 1, 2)


def resampled(images: Tensor, maps: Tensor) -> Tensor:
    """Output pixel q reads the source at map q, bilinearly; grey outside. Maps: (n, 2, 3)."""
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images - GROUND, grid, align_corners=False) + GROUND


def draw_maps(draws: np.random.Generator, n: int) -> Tensor:
    """lucid's standard set, each image's own: jitter 8, scale, rotate, jitter 4; (n, 2, 3)."""
    factor = 1 + (draws.integers(0, 11, n) - 5) / 50
    angle = draws.choice([*range(-10, 11), *(0,) * 5], n) * (math.pi / 180)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / factor
    first = draws.integers(0, 8, (n, 2)) - 4
    last = draws.integers(0, 4, (n, 2)) - 2
    shift = np.einsum("ijn,nj->ni", matrix, last) + first
    maps = np.concatenate([matrix.transpose(2, 0, 1), shift[:, :, None] * (2 / SIZE)], 2)
    return torch.from_numpy(maps.astype(np.float32)).to(DEVICE, non_blocking=True)


def activation(features: Tensor, units: Tensor) -> Tensor:
    """Mean over positions of each image's own unit, (n,)."""
    pooled = features.flatten(2).mean(2) if features.ndim == 4 else features
    return pooled.gather(1, units[:, None])[:, 0]


def _loss_of(net: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(spectrum, maps, units):
        return -activation(net(resampled(decoded(spectrum), maps)), units).sum()

    return loss
