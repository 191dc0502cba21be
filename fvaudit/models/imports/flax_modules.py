"""Flax modules as models, without changing their code: NNX and Linen.

Layers are the outputs of module calls, by module path ("blocks.3.conv1"). Linen shows every call to
`nn.intercept_methods`. NNX has no such thing, so each forward pass builds its own copy of the
module, and the copy's submodules change their class for one that reports its calls: the user's
module and classes stay as they are.

Nothing trains: dropout and batch statistics are switched off, and a module that insists on them is
refused.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from flax import errors, linen, nnx
from jax import lax

from fvaudit.models import devices
from fvaudit.models.classes import Classes
from fvaudit.models.imports.calls import OUTPUT, Calls, Watch, find_layers, tapping
from fvaudit.models.imports.specs import input_spec
from fvaudit.models.model import Model, build
from fvaudit.optvis import lowering
from fvaudit.records import AuditError


# Arguments of a module's call that mean evaluation, where it takes them
EVALUATION = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}
_SWITCHES = {"BatchNorm": "use_running_average", "Dropout": "deterministic"}
_calls: ContextVar[tuple[Calls, dict[int, tuple]]] = ContextVar("calls")  # of this forward pass


def from_flax(
    module: Any,
    variables: Any = None,
    *,
    input: Any,
    layers: Sequence[str] | None = None,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    output: Callable[[Any], Any] = lambda returned: returned,
    classes: Classes = (),
    source: str = "",
) -> Model:
    """A model from a Flax module; its layers are the outputs of its submodules.

    A module called again is "path#2"; the module's own output is "logits". Calls inside a scan,
    remat or vmap are no layers, since their values exist there only.

    Args:
        module: an `nnx.Module` with its parameters, or a `linen.Module`. It is not changed.
        variables: of a Linen module: {"params": ..., "batch_stats": ...}.
        input: an `InputSpec`, or what `imports.specs.input_spec` reads. The module is called with
            images (n, h, w, c) normalised so.
        layers: names to keep; all unless given.
        name: for people, reports and the fingerprint; the class's name unless given.
        arguments: further keyword arguments of the call. Those of `EVALUATION` that the module
            takes are set unless given, and `Model.source` says so.
        output: from what the module returns to the logits (n, k).
        classes: what the logits mean: their names in order, or a file of them.
        source: where the weights come from, with their licence.

    Raises:
        AuditError: if it is no Flax module, its variables are missing or do not fit, it would
            train, or `layers` names none.
    """
    devices.start()
    name = name or type(module).__name__
    spec = input_spec(input, what=name)
    wanted = _arguments(module, arguments or {})
    if isinstance(module, nnx.Module):
        params, call = _nnx(module, variables)
    elif isinstance(module, linen.Module):
        params, call = _linen(module, variables)
    else:
        raise AuditError(f"from_flax takes an nnx or linen module, got {type(module).__name__}.")

    def run(params, images, watch):
        return watch(OUTPUT, output(call(params, spec.normalise(images), wanted, watch)))

    found = find_layers(
        lambda images, watch: run(params, images, watch), spec, what=name, wanted=layers
    )

    def forward(params, images, tap):
        return run(params, images, tapping(tap, found.names))

    said = ", ".join(f"{key}={value}" for key, value in wanted.items())
    notes = [source or "the user's Flax module", f"called with {said}" if said else ""]
    return build(
        forward,
        params,
        spec,
        name=name,
        aliases=found.aliases,
        classes=classes,
        source="; ".join(filter(None, notes)),
    )


def _arguments(module: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    taken = inspect.signature(module).parameters if callable(module) else {}
    return {key: value for key, value in EVALUATION.items() if key in taken} | dict(given)


def _require_evaluation(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises `AuditError` if this call of a batch norm or a dropout would be one of training."""
    kind = next((c.__name__ for c in type(module).__mro__ if c.__name__ in _SWITCHES), None)
    if kind is None:
        return
    switch = _SWITCHES[kind]
    said = kwargs.get(switch, args[1] if len(args) > 1 else None)
    evaluating = getattr(module, switch, None) if said is None else said
    idle = kind == "Dropout" and not module.rate
    if not evaluating and not idle:
        raise AuditError(
            f"{type(module).__name__} would run as in training ({switch} is {evaluating}), so one "
            "image would change another's activations. Pass arguments= that switch this off, for "
            "example arguments={'train': False}."
        )


def _lower_fast(part: Any) -> None:
    """Gives a convolution, of our own copy of the module, the lowerings that are fast here.

    They also show it to the attacks that look for convolutions.
    """
    if not isinstance(part, nnx.Conv | linen.Conv):
        return
    given = part.conv_general_dilated, getattr(part, "conv_general_dilated_cls", None)
    if given in ((lax.conv_general_dilated, None), (None, None)):
        object.__setattr__(part, "conv_general_dilated", lowering.conv_general_dilated)


def _linen(module: linen.Module, variables: Any) -> tuple[Any, Callable[..., Any]]:
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise AuditError(
            "A Linen module needs its variables: from_flax(module, {'params': ..., "
            "'batch_stats': ...}, input=...)."
        )

    def call(params: Any, images: Any, arguments: Mapping[str, Any], watch: Watch) -> Any:
        calls = Calls(watch)

        def intercept(following, args, kwargs, context):
            _require_evaluation(context.module, args, kwargs)
            _lower_fast(context.module)
            output = following(*args, **kwargs)
            path = context.module.path
            return calls(path, output) if path and context.method_name == "__call__" else output

        try:
            with linen.intercept_methods(intercept):
                return module.apply(params, images, **arguments)
        except errors.FlaxError as error:
            raise AuditError(f"The variables do not fit the module: {error}") from None

    return variables, call


def _nnx(module: nnx.Module, variables: Any) -> tuple[Any, Callable[..., Any]]:
    if variables is not None:
        raise AuditError("An nnx.Module holds its variables itself; leave variables out.")
    copy = nnx.clone(module)
    copy.eval()
    for _, part in nnx.iter_modules(copy):
        _lower_fast(part)
    graph, random, params = nnx.split(copy, nnx.RngState, ...)

    def call(params: Any, images: Any, arguments: Mapping[str, Any], watch: Watch) -> Any:
        fresh = nnx.merge(graph, random, params)
        paths: dict[int, tuple] = {}
        for path, part in nnx.iter_modules(fresh):
            if path and _callable(type(part)):
                paths[id(part)] = path
                object.__setattr__(part, "__class__", _reporting(type(part)))
        before = _calls.set((Calls(watch), paths))
        try:
            return fresh(images, **arguments)
        finally:
            _calls.reset(before)

    return params, call


def _callable(kind: type) -> bool:
    return any("__call__" in vars(base) for base in kind.__mro__)


@functools.cache  # one class each: NNX registers classes for good
def _reporting(kind: type) -> type:
    """A class like `kind` whose calls are reported under the path of the module."""

    def call(self, *args, **kwargs):
        _require_evaluation(self, args, kwargs)
        output = kind.__call__(self, *args, **kwargs)
        calls, paths = _calls.get()
        return calls(paths[id(self)], output) if id(self) in paths else output

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
