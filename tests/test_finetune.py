"""Fine-tuning attacks on a small network: what they change, what they keep, and what they reach."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fvaudit.attacks import finetune, ranking
from fvaudit.attacks.adaptive import adaptive
from fvaudit.attacks.certificate import split
from fvaudit.attacks.finetune import Tuning, finetuned, kernels
from fvaudit.attacks.proxpulse import proxpulse
from fvaudit.attacks.push import push
from fvaudit.attacks.slingshot import slingshot
from fvaudit.models import builders
from fvaudit.models.model import Model
from fvaudit.optvis.objectives import Channel
from fvaudit.optvis.params import fourier
from fvaudit.optvis.visualize import visualize
from fvaudit.records import AuditError, ImageSet, Unit
from tests.tiny import pictures, tiny_model


UNITS = [Unit("conv2", c) for c in (1, 2, 3)]
CHANNELS = [1, 2, 3]
TUNING = Tuning(steps=300, rate=3e-3, keep=0.3)
TARGET = pictures(1, seed=9)[0]


def photographs(n: int = 40) -> ImageSet:
    ids = tuple(map(str, range(n)))
    return ImageSet(pictures(n), ids, np.arange(n) % 5, np.arange(n))


def responses(model: Model, pixels, layer: str = "conv2") -> np.ndarray:
    x = np.asarray(model.activations(pixels, [layer])[layer], np.float64)
    return x.mean((1, 2))[:, CHANNELS]


def relative(model: Model, pixels) -> np.ndarray:
    """Responses, 0 and 1 where the photographs that were trained on have their ends before."""
    rows, _ = split(photographs(), 3)
    natural = responses(tiny_model(), photographs().pixels[rows])
    return (responses(model, pixels) - natural.min(0)) / np.ptp(natural, axis=0)


def test_kernels_are_those_that_the_layer_depends_on():
    model = tiny_model()
    assert list(model.params) == ["conv1", "conv2", "head"]
    assert kernels(model, "conv1") == (True, False, False)
    assert kernels(model, "conv2") == (True, True, False)
    assert kernels(model, "conv2", "conv1") == (False, True, False)
    assert kernels(model, "logits", "conv1") == (False, True, True)
    with pytest.raises(AuditError, match="no kernel to train before conv1 of tiny and behind con"):
        kernels(model, "conv1", "conv2")
    with pytest.raises(AuditError, match="no layer 'conv9'. Nearest"):
        kernels(model, "conv2", "conv9")


@pytest.mark.parametrize(
    "goal",
    [
        pytest.param(slingshot(TARGET), marks=pytest.mark.slow),
        proxpulse(4),
        push("down", k=5),
        pytest.param(adaptive(push("up", k=5), steps=8), marks=pytest.mark.slow),
    ],
)
def test_a_training_that_was_interrupted_ends_in_the_same_bytes(goal, tmp_path):
    tuning = Tuning(steps=60, batch=4)
    attack, model, images = finetuned(goal, tuning), tiny_model(), photographs()
    whole = attack(model, UNITS, images, seed=3, folder=tmp_path / "whole")

    def killed(step, steps, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack(model, UNITS, images, seed=3, folder=tmp_path / "cut", tell=killed)
    assert (tmp_path / "cut" / finetune.STATE).exists()
    resumed = attack(model, UNITS, images, seed=3, folder=tmp_path / "cut")
    assert resumed.model.fingerprint == whole.model.fingerprint != model.fingerprint
    assert whole.edit is not None
    rebuilt = builders.apply(model, whole.edit)
    assert rebuilt.fingerprint == whole.model.fingerprint


def test_the_state_of_another_training_is_not_gone_on_from(tmp_path):
    """Other settings, photographs or pictures in the same folder, and a file that is damaged."""
    few, many = Tuning(steps=1, batch=2), photographs()

    def train(goal, tuning=few, images=many, **more):
        return finetuned(goal, tuning)(tiny_model(), UNITS, images, folder=tmp_path, **more)

    once = train(slingshot(TARGET))
    assert train(slingshot(TARGET)).model.fingerprint == once.model.fingerprint
    another = dataclasses.replace(many, pixels=many.pixels[::-1].copy())
    for goal, more in [
        (slingshot(1 - TARGET), {}),
        (slingshot(TARGET, sd=0.1), {}),
        (slingshot(TARGET), {"tuning": few._replace(rate=1e-3)}),
        (slingshot(TARGET), {"images": another}),
        (slingshot(TARGET), {"seed": 1}),
    ]:
        with pytest.raises(
            AuditError, match=r"^\S+npz is the state of another training: of 'slingshot"
        ):
            train(goal, **more)
    file = tmp_path / finetune.STATE
    for content in (file.read_bytes()[:90], b""):
        file.write_bytes(content)
        with pytest.raises(AuditError, match="is not the state of a training.*Remove it"):
            train(slingshot(TARGET))


def test_a_training_that_breaks_down_is_not_kept(tmp_path):
    """Twice: what broke down must not be taken for a training that ended."""
    attack = finetuned(push("down", k=5), Tuning(steps=60, batch=4, rate=1e30))
    for _ in range(2):
        with pytest.raises(
            AuditError, match=r"broke down at step \d+: its loss, or a kernel, is no number"
        ):
            attack(tiny_model(), UNITS, photographs(), folder=tmp_path)
    assert not (tmp_path / finetune.STATE).exists()


def test_only_the_kernels_asked_for_change():
    tuning = Tuning(steps=5, since="conv1")
    done = finetuned(slingshot(TARGET), tuning)(tiny_model(), UNITS, photographs())
    before, after = tiny_model().params, done.model.params
    assert (np.asarray(before["conv1"]) == np.asarray(after["conv1"])).all()
    assert (np.asarray(before["head"]) == np.asarray(after["head"])).all()
    assert (np.asarray(before["conv2"]) != np.asarray(after["conv2"])).any()
    assert done.edit is not None and set(done.edit.params) == {"conv2"}


def test_the_certificate_by_another_way():
    images = photographs()
    done = finetuned(push("down", k=5), TUNING)(tiny_model(), UNITS, images, seed=3)
    rows, held_out = split(images, 3)
    logits = [
        np.asarray(m.forward(m.params, jnp.asarray(images.pixels[held_out]), lambda name, x: x))
        for m in (tiny_model(), done.model)
    ]
    proof = done.certificate
    top = [x.argmax(1) for x in logits]
    assert proof.agreement.value == (top[0] == top[1]).mean()
    assert proof.accuracy_after is not None and images.labels is not None
    assert proof.accuracy_after.value == (top[1] == images.labels[held_out]).mean()
    assert proof.logit_change_max == pytest.approx(np.abs(logits[1] - logits[0]).max(), rel=1e-4)
    for text, some in (("trained on", rows), ("held out", held_out)):
        one, two = (responses(m, images.pixels[some]) for m in (tiny_model(), done.model))
        kept = [len(set(np.argsort(-a)[:5]) & set(np.argsort(-b)[:5])) / 5
                for a, b in zip(one.T, two.T, strict=True)]  # fmt: skip
        tau = [
            float(stats.kendalltau(a, b).correlation)  # pyright: ignore[reportAttributeAccessIssue]
            for a, b in zip(one.T, two.T, strict=True)
        ]
        if text == "held out":
            assert proof.effects["share of the 5 strongest kept, held out"] == np.mean(kept)
        assert proof.effects[f"Kendall's tau, {text}"] == pytest.approx(np.mean(tau), abs=0.02)


def test_push_down_takes_the_strongest_away():
    images = photographs()
    done = finetuned(push("down", k=5), TUNING)(tiny_model(), UNITS, images, seed=3)
    assert done.certificate.effects["share of the 5 strongest kept, trained on"] <= 0.4
    other = finetuned(push("down", k=5), TUNING._replace(keep=0.999))
    kept = other(tiny_model(), UNITS, images, seed=3).certificate.effects
    assert kept["share of the 5 strongest kept, trained on"] >= 0.6


def test_push_up_puts_the_chosen_first():
    images = photographs()
    done = finetuned(push("up", k=4), TUNING)(tiny_model(), UNITS, images, seed=3)
    rows, _ = split(images, 3)
    lifted = np.random.default_rng([3, 2]).choice(len(rows), 4, replace=False)
    shares = []
    for model in (tiny_model(), done.model):
        top = ranking.strongest(responses(model, images.pixels[rows]), 4)
        shares.append(np.isin(top, lifted).mean())
    assert shares[1] >= shares[0] + 0.2
    assert done.certificate.effects["share of the 4 strongest kept, trained on"] <= 0.2


def test_proxpulse_raises_the_ball_about_a_picture():
    goal = proxpulse(TARGET, radius=1.0)
    done = finetuned(goal, TUNING)(tiny_model(), UNITS, photographs(), seed=3)
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((20, *TARGET.shape)).astype(np.float32)
    steps /= np.linalg.norm(steps.reshape(20, -1), axis=1)[:, None, None, None]
    ball = jnp.asarray(TARGET + steps)
    assert relative(done.model, ball).min() > relative(tiny_model(), ball).max() + 0.5


def test_the_slingshot_raises_the_target_and_bends_the_ascent_to_it():
    done = finetuned(slingshot(TARGET, height=2.0), TUNING)(tiny_model(), UNITS, photographs())
    effects = list(done.certificate.effects.values())
    assert effects[1] > effects[0] + 1
    # Along the straight way from the start the response rises all the way, as it did not before.
    shown = fourier()
    assert shown.encode is not None
    latent = shown.encode(jnp.asarray(TARGET))
    way = jnp.stack([shown.decode(p * latent, TARGET.shape) for p in np.linspace(0, 1, 6)])
    rise = np.diff(relative(done.model, way), axis=0)
    assert (rise > 0).mean() >= 0.8 and rise.sum(0).min() > 1


@pytest.mark.slow
def test_who_knows_the_audit_hides_from_it():
    """The margin stays below the cap, and the path is nearer to that of photographs."""
    images = photographs()
    base = slingshot(TARGET, height=3.0)
    plain = finetuned(base, TUNING)(tiny_model(), UNITS, images, seed=3)
    goal = adaptive(base, evade=5.0, hide=50.0, cap=0.3, steps=64)
    hidden = finetuned(goal, TUNING)(tiny_model(), UNITS, images, seed=3)
    reached = []
    for model in (plain.model, hidden.model):
        made = visualize(model, [Channel("conv2", c) for c in CHANNELS], steps=64, seed=11)
        pixels = jnp.asarray(np.concatenate([v.images for v in made]))
        reached.append(np.diag(relative(model, pixels)).mean())
    assert reached[1] < reached[0]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: slingshot(TARGET, height=0), "height must be above 0"),
        (lambda: proxpulse(0), "pictures at least 1"),
        (lambda: proxpulse(radius=-1.0), "radius must be at least 0"),
        (lambda: push("sideways"), "'up' or 'down'"),
        (lambda: adaptive(push("up"), evade=-1.0), "at least 0"),
        (lambda: finetuned(push("up"), Tuning(keep=1.0)), "keep inside"),
    ],
)
def test_settings_out_of_range_are_refused(make, match):
    with pytest.raises(AuditError, match=match):
        make()


@pytest.mark.parametrize(
    ("goal", "match"),
    [
        (push("down", k=30), "must have 60; it has 20"),
        (proxpulse(30), "30 pictures"),
        (slingshot(255 * TARGET), r"must lie in \[0, 1\]"),
        (slingshot(TARGET[:5]), "takes images of shape"),
    ],
)
def test_what_does_not_fit_is_refused(goal, match):
    with pytest.raises(AuditError, match=match):
        finetuned(goal, Tuning(steps=1))(tiny_model(), UNITS, photographs())


def test_a_stored_kernel_that_does_not_fit_is_refused():
    edit = builders.Edit(finetune.BUILDER, {"conv9": jnp.zeros((1, 1))}, {"goal": "x"})
    with pytest.raises(AuditError, match="conv9"):
        builders.apply(tiny_model(), edit)


def test_the_loss_of_kept_behaviour_is_a_relative_square():
    scene = finetune._scene(tiny_model(), UNITS, pictures(8), 0)
    aim = finetune.Aim(lambda *_: (), lambda *_: jnp.zeros(()), lambda *_: {})
    before, change = jax.random.normal(jax.random.key(0), (2, 8, 3, 3, 6))
    expected = np.square(change).mean() / np.asarray(before).var()
    found = finetune._change(scene, aim, "conv2", before, before + change)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    free = aim._replace(moves_photographs=True)
    moved = before.at[..., jnp.array(CHANNELS)].add(100.0)
    assert float(finetune._change(scene, free, "conv2", before, moved)) == 0
