"""Streamed path similarity against the bare forward passes of the same images.

    claim      1,000 natural images against 100 visualizations, all layers of GoogLeNet's trunk:
               within 1.3x of the time of forward passes that keep the logits alone, as anybody
               would write them: a jitted function called batch by batch; under 4 GB
    command    python experiments/bench/path.py                  (about 2 minutes on two cores)
    variants   --max-features 1000000 --images 100               all features of every layer
               --pairs                                           also what an audit does: natural
                                                                 vectors kept, and all their pairs
    expected   results/bench/path.csv

All sides run in this process, block of images by block of images in turn. The bare passes take
`--batch` images a device and call. A second bare side runs like ours, in steps of one image within
a call (`models/stream.py`), which is faster: its ratio says what ranks and products cost. The
visualizations are blurred noise: what they show does not matter for time. Wall and CPU seconds are
given: on a machine that others use, only CPU seconds mean something.
"""

import argparse
import csv
import pathlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from PIL import Image

import fvaudit as fv
from fvaudit.evidence.activations import Features, collect, compare
from fvaudit.evidence.units import natural
from fvaudit.models import devices, stream
from fvaudit.models.model import Model, record


SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
WEIGHTS = {"googlenet": SHARED / "models" / "googlenet_bvlc.safetensors"}
PHOTOGRAPHS = SHARED / "images" / "imagenet1k_sample"


class Clock:
    """Wall and CPU seconds of stages, summed over their calls."""

    def __init__(self):
        self.seconds: dict[str, np.ndarray] = {}
        self.calls: dict[str, list[np.ndarray]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds what the body takes."""
        before = _now()
        yield
        self.calls.setdefault(name, []).append(_now() - before)
        self.seconds[name] = np.sum(self.calls[name], axis=0)


def main() -> None:
    """Times both sides, prints the ratio, writes a CSV."""
    options = _options()
    devices.start()
    clock = Clock()
    model = fv.load_model(options.model, weights=WEIGHTS.get(options.model))
    with clock.stage("load photographs"):
        images = fv.load_images(PHOTOGRAPHS, model, limit=options.images, labels=False)
    pixels, shown = images.pixels, _blurred_noise(options.fvs, model)
    settings = {"max_features": options.max_features, "lanes": options.lanes}
    bare, in_steps = _bare(model, options.batch), _bare_in_steps(model)
    with clock.stage("compile"):
        bare(pixels[:2])
        in_steps(pixels[:2])
        compare(model, pixels[:2], collect(model, shown, model.trunk, **settings),
                lanes=options.lanes)  # fmt: skip
    with clock.stage("visualizations"):
        known = collect(model, shown, model.trunk, **settings)
    for start in range(0, len(pixels), options.block):
        block = pixels[start : start + options.block]
        with clock.stage("bare"):
            bare(block)
        with clock.stage("bare, in steps"):
            in_steps(block)
        with clock.stage("path"):
            compare(model, block, known, lanes=options.lanes)
    rows = _rows(options, clock, known, _peak())
    if options.pairs:
        with clock.stage("collect natural"):
            found = collect(model, pixels, model.trunk, **settings)
        with clock.stage("natural pairs"):
            natural(images, found)
        rows += [_row(options, clock, name, _peak()) for name in ("collect natural",
                                                                  "natural pairs")]  # fmt: skip
    _write(options.out, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="googlenet")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--fvs", type=int, default=100)
    parser.add_argument("--block", type=int, default=256, help="images before sides take turns")
    parser.add_argument("--batch", type=int, default=8, help="images of a bare call, per device")
    parser.add_argument("--lanes", type=int, help="of ours; else fvaudit's default")
    parser.add_argument("--max-features", type=int, default=32768)
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/bench/path.csv"))
    return parser.parse_args()


def _bare(model: Model, lanes: int):
    """Forward passes of images that keep the last layer alone, one batch ahead of the host."""
    run = devices.on_every_device(_last_layer(model), shared=1)
    params = devices.replicated(model.params)
    width = jax.local_device_count() * lanes

    def bare(images):
        results = []
        for start in range(0, len(images), width):
            batch = images[start : start + width]
            full = np.concatenate([batch, np.repeat(batch[-1:], width - len(batch), axis=0)])
            results.append(run(params, full))
            if len(results) > 1:
                jax.block_until_ready(results[-2])
        jax.block_until_ready(results[-1])

    return bare


def _bare_in_steps(model: Model):
    """The same, as fvaudit streams images."""
    run, shared = stream.program(_last_layer(model), 1, 1), (devices.replicated(model.params),)
    return lambda images: stream.whole(run, shared, images, 1)


def _last_layer(model: Model):
    last = model.trunk[-1]

    def shard(params, images):
        return record(model.forward, params, images, [last])[last]

    return shard


def _blurred_noise(count: int, model: Model) -> np.ndarray:
    rows, columns = model.input.size
    coarse = np.random.default_rng(0).integers(0, 256, (count, 28, 28, 3), np.uint8)
    smooth = [np.asarray(Image.fromarray(x).resize((columns, rows))) for x in coarse]
    return np.stack(smooth).astype(np.float32) / 255


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def _peak() -> float:
    """Most memory that this process has held, in GiB."""
    status = pathlib.Path("/proc/self/status").read_text()
    line = next(x for x in status.splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def _rows(options, clock: Clock, known: Features, peak: float) -> list[dict[str, object]]:
    compared = sum(v.shape[1] for v in known.vectors.values())
    print(f"{options.images} images, {options.fvs} visualizations, {len(known.vectors)} layers, "
          f"{compared} features; peak {peak:.2f} GiB")  # fmt: skip
    for name, (wall, cpu) in clock.seconds.items():
        print(f"  {name:18} wall {wall:8.2f} s   cpu {cpu:8.2f} s")
    rows = [_row(options, clock, name, peak) for name in clock.seconds]
    for other in ("bare", "bare, in steps"):
        ratio = np.median(np.array(clock.calls["path"]) / np.array(clock.calls[other]), axis=0)
        print(f"path / {other}, median over blocks: wall {ratio[0]:.3f}, cpu {ratio[1]:.3f}")
        share = {"wall_s": round(ratio[0], 3), "cpu_s": round(ratio[1], 3)}
        rows.append({**rows[0], "stage": f"path / {other}", **share})
    return rows


def _row(options, clock: Clock, name: str, peak: float) -> dict[str, object]:
    wall, cpu = clock.seconds[name]
    return {
        "stage": name,
        "model": options.model,
        "images": options.images,
        "fvs": options.fvs,
        "max_features": options.max_features,
        "batch": options.batch,
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "peak_GiB": round(peak, 2),
    }


def _write(path: pathlib.Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        if row["stage"] in ("collect natural", "natural pairs"):
            print(f"  {row['stage']:18} wall {row['wall_s']:8} s   cpu {row['cpu_s']:8} s   "
                  f"peak {row['peak_GiB']} GiB")  # fmt: skip


if __name__ == "__main__":
    main()
