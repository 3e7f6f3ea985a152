"""Random convolutions through random transforms, against NumPy; random wrong arguments.

`pytest tests/test_fuzz.py --fuzz-cases 20000` is the long run that docs/reliability.md
records. Operands are small integers, so that every sum of float32 and wider is exact.
"""

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from jaxconv.cases import random_case
from jaxconv.testing import (
    error_units,
    reference_conv,
    reference_conv_vjp,
    sum_lengths,
)

CHUNK = 20
"""Cases that are compiled together, which takes less time than one by one."""


def doubled(*arrays):
    return [jnp.stack([array, -array]) for array in arrays]


def halved(pair):
    """Of y and −y, what both say of y."""
    difference = pair[0] - pair[1]
    whole = jnp.issubdtype(difference.dtype, jnp.integer)
    return difference // 2 if whole else difference / 2


def scanned(fn, x, kernel):
    return lax.scan(lambda carry, x: (carry, fn(x, kernel)), 0, doubled(x)[0])[1]


def transposed(fn, x, kernel):
    """The transpose of the transpose in x."""
    of_x = functools.partial(fn, kernel=kernel)
    y = jax.eval_shape(of_x, x)

    def pulled(g):
        return jax.linear_transpose(of_x, x)(g)[0]

    return jax.linear_transpose(pulled, y)(x)[0]


LINEAR = {
    "jit": lambda fn: jax.jit(fn),
    "vmap x": lambda fn: (
        lambda x, kernel: halved(jax.vmap(fn, (0, None))(*doubled(x), kernel))
    ),
    "vmap kernel": lambda fn: (
        lambda x, kernel: halved(jax.vmap(fn, (None, 0))(x, *doubled(kernel)))
    ),
    "vmap both": lambda fn: (
        lambda x, kernel: halved(
            jax.vmap(fn)(doubled(x)[0], jnp.stack([kernel, kernel]))
        )
    ),
    "scan": lambda fn: lambda x, kernel: halved(scanned(fn, x, kernel)),
    "cond": lambda fn: (
        lambda x, kernel: lax.cond(
            x.size >= 0, fn, lambda x, kernel: -fn(x, kernel), x, kernel
        )
    ),
    "accelerate": lambda fn: jaxconv.accelerate(fn),
}
DIFFERENTIAL = {
    "checkpoint": lambda fn: jax.checkpoint(fn),
    "jvp": lambda fn: lambda x, kernel: jax.jvp(lambda x: fn(x, kernel), (x,), (x,))[1],
    "linearize": lambda fn: (
        lambda x, kernel: jax.linearize(lambda kernel: fn(x, kernel), kernel)[1](kernel)
    ),
    "transpose": lambda fn: lambda x, kernel: transposed(fn, x, kernel),
}
DTYPES = (
    *[jnp.float32] * 4,
    *(jnp.bfloat16, jnp.float16, jnp.complex64, jnp.int32, jnp.int8),
)


class Case:
    """One random convolution, its stack of transforms, and what should come of it."""

    def __init__(self, seed):
        draw = random.Random(seed)
        self.case = random_case(seed, wild=True)
        self.dtype = jnp.dtype(draw.choice(DTYPES))
        self.inexact = jnp.issubdtype(self.dtype, jnp.inexact)
        known = {**LINEAR, **(DIFFERENTIAL if self.inexact else {})}
        self.stack = [draw.choice(list(known)) for _ in range(draw.randint(0, 3))]
        self.known = known
        generator = np.random.default_rng(seed)
        reach = 2 if self.dtype == jnp.int8 else 4

        def integers(shape):
            array = generator.integers(-reach, reach + 1, shape)
            if self.dtype == jnp.complex64:
                array = array + 1j * generator.integers(-reach, reach + 1, shape)
            return array

        shapes = self.case.x_shape, self.case.kernel_shape
        self.operands = [integers(shape) for shape in shapes]
        geometry = self.case.geometry
        y = reference_conv(*self.operands, **geometry)
        self.operands.append(integers(y.shape))
        x, kernel, g = self.operands
        self.expected = reference_conv_vjp(x, kernel, g, **geometry)
        self.arrays = [jnp.asarray(array, self.dtype) for array in self.operands]

    def __str__(self):
        stack = " of ".join(self.stack) or "plain"
        return f"{self.case}, {self.dtype.name}, {stack}"

    def results(self, x, kernel, g):
        """What is to be compared: y and gradients, or y alone of integers."""
        convs = jaxconv.conv_general_dilated, lax.conv_general_dilated
        conv = convs["accelerate" in self.stack]
        fn = functools.partial(conv, **self.case.geometry)
        fn = lambda x, kernel, fn=fn: fn(x, kernel)  # noqa: E731
        for name in reversed(self.stack):
            fn = self.known[name](fn)
        if not self.inexact:
            return (fn(x, kernel),)
        y, pull_back = jax.vjp(fn, x, kernel)

        def kernel_gradient(x):
            return jax.vjp(lambda kernel: fn(x, kernel), kernel)[1](g)[0]

        # ∂/∂x ⟨kernel, dkernel(x, g)⟩ is dx again, reverse over reverse.
        (again,) = jax.vjp(kernel_gradient, x)[1](kernel)
        return y, *pull_back(g), again

    def check(self, results):
        y, dx, dkernel = self.expected
        lengths = sum_lengths(self.case.kernel_shape, y.shape, **self.case.geometry)
        for name, result, expected, terms in zip(
            ("y", "dx", "dkernel", "dx of dkernel"),
            results,
            (y, dx, dkernel, dx),
            (*lengths, lengths[1]),
            strict=False,
        ):
            where = f"{name} of {self}"
            assert result.dtype == self.dtype, where
            if self.dtype.itemsize < 4 and self.inexact:
                units = error_units(result, expected, self.dtype, terms)
                assert units <= 2, where
            else:
                wide = np.asarray(expected)
                if not self.inexact:
                    wide = wide.astype(self.dtype)  # wraps around, as XLA does
                np.testing.assert_array_equal(np.asarray(result), wide, where)


def pytest_generate_tests(metafunc):
    if "chunk" in metafunc.fixturenames:
        total = metafunc.config.getoption("--fuzz-cases")
        starts = range(0, total, CHUNK)
        chunks = [range(start, min(start + CHUNK, total)) for start in starts]
        metafunc.parametrize("chunk", chunks, ids=str)


def test_random_stacks_of_transforms(chunk):
    cases = [Case(seed) for seed in chunk]

    def every(arrays):
        results = []
        for case, operands in zip(cases, arrays, strict=True):
            try:
                results.append(case.results(*operands))
            except Exception as error:
                raise AssertionError(f"{case}") from error
        return results

    results = jax.jit(every)([case.arrays for case in cases])
    for case, result in zip(cases, results, strict=True):
        case.check(result)
    jax.clear_caches()  # else a long run keeps every program


def wrong_sizes(draw, rank):
    """What is no sequence of `rank` ints of at least 1."""
    good = [draw.randint(1, 3) for _ in range(rank)]
    place = draw.randrange(rank)
    return draw.choice(
        [
            [*good, 1],
            good[:-1],
            [*good[:place], draw.choice((0, -1, -7)), *good[place + 1 :]],
            [
                *good[:place],
                draw.choice((1.5, "1", None, True, [1])),
                *good[place + 1 :],
            ],
            draw.choice((1, 1.0, "11111", object())),
        ]
    )


def wrong_padding(draw, rank):
    pairs = [(1, 1)] * rank
    place = draw.randrange(rank)
    wrong = draw.choice(((1,), (1, 2, 3), (1.5, 0), ("1", 0), (None, 1), 1.5, "a"))
    return draw.choice(
        [
            draw.choice(("FULL", "SAM", "", "VALID ")),
            [*pairs, (0, 0)],
            pairs[:-1],
            [*pairs[:place], wrong, *pairs[place + 1 :]],
            draw.choice((1, 2.5, object())),
        ]
    )


def wrong_layouts(draw, rank):
    letters = "XYZW"[:rank]
    good = [f"N{letters}C", f"{letters}IO", f"N{letters}C"]
    place = draw.randrange(3)
    broken = good[place]
    broken = draw.choice(
        [
            broken + "Q",
            broken[1:],
            broken.replace(broken[draw.randrange(len(broken))], "Q"),
            broken[0] * len(broken),
            7,
        ]
    )
    return draw.choice(
        [[*good[:place], broken, *good[place + 1 :]], good[:2], "NHWC", 3, object()]
    )


def wrong_groups(draw, rank):
    return draw.choice((0, -1, -3, 5, 7, 1.5, "2", None, True, [1]))


WRONG = {
    "window_strides": wrong_sizes,
    "lhs_dilation": wrong_sizes,
    "rhs_dilation": wrong_sizes,
    "padding": wrong_padding,
    "dimension_numbers": wrong_layouts,
    "feature_group_count": wrong_groups,
    "batch_group_count": wrong_groups,
    "rhs": lambda draw, rank: draw.choice(
        [
            jnp.ones((2,) * (rank + 1)),
            jnp.ones((2,) * (rank + 3)),
            jnp.ones((*(1,) * rank, 9, 4)),
            jnp.ones((*(1,) * rank, 6, 4), jnp.int32),
            "kernel",
            object(),
            None,
        ]
    ),
    "precision": lambda draw, rank: draw.choice(
        ["best", 3.5, object(), ("high", "best"), ("high",) * 3]
    ),
    "preferred_element_type": lambda draw, rank: draw.choice(
        ["float33", object(), 3, jnp.int32, "words"]
    ),
}


@pytest.mark.parametrize("start", range(0, 2000, 250))
def test_random_wrong_arguments_are_refused_by_name(start):
    for seed in range(start, start + 250):
        draw = random.Random(seed)
        rank, wrong = draw.randint(1, 4), draw.choice(list(WRONG))
        letters = "XYZW"[:rank]
        arguments = {
            "lhs": jnp.ones((4, *(3,) * rank, 6)),
            "rhs": jnp.ones((*(1,) * rank, 6, 4)),
            "window_strides": (1,) * rank,
            "padding": draw.choice(("SAME", [(1, 1)] * rank)),
            "dimension_numbers": (f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        }
        if wrong == "lhs_dilation":
            arguments["padding"] = [(1, 1)] * rank
        arguments[wrong] = WRONG[wrong](draw, rank)
        with pytest.raises((ValueError, TypeError, NotImplementedError)) as caught:
            jaxconv.conv_general_dilated(**arguments)
        assert "conv_general_dilated: " in str(caught.value), f"{seed}: {arguments}"
        assert wrong in str(caught.value), f"{seed}: {arguments}"
