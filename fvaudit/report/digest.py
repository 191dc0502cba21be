"""What the page, the Markdown summary and the terminal all say, so that they cannot disagree.

Counting rule: a unit counts once, under the worst of its verdicts; the word for the whole run is
the worst of all verdicts.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import yaml

from fvaudit.records import Estimate, Status, UnitResult, Verdict
from fvaudit.store import Run


UNKNOWN = "not estimated"
NOT_JUDGED = "NOT JUDGED"
FINDINGS = tuple(sorted(Status, reverse=True))

# What a failed claim says of an FV, after "the feature visualizations of k of n units".
_FAILED = {
    "same_path": "are not processed like the natural images they are said to explain",
    "not_distinguishable": "are told apart from natural images by the path they take",
    "drives_unit": "do not drive their unit more than natural photographs do",
}
_CLAIMS = {
    "same_path": "The FV is processed along the path of its natural images",
    "not_distinguishable": "The FV’s path cannot be told from a natural image’s",
    "drives_unit": "The FV drives its unit more than natural photographs do",
}


@dataclasses.dataclass(frozen=True)
class Overall:
    """The verdict of the whole run, in words."""

    word: str  # a status, INCOMPLETE or NOT JUDGED
    sentence: str  # begins with a capital letter, ends with a full stop

    @property
    def text(self) -> str:
        """Word and sentence in one line."""
        return f"{self.word}: {self.sentence[:1].lower()}{self.sentence[1:]}"


@dataclasses.dataclass(frozen=True)
class Number:
    """One of the three numbers that matter."""

    name: str
    value: str  # with its interval
    reading: str  # one plain sentence on how to read it
    basis: str  # level, n and method of the interval
    estimate: Estimate | None


def number(value: float, digits: int = 2) -> str:
    """A number in words: NaN is said, never shown as 0."""
    return f"{value:.{digits}f}" if math.isfinite(value) else UNKNOWN


def interval(estimate: Estimate | None, digits: int = 2) -> str:
    """`value [low, high]`, or what is missing of it."""
    if estimate is None or not math.isfinite(estimate.value):
        return UNKNOWN
    if not estimate.known:
        return f"{number(estimate.value, digits)} (interval {UNKNOWN})"
    low, high = number(estimate.low, digits), number(estimate.high, digits)
    return f"{number(estimate.value, digits)} [{low}, {high}]"


def reason(verdict: Verdict) -> str:
    """The verdict's sentence; a NaN that was formatted into it is spelt out."""
    whole = re.sub(r"(?<![\w.])nan%? \[nan%?, nan%?\]", UNKNOWN, verdict.reason)
    return re.sub(r"(?<![\w.])-?nan%?(?!\w)", UNKNOWN, whole)


def check_name(check: str) -> str:
    """`same_path` of `same_path(min_score=0.5)`."""
    return check.partition("(")[0]


def claim(check: str) -> str:
    """What a check claims, in words; its own text where it is not one we know."""
    return _CLAIMS.get(check_name(check), check)


def settings(run: Run) -> dict[str, Any]:
    """The resolved config as plain mappings; empty where there is none yet."""
    try:
        found = yaml.safe_load(run.config)
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else {}


def setting(run: Run, section: str, key: str) -> Any:
    """One value of the resolved config, None where it is not there."""
    found = settings(run).get(section)
    return found.get(key) if isinstance(found, dict) else None


def unit_status(run: Run) -> dict[str, Status | None]:
    """The worst verdict of each unit, in the order of the results; None: not judged."""
    found: dict[str, Status | None] = {r.unit: None for r in run.units}
    for v in run.verdicts:
        if v.subject in found:
            before = found[v.subject]
            found[v.subject] = v.status if before is None else max(before, v.status)
    return found


def by_subject(run: Run) -> dict[str, list[Verdict]]:
    """Verdicts by what they are about."""
    table: dict[str, list[Verdict]] = {}
    for v in run.verdicts:
        table.setdefault(v.subject, []).append(v)
    return table


def counts(run: Run) -> dict[str, int]:
    """Units by status, the most severe last; NOT JUDGED only where there are such units."""
    found = list(unit_status(run).values())
    table = {s.name: found.count(s) for s in Status}
    if None in found:
        table[NOT_JUDGED] = found.count(None)
    return table


def by_check(run: Run) -> dict[str, dict[str, int]]:
    """Verdicts by check and status, checks in the order in which they were judged."""
    table: dict[str, dict[str, int]] = {}
    for v in run.verdicts:
        row = table.setdefault(v.check, {s.name: 0 for s in Status})
        row[v.status.name] += 1
    return table


def planned(run: Run) -> int:
    """How many units the audit is to have."""
    return int(run.manifest.get("units", len(run.units)))


def overall(run: Run) -> Overall:
    """The verdict of the whole run."""
    judged = _judged(run)
    if not run.complete:
        sofar = "" if judged is None else f" So far {judged.word}: {judged.sentence}"
        return Overall(
            "INCOMPLETE",
            f"{len(run.units)} of {planned(run)} units were measured; the same `fvaudit run` "
            f"command finishes the rest.{sofar}",
        )
    if judged is None:
        return Overall(
            NOT_JUDGED,
            f"{_units(len(run.units))} measured, but there are no verdicts: the config has no "
            "gates, or `fvaudit check` has not run yet.",
        )
    return judged


def _judged(run: Run) -> Overall | None:
    if not run.verdicts:
        return None
    there = [s for s in FINDINGS if any(v.status is s for v in run.verdicts)]
    if there[0] is not Status.ERROR:
        return Overall(there[0].name, _sentence(run, there[0]))
    broken = sum(v.status is Status.ERROR for v in run.verdicts)
    rest = f" {_sentence(run, there[1])}" if len(there) > 1 else ""
    return Overall(
        "ERROR", f"{broken} of {len(run.verdicts)} verdicts could not be computed.{rest}"
    )


def _sentence(run: Run, worst: Status) -> str:
    check, row = next((c, r) for c, r in by_check(run).items() if r[worst.name])
    hits, total = row[worst.name], sum(row.values())
    if worst is Status.PASS:
        return f"No discrepancy was detected in the feature visualizations of {_units(total)}."
    if worst is Status.INCONCLUSIVE:
        return f"It stays open for {hits} of {_units(total)} whether “{claim(check)}”."
    text = _FAILED.get(check_name(check), f"do not meet {check}")
    return f"The feature visualizations of {hits} of {_units(total)} {text}{_open(row)}."


def _open(row: dict[str, int]) -> str:
    """Undecided units must not be read as passed ones."""
    undecided = row[Status.INCONCLUSIVE.name]
    return f"; for {undecided} it stays open" if undecided else ""


def _units(count: int) -> str:
    return "1 unit" if count == 1 else f"{count} units"


def numbers(run: Run) -> tuple[Number, ...]:
    """The three numbers that matter, each with how to read it."""
    found = run.headline
    score, apart, margin = (
        (None, None, None) if found is None else (found.score, found.distinguishable, found.margin)
    )
    return (
        _number(
            "Mean path score",
            score,
            "1: processed layer by layer like its own natural images. 0: like any other "
            "photograph, or stranger. Only resolvable layers count.",
        ),
        _number(
            "Told apart from natural",
            apart,
            "Share of feature visualizations whose path a conformal test tells apart from their "
            "natural group. 0: none. 1: every one.",
        ),
        _number(
            "Median activation margin",
            margin,
            "How far the FV’s response lies above the median photograph’s, in natural MADs. "
            "0: like a typical photograph. A high response is no proof of a right explanation.",
        ),
    )


def _number(name: str, estimate: Estimate | None, reading: str) -> Number:
    if estimate is None:
        return Number(name, UNKNOWN, reading, "the run is not complete", None)
    basis = f"{estimate.unit}; n = {estimate.n}; {estimate.level:.0%} interval: {estimate.method}"
    return Number(name, interval(estimate), reading, basis, estimate)


def photographs(run: Run) -> str:
    """What stands behind the numbers: photographs, not crops."""
    count, images = run.data.get("photographs"), run.data.get("images")
    if count is None:
        return "an unknown number of photographs"
    return f"{count} photographs" + (f" ({images} images)" if images != count else "")


def unusable(run: Run) -> str:
    """How many files gave no image, if any; their names and reasons stand in the report."""
    skipped = len(run.data.get("skipped", ()))
    return f"Files that could not be used: {skipped}" if skipped else ""


def limits(run: Run) -> tuple[str, ...]:
    """What the audit cannot show, with this run's own numbers."""
    found = (_data_limit(run), _group_limit(run), _resolution_limit(run), _p_limit(run))
    return (
        *(text for text in found if text),
        "The conformal test assumes that, were the FV natural, it would be exchangeable with the "
        "photographs of its group. Groups that are chosen for a strong response are no random "
        "sample.",
        "Reliability is not manipulation evidence: ordinary, untampered networks fail this audit "
        "in their early layers (Geirhos et al., ICML 2024). A low score says that the FV explains "
        "little about natural images, not that somebody tampered with the network.",
        _keys_limit(run),
        "PASS means that no discrepancy was detected, not that there is none; each PASS names the "
        "smallest one that this run could have seen.",
        _metric_limit(run) + _sampled_features(run),
    )


def _data_limit(run: Run) -> str:
    labels = "labelled" if run.data.get("labelled") else "not labelled"
    left = f" {unusable(run)}." if unusable(run) else ""
    return (
        f"Behind every number stand {photographs(run)}, {labels}. Crops of one photograph are not "
        f"independent: photographs are counted.{left}"
    )


def _group_limit(run: Run) -> str:
    sizes = [r.photographs for r in run.units]
    if not sizes:
        return ""
    size = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    return (
        f"Natural groups hold {size} photographs. For hidden units they are the unit’s strongest "
        "exemplars; with few photographs to choose from, many of them activate it only weakly, so "
        "that the ‘same’ and the ‘different’ group may barely differ."
    )


def _resolution_limit(run: Run) -> str:
    rows = [row for r in run.units for row in r.path]
    open_ = sum(not row.resolvable for row in rows)
    if not rows:
        return ""
    scored = sum(math.isfinite(r.score.value) for r in run.units)
    return (
        f"{open_} of {len(rows)} comparisons (unit × layer) are not resolvable: there, natural "
        "images of the group are not measurably more alike than unrelated ones. They are flagged "
        f"and left out of every score. A path score exists for {scored} of "
        f"{_units(len(run.units))}."
    )


def _p_limit(run: Run) -> str:
    found = [r.p_attainable for r in run.units if math.isfinite(r.p_attainable)]
    gates = settings(run).get("gates")
    gate = gates.get("not_distinguishable") if isinstance(gates, dict) else None
    if not found:
        return ""
    text = f"The smallest p-value that a natural group of this size allows is {min(found):.3f}."
    if not isinstance(gate, dict) or "fdr" not in gate:
        return text
    needed = math.ceil(min(found) * len(run.units) / gate["fdr"] - 1e-9)
    if needed > len(run.units):
        return f"{text} At a false discovery rate of {gate['fdr']} no unit can be told apart."
    return (
        f"{text} At a false discovery rate of {gate['fdr']} over {_units(len(run.units))}, at "
        f"least {needed} must reach it before any is told apart."
    )


def _keys_limit(run: Run) -> str:
    repeats = setting(run, "engine", "repeats")
    return (
        f"Path intervals speak of these FVs{f' ({repeats} a unit)' if repeats else ''} and other "
        "photographs. What other seeds would have made is less sure: where FVs differ between "
        "seeds as much as photographs do, a simulated 95 % interval from two FVs holds the mean "
        "over all seeds in 80 to 90 % of cases."
    )


def _sampled_features(run: Run) -> str:
    counts = run.data.get("features", {})
    part = [layer for layer, c in counts.items() if c["compared"] < c["there"]]
    if not part:
        return ""
    return (
        f" In the largest layers ({', '.join(part)}) a seeded subset of "
        f"{counts[part[0]]['compared']} features was compared, the same for all images."
    )


def _metric_limit(run: Run) -> str:
    metric = setting(run, "evidence", "metric") or "one"
    variant = setting(run, "evidence", "variant")
    named = f"{variant} {metric.capitalize()}" if variant else metric
    repeats = setting(run, "engine", "repeats")
    fvs = "1 FV" if repeats == 1 else f"{repeats} FVs"
    made = f", on {fvs} a unit, made in one way" if repeats else ""
    return (
        f"Activations were compared by {named} similarity only{made}. Another metric, other "
        "layers or another way of making FVs may show more or less."
    )


def comparability(run: Run) -> tuple[tuple[str, str], ...]:
    """What must agree before two runs can be compared."""
    manifest = run.manifest
    environment = manifest.get("environment", run.environment)
    found = (
        ("model", _short(manifest.get("model"))),
        ("config", _short(manifest.get("config"))),
        ("data", _short(manifest.get("data"))),
        ("seed", settings(run).get("seed")),
        ("fvaudit", manifest.get("fvaudit")),
        ("jax", environment.get("jax")),
    )
    return tuple((name, "unknown" if value is None else str(value)) for name, value in found)


def _short(value: Any) -> str | None:
    return None if value is None else str(value)[:12]


def findings(run: Run) -> dict[str, list[Verdict]]:
    """The verdicts that are not PASS, by check, the most severe first."""
    table: dict[str, list[Verdict]] = {check: [] for check in by_check(run)}
    for v in run.verdicts:
        if v.status is not Status.PASS:
            table[v.check].append(v)
    return {
        check: sorted(rows, key=lambda v: FINDINGS.index(v.status))
        for check, rows in table.items()
        if rows
    }


def worst_units(run: Run, most: int) -> Sequence[UnitResult]:
    """The units that did not pass, the most severe and then the lowest path score first."""
    status = unit_status(run)
    found = [r for r in run.units if status[r.unit] not in (None, Status.PASS)]

    def key(r: UnitResult) -> tuple[int, float]:
        worst = status[r.unit]
        rank = len(FINDINGS) if worst is None else FINDINGS.index(worst)
        return rank, r.score.value if math.isfinite(r.score.value) else math.inf

    return sorted(found, key=key)[:most]
