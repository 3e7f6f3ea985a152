"""Every algorithm equals the reference wherever it applies; the planner chooses."""

import dataclasses
import functools
import re
import time
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jax import lax

import jaxconv
import jaxconv.lax
from jaxconv.algorithms import (
    ALGORITHMS,
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
    slices_gradient,
    stencil,
    subpixel,
    swap,
)
from jaxconv.algorithms.subpixel import phases
from jaxconv.arguments import Caller, conv_spec
from jaxconv.bench import ROLES, layer
from jaxconv.bench.rows import problem_of as problem_in
from jaxconv.cases import CASES, ConvCase, random_case
from jaxconv.planner import plan
from jaxconv.planner.cpu.gradients import IS_EIGEN
from jaxconv.processor import Processor
from jaxconv.spec import FIELDS, ConvProblem
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
        layer("1d.features", 4, (7,), 2, 8, (5,), padding=(2, 1)),
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
TABLE = [
    *CASES,
    *map(random_case, range(100, 147)),
    *DEPTHWISE,
    *POINTWISE,
    *OUTERMOST,
    *SUMS,
    *GRADIENTS,
    layer("1d.channels", 2, (9,), 7, 4, (3,), padding=(1, 0)),
    layer("2d.small", 2, (2, 3), 4, 5, (6, 5), padding=(4, 3)),
]


def geometry_of(problem):
    return {field: getattr(problem.spec, field) for field in FIELDS}


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
    patches: {"PATCHES": 256},
    patches_gradient: {"PATCHES": 256},
    per_group: {"BLOCK": 1 << 10},
    stencil: {"BLOCK": 1 << 10, "TERMS": 3},
    pointwise_groups: {"BLOCK": 64},
    product: {"CHAINS": ((2, 4), (4, 3))},
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
SPREADING = ("fourier", "slices_gradient", "subpixel", "swap")


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
    fewer = {"empty": 2, "product": 5, "shifts": 9, "by_output": 9}
    assert applied >= fewer.get(name, 10)


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


@pytest.mark.parametrize("rank", [2, 3])
def test_nothing_is_exchanged_twice(rank):
    # A window larger than its input is exchanged with it, and what is cheaper so.
    generator, swapped = np.random.default_rng(0), 0
    axes = "DHW"[-rank:]
    layout = (f"CN{axes}", f"I{axes}O", f"NC{axes}")  # of a kernel gradient
    for _ in range(2000):
        batch, channels, features = (2 ** generator.integers(0, 6, 3)).tolist()
        size, taps = generator.integers(1, 6, (2, rank)).tolist()
        low, high = generator.integers(0, 6, (2, rank)).tolist()
        dilation = generator.integers(1, 3, rank).tolist()  # of a strided layer
        x_shape, kernel_shape = (
            (channels, batch, *size),
            (channels, *taps, features),
        )
        geometry = {
            "window_strides": (1,) * rank,
            "padding": list(zip(low, high, strict=True)),
            "rhs_dilation": dilation,
            "dimension_numbers": layout,
        }
        spec = conv_spec(Caller("t"), x_shape, kernel_shape, **geometry)
        problem = ConvProblem(spec, x_shape, kernel_shape, np.dtype("float32"))
        if plan(problem, "cpu").algorithm == "swap":
            again = plan(swap.swapped_problem(problem), "cpu").algorithm
            assert again != "swap", problem
            swapped += 1
    assert swapped > 100


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


@pytest.mark.parametrize("processor", Processor)
def test_a_block_of_all_images_is_not_taken_for_a_part(processor):
    # Its transforms are too large, its images are not: one block would be all of it.
    case = layer("", 2, (100, 100), 8, 32, (100, 100), padding=(10, 10),
                 channels_first=True)  # fmt: skip
    assert by_image.of_block(problem_of(case))[0] == 1
    assert plan(problem_of(case), "cpu", processor=processor).algorithm == "fourier"


def kinds_planning(algorithm: str, problem: ConvProblem) -> set[Processor]:
    """The processors on which the algorithm is planned."""
    return {
        kind
        for kind in Processor
        if plan(problem, "cpu", processor=kind).algorithm == algorithm
    }


def test_transforms_are_weighed_by_what_they_take_on_a_processor():
    for channels, taps, known in (
        (3, 11, set(Processor)),
        (8, 9, {Processor.WIDE_AMD}),
    ):
        half, shape = taps // 2, (channels, 8, (taps, taps))
        problem = problem_of(layer("", 1, (50, 50), *shape, padding=(half, half)))
        assert kinds_planning("fourier", problem) == known, channels


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
    conv = functools.partial(jaxconv.lax.conv_general_dilated, **geometry_of(problem))
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
        geometry = geometry_of(problem)
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
    geometry = geometry_of(problem)
    expected = reference_conv(x.astype(float), kernel.astype(float), **geometry)
    run = jax.jit(functools.partial(product.run, problem, conv=directly))
    stock = jax.jit(functools.partial(directly, problem.spec))
    error, stock_error = (
        np.abs(np.asarray(conv(x, kernel), float) - expected).max()
        for conv in (run, stock)
    )
    assert error <= 3 * stock_error + 1e-6 * np.abs(expected).max()


def test_products_of_few_columns_are_left_to_convolutions_by_processor():
    others = set(Processor) - {Processor.WIDE_AMD}
    for shape, known in (
        ((8, 24, (1, 1)), set()),
        ((96, 3, (1, 1)), others),
        ((8, 3, (28, 28)), others),
        ((96, 64, (1, 1)), set(Processor)),
    ):
        problem = problem_of(layer("", 8, (28, 28), *shape))
        assert kinds_planning("product", problem) == known, shape


def test_phases_are_weighed_by_what_their_products_take_on_a_processor():
    for channels, known in (
        (512, set(Processor) - {Processor.HALVED}),
        (16, set(Processor)),
    ):
        case = layer(
            "", 4, (2048,), channels, channels, (3,), strides=2, padding=(1, 1)
        )
        problem = problem_in(case, "input_gradient", jnp.float32)
        assert kinds_planning("subpixel", problem) == known, channels


@pytest.mark.parametrize(
    ("images", "size", "features", "taps", "algorithm"),
    [
        (8, 56, 48, 3, "channels_last"),
        (64, 40, 48, 5, "patches_gradient"),  # more than its caches hold
        (4, 48, 16, 5, "patches_gradient"),  # which do not fill its vectors
    ],
)
def test_kernel_gradients_of_a_few_channels_are_left_to_xla_where_it_is_fast(
    images, size, features, taps, algorithm
):
    half, shape = taps // 2, (3, features, (taps, taps))
    case = layer("", images, (size, size), *shape, padding=(half, half))
    problem = problem_in(case, "kernel_gradient", jnp.float32)
    assert plan(problem, "cpu", processor=Processor.HALVED).algorithm == algorithm


@pytest.mark.parametrize("taps", [5, 9])
def test_few_groups_of_many_images_are_left_to_xla_whatever_their_taps(taps):
    half, shape = taps // 2, (8, 8, (taps, taps))
    case = layer("", 64, (28, 28), *shape, strides=2, groups=8, padding=(half, half))
    problem = problem_in(case, "kernel_gradient", jnp.float32)
    for kind in set(Processor) - {Processor.WIDE_AMD}:
        assert plan(problem, "cpu", processor=kind).algorithm == "direct"


def test_depthwise_gradients_read_for_one_term_at_a_time():
    case = layer("", 8, (28, 28), 96, 96, (3, 3), groups=96, padding=(1, 1))
    problem = problem_in(case, "kernel_gradient", jnp.float32)
    run = functools.partial(depthwise_gradient.run, problem, conv=directly)
    operands = jnp.zeros(problem.x_shape), jnp.zeros(problem.kernel_shape)
    # What is read for all at once jax 0.10.2 writes down: 5 to 20 times as slow.
    reads = str(jax.make_jaxpr(run)(*operands)).count(" gather[")
    assert reads == depthwise_gradient.TERMS


BLOCKWISE = {Processor.NARROW, Processor.HALVED}


def test_groups_of_a_large_input_are_copied_in_blocks_on_some_processors():
    for images, taps, known in (
        (8, (3, 3), BLOCKWISE),
        (8, (1, 1), set()),
        (2, (3, 3), set()),
    ):
        case = layer("", images, (28, 28), 256, 256, taps, groups=32)
        problem = problem_in(case, "kernel_gradient", jnp.float32)
        assert kinds_planning("by_groups", problem) == known, (images, taps)


def test_blocks_of_groups_are_copied_and_not_read_out_of_the_whole():
    case = layer("", 8, (28, 28), 256, 256, (3, 3), groups=32)
    problem = problem_in(case, "kernel_gradient", jnp.float32)
    run = functools.partial(ALGORITHMS["by_groups"].run, problem, conv=directly)
    operands = jnp.zeros(problem.x_shape), jnp.zeros(problem.kernel_shape)
    assert "optimization_barrier" in str(jax.make_jaxpr(run)(*operands))


def test_images_of_many_taps_are_padded_in_blocks_on_some_processors():
    for images, channels, taps, known in (
        (8, 96, 7, BLOCKWISE),
        (8, 192, 7, set()),
        (8, 96, 5, set()),
        (2, 96, 7, set()),
    ):
        half, shape = taps // 2, (channels, channels, (taps, taps))
        case = layer(
            "", images, (56, 56), *shape, groups=channels, padding=(half, half)
        )
        for role in ("forward", "input_gradient"):
            problem = problem_in(case, role, jnp.float32)
            kinds = kinds_planning("by_image", problem)
            assert kinds == known, (images, channels, taps)


def test_transforms_that_take_much_memory_are_of_some_images_or_rows():
    images = layer("", 8, (256, 256), 1, 16, (21, 21), padding=(10, 10))
    image = layer("", 1, (2048, 2048), 1, 1, (21, 21), padding=(10, 10))
    for case, part in ((images, "by_image"), (image, "by_rows")):
        # A kernel gradient adds up all of an image, and has nothing to be divided.
        for role, known in zip(ROLES, (part, part, "fourier"), strict=True):
            problem = problem_in(case, role, jnp.float32)
            chosen = plan(problem, "cpu", processor=Processor.WIDE_AMD)
            assert chosen.algorithm == known, role
            assert "transforms" in chosen.reason


def test_transforms_of_a_block_are_planned_where_they_are_run_alone():
    # A block of it is computed by rows of phases, and not by transforms.
    case = layer("", 2, (317, 1017), 1, 16, (21, 300), input_dilation=2,
                 padding=(10, 150))  # fmt: skip
    problem = problem_in(case, "forward", jnp.float32)
    assert "transforms" not in plan(problem, "cpu").reason


def test_patches_of_a_kernel_gradient_copy_less_than_2_gb_of_the_input():
    image = layer("", 1, (16384, 16384), 1, 4, (3, 3), padding=(1, 1))
    problem = problem_in(image, "kernel_gradient", jnp.float32)  # 1 GB
    assert patches_gradient.applies(problem)
    wider = dataclasses.replace(problem, dtype=np.dtype("float64"))
    assert not patches_gradient.applies(wider)


def test_a_dense_layer_too_large_for_patches_is_no_depthwise_gradient():
    large = layer("", 1, (16384, 16384), 3, 4, (3, 3), padding=(1, 1))
    for kind in Processor:
        problem = problem_in(large, "forward", jnp.float32)
        assert plan(problem, "cpu", processor=kind).algorithm == "direct"


def test_large_transposed_windows_are_not_left_to_loops():
    case = layer("", 1, (4000,), 1, 8, (6000,), input_dilation=2,
                 padding=(3000, 3000))  # fmt: skip
    assert plan(problem_in(case, "forward", jnp.float32), "cpu").algorithm == "fourier"


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


def test_the_highest_precision_is_left_to_sums():
    highest = (lax.Precision.HIGHEST,) * 2
    for platform in ("cpu", "gpu"):
        problem = problem_in(LAYERS["large"], "forward", jnp.float32)
        assert "transforms" in plan(problem, platform).reason
        problem = dataclasses.replace(problem, precision=highest)
        assert "transforms" not in plan(problem, platform).reason


def test_few_outputs_of_many_weights_are_single_products():
    late = layer("", 1, (7, 7), 1024, 256, (3, 3), padding=(1, 1))
    early = layer("", 8, (28, 28), 128, 128, (3, 3), padding=(1, 1))
    # Patches take the kernel as a layer has it, and its gradient as it lies there.
    for role, known in zip(ROLES, ("patches", "overlap_add"), strict=False):
        assert plan(problem_in(late, role, jnp.float32), "cpu").algorithm == known
        assert plan(problem_in(early, role, jnp.float32), "cpu").algorithm != known


@pytest.mark.parametrize(
    ("points", "algorithm"), [(1, "swap"), (2, "swap"), (4, "pad")]
)
def test_windows_of_more_taps_than_the_input_has_entries(points, algorithm):
    case = layer("", 8, (points, points), 64, 64, (5, 5), padding=(2, 2))
    assert plan(problem_of(case), "cpu").algorithm == algorithm
    conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
    text = compiled_text(conv, case.x_shape, case.kernel_shape)
    for window in re.findall(r"convolution\(.*pad = (\[\[.*?\]\])", text):
        assert set(window) <= set("[0, ]")


@pytest.mark.parametrize(
    ("features", "padding", "algorithm"),
    [(32, 2, "pad"), (32, 0, "direct"), (12, 2, "stencil"), (12, 0, "stencil")],
)
def test_zeros_are_laid_around_one_channel(features, padding, algorithm):
    case = layer("", 64, (28, 28), 1, features, (5, 5), padding=(padding, padding))
    assert plan(problem_of(case), "cpu").algorithm == algorithm


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


def test_other_platforms_get_the_stock_program():
    case = next(case for case in CASES if case.name == "2d.transposed-grouped")
    assert plan(problem_of(case), "tpu").algorithm == "direct"
    conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
    arrays = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (case.x_shape, case.kernel_shape)
    ]
    for platform, dilated in {"cuda": True, "tpu": True, "cpu": False}.items():
        exported = jax.export.export(
            jax.jit(conv),
            platforms=[platform],
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("")],
        )(*arrays)
        assert ("lhs_dilate" in exported.mlir_module()) is dilated


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


@pytest.mark.parametrize(
    ("images", "channels", "features", "taps", "narrow", "wide"),
    [
        ((8, 115, 115), 64, 12, 4, "overlap_slices", "overlap_slices"),
        ((8, 64, 64), 64, 3, 7, "direct", "overlap_slices"),
        ((8, 28, 28), 64, 3, 7, "overlap_slices", "overlap_slices"),
        ((8, 56, 56), 64, 64, 3, "direct", "direct"),
        ((8, 115, 115), 8, 40, 4, "direct", "direct"),
    ],
)
def test_few_features_are_added_up_by_slices(
    images, channels, features, taps, narrow, wide
):
    batch, *spatial = images
    case = layer("", batch, spatial, channels, features, (taps, taps))
    problem = problem_in(case, "forward", jnp.float32)
    for processor, expected in {
        Processor.NARROW: narrow,
        Processor.WIDE_AMD: wide,
    }.items():
        assert plan(problem, "cpu", processor=processor).algorithm == expected


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("2d.same", "direct"),
        ("3d.transposed", "subpixel"),
        ("2d.depthwise", "shifts"),
        ("2d.negative", "crop"),
        ("2d.1x1", "direct"),
        ("4d.valid", "stencil"),
        ("2d.no-output", "empty"),
    ],
)
def test_plan_on_cpu(name, algorithm):
    case = next(case for case in CASES if case.name == name)
    chosen = plan(problem_of(case), "cpu")
    assert chosen.algorithm == algorithm
    assert ALGORITHMS[chosen.algorithm].applies(problem_of(case))
    assert chosen.reason


LAYERS = {
    "dense": layer("", 8, (56, 56), 64, 64, (3, 3), padding=(1, 1)),
    "strided": layer("", 8, (56, 56), 128, 128, (3, 3), strides=2, padding=(1, 1)),
    "stem": layer("", 8, (224, 224), 3, 64, (7, 7), strides=2, padding=(3, 3)),
    "1x1": layer("", 8, (14, 14), 256, 128, (1, 1)),
    "1x1s2": layer("", 8, (56, 56), 256, 512, (1, 1), strides=2),
    "depthwise": layer("", 8, (56, 56), 96, 96, (3, 3), groups=96, padding=(1, 1)),
    "depthwise.s2": layer("", 8, (56, 56), 96, 96, (3, 3), strides=2, groups=96),
    "depthwise.nchw": layer("", 8, (56, 56), 96, 96, (3, 3), groups=96,
                            padding=(1, 1), channels_first=True),
    "depthwise.nchw.s2": layer("", 8, (56, 56), 96, 96, (3, 3), strides=2, groups=96,
                               padding=(1, 1), channels_first=True),
    "depthwise.rgb": layer("", 8, (112, 112), 3, 3, (5, 5), groups=3, padding=(2, 2)),
    "grouped.nchw": layer("", 8, (56, 56), 128, 128, (3, 3), strides=2, groups=32,
                          padding=(1, 1), channels_first=True),
    "dense.nchw": layer("", 8, (56, 56), 64, 64, (3, 3), channels_first=True),
    "multiplier": layer("", 8, (28, 28), 64, 128, (3, 3), groups=64, padding=(1, 1)),
    "grouped": layer("", 8, (28, 28), 256, 256, (3, 3), groups=32, padding=(1, 1)),
    "patch": layer("", 8, (224, 224), 3, 768, (16, 16), strides=16),
    "transposed": layer("", 8, (16, 16), 128, 64, (4, 4), input_dilation=2,
                        padding=(2, 2)),
    "3d": layer("", 1, (32, 32, 32), 32, 32, (3, 3, 3), padding=(1, 1)),
    "3d.s2": layer("", 1, (32, 32, 32), 32, 64, (2, 2, 2), strides=2),
    "4d": layer("", 1, (8, 8, 8, 8), 16, 16, (3, 3, 3, 3)),
    "few": layer("", 4, (128, 128), 1, 1, (7, 7), padding=(3, 3)),
    "3d.few": layer("", 2, (32, 32, 32), 1, 8, (3, 3, 3), padding=(1, 1)),
    "3x3.to-few": layer("", 1, (32, 32), 256, 16, (3, 3), padding=(1, 1)),
    "1x1g2": layer("", 8, (28, 28), 128, 128, (1, 1), groups=2),
    "multiplier.3d": layer("", 4, (16, 16, 16), 16, 128, (3, 3, 3), groups=16,
                           padding=(1, 1)),
    "1x1g2.nchw": layer("", 8, (28, 28), 64, 128, (1, 1), groups=2, strides=2,
                        channels_first=True),
    "grouped.to-few": layer("", 8, (28, 28), 512, 64, (3, 3), groups=8, padding=(1, 1)),
    "depthwise7.s2": layer("", 8, (56, 56), 32, 32, (7, 7), groups=32, strides=2,
                           padding=(3, 3)),
    "large": layer("", 2, (56, 56), 64, 64, (31, 31), groups=64, padding=(15, 15)),
    "image": layer("", 1, (512, 512), 1, 1, (21, 21), padding=(10, 10)),
    "3d.to-few": layer("", 16, (28, 28, 28), 16, 2, (2, 2, 2), dilation=2,
                       padding=(1, 1)),
    "images": layer("", 16, (75, 75), 16, 1, (5, 5), padding=(2, 2)),
    "one.g16": layer("", 2, (16, 16), 512, 16, (3, 3), strides=2, groups=16,
                     padding=(1, 1)),
    "3d.dw5s2": layer("", 1, (32, 32, 32), 16, 16, (5, 5, 5), strides=2, groups=16,
                      padding=(2, 2)),
    "3d.one": layer("", 1, (64, 64, 32), 1, 64, (3, 3, 3), strides=2,
                    padding=(1, 1)),
    "3d.wide": layer("", 2, (14, 14, 14), 4, 128, (2, 2, 2), padding=(1, 1)),
    "multiplier.s3": layer("", 64, (36, 35), 8, 64, (5, 5), strides=3, groups=8,
                           padding=(2, 2)),
    "multiplier.rgb": layer("", 8, (56, 56), 3, 6, (7, 7), groups=3, dilation=2,
                            padding=(6, 6)),
    "scaled": layer("", 8, (112, 112), 8, 8, (1, 1), groups=8),
    "grouped.1d.nchw": layer("", 64, (4001,), 4, 32, (5,), strides=2, groups=4,
                             channels_first=True),
    "large.transposed": layer("", 4, (7, 7), 512, 64, (9, 9), input_dilation=3,
                              padding=(8, 6)),
    "1x1g4.to-one": layer("", 8, (28, 28), 64, 4, (1, 1), groups=4),
    "1x1g4.to-one.s2": layer("", 8, (28, 28), 32, 4, (1, 1), strides=2, groups=4),
    "1x1g16.to-one.nchw": layer("", 8, (28, 28), 32, 16, (1, 1), groups=16,
                                channels_first=True),
    "cropped": layer("", 2, (57, 56), 128, 32, (3, 3), strides=4),
    "3d.g4.to-one": layer("", 2, (21, 15, 18), 128, 4, (3, 3, 3), dilation=4, groups=4,
                          padding=(4, 4)),
    "3d.one.images": layer("", 64, (14, 20, 10), 1, 8, (3, 3, 3), strides=2,
                           padding=(1, 1)),
    "3d.dw3s3": layer("", 8, (13, 10, 14), 24, 24, (3, 3, 3), strides=3, groups=24,
                      padding=(1, 1)),
    "transposed.g2": layer("", 8, (41, 18), 8, 2, (2, 2), input_dilation=4, groups=2,
                           padding=(1, 1)),
    "1d.even.first": layer("", 16, (2048,), 96, 8, (4,), padding=(2, 2),
                           channels_first=True),
    "to-one.s2": layer("", 16, (14, 28), 512, 1, (5, 5), strides=2, padding=(2, 2)),
}  # fmt: skip
WELL_RUN = {
    Processor.HALVED: ("dense", "dense.nchw"),
    Processor.WIDE_AMD: ("dense", "stem", "dense.nchw"),
}
UNSUMMED = {"images": "stencil", "1d.even.first": "channels_last"}
ESTIMATED = (
    "multiplier.3d",
    "multiplier.rgb",
    "grouped.1d.nchw",
    "3d.wide",
    "1x1g4.to-one",
    "1x1g16.to-one.nchw",
)


@pytest.mark.parametrize(
    ("name", "forward", "input_gradient", "kernel_gradient"),
    [
        ("dense", "direct", "channels_last", "patches_gradient"),
        ("strided", "direct", "channels_last", "patches_gradient"),
        ("stem", "direct", "subpixel", "patches_gradient"),
        ("1x1", "product", "product", "product"),
        ("1x1s2", "direct", "overlap_add", "patches_gradient"),
        ("depthwise", "depthwise", "depthwise", "depthwise_gradient"),
        ("depthwise.s2", "depthwise", "depthwise", "depthwise_gradient"),
        ("depthwise.nchw", "shifts", "shifts", "depthwise_gradient"),
        ("depthwise.nchw.s2", "shifts", "by_image", "depthwise_gradient"),
        ("depthwise.rgb", "shifts", "shifts", "depthwise_gradient"),
        ("grouped.nchw", "stencil", "by_image", "patches_gradient"),
        ("dense.nchw", "channels_last", "channels_last", "patches_gradient"),
        ("multiplier", "depthwise", "depthwise", "depthwise_gradient"),
        ("grouped", "stencil", "stencil", "patches_gradient"),
        ("1x1g2", "pointwise_groups", "pointwise_groups", "patches_gradient"),
        ("1x1g4.to-one", "pointwise_groups", "by_tap", "patches_gradient"),
        ("1x1g4.to-one.s2", "pointwise_groups", "by_tap", "patches_gradient"),
        ("1x1g16.to-one.nchw", "pointwise_groups", "by_tap", "patches_gradient"),
        ("1x1g2.nchw", "pointwise_groups", "subpixel", "patches_gradient"),
        ("multiplier.3d", "by_image", "stencil", "patches_gradient"),
        ("grouped.to-few", "per_group", "per_group", "swap"),
        ("depthwise7.s2", "depthwise", "subpixel", "depthwise_gradient"),
        ("patch", "direct", "subpixel", "patches_gradient"),
        ("transposed", "subpixel", "channels_last", "swap"),
        ("3d", "overlap_slices", "overlap_slices", "slices_gradient"),
        ("3d.s2", "patches", "subpixel", "patches_gradient"),
        ("4d", "patches", "patches", "slices_gradient"),
        ("few", "stencil", "stencil", "fourier"),
        ("3d.few", "stencil", "stencil", "slices_gradient"),
        ("3x3.to-few", "overlap_add", "channels_last", "swap"),
        ("large", "by_groups", "by_groups", "by_groups"),
        ("image", "fourier", "fourier", "fourier"),
        ("images", "by_image", "stencil", "swap"),
        ("3d.to-few", "by_image", "stencil", "swap"),
        ("one.g16", "patches", "subpixel", "patches_gradient"),
        ("3d.dw5s2", "depthwise", "subpixel", "depthwise_gradient"),
        ("3d.one", "patches", "subpixel", "patches_gradient"),
        ("3d.wide", "patches", "overlap_add", "slices_gradient"),
        ("multiplier.s3", "by_image", "subpixel", "patches_gradient"),
        ("multiplier.rgb", "stencil", "stencil", "fourier"),
        ("scaled", "by_tap", "by_tap", "by_output"),
        ("grouped.1d.nchw", "stencil", "subpixel", "by_groups"),
        ("large.transposed", "subpixel", "patches", "swap"),
        ("cropped", "direct", "channels_last", "patches_gradient"),
        ("to-one.s2", "direct", "by_image", "swap"),
        ("3d.g4.to-one", "stencil", "depthwise", "swap"),
        ("3d.one.images", "stencil", "subpixel", "patches_gradient"),
        ("3d.dw3s3", "depthwise", "subpixel", "depthwise_gradient"),
        ("transposed.g2", "subpixel", "stencil", "swap"),
        ("1d.even.first", "overlap_add", "channels_last", "swap"),
    ],
)
def test_what_was_measured_to_be_fast_is_planned(
    name, forward, input_gradient, kernel_gradient
):
    expected = (forward, input_gradient, kernel_gradient)
    for role, algorithm in zip(ROLES, expected, strict=True):
        problem = problem_in(LAYERS[name], role, jnp.float32)
        for kind in Processor:
            if IS_EIGEN and role == "kernel_gradient" and name in ("strided", "stem"):
                continue  # those of older versions are as fast on some processors
            fast = algorithm
            if role == "kernel_gradient" and name in WELL_RUN.get(kind, ()):
                fast = "channels_last"  # XLA's own routine is as fast as any
            if (name, role) == ("grouped", "kernel_gradient") and kind in BLOCKWISE:
                fast = "by_groups"  # whose lines of the cache do not stay there
            if role == "forward" and kind is Processor.HALVED:
                fast = UNSUMMED.get(name, fast)  # sums of slices take longer there
            measured = kind is Processor.WIDE_AMD or name not in ESTIMATED
            if role == "kernel_gradient" and not measured:
                continue  # by estimates of another processor
            chosen = plan(problem, "cpu", processor=kind).algorithm
            assert chosen == fast, (role, kind)
        # What XLA partitions by itself is left to it, and so are other platforms.
        partitioned = plan(problem, "cpu", devices=4).algorithm
        assert partitioned in ("direct", "by_tap", "crop")
        assert plan(problem, "tpu").algorithm in ("direct", "crop")


GPU = {
    "1d": (layer("", 2, (9,), 4, 4, (3,), groups=4, dilation=2),
           "depthwise", "depthwise", "by_output"),
    "1d.first": (layer("", 2, (9,), 4, 4, (3,), groups=4, channels_first=True),
                 "shifts", "shifts", "by_output"),
    "1d.dilated": (layer("", 2, (20,), 4, 8, (2,), dilation=8),
                   "direct", "direct", "patches_gradient"),
    "2d": (layer("", 2, (9, 9), 4, 4, (3, 3), groups=4),
           "direct", "direct", "direct"),
    "2d.strided": (layer("", 2, (9, 9), 4, 4, (3, 3), groups=4, strides=2),
                   "direct", "depthwise", "direct"),
    "2d.first": (layer("", 2, (9, 9), 4, 4, (3, 3), groups=4, channels_first=True),
                 "shifts", "shifts", "direct"),
    "2d.groups": (layer("", 2, (9, 9), 4, 4, (3, 3), groups=2),
                  "direct", "direct", "direct"),
    "2d.1x1": (layer("", 2, (9, 9), 4, 4, (1, 1), groups=2),
               "by_tap", "by_tap", "direct"),
    "2d.stem": (layer("", 2, (9, 9), 3, 16, (3, 3), strides=2),
                "direct", "subpixel", "direct"),
    "2d.transposed": (layer("", 2, (9, 9), 16, 16, (3, 3), input_dilation=2),
                      "direct", "direct", "swap"),
    "3d": (layer("", 1, (5, 5, 5), 16, 16, (3, 3, 3), strides=2),
           "direct", "subpixel", "direct"),
    "4d": (layer("", 1, (4, 4, 4, 4), 2, 3, (2, 2, 2, 2)), *("fold_depth",) * 3),
    "4d.groups": (layer("", 1, (4, 4, 4, 4), 4, 4, (2, 2, 2, 2), groups=2),
                  "patches", "patches", "patches_gradient"),
    "4d.depthwise": (layer("", 1, (4, 4, 4, 4), 2, 2, (2, 2, 2, 2), groups=2),
                     "depthwise", "depthwise", "patches_gradient"),
    "1d.large": (layer("", 4, (1024,), 32, 32, (256,), groups=32, padding=(255, 0)),
                 "fourier", "fourier", "fourier"),
    "2d.large": (layer("", 8, (28, 28), 32, 32, (13, 13), groups=32, padding=(6, 6)),
                 "fourier", "fourier", "fourier"),
    "2d.known": (layer("", 8, (28, 28), 96, 96, (7, 7), groups=96, padding=(3, 3)),
                 "direct", "direct", "fourier"),
    "2d.image": (layer("", 4, (300, 300), 1, 1, (5, 5), padding=(2, 2)),
                 "direct", "direct", "direct"),
    # Larger windows than outputs, and no kernel gradients.
    "1d.patch": (layer("", 2, (12,), 4, 4, (8,), strides=4),
                 "direct", "subpixel", "direct"),
    "2d.small": (layer("", 2, (2, 2), 16, 16, (5, 5), input_dilation=2,
                       padding=(2, 2)),
                 "direct", "direct", "direct"),
}  # fmt: skip


@pytest.mark.parametrize("name", GPU)
def test_plan_on_gpus(name):
    case, *expected = GPU[name]
    plans = [plan(problem_in(case, role, jnp.float32), "gpu") for role in ROLES]
    assert [chosen.algorithm for chosen in plans] == expected


def test_programs_for_gpus_follow_their_rules():
    case, *_ = GPU["1d"]
    conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32)
              for shape in (case.x_shape, case.kernel_shape)]  # fmt: skip
    for platform, convolves in {"cuda": False, "tpu": True}.items():
        exported = jax.export.export(jax.jit(conv), platforms=[platform])(*arrays)
        assert ("stablehlo.convolution" in exported.mlir_module()) is convolves


def chosen_on_gpus(problem):
    """The algorithm of the plan for a GPU."""
    chosen = plan(problem, "gpu").algorithm
    # Of more axes, XLA:GPU ends the process.
    assert chosen != "direct" or len(problem.x_spatial) <= 3
    return chosen


@pytest.mark.parametrize("role", ROLES)
def test_plans_on_gpus_equal_the_reference(role, integers):
    others = [case for case, *_ in GPU.values()]
    for case in (*others, *CASES, *map(random_case, range(400, 440))):
        problem = problem_in(case, role, jnp.float32)
        if 0 in (*problem.x_shape, *problem.kernel_shape):
            continue
        x, kernel = integers(*problem.x_shape), integers(*problem.kernel_shape)
        name = chosen_on_gpus(problem)
        run = jax.jit(functools.partial(compute, problem, name, chosen_on_gpus))
        y = np.asarray(run(x.astype(np.float32), kernel.astype(np.float32)))
        if name == "fourier":  # which rounds
            np.testing.assert_allclose(y, np.rint(y), atol=1e-2)
            y = np.rint(y)
        geometry = geometry_of(problem)
        expected = reference_conv(x, kernel, **geometry)
        np.testing.assert_array_equal(y, expected, err_msg=case.name)


@pytest.mark.parametrize(
    ("name", "dtype", "algorithm"),
    [
        ("dense", np.float64, "direct"),
        ("dense", jnp.bfloat16, "direct"),
        ("dense", jnp.complex64, "direct"),
        ("dense", jnp.int32, "direct"),
        ("depthwise", np.float64, "depthwise"),
        ("depthwise", jnp.bfloat16, "depthwise"),
        ("3d", np.float64, "patches"),
        ("3d", jnp.complex64, "patches"),
    ],
)
def test_plan_by_dtype(name, dtype, algorithm):
    problem = problem_in(LAYERS[name], "forward", dtype)
    assert plan(problem, "cpu").algorithm == algorithm


@given(
    size=st.integers(1, 6),
    taps=st.integers(1, 6),
    outputs=st.integers(1, 9),
    stride=st.integers(1, 6),
    low=st.integers(-7, 9),
    lhs_dilation=st.integers(1, 6),
    rhs_dilation=st.integers(1, 6),
)
@example(
    size=1, taps=2, outputs=2, stride=2, low=4, lhs_dilation=6, rhs_dilation=6
)  # fewer outputs than phases
def test_phases_solve_the_position_equation(
    size, taps, outputs, stride, low, lhs_dilation, rhs_dilation
):
    # Every tap of every output reads the entry that L·i = s·o + d·t − p says, or none.
    solved = phases(size, taps, outputs, stride, low, lhs_dilation, rhs_dilation)
    for o in range(outputs):
        expected = {
            t: (stride * o + rhs_dilation * t - low) // lhs_dilation
            for t in range(taps)
            if (stride * o + rhs_dilation * t - low) % lhs_dilation == 0
        }
        got = {}
        if solved is not None:
            q, r = divmod(o + solved.shift, len(solved.taps))
            assert q < solved.repeats
            for w, t in enumerate(solved.taps[r]):
                if t < taps:
                    start = solved.stride * q - solved.padding[0]
                    got[int(t)] = start + solved.dilation * w
        assert got == expected
    if solved is not None:
        window = solved.dilation * (solved.taps.shape[1] - 1) + 1
        extent = size + sum(solved.padding) - window
        assert extent // solved.stride + 1 == solved.repeats or extent < 0


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


@pytest.mark.parametrize("low", range(3))
def test_phases_of_kernels_below_their_stride_have_one_tap(low):
    # 3 taps with stride 4: wherever the padding puts them, no two meet two entries.
    solved = phases(14, 3, 56, 1, low, 4, 1)
    assert solved is not None
    assert solved.taps.shape == (4, 1)


@pytest.mark.parametrize("low", range(-3, 12))
def test_periods_cut_short_occur_once(low):
    # Fewer outputs than phases: there is no second period to begin the first earlier.
    for outputs in range(1, 6):
        solved = phases(7, 5, outputs, 1, low, 6, 5)
        assert solved is None or (solved.repeats, solved.shift) == (1, 0)


def test_phases_of_a_large_stride_are_solved_soon():
    # A transposed layer of audio. Each shift's phases on their own took a minute.
    start = time.monotonic()
    solved = phases(10, 8192, 20480, 1, 8191, 2048, 1)
    assert time.monotonic() - start < 20
    assert solved is not None
    assert solved.taps.shape == (2048, 4)


def test_subpixel_of_kernel_equal_to_stride_wastes_nothing():
    # The input gradient of a patch embedding: each phase has exactly one tap.
    solved = phases(14, 16, 224, 1, 15, 16, 1)
    assert solved is not None
    assert solved.taps.shape == (16, 1)
    assert sorted(solved.taps.ravel()) == list(range(16))
    assert solved.padding == (0, 0)


@pytest.mark.parametrize("processor", Processor)
def test_gradients_of_single_examples_are_taken_member_by_member(
    processor, monkeypatch
):
    monkeypatch.setattr("jaxconv.planner.this_processor", lambda: processor)

    def gradients(n, size, channels):
        def one(x, g):
            return jaxconv.conv_kernel_grad(
                x[None], (3, 3, channels, channels), g[None]
            )

        shape = jax.ShapeDtypeStruct((n, size, size, channels), jnp.float32)
        explained = jaxconv.explain(jax.vmap(one), shape, shape)
        return [conv.algorithm for conv in explained.convolutions]

    assert gradients(32, 28, 32) == ["by_member"]
    # A turn of the loop takes longer than the gradient of a small example.
    assert gradients(1024, 7, 8) == ["channels_last"]


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
