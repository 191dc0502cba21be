"""The one loop: gradient ascent on latents under random transforms.

    z_{t+1} = R(z_t + rate(t) * direction(grad_z sum_i score_i(transform_t(decode(z_t)))))

R is a regularizer, usually none. It receives score, parameterization, transform and optimizer as
functions and knows nothing of networks. A run optimizes one *set* of images jointly (usually a set
of one). It can be cut into stretches of any length without changing a bit: a stretch is one call of
one compiled program whose first and last step are data, so whoever calls it may look at the images,
tell others, or stop, wherever he likes.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from fvaudit.optvis import hoisting, redirect
from fvaudit.optvis.optimizers import Optimizer
from fvaudit.optvis.params import Parameterization
from fvaudit.optvis.regularizers import Regularizer
from fvaudit.optvis.transforms import Transform, collapse_alpha, compose, none
from fvaudit.optvis.transforms.records import GROUND
from fvaudit.records import AuditError


STRETCH = 128  # the most steps that one call may take: the length of its trace

# (parameters, images as shown (s, h, w, c), opacity (s, h, w, 1) or None) -> a score each, (s,)
Score = Callable[[Any, Float[Array, "s h w c"], Float[Array, "s h w 1"] | None], Float[Array, " s"]]


class Loop(NamedTuple):
    """What stays the same from step to step, apart from the network's parameters."""

    score: Score
    parameterization: Parameterization
    transform: Transform
    optimizer: Optimizer
    regularizer: Regularizer | None
    shape: tuple[int, int, int]  # (h, w, c) of the network's input
    redirected_steps: int  # so many first steps pass gradient through closed ReLUs; 0 for none


class State(NamedTuple):
    """What changes; leading axis s is the set."""

    latents: Any  # pytree, every leaf (s, ...)
    optimizer: Any
    alive: Bool[Array, ""]  # whether any gradient so far was not 0
    broken: Bool[Array, ""]  # whether one was no number: from there on, nothing moves any more


class Stretch(NamedTuple):
    """What one call leaves."""

    state: State
    trace: Float[Array, " t"]  # mean score at each of its steps; only the first ones are its own
    images: Float[Array, "s h w c"]  # decoded at its end
    scores: Float[Array, " s"]  # of `images`, untransformed; 0 where not asked for


def begin(loop: Loop, start: Float[Array, "h w c"] | None, size: int, key: Key[Array, ""]) -> State:
    """The state before the first step: a random start, or a given image.

    Args:
        loop: the setting.
        start: an image in [0, 1] to start from, or None.
        size: images in the set.
        key: of this set; equal keys give equal starts.
    """
    keys = _keys(jax.random.fold_in(key, 0), size)
    if start is None:
        latents = jax.vmap(lambda k: loop.parameterization.init(k, loop.shape))(keys)
    else:
        latent = loop.parameterization.encode(start)  # pyright: ignore[reportOptionalCall]
        latents = jax.tree.map(lambda z: jnp.repeat(z[None], size, axis=0), latent)
    no = jnp.asarray(False)
    return State(latents, loop.optimizer.direction.init(latents), no, no)


def advance(
    loop: Loop,
    params: Any,
    state: State,
    key: Key[Array, ""],
    first: Int[Array, ""],
    last: Int[Array, ""],
    total: Int[Array, ""],
    scored: Bool[Array, ""],
    until: Int[Array, ""] | None = None,
) -> Stretch:
    """Takes steps `first` to `last` (excluded) of `total`; at most `STRETCH` of them.

    Args:
        loop: the setting.
        params: the network's parameters, for `loop.score`.
        state: after step `first` - 1.
        key: of this set, as in `begin`.
        first: index of the first step, from 0.
        last: index after the last step.
        total: steps of the whole run; schedules depend on it.
        scored: whether `scores` of the final images are wanted; costs one more step's time, taken
            as a round of the same loop, so that the network is compiled once.
        until: index after the last round, no less than `last` + `scored`, if other sets of a batch
            go on that long; a batch whose sets end on their own would copy all of them every round.
    """

    def step(params, latents, t, plain):
        def loss(latents):  # descended, as `redirect` expects
            images = _decoded(loop, latents)
            shown = _shown(loop, images, jax.random.fold_in(key, 1 + t), plain)  # 0: the start
            with _redirected(loop, t, plain):
                scores = loop.score(params, shown, images)
            return -scores.sum(), scores

        (_, scores), slope = jax.value_and_grad(loss, has_aux=True)(latents)
        return scores, jax.tree.map(jnp.negative, slope)

    held, step = hoisting.split(step, params, state.latents, first, scored)

    def body(t, carry):
        state, trace, final = carry
        plain = t == last  # the round after the last step, if the final images' score is wanted
        scores, slope = step(held, state.latents, t, plain)
        over = t >= last
        state = state._replace(broken=state.broken | (~over & ~_finite(slope)))
        moved = jax.lax.cond(
            over | state.broken, lambda: state, lambda: _moved(loop, state, slope, t, total)
        )
        final = jnp.where(plain & scored, scores, final)
        return moved, trace.at[t - first].set(scores.mean()), final

    size = len(jax.tree.leaves(state.latents)[0])
    carry = (state, jnp.zeros(STRETCH + 1), jnp.zeros(size))
    own = last + scored.astype(first.dtype)
    end = own if until is None else until
    state, trace, scores = jax.lax.fori_loop(first, end, body, carry)
    return Stretch(state, trace[:STRETCH], _decoded(loop, state.latents), scores)


def _keys(key: Key[Array, ""], size: int) -> Key[Array, " s"]:
    """One for each image of a set; that of a set of one is left alone: folding is compiled code."""
    if size == 1:
        return key[None]
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(size))


def _decoded(loop: Loop, latents: Any) -> Any:
    return _each(lambda z: loop.parameterization.decode(z, loop.shape), latents)


def _shown(loop: Loop, images: Float[Array, "s h w d"], key: Key[Array, ""], plain):
    """What the network sees: each image under its own transform, or as it is."""
    alpha = loop.parameterization.alpha
    transform = compose(collapse_alpha(), loop.transform) if alpha else loop.transform
    plainly = collapse_alpha(GROUND) if alpha else none()
    keys = _keys(key, len(images))
    try:
        return jax.lax.cond(
            plain,
            lambda: _each(plainly.apply, keys, images),
            lambda: _each(transform.apply, keys, images),
        )
    except TypeError:
        _require_same_canvas(transform, plainly, keys, images)
        raise


def _require_same_canvas(transform: Transform, plainly: Transform, keys, images) -> None:
    """One program takes every step and scores the final image: all have one size."""
    shown, plain = (
        jax.eval_shape(functools.partial(_each, each.apply), keys, images).shape[1:3]
        for each in (transform, plainly)
    )
    if shown != plain:
        raise AuditError(
            f"The transforms {transform.text} turn a picture of {plain[0]} x {plain[1]} pixels "
            f"into one of {shown[0]} x {shown[1]}, and the network is given one size only. End "
            f"them with crop_or_pad({plain[0]}, {plain[1]})."
        )


def _each(function: Callable[..., Any], *rows: Any) -> Any:
    """function(*row) for every row, stacked; one alone is spared the batching, which is traced."""
    several = len(jax.tree.leaves(rows)[0]) > 1
    return jax.vmap(function)(*rows) if several else alone(function, *rows)


def alone(function: Callable[..., Any], *rows: Any) -> Any:
    """`function` of the only row of its arguments; its results have that row again."""
    return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], rows)))


def _redirected(loop: Loop, t, plain):
    if loop.redirected_steps == 0:  # then the compiled program holds no trace of it
        return contextlib.nullcontext()
    return redirect.redirecting(~plain & (t < loop.redirected_steps))


def _moved(loop: Loop, state: State, slope: Any, t, total) -> State:
    direction, optimizer = loop.optimizer.direction.update(slope, state.optimizer, state.latents)
    rate = loop.optimizer.rate(t, total)
    latents = jax.tree.map(lambda z, d: z + rate * d, state.latents, direction)
    if loop.regularizer is not None:
        latents = jax.vmap(loop.regularizer.apply, (0, 0, None))(latents, slope, t)
    alive = functools.reduce(jnp.logical_or, [(g != 0).any() for g in jax.tree.leaves(slope)])
    return State(latents, optimizer, state.alive | alive, state.broken)


def _finite(slope: Any) -> Bool[Array, ""]:
    whole = [jnp.isfinite(g).all() for g in jax.tree.leaves(slope)]
    return functools.reduce(jnp.logical_and, whole)
