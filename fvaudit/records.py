"""The nouns of an audit, as frozen records.

Said once here and never re-argued: images are float32, NHWC, RGB, in [0, 1]; everything in these
records lives on the host (NumPy arrays and Python floats); a number that leaves the evidence room
as a claim is an `Estimate`, and a judgement about it is a `Verdict`.

Axis letters have one meaning everywhere: n images, h rows, w columns, c channels, t steps,
r repeats, k checkpoints, l layers, u units.
"""

import dataclasses
import enum
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int


class AuditError(ValueError):
    """A mistake that the user can fix.

    The text names what was got, what was expected, and what to do; the command line prints it
    without a traceback.
    """


def require_whole(name: str, given: Any, least: int, most: int) -> None:
    """Refuses what is no whole number from `least` to `most`."""
    if not isinstance(given, numbers.Integral) or not least <= int(given) <= most:
        raise AuditError(f"{name} must be a whole number from {least} to {most}, got {given!r}.")


def require_kind(name: str, given: Any, kind: Any, expected: str) -> None:
    """Refuses what is not of `kind`, as isinstance takes it: it would fail deep inside."""
    if not isinstance(given, kind):
        got = repr(given) if isinstance(given, str | int | float | None) else type(given).__name__
        raise AuditError(f"{name} must be {expected}, got {got}.")


def require_unit_range(name: str, pixels: np.ndarray) -> None:
    """Refuses pixels outside [0, 1], NaN included."""
    low, high = (float(f(pixels)) for f in (np.min, np.max)) if pixels.size else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # NaN compares false
        raise AuditError(
            f"{name} must lie in [0, 1], got [{low:.3g}, {high:.3g}]. Divide 0..255 by 255, and "
            "leave the mean and the standard deviation to the model."
        )


SEEDS = 2**31  # there are so many, from 0


def require_seed(seed: Any) -> None:
    """Refuses what is no seed."""
    require_whole("seed", seed, 0, SEEDS - 1)


def least_replicates(level: float) -> int:
    """How many bootstrap replicates a level needs, in (0, 1), so that one lies in each tail."""
    return math.ceil(round(2 / (1 - level), 6))  # rounded: 1 - .95 is .0500...04


class Brief:
    """A record that says the sizes of its arrays and not their thousands of numbers."""

    def __repr__(self) -> str:
        fields = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))  # pyright: ignore[reportArgumentType]
        return f"{type(self).__name__}({', '.join(f'{k}={_brief(v)}' for k, v in fields)})"


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size > 8:
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, tuple | list) and len(value) > 3:
        return f"[{value[0]!r}, ... {len(value)} in all]"
    return repr(value)


class Status(enum.IntEnum):
    """What became of one check, ordered by severity: aggregation takes the worst.

    A claim that is known to fail outranks one that is undecided, even where only a warning was
    asked for. Exit codes do not follow this order: see `run.exit_code`.
    """

    PASS = 0  # no discrepancy detected; says the smallest one that could have been seen
    INCONCLUSIVE = 1  # too little data, or an interval that spans the threshold
    WARN = 2  # the claim failed, and the config asks only for a warning
    FAIL = 3  # the claim failed
    ERROR = 4  # the check could not be computed


class Severity(enum.IntEnum):
    """How grave a finding of the doctor is."""

    OK = 0  # measured, and as it should be
    WARN = 1  # numbers may suffer, or cost more than they need to
    PROBLEM = 2  # numbers would be wrong: an audit stops unless its config says otherwise


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that the doctor looked at."""

    severity: Severity
    title: str  # in a few words
    measured: str  # with numbers; how many photographs stand behind them
    fix: str  # what to do; empty where there is nothing to do

    def __str__(self) -> str:
        return f"{self.severity.name.lower()}: {self.title}: {self.measured}. {self.fix}".strip()


LAYER_NAME = r"[^:@\s]+"  # what a layer may be called, since units are written layer:channel
_UNIT = re.compile(rf"(?P<layer>{LAYER_NAME}):(?P<channel>\d+)(?:@(?P<position>\d+(?:,\d+)?))?")


@dataclasses.dataclass(frozen=True, order=True)
class Unit:
    """One channel of one layer, or one neuron of it.

    As text `layer:channel`, `layer:channel@row,column` or, on a layer of tokens,
    `layer:channel@token`.
    """

    layer: str  # a name that `Model.layers` lists
    channel: int  # from 0
    position: tuple[int, ...] | None = None  # of a neuron: (row, column), or (token,); None is the
    # whole channel

    @classmethod
    def parse(cls, text: str) -> "Unit":
        """Reads `blocks.8:17`, `logits:281`, `conv2d2:5@7,7` or `blocks.3.mlp:17@5`.

        Raises:
            AuditError: if the text has another form.
        """
        require_kind("a unit's text", text, str, "layer:channel, such as 'blocks.8:17'")
        match = _UNIT.fullmatch(text.strip())
        if match is None:
            raise AuditError(
                f"{text!r} does not name a unit. Expected layer:channel, "
                "layer:channel@row,column or layer:channel@token, for example 'blocks.8:17' or "
                "'blocks.8:17@7,7'."
            )
        at = match["position"]
        position = None if at is None else tuple(map(int, at.split(",")))
        return cls(match["layer"], int(match["channel"]), position)

    def __str__(self) -> str:
        at = "" if self.position is None else f"@{','.join(map(str, self.position))}"
        return f"{self.layer}:{self.channel}{at}"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty. NaN in `value` means that it could not be estimated."""

    value: float
    low: float  # lower end of the interval; NaN if none could be computed
    high: float  # upper end
    level: float  # confidence level of the interval, in (0, 1)
    n: int  # independent observations behind it (photographs, not crops)
    method: str  # how the interval was computed
    unit: str  # of `value`: "Spearman rho", "fraction", ...

    @property
    def known(self) -> bool:
        """Whether value and interval are all finite."""
        return all(map(math.isfinite, (self.value, self.low, self.high)))

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "not estimated"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one check says of one subject, in a sentence with its numbers."""

    check: str  # call text of the check, enough to run it again: same_path(min_score=0.5)
    subject: str  # a unit's text, a layer, or "model"
    status: Status
    estimate: Estimate | None  # the number that was judged
    threshold: float | None  # what it was held against
    reason: str  # one sentence


@dataclasses.dataclass(frozen=True, repr=False)
class Visualization(Brief):
    """The feature visualizations of one objective, one per repeat, and how to make them again."""

    objective: str  # text of the objective: "blocks.8:17", "0.8*(a:1) + 0.2*(b:2)"
    images: Float[np.ndarray, "n h w c"]  # final images in [0, 1]; the members of a set in a row
    activation: Float[np.ndarray, " n"]  # objective at the final images, without transforms
    trace: Float[np.ndarray, "r t"]  # objective at each step under its transform; NaN once stopped
    shots: Float[np.ndarray, "n k h w c"]  # images at `shot_steps`, in [0, 1]
    shot_steps: tuple[int, ...]  # how many updates each shot had seen
    alive: Bool[np.ndarray, " n"]  # False: dead, no gradient ever reached it, so that it shows its
    # start; or one was NaN or infinite, and it shows what it had come to by then
    settings: Mapping[str, Any]  # parameterization, transforms, steps, seed, model: call texts


@dataclasses.dataclass(frozen=True, repr=False)
class ImageSet(Brief):
    """Natural images, ready for a model of one input size.

    Raises:
        AuditError: if fields are not of one length, ids not unique, or pixels no floats.
    """

    pixels: Float[np.ndarray, "n h w c"]  # in [0, 1]
    ids: tuple[str, ...]  # one name an image, unique
    labels: Int[np.ndarray, " n"] | None  # class index of the model, -1 unknown; None: no labels
    group: Int[np.ndarray, " n"]  # photograph of origin, 0..photographs-1; crops of one share it
    skipped: tuple[tuple[str, str], ...] = ()  # (file, reason) of images that could not be used
    source: str = ""  # the spec that was loaded

    def __post_init__(self) -> None:
        arrays = [("pixels", self.pixels, 4, "f"), ("group", self.group, 1, "iu")]
        if self.labels is not None:
            arrays.append(("labels", self.labels, 1, "iu"))
        for name, array, axes, kinds in arrays:
            require_kind(name, array, np.ndarray, f"an array of {axes} axes")
            if array.ndim != axes or array.dtype.kind not in kinds:
                wanted = "floats (n, h, w, c)" if name == "pixels" else "whole numbers (n,)"
                raise AuditError(
                    f"{name} must be {wanted}, got {array.dtype} of shape {array.shape}."
                )
        lengths = {"ids": len(self.ids), **{name: len(array) for name, array, _, _ in arrays}}
        if len(set(lengths.values())) > 1 or len(set(self.ids)) < len(self.ids):
            raise AuditError(
                f"Images need one id each, all different, one group and, if any, one label; got "
                f"{lengths}, and {len(set(self.ids))} different ids."
            )

    @property
    def photographs(self) -> int:
        """How many independent photographs stand behind the images."""
        return len(np.unique(self.group))


@dataclasses.dataclass(frozen=True)
class LayerSimilarity:
    """One layer of a processing path: how alike activations are there."""

    layer: str
    fv: Estimate  # visualizations with the natural group, mean similarity
    same: Estimate  # pairs within the natural group
    diff: Estimate  # natural group with other photographs
    normalised: Estimate  # (fv - diff) / (same - diff); NaN where the layer is not resolvable
    resolvable: bool  # whether same - diff exceeds two standard errors
    band_low: float  # 5 % quantile of `normalised` of held-out natural images
    band_high: float  # 95 % quantile


@dataclasses.dataclass(frozen=True)
class UnitResult:
    """All that was measured of one unit; one line of `results.jsonl`."""

    unit: str  # text of the unit
    label: str  # what a class logit stands for; empty for hidden units
    group: str  # how the natural group was chosen, in words
    photographs: int  # in the natural group
    others: int  # photographs that it is compared with
    exemplars: tuple[str, ...]  # ids of the strongest natural images, strongest first
    exemplar_responses: tuple[float, ...]  # the unit's response to each
    images: tuple[str, ...]  # visualizations, one per repeat, relative to the run directory
    fv_responses: tuple[float, ...]  # the unit's response to each visualization
    path: tuple[LayerSimilarity, ...]  # shallow to deep, up to the unit's own layer
    score: Estimate  # mean over resolvable layers of `normalised` clipped to [0, 1]
    p_value: float  # conformal; NaN if the group is too small
    p_attainable: float  # the smallest p-value that the group's size allows
    natural_median: float  # of the unit's response, one value a photograph
    natural_max: float
    quantile: Estimate  # share of photographs that drive the unit less than the weakest FV
    margin: Estimate  # FV response above the natural median, in natural MADs
    dead: int = 0  # visualizations that no gradient, or one that is no number, ever reached: then
    # nothing is estimated


@dataclasses.dataclass(frozen=True)
class LayerResult:
    """The path of all audited units of one layer, aggregated before dividing."""

    layer: str  # whose units
    units: int
    path: tuple[LayerSimilarity, ...]  # bands are NaN here


@dataclasses.dataclass(frozen=True)
class Headline:
    """The three numbers that matter, over all audited units."""

    score: Estimate  # mean path score
    distinguishable: Estimate  # share of FVs told apart from their natural group
    margin: Estimate  # median FV response in natural MADs above the natural median
