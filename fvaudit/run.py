"""`audit(config, out)`: config in, run directory out; resumable; emits events, prints nothing.

Order of work: the doctor looks at model and photographs; natural images go through the model once;
visualizations unit by unit; evidence unit by unit, one line of results.jsonl each; then what is
derived from all units. Every step depends on
the config, the model and the data alone, so a run that was killed and finished has the same bytes
as an unbroken one.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import ImageOps

import fvaudit
from fvaudit import checks, pictures, store
from fvaudit.config import Config, Gates, dump, load_config
from fvaudit.diagnosis import loader
from fvaudit.evidence import summary
from fvaudit.evidence.activations import Features, collect, feature_count
from fvaudit.evidence.units import measure, natural, without_dead
from fvaudit.models import devices
from fvaudit.models.model import Model, require_model
from fvaudit.models.preflight import preflight
from fvaudit.optvis import objectives
from fvaudit.optvis.render import Ascent, Job, Recipe, render
from fvaudit.plan import audited_model, make_plan, natural_images, path_layers
from fvaudit.records import AuditError, ImageSet, Severity, Status, Unit, UnitResult, Verdict


EXEMPLAR = (112, 112)  # pixels that the thumbnail of a natural image fits into
PREFLIGHT = 64  # photographs that the doctor looks at, seconds of an audit of minutes


class Event(NamedTuple):
    """Something that a progress display may show."""

    stage: str  # "load", "doctor", "natural", "visualize", "evidence", "derive"
    done: int
    total: int
    text: str = ""


Listener = Callable[[Event], None]


def audit(
    config: Config | str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    model: Model | None = None,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    allow_download: bool = False,
    listener: Listener = lambda event: None,
) -> store.Run:
    """Computes an audit, or what is missing of one, and judges it against its gates.

    Args:
        config: a config, the path of one, or a preset's name.
        out: the run directory.
        model: to audit, where the config names none: of from_torch or from_flax, for example.
        overrides: `a.b=c` changes of the config.
        fresh: drop what the directory holds of an earlier run.
        allow_download: whether the config's model may come from a hub.
        listener: is called with every event.

    Returns:
        The run, complete, with verdicts.

    Raises:
        AuditError: if the config, model or data cannot be used, the doctor finds a problem, or
            the directory holds another audit.
    """
    if model is not None:
        require_model(model)
    if not isinstance(config, Config):
        config = load_config(config, overrides)
    folder = pathlib.Path(out)
    devices.start()
    listener(Event("load", 0, 1, model.name if model else config.model or ""))
    model = audited_model(config, model, allow_download=allow_download)
    images = natural_images(config, model)
    plan = make_plan(config, model, images)
    listener(Event("load", 1, 1, model.name))
    with store.locked(folder):
        _open(folder, config, model, images, plan, fresh)
        _log(folder, f"started: {len(plan.units)} units, {images.photographs} photographs")
        _preflight(folder, config, model, images, listener)
        _visualize(folder, config, model, plan, listener)
        _measure(folder, config, model, images, plan, listener)
        _derive(folder, config, listener)
        check(folder, config.gates)
        _log(folder, "complete")
    return store.read_run(folder)


def check(folder: str | pathlib.Path, gates: Gates) -> tuple[Verdict, ...]:
    """Judges a run directory against gates and writes verdicts.json; nothing is recomputed.

    Raises:
        AuditError: if the folder holds no run.
    """
    run = store.read_run(folder)
    verdicts = tuple(v for claim in claims(gates) for v in claim.judge(run.units))
    store.write_json(run.folder / "verdicts.json", verdicts)
    return verdicts


def claims(gates: Gates) -> list[checks.Check]:
    """The checks that a config's gates ask for."""
    table = {
        "same_path": checks.same_path,
        "not_distinguishable": checks.not_distinguishable,
        "drives_unit": checks.drives_unit,
    }
    found = []
    for name, factory in table.items():
        gate = getattr(gates, name)
        if gate is None:
            continue
        settings = gate.model_dump(exclude={"severity", "conclusive"})
        severity = Status.WARN if gate.severity == "warn" else Status.FAIL
        claim = factory(**settings, severity=severity)
        found.append(dataclasses.replace(claim, conclusive=gate.conclusive))
    return found


def exit_code(run: store.Run, gates: Gates) -> int:
    """0 gates passed; 1 a gate failed; 3 incomplete, or inconclusive where that is not allowed."""
    statuses = {v.status for v in run.verdicts}
    demanding = {claim.text for claim in claims(gates) if claim.conclusive}
    undecided = any(v.status is Status.INCONCLUSIVE and v.check in demanding for v in run.verdicts)
    if Status.FAIL in statuses:
        return 1
    if not run.complete or undecided or Status.ERROR in statuses:
        return 3
    return 0


def _open(folder, config, model, images, plan, fresh) -> None:
    """Starts a run directory, or continues the same audit in it."""
    manifest = {
        "schema": store.SCHEMA,
        "status": "started",
        "fvaudit": fvaudit.__version__,
        "model": model.fingerprint,
        "data": _data_hash(images),
        "config": hashlib.sha256(dump(_computed(config)).encode()).hexdigest(),
        "environment": environment(),
        "units": len(plan.units),
        "images": len(plan.units) * config.engine.repeats,
    }
    found = store.read_manifest(folder)
    if found is not None and not fresh:
        _require_same(folder, found, manifest)
        store.drop_partial_line(folder)
    elif found is not None:
        _clear(folder)
    done = found is not None and not fresh and found["status"] == "complete"
    # First of all files: a folder that holds anything holds a manifest, and can be gone on with.
    store.write_json(
        folder / "manifest.json", {**manifest, "status": "complete" if done else "started"}
    )
    _describe(folder, config, model, images, plan)


def _computed(config: Config) -> Config:
    """The part of a config that results depend on: neither gates nor what problems do."""
    return config.model_copy(update={"gates": Gates(), "preflight": "stop"})


def _require_same(folder, found, wanted) -> None:
    names = ("config", "model", "data", "environment", "fvaudit")
    changed = [name for name in names if found.get(name) != wanted[name]]
    if changed:
        raise AuditError(
            f"{folder} holds an audit with another {', '.join(changed)}. Its results cannot be "
            "mixed with new ones: give --out another folder, or --fresh to start over here."
        )


def _clear(folder: pathlib.Path) -> None:
    """Removes what an earlier audit wrote and nothing else, the manifest last."""
    for name in ("images", "exemplars", "figures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("doctor.json", "results.jsonl", "summary.json", "verdicts.json", "data.json",
                 "report.html", "summary.md", "units.parquet", "layers.parquet",
                 "config.resolved.yaml", "env.json", "model.json", "log.txt",
                 "manifest.json"):  # fmt: skip
        (folder / name).unlink(missing_ok=True)


def _describe(folder, config, model, images, plan) -> None:
    store.write_text(folder / "config.resolved.yaml", dump(config))
    store.write_json(folder / "env.json", environment())
    store.write_json(
        folder / "model.json",
        {
            "name": model.name,
            "source": model.source,
            "fingerprint": model.fingerprint,
            "input": dataclasses.asdict(model.input),
            "layers": model.shapes,
        },
    )
    store.write_json(
        folder / "data.json",
        {
            "source": config.images.source,
            "photographs": images.photographs,
            "images": len(images.ids),
            "labelled": images.labels is not None,
            "skipped": images.skipped,
            "features": {layer: _features(config, model, layer) for layer in plan.layers},
        },
    )


def _features(config: Config, model: Model, layer: str) -> dict[str, int]:
    """How many features of a layer are compared, of how many."""
    there = feature_count(model, layer, config.evidence.variant)
    return {"compared": min(there, config.evidence.max_features), "there": there}


def environment() -> dict[str, Any]:
    """Versions and devices that results may depend on."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "jax": jax.__version__,
        "numpy": np.__version__,
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.local_devices()],
    }


def _data_hash(images: ImageSet) -> str:
    digest = hashlib.sha256(json.dumps(images.ids).encode())
    digest.update(np.ascontiguousarray(images.pixels).tobytes())
    digest.update(b"" if images.labels is None else images.labels.tobytes())
    digest.update(images.group.tobytes())
    return digest.hexdigest()


def _image_name(unit: str, repeat: int) -> str:
    return f"images/{pictures.picture_name(unit, repeat)}"


def _preflight(folder, config, model, images, listener) -> None:
    """What the doctor says of model and photographs; a problem ends the audit before any work."""
    if config.preflight == "off":
        return
    if store.read_findings(folder) is None:
        listener(Event("doctor", 0, 1))
        once = config.images.model_copy(update={"crops": 1})
        load = loader(
            model, lambda m: natural_images(config.model_copy(update={"images": once}), m)
        )
        found = preflight(model, images, reload=load, limit=PREFLIGHT, thorough=False)
        store.write_json(folder / "doctor.json", found)
        listener(Event("doctor", 1, 1, f"{sum(f.severity > Severity.OK for f in found)} findings"))
    grave = [f for f in store.read_findings(folder) or () if f.severity is Severity.PROBLEM]
    if grave and config.preflight == "stop":
        listed = "\n".join(f"  {finding}" for finding in grave)
        raise AuditError(
            f"The doctor stopped this audit, since its numbers would be wrong:\n{listed}\nMend "
            "that and run again with --fresh; or say preflight: report to go on all the same. "
            "`fvaudit doctor` tells more."
        )


def _visualize(folder, config, model, plan, listener) -> None:
    """Makes the images that are missing."""
    jobs = [
        Job(objectives.of_unit(unit), repeat)
        for unit in plan.units
        for repeat in range(config.engine.repeats)
    ]
    missing = [j for j in jobs if not (folder / _image_name(str(j.objective), j.repeat)).exists()]
    done = len(jobs) - len(missing)
    listener(Event("visualize", done, len(jobs), "compiling" if missing else ""))
    for job, ascent in render(model, missing, plan.recipe, config.seed):
        _save_image(folder, job, ascent, plan.recipe, config.seed, model)
        done += 1
        text = f"{job.objective} {f'reached {ascent.reached:.2f}' if ascent.alive else 'is dead'}"
        listener(Event("visualize", done, len(jobs), text))


def _save_image(folder, job: Job, ascent: Ascent, recipe: Recipe, seed: int, model: Model) -> None:
    """The picture as 8-bit PNG, which is what evidence is taken on and what people see."""
    path = folder / _image_name(str(job.objective), job.repeat)
    beside = io.BytesIO()
    np.savez(
        beside,
        trace=ascent.trace,
        shots=pictures.eight_bit(ascent.shots[:, 0]),
        steps=recipe.shot_steps,
        alive=ascent.alive,
    )
    store.write_bytes(path.with_suffix(".npz"), beside.getvalue())
    notes = pictures.provenance(job, ascent, recipe, seed, model)
    store.write_bytes(path, pictures.png(ascent.image, notes))


def _measure(folder, config, model, images, plan, listener) -> None:
    """Adds the missing lines of results.jsonl, in the order of the plan."""
    names = [str(unit) for unit in plan.units]
    done = store.read_results(folder)
    if [r.unit for r in done] != names[: len(done)]:
        raise AuditError(
            f"{folder / 'results.jsonl'} lists other units than the config. Use --fresh."
        )
    if len(done) == len(names):
        return
    listener(Event("natural", 0, len(images.ids)))
    features = _collect(model, images.pixels, plan.layers, config)
    known = natural(images, features, output=model.resolve("logits"))
    listener(Event("natural", len(images.ids), len(images.ids)))
    for index in range(len(done), len(names)):
        result = _measure_unit(folder, config, model, known, plan, plan.units[index])
        _save_exemplars(folder, images, result)
        store.append_result(folder, result)  # last: a line means that the unit is done
        listener(Event("evidence", index + 1, len(names), f"{result.unit} path {result.score}"))


def _measure_unit(folder, config, model, known, plan, unit: Unit) -> UnitResult:
    names = [_image_name(str(unit), r) for r in range(config.engine.repeats)]
    shown = pictures.read([folder / name for name in names])
    fv = _collect(model, shown, plan.layers, config)
    stream = hashlib.sha256(str(unit).encode()).digest()[:4]
    result = measure(
        unit,
        model.label(unit),
        known,
        fv,
        path_layers(config, model, unit.layer),
        images=tuple(names),
        group_size=config.evidence.group,
        level=config.evidence.level,
        replicates=config.evidence.replicates,
        rng=np.random.default_rng([config.seed, int.from_bytes(stream, "little")]),
    )
    return without_dead(result, sum(not _alive(folder / name) for name in names))


def _alive(picture: pathlib.Path) -> bool:
    with np.load(picture.with_suffix(".npz"), allow_pickle=False) as beside:
        return bool(beside["alive"])


def _collect(model, pixels, layers, config) -> Features:
    evidence = config.evidence
    return collect(
        model,
        pixels,
        layers,
        metric=evidence.metric,
        variant=evidence.variant,
        max_features=evidence.max_features,
        seed=config.seed,
    )


def _save_exemplars(folder, images: ImageSet, result: UnitResult) -> None:
    index = {name: i for i, name in enumerate(images.ids)}
    for image_id in result.exemplars:
        path = folder / store.exemplar_name(image_id)
        if not path.exists():
            whole = pictures.drawn(images.pixels[index[image_id]])
            small = ImageOps.contain(whole, EXEMPLAR)
            store.write_bytes(path, pictures.png(np.atleast_3d(np.asarray(small))))


def _derive(folder: pathlib.Path, config: Config, listener: Listener) -> None:
    """Writes what follows from all units, and marks the run complete."""
    listener(Event("derive", 0, 1))
    results = store.read_results(folder)
    shown = [r for r in results if not r.dead] or results  # what a picture of noise says is nothing
    rng = np.random.default_rng([config.seed, 0])
    layers = summary.by_layer(shown, config.evidence.level, config.evidence.replicates, rng)
    headline = summary.headline(
        shown, level=config.evidence.level, replicates=config.evidence.replicates, rng=rng
    )
    store.write_json(folder / "summary.json", {"headline": headline, "layers": layers})
    tables = summary.tables(results, layers)
    for name, table in tables.items():
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        store.write_bytes(folder / f"{name}.parquet", buffer.getvalue())
    manifest = store.read_manifest(folder) or {}
    store.write_json(folder / "manifest.json", {**manifest, "status": "complete"})
    listener(Event("derive", 1, 1))


def _log(folder: pathlib.Path, text: str) -> None:
    with open(folder / "log.txt", "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")
