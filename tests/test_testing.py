"""The judge is judged: the NumPy reference, the units of error, and `check_conv`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxconv.cases import CASES, random_case
from jaxconv.testing import (
    check_conv,
    draw,
    error_units,
    reference_conv,
    reference_conv_vjp,
)


def by_definition(x, kernel, s, p, big_l, d):
    """y[n, f, o] = Σ_{c, t} x̃[n, c, s·o + d·t − p] · k[f, c, t], one axis, by hand."""
    n, _, size = x.shape
    f, _, taps = kernel.shape
    outputs = ((size - 1) * big_l + 1 + sum(p) - d * (taps - 1) - 1) // s + 1
    y = np.zeros((n, f, outputs))
    for o in range(outputs):
        for t in range(taps):
            position = s * o + d * t - p[0]
            if position % big_l == 0 and 0 <= position // big_l < size:
                y[:, :, o] += x[:, :, position // big_l] @ kernel[:, :, t].T
    return y


@pytest.mark.parametrize("s", [1, 2, 3])
@pytest.mark.parametrize("p", [(0, 0), (2, 1), (-1, 3), (1, -2)])
@pytest.mark.parametrize(("big_l", "d"), [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_reference_is_the_definition(s, p, big_l, d, integers):
    x, kernel = integers(2, 3, 7), integers(4, 3, 2)
    y = reference_conv(x, kernel, (s,), [p], (big_l,), (d,))
    np.testing.assert_array_equal(y, by_definition(x, kernel, s, p, big_l, d))


def test_reference_of_a_kernel_without_taps_has_the_shape_that_lax_gives_it():
    x, kernel = np.ones((1, 1, 5)), np.ones((1, 1, 0))
    options: dict = {"window_strides": (1,), "padding": "VALID", "rhs_dilation": (2,)}
    conv = functools.partial(lax.conv_general_dilated, **options)
    y = reference_conv(x, kernel, **options)
    assert y.shape == jax.eval_shape(conv, x, kernel).shape


@pytest.mark.parametrize(
    "case", [*CASES, *map(random_case, range(300, 330))], ids=lambda case: case.name
)
def test_reference_gradients_are_adjoint(case, integers):
    x, kernel = integers(*case.x_shape), integers(*case.kernel_shape)
    y = reference_conv(x, kernel, **case.geometry)
    g = integers(*y.shape)
    _, dx, dkernel = reference_conv_vjp(x, kernel, g, **case.geometry)
    assert dx.shape == x.shape
    assert dkernel.shape == kernel.shape
    assert (y * g).sum() == (x * dx).sum() == (kernel * dkernel).sum()


@pytest.mark.parametrize(
    ("kernel_shape", "padding", "kind", "message"),
    [
        ((4, 2, 3), "SAME", ValueError, r"and has 2, but.*kernel.shape=\(4, 2, 3\)"),
        ((4, 3), "SAME", TypeError, "x and kernel must have the same rank"),
        ((4, 3, 3), "FOO", ValueError, "padding must be one of .* got padding='FOO'"),
    ],
)
def test_references_say_what_is_wrong(kernel_shape, padding, kind, message):
    x, kernel = np.ones((2, 3, 7)), np.ones(kernel_shape)
    with pytest.raises(kind, match=f"reference_conv: .*{message}"):
        reference_conv(x, kernel, (1,), padding)
    with pytest.raises(kind, match=f"reference_conv_vjp: .*{message}"):
        reference_conv_vjp(x, kernel, None, (1,), padding)


def test_the_table_has_no_two_cases_of_one_name():
    assert len({case.name for case in CASES}) == len(CASES)


def test_random_cases_reach_what_they_should():
    cases = [random_case(seed) for seed in range(200)]
    assert len(set(cases)) > 190
    assert {len(case.x_shape) for case in cases} == {2, 3, 4, 5}
    assert any(case.batch_group_count > 1 for case in cases)
    assert any(case.feature_group_count > 1 for case in cases)
    assert any(min(pad) < 0 for case in cases for pad in case.padding)
    assert any(max(case.lhs_dilation or [1]) > 1 for case in cases)


def test_units_of_error():
    eps = np.finfo(np.float32).eps
    reference = np.array([1.0, 4.0])
    got = np.array([1.0, 4.0 + 3 * 4 * 5 * eps])
    assert error_units(got, reference, np.float32, 25) == pytest.approx(3, rel=1e-6)
    assert error_units(np.array([1.0, np.nan]), reference, np.float32, 1) == np.inf
    infinite = np.array([np.inf, 1.0])  # what stock may read out of bounds
    assert error_units(np.ones(2), infinite, np.float32, 1) == np.inf
    assert error_units(infinite, infinite, np.float32, 1) == np.inf
    assert error_units(np.ones(3), reference, np.float32, 1) == np.inf
    assert error_units(np.zeros(2), np.zeros(2), np.float32, 1) == 0
    assert error_units(np.ones(2), np.zeros(2), np.float32, 1) == np.inf
    assert error_units(np.array([1, 5]), reference, np.int32, 9) == 1


def test_draws_differ_between_arrays_and_seeds():
    a, b = draw(0, np.float32, (50,), (50,))
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, draw(1, np.float32, (50,))[0])
    assert draw(0, jnp.bfloat16, (2,))[0].dtype == jnp.bfloat16
    assert set(draw(0, np.int32, (500,))[0]) == set(range(-4, 5))


GEOMETRY = {"window_strides": (2,), "padding": [(2, 1)], "rhs_dilation": (2,)}


def layer(x, kernel, **changes):
    return lax.conv_general_dilated(x, kernel, **{**GEOMETRY, **changes})


def test_check_conv_passes_a_right_layer():
    errors = check_conv(layer, (2, 3, 11), (4, 3, 3), **GEOMETRY)
    assert max(errors) < 2


@pytest.mark.parametrize(
    ("wrong", "roles"),
    [
        (functools.partial(layer, padding=[(1, 2)]), "forward"),
        (lambda x, k: layer(x, jnp.flip(k, 2)), "kernel_gradient"),
        (lambda x, k: layer(lax.stop_gradient(x), k) + 0 * x.sum(), "input_gradient"),
        (lambda x, k: layer(x, lax.stop_gradient(k)), "kernel_gradient"),
        (lambda x, k: layer(x, k) * (1 + 1e-4), "forward"),
        (lambda x, k: layer(x, k).at[0, 0, 0].set(jnp.nan), "forward=inf"),
    ],
)
def test_check_conv_fails_a_wrong_layer(wrong, roles):
    with pytest.raises(AssertionError) as failure:
        check_conv(wrong, (2, 3, 11), (4, 3, 3), **GEOMETRY)
    assert roles in str(failure.value)
    assert "check_conv: errors must be at most 2 units" in str(failure.value)


@pytest.mark.parametrize(
    ("wrong", "returned"),
    [
        (functools.partial(layer, window_strides=(1,)), "shape=(2, 4, 10)"),
        (lambda x, k: layer(x, k)[:, 1:], "shape=(2, 3, 5)"),
        (lambda x, k: layer(x, k).astype(jnp.bfloat16), "dtype=bfloat16"),
        (lambda x, k: (layer(x, k),), "(ShapeDtypeStruct(shape=(2, 4, 5)"),
        (lambda x, k: {"y": layer(x, k)}, "{'y': ShapeDtypeStruct("),
        (lambda x, k: 0.0, "shape=(), dtype=float32"),
        (lambda x, k: None, "conv(x, kernel)=None (x.shape=(2, 3, 11)"),
    ],
)
def test_check_conv_fails_a_layer_whose_result_is_of_another_type(wrong, returned):
    with pytest.raises(AssertionError) as failure:
        check_conv(wrong, (2, 3, 11), (4, 3, 3), **GEOMETRY)
    message = str(failure.value)
    assert "conv must return an array of shape (2, 4, 5) and dtype float32" in message
    assert returned in message


@pytest.mark.parametrize("shapes", [(5, (4, 3, 3)), ((2, 3, 11), "OIW")])
def test_check_conv_names_a_shape_that_is_none(shapes):
    with pytest.raises(TypeError, match=r"check_conv: .*_shape must be a shape, .* of"):
        check_conv(layer, *shapes, **GEOMETRY)


@pytest.mark.parametrize(
    ("geometry", "kind", "message"),
    [
        ({}, TypeError, "geometry must be told in the keywords of jax.lax"),
        ({"padding": "SAME", "strides": 2}, TypeError, "'strides': 2"),
        ({"padding": "FOO"}, ValueError, "check_conv: padding must be one of"),
        ({"padding": "SAME", "feature_group_count": 2}, ValueError, "check_conv: fea"),
        ({"padding": "SAME", "dtype": "float64"}, ValueError, "Set jax_enable_x64"),
        ({"padding": "SAME", "dtype": "int32"}, TypeError, "check_conv: dtype must be"),
    ],
)
def test_check_conv_says_what_is_wrong(geometry, kind, message):
    with pytest.raises(kind, match=message):
        check_conv(layer, (2, 3, 11), (4, 3, 3), **geometry)


def test_check_conv_takes_axis_numbers():
    numbers = lax.conv_dimension_numbers((2, 11, 3), (3, 3, 4), ("NWC", "WIO", "NWC"))
    check_conv(
        functools.partial(layer, dimension_numbers=numbers),
        (2, 11, 3),
        (3, 3, 4),
        **GEOMETRY,
        dimension_numbers=numbers,
    )
