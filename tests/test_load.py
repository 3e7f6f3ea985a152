"""Many threads, many shapes, and arrays too large to be made."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from jaxconv import planner
from jaxconv.arguments import Caller, conv_spec
from jaxconv.cases import random_case
from jaxconv.planner import plan
from jaxconv.spec import ConvProblem

NHWC = ("NHWC", "HWIO", "NHWC")


def gradients(conv, case):
    def loss(x, kernel):
        return (conv(x, kernel, **case.geometry) ** 2).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def test_many_threads_trace_and_call_at_once(integers):
    cases = [random_case(seed) for seed in range(300, 303)]
    operands = [
        [jnp.asarray(integers(*shape)) for shape in (case.x_shape, case.kernel_shape)]
        for case in cases
    ]
    expected = [
        gradients(lax.conv_general_dilated, case)(*arrays)
        for case, arrays in zip(cases, operands, strict=True)
    ]
    planner._static_plan.cache_clear()
    ready = threading.Barrier(8)

    def call(first):
        ready.wait()  # all plan the same problems at once
        order = [*range(first, len(cases)), *range(first)]
        return {
            i: gradients(jaxconv.conv_general_dilated, cases[i])(*operands[i])
            for i in order
        }

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(call, [0, 0, 0, 1, 1, 1, 2, 2]):
            for i, reference in enumerate(expected):
                for own, other in zip(results[i], reference, strict=True):
                    np.testing.assert_array_equal(own, other)


def problem(x_shape, kernel_shape, **options):
    geometry: dict[str, Any] = {"window_strides": (1, 1), "padding": "SAME"} | options
    spec = conv_spec(
        Caller("t"), x_shape, kernel_shape, dimension_numbers=NHWC, **geometry
    )
    return ConvProblem(spec, x_shape, kernel_shape, np.dtype(np.float32))


def test_plans_of_many_shapes_take_bounded_memory():
    planner._static_plan.cache_clear()
    most = planner._static_plan.cache_info().maxsize
    assert most is not None
    for size in range(1, most + 1001):
        plan(problem((1, size, 3, 4), (3, 3, 4, 4)), "cpu")
    assert planner._static_plan.cache_info().currsize <= most


@pytest.mark.parametrize(
    ("kernel_shape", "options"),
    [
        ((3, 3, 64, 64), {}),
        ((3, 3, 64, 64), {"window_strides": (2, 2)}),
        ((4, 4, 64, 64), {"lhs_dilation": (2, 2), "padding": [(2, 2)] * 2}),
        ((3, 3, 1, 64), {"feature_group_count": 64}),
        ((3, 3, 8, 64), {"feature_group_count": 8}),
        ((1, 1, 64, 64), {}),
    ],
)
def test_arrays_of_more_than_2_31_entries_are_planned(kernel_shape, options):
    x_shape = (1 << 14, 64, 64, 64)
    assert np.prod(x_shape, dtype=np.int64) > 2**31
    geometry: dict[str, Any] = {"window_strides": (1, 1), "padding": "SAME"} | options

    def step(x, kernel):
        y, pull_back = jax.vjp(
            lambda x, kernel: jaxconv.conv_general_dilated(
                x, kernel, dimension_numbers=NHWC, **geometry
            ),
            x,
            kernel,
        )
        return y, *pull_back(y)

    types = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (x_shape, kernel_shape)]
    y, dx, dkernel = jax.eval_shape(step, *types)
    assert y.shape[0] == x_shape[0]
    assert (dx.shape, dkernel.shape) == (x_shape, kernel_shape)
    jax.jit(step).lower(*types)  # algorithms are chosen, and traced
    explained = jaxconv.explain(step, *types)
    assert all(conv.flops > 2**31 for conv in explained.convolutions)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize(
    ("kernel_shape", "options"),
    [
        ((3, 3, 4, 6), {}),
        ((3, 3, 4, 6), {"window_strides": (2, 2)}),
        ((3, 3, 1, 4), {"feature_group_count": 4}),
        ((3, 3, 2, 4), {"feature_group_count": 2}),
        ((1, 1, 4, 6), {}),
    ],
)
def test_what_is_not_finite_reaches_no_more_than_in_stock(value, kernel_shape, options):
    x = np.random.default_rng(0).uniform(1, 2, (2, 9, 8, 4)).astype(np.float32)
    x[1, 4, 3, 2] = value
    kernel = np.random.default_rng(1).uniform(1, 2, kernel_shape).astype(np.float32)
    geometry: dict[str, Any] = {"window_strides": (1, 1), "padding": "SAME"} | options

    def results(conv):
        def layer(x, kernel):
            return conv(x, kernel, dimension_numbers=NHWC, **geometry)

        y, pull_back = jax.vjp(layer, x, kernel)
        return y, pull_back(jnp.ones_like(y))[1]

    own = results(jaxconv.conv_general_dilated)
    for result, stock in zip(own, results(lax.conv_general_dilated), strict=True):
        assert not np.isfinite(result).all()
        assert np.all(np.isfinite(result) | ~np.isfinite(stock))
