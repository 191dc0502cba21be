"""Update rules: a direction from the gradient, and how far to go.

    z_{t+1} = z_t + rate(t, total) * direction(gradient of the score)        ascent
    z_{t+1} = z_t - rate(t, total) * direction(gradient of the loss)         the same: directions
                                                                             are odd functions
    rate(t, total) = rate * ramp * shape,   p = t / total in [0, 1)
        ramp        min(1, (t + 1) / (warmup * total)): no step stands still
        constant    1
        linear      1 - (1 - final) p
        cosine      final + (1 - final) (1 + cos(pi p)) / 2           Loshchilov & Hutter 2017
        one_cycle   up from 1/25 to 1 by a half cosine over the first 30 %, then down to
                    1/250000 by another                               Smith & Topin 2018

Directions are optax's; `t` and `total` may be traced, so that one program serves every length.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fvaudit.records import AuditError


SCHEDULES = ("constant", "linear", "cosine", "one_cycle")
_PEAK = 0.3  # share of the steps before one_cycle's highest rate; optax's default, as are the next
_START, _END = 1 / 25, 1 / 25e4  # one_cycle's first and last rate, relative to the highest

Rate = Callable[..., Float[Array, ""]]


class Optimizer(NamedTuple):
    """A direction, the size of each step along it, and the call text that makes both again."""

    text: str
    direction: optax.GradientTransformation  # of the latent's pytree; odd in the gradient
    rate: Rate  # (t, total) -> step size; t from 0 to total - 1, both may be traced


def adam(
    rate: float | int = 0.05,
    schedule: str = "constant",
    warmup: float | int = 0.0,
    final: float | int = 0.0,
    *,
    b1: float | int = 0.9,
) -> Optimizer:
    """Adam with b2 0.999, eps 1e-8 (Kingma & Ba 2015); lucid's default at 0.05.

    Args:
        rate: highest step size, in latent units; > 0.
        schedule: "constant", "linear", "cosine" or "one_cycle"; see the module's formulas.
        warmup: share of the steps over which the rate rises from 0, in [0, 1).
        final: rate towards the end relative to `rate`, in [0, 1]; of linear and cosine.
        b1: momentum, the share of the mean gradient that a step keeps; in [0, 1).

    Raises:
        AuditError: if a setting lies outside its range or does not go with the schedule.
    """
    return _make("adam", rate, schedule, warmup, final, b1)


def nadam(
    rate: float | int = 1.0,
    schedule: str = "constant",
    warmup: float | int = 0.0,
    final: float | int = 0.0,
) -> Optimizer:
    """Adam with Nesterov momentum (Dozat 2016); MACO's, at 1.0. Arguments as in `adam`.

    optax's, without the slow rise of b1 that Keras and PyTorch add.
    """
    return _make("nadam", rate, schedule, warmup, final)


def sgd(
    rate: float | int,
    schedule: str = "constant",
    warmup: float | int = 0.0,
    final: float | int = 0.0,
) -> Optimizer:
    """The gradient itself, without momentum. Arguments as in `adam`."""
    return _make("sgd", rate, schedule, warmup, final)


def progress(desired: float | int, max_rate: float | int) -> Optimizer:
    """As far along the gradient g as a linear score needs to grow by `desired`.

        step = min(max_rate, desired / ||g||^2) * g,   the norm over the whole latent

    Source: Yosinski et al. 2015, `lr_policy="progress"` of their toolbox.

    Raises:
        AuditError: if a setting is not positive.
    """
    return _progress(desired, max_rate)


@functools.cache
def _progress(desired, max_rate) -> Optimizer:
    for name, value in (("desired", desired), ("max_rate", max_rate)):
        _require(value > 0, f"progress: {name} must be > 0, got {value}.")

    def update(updates, params=None):
        squared = sum(jnp.vdot(leaf, leaf).real for leaf in jax.tree.leaves(updates))
        step = jnp.minimum(max_rate, desired / squared)  # a gradient of 0 leaves max_rate * 0
        return jax.tree.map(lambda leaf: step * leaf, updates)

    direction = optax.stateless(update)
    text = f"progress(desired={float(desired)}, max_rate={float(max_rate)})"
    return Optimizer(text, direction, lambda t, total: jnp.ones(()))


@functools.cache  # here, so that the same settings are one object however they were passed
def _make(name, rate, schedule, warmup, final, b1=0.9) -> Optimizer:
    _require(rate > 0, f"{name}: rate must be > 0, got {rate}.")
    _require(
        schedule in SCHEDULES,
        f"{name}: unknown schedule {schedule!r}; there are {', '.join(SCHEDULES)}.",
    )
    _require(0 <= warmup < 1, f"{name}: warmup is a share of the steps in [0, 1), got {warmup}.")
    _require(0 <= b1 < 1, f"{name}: b1 is a share in [0, 1), got {b1}.")
    _require(0 <= final <= 1, f"{name}: final is a share of the rate in [0, 1], got {final}.")
    ends = schedule in ("linear", "cosine")
    _require(ends or final == 0, f"{name}: {schedule} has no final rate; leave final={final} out.")
    _require(
        schedule != "one_cycle" or warmup == 0,
        f"{name}: one_cycle brings its own warm-up; leave warmup={warmup} out.",
    )
    extra = f", warmup={float(warmup)}" if warmup else ""
    extra += f", final={float(final)}" if ends else ""
    extra += f", b1={float(b1)}" if b1 != 0.9 else ""
    text = f"{name}(rate={float(rate)}, schedule={schedule!r}{extra})"
    shape = _SHAPES[schedule]

    def rate_at(t, total):
        ramp = jnp.minimum(1.0, (t + 1) / (warmup * total)) if warmup else 1.0
        return rate * ramp * shape(jnp.asarray(t, jnp.float32) / total, final)

    return Optimizer(text, _DIRECTIONS[name](b1=b1), rate_at)


_DIRECTIONS = {
    "adam": optax.scale_by_adam,
    "nadam": functools.partial(optax.scale_by_adam, nesterov=True),
    "sgd": lambda b1: optax.identity(),
}


def _half_cosine(p, start, end):
    return end + (start - end) * (1 + jnp.cos(jnp.pi * p)) / 2


def _one_cycle(p, final):
    up = _half_cosine(p / _PEAK, _START, 1.0)
    down = _half_cosine((p - _PEAK) / (1 - _PEAK), 1.0, _END)
    return jnp.where(p < _PEAK, up, down)


_SHAPES = {
    "constant": lambda p, final: jnp.ones_like(p),
    "linear": lambda p, final: 1 - (1 - final) * p,
    "cosine": lambda p, final: _half_cosine(p, 1.0, final),
    "one_cycle": _one_cycle,
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AuditError(message)
