"""Run directories without a network: noise for pictures, made-up numbers, every status."""

import io
import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fvaudit import store
from fvaudit.records import (
    Estimate,
    Headline,
    LayerResult,
    LayerSimilarity,
    Status,
    UnitResult,
    Verdict,
)


NAN = math.nan
TRUNK = ("stem", *(f"blocks.{i}" for i in range(11)), "head", "logits")
CHECKS = (
    "same_path(min_score=0.5)",
    "not_distinguishable(fdr=0.05)",
    "drives_unit(min_quantile=0.75)",
)
CONFIG = """version: 1
model: efficientnet_lite0
images:
  source: samples
  crops: 4
units:
- {layer: blocks.4, count: 8}
engine:
  steps: 160
  repeats: 2
evidence:
  metric: spearman
  variant: spatial
  group: 20
gates:
  same_path: {min_score: 0.5, severity: warn}
  not_distinguishable: {fdr: 0.05, severity: warn}
  drives_unit: {min_quantile: 0.75, severity: warn}
seed: 0
"""


def estimate(value: float, width: float = 0.1, unit: str = "Spearman rho") -> Estimate:
    return Estimate(value, value - width, value + width, 0.95, 29, "bootstrap", unit)


def make(
    folder: pathlib.Path,
    units: Sequence[str] = ("blocks.4:17", "blocks.4:80", "blocks.10:3", "logits:281"),
    *,
    complete: bool = True,
    judged: bool = True,
    edge: int = 64,
    wide: int = 1,
    naturals: int = 60,
    label: str = "",
    skipped: Sequence[tuple[str, str]] = (("broken.jpg", "cannot be decoded"),),
) -> pathlib.Path:
    """Writes a run; the statuses go round, the third unit has nothing but NaN.

    Pictures are `edge` pixels high and `wide` times as wide.
    """
    rng = np.random.default_rng(0)
    _describe(folder, len(units), complete, skipped)
    ids = [f"photos/{i:03}.jpg#0" for i in range(naturals)]
    for name in ids:
        store.write_bytes(folder / store.exemplar_name(name), _png(_picture(rng, 112, wide)))
    results = [_result(rng, unit, i, ids, label) for i, unit in enumerate(units)]
    pool = [_made(rng, edge, wide) for _ in range(24)]  # once: 500 units take a second
    for i, name in enumerate(name for result in results for name in result.images):
        picture, beside = pool[i % len(pool)]
        store.write_bytes(folder / name, picture)
        store.write_bytes((folder / name).with_suffix(".npz"), beside)
    lines = "".join(json.dumps(store._plain(r)) + "\n" for r in results)
    store.write_text(folder / "results.jsonl", lines)
    if complete:
        layers = list(dict.fromkeys(r.unit.rpartition(":")[0] for r in results))
        panels = [LayerResult(layer, 8, _path(rng, layer, i)) for i, layer in enumerate(layers)]
        headline = Headline(
            estimate(0.21, 0.06, "path score"),
            estimate(0.44, 0.15, "fraction"),
            estimate(11.3, 4.0, "natural MADs"),
        )
        store.write_json(folder / "summary.json", {"headline": headline, "layers": panels})
    if judged:
        verdicts = [v for i, r in enumerate(results) for v in _verdicts(r, i)]
        store.write_json(folder / "verdicts.json", verdicts)
    return folder


def _describe(folder: pathlib.Path, units: int, complete: bool, skipped) -> None:
    environment = {"python": "3.11.7", "platform": "Linux x86_64", "jax": "0.10.0"}
    manifest = {
        "schema": store.SCHEMA,
        "status": "complete" if complete else "started",
        "fvaudit": "0.1.0",
        "model": "a1" * 32,
        "data": "b2" * 32,
        "config": "c3" * 32,
        "environment": environment,
        "units": units if complete else units + 5,
        "images": 2 * units,
    }
    store.write_json(folder / "manifest.json", manifest)
    store.write_json(folder / "env.json", environment)
    store.write_text(folder / "config.resolved.yaml", CONFIG)
    model = {"name": "efficientnet_lite0", "source": "wheel", "layers": {"stem": [112, 112, 32]}}
    store.write_json(folder / "model.json", model)
    data = {"source": "samples", "photographs": 29, "images": 116, "labelled": False}
    store.write_json(folder / "data.json", {**data, "skipped": skipped})


def _picture(rng: np.random.Generator, edge: int, wide: int) -> np.ndarray:
    """A colour gradient under noise, as hard to compress as a feature visualization."""
    y, x = np.mgrid[0:edge, 0 : wide * edge] / edge
    waves = np.sin(2 * np.pi * (x * rng.uniform(1, 9) + y * rng.uniform(1, 9)))
    colour = rng.uniform(0, 1, (1, 1, 3))
    image = 0.5 + 0.25 * waves[..., None] * colour + rng.normal(0, 0.12, (*x.shape, 3))
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _made(rng: np.random.Generator, edge: int, wide: int) -> tuple[bytes, bytes]:
    """A picture and what lies beside it."""
    final = _picture(rng, edge, wide)
    grey = np.full_like(final, 128)
    shares = np.linspace(0, 1, 6)
    shots = np.stack([(grey * (1 - s) + final * s).astype(np.uint8) for s in shares])
    beside = io.BytesIO()
    trace = np.log1p(np.arange(160)) + rng.normal(0, 0.1, 160)
    np.savez(beside, trace=trace, shots=shots, steps=(1, 5, 16, 40, 90, 160))
    return _png(final), beside.getvalue()


def _path(rng: np.random.Generator, layer: str, index: int) -> tuple[LayerSimilarity, ...]:
    depth = TRUNK.index(layer) + 1 if layer in TRUNK else 5
    rows = []
    for i, name in enumerate(TRUNK[:depth]):
        diff = 0.1 + 0.3 * math.exp(-i / 3)
        same = diff + 0.02 * i + 0.01
        fv = diff - 0.12 * math.exp(-i / 2) + 0.012 * i + rng.normal(0, 0.01)
        resolvable = not (i == 0 or (i + index) % 7 == 4)
        p = (fv - diff) / (same - diff) if resolvable else NAN
        rows.append(
            LayerSimilarity(
                name,
                estimate(fv, 0.02),
                estimate(same, 0.03),
                estimate(diff, 0.01),
                estimate(p, 0.3),
                resolvable,
                0.4 if resolvable else NAN,
                1.6 if resolvable else NAN,
            )
        )
    return tuple(rows)


def _result(
    rng: np.random.Generator, unit: str, index: int, ids: Sequence[str], label: str
) -> UnitResult:
    layer, _, channel = unit.rpartition(":")
    unknown = index % 16 == 2
    chosen = tuple(ids[int(i)] for i in rng.permutation(len(ids))[:9])
    folder = layer if layer in TRUNK else "other"
    return UnitResult(
        unit=unit,
        label=label or ("tabby" if layer == "logits" else ""),
        group="the 20 photographs that drive the unit most",
        photographs=20,
        others=9,
        exemplars=chosen,
        exemplar_responses=tuple(float(v) for v in np.linspace(2.1, 0.6, len(chosen))),
        images=tuple(f"images/{folder}/{channel}-{r}.png" for r in range(2)),
        fv_responses=(NAN, NAN) if unknown else (5.2 + index % 3, 4.9 + index % 3),
        path=_path(rng, layer, index),
        score=estimate(NAN if unknown else 0.1 + 0.07 * (index % 9)),
        p_value=NAN if unknown else 1 / 21,
        p_attainable=1 / 21,
        natural_median=NAN if unknown else 0.41,
        natural_max=NAN if unknown else 2.1,
        quantile=estimate(NAN if unknown else 0.97, 0.02, "fraction"),
        margin=estimate(NAN if unknown else 12.5, 3.0, "natural MADs"),
    )


def _verdicts(r: UnitResult, index: int) -> list[Verdict]:
    found = []
    for number, check in enumerate(CHECKS):
        status = (Status.PASS, Status.WARN, Status.INCONCLUSIVE, Status.FAIL)[(index + number) % 4]
        if index % 11 == 3 and number == 2:
            status = Status.ERROR
        found.append(Verdict(check, r.unit, status, r.score, 0.5, _reason(r, number)))
    return found


def _reason(r: UnitResult, number: int) -> str:
    """As long as real sentences are."""
    return (
        f"path score {r.score} (9 of 12 layers resolvable, 20 photographs) is below 0.5.",
        f"The FV's path is told apart from natural: p = {r.p_value:.3f}, q = 0.048 against 20 "
        "natural photographs.",
        f"The weakest FV's response {min(r.fv_responses):.2f} exceeds that of "
        f"{r.quantile.value:.0%} [{r.quantile.low:.0%}, {r.quantile.high:.0%}] of 29 photographs "
        "(strongest FV 5.23, strongest photograph 2.10); a share below 90% is ruled out.",
    )[number]
