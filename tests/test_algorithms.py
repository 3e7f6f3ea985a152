"""Every algorithm equals the reference wherever it applies, in few bytes."""

import dataclasses
import functools
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
import jaxconv.lax
from jaxconv.algorithms import (
    ALGORITHMS,
    by_channels,
    by_image,
    by_rows,
    compute,
    depthwise,
    depthwise_gradient,
    direct,
    fourier,
    overlap_slices,
    patches,
    patches_gradient,
    per_group,
    pointwise_groups,
    product,
    runs_gradient,
    slices_gradient,
    stencil,
    subpixel,
    swap,
)
from jaxconv.arguments import Caller, conv_spec
from jaxconv.bench import ROLES, layer
from jaxconv.bench.rows import problem_of as problem_in
from jaxconv.cases import CASES, ConvCase, random_case
from jaxconv.planner import plan
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem
from jaxconv.testing import draw, error_units, reference_conv

DEPTHWISE = [
    layer("1d", 2, (9,), 4, 4, (3,), groups=4, padding=(2, 0), strides=2),
    layer("1d.first", 2, (9,), 3, 3, (3,), groups=3, dilation=2, channels_first=True),
    layer("2d", 2, (6, 7), 4, 4, (2, 3), groups=4, padding=(-1, 2)),
    layer("2d.first", 2, (6, 7), 4, 4, (2, 3), groups=4, padding=(1, -1),
          channels_first=True),
    layer("2d.wide", 1, (5, 6), 2, 2, (5, 6), groups=2, padding=(3, 4), strides=3,
          channels_first=True),
    layer("3d", 1, (4, 5, 6), 2, 2, (2, 2, 3), groups=2, padding=(1, 1)),
]  # fmt: skip


POINTWISE = [
    layer("groups.1d", 3, (9,), 4, 6, (1,), groups=2),
    layer("groups.1d.s3", 3, (9,), 6, 3, (1,), groups=3, strides=3),
    layer("groups.1d.crop", 2, (9,), 6, 12, (1,), groups=3, padding=(-1, -2)),
    layer("groups.1d.padded", 2, (9,), 6, 12, (1,), groups=3, padding=(3, -2),
          strides=2),
    layer("groups.2d", 2, (5, 7), 4, 6, (1, 1), groups=2),
    layer("groups.2d.s2", 2, (5, 7), 4, 6, (1, 1), groups=2, strides=2),
    layer("groups.2d.first", 3, (8, 9), 4, 2, (1, 1), groups=2, channels_first=True),
    layer("groups.2d.s2.first", 3, (16, 17), 4, 6, (1, 1), groups=2, strides=2,
          padding=(-1, -2), channels_first=True),
    layer("groups.2d.few.first", 3, (2, 1), 8, 8, (1, 1), groups=2,
          channels_first=True),
    layer("groups.3d", 2, (3, 4, 5), 6, 4, (1, 1, 1), groups=2, strides=2),
    layer("groups.3d.first", 2, (3, 4, 5), 6, 4, (1, 1, 1), groups=2,
          channels_first=True),
]  # fmt: skip


PRODUCTS = [
    layer("product.1d", 3, (9,), 4, 6, (1,)),
    layer("product.2d", 2, (5, 7), 4, 6, (1, 1)),
    layer("product.3d", 1, (3, 4, 5), 6, 4, (1, 1, 1)),
    *(
        dataclasses.replace(
            layer(f"product.{kernel}", 2, (4, 5), 6, 6, (1, 1)),
            kernel_shape=shape,
            dimension_numbers=(images, kernel, images),
        )
        for images, kernel, shape in (
            ("NHWC", "OIHW", (6, 6, 1, 1)),
            ("NWHC", "HOWI", (1, 6, 1, 6)),
            ("HNWC", "IHWO", (6, 1, 1, 6)),
        )
    ),
]


def channels_outermost(case):
    """The case with the channels of its input first in memory."""
    layout = case.dimension_numbers[0]
    order = sorted(range(len(layout)), key=lambda axis: layout[axis] != "C")
    return dataclasses.replace(
        case,
        x_shape=tuple(case.x_shape[axis] for axis in order),
        dimension_numbers=(
            "".join(layout[axis] for axis in order),
            *case.dimension_numbers[1:],
        ),
    )


OUTERMOST = [
    channels_outermost(case)
    for case in map(random_case, range(200, 300))
    if case.feature_group_count > 1 and len(case.x_shape) > 2
]


SUMS = [
    dataclasses.replace(
        case, name=f"sums.{case.name}", batch_group_count=case.x_shape[0]
    )
    for case in (
        layer("1d", 4, (7,), 3, 4, (5,)),
        layer("1d.first", 4, (7,), 3, 4, (5,), padding=(2, 1), channels_first=True),
        layer("1d.strided", 4, (9,), 2, 4, (5,), padding=(-1, 2), strides=2),
        layer("1d.dilated", 4, (9,), 2, 4, (4,), padding=(1, 0), dilation=2),
        layer("2d", 4, (5, 6), 2, 4, (4, 4), padding=(1, 1)),
        layer("2d.first", 4, (5, 6), 2, 4, (3, 4), padding=(2, 0), dilation=2,
              channels_first=True),
        layer("2d.strided", 4, (7, 8), 1, 4, (3, 4), padding=(-1, 3), strides=2),
        layer("3d", 4, (4, 3, 5), 2, 4, (3, 2, 4), padding=(1, 1)),
        layer("3d.first", 2, (4, 3, 5), 2, 2, (4, 3, 5), padding=(1, 1),
              channels_first=True),
        layer("1d.features", 4, (7,), 2, 8, (5,), padding=(2, 1)),
        layer("1d.features.first", 4, (11,), 6, 8, (5,), padding=(4, -2), dilation=3,
              channels_first=True),
        layer("2d.features.first", 2, (5, 4), 3, 6, (5, 4), padding=(1, 1),
              channels_first=True),
        layer("2d.strided-layer.first", 3, (8, 7), 5, 3, (4, 3), padding=(1, 0),
              dilation=2, channels_first=True),
        layer("2d.strided.first", 3, (9, 8), 2, 6, (3, 2), padding=(2, 3),
              dilation=3, strides=2, channels_first=True),
        layer("1d.one.first", 1, (13,), 1, 1, (11,), channels_first=True),
        layer("1d.images.first", 2, (6,), 32, 2, (5,), padding=(1, 1),
              channels_first=True),
        layer("1d.strided-layer", 32, (9,), 2, 64, (3,), padding=(1, 0), dilation=2),
    )
]  # fmt: skip


GRADIENTS = [
    ConvCase(
        f"gradient.{layout[0]}",
        x_shape=(*shape, 5),
        kernel_shape=(*shape, features),
        padding="VALID",
        dimension_numbers=layout,
    )
    for layout, shape, features in (
        (("CWN", "IWO", "WNC"), (2, 9), 1),
        (("CHWN", "IHWO", "HWNC"), (3, 2, 4), 3),
        (("HCWN", "HIWO", "NHWC"), (4, 3, 2), 9),
        (("CHWN", "IWHO", "HWCN"), (3, 2, 2), 2),
    )
]


BEYOND = [
    layer("beyond.1d.causal", 2, (5,), 3, 4, (4,), dilation=7, padding=(21, 0)),
    layer("beyond.1d.nothing", 2, (3,), 3, 4, (2,), dilation=20, padding=(10, 9)),
    layer("beyond.1d.transposed", 2, (2,), 3, 4, (3,), input_dilation=3,
          padding=(11, 5)),
    layer("beyond.2d", 2, (3, 4), 4, 6, (3, 3), dilation=5, padding=(5, 5), groups=2),
    layer("beyond.2d.strided", 2, (5, 4), 4, 3, (3, 2), dilation=4, strides=3,
          padding=(9, 8), channels_first=True),
]  # fmt: skip


TABLE = [
    *CASES,
    *map(random_case, range(100, 147)),
    *DEPTHWISE,
    *POINTWISE,
    *PRODUCTS,
    *OUTERMOST,
    *SUMS,
    *GRADIENTS,
    *BEYOND,
    layer("1d.channels", 2, (9,), 7, 4, (3,), padding=(1, 0)),
    layer("2d.small", 2, (2, 3), 4, 5, (6, 5), padding=(4, 3)),
]


def problem_of(case):
    spec = conv_spec(Caller("t"), case.x_shape, case.kernel_shape, **case.geometry)
    # A divisor of the groups, as if vmap had made so many of them.
    members = next(n for n in (3, 2, spec.groups) if spec.groups % n == 0)
    spec = spec.replace(members=members)
    return ConvProblem(spec, case.x_shape, case.kernel_shape, jnp.dtype("float32"))


def directly(spec, x, kernel, precision=None):
    """The smaller convolutions by lax."""
    problem = ConvProblem(spec, x.shape, kernel.shape, x.dtype, precision)
    return direct.by_lax(problem, x, kernel)


# Blocks so small that there are many, the last of them moved back.
SMALL = {
    depthwise: {"TERMS": 3, "AT_ONCE": 3},
    depthwise_gradient: {"SUMS": 64, "ROW": 160},
    runs_gradient: {"RUN": 3, "SUMS": 1, "TERMS": 3, "IMAGES": 256},
    patches: {"PATCHES": 256},
    patches_gradient: {"PATCHES": 256},
    per_group: {"BLOCK": 1 << 10},
    stencil: {"BLOCK": 1 << 10, "TERMS": 3},
    pointwise_groups: {"BLOCK": 64},
    product: {"CHAINS": ((2, 4), (4, 3))},
    by_channels: {"BLOCK": 256},
    by_image: {"BLOCK": 64},
    by_rows: {"BLOCK": 64},
    fourier: {"BLOCK": 1 << 11, "SUM": 3},
    overlap_slices: {"BLOCK": 1 << 11},
    slices_gradient: {"BLOCK": 1 << 10},
}


DIVIDED = [
    name
    for name, algorithm in ALGORITHMS.items()
    if algorithm in SMALL or name == "by_groups"  # which has blocks as `fourier` has
]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of all algorithms as in `SMALL`."""
    for module, sizes in SMALL.items():
        for constant, size in sizes.items():
            monkeypatch.setattr(module, constant, size)


# They multiply by zeros what may be infinite, where the sums have neither.
SPREADING = ("fourier", "runs_gradient", "slices_gradient", "subpixel", "swap")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithm_equals_the_reference_wherever_it_applies(name, integers):
    equals_the_reference_wherever_it_applies(name, integers)


@pytest.mark.parametrize("name", DIVIDED)
def test_algorithm_in_many_blocks_equals_the_reference(name, integers, small_blocks):
    # Without LLVM's passes, which take a third of the time, and which one block has.
    options = {"xla_backend_optimization_level": 0}
    equals_the_reference_wherever_it_applies(name, integers, options)


def test_places_along_each_axis_are_those_of_all_positions(integers, monkeypatch):
    monkeypatch.setattr(depthwise, "PLACES", 0)
    options = {"xla_backend_optimization_level": 0}
    equals_the_reference_wherever_it_applies("depthwise", integers, options)


def equals_the_reference_wherever_it_applies(name, integers, options=None):
    algorithm, applied = ALGORITHMS[name], 0
    for case in TABLE:
        problem = problem_of(case)
        if algorithm.applies(problem):
            run = functools.partial(algorithm.run, problem, conv=directly)
            run = jax.jit(run, compiler_options=options)
            reference = functools.partial(reference_conv, **case.geometry)
            x, kernel = integers(*case.x_shape), integers(*case.kernel_shape)
            y = np.asarray(run(x, kernel))
            np.testing.assert_allclose(y, np.rint(y), atol=1e-3)
            expected = reference(x, kernel)
            np.testing.assert_array_equal(np.rint(y), expected, err_msg=case.name)
            if x.size and name not in SPREADING:
                x.flat[np.random.default_rng(1).integers(x.size)] = np.inf
                kernel = abs(kernel) + 1  # no infinity less another
                y, expected = run(x, kernel), reference(x, kernel)
                np.testing.assert_array_equal(y, expected, err_msg=case.name)
            applied += 1
    fewer = {"empty": 2, "product": 5, "fold_images": 8, "shifts": 9, "by_output": 9}
    assert applied >= fewer.get(name, 10)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("images", [9, 600, 9000])
def test_layers_of_one_point_are_products_of_many_terms(integers, images, role):
    # Squeeze-and-excitation: the axes may be kept as well as summed.
    case = layer("", images, (1, 1), 16, 4, (1, 1))
    problem = problem_in(case, role, jnp.float32)
    assert product.applies(problem)
    x, kernel = integers(*problem.x_shape), integers(*problem.kernel_shape)
    y = product.run(problem, jnp.asarray(x), jnp.asarray(kernel), directly)
    expected = reference_conv(x, kernel, **problem.spec.geometry)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_products_with_the_features_first_are_computed(integers, dtype):
    x = jnp.asarray(integers(4, 3, 3, 8)).astype(dtype)
    kernel = jnp.asarray(integers(1, 1, 8, 16)).astype(dtype)
    layout = ("NHWC", "HWIO", "CNHW")
    spec = conv_spec(
        Caller("t"),
        x.shape,
        kernel.shape,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=layout,
    )
    problem = ConvProblem(spec, x.shape, kernel.shape, x.dtype)
    y = jax.jit(functools.partial(product.run, problem, conv=directly))(x, kernel)
    np.testing.assert_array_equal(y, directly(spec, x, kernel))


@pytest.mark.parametrize(
    "dtype, groups, names",
    [
        (jnp.int8, 1, ["patches_gradient"]),
        (jnp.uint8, 1, ["patches_gradient"]),
        (jnp.int4, 8, ["depthwise_gradient", "runs_gradient", "by_output"]),
    ],
)
def test_sums_in_parts_stay_of_their_dtype(dtype, groups, names):
    images, size = (64, 12) if groups == 1 else (4, 4)
    case = layer("", images, (size,) * 2, 64 // groups, 64 // groups, (3, 3),
                 padding=(1, 1), groups=groups)  # fmt: skip
    problem = problem_in(case, "kernel_gradient", dtype)
    shapes = problem.x_shape, problem.kernel_shape
    x, kernel = (jnp.asarray(a).astype(dtype) for a in draw(0, jnp.int8, *shapes))
    expected = directly(problem.spec, x, kernel)
    for name in names:
        y = ALGORITHMS[name].run(problem, x, kernel, directly)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, expected, err_msg=name)


@pytest.mark.parametrize("far", [2**30, 2**31])
def test_places_that_int32_cannot_count_are_left_to_xla(far):
    case = layer("", 1, (4,), 8, 8, (2,), groups=8, strides=far, dilation=far,
                 padding=(far, far))  # fmt: skip
    problem = problem_of(case)
    assert problem.output_spatial == (2,)
    for name in ("depthwise", "shifts", "stencil", "patches", "per_group"):
        assert not ALGORITHMS[name].applies(problem), name


@pytest.mark.parametrize(
    "name, role, geometry",
    [
        ("shifts", "forward", {"dilation": 9000}),
        ("stencil", "forward", {"strides": 2**20}),
        ("by_output", "kernel_gradient", {"dilation": 9000}),
    ],
)
def test_inputs_are_not_copied_with_many_times_as_many_zeros(name, role, geometry):
    def applies(geometry):
        case = layer("", 4, (16,), 64, 64, (3,), groups=64, **geometry)
        return ALGORITHMS[name].applies(problem_in(case, role, jnp.float32))

    edges = max(geometry.values())
    assert applies({})
    assert not applies(geometry | {"padding": (edges, edges)})


def lowered(conv, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(conv).lower(*arrays)


def compiled_text(conv, *shapes):
    return lowered(conv, *shapes).as_text()


def temporary_bytes(conv, *shapes):
    memory = lowered(conv, *shapes).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 0), (0, 5), (7, 1), (4, 4)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("taps", [1, 3, 4])
def test_slices_are_handed_on_from_block_to_block(
    taps, padding, dilation, integers, monkeypatch
):
    far = (taps - 1) * dilation
    # As few slices as the algorithm applies to, of 2 points, 4 features and each tap.
    monkeypatch.setattr(overlap_slices, "BLOCK", 2 * (1 + far) * 2 * 4 * taps * 4)
    for size in (17, 20, 21, 15, 9, 4):
        case = dataclasses.replace(
            layer("", 2, (size, 2), 3, 4, (taps, 1)),
            padding=(padding, (0, 0)),
            rhs_dilation=(dilation, 1),
        )
        problem = problem_of(case)
        if size <= far - padding[0] or min(problem.output_shape) < 1:
            assert not overlap_slices.applies(problem)
            continue
        assert overlap_slices.applies(problem)
        x, kernel = integers(*case.x_shape), integers(*case.kernel_shape)
        y = overlap_slices.run(problem, x, kernel, directly)
        expected = reference_conv(x, kernel, **case.geometry)
        np.testing.assert_array_equal(y, expected, err_msg=str(size))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("depthwise", "forward"),
        ("depthwise_gradient", "kernel_gradient"),
        ("patches", "forward"),
    ],
)
def test_only_windows_that_reach_beyond_the_input_are_masked(name, role):
    for padding in (0, 1):
        shape = (96, 96, (3, 3))
        case = layer("", 2, (14, 14), *shape, groups=96, padding=(padding, padding))
        problem = problem_in(case, role, jnp.float32)
        run = functools.partial(ALGORITHMS[name].run, problem, conv=directly)
        operands = jnp.zeros(problem.x_shape), jnp.zeros(problem.kernel_shape)
        # Nor is it asked whether an index is negative.
        assert ("select_n" in str(jax.make_jaxpr(run)(*operands))) == (padding > 0)


def test_depthwise_windows_that_need_no_zeros_are_slices():
    for padding in (0, 1):
        shape = (96, 96, (3, 3))
        case = layer("", 2, (14, 14), *shape, groups=96, padding=(padding, padding))
        assert depthwise.is_padded(problem_of(case)) == (padding == 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_emitted_has_negative_padding(case):
    def gradients(x, kernel, g):
        conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
        y, pull_back = jax.vjp(conv, x, kernel)
        return y, pull_back(g)

    problem = problem_of(case)
    shapes = case.x_shape, case.kernel_shape, problem.output_shape
    text = compiled_text(gradients, *shapes)
    zero = ("cropped-away", "no-output", "no-batch")
    computes = re.search(r"stablehlo\.(convolution|dot_general|multiply)", text)
    assert computes or case.name[3:] in zero
    assert not re.findall(r"pad = [^}]*-", text)
    if plan(problem, "cpu").algorithm == "subpixel":
        conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
        text = compiled_text(conv, case.x_shape, case.kernel_shape)
        dilations = re.findall(r"lhs_dilate = \[([\d, ]*)\]", text)
        assert all(set(found) <= set("1, ") for found in dilations)


def test_blocks_of_images_are_not_divided_again():
    # A large x and a small y, of which one block holds all.
    case = layer("", 8, (128, 128), 64, 32, (1, 1), strides=2, groups=32)
    assert plan(problem_of(case), "cpu").algorithm == "by_image"
    conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
    assert "stablehlo.while" in compiled_text(conv, case.x_shape, case.kernel_shape)


def test_large_images_are_taken_by_rows():
    case = layer("", 1, (112, 112), 128, 64, (4, 4), input_dilation=4, padding=(3, 0))
    assert plan(problem_of(case), "cpu").algorithm == "by_rows"
    conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
    bytes_needed = temporary_bytes(conv, case.x_shape, case.kernel_shape)
    assert bytes_needed < 8 << 20  # y has 51 MB


@pytest.mark.parametrize(
    ("taps", "channels_first", "algorithm"),
    [(2, True, "subpixel"), (3, True, "by_image"), (3, False, "depthwise")],
)
def test_phases_of_depthwise_layers_are_not_copied(taps, channels_first, algorithm):
    # Those of one tap XLA interleaves as it multiplies; 13 MB at once otherwise.
    case = layer("", 32, (56, 56), 32, 32, (taps, taps), strides=2, groups=32,
                 channels_first=channels_first)  # fmt: skip
    problem = problem_in(case, "input_gradient", jnp.float32)
    assert plan(problem, "cpu").algorithm == algorithm
    conv = functools.partial(jaxconv.lax.conv_general_dilated, **problem.spec.geometry)
    shapes = problem.x_shape, problem.kernel_shape
    assert temporary_bytes(conv, *shapes) < 5 << 20


def test_transforms_of_many_groups_are_taken_in_blocks():
    case = layer("", 4, (56, 56), 96, 96, (31, 31), groups=96, padding=(15, 15))

    def gradients(x, kernel):
        conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
        y, pull_back = jax.vjp(conv, x, kernel)
        return pull_back(y)

    bytes_needed = temporary_bytes(gradients, case.x_shape, case.kernel_shape)
    x_bytes = 4 * 4 * 56 * 56 * 96  # y is a temporary here, and old versions copy x
    assert bytes_needed < 3 * x_bytes + (8 << 20)  # 57 MB at once


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
@pytest.mark.parametrize("name", ["groups", "image", "1d"])
def test_transforms_of_large_windows_are_as_exact_as_sums(name, dtype, role):
    layers = {
        "groups": layer("", 2, (24, 25), 24, 24, (15, 15), groups=24, padding=(7, 7)),
        "image": layer("", 3, (40, 41), 1, 2, (17, 16), padding=(9, 3)),
        "1d": layer("", 2, (900,), 16, 16, (200,), groups=16, padding=(199, 0)),
    }
    with jax.enable_x64(dtype == jnp.float64):
        problem = problem_in(layers[name], role, dtype)
        generator = np.random.default_rng(0)
        x, kernel = (
            jnp.asarray(generator.normal(size=shape), dtype)
            for shape in (problem.x_shape, problem.kernel_shape)
        )
        y = fourier.run(problem, x, kernel, directly)
        assert y.dtype == dtype
        geometry = problem.spec.geometry
        expected = reference_conv(
            np.asarray(x, np.float64), np.asarray(kernel, np.float64), **geometry
        )
        terms = problem.channels * int(np.prod(problem.kernel_spatial))
        assert error_units(y, expected, dtype, terms) < 1


@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize("features", [1, 2, 9])
def test_products_of_few_features_are_as_exact_as_stock(channels, features):
    # In a row 12544 terms were up to 40 times as wrong.
    pointwise = layer("", 4, (56, 56), channels, features, (1, 1))
    problem = problem_in(pointwise, "kernel_gradient", jnp.float32)
    assert plan(problem, "cpu").algorithm == "product"
    generator = np.random.default_rng(0)
    x, kernel = (
        generator.uniform(0.5, 1.5, shape).astype(np.float32)
        for shape in (problem.x_shape, problem.kernel_shape)
    )
    geometry = problem.spec.geometry
    expected = reference_conv(x.astype(float), kernel.astype(float), **geometry)
    run = jax.jit(functools.partial(product.run, problem, conv=directly))
    stock = jax.jit(functools.partial(directly, problem.spec))
    error, stock_error = (
        np.abs(np.asarray(conv(x, kernel), float) - expected).max()
        for conv in (run, stock)
    )
    assert error <= 3 * stock_error + 1e-6 * np.abs(expected).max()


def test_depthwise_gradients_read_for_one_term_at_a_time():
    case = layer("", 8, (28, 28), 96, 96, (3, 3), groups=96, padding=(1, 1))
    problem = problem_in(case, "kernel_gradient", jnp.float32)
    run = functools.partial(depthwise_gradient.run, problem, conv=directly)
    operands = jnp.zeros(problem.x_shape), jnp.zeros(problem.kernel_shape)
    # What is read for all at once jax 0.10.2 writes down: 5 to 20 times as slow.
    reads = str(jax.make_jaxpr(run)(*operands)).count(" gather[")
    assert reads == depthwise_gradient.TERMS


def test_blocks_of_groups_are_copied_and_not_read_out_of_the_whole():
    case = layer("", 8, (28, 28), 256, 256, (3, 3), groups=32)
    problem = problem_in(case, "kernel_gradient", jnp.float32)
    run = functools.partial(ALGORITHMS["by_groups"].run, problem, conv=directly)
    operands = jnp.zeros(problem.x_shape), jnp.zeros(problem.kernel_shape)
    assert "optimization_barrier" in str(jax.make_jaxpr(run)(*operands))


@pytest.mark.parametrize("strides", [1, 2])
def test_rows_of_a_large_image_are_transformed_one_block_after_the_other(
    monkeypatch, costs, strides
):
    monkeypatch.setattr(by_rows, "BLOCK", 1 << 16)
    case = layer("", 1, (1 << 16,), 3, 2, (129,), strides=strides, padding=(100, 3))
    problem = problem_in(case, "forward", jnp.float32)
    x, kernel = map(
        jnp.asarray, draw(0, np.float32, problem.x_shape, problem.kernel_shape)
    )

    def transformed(spec, x, kernel, precision=None):
        rows = ConvProblem(spec, x.shape, kernel.shape, x.dtype)
        return fourier.run(rows, x, kernel, directly)

    def temporary(run):
        program = jax.jit(run).lower(x, kernel).compile()
        return program(x, kernel), costs(program)[1]

    y, of_rows = temporary(lambda x, k: by_rows.run(problem, x, k, transformed))
    whole, at_once = temporary(lambda x, k: fourier.run(problem, x, k, directly))
    expected = lax.conv_general_dilated(x, kernel, **case.geometry)
    tolerance = 1e-5 * float(jnp.abs(expected).max())
    chex.assert_trees_all_close(y, expected, atol=tolerance)
    chex.assert_trees_all_close(whole, expected, atol=tolerance)
    assert 2 * of_rows < at_once


@pytest.mark.parametrize(
    ("points", "algorithm", "narrow"),
    [(1, "swap", "trim"), (2, "swap", "swap"), (4, "pad", "pad")],
)
def test_windows_of_more_taps_than_the_input_has_entries(points, algorithm, narrow):
    case = layer("", 8, (points, points), 64, 64, (5, 5), padding=(2, 2))
    for kind in Processor:
        chosen = plan(problem_of(case), "cpu", processor=kind).algorithm
        assert chosen == (narrow if kind is Processor.NARROW else algorithm), kind
    conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
    text = compiled_text(conv, case.x_shape, case.kernel_shape)
    for window in re.findall(r"convolution\(.*pad = (\[\[.*?\]\])", text):
        assert set(window) <= set("[0, ]")


def test_direct_emits_the_program_of_stock_jax():
    case = next(case for case in CASES if case.name == "2d.strided-dilated")
    texts = [
        compiled_text(
            functools.partial(conv, **case.geometry), case.x_shape, case.kernel_shape
        )
        for conv in (jaxconv.lax.conv_general_dilated, lax.conv_general_dilated)
    ]
    ours, stock = (
        [line for line in text.splitlines() if "stablehlo." in line] for text in texts
    )
    assert ours == stock


def test_programs_say_how_arrays_stand_unless_they_are_exported():
    case = layer("", 8, (14, 14), 32, 64, (3, 3), channels_first=True)
    conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
    gradients = jax.jit(jax.grad(lambda x, k: conv(x, k).sum(), (0, 1)))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32)
              for shape in (case.x_shape, case.kernel_shape)]  # fmt: skip
    constraint = "LayoutConstraint"
    traced = gradients.trace(*arrays)
    assert constraint in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert constraint not in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert constraint not in jax.export.export(gradients)(*arrays).mlir_module()


@pytest.mark.parametrize(
    ("images", "features", "taps", "groups"),
    [(2, 64, 1, "f32[4,512,64]"), (4, 64, 2, "f32[2,512,256]"), (2, 32, 1, None)],
)
def test_many_terms_are_added_up_in_groups(integers, images, features, taps, groups):
    case = layer("", images, (32, 32), 64, features, (taps, taps), strides=taps)
    problem = problem_in(case, "kernel_gradient", jnp.float32)
    ours, stock = (
        jax.jit(functools.partial(compute, problem, algorithm, lambda _: "direct"))
        for algorithm in ("patches_gradient", "direct")
    )
    operands = integers(*problem.x_shape), integers(*problem.kernel_shape)
    program = str(jax.make_jaxpr(ours)(*operands))
    assert groups in program if groups else "f32[2,512," not in program
    np.testing.assert_array_equal(ours(*operands), stock(*operands))


def test_arrays_whose_channels_stand_first_are_copied_once():
    case = layer("", 8, (32, 32), 256, 16, (3, 3), channels_first=True)
    problem = problem_in(case, "forward", jnp.float32)

    def choose(inner):
        ordered = inner.spec.dimension_numbers.lhs_spec[1] == 3
        return "by_image" if ordered and inner.batch == 8 else "direct"

    run = functools.partial(compute, problem, "channels_last", choose)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32)
              for shape in (problem.x_shape, problem.kernel_shape)]  # fmt: skip
    analysis: Any = jax.jit(run).lower(*arrays).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 1.7 * 4 * np.prod(problem.x_shape)


@pytest.mark.parametrize(("role", "planned"), [("input_gradient", 1),
                                              ("kernel_gradient", 0)])  # fmt: skip
def test_only_layers_are_planned_anew_once_their_axes_are_in_order(
    integers, role, planned
):
    problem = problem_in(layer("", 8, (50,), 16, 24, (5,)), role, jnp.float32)
    asked = []

    def choose(inner):
        asked.append(inner)
        return "direct"

    x, kernel = integers(*problem.x_shape), integers(*problem.kernel_shape)
    run = jax.jit(functools.partial(compute, problem, "channels_last", choose))
    stock = lax.conv_general_dilated(x, kernel, **problem.spec.geometry)
    np.testing.assert_array_equal(run(x, kernel), stock)
    assert len(asked) == planned


def test_exchanged_operands_keep_their_precisions():
    pair = (lax.Precision.HIGHEST, lax.Precision.DEFAULT)
    problem = dataclasses.replace(
        problem_in(CASES[0], "forward", np.float32), precision=pair
    )
    x, kernel = (jnp.ones(shape) for shape in (problem.x_shape, problem.kernel_shape))
    found = []

    def conv(spec, x, kernel, precision=None):
        found.append((x.shape, precision))
        return directly(spec, x, kernel, precision)

    swap.run(problem, x, kernel, conv)
    assert found == [(kernel.shape, pair[::-1])]


@pytest.mark.parametrize(
    ("points", "algorithm"), [(2400, "subpixel"), (2401, "by_image")]
)
def test_phases_that_lie_in_place_are_not_divided(points, algorithm, costs):
    layers = layer("", 32, (points,), 64, 32, (3,), strides=3, padding=(0, 2))
    problem = problem_in(layers, "input_gradient", np.dtype("float32"))
    assert plan(problem, "cpu").algorithm == algorithm
    operands = problem.x_shape, problem.kernel_shape
    types = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in operands]
    run = functools.partial(subpixel.run, problem, conv=directly)
    _, taken = costs(jax.jit(run).lower(*types).compile())
    written = 4 * np.prod(problem.output_shape)
    assert (taken < written / 10) == (algorithm == "subpixel")
