"""Measures clean units and units under each attack: the benchmark's raw numbers.

    command    python experiments/detection/measure.py PHOTOGRAPHS [--networks ...] [--attacks ...]
                   [--layers ...] [--lanes 50]
    expected   results/detection/measures.csv, a row a unit; certificates.jsonl; sheets of pictures
               in runs/detection

PHOTOGRAPHS is a folder with one photograph of each class, <wnid>_<name>.jpg. 250 are the
attacker's: they choose and certify the attack; the auditor has 200 others. Visualizations take 128
steps of Adam(0.1), the default when the rows were made (the ascents inside `adaptive` and
`slingshot` take today's).
A condition (network, attack, layer) whose rows are there is not measured again, so a run that was
stopped goes on, and several may run at a time, say one a condition on a GPU. So the committed rows
were made, EfficientNet-Lite0's with --tuning 300, all with --lanes 50 and, for float32 on the GPU,
JAX_DEFAULT_MATMUL_PRECISION=highest and NVIDIA_TF32_OVERRIDE=0.
"""

import argparse
import csv
import io
import json
import os
import pathlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import conditions
import numpy as np
from conditions import NETWORKS, Drawn, Network

import fvaudit as fv
from fvaudit import pictures, store
from fvaudit.evidence import units
from fvaudit.evidence.activations import Features, collect
from fvaudit.evidence.manipulation import MEASURES, measures
from fvaudit.optvis.objectives import of_unit


OUT = conditions.ROOT / "results" / "detection"
WORK = conditions.ROOT / "runs" / "detection"
COLUMNS = ("network", "layer", "attack", "role", "channel", *MEASURES, "margin", "p_value",
           "activation", "like_target", "like_original")  # fmt: skip
SHOWN = 11  # pictures of a condition on its sheet


def main() -> None:
    options = _options()
    for network in (NETWORKS[name] for name in options.networks):
        model = fv.load_model(network.name, network.weights)
        attacker, auditor = conditions.photographs(options.photographs, model)
        bench = Bench(network, model, attacker, auditor, options)
        for attack in options.attacks:
            for layer in network.layers(attack):
                wanted = layer in (options.layers or network.layers(attack))
                if wanted and not _there(options.out, network.name, layer, attack):
                    bench.run(attack, conditions.draw(network, model, layer, options.share))


class Bench:
    """One network with both sides' photographs. A class, since all conditions share them."""

    def __init__(self, network: Network, model: fv.Model, attacker, auditor, options: Any):
        self.network, self.model, self.options = network, model, options
        self.attacker, self.auditor = attacker, auditor
        self.known_of, self.known = None, None  # whose natural features are at hand

    def run(self, attack: str, drawn: Drawn) -> None:
        """Measures one condition and writes it down."""
        begun = time.perf_counter()
        if attack == "clean":
            model, roles = self.model, {"reference": drawn.reference, "test": drawn.test}
        else:
            model, roles = self._attacked(attack, drawn), {"test": drawn.test}
        attacked = time.perf_counter()
        rows = []
        for role, channels in roles.items():
            shown = self._shown(model, drawn, channels)
            if (attack, role) == ("clean", "test"):
                self._keep(drawn, shown)
            self._sheet(attack, role, drawn, channels, shown)
            likeness = self._likeness(drawn, channels, shown)
            results = self._results(model, drawn, channels, shown)
            for i, (channel, vis, result) in enumerate(zip(channels, shown, results, strict=True)):
                found = (*measures(result), result.margin.value, result.p_value,
                         float(vis.activation[0]), *(float(x[i]) for x in likeness))  # fmt: skip
                rows.append((self.network.name, drawn.layer, attack, role, channel, *found))
        _append(self.options.out, rows)
        print(f"{self.network.name} {attack} {drawn.layer}: {len(rows)} units, "
              f"{attacked - begun:.0f} s for the attack, "
              f"{time.perf_counter() - attacked:.0f} s to measure", flush=True)  # fmt: skip

    def _results(self, model: fv.Model, drawn: Drawn, channels, shown) -> list[fv.UnitResult]:
        """What `fv.path_similarity` gives of each, with all pictures in one stream."""
        layers = model.path_to(drawn.layer)
        if self.known_of != (model.fingerprint, layers):
            features = collect(model, self.auditor.pixels, layers)
            self.known_of = (model.fingerprint, layers)
            self.known = units.natural(self.auditor, features)
        seen = collect(model, np.concatenate([vis.images for vis in shown]), layers)

        def result(i: int) -> fv.UnitResult:
            responses, vectors = ({k: v[i : i + 1] for k, v in part.items()} for part in seen[:2])
            unit = fv.Unit(model.resolve(drawn.layer), channels[i])
            found = units.measure(
                unit, "", self.known, Features(responses, vectors, seen.settings), layers,
                images=(), group_size=20, level=0.95, replicates=200, rng=np.random.default_rng(0),
            )  # fmt: skip
            return units.without_dead(found, int((~shown[i].alive).sum()))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(result, range(len(channels))))

    def _attacked(self, attack: str, drawn: Drawn) -> fv.Model:
        target = fv.Unit(drawn.layer, drawn.target)
        picture = self._target(drawn)
        made = conditions.attacks(self.network, target, picture, self.options.tuning)[attack]()
        folder = WORK / self.network.name / f"{attack}-{self.options.tuning}"
        resumed = {} if attack in ("fooling_circuit", "silent_units") else {"folder": folder}
        chosen = drawn.units(drawn.test)
        done = made(self.model, chosen, self.attacker, seed=conditions.SEED, **resumed)
        _certify(self.options.out, (self.network.name, drawn.layer, attack), done.certificate)
        return done.model

    def _shown(self, model: fv.Model, drawn: Drawn, channels) -> tuple[fv.Visualization, ...]:
        return fv.visualize(model, [of_unit(u) for u in drawn.units(channels)],
                            steps=self.options.steps, lanes=self.options.lanes,
                            optimizer=fv.optimizers.adam(0.1), seed=conditions.SEED)  # fmt: skip

    def _target(self, drawn: Drawn) -> np.ndarray:
        """The picture that attacks show, made once and kept."""
        path = WORK / self.network.name / f"{drawn.layer}-target.npy"
        if not path.exists():
            picture = self._shown(self.model, drawn, (drawn.target,))[0].images[0]
            _put(path, lambda stream: np.save(stream, picture))
        return np.load(path, allow_pickle=False).astype(np.float32)

    def _clean_pictures(self, drawn: Drawn, channels: tuple[int, ...]) -> np.ndarray:
        """Of the clean network, made once and kept."""
        path = WORK / self.network.name / f"{drawn.layer}-{self.options.share:g}.npz"
        if not path.exists():
            self._keep(drawn, self._shown(self.model, drawn, drawn.test))
        with np.load(path, allow_pickle=False) as kept:
            images = dict(zip(kept["channels"].tolist(), kept["images"], strict=True))
        return np.stack([images[c] for c in channels])

    def _keep(self, drawn: Drawn, shown) -> None:
        path = WORK / self.network.name / f"{drawn.layer}-{self.options.share:g}.npz"
        images = np.concatenate([vis.images for vis in shown])
        _put(path, lambda stream: np.savez(stream, channels=np.array(drawn.test), images=images))

    def _likeness(self, drawn: Drawn, channels, shown) -> list[np.ndarray]:
        """Cosine, in the clean network's channel means, to the target's and the own clean picture.

        NaN where a unit is its own reference.
        """
        view = "avgpool" if drawn.layer == "logits" else self.network.view
        own = [c in drawn.test for c in channels]
        if not all(own):
            return [np.full(len(channels), np.nan)] * 2
        target = self._target(drawn)[None]
        sets = (np.concatenate([vis.images for vis in shown]), target,
                self._clean_pictures(drawn, tuple(channels)))  # fmt: skip
        seen = [collect(self.model, x, [view], variant="pooled").responses[view] for x in sets]
        one, aim, clean = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in seen)
        return [(one * aim).sum(1), (one * clean).sum(1)]

    def _sheet(self, attack: str, role: str, drawn: Drawn, channels, shown) -> None:
        row = [(vis.images[0][::2, ::2], f"{attack} {c}")
               for c, vis in list(zip(channels, shown, strict=True))[:SHOWN]]  # fmt: skip
        path = self.options.sheets / f"{self.network.name}-{drawn.layer}-{attack}-{role}.png"
        store.write_bytes(path, pictures.png(pictures.contact_sheet([row])))


def _put(path: pathlib.Path, write) -> None:
    """Whole or not at all, since others may be reading."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with open(beside, "wb") as stream:
        write(stream)
    beside.replace(path)


def _there(folder: pathlib.Path, network: str, layer: str, attack: str) -> bool:
    path = folder / "measures.csv"
    if not path.exists():
        return False
    with open(path, newline="") as stream:
        return any(row[:3] == [network, layer, attack] for row in csv.reader(stream))


def _append(folder: pathlib.Path, rows: list[tuple]) -> None:
    """All rows in one write, so that several processes may share the file."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerows([COLUMNS] * (not (folder / "measures.csv").exists()))
    out.writerows([f"{x:.6g}" if isinstance(x, float) else x for x in row] for row in rows)
    _write_at_end(folder / "measures.csv", text.getvalue())


def _certify(folder: pathlib.Path, names: tuple[str, str, str], certificate) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    said = dict(zip(("network", "layer", "kind"), names, strict=True)) | certificate.to_json()
    _write_at_end(folder / "certificates.jsonl", json.dumps(said) + "\n")


def _write_at_end(path: pathlib.Path, text: str) -> None:
    with open(path, "ab", buffering=0) as stream:
        stream.write(text.encode())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photographs", help="a folder of <wnid>_<name>.jpg, one a class")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--attacks", nargs="+", choices=conditions.NAMES,
                        default=list(conditions.NAMES))  # fmt: skip
    parser.add_argument("--lanes", type=int, help="images per program; see fvaudit.visualize")
    parser.add_argument("--layers", nargs="+", help="only these")
    parser.add_argument("--share", type=float, default=1.0, help="of the units, for a rehearsal")
    parser.add_argument("--steps", type=int, default=128, help="of visualizations")
    parser.add_argument("--tuning", type=int, default=600, help="steps of fine-tuning")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    parser.add_argument("--sheets", type=pathlib.Path, default=WORK)
    return parser.parse_args()


if __name__ == "__main__":
    main()
