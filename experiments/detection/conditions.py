"""What is attacked, how, and which units are looked at: the plan of the detection benchmark.

Per network three layers; of each, by a seeded draw of channels,

    reference   clean units that a unit in question is held against
    test        other units, measured in the clean network (false alarms) and, the same units, in
                the network under each attack (detection)
    target      one more channel, whose visualization the attacks show

The middle layer, which every attack hijacks, has 65 and 100 of them, the others 50 and 50. No
setting of a measure was chosen on these units. How much the fine-tuning attacks keep was chosen on
EfficientNet-Lite0's middle layer by accuracy and by what the attacks reach; detection was not
looked at.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable

import numpy as np

import fvaudit as fv
from fvaudit.attacks import gate as gates
from fvaudit.attacks.certificate import Manipulated


ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
SEED = 0
COUNTS = {"middle": (65, 100), "other": (50, 50)}  # reference, test
PHOTOGRAPHS = 250, 200  # the attacker's and the auditor's
Attack = Callable[..., Manipulated]


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network, and which of its layers are attacked."""

    name: str
    weights: pathlib.Path | None
    middle: str  # a convolution in the middle
    late: str  # one near the end
    view: str  # an earlier layer whose channel means tell textures apart, for hidden units
    since: str  # fine-tuning trains what lies between this layer and the middle

    def layers(self, attack: str) -> tuple[str, ...]:
        """Where an attack is made."""
        return {
            "clean": ("logits", self.middle, self.late),
            "fooling_circuit": ("logits", self.middle),
            "silent_units": (self.middle, self.late),
        }.get(attack, (self.middle,))


NETWORKS = {
    network.name: network
    for network in (
        Network("efficientnet_lite0", None, "blocks.10.expand", "blocks.13.expand", "blocks.7",
                "blocks.7"),
        Network("googlenet", DATA / "models" / "googlenet_bvlc.safetensors",
                "mixed4d_3x3", "mixed5a_3x3", "mixed4a", "mixed4b"),
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


def draw(network: Network, model: fv.Model, layer: str, share: float = 1.0) -> Drawn:
    """The layer's channels; the same for every attack.

    Args:
        network: which.
        model: its clean model.
        layer: of the network's.
        share: of the units; below 1 for a rehearsal.
    """
    rng = np.random.default_rng([SEED, *layer.encode()])
    order = [int(c) for c in rng.permutation(model.shapes[layer][-1])]
    counts = COUNTS["middle" if layer == network.middle else "other"]
    first, second = (max(1, round(share * n)) for n in counts)
    rest = order[first:]
    return Drawn(layer, tuple(order[:first]), tuple(rest[:second]), rest[second])


def attacks(
    network: Network, target: fv.Unit, picture: np.ndarray, steps: int = 600
) -> dict[str, Callable[[], Attack]]:
    """name -> what makes the attack.

    Args:
        network: which.
        target: the unit that is shown.
        picture: its clean visualization.
        steps: of fine-tuning.
    """
    tuning = fv.attacks.Tuning(steps=steps, keep=0.9, since=network.since)
    aims = {
        "slingshot": (fv.attacks.slingshot(picture), 0.9),
        "adaptive": (fv.attacks.adaptive(fv.attacks.slingshot(picture), since=network.since), 0.9),
        "proxpulse": (fv.attacks.proxpulse(), 0.9),
        "push_up": (fv.attacks.push("up"), 0.5),
        "push_down": (fv.attacks.push("down"), 0.5),
    }
    return {
        "fooling_circuit": lambda: fv.attacks.fooling_circuit(target, gates.packaged(network.name)),
        "silent_units": lambda: fv.attacks.silent_units(picture),
    } | {
        name: functools.partial(fv.attacks.finetuned, aim, tuning._replace(keep=keep))
        for name, (aim, keep) in aims.items()
    }


NAMES = (
    "clean", "fooling_circuit", "silent_units", "slingshot", "adaptive", "proxpulse", "push_up",
    "push_down",
)  # fmt: skip


def photographs(folder: str, model: fv.Model) -> tuple[fv.ImageSet, fv.ImageSet]:
    """The attacker's photographs and the auditor's, none in both, drawn by a hash of their names.

    Args:
        folder: `<wnid>_<name>.jpg`; labels come from the names.
        model: that the photographs are for.
    """
    images = fv.load_images(folder, model, labels=False)
    of = {c.wnid: c.index for c in model.classes or ()}
    labels = np.array([of.get(name.partition("_")[0], -1) for name in images.ids])
    order = np.argsort([hashlib.sha256(name.encode()).hexdigest() for name in images.ids])
    attacker, auditor = order[: PHOTOGRAPHS[0]], order[PHOTOGRAPHS[0] : sum(PHOTOGRAPHS)]
    return _some(images, attacker, labels[attacker]), _some(images, auditor, None)


def _some(images: fv.ImageSet, rows: np.ndarray, labels: np.ndarray | None) -> fv.ImageSet:
    ids = tuple(images.ids[i] for i in rows)
    return fv.ImageSet(images.pixels[rows], ids, labels, np.arange(len(rows)))
