"""The drop-ins: same results, gradients, shapes and dtypes as jax.lax."""

import functools
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxconv
import jaxconv.lax
from jaxconv.cases import CASES, random_case
from jaxconv.testing import LIMIT, Trial, reference_conv_vjp

NHWC = ("NHWC", "HWIO", "NHWC")


def gradients(conv, *operands):
    """The result, and the gradients of ⟨result, g⟩, for g = 1, 2, 3, ...."""

    def run(*operands):
        y, pull_back = jax.vjp(conv, *operands)
        g = jnp.arange(1, y.size + 1).reshape(y.shape) % 7
        return y, *pull_back(g.astype(y.dtype))

    return jax.jit(run)(*operands)


def assert_like_lax(ours, stock, *operands):
    got, expected = gradients(ours, *operands), gradients(stock, *operands)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    chex.assert_trees_all_equal(got, expected)


@pytest.mark.parametrize("name", jaxconv.lax.__all__)
def test_signatures_are_those_of_lax(name):
    ours, stock = (inspect.signature(getattr(m, name)) for m in (jaxconv.lax, lax))
    assert [(p.name, p.default, p.kind) for p in ours.parameters.values()] == [
        (p.name, p.default, p.kind) for p in stock.parameters.values()
    ]


def test_public_name_is_the_drop_in():
    assert jaxconv.conv_general_dilated is jaxconv.lax.conv_general_dilated


@pytest.mark.parametrize(
    "case", [*CASES, *map(random_case, range(200, 230))], ids=lambda case: case.name
)
def test_exact_on_small_integers(case, integers):
    # Judged by NumPy, since stock lax is wrong on some negative paddings (xla#48713).
    x, kernel = integers(*case.x_shape), integers(*case.kernel_shape)
    conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
    got = gradients(conv, x, kernel)
    g = (np.arange(1, got[0].size + 1).reshape(got[0].shape) % 7).astype(np.float32)
    chex.assert_trees_all_equal(
        got, reference_conv_vjp(x, kernel, g, **case.geometry), strict=False
    )
    y, dx, dkernel = (np.asarray(array, np.float64) for array in got)
    assert (y * g).sum() == (x * dx).sum() == (kernel * dkernel).sum()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_random_problems_are_exact_under_every_seed(seed):
    case, generator = random_case(seed), np.random.default_rng(seed)
    x, kernel = (
        generator.integers(-4, 5, shape).astype(np.float32)
        for shape in (case.x_shape, case.kernel_shape)
    )
    conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
    got = gradients(conv, x, kernel)
    g = (np.arange(1, got[0].size + 1).reshape(got[0].shape) % 7).astype(np.float32)
    expected = reference_conv_vjp(x, kernel, g, **case.geometry)
    chex.assert_trees_all_equal(got, expected, strict=False)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
@pytest.mark.parametrize("index", range(0, len(CASES), 5))
def test_error_is_a_few_units(index, dtype):
    case = CASES[index]
    trial = Trial(
        case.x_shape, case.kernel_shape, dtype=jnp.dtype(dtype), **case.geometry
    )
    conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
    assert max(trial.errors(trial.results(conv))) < LIMIT


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_error_in_double_precision(dtype, x64):
    for case in CASES[::7]:
        trial = Trial(case.x_shape, case.kernel_shape, dtype=dtype, **case.geometry)
        conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
        assert max(trial.errors(trial.results(conv))) < LIMIT


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool"])
def test_integers_forward(dtype, groups, integers):
    x = np.abs(integers(2, 7, 6, 6)).astype(dtype)
    k = np.abs(integers(3, 2, 6 // groups, 12)).astype(dtype)
    for dilation in (None, (2, 3)):
        results = [
            conv(
                *(x, k, (1, 1), [(1, 2), (0, 1)], dilation),
                dimension_numbers=NHWC,
                feature_group_count=groups,
            )
            for conv in (jaxconv.lax.conv_general_dilated, lax.conv_general_dilated)
        ]
        chex.assert_trees_all_equal_shapes_and_dtypes(*results)
        chex.assert_trees_all_equal(*results)


@pytest.mark.parametrize(
    ("dtype", "preferred"),
    [
        ("bfloat16", "float32"),
        ("float16", "float32"),
        ("int8", "int32"),
        ("int8", "float32"),
        ("float32", "float32"),
    ],
)
@pytest.mark.parametrize("lhs_dilation", [None, (2, 1)])
def test_preferred_element_type(dtype, preferred, lhs_dilation, integers):
    x = integers(2, 5, 6, 3).astype(dtype)
    k = integers(3, 2, 3, 4).astype(dtype)

    def of(conv):
        return lambda x, k: conv(
            x,
            k,
            (1, 2),
            [(1, 1), (0, 2)],
            lhs_dilation,
            dimension_numbers=NHWC,
            preferred_element_type=preferred,
        )

    ours, stock = of(jaxconv.lax.conv_general_dilated), of(lax.conv_general_dilated)
    chex.assert_trees_all_equal(ours(x, k), stock(x, k))
    assert ours(x, k).dtype == preferred
    if jnp.issubdtype(dtype, jnp.floating):
        assert_like_lax(ours, stock, x, k)


@pytest.mark.parametrize(
    "precision",
    [
        "highest",
        lax.Precision.HIGH,
        ("highest", "default"),
        ["highest", "highest"],
        (lax.Precision.DEFAULT, lax.Precision.HIGHEST),
    ],
)
def test_precision_reaches_every_convolution(precision, integers):
    x, k = integers(2, 3, 8), integers(4, 3, 3)

    def texts(conv):
        def run(x, k):
            y, pull_back = jax.vjp(
                lambda x, k: conv(x, k, (1,), "SAME", precision), x, k
            )
            return pull_back(y)

        text = jax.jit(run).lower(x, k).as_text()
        return sorted(
            sorted(re.findall("HIGHEST|HIGH|DEFAULT", line))
            for line in text.splitlines()
            if re.search(r"stablehlo\.(convolution|dot_general)", line)
        )

    assert texts(jaxconv.lax.conv) == texts(lax.conv)


@pytest.mark.parametrize("outputs", [32, 1])
def test_precision_follows_operands_that_change_places(outputs, integers):
    # The gradient of a kernel gradient, whose kernel is an image.
    x, k = integers(2, 3, 64 + outputs - 1), integers(4, 3, 64)
    pair = (lax.Precision.HIGHEST, lax.Precision.DEFAULT)

    def read(conv):
        _, pull_back = jax.vjp(lambda x: conv(x, k, (1,), "VALID", pair), x)
        y = jnp.ones((2, 4, outputs))
        jaxpr = jax.make_jaxpr(pull_back)(y)
        (equation,) = [e for e in jaxpr.eqns if "precision" in e.params]
        cotangent = jaxpr.invars[0] in equation.invars[:1]
        precision = equation.params["precision"]
        return precision if cotangent else precision[::-1]

    assert read(jaxconv.lax.conv) == read(lax.conv)


def test_weak_types_are_those_of_lax():
    strong = jnp.ones((1, 1, 8))
    weak = jnp.where(strong > 0, 1.0, 0.0)
    assert jax.typeof(weak).weak_type
    for x, k in ((weak, weak), (weak, strong), (strong, weak), (strong, strong)):
        types = [
            jax.typeof(conv(x, k, (1,), "SAME"))
            for conv in (lax.conv, jaxconv.lax.conv)
        ]
        assert types[0].weak_type == types[1].weak_type


def test_default_precision_is_read_when_traced(integers):
    x, k = integers(2, 3, 8), integers(4, 3, 3)
    with jax.default_matmul_precision("highest"):
        traced = jax.jit(lambda: jaxconv.lax.conv(x, k, (1,), "SAME")).trace()
    assert "HIGHEST" in traced.lower().as_text()


def test_numpy_and_python_arguments(integers):
    x, k = integers(2, 3, 8), integers(4, 3, 3)
    expected = lax.conv(x, k, (2,), "SAME")
    for strides, padding in [([2], "same"), (np.array([2]), [np.array([0, 1])])]:
        np.testing.assert_array_equal(
            jaxconv.lax.conv(x, k, strides, padding), expected
        )


def test_conv_with_general_padding(integers):
    for arguments in [
        ((1, 2), [(1, 0), (2, 3)], (2, 1), (1, 2)),
        ((2, 1), "VALID", None, (2, 1)),
        ((2, 1), "SAME", None, None),
    ]:
        assert_like_lax(
            lambda x, k, a=arguments: jaxconv.lax.conv_with_general_padding(x, k, *a),
            lambda x, k, a=arguments: lax.conv_with_general_padding(x, k, *a),
            integers(2, 3, 7, 6),
            integers(4, 3, 3, 2),
        )


@pytest.mark.parametrize("transpose_kernel", [False, True])
@pytest.mark.parametrize(
    ("padding", "consistent"),
    [("SAME", False), ("VALID", True), *[(((1, 2), (0, 1)), c) for c in (False, True)]],
)
@pytest.mark.parametrize("dilation", [None, (2, 1)])
@pytest.mark.parametrize("strides", [(2, 3), (5, 1)])
def test_conv_transpose(
    transpose_kernel, consistent, padding, dilation, strides, integers
):
    def of(conv_transpose):
        return lambda x, k: conv_transpose(
            x,
            k,
            strides,
            padding,
            dilation,
            transpose_kernel=transpose_kernel,
            use_consistent_padding=consistent,
        )

    kernel = integers(3, 4, 5, 2) if transpose_kernel else integers(3, 4, 2, 5)
    x = integers(2, 4, 5, 2)
    stock = of(lax.conv_transpose)
    assert_like_lax(of(jaxconv.lax.conv_transpose), stock, x, kernel)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_conv_transpose_of_other_ranks(rank, integers):
    x, k = (
        integers(2, 4, 5, 3, 2)[(slice(None), *[0] * (3 - rank))],
        integers(3, 2, 3, 2, 4),
    )
    k = k[(0,) * (3 - rank)]
    for numbers in (None, lax.conv_dimension_numbers(x.shape, k.shape, None)):
        shape = k.shape if numbers is None else (4, 2, *k.shape[:-2])
        x_shape = x.shape if numbers is None else (2, 2, *x.shape[1:-1])

        def of(conv_transpose, numbers=numbers):
            return lambda x, k: conv_transpose(
                x, k, (2,) * rank, "SAME", dimension_numbers=numbers
            )

        assert_like_lax(
            of(jaxconv.lax.conv_transpose),
            of(lax.conv_transpose),
            integers(*x_shape),
            integers(*shape),
        )


PATCHES = {
    "nchw": (None, (3, 2)),
    "nhwc": (NHWC, (2, 3)),
    "mixed": (("WNCH", "OWIH", "CHNW"), (3, 2)),
}


@pytest.mark.parametrize("layout", PATCHES)
@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1, 1), "padding": "SAME"},
        {"window_strides": (2, 1), "padding": "VALID", "rhs_dilation": (1, 2)},
        {
            "window_strides": (1, 2),
            "padding": [(1, 2), (0, 3)],
            "lhs_dilation": (2, 1),
            "precision": lax.Precision.HIGHEST,
        },
    ],
)
def test_patches_and_local_convolutions(layout, options, integers):
    numbers, taps = PATCHES[layout]
    x = integers(4, 5, 6, 7)
    options = {**options, "dimension_numbers": numbers}

    def patches(module):
        return lambda x: module.conv_general_dilated_patches(x, taps, **options)

    assert_like_lax(patches(jaxconv.lax), patches(lax), x)
    y = patches(lax)(x)
    layout = lax.conv_dimension_numbers(x.shape, x.shape, numbers)
    shape = [0] * 4
    shape[layout.rhs_spec[0]] = 3
    for y_axis, k_axis in zip(layout.out_spec[1:], layout.rhs_spec[1:], strict=True):
        shape[k_axis] = y.shape[y_axis]

    def local(module):
        return lambda x, k: module.conv_general_dilated_local(
            x, k, filter_shape=taps, **options
        )

    assert_like_lax(local(jaxconv.lax), local(lax), x, integers(*shape))


def test_batch_axis_of_preferred_type_in_patches(integers):
    x = integers(2, 3, 8).astype(jnp.bfloat16)
    got, expected = (
        m.conv_general_dilated_patches(
            x, (3,), (1,), "SAME", preferred_element_type=jnp.float32
        )
        for m in (jaxconv.lax, lax)
    )
    assert got.dtype == expected.dtype == jnp.float32
    np.testing.assert_array_equal(got, expected)


def test_all_keyword_form_with_abstract_kernel():
    # As flax.linen.ConvLocal calls it.
    y = jax.eval_shape(
        functools.partial(
            jaxconv.lax.conv_general_dilated,
            window_strides=(1,),
            padding="VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
            lhs_dilation=(1,),
            rhs_dilation=(2,),
        ),
        lhs=jax.ShapeDtypeStruct((2, 9, 3), jnp.float32),
        rhs=jax.ShapeDtypeStruct((3, 3, 4), jnp.float32),
    )
    assert y.shape == (2, 5, 4)


def test_negative_padding_on_which_stock_was_wrong(integers):
    # xla#48713; x (1, 15, 6, 8) with a 1×1 kernel, and x (2, 9, 2) with stride 3.
    x, k = integers(1, 15, 6, 8), integers(1, 1, 8, 4)
    y = jaxconv.lax.conv_general_dilated(
        x, k, (1, 1), ((0, 0), (-5, 1)), dimension_numbers=NHWC
    )
    expected = np.pad(x, [(0, 0), (0, 0), (0, 1), (0, 0)])[:, :, 5:] @ k[0, 0]
    np.testing.assert_array_equal(y, expected)
    x, k = integers(2, 9, 2), integers(4, 2, 5)
    numbers = ("NWC", "WIO", "NWC")
    y = jaxconv.lax.conv_general_dilated(
        x, k, (3,), [(-3, 3)], dimension_numbers=numbers
    )
    cropped = np.pad(x, [(0, 0), (0, 3), (0, 0)])[:, 3:]
    windows = np.stack([cropped[:, o : o + 4] for o in (0, 3)], 1)
    np.testing.assert_array_equal(y, np.einsum("notc,tcf->nof", windows, k))


@pytest.mark.parametrize(
    "precision",
    [
        "highest",
        ("highest", "default"),
        ["highest", "default"],
        lax.Precision.HIGH,
        (lax.Precision.HIGH, lax.Precision.DEFAULT),
    ],
)
def test_local_convolution_takes_precision_as_lax_does(precision, integers):
    x, kernels = integers(1, 2, 5), integers(4, 6, 3)
    got, expected = (
        module.conv_general_dilated_local(
            x, kernels, (1,), "VALID", (3,), precision=precision
        )
        for module in (jaxconv.lax, lax)
    )
    np.testing.assert_array_equal(got, expected)


def test_equal_precisions_make_equal_programs(integers):
    x, k = integers(2, 3, 8), integers(4, 3, 3)
    params = [
        jax.make_jaxpr(lambda x, k, p=p: jaxconv.lax.conv(x, k, (1,), "SAME", p))(x, k)
        .eqns[0]
        .params["precision"]
        for p in ("highest", lax.Precision.HIGHEST)
    ]
    assert params[0] == params[1]


def test_conv_transpose_takes_numpy_padding(integers):
    x, k = integers(1, 8, 2), integers(3, 2, 4)
    got, expected = (
        module.conv_transpose(x, k, (2,), np.array([[1, 1]]))
        for module in (jaxconv.lax, lax)
    )
    np.testing.assert_array_equal(got, expected)
