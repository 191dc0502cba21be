"""The command line: verbs; the only place that prints, besides `progress`, and exits.

Exit codes: 0 gates passed; 1 a gate failed; 2 usage or config error; 3 the audit could not be
completed, or was inconclusive where a gate demands a conclusion; 4 not comparable (reserved).

Nothing heavy is imported before a verb needs it, so `--help` answers at once.
"""

import enum
import functools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fvaudit import progress
from fvaudit.records import AuditError


if TYPE_CHECKING:
    from fvaudit.store import Run


class ExitCode(enum.IntEnum):
    """What a pipeline reads."""

    PASSED = 0
    GATE_FAILED = 1
    USAGE = 2
    INCOMPLETE = 3
    NOT_COMPARABLE = 4


INTERRUPTED = "stopped; the same command goes on from here"
OUT_OF_MEMORY = (
    "there is not enough memory; fewer lanes, photographs, crops or shots need less, and the same "
    "command goes on from here"
)
SIGINT_CODE = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    name="fvaudit",
    epilog="Exit codes: 0 gates passed, 1 a gate failed, 2 usage or config error, 3 incomplete or "
    "inconclusive where a conclusion was demanded, 4 not comparable.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

ConfigArgument = Annotated[str, typer.Argument(help="a YAML file, or a preset such as quickstart")]
Out = Annotated[pathlib.Path, typer.Option("--out", "-o", help="the run directory")]
Folder = Annotated[pathlib.Path, typer.Argument(help="a run directory")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="change a key: engine.steps=64", metavar="A.B=C")
]
Weights = Annotated[
    pathlib.Path | None, typer.Option("--weights", help="its weight file, where it needs one")
]
MODELS = "name of the zoo, .onnx file, folder that fvaudit wrote, or hf-hub:org/name"
ModelName = Annotated[str, typer.Option("--model", help=MODELS)]
ModelArgument = Annotated[str, typer.Argument(help=MODELS)]
InputFile = Annotated[
    pathlib.Path | None,
    typer.Option("--input", help="YAML file of its preprocessing, where the model does not say it"),
]
InputKeys = Annotated[
    list[str] | None, typer.Option("--set", help="or key by key: input.size=224", metavar="A.B=C")
]
AllowDownload = Annotated[
    bool, typer.Option("--allow-download", help="let hf-hub: names use the network")
]


def _say_version(wanted: bool) -> bool:
    if wanted:
        from fvaudit import __version__

        print(f"fvaudit {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="print it and stop"),
    ] = False,
) -> None:
    """Audits feature visualizations: how far can each be believed, with statistics."""


@app.command("run")
def run_command(
    config: ConfigArgument,
    out: Out,
    set_: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the cost and stop")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="drop earlier results in --out")] = False,
    input_: InputFile = None,
    allow_download: AllowDownload = False,
    only_compute: Annotated[
        bool, typer.Option("--no-report", help="do not render the report")
    ] = False,
) -> None:
    """Compute an audit, judge it against its gates, and render its report.

    The same command finishes an audit that was interrupted, and does nothing new when it is done.
    """
    from fvaudit.config import load_config

    loaded = load_config(config, [*_input_overrides(input_), *(set_ or [])])
    if dry_run:
        _print_forecast(loaded, allow_download)
        return
    from fvaudit.run import audit

    with progress.shown() as listener:
        run = audit(loaded, out, fresh=fresh, allow_download=allow_download, listener=listener)
    if not only_compute:
        _render(out)
    _finish(run, loaded)


@app.command("check")
def check_command(
    folder: Folder,
    config: Annotated[
        str | None, typer.Option("--config", help="judge by this config's gates instead")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Judge a run directory against gates, without computing anything again."""
    from fvaudit import store
    from fvaudit.run import check

    gates_of = _config_of(folder, config, set_)
    check(folder, gates_of.gates)
    _finish(store.read_run(folder), gates_of)


@app.command("report")
def report_command(folder: Folder) -> None:
    """Render report.html, summary.md and figures of a run directory."""
    print(f"report: {_render(folder)}")


@app.command("doctor")
def doctor_command(
    model: ModelArgument,
    data: Annotated[str, typer.Option("--data", help="photographs, best in class folders")],
    weights: Weights = None,
    classes: Annotated[
        pathlib.Path | None,
        typer.Option(help="file of its classes, a name a line, where it does not know them"),
    ] = None,
    limit: Annotated[int, typer.Option(help="at most this many photographs")] = 500,
    brief: Annotated[bool, typer.Option("--brief", help="only what every audit looks at")] = False,
    input_: InputFile = None,
    set_: InputKeys = None,
    allow_download: AllowDownload = False,
) -> None:
    """Look for wrong preprocessing, layers in training mode, dead layers, NaN, slow parts.

    Exit code 1 if there is a problem.
    """
    from fvaudit.diagnosis import doctor
    from fvaudit.records import Severity
    from fvaudit.report.text import finding_lines

    loaded = _model(model, weights, input_, set_, allow_download, classes=classes)
    found = doctor(loaded, data, limit=limit, thorough=not brief)
    for line in finding_lines(found):
        print(line)
    if found[0].severity is Severity.PROBLEM:
        raise typer.Exit(ExitCode.GATE_FAILED)


@app.command("list")
def list_command(
    model: ModelName = "efficientnet_lite0",
    weights: Weights = None,
    input_: InputFile = None,
    set_: InputKeys = None,
    allow_download: AllowDownload = False,
) -> None:
    """Print a model's layers with their shapes; * marks the trunk that paths are compared along."""
    loaded = _model(model, weights, input_, set_, allow_download)
    print(f"{loaded.name}: {len(loaded.layers)} layers; weights: {loaded.source}")
    width = 2 + max(map(len, loaded.layers))
    print(f"  {'layer':<{width}}rows x columns x channels, or tokens x channels; other names")
    for layer in loaded.layers:
        mark = "*" if layer in loaded.trunk else " "
        others = [alias for alias, name in loaded.aliases.items() if name == layer]
        extent = " x ".join(map(str, loaded.shapes[layer]))
        print(f"{mark} {layer:<{width}}{extent:<18}{', '.join(others)}".rstrip())


@app.command("viz")
def viz_command(
    model: ModelArgument,
    units: Annotated[list[str], typer.Argument(help="layer:channel[@row,column or @token] ...")],
    out: Annotated[pathlib.Path, typer.Option("--out", "-o", help="where pictures go")],
    weights: Weights = None,
    recipe: Annotated[
        str, typer.Option(help="fourier, lucid, pixels, maco, cppn, yosinski1 to yosinski4")
    ] = "fourier",
    steps: Annotated[int | None, typer.Option(help="updates per image; the recipe's own")] = None,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="independent images per unit")] = 1,
    seed: Annotated[int, typer.Option(help="of all random draws")] = 0,
    input_: InputFile = None,
    set_: InputKeys = None,
    allow_download: AllowDownload = False,
) -> None:
    """Visualize units: one PNG each, and a contact sheet.

    Pictures that the folder holds already, made in the same way, are kept.
    """
    from fvaudit import pictures
    from fvaudit.optvis.objectives import of_unit
    from fvaudit.optvis.recipes import recipe as named_recipe
    from fvaudit.optvis.render import Job
    from fvaudit.records import Unit

    loaded = _model(model, weights, input_, set_, allow_download)
    chosen = named_recipe(recipe, loaded.input, steps=steps)
    wanted = list(dict.fromkeys(map(Unit.parse, units)))
    for unit in wanted:  # said before anything is compiled
        loaded.require_unit(unit)
    jobs = [Job(of_unit(unit), r) for unit in wanted for r in range(repeats)]
    with progress.shown() as listener:
        watching = functools.partial(progress.steps_shown, listener)
        made = pictures.make(out, jobs, chosen, seed, loaded, watching)
    pictures.save_sheet(out / "sheet.png", made, columns=repeats if repeats > 1 else 8)
    print(f"{len(jobs)} picture{'s' if len(jobs) > 1 else ''} and sheet.png in {out}")
    dead = [f"{job.objective} (repeat {job.repeat})" for job, ascent in made if not ascent.alive]
    if dead:
        why = "no gradient ever reached the picture, or one that is no number"
        print(f"dead, {why}: {', '.join(dead)}")


@app.command("manipulate")
def manipulate_command(
    config: Annotated[pathlib.Path, typer.Argument(help="a YAML file: model, units, attack")],
    out: Annotated[pathlib.Path, typer.Option("--out", "-o", help="where the model goes")],
    set_: Overrides = None,
    allow_download: AllowDownload = False,
) -> None:
    """Hijack visualizations: a model that shows something else, and its certificate."""
    from fvaudit.manipulation import manipulate

    proof = manipulate(config, out, overrides=set_ or [], allow_download=allow_download, tell=print)
    for name, share in proof["shares"].items():
        print(f"{name}: {share['value']:.2%} of {share['n']}, at most {share['high']:.2%}")
    print(f"largest change of a logit: {proof['logit_change_max']:.3g}")
    print(f"model and certificate in {out}")


@app.command("train-gate")
def train_gate_command(
    config: Annotated[pathlib.Path, typer.Argument(help="a YAML file: model, units, photographs")],
    out: Annotated[pathlib.Path, typer.Option("--out", "-o", help="where the gate goes")],
    set_: Overrides = None,
    allow_download: AllowDownload = False,
) -> None:
    """Train a gate that tells photographs from visualizations, for a fooling circuit."""
    from fvaudit.gates import GATE, train_gate

    facts = train_gate(config, out, overrides=set_ or [], allow_download=allow_download, tell=print)
    for name in (
        "photographs taken for visualizations",
        "units with any image taken for a photograph",
    ):
        share = facts[name]
        print(f"{name}: {share['value']:.2%} of {share['n']}, at most {share['high']:.2%}")
    print(f"gate in {out / GATE}")


def _model(
    name: str,
    weights: pathlib.Path | None,
    input_: pathlib.Path | None,
    set_: Sequence[str] | None,
    allow_download: bool,
    **more: Any,
) -> Any:
    """The model that a verb names, with its preprocessing from a file, options, or neither."""
    from fvaudit.config import input_of
    from fvaudit.models.zoo import load_model

    said = input_of([*_input_overrides(input_), *(set_ or [])])
    return load_model(name, weights, input=said, allow_download=allow_download, **more)


def _input_overrides(path: pathlib.Path | None) -> list[str]:
    """A spec file as --set options; JSON is YAML."""
    if path is None:
        return []
    from fvaudit.models.imports.specs import said

    found = said(path, f"--input {path}")
    return [f"input.{key}={json.dumps(value)}" for key, value in found.items()]


@app.command("schema")
def schema_command(
    verb: Annotated[str, typer.Argument(help="whose: run, manipulate or train-gate")] = "run",
) -> None:
    """Print the JSON Schema of a config: every key, with its meaning."""
    from fvaudit.config import Config
    from fvaudit.gates import GateTraining
    from fvaudit.manipulation import Manipulation

    known = {section.verb: section for section in (Config, Manipulation, GateTraining)}
    if verb not in known:
        raise AuditError(f"{verb!r} takes no config. These do: {', '.join(known)}.")
    print(json.dumps(known[verb].model_json_schema(), indent=2))


@app.command("init")
def init_command(
    path: Annotated[pathlib.Path, typer.Argument(help="the file to write")] = pathlib.Path(
        "audit.yaml"
    ),
    preset: Annotated[str, typer.Option(help="quickstart, or attack")] = "quickstart",
) -> None:
    """Write a commented config to start from: of an audit, or (attack) of a manipulation."""
    from fvaudit.yamlfile import presets

    known = {k: (verb, file) for verb in ("run", "manipulate") for k, file in presets(verb).items()}
    if preset not in known:
        raise AuditError(f"There is no preset {preset!r}. Known: {', '.join(known)}.")
    if path.exists():
        raise AuditError(f"{path} exists already; give another name.")
    verb, file = known[preset]
    path.write_text(file.read_text())
    print(f"wrote {path}; next: fvaudit {verb} {path} --out runs/{path.stem}")


def main() -> None:
    """Entry point: a user's mistake is one clear text and exit code 2, never a traceback."""
    try:
        code = app(standalone_mode=False)
    except AuditError as error:
        _stop(str(error), ExitCode.USAGE)
    except OSError as error:  # a full disk, a folder that may not be written
        _stop(f"{error}; the same command goes on once that is mended", ExitCode.INCOMPLETE)
    except (typer.Abort, KeyboardInterrupt):
        _stop(INTERRUPTED, ExitCode.INCOMPLETE)
    except Exception as error:
        if _is_out_of_memory(error):
            _stop(f"{OUT_OF_MEMORY} ({error})", ExitCode.INCOMPLETE)
        if not hasattr(error, "format_message"):  # not one of click's own usage errors
            raise
        said = error.format_message()  # pyright: ignore
        if type(error).__name__ == "NoArgsIsHelpError":
            print(said, file=sys.stderr)
            sys.exit(ExitCode.USAGE)
        _stop(said, ExitCode.USAGE)
    if code == SIGINT_CODE:
        _stop(INTERRUPTED, ExitCode.INCOMPLETE)
    sys.exit(code or ExitCode.PASSED)


def _is_out_of_memory(error: Exception) -> bool:
    """Python's or NumPy's, or that of a device; JAX's class is not imported for it."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _stop(text: str, code: ExitCode) -> NoReturn:
    print(f"fvaudit: {text}", file=sys.stderr)
    sys.exit(code)


def _finish(run: "Run", config: Any) -> None:
    from fvaudit.run import exit_code

    code = ExitCode(exit_code(run, config.gates))
    _print_summary(run, code)
    raise typer.Exit(code)


def _config_of(folder: pathlib.Path, config: str | None, overrides: list[str] | None) -> Any:
    from fvaudit.config import load_config
    from fvaudit.store import read_run

    read_run(folder)  # says so if the folder holds no run
    return load_config(config or folder / "config.resolved.yaml", overrides or [])


def _render(folder: pathlib.Path) -> pathlib.Path:
    from fvaudit.report import render

    return render(folder)


def _print_summary(run: "Run", code: ExitCode) -> None:
    from fvaudit.report.text import summary_lines

    for line in summary_lines(run):
        print(line)
    report = run.folder / "report.html"
    if report.exists():
        print(f"report: {report}")
    meaning = {
        ExitCode.PASSED: "no gate failed",
        ExitCode.GATE_FAILED: "a gate failed",
        ExitCode.INCOMPLETE: "incomplete, or inconclusive where a gate demands a conclusion",
    }
    print(f"exit code {int(code)}: {meaning[code]}")


def _print_forecast(config: Any, allow_download: bool) -> None:
    from fvaudit.plan import forecast

    cost = forecast(config, allow_download=allow_download)
    print(f"units      {len(cost.units)}: {', '.join(cost.units)}")
    print(f"images     {cost.images} visualizations of {cost.steps} steps each")
    print(f"natural    {cost.natural_images} images of {cost.photographs} photographs")
    print(f"compiles   {cost.compiles} programs")
    print(f"memory     about {cost.memory / 2**30:.1f} GiB at the peak")
    print(f"time       about {_minutes(cost.seconds)} on this machine")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
