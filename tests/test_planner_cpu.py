"""Which algorithm is planned on a CPU, by geometry, dtype and processor."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
import jaxconv.lax
from jaxconv.algorithms import (
    ALGORITHMS,
    by_image,
    compute,
    patches_gradient,
    swap,
)
from jaxconv.arguments import Caller, conv_spec
from jaxconv.bench import ROLES, layer
from jaxconv.bench.rows import problem_of as problem_in
from jaxconv.cases import CASES
from jaxconv.planner import plan
from jaxconv.planner.cpu.gradients import IS_EIGEN
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem


def forward(case):
    """The problem of a layer itself, in float32."""
    return problem_in(case, "forward", jnp.float32)


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
    assert swapped > 25


@pytest.mark.parametrize("layout", ["NCHW", "NCWH", "NHCW", "CHNW"])
def test_depthwise_layers_in_rows_are_shifted_whichever_axis_the_rows_are(layout):
    geometry = {
        "window_strides": (1, 1),
        "padding": "SAME",
        "feature_group_count": 64,
        "dimension_numbers": (layout, "HWIO", layout),
    }
    sizes = {"N": 8, "C": 64, "H": 56, "W": 56}
    shapes = tuple(sizes[axis] for axis in layout), (3, 3, 1, 64)
    spec = conv_spec(Caller("t"), *shapes, **geometry)
    problem = ConvProblem(spec, *shapes, np.dtype("float32"))
    assert plan(problem, "cpu").algorithm == "shifts"


@pytest.mark.parametrize("processor", Processor)
def test_a_block_of_all_images_is_not_taken_for_a_part(processor):
    # Its transforms are too large, its images are not: one block would be all of it.
    case = layer("", 2, (100, 100), 8, 32, (100, 100), padding=(10, 10),
                 channels_first=True)  # fmt: skip
    assert by_image.of_block(forward(case))[0] == 1
    assert plan(forward(case), "cpu", processor=processor).algorithm == "fourier"


def kinds_planning(algorithm: str, problem: ConvProblem) -> set[Processor]:
    """The processors on which the algorithm is planned."""
    return {
        kind
        for kind in Processor
        if plan(problem, "cpu", processor=kind).algorithm == algorithm
    }


@pytest.mark.parametrize("layer_sizes", [(16, 400, 48, 80, 15), (8, 4000, 12, 80, 31)])
def test_sums_in_a_processors_own_time_are_not_taken_to_be_slower(layer_sizes):
    images, size, channels, features, taps = layer_sizes
    case = layer(
        "", images, (size,), channels, features, (taps,), padding=(taps // 2, taps // 2)
    )
    problem = problem_in(case, "kernel_gradient", jnp.float32)
    assert kinds_planning("channels_last", problem) == set(Processor)


def test_transforms_are_weighed_by_what_they_take_on_a_processor():
    for channels, taps, known in (
        (3, 11, set(Processor)),
        (8, 9, {Processor.WIDE_AMD}),
    ):
        half, shape = taps // 2, (channels, 8, (taps, taps))
        problem = forward(layer("", 1, (50, 50), *shape, padding=(half, half)))
        assert kinds_planning("fourier", problem) == known, channels


def test_products_of_few_columns_are_left_to_convolutions_by_processor():
    others = set(Processor) - {Processor.WIDE_AMD}
    for shape, known in (
        ((8, 24, (1, 1)), set()),
        ((96, 3, (1, 1)), others),
        ((8, 3, (28, 28)), others),
        ((96, 64, (1, 1)), set(Processor) - {Processor.NARROW}),
        ((300, 64, (1, 1)), set(Processor)),
    ):
        problem = forward(layer("", 8, (28, 28), *shape))
        assert kinds_planning("product", problem) == known, shape


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("role", ["forward", "input_gradient"])
def test_pointwise_layers_are_products_by_eigen_on_narrow_vectors(integers, rank, role):
    def choose(problem):
        return plan(problem, "cpu", processor=Processor.NARROW).algorithm

    case = layer("", 8, (9,) * rank, 96, 64, (1,) * rank)
    problem = problem_in(case, role, jnp.float32)
    assert kinds_planning("fold_images", problem) == {Processor.NARROW}
    x, kernel = integers(*problem.x_shape), integers(*problem.kernel_shape)
    run = functools.partial(compute, problem, "fold_images", choose)
    program = str(jax.make_jaxpr(run)(x, kernel))
    assert "dot_general" not in program and program.count("conv_general_dilated") == 1
    stock = lax.conv_general_dilated(x, kernel, **problem.spec.geometry)
    np.testing.assert_array_equal(jax.jit(run)(x, kernel), stock)


def test_a_window_as_large_as_its_sequence_is_a_product_on_all_processors():
    problem = forward(layer("", 1, (9,), 96, 64, (9,)))
    assert kinds_planning("product", problem) == set(Processor)


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


@pytest.mark.parametrize("taps", [5, 7, 9])
def test_few_groups_of_many_images_are_left_to_xla_whatever_their_taps(taps):
    half, shape = taps // 2, (8, 8, (taps, taps))
    case = layer("", 64, (28, 28), *shape, strides=2, groups=8, padding=(half, half))
    problem = problem_in(case, "kernel_gradient", jnp.float32)
    for kind in set(Processor) - {Processor.WIDE_AMD}:
        assert plan(problem, "cpu", processor=kind).algorithm == "direct"


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


@pytest.mark.parametrize("processor", Processor)
@pytest.mark.parametrize(
    ("batch", "size", "channels", "groups", "dilation"),
    [
        (8, (14, 14), 64, 8, 12),
        (1, (33, 33), 512, 1, 18),
        (4, (6, 6, 6), 64, 1, 5),
        (1, (8, 8, 8), 128, 4, 7),
        (2, (8, 8, 8), 64, 4, 16),
        (1, (4, 4, 4, 4), 64, 2, 3),
        (16, (1024,), 32, 4, 512),
    ],
)
def test_memory_is_bounded_where_padding_is_larger_than_the_input(
    batch, size, channels, groups, dilation, processor
):
    edges = (dilation, dilation)
    case = layer("", batch, size, channels, channels, (3,) * len(size), groups=groups,
                 dilation=dilation, padding=edges)  # fmt: skip
    for role in ROLES:
        problem = problem_in(case, role, jnp.float32)

        def choose(inner):
            return plan(inner, "cpu", processor=processor).algorithm

        run = functools.partial(compute, problem, choose(problem), choose)
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32)
                  for shape in (problem.x_shape, problem.kernel_shape)]  # fmt: skip
        analysis: Any = jax.jit(run).lower(*arrays).compile().memory_analysis()
        # Blocks of 4 MB, once more where one is worth more, and copies of operands.
        bound = 2 * problem.bytes + (8 << 20)
        assert analysis.temp_size_in_bytes <= bound, (role, choose(problem))


@pytest.mark.parametrize(
    ("images", "size", "taps", "channels_first", "algorithm"),
    [
        (32, (1000,), 6, True, "subpixel"),
        (16, (56, 56), 5, True, "subpixel"),
        (16, (56, 56), 5, False, "by_image"),  # which XLA writes once
        (1, (336, 336), 5, True, "subpixel"),  # whose rows are not cut out
        (1, (448, 448), 5, True, "by_rows"),  # as here, where they are too large
        (8, (16, 16, 16), 8, True, "by_image"),  # half of whose phases are cut off
    ],
)
def test_phases_are_taken_at_once_where_xla_copies_as_much(
    images, size, taps, channels_first, algorithm
):
    case = layer(
        "", images, size, 64, 3, (taps,) * len(size), strides=4,
        padding=(taps // 2 - 1,) * 2, channels_first=channels_first,
    )  # fmt: skip
    problem = problem_in(case, "input_gradient", jnp.float32)
    assert kinds_planning(algorithm, problem) == set(Processor)
    arrays = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (problem.x_shape, problem.kernel_shape)
    ]

    def memory(name):
        def choose(inner):
            return plan(inner, "cpu").algorithm

        run = functools.partial(compute, problem, name, choose)
        analysis: Any = jax.jit(run).lower(*arrays).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    # The kernel's phases, too.
    assert memory(algorithm) <= memory("direct") + by_image.BLOCK


def test_taps_that_meet_zeros_alone_are_left_out():
    def planned(dilation, role):
        edges = (dilation, dilation)
        case = layer("", 2, (9, 9), 8, 8, (3, 3), dilation=dilation, padding=edges)
        return plan(problem_in(case, role, jnp.float32), "cpu").algorithm

    for role in ROLES:
        assert planned(9, role) == "trim"
        assert planned(8, role) != "trim"


def test_transforms_of_a_block_are_planned_where_they_are_run_alone():
    # A block of it is computed by rows of phases, and not by transforms.
    case = layer("", 2, (317, 1017), 1, 16, (21, 300), input_dilation=2,
                 padding=(10, 150))  # fmt: skip
    problem = forward(case)
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
    assert plan(forward(case), "cpu").algorithm == "fourier"


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


def test_layers_of_few_outputs_are_products_of_patches():
    for images, channels, features, taps, padding, known in (
        ((8, 3, 3, 4), 512, 64, 3, 0, set(Processor)),  # the window nearly as large
        ((2, 8, 8), 512, 320, 7, 0, set(Processor)),
        ((1, 7, 7, 7), 1024, 512, 3, 0, set(Processor)),  # of many weights
        ((8, 6, 6, 6), 32, 256, 3, 1, {Processor.NARROW}),
        ((4, 8, 8), 32, 1024, 3, 1, {Processor.NARROW}),
        ((8, 18, 18), 128, 256, 2, 0, set()),  # phases, which XLA interleaves
        ((64, 28, 28), 32, 1024, 3, 1, set()),
        ((128, 1024), 32, 128, 1024, 2, set()),  # a kernel gradient, its axes in order
    ):
        batch, *spatial = images
        window = (taps,) * len(spatial)
        case = layer(
            "", batch, spatial, channels, features, window, padding=(padding, padding)
        )
        assert kinds_planning("patches", forward(case)) == known, images


def test_a_kernel_whose_taps_stand_last_is_not_brought_in_order_for_few_outputs():
    shape = (8, (3, 3, 4), 512, 64, (3, 3, 3))
    problem = forward(layer("", *shape, channels_first=True))
    assert not kinds_planning("patches", problem)


@pytest.mark.parametrize(
    ("features", "padding", "algorithm"),
    [(32, 2, "pad"), (32, 0, "direct"), (12, 2, "stencil"), (12, 0, "stencil")],
)
def test_zeros_are_laid_around_one_channel(features, padding, algorithm):
    case = layer("", 64, (28, 28), 1, features, (5, 5), padding=(padding, padding))
    assert plan(forward(case), "cpu").algorithm == algorithm


def test_other_platforms_get_the_stock_program():
    case = next(case for case in CASES if case.name == "2d.transposed-grouped")
    assert plan(forward(case), "tpu").algorithm == "direct"
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
    problem = forward(case)
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
    chosen = plan(forward(case), "cpu")
    assert chosen.algorithm == algorithm
    assert ALGORITHMS[chosen.algorithm].applies(forward(case))
    assert chosen.reason


LAYERS = {
    "dense": layer("", 8, (56, 56), 64, 64, (3, 3), padding=(1, 1)),
    "strided": layer("", 8, (56, 56), 128, 128, (3, 3), strides=2, padding=(1, 1)),
    "stem": layer("", 8, (224, 224), 3, 64, (7, 7), strides=2, padding=(3, 3)),
    "1x1": layer("", 8, (14, 14), 512, 320, (1, 1)),
    "1x1.to-one.3d": layer("", 64, (7, 8, 7), 24, 1, (1, 1, 1)),
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
    "multiplier.nchw": layer("", 8, (64, 64), 16, 128, (3, 3), groups=16,
                             padding=(1, 1), channels_first=True),
    "multiplier.g2": layer("", 16, (129, 64), 2, 10, (5, 5), strides=3, groups=2,
                           padding=(2, 2)),
    "one.nchw.s2": layer("", 16, (17, 36), 1, 16, (1, 1), strides=2,
                         channels_first=True),
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
        ("1x1.to-one.3d", "direct", "channels_last", "product"),
        ("1x1s2", "direct", "overlap_add", "patches_gradient"),
        ("depthwise", "depthwise", "depthwise", "depthwise_gradient"),
        ("depthwise.s2", "depthwise", "depthwise", "depthwise_gradient"),
        ("depthwise.nchw", "shifts", "shifts", "runs_gradient"),
        ("depthwise.nchw.s2", "shifts", "by_image", "depthwise_gradient"),
        ("depthwise.rgb", "shifts", "shifts", "depthwise_gradient"),
        ("grouped.nchw", "stencil", "by_image", "patches_gradient"),
        ("dense.nchw", "channels_last", "channels_last", "patches_gradient"),
        ("multiplier", "depthwise", "depthwise", "depthwise_gradient"),
        ("multiplier.nchw", "stencil", "stencil", "runs_gradient"),
        ("multiplier.g2", "depthwise", "subpixel", "patches_gradient"),
        ("one.nchw.s2", "channels_last", "channels_last", "runs_gradient"),
        ("grouped", "stencil", "stencil", "patches_gradient"),
        ("1x1g2", "pointwise_groups", "pointwise_groups", "patches_gradient"),
        ("1x1g4.to-one", "pointwise_groups", "by_tap", "patches_gradient"),
        ("1x1g4.to-one.s2", "pointwise_groups", "by_tap", "patches_gradient"),
        ("1x1g16.to-one.nchw", "pointwise_groups", "by_tap", "swap"),
        ("1x1g2.nchw", "pointwise_groups", "subpixel", "patches_gradient"),
        ("multiplier.3d", "by_image", "stencil", "depthwise_gradient"),
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
            if (name, role) == ("patch", "forward") and kind is Processor.NARROW:
                fast = "patches"  # products take longer there, and copies do not
            if role == "forward" and kind is Processor.HALVED:
                fast = UNSUMMED.get(name, fast)  # sums of slices take longer there
            measured = kind is Processor.WIDE_AMD or name not in ESTIMATED
            if role == "kernel_gradient" and not measured:
                continue  # by estimates of another processor
            chosen = plan(problem, "cpu", processor=kind).algorithm
            assert chosen == fast, (role, kind)
        # What XLA partitions by itself is left to it, and so are other platforms.
        partitioned = plan(problem, "cpu", devices=4).algorithm
        assert partitioned in ("direct", "by_tap", "crop", "aligned")
        assert plan(problem, "tpu").algorithm in ("direct", "crop")


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
