"""The doctor on small networks that know their classes: planted mistakes, statistics, layers."""

import dataclasses
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fvaudit import cli
from fvaudit.data import load_images
from fvaudit.diagnosis import loader
from fvaudit.models.model import InputSpec, Model, build
from fvaudit.models.preflight import mistakes, preflight
from fvaudit.models.preflight.layers import silent_rate_bound
from fvaudit.models.preflight.settings import CONVENTIONS, settings
from fvaudit.models.zoo import load_model, with_params
from fvaudit.records import AuditError, ImageSet, Severity
from tests.tiny import SIZE, pictures, tiny_model


RIGHT = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3, resize=SIZE[0])
SCENES, CONTRASTS, EACH = 12, (0.25, 0.4, 0.63, 1.0), 4


def scenes() -> np.ndarray:
    """Pictures of 48 classes: twelve scenes, each in four contrasts; (48, 24, 24, 3)."""
    light = pictures(SCENES, seed=5) * 0.5 + np.array([0.3, 0.15, 0.0])
    top = np.linspace(0.2, 0, SIZE[0])[:, None, None]  # skies are bright
    whole = (light + top).astype(np.float32).clip(0, 1)
    return np.concatenate([0.4 + c * (whole - 0.4) for c in CONTRASTS]).astype(np.float32)


def photographs(n_each: int = EACH, seed: int = 0) -> ImageSet:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(SCENES * len(CONTRASTS)), n_each)
    pixels = scenes()[labels] + rng.normal(0, 0.04, (len(labels), *SIZE, 3))
    ids = tuple(f"{i:03}" for i in range(len(labels)))
    return ImageSet(pixels.clip(0, 1).astype(np.float32), ids, labels, np.arange(len(labels)))


def knowing(spec: InputSpec = RIGHT, wants: InputSpec = RIGHT) -> Model:
    """Scores classes by the distance of what it is fed to what `wants` makes of their scenes."""
    params = {"scenes": np.asarray(wants.normalise(jnp.asarray(scenes())))}

    def forward(p, images, tap):
        x = tap("stem", spec.normalise(images))
        return tap("logits", -8 * ((x[:, None] - p["scenes"]) ** 2).mean((2, 3, 4)))

    return build(forward, params, spec, name="knowing")


def convention(name: str) -> InputSpec:
    mean, std = CONVENTIONS[name]
    return dataclasses.replace(RIGHT, mean=mean, std=std)


def grave(findings) -> list[str]:
    return [f"{f.measured} {f.fix}" for f in findings if f.severity is Severity.PROBLEM]


# --- mistakes of preprocessing


def scaled(factor: float) -> InputSpec:
    return dataclasses.replace(RIGHT, std=tuple(s * factor for s in RIGHT.std))


PLANTED = {
    "BGR": (
        knowing(dataclasses.replace(RIGHT, order="BGR")), "gets BGR and wants RGB", "order='RGB'"
    ),
    "0..255": (knowing(scaled(1 / 255)), "255 times too large", "std=(0.5, 0.5, 0.5)"),
    "0..1": (knowing(scaled(255)), "255 times too small", "std=(0.5, 0.5, 0.5)"),
    "none": (
        knowing(convention("0..1 as they are")),
        "normalisation is missing: the network gets 0..1 as they are and wants -1..1",
        "mean=(0.5, 0.5, 0.5)",
    ),
    "ImageNet": (
        knowing(convention("ImageNet's mean and std")),
        "the input spec says ImageNet's mean and std, it wants -1..1",
        "std=(0.5, 0.5, 0.5)",
    ),
    "not ImageNet": (
        knowing(RIGHT, wants=convention("ImageNet's mean and std")),
        "the input spec says -1..1, it wants ImageNet's mean and std",
        "mean=(0.485, 0.456, 0.406)",
    ),
    "twice": (
        knowing(RIGHT, wants=convention("0..1 as they are")),
        "mean and std are applied twice",
        "mean=(0, 0, 0) and std=(1, 1, 1)",
    ),
    "Caffe": (
        knowing(RIGHT, wants=dataclasses.replace(
            convention("0..255 less the mean (123, 117, 104)"), order="BGR")),
        "wants Caffe's preprocessing", "order='BGR'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_wrong_input_specs_are_named_with_their_fix(name):
    model, mistake, fix = PLANTED[name]
    found = preflight(model, photographs())
    assert len(grave(found)) == 1 and mistake in grave(found)[0] and fix in grave(found)[0], found
    assert found[0].title == "preprocessing"


PREPARED = {
    "transposed": (lambda x: x.swapaxes(1, 2), "rows and columns of the photographs are exchanged"),
    "upside down": (lambda x: x[:, ::-1], "stand on their heads"),
    "negative": (lambda x: 1 - x, "black and white are exchanged"),
    "planes": (
        lambda x: x.transpose(0, 3, 1, 2).reshape(x.shape),
        "channel planes (n, c, h, w) were reshaped to (n, h, w, c)",
    ),
    "pixels": (
        lambda x: x.reshape(len(x), 3, *SIZE).transpose(0, 2, 3, 1),
        "pixels (n, h, w, c) were reshaped to planes",
    ),
    "black": (lambda x: x / 255, "divided by 255 twice"),
    "gray": (lambda x: np.repeat(x.mean(-1, keepdims=True), 3, -1), "Load them in colour"),
}


@pytest.mark.parametrize("name", PREPARED)
def test_photographs_prepared_wrongly_are_named_with_their_fix(name):
    change, mistake = PREPARED[name]
    images = photographs()
    pixels = np.ascontiguousarray(change(images.pixels), np.float32)
    found = grave(preflight(knowing(), dataclasses.replace(images, pixels=pixels)))
    assert any(mistake in text for text in found), found


def test_the_right_setting_raises_nothing():
    found = preflight(knowing(), photographs())
    assert {f.severity for f in found} == {Severity.OK}, [str(f) for f in found]
    texts = {f.title: f.measured for f in found}
    assert "settings were tried on 192 labelled photographs; none" in texts["preprocessing"]
    assert texts["accuracy on labelled photographs"].startswith("1.000 [0.981, 1.000] (192 of 192")
    assert "rows and columns exchanged" in texts["sensitivity to preprocessing"]


def test_equal_calls_give_equal_findings():
    model, images = PLANTED["ImageNet"][0], photographs()
    assert preflight(model, images) == preflight(model, images)


def test_few_photographs_cannot_convict():
    few = photographs()
    rows = np.arange(0, 192, 64)
    few = ImageSet(few.pixels[rows], tuple(few.ids[i] for i in rows), rows // EACH, rows)
    assert not grave(preflight(PLANTED["BGR"][0], few))


def test_without_labels_there_is_a_hint_that_says_how_weak_it_is():
    unlabelled = dataclasses.replace(photographs(), labels=None)
    planes = PREPARED["planes"][0](unlabelled.pixels)
    wrong = preflight(knowing(), dataclasses.replace(unlabelled, pixels=planes))
    hint = next(f for f in wrong if f.title == "preprocessing")
    assert hint.severity is Severity.WARN and "perhaps" in hint.measured
    assert "a hint only" in hint.fix
    right = next(f for f in preflight(knowing(), unlabelled) if f.title == "preprocessing")
    assert right.severity is Severity.OK and "a hint only" in right.fix


def test_resize_rules_are_tried_on_photographs_loaded_again():
    """The network knows whole scenes; the spec cuts out their middle."""
    spec = dataclasses.replace(RIGHT, resize=3 * SIZE[0])
    whole = photographs()

    def load(wanted: InputSpec) -> ImageSet:
        if wanted.size != SIZE:
            return dataclasses.replace(whole, pixels=np.zeros((192, *wanted.size, 3), np.float32))
        share = min(1.0, SIZE[0] / wanted.resize)
        rows = (SIZE[0] * (0.5 + share * (np.arange(SIZE[0]) / SIZE[0] - 0.5))).astype(int)
        return dataclasses.replace(whole, pixels=whole.pixels[:, rows][:, :, rows])

    found = preflight(knowing(spec), load(spec), reload=load)
    assert "only 33% of the short side is kept, the network wants 100%" in grave(found)[0]
    assert "Set resize=24" in grave(found)[0]


def test_other_sizes_are_tried():
    """The network answers at 24 pixels only by chance, and at 128 as it should."""
    labels = np.arange(96) % 2
    images = ImageSet(pictures(96), tuple(map(str, range(96))), labels, np.arange(96))

    def forward(p, x, tap):
        y = tap("stem", RIGHT.normalise(x))
        told = y[:, 0, 0, 0] * (1.0 if x.shape[1] == 128 else 0.0)
        return tap("logits", jnp.stack([0.1 - told, told], 1))

    def load(spec: InputSpec) -> ImageSet:
        pixels = np.zeros((96, *spec.size, 3), np.float32)
        pixels[:, 0, 0, 0] = 0.4 + 0.4 * labels
        return dataclasses.replace(images, pixels=pixels)

    found = preflight(build(forward, {}, RIGHT, name="sized"), images, reload=load)
    text = next(f for f in found if f.title == "preprocessing")
    assert "the size is wrong: the input spec says (24, 24), the network wants 128" in text.measured
    assert "size=(128, 128) and resize=128" in text.fix


# --- statistics


def test_mcnemar_is_the_binomial_test_of_disagreements():
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.random((2, 60)) < rng.uniform(0.3, 0.9, (2, 1))
        wins, losses = int((one & ~other).sum()), int((~one & other).sum())
        expected = stats.binomtest(wins, wins + losses, alternative="greater").pvalue
        assert mistakes.mcnemar(one, other) == pytest.approx(expected, rel=1e-9)
    same = np.ones(5, bool)
    assert mistakes.mcnemar(same, same) == 1


def test_holm_by_hand():
    adjusted = mistakes.holm(np.array([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(mistakes.holm(np.array([0.6, 0.5])), [1, 1])


def test_false_alarms_stay_below_the_level():
    """Sixteen settings that are as good as the one in use, 400 times."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        easy = rng.random(60)
        before, *others = rng.random((17, 60)) < 0.4 + 0.4 * easy
        p = mistakes.holm(np.array([mistakes.mcnemar(o, before) for o in others]))
        alarms += p.min() < mistakes.ALPHA
    assert stats.binomtest(alarms, 400, mistakes.ALPHA, alternative="greater").pvalue > 0.01


def test_standing_does_not_see_shift_and_scale():
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((50, 10)), rng.integers(0, 10, 50)
    found = mistakes.standing(scores, labels)
    by_hand = [(row[y] - row.mean()) / row.std() for row, y in zip(scores, labels, strict=True)]
    np.testing.assert_allclose(found, by_hand)
    np.testing.assert_allclose(mistakes.standing(7 * scores - 3, labels), found)


def compared(before, others, labels):
    """The verdict on scores (n, c), no setting changing the size."""
    option = settings(RIGHT, reloads=False, thorough=True)
    tried = [mistakes.Trial(s, o) for s, o in zip(option, others, strict=False)]
    return mistakes._by_accuracy(before, labels, tried, len(tried), RIGHT.size)


@pytest.mark.slow
def test_verdicts_are_seldom_wrong_where_no_setting_is_better():
    """Ten settings as good as the one in use, 300 times; photographs differ in difficulty."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(300):
        labels = rng.integers(0, 20, 80)
        signal = rng.normal(2, 1, (80, 1)) * np.eye(20)[labels]
        before, *others = signal + rng.standard_normal((11, 80, 20))
        alarms += compared(before, others, labels).severity > 0
    assert stats.binomtest(alarms, 300, mistakes.ALPHA, alternative="greater").pvalue > 0.01


def test_a_small_gain_of_accuracy_is_found_where_the_true_class_stands_higher():
    """A few points of accuracy on 300 photographs, which McNemar's test alone seldom finds."""
    rng, found, alone = np.random.default_rng(1), 0, 0
    for _ in range(40):
        labels = rng.integers(0, 20, 300)
        own = np.eye(20)[labels] * rng.normal(2.5, 1.5, (300, 1))
        shared = 0.8 * rng.standard_normal((300, 20))
        better, before = own + shared, 0.95 * own + shared + 0.1 * rng.standard_normal((300, 20))
        found += compared(before, [better], labels).severity > 0
        right = [x.argmax(1) == labels for x in (better, before)]
        alone += mistakes.mcnemar(*right) < mistakes.ALPHA / 2
    assert found >= 0.8 * 40 > 2 * alone


def test_the_bound_on_silent_channels_is_clopper_and_pearsons():
    for n in (1, 29, 300):
        exact = stats.binomtest(0, n, alternative="less").proportion_ci(0.95, method="exact").high
        assert silent_rate_bound(n) == pytest.approx(exact, rel=1e-9)


def test_settings_in_use_are_not_tried_again():
    for name in CONVENTIONS:
        tried = [s.name for s in settings(convention(name), reloads=False, thorough=True)]
        assert f"pixels as {name}" not in tried
        assert len(set(tried)) == len(tried) >= 11
    gray = InputSpec((9, 9), (0.0,), (1.0,), resize=9)
    names = [s.name for s in settings(gray, reloads=False, thorough=True)]
    assert names == [
        "numbers 255 times as large", "numbers 255 times as small", "rows and columns exchanged",
        "upside down", "negative",
    ]  # fmt: skip


# --- layers


def examined(forward, params=None, images: ImageSet | None = None) -> dict[str, list]:
    model = build(forward, params or {}, RIGHT, name="odd")
    found: dict[str, list] = {}
    for finding in preflight(model, images or dataclasses.replace(photographs(1), labels=None)):
        found.setdefault(finding.title, []).append(finding)
    return found


def _logits(tap, x):
    return tap("logits", x.mean((1, 2)))


def test_batch_statistics_of_training_are_found():
    def forward(p, x, tap):
        x = tap("bn", (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)))
        return _logits(tap, x)

    (finding,) = examined(forward)["layers in training mode"]
    assert finding.severity is Severity.PROBLEM and "use_running_average=True" in finding.fix
    assert "beside other pictures: activations differ, first at bn" in finding.measured


def test_dropout_is_found():
    def forward(p, x, tap):
        x = tap("drop", x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape))
        return _logits(tap, x)

    (finding,) = examined(forward)["layers in training mode"]
    assert "draws random numbers" in finding.measured and "model.eval()" in finding.fix


def test_nan_in_parameters_and_activations_is_found():
    def forward(p, x, tap):
        x = tap("log", jnp.log(x - 0.5) * p["w"])
        return _logits(tap, x)

    found = examined(forward, {"w": np.array([1, np.nan, 1], np.float32)})
    assert "['w']" in found["parameters are not finite"][0].measured
    found = examined(forward, {"w": np.ones(3, np.float32)})
    assert "first log" in found["activations are not finite"][0].measured
    assert found["preprocessing was not tested"][0].severity is Severity.WARN


def test_half_precision_is_found():
    half = {"w": jnp.ones(3, jnp.bfloat16)}
    found = examined(lambda p, x, tap: _logits(tap, tap("x", x * p["w"].astype(jnp.float32))), half)
    assert "bfloat16" in found["parameters in half precision"][0].measured


def test_constant_layers_and_silent_channels_are_found():
    def forward(p, x, tap):
        shut = tap("shut", jax.nn.relu(x - 2))
        half = tap("half", jnp.concatenate([x, 0 * x, 0 * x], -1))
        return _logits(tap, half[..., :3] + shut)

    found = examined(forward)
    (constant,) = found["layers that do not see the picture"]
    assert constant.severity is Severity.WARN and "shut" in constant.measured  # beside the trunk
    (silent,) = found["channels without a response"]
    assert silent.severity is Severity.WARN and "half 6 of 9" in silent.measured
    assert "up to 6.1% of such photographs" in silent.measured  # 1 - 0.05^(1/48)

    def cut(p, x, tap):
        return _logits(tap, tap("cut", 0 * x))

    (constant,) = examined(cut)["layers that do not see the picture"]
    assert constant.severity is Severity.PROBLEM and "2 of 2 layers" in constant.measured


def test_what_is_slow_or_too_small_is_said():
    def forward(p, x, tap):
        grouped = jax.lax.conv_general_dilated(
            x, p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
        )  # fmt: skip
        x = tap("grouped", grouped)
        return _logits(tap, jax.lax.fori_loop(0, 3, lambda i, y: y + x, x))

    found = examined(forward, {"k": np.ones((3, 3, 1, 3), np.float32)})
    (slow,) = found["parts that will be slow"]
    assert "1 grouped convolutions" in slow.measured and "1 loops" in slow.measured
    assert (
        "logits: fewer than 16 features"
        in found["layers too small for path similarity"][0].measured
    )
    assert "2 of 2 layers" in found["layers of the path"][0].measured


def test_photographs_that_do_not_fit_are_refused():
    model = tiny_model()
    with pytest.raises(AuditError, match=r"takes images of shape \(n, 24, 24, 3\)"):
        preflight(
            model, ImageSet(np.zeros((2, 9, 9, 3), np.float32), ("a", "b"), None, np.arange(2))
        )
    empty = ImageSet(np.zeros((0, 24, 24, 3), np.float32), (), None, np.arange(0))
    with pytest.raises(AuditError, match="at least one photograph"):
        preflight(model, empty)


def test_missing_parts_are_said():
    model = dataclasses.replace(tiny_model(), missing={"logits": "operator Foo is not supported"})
    found = preflight(model, ImageSet(pictures(3), ("a", "b", "c"), None, np.arange(3)))
    part = next(f for f in found if f.title == "parts that cannot be audited")
    assert part.severity is Severity.WARN and "logits: operator Foo" in part.measured


# --- the command line, and a real network


def test_the_command_line_prints_findings_and_fails_on_problems(monkeypatch, capsys, tmp_path):
    images = photographs()
    labels = np.asarray(images.labels)
    np.savez(tmp_path / "a.npz", images=images.pixels, labels=labels)
    for model, code in ((PLANTED["BGR"][0], 1), (knowing(), 0)):
        monkeypatch.setattr(cli, "_model", lambda *_, model=model, **__: model)
        monkeypatch.setattr(
            sys, "argv", ["fvaudit", "doctor", "m", "--data", str(tmp_path / "a.npz")]
        )
        with pytest.raises(SystemExit) as stop:
            cli.main()
        text = " ".join(capsys.readouterr().out.split())
        assert stop.value.code == code
        assert ("PROBLEM preprocessing: the colours are in the wrong order" in text) == bool(code)
        assert ("fix: Set order='RGB' in the input spec" in text) == bool(code)


REAL = {
    "none": (lambda s: s, lambda x: x, None),
    "range": (
        lambda s: dataclasses.replace(s, std=tuple(v / 255 for v in s.std)),
        lambda x: x,
        "the range is 255 times too large",
    ),
    "cut": (lambda s: dataclasses.replace(s, resize=640), lambda x: x, "the cut is wrong"),
    "turned": (lambda s: s, lambda x: x[:, ::-1], "stand on their heads"),
    "planes": (
        lambda s: s,
        lambda x: x.transpose(0, 3, 1, 2).reshape(x.shape),
        "channel planes (n, c, h, w) were reshaped",
    ),
}


def class_folders(flat: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """<wnid>_<name>.jpg -> <wnid>/<wnid>_<name>.jpg, of every tenth."""
    for file in sorted(flat.iterdir())[::10]:
        (folder / file.name.partition("_")[0]).mkdir()
        shutil.copy(file, folder / file.name.partition("_")[0])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_mistakes_planted_in_a_real_network(name, shared_data, tmp_path):
    """The rest of them: experiments/doctor.

    Many of imagenette's pictures have 224 x 224 pixels already, where a wrong cut changes nothing:
    that one is planted in pictures of other sizes, one a class.
    """
    change_spec, change_pixels, said = REAL[name]
    right = load_model("efficientnet_lite0")
    spec = change_spec(right.input)
    model = with_params(
        "efficientnet_lite0", right.params, spec, name="wrong", classes=right.classes
    )
    load = loader(model, lambda m: load_images(folder, m, limit=64))
    folder = shared_data / "images" / "imagenette160" / "val"
    if name == "cut":
        folder = class_folders(shared_data / "images" / "imagenet1k_sample", tmp_path)
    images = load(spec)
    pixels = np.ascontiguousarray(change_pixels(images.pixels))
    reload = load if said and "cut" in said else None
    found = grave(preflight(model, dataclasses.replace(images, pixels=pixels), reload=reload))
    assert found == [] if said is None else any(said in text for text in found)
