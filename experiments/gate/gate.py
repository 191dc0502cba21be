"""Trains the gate that ships for the default model.

    claim      photographs and visualizations are told apart at every moment of an ascent
               (Geirhos et al. 2024: 99.49 % on held-out classes of Inception-V1)
    command    python experiments/gate/gate.py TRAIN_PHOTOGRAPHS... -- TEST_PHOTOGRAPHS...
               (an hour for the visualizations, a quarter of an hour for the training, 2 cores;
               killed, the same command goes on)
    expected   fvaudit/attacks/gates/efficientnet_lite0.safetensors, results/gate/rates.json

Visualizations: class logits, and channels of four hidden layers, drawn by seed. Classes 0 to 99 are
held out as in the paper, and so is a quarter of the hidden channels.
"""

import dataclasses
import json
import pathlib
import sys
import time

import numpy as np

import fvaudit as fv
from fvaudit import store
from fvaudit.attacks import gate as gates
from fvaudit.attacks import gate_training, trajectories
from fvaudit.attacks.gate_training import Images


ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "runs" / "gate"
MODEL, SEED = "efficientnet_lite0", 0
LOGITS, HELD_OUT = 30, 20
HIDDEN, PER_LAYER = ("blocks.4", "blocks.7", "blocks.10", "blocks.14"), 10
STEPS = 1500


def main(train: list[str], test: list[str]) -> None:
    model = fv.load_model(MODEL)
    held_in, held_out = units(model)
    begun = time.monotonic()
    for some in (held_in, held_out):
        trajectories.make(model, some, WORK / "fvs", seed=SEED, tell=_tell("pictures", begun))
    files = {name: [WORK / "fvs" / f"{u.layer}-{u.channel}.npz" for u in some]
             for name, some in (("train", held_in), ("test", held_out))}  # fmt: skip
    images = Images(photographs(model, train), np.stack([*map(trajectories.load, files["train"])]))
    gate = gate_training.train(images, WORK, steps=STEPS, seed=SEED, tell=_tell("training", begun))
    unseen = Images(photographs(model, test), np.stack([*map(trajectories.load, files["test"])]))
    found = gate_training.rates(gate, unseen)
    facts = {
        "model": MODEL,
        "units": {"train": len(held_in), "test": len(held_out)},
        "photographs": {"train": len(images.photographs), "test": len(unseen.photographs)},
        "steps": STEPS,
        "seed": SEED,
        "photographs taken for visualizations": dataclasses.asdict(found.photographs),
        "units with any image taken for a photograph": dataclasses.asdict(found.ascents),
        "share of units misjudged after so many updates": dict(found.moments),
        "share misjudged under an ascent's transforms": found.transformed,
    }
    gate_training.save(gate, ROOT / "fvaudit" / "attacks" / "gates" / f"{MODEL}.safetensors", facts)
    store.write_bytes(
        ROOT / "results" / "gate" / "rates.json", json.dumps(facts, indent=1).encode()
    )
    print(json.dumps(gates.facts(MODEL), indent=1))


def units(model: fv.Model) -> tuple[list[fv.Unit], list[fv.Unit]]:
    """Held in and held out: logits by class, hidden channels by seed."""
    rng = np.random.default_rng(SEED)
    classes = rng.permutation(1000)
    held_in = [fv.Unit("logits", int(c)) for c in sorted(classes[classes >= 100][:LOGITS])]
    held_out = [fv.Unit("logits", int(c)) for c in sorted(classes[classes < 100][:HELD_OUT])]
    for layer in HIDDEN:
        channels = rng.permutation(model.shapes[layer][-1])[:PER_LAYER].tolist()
        drawn = [fv.Unit(layer, channel) for channel in channels]
        held_in, held_out = held_in + drawn[PER_LAYER // 4 :], held_out + drawn[: PER_LAYER // 4]
    return held_in, held_out


def photographs(model: fv.Model, sources: list[str]) -> np.ndarray:
    """All photographs of some folders, 0..255."""
    sets = [fv.load_images(source, model, labels=False).pixels for source in sources]
    return np.concatenate([np.round(255 * pixels).astype(np.uint8) for pixels in sets])


def _tell(stage: str, begun: float):
    def tell(done, total, *rest):
        print(stage, done, "of", total, *rest, f"{time.monotonic() - begun:.0f} s", flush=True)

    return tell


if __name__ == "__main__":
    split = sys.argv.index("--")
    main(sys.argv[1:split], sys.argv[split + 1 :])
