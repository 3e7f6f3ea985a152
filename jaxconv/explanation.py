"""`explain(fn, *args)`: which convolutions a function has, and what becomes of them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jaxconv.planner import plan
from jaxconv.primitive import explicit_sharding
from jaxconv.spec import ConvProblem, ConvSpec
from jaxconv.transform import (
    conv_params,
    demand_callable,
    hides_convolutions,
    maker_of,
    makers,
    programs_in,
    trace,
)

OPAQUE = (
    "buffer_callback",
    "call_exported",
    "ffi_call",
    "io_callback",
    "pure_callback",
)
"""Primitives that call what is no jaxpr: what they compute stays what it is."""

MOVES = ("convert_element_type", "reshape", "transpose")
"""Primitives that keep the order of a kernel's taps."""


class ExplainedConv(NamedTuple):
    """One convolution of a program.

    Attributes:
      where: the names of the functions and scopes around it.
      role: "forward", "input gradient" or "kernel gradient" of a differentiated
        function, or "plain".
      times: how often `scan` repeats it, as `while` does not tell.
      problem: its shapes and geometry.
      algorithm: the one that the planner chose for it.
      reason: why.
    """

    where: str
    role: str
    times: int
    problem: ConvProblem
    algorithm: str
    reason: str

    @property
    def flops(self) -> int:
        """Additions and multiplications of its sum, once."""
        return self.problem.flops

    @property
    def bytes(self) -> int:
        """Of the two operands and of the result, once."""
        return self.problem.bytes


class Explanation(NamedTuple):
    """What `explain` found; printed, a table.

    Attributes:
      convolutions: one entry for each.
      opaque: primitives that cannot be looked into, and how many there are of each.
    """

    convolutions: tuple[ExplainedConv, ...]
    opaque: dict[str, int]

    def __str__(self) -> str:
        """One line for each convolution, below a line of headings."""
        head = ("role", "x", "kernel", "y", "MFLOP", "MB", "algorithm", "where", "why")
        rows = [
            (
                conv.role if conv.times == 1 else f"{conv.role}, {conv.times} times",
                *(
                    "x".join(map(str, shape))
                    for shape in (
                        conv.problem.x_shape,
                        conv.problem.kernel_shape,
                        conv.problem.output_shape,
                    )
                ),
                *_millions(conv),
                conv.algorithm,
                conv.where,
                conv.reason,
            )
            for conv in self.convolutions
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)
        ]
        if not rows:
            lines = ["no convolutions"]
        lines += [
            f"left as they are, as they cannot be looked into: {count} {name}"
            for name, count in self.opaque.items()
        ]
        return "\n".join(lines)


def _millions(conv: ExplainedConv) -> tuple[str, str]:
    """Operations and bytes in millions, which symbolic sizes do not tell."""
    if not conv.problem.is_static:
        return "-", "-"
    return _rounded(conv.flops / 1e6), _rounded(conv.bytes / 1e6)


def _rounded(number: float) -> str:
    """Three digits, or all before the point, and no exponent.

    Example:
      >>> _rounded(0.0123456), _rounded(1.5), _rounded(1850.4)
      ('0.0123', '1.5', '1850')
    """
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def explain(fn: Callable, /, *args: Any, **kwargs: Any) -> Explanation:
    """Tell which convolutions `fn` has, and how jaxconv computes each.

    Args:
      fn: a function of arrays, accelerated or not.
      *args: its arguments; arrays may be given as `jax.ShapeDtypeStruct`.
      **kwargs: its keyword arguments.

    Returns:
      The convolutions in the order of the program, as a table when printed.

    Raises:
      TypeError: if `fn` is not callable.
      ValueError: if `fn` was jitted with `compiler_options`.

    Source: `jaxconv.planner.plan`, for the platform that JAX computes on by default.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss(kernel, x):
      ...     return jax.lax.conv(x, kernel, (1, 1), "SAME").sum()
      >>> kernel, x = jnp.ones((4, 3, 3, 3)), jnp.ones((1, 3, 8, 8))
      >>> explanation = explain(jax.value_and_grad(loss), kernel, x)
      >>> [conv.role for conv in explanation.convolutions]
      ['forward', 'kernel gradient']
    """
    demand_callable("explain", fn)
    opaque: dict[str, int] = {}
    by_type = jax.Array, jax.ShapeDtypeStruct
    jaxpr = trace("explain", fn, args, kwargs, by_type).jaxpr
    return Explanation(tuple(_explained(jaxpr, (), 1, opaque)), opaque)


def _explained(
    jaxpr: Any, around: tuple[str, ...], times: int, opaque: dict[str, int]
) -> Iterator[ExplainedConv]:
    """The convolutions of a program and of the programs in it."""
    made = makers(jaxpr)
    for equation in jaxpr.eqns:
        own = str(equation.source_info.name_stack)
        where = (*around, own) if own else around
        name, params = equation.primitive.name, conv_params(equation, made)
        if params is not None:
            yield _of(equation, params, made, where, times)
        elif name in OPAQUE or hides_convolutions(equation):
            opaque[name] = opaque.get(name, 0) + 1
        called = equation.params.get("name")
        inner = (*where, f"{name}({called})" if isinstance(called, str) else name)
        length = equation.params.get("length", 1) if name == "scan" else 1
        for program in programs_in(equation):
            yield from _explained(program, inner, times * length, opaque)


def _of(
    equation: Any,
    params: dict[str, Any],
    made: Mapping[Any, Any],
    where: tuple[str, ...],
    times: int,
) -> ExplainedConv:
    x, kernel = (atom.aval for atom in equation.invars)
    problem = ConvProblem(
        x_shape=x.shape, kernel_shape=kernel.shape, dtype=x.dtype, **params
    )
    explicit = any(explicit_sharding(aval.sharding) for aval in (x, kernel))
    chosen = plan(problem, jax.default_backend(), explicit=explicit)
    path = "/".join(where)
    role = _role(problem.spec, equation.invars[1], made, path)
    return ExplainedConv(path, role, times, problem, chosen.algorithm, chosen.reason)


def _role(spec: ConvSpec, kernel: Any, made: Mapping[Any, Any], where: str) -> str:
    """What the convolution is in the function that was differentiated, if any."""
    # What jax.checkpoint computes once more stands within what is transposed.
    _, again, within = where.rpartition("rematted_computation")
    if "transpose(" not in within:
        return "forward" if again or "jvp(" in where else "plain"
    if _is_flipped(kernel, made):
        return "input gradient"
    # Rules of one's own and solvers apply layers there as well. Images, which stand
    # outermost in most layers, are the channels of a kernel gradient.
    x_axes, _, y_axes = spec.dimension_numbers
    return "forward" if x_axes[0] == y_axes[0] == 0 else "kernel gradient"


def _is_flipped(kernel: Any, made: Mapping[Any, Any]) -> bool:
    """Whether it is read backwards, as in an input gradient, vmapped or not."""
    maker = maker_of(kernel, made)
    while maker is not None and maker.primitive.name in MOVES:
        maker = maker_of(maker.invars[0], made)
    return maker is not None and maker.primitive.name == "rev"
