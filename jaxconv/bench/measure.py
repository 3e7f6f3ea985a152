"""One layer in one role, stock against jaxconv."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import jaxconv.lax
from jaxconv.bench.accuracy import OPERANDS, error_of
from jaxconv.bench.timing import Timing, compare
from jaxconv.cases import ConvCase
from jaxconv.testing import draw

ROLES = tuple(OPERANDS)
"""What a convolution is in a training step: the output, dx or dk."""

SLACK = 4 << 20
"""Bytes of temporary memory that stock is granted, which often needs none."""


class Row(NamedTuple):
    """What was measured of one layer in one role.

    Attributes:
      layer: its name.
      role: one of `ROLES`.
      stock: of `jax.lax` with `jax.vjp`.
      jaxconv: of the same by `jaxconv.lax`.
      flops: additions and multiplications that the sum asks for, padding included.
      bytes: of the two operands and the result.
      error: jaxconv's error over stock's, as `jaxconv.bench.accuracy` judges.
      peer: seconds that another library took, or None.
    """

    layer: str
    role: str
    stock: Timing
    jaxconv: Timing
    flops: int
    bytes: int
    error: float
    peer: float | None = None

    @property
    def speedup(self) -> float:
        """Stock's time over jaxconv's."""
        return self.stock.fastest / self.jaxconv.fastest

    @property
    def compile_ratio(self) -> float:
        """Jaxconv's compile time over stock's."""
        return self.jaxconv.compile / self.stock.compile

    @property
    def memory_ratio(self) -> float:
        """Jaxconv's temporary memory over stock's with `SLACK` added; 0.01 for none."""
        ratio = self.jaxconv.temporary / (self.stock.temporary + SLACK)
        return max(ratio, 0.01)  # a geometric mean needs a logarithm


def output_shape(case: ConvCase) -> tuple[int, ...]:
    """Shape of the layer's result."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in _shapes(case)]
    conv = functools.partial(lax.conv_general_dilated, **case.geometry)
    return jax.eval_shape(conv, *shapes).shape


def _shapes(case: ConvCase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return case.x_shape, case.kernel_shape


def program(conv: Callable, case: ConvCase, role: str, dtype: Any) -> Callable:
    """The function of two operands that computes the role with `conv`.

    Args:
      conv: a `conv_general_dilated`.
      case: the layer.
      role: one of `ROLES`; its operands are (x, k), (g, k) or (x, g).
      dtype: of the operands.
    """
    conv = functools.partial(conv, **case.geometry)
    x, kernel = (jax.ShapeDtypeStruct(s, dtype) for s in _shapes(case))

    def forward(x, kernel):
        return conv(x, kernel)

    def input_gradient(g, kernel):
        (dx,) = jax.linear_transpose(lambda x: conv(x, kernel), x)(g)
        return dx

    def kernel_gradient(x, g):
        (dkernel,) = jax.linear_transpose(lambda kernel: conv(x, kernel), kernel)(g)
        return dkernel

    programs: dict[str, Callable] = {
        "forward": forward,
        "input_gradient": input_gradient,
        "kernel_gradient": kernel_gradient,
    }
    return programs[role]


def operands(case: ConvCase, role: str, dtype: Any) -> list[jax.Array]:
    """Random operands of the role's program."""
    shapes = {"x": case.x_shape, "kernel": case.kernel_shape, "g": output_shape(case)}
    taken = [shapes[name] for name in OPERANDS[role]]
    return [jnp.asarray(array) for array in draw(0, dtype, *taken)]


def cost(case: ConvCase, dtype: Any) -> tuple[int, int]:
    """(flops, bytes) of each role: the same three arrays and the same products."""
    y_shape = output_shape(case)
    features = case.kernel_shape[case.dimension_numbers[1].index("O")]
    products = math.prod(y_shape) * math.prod(case.kernel_shape) // features
    products //= math.prod(case.lhs_dilation or (1,))
    entries = sum(math.prod(shape) for shape in (*_shapes(case), y_shape))
    return 2 * products, entries * jnp.dtype(dtype).itemsize


def measure(case: ConvCase, role: str, dtype: Any = jnp.float32, **timing: Any) -> Row:
    """Time one layer in one role.

    Args:
      case: the layer.
      role: one of `ROLES`.
      dtype: of the operands.
      **timing: rounds and seconds, as `jaxconv.bench.timing.compare` takes them.
    """
    convs = {
        "stock": lax.conv_general_dilated,
        "jaxconv": jaxconv.lax.conv_general_dilated,
    }
    programs = {name: program(conv, case, role, dtype) for name, conv in convs.items()}
    given = operands(case, role, dtype)
    error, errors = error_of(case, role, given), {}

    def judge(name: str, result: Any) -> None:
        errors[name] = error(result)

    timings = compare(programs, given, judge=judge, **timing)
    return Row(
        case.name,
        role,
        timings["stock"],
        timings["jaxconv"],
        *cost(case, dtype),
        errors["jaxconv"] / errors["stock"],
    )
