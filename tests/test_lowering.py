"""Every rule equals lax's own value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fvaudit.optvis import lowering
from fvaudit.optvis.lowering import sampling


NHWC = ("NHWC", "HWIO", "NHWC")

# (rows, columns, channels in, out, kernel, strides, padding, groups)
CASES = [
    (13, 11, 8, 8, (3, 3), (1, 1), "SAME", 8),
    (14, 14, 8, 8, (3, 3), (2, 2), "SAME", 8),
    (15, 12, 6, 6, (5, 5), (2, 2), "SAME", 6),
    (16, 9, 4, 4, (5, 3), (3, 1), "VALID", 4),
    (17, 17, 4, 4, (2, 2), (3, 3), ((1, 0), (2, 1)), 4),  # a stride beyond the kernel
    (12, 12, 4, 4, (3, 3), (2, 2), ((0, 0), (0, 0)), 4),  # rows that no window reads
    (10, 7, 5, 9, (1, 1), (1, 1), "SAME", 1),
    (14, 13, 3, 8, (3, 3), (2, 2), "SAME", 1),
    (23, 23, 3, 4, (7, 7), (2, 2), ((3, 3), (3, 3)), 1),
    (12, 12, 4, 6, (1, 1), (2, 2), "VALID", 1),
    (23, 21, 18, 4, (3, 3), (2, 2), "SAME", 1),
    (9, 9, 4, 6, (3, 3), (1, 1), "SAME", 1),  # no rule: goes to lax
    (9, 13, 16, 17, (3, 3), (1, 1), "SAME", 1),  # Winograd
    (10, 9, 17, 16, (3, 3), (1, 1), ((0, 2), (3, 0)), 1),
    (11, 8, 16, 16, (5, 5), (1, 1), "SAME", 1),
    (30, 28, 16, 16, (3, 3), (1, 1), "SAME", 1),
    (28, 29, 17, 16, (5, 5), (1, 1), ((1, 2), (4, 0)), 1),
    (9, 9, 4, 8, (3, 3), (1, 1), "SAME", 2),  # no rule: goes to lax
]


def _conv(function, strides, padding, groups):
    def call(x, kernel):
        return function(
            x, kernel, strides, padding, dimension_numbers=NHWC, feature_group_count=groups
        )

    return call


def _all(function, x, kernel, g):
    """Value, input gradient and kernel gradient."""

    def both(x, kernel, g):
        value, pull = jax.vjp(function, x, kernel)
        return value, *pull(g)

    return jax.jit(both)(x, kernel, g)


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("case", [CASES[0], CASES[7], CASES[15]], ids=str)
def test_half_precision_is_left_to_lax(case, kind):
    h, w, c, o, kernel_size, strides, padding, groups = case
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, h, w, c)), kind)
    kernel = jnp.asarray(rng.normal(size=(*kernel_size, c // groups, o)), kind)
    ours, stock = (
        jax.make_jaxpr(_conv(function, strides, padding, groups))(x, kernel)
        for function in (lowering.conv_general_dilated, lax.conv_general_dilated)
    )
    assert str(ours) == str(stock)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution_rules_equal_lax(case):
    h, w, c, o, kernel_size, strides, padding, groups = case
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((2, h, w, c)))
        kernel = jnp.asarray(rng.standard_normal((*kernel_size, c // groups, o)))
        ours = _conv(lowering.conv_general_dilated, strides, padding, groups)
        stock = _conv(lax.conv_general_dilated, strides, padding, groups)
        g = jnp.asarray(rng.standard_normal(jax.eval_shape(stock, x, kernel).shape))
        for got, want in zip(_all(ours, x, kernel, g), _all(stock, x, kernel, g), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=3e-12)


def test_rules_serve_bfloat_free_float32_under_jit_and_vmap():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((3, 1, 12, 12, 8)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 1, 8)), jnp.float32)
    ours = _conv(lowering.conv_general_dilated, (2, 2), "SAME", 8)
    stock = _conv(lax.conv_general_dilated, (2, 2), "SAME", 8)

    def slope(f):
        return jax.jit(jax.vmap(jax.grad(lambda x: (f(x, kernel) ** 2).sum())))(x)

    np.testing.assert_allclose(slope(ours), slope(stock), rtol=1e-5, atol=1e-5)


MAPS = [
    ("identity", np.eye(2), (0.0, 0.0)),
    ("shift", np.eye(2), (3.0, -2.0)),
    ("half pixel", np.eye(2), (0.5, 0.25)),
    ("turn and shrink", np.array([[0.98, 0.17], [-0.17, 0.98]]) / 0.9, (1.0, -3.0)),
    ("turn and magnify", np.array([[0.98, -0.17], [0.17, 0.98]]) / 1.1, (-4.0, 2.5)),
]


@pytest.mark.parametrize("matrix, shift", [m[1:] for m in MAPS], ids=[m[0] for m in MAPS])
def test_affine_sampling_equals_scipy(matrix, shift):
    from scipy import ndimage

    rng = np.random.default_rng(2)
    image = rng.random((20, 17, 3)).astype(np.float32)
    centre = (np.array(image.shape[:2]) - 1) / 2
    offset = centre + np.array(shift) - matrix @ centre
    # SciPy fades to the ground between an edge pixel and the first pixel outside, as we do, if
    # the ground is really there: so it gets the picture on a wide ground.
    wide = np.full((38, 35, 3), 0.5)
    wide[9:-9, 9:-9] = image
    offset_wide = offset + 9 - matrix @ np.array([9.0, 9.0])
    expected = np.stack(
        [
            ndimage.affine_transform(wide[..., c], matrix, offset_wide, order=1, cval=0.5)
            for c in range(3)
        ],
        axis=-1,
    )[9:-9, 9:-9]
    got = lowering.affine_sample(
        jnp.asarray(image), jnp.asarray(matrix, jnp.float32), jnp.asarray(shift), 0.5, 1.6
    )
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("matrix, shift", [m[1:] for m in MAPS], ids=[m[0] for m in MAPS])
def test_affine_gradient_equals_the_stock_gradient(matrix, shift):
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        image, g = (jnp.asarray(rng.standard_normal((20, 17, 3))) for _ in range(2))
        matrix, shift = jnp.asarray(matrix), jnp.asarray(shift)

        def slopes(function):
            return jax.jit(lambda *at: jax.vjp(function, *at)[1](g))(image, matrix, shift)

        reach = float(jnp.linalg.norm(jnp.linalg.inv(matrix), jnp.inf))  # no more than it needs
        got = slopes(lambda i, m, s: sampling._sample(i, m, s, reach))
        want = slopes(sampling._gather_taps)
        for ours, stock in zip(got, want, strict=True):
            np.testing.assert_allclose(ours, stock, atol=1e-4)  # positions are float32


def test_affine_identity_is_exact():
    image = jnp.asarray(np.random.default_rng(4).random((9, 8, 3)), jnp.float32)
    same = lowering.affine_sample(image, jnp.eye(2), jnp.zeros(2), 0.5, 1.0)
    np.testing.assert_allclose(same, image, atol=1e-7)
