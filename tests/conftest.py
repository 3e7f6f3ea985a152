"""Strict JAX for every test: no silent promotion, no silent broadcasting, 8 devices."""

import os
from typing import Any

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import hypothesis
import jax
import numpy as np
import pytest

from jaxconv.transform import programs_in

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first call of each shape compiles: no deadline. The same examples every time.
hypothesis.settings.register_profile("jaxconv", deadline=None, derandomize=True)
hypothesis.settings.load_profile("jaxconv")


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz-cases",
        type=int,
        default=60,
        help="how many random convolutions test_fuzz.py draws",
    )


@pytest.fixture
def integers():
    """Draws small-integer float32 arrays: every sum of products of them is exact."""
    generator = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return generator.integers(-4, 5, shape).astype(np.float32)

    return draw


@pytest.fixture
def x64():
    """Runs the test with 64-bit types."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def costs():
    """Tells FLOPs and bytes of temporary memory of a compiled program, per device."""

    def costs(program: Any) -> tuple[float, int]:
        memory = program.memory_analysis()
        return program.cost_analysis()["flops"], memory.temp_size_in_bytes

    return costs


@pytest.fixture(scope="session")
def count():
    """Tells how many convolutions of (lax, jaxconv) the program of a function has."""

    def names(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for program in programs_in(equation):
                yield from names(program)

    def count(fn, *args):
        found = list(names(jax.make_jaxpr(fn)(*args)))
        return found.count("conv_general_dilated"), found.count("jaxconv")

    return count
