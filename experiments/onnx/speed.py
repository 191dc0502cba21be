"""Our engine through an imported ONNX GoogLeNet and through our own Flax GoogLeNet.

Claim: the imported network takes at most 1.15 times as long. Both run the engine's own program on
the same parameters, in the same process, in turns (A B, B A, ...); the ratio is taken within a
turn. Minutes: 10 on two quiet cores. Writes results/onnx/speed.md.

    python experiments/onnx/speed.py ../shared/data/models/googlenet_bvlc.safetensors
"""

import pathlib
import statistics
import sys
import time

import jax
import numpy as np


ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "experiments" / "bench"), str(ROOT / "experiments" / "onnx")]

import googlenet  # noqa: E402
import ours  # noqa: E402

from fvaudit.models.imports.onnx import model_from_proto  # noqa: E402
from fvaudit.models.zoo import load_model, random_model  # noqa: E402


LAYERS = ("mixed3b", "mixed4d", "mixed5b", "logits")
STEPS = 16
TURNS = 9


def measure(layer: str, models: list) -> list[tuple[float, float]]:
    """(seconds by our network, seconds by the imported one), a turn each."""
    units = list(range(jax.local_device_count()))
    calls = [ours.ascent(model, layer, units) for model in models]
    for call in calls:
        call(0, 2)  # compiles
    turns = []
    for turn in range(TURNS):
        seconds = [0.0, 0.0]
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            start = time.perf_counter()
            calls[side](turn, STEPS)
            seconds[side] = time.perf_counter() - start
        turns.append((seconds[0], seconds[1]))
    return turns


def main(weights: str | None, layers) -> None:
    own = load_model("googlenet", weights) if weights else random_model("googlenet", 0)
    imported = model_from_proto(googlenet.googlenet_proto(own), own.input, name="googlenet_onnx")
    lines = [
        "# Engine speed through an imported ONNX GoogLeNet",
        "",
        f"Milliseconds for one step of one image, {jax.local_device_count()} images at once, "
        f"median of {TURNS} turns of {STEPS} steps; ratio within a turn, median and extremes. "
        "Made by experiments/onnx/speed.py.",
        "",
        "| layer | Flax | ONNX | ratio | from | to |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for layer in layers:
        turns = measure(layer, [own, imported])
        ratios = [b / a for a, b in turns]
        images = STEPS * jax.local_device_count() / 1000
        flax, onnx = (statistics.median(t[i] for t in turns) / images for i in (0, 1))
        lines.append(
            f"| {layer} | {flax:.1f} | {onnx:.1f} | {np.median(ratios):.3f} | {min(ratios):.3f} "
            f"| {max(ratios):.3f} |"
        )
        print(lines[-1], flush=True)
    path = ROOT / "results" / "onnx" / "speed.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, sys.argv[2:] or LAYERS)
