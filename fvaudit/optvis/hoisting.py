"""What does not change from step to step is computed once, before the loop.

A step of activation maximization is function(fixed, varying): the network's parameters are fixed,
the latent varies. Everything that depends on parameters alone (kernels transformed for Winograd,
flipped for the input gradient, folded with batch norm, concatenated over branches) would be
computed again at every step, since XLA leaves loop invariants in place when they grow. `split`
cuts the step's jaxpr in two:

    held = prologue(fixed)          equations that read parameters and nothing that varies
    step = rest(held, varying)      all others

It is partial evaluation with respect to the parameters (Jones et al., 1993), and sees through any
network, whoever wrote it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from fvaudit.optvis import quotients


# primitives that call a function, and where they keep it
_CALLS = {
    "jit": ("jaxpr",),
    "pjit": ("jaxpr",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr", "fun_jaxpr"),
}
MAX_GROWTH = 8  # an equation whose output outgrows its inputs by more is a broadcast: not held


def split(
    function: Callable[..., Any], fixed: Any, *varying: Any
) -> tuple[list[Any], Callable[..., Any]]:
    """Computes what depends on `fixed` alone; to be called under `jit`.

    Args:
        function: pure, takes (fixed, *varying).
        fixed: pytree of arrays.
        varying: pytrees of arrays, or their shapes; values are not used.

    Returns:
        `held`, a list of arrays, and `rest` with rest(held, *varying) equal to
        function(fixed, *varying) for every `varying` of these shapes, up to how quotients are
        rounded (`quotients`). `rest` is not to be differentiated: functions with a gradient rule
        of their own are taken apart.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(fixed, *varying)
    jaxpr = _without_dead_code(quotients.as_products(_inlined(closed.jaxpr)))
    count = len(jax.tree.leaves(fixed))
    prologue, rest = _cut(jaxpr, jaxpr.invars[:count], jaxpr.invars[count:])
    consts = list(closed.consts)
    held = _evaluate(prologue, consts, jax.tree.leaves(fixed))
    tree = jax.tree.structure(shape)

    def call(held: Sequence[Any], *varying: Any) -> Any:
        return jax.tree.unflatten(tree, _evaluate(rest, consts, [*held, *jax.tree.leaves(varying)]))

    return held, call


def _cut(jaxpr: core.Jaxpr, fixed: Sequence[Any], varying: Sequence[Any]):
    """Two jaxprs: from `fixed` to what the rest needs of it, and from that to the outputs."""
    known = set(fixed)  # depends on parameters alone and may be held
    constant = set(jaxpr.constvars)  # depends on nothing; computed wherever it is needed
    before, after = [], []
    for equation in jaxpr.eqns:
        inputs = {v for v in equation.invars if not isinstance(v, core.Literal)}
        if not equation.effects and inputs <= constant:
            constant.update(equation.outvars)
            before.append(equation)
            after.append(equation)
        elif not equation.effects and inputs <= known | constant and not _grows(equation):
            known.update(equation.outvars)
            before.append(equation)
        else:
            after.append(equation)
    read = [v for e in after for v in e.invars] + list(jaxpr.outvars)
    needed = list(dict.fromkeys(v for v in read if not isinstance(v, core.Literal) and v in known))
    prologue = jaxpr.replace(invars=list(fixed), outvars=needed, eqns=before)
    rest = jaxpr.replace(invars=[*needed, *varying], eqns=after)
    return _without_dead_code(prologue), _without_dead_code(rest)


def _grows(equation: core.JaxprEqn) -> bool:
    read = sum(math.prod(v.aval.shape) for v in equation.invars)  # pyright: ignore
    written = sum(math.prod(v.aval.shape) for v in equation.outvars)  # pyright: ignore
    return written > MAX_GROWTH * max(read, 1)


def _inlined(jaxpr: core.Jaxpr) -> core.Jaxpr:
    """The jaxpr without calls of other functions, which would hide what they hold."""
    equations: list[core.JaxprEqn] = []
    names: dict[Any, Any] = {}

    def renamed(v) -> Any:
        return v if isinstance(v, core.Literal) else names.get(v, v)

    def add(inner):
        for equation in inner.eqns:
            called = _called(equation)
            if called is None:
                equations.append(equation.replace(invars=[renamed(v) for v in equation.invars]))
                continue
            fresh = _with_fresh_names(called)
            names.update(zip(fresh.invars, map(renamed, equation.invars), strict=True))
            add(fresh)
            names.update(zip(equation.outvars, map(renamed, fresh.outvars), strict=True))

    add(jaxpr)
    outputs: Any = [renamed(v) for v in jaxpr.outvars]
    return jaxpr.replace(eqns=equations, outvars=outputs)


def _called(equation: core.JaxprEqn) -> core.Jaxpr | None:
    """What a call of a jitted function, or of one with its own gradient rule, computes."""
    for key in _CALLS.get(equation.primitive.name, ()):
        called = equation.params.get(key)
        if isinstance(called, core.ClosedJaxpr) and not called.consts and not equation.effects:
            return called.jaxpr
    return None


def _with_fresh_names(jaxpr: core.Jaxpr) -> core.Jaxpr:
    """A copy whose variables are its own: one function may be called many times."""
    names: dict[Any, Any] = {}

    def fresh(v) -> Any:
        if isinstance(v, core.Literal):
            return v
        if v not in names:
            names[v] = core.Var(v.aval)
        return names[v]

    inputs = [fresh(v) for v in jaxpr.invars]
    equations = [
        e.replace(invars=[fresh(v) for v in e.invars], outvars=[fresh(v) for v in e.outvars])
        for e in jaxpr.eqns
    ]
    outputs: Any = [fresh(v) for v in jaxpr.outvars]
    return jaxpr.replace(invars=inputs, eqns=equations, outvars=outputs)


def _without_dead_code(jaxpr: core.Jaxpr) -> core.Jaxpr:
    needed = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or needed & set(equation.outvars):
            kept.append(equation)
            needed.update(v for v in equation.invars if not isinstance(v, core.Literal))
    return jaxpr.replace(eqns=kept[::-1])


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, list(consts)))(*arguments)
