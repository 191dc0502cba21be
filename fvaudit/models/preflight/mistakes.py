"""Would one of the usual mistakes of preprocessing do better than the setting in use?

With labels the question has an answer. A photograph's true class stands

    (log p(true class) - mean over classes) / standard deviation over classes

which neither a shift nor a scale of the logits changes: a setting that only sharpens predictions
gains nothing. Every other setting is compared with the one in use on the same photographs by the
exact sign test: on how many does the true class stand higher; all settings together by Holm's
correction. Every photograph has a say, where the accuracy, compared by McNemar's test, hears only
those on which the two settings disagree about the strongest class. But more contrast can lift the
true class of a network that is fed right, so a setting is reported only if it is more accurate too:
significantly so (McNemar, Holm), or by `LEAST_GAIN` while the true class stands significantly
higher on `LEAST_SHARE` of the photographs. Settings of another size must be significantly more
accurate: many networks do a little better on larger pictures than they were trained on.

    McNemar (1947); exact: binomial.  Holm (1979).

Without labels there is a hint only: a network that is fed right tells photographs apart. Log
probabilities are taken less each class's mean over photographs, which removes what is predicted
whatever is shown; then the distinctness of a prediction is

    (greatest - mean over classes) / standard deviation over classes

which neither a shift nor a scale of the logits changes. A setting under which it is greater on most
photographs (exact sign test, Holm) and by a margin is worth a look.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from fvaudit.models.model import InputSpec
from fvaudit.models.preflight.responses import Seen, Watch, log_probabilities, spread
from fvaudit.models.preflight.settings import Setting, settings
from fvaudit.records import Finding, ImageSet, Severity


ALPHA = 0.01  # of all settings together
LEAST_GAIN = 0.01  # of accuracy
LEAST_SHARE = 0.6  # of photographs; a half is no difference
GAIN = 0.05  # of accuracy; a smaller one, though significant, is a warning only
LEVEL = 0.95
HINT = 1.15  # times as distinct, in the median, is a hint
SAME = 0.02  # nats of mean log-likelihood that tell no two settings apart
SCREEN = 32  # photographs on which every setting is tried; hopeless ones get no more
Reload = Callable[[InputSpec], ImageSet]


class Trial(NamedTuple):
    """One setting, tried on photographs."""

    setting: Setting
    log_p: Float[np.ndarray, "n c"]  # of classes


def findings(
    watch: Watch,
    images: ImageSet,
    seen: Seen,
    *,
    reload: Reload | None,
    thorough: bool,
) -> list[Finding]:
    """Accuracy, the best of all settings, and how far each changes the output."""
    if seen.output is None or not np.isfinite(seen.output).all():
        return [Finding(
            Severity.WARN, "preprocessing was not tested",
            "the network has no layer that scores classes, or its output is not finite",
            "Compare pictures and output with the network's own code once.",
        )]  # fmt: skip
    labels = _labels(images, seen.output.shape[1])
    known = np.flatnonzero(labels >= 0)
    rows = known if len(known) else np.arange(len(labels))
    first = spread(rows, SCREEN) if len(known) else rows
    now = log_probabilities(seen.output)
    trials = Trials(watch, images, reload, now.shape[1])
    spec = watch.model.input
    options = settings(spec, reloads=reload is not None, thorough=thorough)
    plain = [s for s in options if s.spec is None or s.spec.size == spec.size]
    tried = trials.run_all(plain, first)
    sensitivity = _sensitivity(now[first], tried)
    if not len(known):
        return [_by_distinctness(now[rows], tried), sensitivity]
    compare = Comparison(now, labels, first, rows, len(options), spec.size)
    verdict = compare.verdict(trials, tried)
    if verdict.severity is Severity.OK and len(plain) < len(options):  # each size is a program
        tried += trials.run_all([s for s in options if s not in plain], first)
        verdict = compare.verdict(trials, tried)
    return [_accuracy(now[rows], labels[rows]), verdict, sensitivity]


def _labels(images: ImageSet, classes: int) -> Int[np.ndarray, " n"]:
    """-1 where there is none, or none that the network knows."""
    if images.labels is None:
        return np.full(len(images.ids), -1)
    return np.where(images.labels < classes, images.labels, -1)


class Trials:
    """Settings on photographs. Holds the photographs as they were loaded again, by spec."""

    def __init__(self, watch: Watch, images: ImageSet, reload: Reload | None, classes: int):
        """Runs nothing yet."""
        self._watch, self._images, self._reload, self._classes = watch, images, reload, classes
        self._again: dict[InputSpec, dict[str, np.ndarray]] = {}

    def run(self, setting: Setting, rows: Int[np.ndarray, " k"]) -> Trial | None:
        """None where the network does not take the setting, or photographs are missing under it."""
        pixels = self._pixels(setting, rows)
        output = None if pixels is None else self._watch.scores(pixels)
        if output is None or output.shape[1] != self._classes:
            return None
        with np.errstate(all="ignore"):  # a wrong range may overflow: then it is no better
            return Trial(setting, np.nan_to_num(log_probabilities(output), nan=-1e9))

    def run_all(self, options: Sequence[Setting], rows: Int[np.ndarray, " k"]) -> list[Trial]:
        """Those that can be run."""
        return [trial for setting in options if (trial := self.run(setting, rows))]

    def _pixels(self, setting: Setting, rows) -> np.ndarray | None:
        if setting.pixels is not None:
            return np.ascontiguousarray(setting.pixels(self._images.pixels[rows]))
        if self._reload is None or setting.spec is None:
            return None
        if not _takes(self._watch, setting.spec.size):
            return None
        if setting.spec not in self._again:
            loaded = self._reload(setting.spec)
            whole = np.round(loaded.pixels * 255).astype(np.uint8)  # exact: pictures have 8 bits
            self._again[setting.spec] = dict(zip(loaded.ids, whole, strict=True))
        again, names = self._again[setting.spec], [self._images.ids[i] for i in rows]
        if not all(name in again for name in names):
            return None
        return np.stack([again[name] for name in names]).astype(np.float32) / 255


def _takes(watch: Watch, size: tuple[int, int]) -> bool:
    """Whether the network runs at another size at all."""
    model = watch.model
    if size == model.input.size:
        return True
    shape = jax.ShapeDtypeStruct((1, *size, len(model.input.mean)), jnp.float32)
    try:
        jax.eval_shape(lambda p, x: model.forward(p, x, lambda name, y: y), model.params, shape)
    except Exception:  # foreign code may raise anything on a shape that it was not made for
        return False
    return True


def _right(
    log_p: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    return log_p.argmax(1) == labels


def _accuracy(now, labels) -> Finding:
    right, n = int(_right(now, labels).sum()), len(labels)
    low, high = share_interval(right, n)
    chance = 1 / now.shape[1]
    lost = n >= 10 and high < max(10 * chance, 0.05) and chance < 0.05
    return Finding(
        Severity.WARN if lost else Severity.OK, "accuracy on labelled photographs",
        f"{right / n:.3f} [{low:.3f}, {high:.3f}] ({right} of {n}; exact binomial interval)",
        "Hardly better than chance: check that class folders and outputs count classes alike, and "
        "that the weights are this network's." if lost else "",
    )  # fmt: skip


class Comparison(NamedTuple):
    """The setting in use on labelled photographs, to which others are compared."""

    now: Float[np.ndarray, "n c"]
    labels: Int[np.ndarray, " n"]
    first: Int[np.ndarray, " k"]  # the photographs on which every setting is tried
    rows: Int[np.ndarray, " m"]  # and those on which promising ones are compared
    family: int  # settings that may be tried
    size: tuple[int, int]  # that the network takes now

    def verdict(self, trials: Trials, tried: list[Trial]) -> Finding:
        """The verdict on preprocessing."""
        whole = trials.run_all(self._promising(tried), self.rows)
        now, labels = self.now[self.rows], self.labels[self.rows]
        return _by_accuracy(now, labels, whole, self.family, self.size)

    def _promising(self, tried: list[Trial]) -> list[Setting]:
        """Those that are not significantly less accurate than the most accurate, or than now.

        What is left out is never claimed to be better, so that the tests that follow stay valid.
        """
        labels = self.labels[self.first]
        right = [_right(t.log_p, labels) for t in tried]
        leader = max([_right(self.now[self.first], labels), *right], key=lambda r: r.mean())
        return [t.setting for t, r in zip(tried, right, strict=True) if mcnemar(leader, r) > ALPHA]


def _by_accuracy(now, labels, tried: list[Trial], count: int, size: tuple[int, int]) -> Finding:
    """Of `count` settings, those that were not tried to the end were no better."""
    before, after = _right(now, labels), [_right(t.log_p, labels) for t in tried]
    stands = standing(now, labels)
    higher = [standing(t.log_p, labels) for t in tried]
    others = [1.0] * (count - len(tried))
    accurate = holm(np.array([*(mcnemar(a, before) for a in after), *others]))
    standings = holm(np.array([*(sign_test(h, stands) for h in higher), *others]))
    gains = [a.mean() - before.mean() for a in after]
    shares = [(h > stands).mean() for h in higher]
    better = [
        i for i, t in enumerate(tried)
        if accurate[i] < ALPHA / 2  # half for either test
        or (standings[i] < ALPHA / 2 and gains[i] >= LEAST_GAIN and shares[i] >= LEAST_SHARE
            and (t.setting.spec is None or t.setting.spec.size == size))
    ]  # fmt: skip
    n = len(labels)
    if not better:
        return Finding(
            Severity.OK, "preprocessing",
            f"{count} other settings were tried on {n} labelled photographs; none is "
            f"significantly better (largest gain of accuracy {max(gains, default=0.0):+.3f})", "",
        )  # fmt: skip
    best = _best(tried, after, better, labels)
    chosen = tried[best].setting
    return Finding(
        Severity.PROBLEM if gains[best] >= GAIN else Severity.WARN, "preprocessing",
        f"{chosen.mistake}. With {chosen.name}, accuracy is {after[best].mean():.3f} instead of "
        f"{before.mean():.3f} on {n} photographs (exact McNemar test: p = {accurate[best]:.2g}), "
        f"and the true class stands higher on {shares[best]:.0%} of them (exact sign test: "
        f"p = {standings[best]:.2g}; Holm over {count} settings)"
        f"{_rivals(tried, after, better, best)}",
        chosen.fix,
    )  # fmt: skip


def _best(tried, after, better: list[int], labels) -> int:
    """The most accurate; of those that cannot be told from it, where labels are likeliest.

    Settings may be the same in other words: the commoner mistake, which comes first, is named.
    """
    top = max(better, key=lambda i: after[i].mean())
    near = [i for i in better if mcnemar(after[top], after[i]) > 0.05]
    rows = np.arange(len(labels))
    likely = {i: tried[i].log_p[rows, labels].mean() for i in near}
    return next(i for i in near if likely[i] >= max(likely.values()) - SAME)


def _rivals(tried, after, better, best: int) -> str:
    near = [tried[i].setting.name for i in better
            if i != best and mcnemar(after[best], after[i]) > 0.05]  # fmt: skip
    return f"; not told apart from it: {', '.join(near)}" if near else ""


def _by_distinctness(now, tried: list[Trial]) -> Finding:
    """A hint on preprocessing, without labels."""
    before = distinctness(now)
    after = [distinctness(t.log_p) for t in tried]
    p_values = holm(np.array([sign_test(a, before) for a in after]))
    ratios = np.array([np.median(a) for a in after]) / max(float(np.median(before)), 1e-12)
    ratios[p_values >= ALPHA] = 0
    weak = "Without labels this is a hint only: put photographs into class folders to know."
    if not len(tried) or ratios.max() < HINT:
        return Finding(
            Severity.OK, "preprocessing",
            f"{len(tried)} other settings were tried on {len(now)} photographs; with none are the "
            f"predictions markedly more distinct ({np.median(before):.2f} standard deviations now)",
            weak,
        )  # fmt: skip
    best = int(ratios.argmax())
    chosen, found = tried[best].setting, np.median(after[best])
    return Finding(
        Severity.WARN, "preprocessing",
        f"perhaps {chosen.mistake}: with {chosen.name}, the strongest class stands {found:.2f} "
        f"standard deviations above the mean instead of {np.median(before):.2f} ({len(now)} "
        f"photographs, p = {p_values[best]:.2g}, exact sign test, Holm over {len(tried)} settings)",
        f"{chosen.fix} {weak}",
    )  # fmt: skip


def standing(
    log_p: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """How far the true class stands above the mean, in standard deviations over classes."""
    own = log_p[np.arange(len(labels)), labels] - log_p.mean(1)
    return own / np.maximum(log_p.std(1), 1e-12)


def distinctness(log_p: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    """How far the strongest class stands out, in standard deviations over classes."""
    own = log_p - log_p.mean(0)
    spread_ = np.maximum(own.std(1), 1e-12)
    return (own.max(1) - own.mean(1)) / spread_


def sign_test(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    """One-sided exact p-value that `one` is greater no more often than less, in (0, 1]."""
    return mcnemar(one > other, one < other)


def _sensitivity(now, tried: list[Trial]) -> Finding:
    top, n = now.argmax(1), len(now)
    changed = {t.setting.name: int((t.log_p.argmax(1) != top).sum()) for t in tried}
    order = sorted(changed, key=lambda name: -changed[name])
    listed = ", ".join(f"{name} {changed[name] / n:.0%}" for name in order)
    return Finding(
        Severity.OK, "sensitivity to preprocessing",
        f"share of {n} photographs whose strongest class changes with: {listed}", "",
    )  # fmt: skip


def mcnemar(one: Bool[np.ndarray, " n"], other: Bool[np.ndarray, " n"]) -> float:
    """One-sided exact p-value that `one` is right no more often than `other`, in (0, 1]."""
    wins, losses = int((one & ~other).sum()), int((other & ~one).sum())
    return float(stats.binom.sf(wins - 1, wins + losses, 0.5))


def holm(p: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Adjusted p-values: control the chance of one false claim among k."""
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1)
    return adjusted


def share_interval(successes: int, n: int) -> tuple[float, float]:
    """Exact binomial interval (Clopper & Pearson 1934)."""
    found = stats.binomtest(successes, n).proportion_ci(LEVEL, method="exact")
    return float(found.low), float(found.high)
