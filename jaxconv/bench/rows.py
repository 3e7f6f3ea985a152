"""One layer in one role, stock against jaxconv."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import jaxconv.lax
from jaxconv import calculus
from jaxconv.arguments import Caller, conv_spec
from jaxconv.bench.accuracy import OPERANDS, error_of
from jaxconv.bench.timing import Timing, compare
from jaxconv.cases import ConvCase
from jaxconv.spec import ConvProblem
from jaxconv.testing import draw

ROLES = tuple(OPERANDS)
"""What a convolution is in a training step: the output, dx or dk."""

SLACK = 4 << 20
"""Bytes of temporary memory that stock is granted, which often needs none."""


class Row(NamedTuple):
    """What was measured of one layer in one role.

    Attributes:
      layer: its name, or that of a program.
      role: one of `ROLES`, or what the program does.
      stock: of `jax.lax` with `jax.vjp`, or of the program as it is.
      jaxconv: of the same by `jaxconv.lax`, or of the program accelerated.
      flops: additions and multiplications, as `jaxconv.spec.ConvProblem` counts them:
        those of the layer, whose gradients have the same products, or of all
        convolutions of a program.
      bytes: of the two operands and the result of each convolution.
      error: of a layer jaxconv's over stock's, as `jaxconv.bench.accuracy` judges, of a
        program the difference between the two's results.
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


def program(conv: Callable, case: ConvCase, role: str, dtype: Any) -> Callable:
    """The function of two operands that computes the role with `conv`.

    Args:
      conv: a `conv_general_dilated`.
      case: the layer.
      role: one of `ROLES`; its operands are (x, k), (g, k) or (x, g).
      dtype: of the operands.
    """
    conv = functools.partial(conv, **case.geometry)
    shapes = (case.x_shape, case.kernel_shape)
    x, kernel = (jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)

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
    return programs[_known(role)]


def _known(role: str) -> str:
    """The role, if it is one."""
    if role not in ROLES:
        raise ValueError(
            f"bench: role must be one of {', '.join(ROLES)}, but got role={role!r}. "
            "Name one of these."
        )
    return role


def operands(case: ConvCase, role: str, dtype: Any) -> list[jax.Array]:
    """Random operands of the role's program."""
    y_shape = problem_of(case, "forward", dtype).output_shape
    shapes = {"x": case.x_shape, "kernel": case.kernel_shape, "g": y_shape}
    taken = [shapes[name] for name in OPERANDS[_known(role)]]
    return [jnp.asarray(array) for array in draw(0, dtype, *taken)]


def problem_of(case: ConvCase, role: str, dtype: Any) -> ConvProblem:
    """The convolution that a layer's role is.

    Args:
      case: the layer.
      role: one of `ROLES`.
      dtype: of the operands.

    Raises:
      ValueError: if `role` is no such.
    """
    x, kernel, dtype = case.x_shape, case.kernel_shape, jnp.dtype(dtype)
    spec = conv_spec(Caller("bench"), x, kernel, **case.geometry)
    y = spec.output_shape(x, kernel)
    if _known(role) == "forward":
        return ConvProblem(spec, x, kernel, dtype)
    if role == "kernel_gradient":
        return ConvProblem(calculus.kernel_gradient(spec, x, kernel, y), x, y, dtype)
    turned = jax.eval_shape(
        lambda k: calculus.transposed_kernel(
            spec.dimension_numbers.rhs_spec, spec.groups, k
        ),
        jax.ShapeDtypeStruct(kernel, dtype),
    )
    gradient = calculus.input_gradient(spec, x, kernel, y)
    return ConvProblem(gradient, y, turned.shape, dtype)


def measure(case: ConvCase, role: str, dtype: Any = jnp.float32, **timing: Any) -> Row:
    """Time one layer in one role.

    Args:
      case: the layer.
      role: one of `ROLES`.
      dtype: of the operands.
      **timing: rounds and seconds, as `jaxconv.bench.timing.compare` takes them.

    Raises:
      ValueError: if `role` is no such.
    """
    convs = {
        "stock": lax.conv_general_dilated,
        "jaxconv": jaxconv.lax.conv_general_dilated,
    }
    given = operands(case, role, dtype)
    programs = {name: program(conv, case, role, dtype) for name, conv in convs.items()}
    error, errors = error_of(case, role, given), {}
    layer = problem_of(case, "forward", dtype)

    def judge(name: str, result: Any) -> None:
        errors[name] = error(result)

    timings = compare(programs, given, judge=judge, **timing)
    return Row(
        case.name,
        role,
        timings["stock"],
        timings["jaxconv"],
        layer.flops,
        layer.bytes,
        errors["jaxconv"] / errors["stock"],
    )
