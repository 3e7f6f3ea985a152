"""Patches are those of jax.lax, and fold is their transpose."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.jet import jet

import jaxconv
from jaxconv import unfold
from jaxconv.cases import random_case
from jaxconv.lax import conv_general_dilated_patches

SEEDS = range(40)


def geometry(seed):
    """Input shape, and the arguments that patches and fold have in common."""
    case = random_case(seed)
    taps = [
        size
        for letter, size in zip(
            case.dimension_numbers[1], case.kernel_shape, strict=True
        )
        if letter not in "OI"
    ]
    options = dict(case.geometry)
    del options["feature_group_count"], options["batch_group_count"]
    return case.x_shape, {"filter_shape": taps, **options}


@pytest.mark.parametrize("seed", SEEDS)
def test_patches_are_those_of_lax(seed, integers):
    shape, options = geometry(seed)
    x = jnp.asarray(integers(*shape))
    expected = lax.conv_general_dilated_patches(x, **options)
    np.testing.assert_array_equal(conv_general_dilated_patches(x, **options), expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("taps", [0, 64], ids=["transposed", "added up"])
def test_fold_is_the_transpose(seed, taps, integers, monkeypatch):
    monkeypatch.setattr(unfold, "TAPS", taps)
    shape, options = geometry(seed)
    patches = functools.partial(lax.conv_general_dilated_patches, **options)
    x_type = jax.ShapeDtypeStruct(shape, jnp.float32)
    y = jnp.asarray(integers(*jax.eval_shape(patches, x_type).shape))
    (expected,) = jax.linear_transpose(patches, x_type)(y)
    np.testing.assert_array_equal(jaxconv.fold(y, shape, **options), expected)


def test_derivatives_and_mapping(integers):
    x, options = (
        jnp.asarray(integers(3, 2, 6, 5)),
        {
            "filter_shape": (3, 2),
            "window_strides": (2, 1),
            "padding": "SAME",
        },
    )
    patches = functools.partial(conv_general_dilated_patches, **options)
    stock = functools.partial(lax.conv_general_dilated_patches, **options)
    y = stock(x)
    fold = functools.partial(jaxconv.fold, lhs_shape=x.shape, **options)
    for fn, other, operand, cotangent in (
        (patches, stock, x, y),
        (fold, jax.linear_transpose(stock, x), y, x),
    ):
        many = jnp.stack([operand, 2 * operand])
        expected = jnp.stack(
            [jnp.asarray(other(m)).reshape(cotangent.shape) for m in many]
        )
        np.testing.assert_array_equal(jax.vmap(fn)(many), expected)
        value, tangent = jax.jvp(fn, (operand,), (operand,))
        np.testing.assert_array_equal(value, tangent)
        (back,) = jax.vjp(fn, operand)[1](cotangent)
        np.testing.assert_array_equal(
            jnp.vdot(fn(operand), cotangent), jnp.vdot(operand, back)
        )


@pytest.mark.parametrize("taps", [(3, 2), (9, 8)], ids=["added up", "transposed"])
def test_taylor_series_are_those_of_lax(taps):
    x = jax.random.normal(jax.random.key(0), (2, 2, 6, 5))
    options = {"filter_shape": taps, "window_strides": (2, 1), "padding": "SAME"}

    def series(patches, fold):
        def through(x):
            return jnp.sin(fold(jnp.tanh(patches(x))))

        return jet(through, (x,), ([x, -x, 2 * x],))

    stock = functools.partial(lax.conv_general_dilated_patches, **options)
    chex.assert_trees_all_close(
        series(
            functools.partial(conv_general_dilated_patches, **options),
            functools.partial(jaxconv.fold, lhs_shape=x.shape, **options),
        ),
        series(stock, lambda y: jax.linear_transpose(stock, x)(y)[0]),
        rtol=1e-4,
        atol=1e-3,  # of terms up to 350
    )


@pytest.mark.parametrize("taps", [3, 70], ids=["added up", "transposed"])
def test_mapped_over_a_symbolic_axis(taps, integers):
    options = {"filter_shape": (taps,), "window_strides": (1,), "padding": "SAME"}
    patches = functools.partial(conv_general_dilated_patches, **options)
    fold = functools.partial(jaxconv.fold, lhs_shape=(2, 1, 12), **options)

    @jax.jit
    @jax.vmap
    def there_and_back(x):
        return fold(patches(x))

    (n,) = jax.export.symbolic_shape("n")
    symbolic = jax.ShapeDtypeStruct((n, 2, 1, 12), jnp.float32)
    exported = jax.export.export(there_and_back)(symbolic)
    x = jnp.asarray(integers(3, 2, 1, 12))
    np.testing.assert_array_equal(exported.call(x), there_and_back(x))


def test_mapped_over_nothing():
    options = {"filter_shape": (3,), "window_strides": (1,), "padding": "SAME"}
    patches = functools.partial(conv_general_dilated_patches, **options)
    fold = functools.partial(jaxconv.fold, lhs_shape=(1, 2, 8), **options)
    y = jax.vmap(patches)(jnp.ones((0, 1, 2, 8)))
    assert y.shape == (0, 1, 6, 8)
    assert jax.vmap(fold)(y).shape == (0, 1, 2, 8)


def test_programs_for_several_devices_multiply(integers):
    # XLA partitions a convolution along any axis, reads by a table along few.
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.NamedSharding(mesh, jax.P(None, None, "d"))
    options = {"filter_shape": (3,), "window_strides": (1,), "padding": "SAME"}
    x = jnp.asarray(integers(2, 1, 16))

    def patches(x):
        return conv_general_dilated_patches(x, **options)

    alone, together = (jax.jit(patches, in_shardings=where) for where in (None, spread))
    texts = [program.lower(x).as_text() for program in (alone, together)]
    assert ["gather" in text for text in texts] == [True, False]
    np.testing.assert_array_equal(together(x), alone(x))


def test_infinities_stay_where_they_are():
    x = jnp.arange(6.0).at[2].set(jnp.inf).reshape(1, 1, 6)
    patches = conv_general_dilated_patches(x, (3,), (1,), "SAME")
    np.testing.assert_array_equal(jnp.isinf(patches).sum(), 3)
    assert not jnp.isnan(patches).any()


@pytest.mark.parametrize("taps", [2, 70], ids=["added up", "transposed"])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, bool])
def test_integers_and_truth_values_are_added_up(dtype, taps):
    y = jnp.ones((1, taps, 3), dtype)
    fold = functools.partial(
        jaxconv.fold,
        lhs_shape=(1, 1, taps + 2),
        filter_shape=(taps,),
        window_strides=(1,),
        padding="VALID",
    )
    back = fold(y)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, fold(y.astype(jnp.float32)).astype(dtype))
    nothing = jaxconv.fold(y[..., :0], (1, 1, taps - 1), (taps,), (1,), "VALID")
    assert nothing.dtype == dtype
    assert nothing.shape == (1, 1, taps - 1)
    assert not nothing.any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32, jnp.complex64])
def test_dtypes(dtype):
    x = jnp.arange(8).reshape(1, 1, 8).astype(dtype)
    patches = conv_general_dilated_patches(x, (2,), (2,), "VALID")
    assert patches.dtype == dtype
    back = jaxconv.fold(patches, x.shape, (2,), (2,), "VALID")
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, x)
    if dtype == jnp.bfloat16:
        wide = conv_general_dilated_patches(
            x, (2,), (2,), "VALID", preferred_element_type=jnp.float32
        )
        assert wide.dtype == jnp.float32
        wider = functools.partial(
            conv_general_dilated_patches, preferred_element_type=jnp.float32
        )
        (back,) = jax.linear_transpose(lambda x: wider(x, (2,), (2,), "VALID"), x)(wide)
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, x)


def test_the_kernel_gradient_is_a_product_with_patches(integers):
    x, g = jnp.asarray(integers(2, 6, 6, 3)), jnp.asarray(integers(2, 6, 6, 4))
    NHWC = ("NHWC", "HWIO", "NHWC")
    patches = conv_general_dilated_patches(
        x, (3, 3), (1, 1), "SAME", dimension_numbers=NHWC
    )
    dkernel = jnp.einsum("nhwp,nhwf->pf", patches, g).reshape(3, 3, 3, 4)
    expected = jaxconv.conv_kernel_grad(x, (3, 3, 3, 4), g)
    np.testing.assert_array_equal(jnp.moveaxis(dkernel, 0, 2), expected)


def test_patches_of_another_shape_are_refused():
    with pytest.raises(
        ValueError, match=r"fold: patches must have the shape \(1, 2, 3\)"
    ):
        jaxconv.fold(jnp.ones((1, 2, 4)), (1, 1, 4), (2,), (1,), "VALID")
    with pytest.raises(ValueError, match="fold: window_strides"):
        jaxconv.fold(jnp.ones((1, 2, 3)), (1, 1, 4), (2,), (0,), "VALID")


def test_explicitly_sharded_patches():
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = jnp.arange(4.0 * 6).reshape(4, 1, 6)
    expected = lax.conv_general_dilated_patches(x, (3,), (1,), "SAME")
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, jax.P("i"))
        patches = jax.jit(
            lambda x: conv_general_dilated_patches(x, (3,), (1,), "SAME")
        )(sharded)
        assert jax.typeof(patches).sharding.spec[0] == "i"
    np.testing.assert_array_equal(patches, expected)
