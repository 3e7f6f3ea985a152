"""JAX primitives: `conv_p`, a convolution by its spec, with every rule.

It is bilinear, so that forward and reverse mode, their compositions and linear
transposition follow from two transposes, which `calculus` writes as convolutions again.
Batching maps it to itself. Lowering asks the planner, per platform.

    y = conv(x, kernel, spec)                                   bind the primitive
    dx = input_gradient(g, kernel, typeof(x), spec=spec)        its transpose in x
    dkernel = kernel_gradient(g, x, typeof(kernel), spec=spec)  ... in the kernel

`transposes` makes primitives of two linear maps that multiply nothing, which platforms
compute in ways of their own and transforms see as one operation.
"""

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.extend.core.primitives import conv_general_dilated_p as conv_general_dilated_p
from jax.extend.core.primitives import dot_general_p as dot_general_p
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxconv import calculus
from jaxconv.algorithms import compute, direct
from jaxconv.algorithms.order import unconstrained
from jaxconv.planner import plan
from jaxconv.planner.choice import LARGER
from jaxconv.spec import (
    ConvProblem,
    ConvSpec,
    accumulation_dtype,
    as_wide_as,
    exchanged,
    is_static,
)

conv_p = Primitive("jaxconv")

DEVICE = jax.memory.Space.Device
"""Where arrays are, unless a program puts them in the host's memory."""


def conv(
    x: jax.Array,
    kernel: jax.Array,
    spec: ConvSpec,
    *,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """The convolution of `x` with `kernel`, differentiable and mappable.

    Args:
      x: the input, in the spec's layout.
      kernel: the kernel, of the same dtype, or to be rounded to it; its gradient is of
        its own dtype, and never rounded to that of `x`.
      spec: what `jaxconv.arguments.conv_spec` returned for the two shapes.
      precision: canonical, that is None, a `lax.Precision` or a pair of them.
      preferred_element_type: a dtype, or None.
      out_sharding: a `NamedSharding` in explicit mode, or None.
    """
    x, kernel = varying_alike(x, kernel)
    return conv_p.bind(
        x,
        kernel,
        spec=spec,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )


def varying_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Inside shard_map, mark each array as varying wherever one of them is."""
    axes = [jax.typeof(array).mat.varying for array in arrays]
    together = frozenset.union(*axes)
    return [
        lax.pcast(array, tuple(together - own), to="varying")
        if together - own
        else array
        for array, own in zip(arrays, axes, strict=True)
    ]


def explicit_sharding(sharding: Any) -> NamedSharding | None:
    """The sharding if it belongs to the type (explicit mode), else None."""
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return sharding


def _problem(x: Any, kernel: Any, **params: Any) -> ConvProblem:
    """The problem that the operands (or their avals) and parameters pose."""
    return ConvProblem(
        x_shape=tuple(x.shape),
        kernel_shape=tuple(kernel.shape),
        dtype=x.dtype,
        **params,
    )


def _in_dtype(array: jax.Array, dtype: Any) -> jax.Array:
    """The array in that dtype: itself, if it is, with 64 bits switched off as well."""
    return array if array.dtype == dtype else array.astype(dtype)


def _stock(x: jax.Array, kernel: jax.Array, **params: Any) -> jax.Array:
    """The same convolution by lax."""
    kernel = _in_dtype(kernel, x.dtype)
    return direct.by_lax(_problem(x, kernel, **params), x, kernel)


@conv_p.def_abstract_eval
def _abstract_eval(x: Any, kernel: Any, **params: Any) -> Any:
    problem = _problem(x, kernel, **params)
    plain = all(a.sharding.mesh.empty and a.memory_space is DEVICE for a in (x, kernel))
    if problem.is_static and plain:
        return ShapedArray(
            problem.output_shape,
            problem.output_dtype,
            weak_type=x.weak_type and kernel.weak_type,
        )
    # lax's own rules: explicit shardings, varying axes and memory of the host too.
    (aval,) = jax.make_jaxpr(partial(_stock, **params))(x, kernel).out_avals
    return aval


def _planned(
    x: jax.Array, kernel: jax.Array, *, platform: str, devices: int, **params: Any
) -> jax.Array:
    """Compute the convolution by the algorithms that the planner chooses."""
    kernel = _in_dtype(kernel, x.dtype)
    explicit = any(
        explicit_sharding(jax.typeof(operand).sharding) for operand in (x, kernel)
    )

    def choose(problem: ConvProblem) -> str:
        return plan(problem, platform, devices, explicit=explicit).algorithm

    problem = _problem(x, kernel, **params)
    return compute(problem, choose(problem), choose, x, kernel)


conv_p.def_impl(partial(xla.apply_primitive, conv_p))


def _devices(ctx: Any) -> int:
    """Over how many XLA partitions the program that is being lowered.

    Inside of shard_map the shapes are those of one device along the axes of the mesh
    that it names, and the program is partitioned along the others.
    """
    context = ctx.module_context.axis_context
    if not hasattr(context, "manual_axes"):
        return getattr(context, "num_devices", 1)
    sizes = context.mesh.shape.items()
    return prod(size for axis, size in sizes if axis not in context.manual_axes)


def _lower(platform: str, ctx: Any, *operands: Any, **params: Any) -> Any:
    devices = _devices(ctx)
    if devices == 1:
        # Explicit shardings over one device say nothing, and refuse what plans need.
        types = [ShapedArray(aval.shape, aval.dtype) for aval in ctx.avals_in]
        ctx, params = ctx.replace(avals_in=types), {**params, "out_sharding": None}
    run = partial(_planned, platform=platform, devices=devices, **params)
    # XLA does not promise to understand constraints in programs of another version.
    exported = ctx.module_context.lowering_parameters.for_export
    alone = platform == "cpu" and devices == 1 and not exported
    with contextlib.nullcontext() if alone else unconstrained():
        return _lowered(run, ctx, *operands)


def _lowered(function: Callable, ctx: Any, *operands: Any) -> Any:
    """Lower a function, with 64 bits as when its operands and results were typed."""
    with as_wide_as(*ctx.avals_in, *ctx.avals_out):
        return mlir.lower_fun(function, multiple_results=False)(ctx, *operands)


mlir.register_lowering(conv_p, partial(_lower, "cpu"), platform="cpu")
mlir.register_lowering(conv_p, partial(_lower, "gpu"), platform="cuda")
mlir.register_lowering(conv_p, partial(_lower, "this platform"))


def _is_empty(*arrays: Any) -> bool:
    """Whether some array has no entries, so that a sum over it has no terms."""
    return any(is_static(size) and size == 0 for a in arrays for size in a.shape)


def _zeros(of: Any) -> jax.Array:
    """Zeros of a type, with its explicit sharding and varying axes."""
    zeros = lax.full(of.shape, 0, of.dtype, sharding=explicit_sharding(of.sharding))
    varying = of.mat.varying if isinstance(of, ShapedArray) else ()
    return lax.pcast(zeros, tuple(varying), to="varying") if varying else zeros


def input_gradient(
    g: jax.Array,
    kernel: jax.Array,
    x_type: Any,
    *,
    spec: ConvSpec,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """dx[n, c, i] = Σ_{f, o, t : L·i = s·o + d·t − p} g[n, f, o] · k[f, c, t].

    See `calculus.input_gradient`.

    It is read as a convolution of g with the kernel, or of the kernel with g.

    Args:
      g: cotangent of the output.
      kernel: the kernel; converted to the dtype of `g`, as lax does.
      x_type: `jax.typeof` the input: shape, dtype and sharding of the result.
      spec: of the convolution, not of its gradient.
      precision: of the gradient's convolution.
      preferred_element_type: of the gradient's convolution.
    """
    if _is_empty(g, x_type):
        return _zeros(x_type)
    kernel = _in_dtype(_in_dtype(kernel, x_type.dtype), g.dtype)
    over_kernel = _is_image(kernel, g, spec)
    read = (
        calculus.input_gradient_over_kernel if over_kernel else calculus.input_gradient
    )
    image, window = (kernel, g) if over_kernel else (g, kernel)
    _, kernel_axes, y_axes = spec.dimension_numbers
    axes = calculus.swapped(y_axes) if over_kernel else kernel_axes
    if over_kernel:
        precision = exchanged(precision)
    dx = conv(
        image,
        calculus.transposed_kernel(axes, spec.groups, window),
        read(spec, x_type.shape, kernel.shape, g.shape),
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=explicit_sharding(x_type.sharding),
    )
    if not over_kernel:
        dx = calculus.ungrouped_input_gradient(spec, dx)
    return _in_dtype(dx, x_type.dtype)


def _is_image(kernel: jax.Array, g: jax.Array, spec: ConvSpec) -> bool:
    """Whether the kernel is an image, as a kernel gradient has one, and g the kernel.

    As a window over g it would take a product for each of its taps, of which few meet
    an entry.
    """
    taps, entries = (
        [array.shape[axis] for axis in axes[2:]]
        for array, axes in zip((kernel, g), spec.dimension_numbers[1:], strict=True)
    )
    larger = is_static(*taps, *entries) and prod(taps) >= LARGER * prod(entries)
    return larger and spec.feature_group_count == 1


def _bits(dtype: Any) -> int:
    """Bits of each number."""
    return jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.inexact) else 0


def _sharding_of_sum(of: Any, *operands: jax.Array) -> NamedSharding | None:
    """The type's explicit sharding: with none, over no axis if an operand has one.

    The sum is over images, which may be spread over devices.
    """
    if of.sharding is not None:
        return explicit_sharding(of.sharding)
    found = (explicit_sharding(jax.typeof(a).sharding) for a in operands)
    meshes = (sharding.mesh for sharding in found if sharding is not None)
    over_none = PartitionSpec(*(None for _ in of.shape))
    return next((NamedSharding(mesh, over_none) for mesh in meshes), None)


def kernel_gradient(
    g: jax.Array,
    x: jax.Array,
    kernel_type: Any,
    *,
    spec: ConvSpec,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """Σ_{n, o} x̃[n, c, d·t + s·o − p]·g[n, f, o]: see `calculus.kernel_gradient`.

    Args:
      g: cotangent of the output.
      x: the input; converted to the dtype of `g`, as lax does.
      kernel_type: `jax.typeof` the kernel: shape, dtype and sharding of the result,
        which is replicated where a type without sharding is given.
      spec: of the convolution, not of its gradient.
      precision: of the gradient's convolution.
      preferred_element_type: of the gradient's convolution.
    """
    if _is_empty(g, kernel_type):
        return _zeros(kernel_type)
    if kernel_type.dtype != x.dtype:  # which may hold what that of x does not
        sums = accumulation_dtype(kernel_type.dtype)
        if _bits(sums) > _bits(preferred_element_type or g.dtype):
            preferred_element_type = sums
    dkernel = conv(
        _in_dtype(x, g.dtype),
        g,
        calculus.kernel_gradient(spec, x.shape, kernel_type.shape, g.shape),
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=_sharding_of_sum(kernel_type, x, g),
    )
    return _in_dtype(dkernel, kernel_type.dtype)


def _transpose_x(g: Any, x: Any, kernel: Any, *, out_sharding: Any, **params: Any):
    return input_gradient(g, kernel, x.aval, **params)


def _transpose_kernel(g: Any, x: Any, kernel: Any, *, out_sharding: Any, **params: Any):
    return kernel_gradient(g, x, kernel.aval, **params)


ad.defbilinear(conv_p, _transpose_x, _transpose_kernel)


def _taylor(operands: Any, series: Any, **params: Any) -> tuple[jax.Array, list]:
    """Taylor coefficients y_n = Σ_j conv(x_j, k_{n−j}), for `jax.experimental.jet`."""
    x, kernel = (
        [zeroth, *terms] for zeroth, terms in zip(operands, series, strict=True)
    )
    y = [
        reduce(
            operator.add,
            (conv_p.bind(x[j], kernel[n - j], **params) for j in range(n + 1)),
        )
        for n in range(len(x))
    ]
    return y[0], y[1:]


jet.jet_rules[conv_p] = _taylor


def _batched_sharding(out_sharding: Any, axis_data: Any, y: calculus.Fold) -> Any:
    """Explicit sharding of the folded result: a sharded mapped axis shards `y.axis`."""
    mesh_axis = axis_data.explicit_mesh_axis
    if out_sharding is None or not mesh_axis:
        return out_sharding
    names = list(out_sharding.spec)
    if y.outer > 1 or names[y.axis] is not None:
        raise NotImplementedError(
            f"conv: vmap over an axis that is sharded over {mesh_axis} cannot fold it "
            f"into axis {y.axis} of the output, but got out_sharding={out_sharding}. "
            "Unshard one of the two axes, or map inside of shard_map."
        )
    names[y.axis] = mesh_axis
    return NamedSharding(out_sharding.mesh, PartitionSpec(*names))


def _batch(
    axis_data: Any,
    operands: Sequence[jax.Array],
    mapped: Sequence[int | None],
    *,
    spec: ConvSpec,
    out_sharding: Any,
    **params: Any,
) -> tuple[jax.Array, int | None]:
    size = axis_data.size
    (x, kernel), (x_axis, kernel_axis) = operands, mapped
    x_mapped, kernel_mapped = x_axis is not None, kernel_axis is not None
    if not (x_mapped or kernel_mapped):  # JAX asks even then
        return conv(x, kernel, spec, out_sharding=out_sharding, **params), None
    if is_static(size) and size == 0:  # groups cannot be multiplied by 0
        return _of_none(partial(_stock, spec=spec, **params), operands, mapped), 0
    folds = calculus.batched(spec, size, x_mapped=x_mapped, kernel_mapped=kernel_mapped)
    if x_axis is not None and folds.x is not None:
        x = calculus.merge_axis(x, x_axis, *folds.x)
    if kernel_axis is not None and folds.kernel is not None:
        kernel = calculus.merge_axis(kernel, kernel_axis, *folds.kernel)
    y = conv(
        x,
        kernel,
        folds.spec,
        out_sharding=_batched_sharding(out_sharding, axis_data, folds.y),
        **params,
    )
    return calculus.split_axis(y, folds.y.axis, size, folds.y.outer), folds.y.axis


def _of_none(
    function: Callable, operands: Sequence[jax.Array], mapped: Sequence[int | None]
) -> jax.Array:
    """What mapping a function over an axis without entries returns."""
    single = [
        jax.ShapeDtypeStruct(
            [size for i, size in enumerate(operand.shape) if i != axis], operand.dtype
        )
        for operand, axis in zip(operands, mapped, strict=True)
    ]
    y = jax.eval_shape(function, *single)
    return jnp.zeros((0, *y.shape), y.dtype)


batching.fancy_primitive_batchers[conv_p] = _batch


class Ways(NamedTuple):
    """How a linear map of one array is computed, each as `way(problem, x)`.

    Attributes:
      cpu: on one CPU.
      default: on other platforms, and where XLA partitions the program.
      operand: which array of the problem's convolution it takes, x (0) or y (2).
    """

    cpu: Callable[[ConvProblem, jax.Array], jax.Array]
    default: Callable[[ConvProblem, jax.Array], jax.Array]
    operand: int


def transposes(names: Sequence[str], maps: Sequence[Ways]) -> list[Primitive]:
    """Two primitives, linear in their one operand, each the transpose of the other.

    They are bound as `bind(array, problem=problem)`, of known sizes and without an
    explicit sharding. A mapped axis joins the batch axis.

    Args:
      names: of the primitives, as jaxprs show them.
      maps: how they are computed; one takes x to y, the other y to x.
    """
    pair = [Primitive(name) for name in names]
    for linear_p, transpose_p, ways in zip(pair, reversed(pair), maps, strict=True):
        linear_p.def_abstract_eval(partial(_linear_type, ways))
        linear_p.def_impl(partial(xla.apply_primitive, linear_p))
        mlir.register_lowering(linear_p, partial(_lower_linear, ways, ways.default))
        on_cpu = partial(_lower_linear, ways, ways.cpu)
        mlir.register_lowering(linear_p, on_cpu, platform="cpu")
        ad.deflinear2(linear_p, partial(_transpose_linear, transpose_p))
        batching.primitive_batchers[linear_p] = partial(_batch_linear, linear_p, ways)
        jet.deflinear(linear_p)
    return pair


def _linear_type(ways: Ways, x: Any, *, problem: ConvProblem) -> Any:
    if x.sharding.mesh.empty:
        if ways.operand == 0:
            return ShapedArray(problem.output_shape, problem.output_dtype)
        return ShapedArray(problem.x_shape, problem.dtype)
    (aval,) = jax.make_jaxpr(partial(ways.default, problem))(x).out_avals
    return aval


def _lower_linear(ways: Ways, way: Any, ctx: Any, x: Any, *, problem: Any) -> Any:
    way = ways.default if _devices(ctx) > 1 else way
    return _lowered(partial(way, problem), ctx, x)


def _transpose_linear(transpose_p: Any, g: Any, _: Any, *, problem: Any) -> list:
    return [transpose_p.bind(g, problem=problem)]


def _batch_linear(
    linear_p: Primitive,
    ways: Ways,
    operands: Sequence[jax.Array],
    mapped: Sequence[int],
    *,
    problem: ConvProblem,
) -> tuple[jax.Array, int]:
    (x,), (axis,) = operands, mapped
    size, axes = x.shape[axis], problem.spec.dimension_numbers
    if is_static(size) and size == 0:
        return _of_none(partial(ways.default, problem), operands, mapped), 0
    x_shape = list(problem.x_shape)
    x_shape[axes[0][0]] *= size
    y = linear_p.bind(
        calculus.merge_axis(x, axis, axes[ways.operand][0]),
        problem=dataclasses.replace(problem, x_shape=tuple(x_shape)),
    )
    result = axes[2 - ways.operand][0]
    return calculus.split_axis(y, result, size), result
