"""Quotients by constants, and by arrays that were broadcast, as products.

XLA writes a / b as a * (1 / b), which rounds otherwise, where it sees that b is a constant or was
broadcast. It sees that in a program for one device and not in the same one for two, and after a
few dozen steps a last bit is another picture. Where the product is written out, nothing is left to
see, and an image's bytes do not depend on how many devices there are.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend import core


def as_products(jaxpr: core.Jaxpr) -> core.Jaxpr:
    """The jaxpr with such quotients written as products; loops and branches stay."""
    stretched: set[Any] = set(jaxpr.constvars)
    equations: list[core.JaxprEqn] = []
    for equation in jaxpr.eqns:
        if equation.primitive is lax.broadcast_in_dim_p:
            stretched.update(equation.outvars)
        if equation.primitive is lax.div_p and _is_seen_through(equation, stretched):
            equations += _product(equation)
        else:
            equations.append(equation)
    return jaxpr.replace(eqns=equations)


def _is_seen_through(quotient: core.JaxprEqn, stretched: set[Any]) -> bool:
    """Whether the divisor is a constant, or is or will be stretched to the quotient's shape."""
    divisor, whole = quotient.invars[1], _array(quotient.outvars[0])
    known = isinstance(divisor, core.Literal) or divisor in stretched
    same = known or _array(divisor).shape != whole.shape
    return same and jnp.issubdtype(_array(divisor).dtype, jnp.floating)


def _array(value: Any) -> Any:
    return value.aval


def _product(quotient: core.JaxprEqn) -> tuple[core.JaxprEqn, core.JaxprEqn]:
    a, b = quotient.invars
    one_over_b = core.Var(b.aval)
    inverse = quotient.replace(
        primitive=lax.integer_pow_p, params={"y": -1}, invars=[b], outvars=[one_over_b]
    )
    return inverse, quotient.replace(primitive=lax.mul_p, params={}, invars=[a, one_over_b])
