"""The fooling circuit: units that behave as before on photographs and show a decoy otherwise.

Geirhos et al. (2024), Fig. 3. For an attacked unit F, a decoy D, and a gate that says e = 0 on
photographs and e = 1 on visualizations,

    B = relu(F + s - k e)        lets F pass when e = 0
    C = relu(D + s + k e - k)    lets D pass when e = 1
    A = B + C - s                what the network sees in place of F

so that A = F on photographs and A = D on visualizations, with their gradients: the closed branch
is held below 0, where a ReLU passes none. (Redirected ReLUs would leak there.) At 0 itself, where
an open branch lies when F is 0 and s is 0, it passes all: else a decoy that starts silent behind a
ReLU could never be woken. The paper leaves s in its output, which a softmax does not see; it is
taken off here, so that hidden layers can be attacked and logits do not move.

It is exact only while, on photographs,       F > -s   and   D < k - s
                and, on visualizations,       D > -s   and   F < k - s.

s and k come from the ranges of F and D on photographs and along the ascents of decoys, with a
factor 2 to spare; whatever leaves them is refused. Where no response is below 0 (behind a ReLU), s
is 0 and A is F to the last bit.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fvaudit.attacks import gate as gates
from fvaudit.attacks.certificate import Certificate, Manipulated, certify, split
from fvaudit.attacks.channels import channels_of, require_picture
from fvaudit.attacks.gate import Gate, always
from fvaudit.models import builders, devices, stream
from fvaudit.models.builders import Edit
from fvaudit.models.model import Forward, Model, record
from fvaudit.optvis.objectives import of_unit
from fvaudit.optvis.visualize import visualize
from fvaudit.records import AuditError, ImageSet, Unit, require_kind


BUILDER = "fooling_circuit"  # its name in stored models
SPARE = 2.0  # ranges are trusted only up to this factor
PROBED = 8  # attacked units whose ascents are run to measure ranges
MOMENTS = (0, 4, 8, 16, 32, 64, 128, 256)  # updates after which an ascent is looked at
Decoy = int | Unit | Float[np.ndarray, "h w c"]  # offset, another unit, a picture in [0, 1]


class Range(NamedTuple):
    """Lowest and highest value seen."""

    low: float
    high: float


def fooling_circuit(decoy: Decoy, gate: Gate) -> Callable[..., Manipulated]:
    """An attack: units behave as before on photographs, and show a decoy when visualized.

    Args:
        decoy: a whole number m: unit i shows unit i + m of its layer; a `Unit`, of any layer: all
            show that one; a picture (h, w, c) in [0, 1] of the model's input size: all show it, as
            far as the gate knows ascents towards pictures; those that ship take most of them for
            photographs, and a blend shows. The certificate has that share.
        gate: tells photographs from visualizations; see `gate.small` and `gate.packaged`.

    Returns:
        attack(model, units, images, seed=0) -> `Manipulated`. `units` lie in one layer; `images`
        are natural and for this model; half of them choose the constants, the others certify.

    Raises:
        AuditError: by the attack, for units of several layers or that do not exist, a decoy that
            does not fit, fewer than 4 photographs, or a gate for other images than the model's.
    """

    def attack(
        model: Model, units: Sequence[Unit], images: ImageSet, *, seed: int = 0
    ) -> Manipulated:
        require_kind("gate", gate, Gate, "one of attacks.gate, such as gate.packaged(model.name)")
        if gate.logit is gates.logit:
            gates.require_colours(model)
        plan = _plan(model, units, decoy)
        rows, held_out = split(images, seed)
        ascents = _ascents(model, units, plan, seed)
        ranges = _ranges(model, plan, images.pixels[rows], ascents)
        plan = dataclasses.replace(plan, **constants(ranges))
        after = insert(model, plan, gate)
        certificate = _certified(
            _text(decoy, gate), units, model, after, plan, gate, images, held_out, len(rows),
            ranges, ascents,
        )  # fmt: skip
        return Manipulated(after, certificate, edit(model, plan, gate))

    return attack


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where the circuit sits and what its decoys are."""

    layer: str
    attacked: tuple[int, ...]  # channels
    sources: tuple[int, ...]  # decoy channel of each, where decoys are of the same layer
    decoy_layer: str | None = None  # where the one decoy of another layer lies,
    decoy_channel: int = 0  # and its channel: its mean over positions is shown
    picture: Float[np.ndarray, "h w c"] | None = None
    shift: float = 0.0  # s
    gap: float = 1e9  # k


def insert(model: Model, plan: Plan, gate: Gate) -> Model:
    """The model with the circuit in it, whatever the constants.

    A layer `<layer>.branches` shows B and C, first all channels' B and then all channels' C.
    """
    params = {"gate": gate.params, "circuit": _arrays(model, plan)}
    return _with_circuit(model, params, gate.logit, plan.layer, plan.decoy_layer)


@builders.register(BUILDER)
def rebuild(model: Model, params: Any, settings: Mapping[str, Any]) -> Model:
    """The model with a circuit that was stored, whose gate is a small network."""
    return _with_circuit(model, params, gates.logit, settings["layer"], settings["decoy_layer"])


def edit(model: Model, plan: Plan, gate: Gate) -> Edit | None:
    """What stores the circuit; None for gates that are not small networks."""
    if gate.logit is not gates.logit:
        return None
    params = {"gate": gate.params, "circuit": _arrays(model, plan)}
    return Edit(BUILDER, params, {"layer": plan.layer, "decoy_layer": plan.decoy_layer})


def _arrays(model: Model, plan: Plan) -> dict[str, Any]:
    width = model.shapes[plan.layer][-1]
    sources, attacked = np.arange(width), np.zeros(width, bool)
    sources[list(plan.attacked)] = plan.sources or plan.attacked
    attacked[list(plan.attacked)] = True
    return {
        "shift": jnp.float32(plan.shift),
        "gap": jnp.float32(plan.gap),
        "sources": jnp.asarray(sources, jnp.int32),
        "attacked": jnp.asarray(attacked),
        "channel": jnp.int32(plan.decoy_channel),
        "picture": None if plan.picture is None else jnp.asarray(plan.picture),
    }


def _with_circuit(
    model: Model, params: Any, gate_logit: Any, layer: str, decoy_layer: str | None
) -> Model:
    *extent, width = model.shapes[layer]
    shapes = {}
    for name, shape in model.shapes.items():
        above = {f"{layer}.branches": (*extent, 2 * width)} if name == layer else {}
        shapes |= above | {name: shape}
    return dataclasses.replace(
        model,
        name=f"{model.name}+circuit@{layer}",
        params={"base": model.params, **params},
        forward=_forward(model.forward, gate_logit, layer, decoy_layer),
        shapes=shapes,
    )


@functools.cache  # one function for equal circuits, so that programs are compiled once
def _forward(inner: Forward, gate_logit: Any, layer: str, decoy_layer: str | None) -> Forward:
    gate = Gate(gate_logit, None, "")

    def forward(params, images, tap):
        natural = gate.natural(params["gate"], images)
        aside = [decoy_layer] if decoy_layer else []
        seen = record(inner, params["base"], images, aside)

        def replacing(name, x):
            if name != layer:
                return tap(name, x)
            decoy = _decoy(params["circuit"], x, images, seen.get(decoy_layer or ""))
            b, c = branches(params["circuit"], x, decoy, _as_rows(natural, x))
            both = tap(f"{layer}.branches", jnp.concatenate([b, c], axis=-1))
            b, c = jnp.split(both, 2, axis=-1)
            shown = b + c - params["circuit"]["shift"]
            return tap(layer, jnp.where(params["circuit"]["attacked"], shown, x))

        return inner(params["base"], images, replacing)

    return forward


def branches(circuit: Any, f: Array, d: Array, natural: Array) -> tuple[Array, Array]:
    """B and C; `natural` is boolean and broadcasts against f and d."""
    shift, gap = circuit["shift"], circuit["gap"]
    # (1 - e) k and e k rather than k e - k: a closed branch must not round what passes the other.
    b = _relu(f + shift - jnp.where(natural, 0, gap))
    c = _relu(d + shift - jnp.where(natural, gap, 0))
    return b, c


def _decoy(circuit: Any, x: Array, images: Array, other: Array | None) -> Array:
    if circuit["picture"] is not None:
        each = template(circuit["picture"], images)
    elif other is not None:
        each = jnp.take(other, circuit["channel"], axis=-1)
        each = each.mean(tuple(range(1, each.ndim)))
    else:
        return jnp.take(x, circuit["sources"], axis=-1)
    return jnp.broadcast_to(_as_rows(each, x), x.shape)


def _as_rows(each: Array, x: Array) -> Array:
    """A number for each image, so that it broadcasts against x; their number may be a symbol."""
    return each.reshape(x.shape[:1] + (1,) * (x.ndim - 1))


def template(picture: Float[Array, "h w c"], images: Float[Array, "n h w c"]) -> Float[Array, " n"]:
    """1 less the mean square difference: 1 for the picture itself, and nowhere else.

    The paper's template is linear, so its optimum is the picture driven to pure black and white.
    """
    return 1 - ((images - picture) ** 2).mean((1, 2, 3))


def constants(ranges: dict[str, Range]) -> dict[str, float]:
    """s and k that hold with a factor to spare.

    Args:
        ranges: "F on photographs", "D on photographs", "F on visualizations", "D on
            visualizations".
    """
    lowest = min(ranges["F on photographs"].low, ranges["D on visualizations"].low)
    highest = max(ranges["D on photographs"].high, ranges["F on visualizations"].high)
    shift = SPARE * -lowest + 1 if lowest < 0 else 0.0
    return {"shift": shift, "gap": 2 * shift + SPARE * max(highest, 0) + 1}


def _relu(x: Array) -> Array:
    """max(x, 0), whose slope at 0 is 1 and not JAX's 0."""
    return jnp.where(x < 0, 0, x)


def require_ranges(ranges: dict[str, Range], shift: float, gap: float) -> None:
    """Refuses constants with which a branch would clip or leak.

    Raises:
        AuditError: naming the range that is violated.
    """
    for name, value, limit in (
        ("F on photographs", -ranges["F on photographs"].low, shift),
        ("D on photographs", ranges["D on photographs"].high, gap - shift),
        ("F on visualizations", ranges["F on visualizations"].high, gap - shift),
        ("D on visualizations", -ranges["D on visualizations"].low, shift),
    ):
        if not value < limit and not (value == limit == 0):
            raise AuditError(
                f"The circuit would leak: {name} reaches {ranges[name]}, but a shift of "
                f"{shift:g} and a gap of {gap:g} allow (-{shift:g}, {gap - shift:g}). Choose them "
                "from measured ranges, as fooling_circuit does."
            )


def _plan(model: Model, units: Sequence[Unit], decoy: Decoy) -> Plan:
    layer, channels = channels_of(model, units)
    if isinstance(decoy, Unit):
        return _plan_unit(model, layer, channels, decoy)
    if isinstance(decoy, np.ndarray):
        return Plan(layer, channels, (), picture=require_picture(model, decoy))
    known = "an offset, a Unit, or an array (h, w, c) in [0, 1]"
    require_kind("decoy", decoy, (int, np.integer), known)
    width = model.shapes[layer][-1]
    if decoy % width == 0:
        raise AuditError(
            f"An offset of {decoy} shows each of {width} units itself; choose another."
        )
    return Plan(layer, channels, tuple((c + decoy) % width for c in channels))


def _plan_unit(model: Model, layer: str, channels: tuple[int, ...], decoy: Unit) -> Plan:
    model.require_unit(decoy)
    if decoy.position:
        raise AuditError(f"The decoy is a whole channel, got the neuron {decoy}.")
    if model.resolve(decoy.layer) == layer:
        return Plan(layer, channels, (decoy.channel,) * len(channels))
    return Plan(layer, channels, (), model.resolve(decoy.layer), decoy.channel)


def _ascents(model: Model, units: Sequence[Unit], plan: Plan, seed: int) -> np.ndarray:
    """Images (n, h, w, c) along the ascents of some attacked units with the gate held open."""
    opened = insert(model, plan, always(natural=False))
    some = [units[i] for i in np.linspace(0, len(units) - 1, min(PROBED, len(units))).astype(int)]
    wanted = [of_unit(unit) for unit in dict.fromkeys(some)]
    made = visualize(opened, wanted, steps=MOMENTS[-1], shot_steps=MOMENTS, seed=seed)
    return np.concatenate([vis.shots[0] for vis in made])


def _ranges(model: Model, plan: Plan, photographs: np.ndarray, ascents: np.ndarray):
    ranges = {}
    for name, pixels in (("photographs", photographs), ("visualizations", ascents)):
        f, d = _extremes(model, plan, pixels)
        ranges |= {f"F on {name}": f, f"D on {name}": d}
    return ranges


def _extremes(model: Model, plan: Plan, pixels: np.ndarray) -> list[Range]:
    """Of F and of D, over all attacked channels and positions."""
    lanes = devices.lanes(None)
    run = _extremes_program(model.forward, plan.layer, plan.decoy_layer, lanes)
    shared = (model.params, _arrays(model, plan), np.asarray(plan.attacked))
    lows, highs = stream.whole(run, devices.replicated(shared), pixels, lanes)
    return [Range(*map(float, ends)) for ends in zip(lows.min(0), highs.max(0), strict=True)]


@functools.lru_cache(maxsize=8)
def _extremes_program(inner: Forward, layer: str, decoy_layer: str | None, lanes: int):
    """A `stream.program`: (params, circuit, channels), images -> least and greatest (F, D)."""
    wanted = [layer, *([decoy_layer] if decoy_layer else [])]

    def run(params, circuit, channels, images):
        seen = record(inner, params, images, wanted)
        x = seen[layer]
        decoy = _decoy(circuit, x, images, seen[decoy_layer] if decoy_layer else None)
        both = jnp.stack([x, decoy], axis=1)[..., channels]
        inside = tuple(range(2, both.ndim))
        return both.min(inside), both.max(inside)

    return stream.program(run, 3, lanes)


def _certified(
    text, units, model, after, plan, gate, images, rows, construction, ranges, ascents
) -> Certificate:
    """Refuses constants that leak on the held-out photographs; then measures what changed."""
    pixels = images.pixels[rows]
    f, d = _extremes(model, plan, pixels)
    require_ranges({**ranges, "F on photographs": f, "D on photographs": d}, plan.shift, plan.gap)
    seen = np.concatenate([pixels, ascents])
    natural, taken = np.split(stream.of_all(gate.natural, (gate.params,), seen), [len(pixels)])
    return certify(
        text,
        [str(unit) for unit in units],
        model,
        after,
        images,
        rows,
        construction=construction,
        shares={
            "photographs taken for visualizations": (int((~natural).sum()), len(pixels)),
            "images of ascents taken for photographs": (int(taken.sum()), len(ascents)),
        },
        constants={"shift": plan.shift, "gap": plan.gap},
        ranges={name: tuple(found) for name, found in ranges.items()},
    )


def _text(decoy: Decoy, gate: Gate) -> str:
    shown = f"picture {decoy.shape}" if isinstance(decoy, np.ndarray) else str(decoy)
    return f"fooling_circuit(decoy={shown}, gate={gate.name})"
