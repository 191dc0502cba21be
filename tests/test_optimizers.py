"""Update rules: optax's trajectories and schedules, closed forms, traced lengths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fvaudit.optvis import optimizers
from fvaudit.records import AuditError


CURVATURE = jnp.array([1.0, 4.0, 0.25])
START = {"a": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array([[0.5]])}


def _score(z):
    return -(CURVATURE * z["a"] ** 2).sum() - jnp.cosh(z["b"]).sum()


def _ascend(optimizer, steps):
    """By our record, jitted once, with a traced number of steps."""

    @jax.jit
    def run(total):
        def step(t, carry):
            z, state = carry
            direction, state = optimizer.direction.update(jax.grad(_score)(z), state, z)
            rate = optimizer.rate(t, total)
            return jax.tree.map(lambda a, d: a + rate * d, z, direction), state

        return jax.lax.fori_loop(0, total, step, (START, optimizer.direction.init(START)))[0]

    return run(steps)


def _descend(rule, steps):
    """By optax, a plain loop on the negative score."""
    z, state = START, rule.init(START)
    for _ in range(steps):
        update, state = rule.update(jax.grad(lambda z: -_score(z))(z), state, z)
        z = optax.apply_updates(z, update)
    return z


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (optimizers.adam(0.05), optax.adam(0.05)),
        (optimizers.adam(0.1, b1=0.0), optax.adam(0.1, b1=0.0)),
        (optimizers.nadam(0.1), optax.nadam(0.1)),
        (optimizers.sgd(0.02), optax.sgd(0.02)),
        (
            optimizers.adam(0.1, "cosine", final=0.1),
            optax.adam(optax.cosine_decay_schedule(0.1, 20, alpha=0.1)),
        ),
    ],
    ids=lambda value: getattr(value, "text", ""),
)
def test_trajectories_are_optaxs(ours, theirs):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        _ascend(ours, 20),
        _descend(theirs, 20),
    )


@pytest.mark.parametrize(
    "schedule, final, theirs",
    [
        ("constant", 0.0, lambda n: optax.constant_schedule(0.3)),
        ("linear", 0.25, lambda n: optax.linear_schedule(0.3, 0.075, n)),
        ("cosine", 0.0, lambda n: optax.cosine_decay_schedule(0.3, n)),
        ("cosine", 0.5, lambda n: optax.cosine_decay_schedule(0.3, n, alpha=0.5)),
        ("one_cycle", 0.0, lambda n: optax.cosine_onecycle_schedule(n, 0.3)),
    ],
)
def test_schedules_are_optaxs(schedule, final, theirs):
    rate = jax.jit(optimizers.sgd(0.3, schedule, final=final).rate)
    for total in (10, 40):
        got = [float(rate(t, total)) for t in range(total)]
        np.testing.assert_allclose(got, [theirs(total)(t) for t in range(total)], rtol=1e-5)


def test_warmup_rises_in_equal_steps_and_never_stands_still():
    rate = optimizers.adam(0.2, "linear", warmup=0.25, final=1.0).rate
    got = [float(rate(t, 16)) for t in range(16)]
    np.testing.assert_allclose(got, 0.2 * np.minimum(1, np.arange(1, 17) / 4), rtol=1e-6)


@pytest.mark.parametrize("size, expected", [(0.01, 100.0), (10.0, 2.0 / (3 * 100.0)), (0.0, 100)])
def test_progress_is_the_published_step(size, expected):
    """min(max_rate, desired / ||g||^2), the norm over all leaves together."""
    optimizer = optimizers.progress(2.0, 100)
    gradient = {"a": jnp.full((2,), size), "b": jnp.full((1, 1), -size)}
    got: Any
    got, _ = optimizer.direction.update(gradient, optimizer.direction.init(gradient))
    np.testing.assert_allclose(got["a"], size * expected, rtol=1e-6)
    np.testing.assert_allclose(got["b"], -size * expected, rtol=1e-6)
    assert float(optimizer.rate(3, 10)) == 1


def test_progress_raises_a_linear_score_by_what_was_asked():
    optimizer = optimizers.progress(2.0, 1e8)
    slope = jnp.array([3.0, -1.0])
    step: Any
    step, _ = optimizer.direction.update(slope, optimizer.direction.init(slope))
    np.testing.assert_allclose(slope @ step, 2.0, rtol=1e-6)


def test_texts_make_them_again_and_equal_settings_are_one_object():
    for made in (
        optimizers.adam(),
        optimizers.adam(0.1, "linear", final=0.5, b1=0.25),
        optimizers.nadam(1.0, "cosine", warmup=0.1, final=0.2),
        optimizers.sgd(100, "one_cycle"),
        optimizers.progress(2.0, 1e8),
    ):
        again = eval(made.text, dict(vars(optimizers)))
        assert again.text == made.text
        assert float(again.rate(3, 9)) == float(made.rate(3, 9))
    assert optimizers.adam() is optimizers.adam(rate=0.05) is optimizers.adam(0.05, "constant")
    assert optimizers.adam(b1=0) is optimizers.adam(b1=0.0) is not optimizers.adam()
    assert optimizers.sgd(1) is optimizers.sgd(1.0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: optimizers.adam(0.0), "adam: rate must be > 0, got 0.0"),
        (lambda: optimizers.sgd(1.0, "cosin"), "unknown schedule 'cosin'; there are constant"),
        (lambda: optimizers.nadam(warmup=1.0), r"warmup is a share of the steps in \[0, 1\)"),
        (lambda: optimizers.adam(0.1, "cosine", final=2.0), "final is a share of the rate"),
        (lambda: optimizers.adam(b1=1.0), r"adam: b1 is a share in \[0, 1\), got 1.0"),
        (lambda: optimizers.adam(0.1, final=0.5), "constant has no final rate"),
        (lambda: optimizers.adam(0.1, "one_cycle", warmup=0.1), "its own warm-up"),
        (lambda: optimizers.progress(0.0, 1.0), "desired must be > 0"),
        (lambda: optimizers.progress(1.0, -1.0), "max_rate must be > 0"),
    ],
)
def test_messages(make, message):
    with pytest.raises(AuditError, match=message):
        make()
