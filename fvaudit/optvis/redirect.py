"""Activation functions whose gradient may find its way out of a dead network.

Where no unit of a ReLU layer fires, no gradient passes and a visualization never starts. lucid's
remedy, for the first steps only, and for each image (leading axis) on its own:

    ordinary   = act'(x) * g                           g is the gradient of a loss that is descended
    redirected = 0 where x < 0 and g > 0               it would push x lower still
                 0 where x > 6 and g < 0               relu6 only: it would push x higher still
                 g elsewhere
    gradient   = redirected  where active and every entry of `ordinary` of that image is exactly 0
                 ordinary    elsewhere

Networks call `relu`, `relus`, `relu6` and `gelu` from here. Values are always those of `jax.nn`.
Outside `redirecting` they are `jax.nn`'s functions: programs compiled there hold no trace of it.

Off by one: lucid redirects while global_step <= 16, which is its first 17 gradients (0 to 16),
although its text says "at most 16 steps". Here `active` is step < STEPS: the first 16 gradients.
Two more differences, both where lucid departs from its own definition: at the kinks (x = 0; x = 6)
the ordinary gradient is `jax.nn`'s, 0, while lucid's override lets it pass; and "entirely 0" means
every entry, where lucid asks whether a sum of squares is 0, which tiny gradients underflow to.

Source: lucid `misc/redirected_relu_grad` (Olah et al. 2017). For gelu the same rule with gelu's own
derivative, which is 0 only where it underflows (x < -14 or so in float32): it seldom acts.
"""

import contextlib
import contextvars
import functools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


STEPS = 16  # gradients at the start of an optimization that are redirected

_active: contextvars.ContextVar = contextvars.ContextVar("redirect_active", default=None)
_trace_key = jax.make_user_context(None)  # part of jit's cache key: see `redirecting`


@contextlib.contextmanager
def redirecting(active: bool | Bool[Array, ""]) -> Iterator[None]:
    """Redirects the gradients of networks that are *traced* inside the context.

    A function that was jitted and traced outside is traced again inside, and the other way round.

    Args:
        active: scalar, may be traced: whether this step redirects, usually step < STEPS.

    Raises:
        TypeError: if `active` is no boolean scalar (a step number would always be true).
    """
    if not isinstance(active, bool) and (jnp.shape(active), jnp.result_type(active)) != ((), bool):
        raise TypeError(f"redirecting takes one boolean, such as step < {STEPS}, got {active!r}.")
    known = isinstance(active, bool)
    token = _active.set(active)
    try:
        # A traced value must not be reused by an inner jit that was traced under another one.
        with _trace_key(active if known else object()):
            yield
    finally:
        _active.reset(token)


def relu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """max(x, 0); inside `redirecting`, the leading axis is the images'.

    Under `vmap` each example is a batch of its own: with its leading axis as images.
    """
    return _call(jax.nn.relu, functools.partial(_relu, None), x)


def relus(layers: Sequence[Float[Array, "n *m _"]]) -> list[Float[Array, "n *m _"]]:
    """`relu` of layers that stand side by side: equal in all but their last axis.

    Each is asked on its own whether it is dead; inside `redirecting` they are one operation, which
    compiles sooner.
    """
    if len(layers) == 1 or not _on():
        return [relu(x) for x in layers]
    widths = tuple(x.shape[-1] for x in layers)
    joined: Any = _relu(widths, jnp.concatenate(layers, axis=-1), jnp.asarray(_active.get()))
    return jnp.split(joined, np.cumsum(widths)[:-1], axis=-1)


def relu6(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """min(max(x, 0), 6); inside `redirecting`, the leading axis is the images'."""
    return _call(jax.nn.relu6, functools.partial(_relu6, None), x)


def gelu(x: Float[Array, "*n"], approximate: bool = False) -> Float[Array, "*n"]:
    """x Phi(x); inside `redirecting`, the leading axis is the images'.

    Args:
        x: any shape.
        approximate: use the tanh formula; `jax.nn.gelu` does so by default, PyTorch does not.
    """
    ordinary = functools.partial(jax.nn.gelu, approximate=approximate)
    return _call(ordinary, functools.partial(_gelu, approximate), x)


def _call(ordinary, redirected, x: Array) -> Array:
    return redirected(x, jnp.asarray(_active.get())) if _on() else ordinary(x)


def _on() -> bool:
    """Whether what is traced here is redirected; at which steps may be data."""
    return _active.get() is not None and _active.get() is not False


def _piecewise(value, *kinks):
    """A function of slope 1 behind its kink, or between its two, with the redirected gradient.

    One byte an entry is kept for the backward pass, where x lies: 0 is below all kinks, a kink
    counts 1 and what is behind it 2. Its first argument is `widths` as in `_redirect`.
    """
    below, live, above = 0, 2, 2 * len(kinks)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def function(widths, x, active):
        return value(x)

    def forward(widths, x, active):
        passed = [(x >= k).astype(jnp.int8) + (x > k).astype(jnp.int8) for k in kinks]
        return value(x), (functools.reduce(operator.add, passed), active)

    def ordinary(place, g):
        return jnp.where(place == live, g, 0)

    def blocked(place, g):
        pushed = (place == below) & (g > 0)  # descent: positive gradients push lower
        return pushed if above == live else pushed | ((place == above) & (g < 0))

    def backward(widths, saved, g):
        place, active = saved
        return _redirect(ordinary, blocked, place, g, active, widths), None

    function.defvjp(forward, backward)
    return function


_relu = _piecewise(jax.nn.relu, 0)
_relu6 = _piecewise(jax.nn.relu6, 0, 6)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gelu(approximate, x, active):
    return jax.nn.gelu(x, approximate=approximate)


def _gelu_forward(approximate, x, active):
    return jax.nn.gelu(x, approximate=approximate), (x, active)


def _gelu_backward(approximate, saved, g):
    x, active = saved

    def ordinary(x, g):
        return jax.vjp(lambda y: jax.nn.gelu(y, approximate=approximate), x)[1](g)[0]

    return _redirect(ordinary, lambda x, g: (x < 0) & (g > 0), x, g, active), None


_gelu.defvjp(_gelu_forward, _gelu_backward)


def _redirect(ordinary, blocked, saved, g, active, widths=None):
    """Whether anything passes is asked while `active` only: it is a pass over all of `g`.

    `widths` are those of layers side by side along the last axis; None: it is one layer.
    """
    shape = (len(g), *(1,) * (g.ndim - 1))
    dead = jax.lax.cond(
        active,
        lambda: _none_passes(ordinary(saved, g) == 0, widths),
        lambda: jnp.zeros(shape if widths is None else (*shape[:-1], g.shape[-1]), bool),
    )
    return jnp.where(dead, jnp.where(blocked(saved, g), 0, g), ordinary(saved, g))


def _none_passes(zero, widths):
    """Where all of an image's entries are 0, in each layer: of a shape that broadcasts."""
    axes = tuple(range(1, zero.ndim))
    if widths is None:
        return zero.all(axis=axes, keepdims=True)
    ends = np.cumsum(widths)
    channels = np.arange(ends[-1])
    own = (channels < ends[:, None]) & (channels >= (ends - widths)[:, None])  # (layers, channels)
    layers = (zero.all(axis=axes[:-1], keepdims=True)[..., None, :] | ~own).all(-1)
    return (layers[..., None] & own).any(-2)
