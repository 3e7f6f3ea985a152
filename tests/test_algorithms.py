"""Every algorithm equals `direct` wherever it applies; the planner chooses."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import jaxconv.lax
from jaxconv import calculus
from jaxconv.algorithms import ALGORITHMS, direct
from jaxconv.algorithms.subpixel import phases
from jaxconv.arguments import Caller, conv_spec
from jaxconv.cases import CASES, random_case
from jaxconv.planner import plan
from jaxconv.spec import ConvProblem
from jaxconv.testing import reference_conv

TABLE = [*CASES, *map(random_case, range(100, 160))]


def problem_of(case, dtype=jnp.float32):
    spec = conv_spec(Caller("t"), case.x_shape, case.kernel_shape, **case.geometry)
    return ConvProblem(spec, case.x_shape, case.kernel_shape, jnp.dtype(dtype))


def directly(spec, x, kernel):
    """The smaller convolutions by lax, in integers, where lax makes no mistakes."""
    problem = ConvProblem(spec, x.shape, kernel.shape, x.dtype)
    return direct.run(problem, x, kernel, directly)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithm_equals_the_reference_wherever_it_applies(name, integers):
    algorithm, applied = ALGORITHMS[name], 0
    for case in TABLE:
        problem = problem_of(case, jnp.int32)
        if algorithm.applies(problem):
            x, kernel = integers(*case.x_shape), integers(*case.kernel_shape)
            run = functools.partial(algorithm.run, problem, conv=directly)
            y = jax.jit(run)(x.astype(np.int32), kernel.astype(np.int32))
            expected = reference_conv(x, kernel, **case.geometry)
            np.testing.assert_array_equal(y, expected, err_msg=case.name)
            applied += 1
    assert applied >= 2 + 8 * (name != "empty")


def compiled_text(conv, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(conv).lower(*arrays).as_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_emitted_has_negative_padding(case):
    def gradients(x, kernel, g):
        conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
        y, pull_back = jax.vjp(conv, x, kernel)
        return y, pull_back(g)

    problem = problem_of(case)
    shapes = case.x_shape, case.kernel_shape, problem.output_shape
    text = compiled_text(gradients, *shapes)
    zero = ("cropped-away", "transposed-taps-between", "no-output", "no-batch")
    assert ("stablehlo.convolution" in text) == (case.name[3:] not in zero)
    assert not re.findall(r"pad = [^}]*-", text)
    if plan(problem, "cpu").algorithm == "subpixel":
        conv = functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)
        text = compiled_text(conv, case.x_shape, case.kernel_shape)
        dilations = re.findall(r"lhs_dilate = \[([\d, ]*)\]", text)
        assert all(set(found) <= set("1, ") for found in dilations)


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
    assert plan(problem_of(case), "cuda").algorithm == "direct"
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
    ("name", "algorithm"),
    [
        ("2d.same", "direct"),
        ("2d.transposed", "subpixel"),
        ("3d.transposed", "subpixel"),
        ("2d.negative", "crop"),
        ("2d.negative-transposed", "crop"),
        ("2d.no-output", "empty"),
    ],
)
def test_plan_on_cpu(name, algorithm):
    case = next(case for case in CASES if case.name == name)
    chosen = plan(problem_of(case), "cpu")
    assert chosen.algorithm == algorithm
    assert ALGORITHMS[chosen.algorithm].applies(problem_of(case))
    assert chosen.reason


def input_gradient_plan(taps, stride, channels, features, groups=1, dtype=jnp.float32):
    """The plan for the input gradient of a layer on 32x32 points."""
    shapes = (8, 32, 32, features), (*taps, features // groups, channels)
    spec = conv_spec(
        Caller("t"),
        *shapes,
        window_strides=(stride, stride),
        padding=[(taps[0] // 2,) * 2] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    y_shape = spec.output_shape(*shapes)
    gradient = calculus.input_gradient(spec, *shapes, y_shape)
    turned = (*taps, features, channels // groups)
    problem = ConvProblem(gradient, y_shape, turned, jnp.dtype(dtype))
    return plan(problem, "cpu").algorithm


@pytest.mark.parametrize(
    ("geometry", "algorithm"),
    [
        (((3, 3), 2, 128, 128), "direct"),
        (((1, 1), 2, 256, 128), "direct"),
        (((7, 7), 2, 64, 3), "subpixel"),
        (((3, 3), 2, 128, 128, 128), "subpixel"),
        (((3, 3), 2, 128, 128, 4), "subpixel"),
        (((3, 3), 2, 128, 128, 1, jnp.bfloat16), "direct"),
        (((3, 3), 2, 128, 128, 1, jnp.complex64), "direct"),
        (((3, 3), 2, 128, 128, 1, np.float64), "subpixel"),
        (((3, 3), 2, 128, 128, 1, jnp.int32), "subpixel"),
    ],
)
def test_phases_are_planned_where_they_were_measured_to_be_faster(geometry, algorithm):
    assert input_gradient_plan(*geometry) == algorithm


@given(
    size=st.integers(1, 6),
    taps=st.integers(1, 6),
    outputs=st.integers(1, 9),
    stride=st.integers(1, 6),
    low=st.integers(-7, 9),
    lhs_dilation=st.integers(1, 6),
    rhs_dilation=st.integers(1, 6),
)
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
            q, r = divmod(o, len(solved.taps))
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


def test_subpixel_of_kernel_equal_to_stride_wastes_nothing():
    # The input gradient of a patch embedding: each phase has exactly one tap.
    solved = phases(14, 16, 224, 1, 15, 16, 1)
    assert solved is not None
    assert solved.taps.shape == (16, 1)
    assert sorted(solved.taps.ravel()) == list(range(16))
    assert solved.padding == (0, 0)
