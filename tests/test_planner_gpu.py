"""What is rewritten on NVIDIA GPUs, and that it computes the same there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
import jaxconv.lax
from jaxconv.algorithms import (
    compute,
)
from jaxconv.bench import ROLES, layer
from jaxconv.bench.rows import problem_of as problem_in
from jaxconv.cases import CASES, random_case
from jaxconv.planner import plan
from jaxconv.testing import reference_conv

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
    # On more axes XLA:GPU crashes.
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
        expected = reference_conv(x, kernel, **problem.spec.geometry)
        np.testing.assert_array_equal(y, expected, err_msg=case.name)
