"""What is attacked, how, and which units are looked at: the plan of the detection benchmark.

Per network three layers; of each, by a seeded draw of channels,

    reference   65 clean units that a unit in question is held against
    test        65 other units, measured in the clean network (false alarms) and, the same units,
                in the network under each attack (detection)
    target      one more channel, whose visualization the attacks show

No setting of an attack or a measure was chosen on these units.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

import fvaudit as fv
from fvaudit.attacks import gate as gates
from fvaudit.attacks.certificate import Manipulated


ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
SEED, UNITS = 0, 65
Attack = Callable[..., Manipulated]


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network, and which of its layers are attacked."""

    name: str
    weights: pathlib.Path | None
    middle: str  # a convolution in the middle
    late: str  # one near the end
    view: str  # an earlier layer whose channel means tell textures apart, for hidden units

    def layers(self, attack: str) -> tuple[str, ...]:
        """Where an attack is made."""
        return {
            "clean": ("logits", self.middle, self.late),
            "fooling_circuit": ("logits", self.middle),
            "silent_units": (self.middle, self.late),
            "slingshot": ("logits", self.middle),
        }.get(attack, (self.middle,))


NETWORKS = {
    network.name: network
    for network in (
        Network("efficientnet_lite0", None, "blocks.10.expand", "blocks.13.expand", "blocks.7"),
        Network("googlenet", DATA / "models" / "googlenet_bvlc.safetensors",
                "mixed4d_3x3", "mixed5a_3x3", "mixed4a"),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Channels of one layer."""

    layer: str
    reference: tuple[int, ...]
    test: tuple[int, ...]
    target: int

    def units(self, channels: tuple[int, ...]) -> list[fv.Unit]:
        """As units."""
        return [fv.Unit(self.layer, c) for c in channels]


def draw(model: fv.Model, layer: str, count: int = UNITS) -> Drawn:
    """The layer's channels; the same for every attack."""
    rng = np.random.default_rng([SEED, *layer.encode()])
    order = [int(c) for c in rng.permutation(model.shapes[layer][-1])]
    return Drawn(layer, tuple(order[:count]), tuple(order[count : 2 * count]), order[2 * count])


def attacks(network: Network, layer: str, target: fv.Unit, picture: np.ndarray) -> dict[str, Any]:
    """name -> attack(model, units, images, seed=); made only when asked for.

    Args:
        network: which.
        layer: that is attacked.
        target: the unit that is shown.
        picture: its clean visualization.
    """
    tuned = fv.attacks
    return {
        "fooling_circuit": lambda: tuned.fooling_circuit(target, gates.packaged(network.name)),
        "silent_units": lambda: tuned.silent_units(picture),
    }


NAMES = ("clean", "fooling_circuit", "silent_units")


def photographs(folder: str, model: fv.Model) -> tuple[fv.ImageSet, fv.ImageSet]:
    """The attacker's photographs and the auditor's, 7 to 3, none in both.

    Args:
        folder: `<wnid>_<name>.jpg`; labels come from the names.
        model: that the photographs are for.
    """
    images = fv.load_images(folder, model, labels=False)
    of = {c.wnid: c.index for c in model.classes or ()}
    labels = np.array([of.get(name.partition("_")[0], -1) for name in images.ids])
    order = np.random.default_rng(SEED).permutation(len(images.ids))
    border = round(0.7 * len(order))
    attacker, auditor = np.sort(order[:border]), np.sort(order[border:])
    return _some(images, attacker, labels[attacker]), _some(images, auditor, None)


def _some(images: fv.ImageSet, rows: np.ndarray, labels: np.ndarray | None) -> fv.ImageSet:
    ids = tuple(images.ids[i] for i in rows)
    return fv.ImageSet(images.pixels[rows], ids, labels, np.arange(len(rows)))
