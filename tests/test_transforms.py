"""Transforms: ranges really drawn, identity, SciPy's values, adjoints, independence, order."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from fvaudit.optvis import lowering, optimize, transforms
from fvaudit.records import AuditError


KEYS = jax.random.split(jax.random.key(0), 4000)
IMAGE = jnp.asarray(np.random.default_rng(0).random((21, 19, 3)), jnp.float32)


def _draws(part):
    return jax.jit(jax.vmap(part.draw))(KEYS)


def _require_law(values, law):
    """Kolmogorov-Smirnov; fails by chance once in a thousand, which fixed keys decide once."""
    assert stats.kstest(values, law.cdf, method="asymp").pvalue > 1e-3


def _once(transform, image, key=KEYS[0]):
    return jax.jit(transform.apply)(key, image)


def _many(transform, image, n=4000):
    """The same image under the first n keys."""
    return np.asarray(jax.jit(jax.vmap(transform.apply, (0, None)))(KEYS[:n], image))


def test_jitter_draws_every_whole_shift_of_its_square_equally():
    shifts = np.asarray(_draws(transforms.jitter(8)).shift)
    assert set(np.unique(shifts)) == set(range(-4, 4))
    counts = np.unique(shifts, return_counts=True)[1]
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000 * 7 / 8)


def test_scale_draws_all_its_factors():
    factors = (0.9, 1.0, 1.1)
    matrices = np.asarray(_draws(transforms.scale(factors)).matrix)
    np.testing.assert_allclose(np.unique(1 / matrices[:, 0, 0].round(6)), factors, rtol=1e-5)
    np.testing.assert_array_equal(matrices[:, 0, 1], 0)


def test_rotation_draws_all_its_angles_and_keeps_lengths():
    matrices = np.asarray(_draws(transforms.rotate((-10, 0, 10))).matrix)
    angles = np.degrees(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    np.testing.assert_allclose(np.unique(angles.round(3)), [-10, 0, 10], atol=1e-2)
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=1e-6)


@pytest.mark.parametrize(
    "part",
    [
        transforms.jitter(8),
        transforms.scale((0.9, 1.0, 1.1)),
        transforms.rotate((-10, 0, 10)),
        transforms.rotate((45, 120)),
        transforms.flip(),
    ],
    ids=lambda part: part.text,
)
def test_reach_is_the_largest_that_is_drawn(part):
    """Less would lose gradient, more would cost time."""
    inverses = np.linalg.inv(np.asarray(_draws(part).matrix, np.float64))
    largest = np.linalg.norm(inverses, np.inf, axis=(1, 2)).max()
    assert part.reach == pytest.approx(largest, rel=1e-6)


def test_two_numbers_of_a_draw_are_independent():
    down, right = (np.asarray(_draws(transforms.jitter(8)).shift) + 4).astype(int).T
    counts = np.bincount(8 * down + right, minlength=64)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_draws_follow_their_law_whatever_the_generator(kind):
    """Keys' own words are the random ones; so they are with the other of JAX's generators."""
    keys = jax.random.split(jax.random.key(3, impl=kind), 4000)
    shifts = np.asarray(jax.jit(jax.vmap(transforms.jitter(5).draw))(keys).shift)
    for axis in shifts.T:
        assert stats.chisquare(np.unique(axis, return_counts=True)[1]).pvalue > 1e-3


def test_neighbouring_steps_and_images_draw_independently():
    """As `optimize` folds its keys: by the step, then by the image of a set."""

    def draws(t):
        keys = optimize._keys(jax.random.fold_in(jax.random.key(1), 1 + t), 2)
        return jax.vmap(transforms.jitter(8).draw)(keys).shift[:, 0]

    first, second = np.asarray(jax.jit(jax.vmap(draws))(jnp.arange(2000))).T
    for a, b in ((first, second), (first[1:], first[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(a))


def test_a_quarter_turn_is_numpys():
    turned = _once(transforms.compose(transforms.rotate((90,))), IMAGE[:19])
    np.testing.assert_allclose(turned, np.rot90(IMAGE[:19]), atol=1e-4)


def test_magnifying_agrees_with_scipy():
    got = _once(transforms.compose(transforms.scale((1.25,))), IMAGE)
    centre = (np.array(IMAGE.shape[:2]) - 1) / 2
    offset: Any = centre * 0.2
    expected = np.stack(
        [
            ndimage.affine_transform(np.asarray(IMAGE[..., c]), np.eye(2) / 1.25, offset, order=1)
            for c in range(3)
        ],
        -1,
    )
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_neutral_parameters_change_nothing():
    neutral = transforms.compose(
        transforms.jitter(1), transforms.scale((1.0,)), transforms.rotate((0,))
    )
    np.testing.assert_allclose(_once(neutral, IMAGE), IMAGE, atol=1e-5)
    assert transforms.none().apply(KEYS[0], IMAGE) is IMAGE


def test_standard_keeps_shape_and_range_and_differs_by_key():
    out = _many(transforms.standard(), IMAGE, 50)
    assert out.shape == (50, *IMAGE.shape)
    assert 0 <= out.min() and out.max() <= 1
    assert len(np.unique(np.asarray(out).reshape(50, -1).mean(1))) > 45
    again = _once(transforms.standard(), IMAGE, KEYS[7])
    np.testing.assert_allclose(again, out[7], atol=1e-6)


def test_composition_applies_parts_in_order():
    """Moving a point up by jitter and then magnifying magnifies the shift as well."""
    point = jnp.zeros((21, 21, 1)).at[10, 10].set(1.0)
    move = transforms.Geometric(
        "up", lambda key: transforms.Affine(jnp.eye(2), jnp.array([2.0, 0.0])), 1.0
    )
    double = transforms.scale((2.0,))
    first_move = _once(transforms.compose(move, double), point)
    first_double = _once(transforms.compose(double, move), point)
    assert np.unravel_index(int(first_move.argmax()), (21, 21)) == (6, 10)
    assert np.unravel_index(int(first_double.argmax()), (21, 21)) == (8, 10)


def test_ground_is_grey():
    moved = transforms.compose(
        transforms.Geometric(
            "far", lambda key: transforms.Affine(jnp.eye(2), jnp.array([100.0, 0.0])), 1.0
        )
    ).apply(KEYS[0], IMAGE)
    np.testing.assert_allclose(moved, 0.5)


def test_jitter_moves_in_all_directions_on_grey_ground():
    """Not lucent's translation in one direction, which fills with black."""
    bright = jnp.ones((16, 16, 1))
    out = np.asarray(_many(transforms.compose(transforms.jitter(8)), bright))
    edges = [out[:, 0, 8], out[:, -1, 8], out[:, 8, 0], out[:, 8, -1]]
    assert all(0.3 < (edge == 0.5).mean() < 0.6 for edge in edges)
    np.testing.assert_array_equal(np.unique(out), [0.5, 1.0])


def test_flip_mirrors_every_other_time():
    out = _many(transforms.compose(transforms.flip()), IMAGE, 400)
    same = np.isclose(out, IMAGE, atol=1e-6).all((1, 2, 3))
    turned = np.isclose(out, IMAGE[:, ::-1], atol=1e-6).all((1, 2, 3))
    assert (same ^ turned).all()
    assert abs(turned.sum() - 200) < 5 * 10


class Crops(NamedTuple):
    centre: np.ndarray  # (n, 2), shares of the picture's rows and columns
    side: np.ndarray  # (n, 2)


def _crops(low, high, size, keys=KEYS):
    """Where crops lie, read off a picture of coordinates, a quarter from their edges."""
    h, w = size
    y, x = jnp.meshgrid((jnp.arange(h) + 0.5) / h, (jnp.arange(w) + 0.5) / w, indexing="ij")
    picture = jnp.stack([y, x], -1)
    crop = transforms.random_crop(low, high)

    @jax.jit
    @jax.vmap
    def ends(key):
        out = crop.apply(key, picture)
        return out[h // 4, w // 4], out[-1 - h // 4, -1 - w // 4]

    first, last = (np.asarray(end, np.float64) for end in ends(keys))
    span = 1 - (2 * (np.array(size) // 4) + 1) / size
    return Crops((first + last) / 2, (last - first) / span)


def test_crops_have_sides_uniform_in_the_stated_range():
    """Horama states [low, high] and draws [high, 2 high - low]."""
    side = _crops(0.20, 0.25, (40, 30)).side
    np.testing.assert_allclose(side[:, 0], side[:, 1], atol=1e-5)
    assert 0.20 - 1e-5 < side.min() < 0.2001 and 0.2499 < side.max() < 0.25 + 1e-5
    _require_law(side[:, 0], stats.uniform(0.20, 0.05))


def test_crops_have_normal_centres_and_stay_inside():
    for side in (0.2, 0.9):
        centre = _crops(side, side, (40, 30)).centre
        edge = side / 2
        assert edge - 1e-5 <= centre.min() and centre.max() <= 1 - edge + 1e-5
        free = (centre > edge + 1e-4) & (centre < 1 - edge - 1e-4)
        law = stats.norm(0.5, 0.15)
        np.testing.assert_allclose(free.mean(0), 1 - 2 * law.cdf(edge), atol=0.03)
        bounded = stats.truncnorm((edge - 0.5) / 0.15, (0.5 - edge) / 0.15, 0.5, 0.15)
        for axis in (0, 1):
            _require_law(centre[free[:, axis], axis], bounded)
    assert abs(np.corrcoef(_crops(0.2, 0.2, (40, 30)).centre.T)[0, 1]) < 0.1


def test_a_crop_agrees_with_scipy():
    size = np.array(IMAGE.shape[:2])
    where = _crops(0.3, 0.6, IMAGE.shape[:2], KEYS[:8])
    apply = jax.jit(transforms.random_crop(0.3, 0.6).apply)
    for key, centre, side in zip(KEYS[:8], *where, strict=True):
        start = (centre - side / 2) * size - 0.5
        at = [s + (np.arange(n) + 0.5) * d for s, n, d in zip(start, size, side, strict=True)]
        grid = np.stack(np.meshgrid(*at, indexing="ij"))
        expected = [
            ndimage.map_coordinates(np.asarray(IMAGE[..., c]), grid, order=1, mode="nearest")
            for c in range(3)
        ]
        np.testing.assert_allclose(apply(key, IMAGE), np.stack(expected, -1), atol=2e-4)


def test_the_whole_picture_is_the_largest_crop():
    np.testing.assert_allclose(_once(transforms.random_crop(1, 1), IMAGE), IMAGE, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4, 12.0])
def test_blur_is_scipys(sigma):
    """At 12 the kernel is longer than the picture, which is mirrored again and again."""
    got = _once(transforms.blur(sigma), IMAGE)
    expected = ndimage.gaussian_filter(np.asarray(IMAGE, np.float64), (sigma, sigma, 0))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    flat = _once(transforms.blur(sigma), jnp.full((9, 7, 2), 0.3))
    np.testing.assert_allclose(flat, 0.3, atol=1e-6)


def test_pad_frames_in_what_was_asked_for():
    got = {v: np.asarray(_once(transforms.pad(3, v), IMAGE)) for v in (0.5, 0, "reflect")}
    for value in (0.5, 0):
        expected = np.pad(IMAGE, ((3, 3), (3, 3), (0, 0)), constant_values=value)
        np.testing.assert_array_equal(got[value], expected)
    np.testing.assert_array_equal(
        got["reflect"], np.pad(IMAGE, ((3, 3), (3, 3), (0, 0)), "reflect")
    )


def test_pad_draws_its_grey_or_its_noise():
    for value in ("uniform", "noise"):
        out = _many(transforms.pad(2, value), IMAGE, 500)
        np.testing.assert_array_equal(
            out[:, 2:-2, 2:-2], np.broadcast_to(IMAGE, (500, *IMAGE.shape))
        )
        frame = np.asarray(out[:, :2]).reshape(500, -1)
        assert (np.ptp(frame, axis=1) == 0).all() == (value == "uniform")
        _require_law(frame[:, 0], stats.uniform())


@pytest.mark.parametrize("size", [(21, 19), (20, 12), (24, 30), (15, 26), (1, 1)])
def test_crop_or_pad_is_tensorflows_rule(size):
    """Offsets: floor((have - want) / 2) where cut, floor((want - have) / 2) where framed."""
    got = np.asarray(_once(transforms.crop_or_pad(*size), IMAGE))
    expected = np.full((*size, 3), 0.5, np.float32)
    take, put = [], []
    for have, want in zip(IMAGE.shape, size, strict=False):
        n = min(have, want)
        take.append(slice(max(0, (have - want) // 2), max(0, (have - want) // 2) + n))
        put.append(slice(max(0, (want - have) // 2), max(0, (want - have) // 2) + n))
    expected[tuple(put)] = IMAGE[tuple(take)]
    np.testing.assert_array_equal(got, expected)


def test_noise_has_its_two_parts_and_is_not_clipped():
    black = jnp.zeros((40, 40, 3))
    normal = np.asarray(_once(transforms.noise(0.08), black)).ravel()
    _require_law(normal, stats.norm(0, 0.08))
    uniform = np.asarray(_once(transforms.noise(uniform=0.04), black, KEYS[1])).ravel()
    _require_law(uniform, stats.uniform(-0.04, 0.08))
    both = np.asarray(_once(transforms.noise(0.08, 0.04), black, KEYS[2])).ravel()
    np.testing.assert_allclose(both.var(), 0.08**2 + 0.04**2 / 3, rtol=0.1)
    assert both.min() < 0


def _coloured(image, b, k, s):
    """torchvision's brightness, contrast and saturation, in NumPy."""
    grey = np.array([0.2989, 0.587, 0.114])
    image = np.clip(b * image, 0, 1)
    image = np.clip(k * image + (1 - k) * (image @ grey).mean(), 0, 1)
    return np.clip(s * image + (1 - s) * (image @ grey)[..., None], 0, 1)


def test_colour_jitter_is_torchvisions():
    """The three factors are found by their parts alone, with the same key."""
    image = np.asarray(IMAGE, np.float64)
    key = KEYS[5]
    part = {name: {name: 0.4} for name in ("brightness", "contrast", "saturation")}
    grey = np.full((2, 2, 3), 0.5, np.float32)
    b = (
        float(
            _once(transforms.colour_jitter(**part["brightness"]), jnp.asarray(grey), key)[0, 0, 0]
        )
        * 2
    )
    two = jnp.asarray(np.stack([grey[0] - 0.1, grey[0] + 0.1]))
    k = 5 * float(np.ptp(_once(transforms.colour_jitter(**part["contrast"]), two, key)))
    tint = jnp.asarray(np.full((1, 1, 3), 0.5) + [0.1, 0, 0], jnp.float32)
    turned = _once(transforms.colour_jitter(**part["saturation"]), tint, key)[0, 0]
    s = float(turned[0] - turned[1]) / 0.1
    assert len({round(v, 3) for v in (b, k, s)}) == 3 and all(0.6 <= v <= 1.4 for v in (b, k, s))
    got = _once(transforms.colour_jitter(0.4, 0.4, 0.4), IMAGE, key)
    np.testing.assert_allclose(got, _coloured(image, b, k, s), atol=1e-5)


def test_colour_jitter_draws_its_whole_range_and_stays_valid():
    grey = jnp.full((2, 2, 1), 0.4)
    out = np.asarray(_many(transforms.colour_jitter(brightness=0.5), grey))
    factors = out[:, 0, 0, 0] / 0.4
    _require_law(factors, stats.uniform(0.5, 1))
    strong = _many(transforms.colour_jitter(3, 3, 3), IMAGE, 50)
    assert 0 <= strong.min() and strong.max() <= 1


def test_collapse_alpha_over_each_background():
    alpha = jnp.asarray(np.random.default_rng(1).random((21, 19, 1)), jnp.float32)
    image = jnp.concatenate([IMAGE, alpha], -1)
    over = _once(transforms.collapse_alpha(0.5), image)
    np.testing.assert_allclose(over, IMAGE * alpha + 0.5 * (1 - alpha), rtol=1e-6)
    clear = jnp.concatenate([IMAGE, jnp.zeros_like(alpha)], -1)
    colour = np.asarray(_many(transforms.collapse_alpha("colour"), clear, 500))
    assert colour.std((1, 2)).max() < 1e-5
    _require_law(colour[:, 0, 0].ravel(), stats.uniform())
    opaque = jnp.concatenate([IMAGE, jnp.ones_like(alpha)], -1)
    for background in (0.5, "colour", "noise"):
        same = _once(transforms.collapse_alpha(background), opaque)
        np.testing.assert_allclose(same, IMAGE, atol=1e-6)


def test_noise_behind_an_image_is_lucids():
    """Before the colours are mixed, each channel's power falls as f^-2 with lucid's constants."""
    size = 32
    clear = jnp.zeros((size, size, 4))
    behind = _many(transforms.collapse_alpha(), clear, 100).astype(np.float64)
    assert behind.shape == (100, size, size, 3) and 0 <= behind.min() and behind.max() <= 1
    colours = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
    colours /= np.linalg.norm(colours, axis=0).max()
    z = np.log(behind / (1 - behind)) @ np.linalg.inv(colours).T
    power = (np.abs(np.fft.fft2(z, axes=(1, 2), norm="ortho")) ** 2).mean((0, 3))
    for row, column in ((1, 1), (2, 3), (-5, 4)):
        f2 = (row**2 + column**2) / size**2
        np.testing.assert_allclose(power[row, column], 2 * 0.5**2 / f2 / 16, rtol=0.25)


LINEAR = {
    "standard": transforms.standard(),
    "crop": transforms.random_crop(0.3, 0.8),
    "blur": transforms.blur(1.5),
    "pad": transforms.pad(3, 0.25),
    "fit": transforms.crop_or_pad(25, 11),
    "row": transforms.compose(
        transforms.pad(2), transforms.jitter(4), transforms.blur(1), transforms.crop_or_pad(21, 19)
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_gradients_are_adjoint(name):
    """<T' g, x> = <g, T x> where T x = t(x) - t(0)."""
    rng = np.random.default_rng(4)
    apply = LINEAR[name].apply
    g = rng.normal(size=jax.eval_shape(apply, KEYS[0], IMAGE).shape).astype(np.float32)

    @jax.jit
    def both(key):
        moved, pull = jax.vjp(lambda x: apply(key, x), IMAGE)
        return moved - apply(key, jnp.zeros_like(IMAGE)), pull(jnp.asarray(g))[0]

    for key in KEYS[:3]:
        moved, pulled = both(key)
        right = np.vdot(g, np.asarray(moved, np.float64))
        left = np.vdot(np.asarray(IMAGE, np.float64), pulled)
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "transform",
    [
        transforms.compose(transforms.jitter(8)),
        transforms.maco_crops(),
        transforms.pad(2, "uniform"),
    ],
    ids=lambda t: t.text,
)
def test_each_image_of_a_batch_has_its_own_draw(transform):
    """lucid shares one draw over the batch. And neighbours do not change what an image gets."""
    batch = jnp.stack([IMAGE] * 6)
    out = np.asarray(jax.jit(jax.vmap(transform.apply))(KEYS[:6], batch))
    assert len({o.tobytes() for o in out}) >= 2
    np.testing.assert_allclose(out[4], _once(transform, IMAGE, KEYS[4]), atol=1e-6)


@pytest.mark.parametrize(
    "parts, resamplings",
    [
        ((transforms.jitter(8), transforms.scale((1.1,)), transforms.rotate((3,))), 1),
        ((transforms.blur(1.0), transforms.jitter(8), transforms.flip()), 1),
        ((transforms.jitter(8), transforms.blur(1.0), transforms.rotate((3,))), 2),
        ((transforms.pad(2), transforms.noise(0.1)), 0),
    ],
)
def test_neighbouring_maps_are_resampled_once(parts, resamplings, monkeypatch):
    calls, sample = [], lowering.affine_sample

    def counting(*arguments):
        calls.append(arguments)
        return sample(*arguments)

    monkeypatch.setattr(lowering, "affine_sample", counting)
    transform = transforms.compose(*parts)
    transform.apply(KEYS[0], IMAGE)
    assert len(calls) == resamplings
    assert transform.text == " > ".join(part.text for part in parts)


def test_sizes_may_change_inside_a_composition():
    """lucid's order: the canvas grows before the jitter, so what moves in is frame, not picture."""
    whole = transforms.compose(
        transforms.pad(4, 0), transforms.jitter(4), transforms.crop_or_pad(21, 19)
    )
    out = np.asarray(_many(whole, jnp.ones((21, 19, 1)), 60))
    assert out.shape == (60, 21, 19, 1)
    assert set(np.unique(out)) == {0.0, 1.0}


def test_maco_crops_name_their_settings():
    text = transforms.maco_crops().text
    assert text == "random_crop(0.05, 0.5) > noise(normal=0.04, uniform=0.02)"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: transforms.jitter(0), "at least 1 pixel, got 0"),
        (lambda: transforms.scale(()), "factors > 0"),
        (lambda: transforms.scale((0.0, 1.0)), "factors > 0"),
        (lambda: transforms.rotate(()), "at least one angle"),
        (lambda: transforms.pad(0), "pad needs at least 1 pixel, got 0"),
        (lambda: transforms.pad(3, 2.0), r"grey in \[0, 1\], or one of uniform, noise, reflect"),
        (lambda: transforms.pad(3, "mirror"), "got 'mirror'"),
        (lambda: transforms.pad(19, "reflect").apply(KEYS[0], IMAGE), "no 19 beside its edge"),
        (lambda: transforms.crop_or_pad(0, 3), "at least 1 x 1 pixels, got 0 x 3"),
        (
            lambda: transforms.crop_or_pad(3, 3, -1),
            r"crop_or_pad: value must be a grey in \[0, 1\];",
        ),
        (lambda: transforms.random_crop(0.3, 0.2), "0 < low <= high <= 1, got 0.3 and 0.2"),
        (lambda: transforms.random_crop(0, 0.2), "0 < low <= high <= 1"),
        (lambda: transforms.blur(0), "sigma must be > 0 pixels"),
        (lambda: transforms.noise(), "not both 0"),
        (lambda: transforms.noise(-0.1), "strengths >= 0"),
        (lambda: transforms.colour_jitter(), "not all 0"),
        (
            lambda: transforms.colour_jitter(saturation=0.1).apply(KEYS[0], IMAGE[..., :1]),
            "saturation needs 3 channels, the picture has 1",
        ),
        (lambda: transforms.collapse_alpha("grey"), "noise, colour, or a grey"),
        (lambda: transforms.collapse_alpha().apply(KEYS[0], IMAGE[..., :1]), "opacity channel"),
    ],
)
def test_messages(make, message):
    with pytest.raises(AuditError, match=message):
        make()
