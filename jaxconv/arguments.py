"""From what a user wrote to a spec: the one place that validates, and that complains.

Every message has one form: the function that was called, the rule, the argument with
its value, the shapes, and what to do.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxconv.spec import (
    ConvSpec,
    Pads,
    as_wide_as,
    dilated,
    is_static,
    window_extents,
)

P = ParamSpec("P")
R = TypeVar("R")
DimensionNumbers = lax.ConvDimensionNumbers | Sequence[str] | None
Padding = str | Sequence[tuple[int, int]]

PADDING_STRINGS = ("SAME", "SAME_LOWER", "VALID")


@dataclasses.dataclass(frozen=True)
class Caller:
    """A public function, its names for lax's arguments, and the shapes it was given.

    Attributes:
      function: the function that the user called.
      names: its name for each argument that it does not call as lax does.
      shapes: shapes of the operands, as a message tells them.

    Example:
      >>> caller = Caller("conv", {"rhs": "kernel"}).given((2, 3), (3, 4))
      >>> print(caller.error(ValueError, "padding must fit", "padding", 9, "Cut it."))
      conv: padding must fit, but got padding=9 (lhs.shape=(2, 3), kernel.shape=(3,
      4)). Cut it.
    """

    function: str
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shapes: str = ""

    def name(self, argument: str) -> str:
        """What the caller calls lax's `argument`."""
        return self.names.get(argument, argument)

    def given(self, x_shape: Sequence[int], kernel_shape: Sequence[int]) -> "Caller":
        """The caller, with operands of these shapes, if it has none yet."""
        if self.shapes:
            return self
        x, kernel = self.name("lhs"), self.name("rhs")
        shapes = f"{x}.shape={tuple(x_shape)}, {kernel}.shape={tuple(kernel_shape)}"
        return dataclasses.replace(self, shapes=shapes)

    def error(
        self,
        kind: type[Exception],
        rule: str,
        argument: str,
        value: object,
        advice: str,
    ) -> Exception:
        """``function: rule, but got argument=value (shapes). advice``."""
        got = f"{self.name(argument)}={value!r}"
        got += f" ({self.shapes})" if self.shapes else ""
        return kind(f"{self.function}: {rule}, but got {got}. {advice}")


def static_int(caller: Caller, argument: str, value: Any, whole: Any = None) -> int:
    """`value` as an int, or as the symbolic dimension that it is.

    Args:
      caller: whom to name in errors.
      argument: where the value stands.
      value: what should be an int.
      whole: the argument's value, if `value` is a part of it.

    Raises:
      TypeError: if it is neither.
    """
    if jax.export.is_symbolic_dim(value):
        return value  # pyright: ignore[reportReturnType] # it computes as an int
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError("a bool is no size")
        return operator.index(value)
    except TypeError as cause:
        advice = "Pass Python ints."
        if isinstance(value, Tracer):
            advice += (
                " A traced value cannot shape a program: compute it outside of jit, or "
                "mark it static, as with jax.jit(..., static_argnums=...)."
            )
        rule = f"{caller.name(argument)} must be made of ints known at trace time"
        shown = value if whole is None else whole
        raise caller.error(TypeError, rule, argument, shown, advice) from cause


def elements(value: Any) -> tuple | None:
    """The elements of any iterable but a string, or None.

    Example:
      >>> elements([1, 2]), elements("ab"), elements(3)
      ((1, 2), None, None)
    """
    try:
        return None if isinstance(value, str | bytes) else tuple(value)
    except TypeError:
        return None


def demand_bool(function: str, name: str, value: Any) -> None:
    """Raise a TypeError that names the argument unless it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(
            f"{function}: {name} must be True or False, known at trace time, but got "
            f"{name}={value!r}. Pass a Python bool."
        )


def in_own_widths(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with types of 64 bits where an argument is an array of such."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves = jax.tree.leaves((args, kwargs))
        with as_wide_as(*(leaf for leaf in leaves if isinstance(leaf, jax.Array))):
            return function(*args, **kwargs)

    return call


def as_array(function: str, name: str, value: ArrayLike) -> jax.Array:
    """The argument as an array, or a TypeError that names it."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as cause:
        raise TypeError(
            f"{function}: {name} must be an array, but got {name} of type "
            f"{type(value).__name__}. Pass a JAX or NumPy array. ({cause})"
        ) from cause


def as_shape(
    function: str, name: str, value: Any, advice: str = "Pass array.shape."
) -> tuple[int, ...]:
    """The argument as a shape, or a TypeError or ValueError that names it."""
    is_line = getattr(value, "ndim", 1) == 1  # an array may hold sizes
    sizes = elements(value) if is_line else None
    if sizes is None or any(hasattr(size, "shape") and size.shape for size in sizes):
        raise TypeError(
            f"{function}: {name} must be a shape, a tuple of ints, but got {name} of "
            f"type {type(value).__name__}. {advice}"
        )
    caller = Caller(function)
    shape = tuple(static_int(caller, name, size, value) for size in sizes)
    if any(is_static(size) and size < 0 for size in shape):
        rule = f"{name} must hold sizes of at least 0"
        raise caller.error(ValueError, rule, name, value, advice)
    return shape


def as_cotangent(function: str, g: ArrayLike, y_type: Any) -> jax.Array:
    """The cotangent as an array, of the result's shape and dtype or refused."""
    g = as_array(function, "g", g)
    if g.shape != y_type.shape:
        raise ValueError(
            f"{function}: g must have the shape of the result, {y_type.shape}, but got "
            f"g.shape={g.shape}. Check g, and that options are those of the forward."
        )
    if g.dtype != y_type.dtype:
        raise TypeError(
            f"{function}: g must have the dtype of the result, {y_type.dtype}, but got "
            f"g.dtype={g.dtype}. Convert it with .astype(...)."
        )
    demand_inexact(function, "g", g)
    return g


def demand_inexact(function: str, name: str, array: jax.Array) -> None:
    """Refuse, by name, what has no gradient, or none that its dtype could hold."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise TypeError(
            f"{function}: gradients are for floating and complex dtypes, but got "
            f"{name}.dtype={array.dtype}. Convert the operands with .astype(...)."
        )


def per_axis(
    caller: Caller, argument: str, value: Any, rank: int, least: int = 1
) -> tuple[int, ...]:
    """One int per spatial axis, from a sequence of them.

    Args:
      caller: whom to name in errors.
      argument: what the sequence is.
      value: the sequence.
      rank: number of spatial axes.
      least: the smallest value allowed.

    Raises:
      TypeError: if it is no sequence of ints.
      ValueError: if there are not `rank` of them, or some are too small.
    """
    name = caller.name(argument)
    rule = f"{name} must hold one int ≥ {least} per spatial axis ({rank})"
    advice = f"Pass {rank}, in the order of the kernel's axes, such as {(1,) * rank}."
    given = elements(value)
    if given is None:
        raise caller.error(TypeError, rule, argument, value, advice)
    sizes = tuple(static_int(caller, argument, size, given) for size in given)
    if len(sizes) != rank or any(is_static(size) and size < least for size in sizes):
        raise caller.error(ValueError, rule, argument, value, advice)
    return sizes


def canonical_layout(
    caller: Caller,
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    dimension_numbers: DimensionNumbers,
) -> lax.ConvDimensionNumbers:
    """`dimension_numbers` in any of lax's forms as axis numbers.

    Args:
      caller: whom to name in errors.
      x_shape: shape of the input, of rank n + 2.
      kernel_shape: shape of the kernel, of the same rank.
      dimension_numbers: None, three strings, or a `ConvDimensionNumbers`.

    Returns:
      Axis numbers of (batch, feature, *spatial) in input and output, and of (output
      feature, input feature, *spatial) in the kernel.

    Raises:
      TypeError: if ranks differ, or an axis is named twice, or not at all.
    """
    shapes, rank = (tuple(x_shape), tuple(kernel_shape)), len(x_shape)
    caller = caller.given(*shapes)
    if rank != len(kernel_shape) or rank < 2:
        raise TypeError(
            f"{caller.function}: {caller.name('lhs')} and {caller.name('rhs')} must "
            "have the same rank, n + 2 for n ≥ 0 spatial axes, but got "
            f"{caller.shapes}. Add the batch, feature or spatial axis that is missing."
        )
    rule = "dimension_numbers must tell the place of every axis once"
    advice = (
        "Pass three strings such as ('NHWC', 'HWIO', 'NHWC'), a "
        "jax.lax.ConvDimensionNumbers, or None for the default."
    )

    def error(advice: str) -> Exception:
        return caller.error(
            TypeError, rule, "dimension_numbers", dimension_numbers, advice
        )

    if isinstance(dimension_numbers, lax.ConvDimensionNumbers):
        try:
            axes = [tuple(map(operator.index, part)) for part in dimension_numbers]
        except TypeError as cause:
            raise error(advice) from cause
        if any(sorted(part) != list(range(rank)) for part in axes):
            raise error(advice)
        return lax.ConvDimensionNumbers(*axes)
    try:
        return lax.conv_dimension_numbers(*shapes, dimension_numbers)
    except TypeError as cause:
        raise error(advice) from cause


def pairs_per_axis(
    caller: Caller, value: Any, rank: int, strings: Sequence[str], *, short: bool
) -> Pads:
    """(low, high) per spatial axis, from pairs.

    Args:
      caller: whom to name in errors.
      value: padding, not one of `strings`.
      rank: number of spatial axes.
      strings: what else the caller takes, for the message.
      short: whether one int may stand for a pair, and one for all of them.

    Raises:
      TypeError: if there are not `rank` of them, or some are no ints.
      ValueError: if it is no sequence of pairs.
    """
    each = f"for each of {rank} spatial axes"
    ints = f"a (low, high) pair {each}"
    if short:
        ints = f"an int for all axes, or an int or a (low, high) pair {each}"
    rule = f"padding must be one of {', '.join(strings)}, or {ints}"
    advice = f"Pass {rank} pairs, such as {((1, 1),) * rank}."
    given = elements(value)
    if given is None and short and not isinstance(value, str):
        given = (static_int(caller, "padding", value),) * rank
    if given is None:
        raise caller.error(ValueError, rule, "padding", value, advice)
    pads = []
    for pad in given:
        pair = elements(pad)
        if pair is None and short and not isinstance(pad, str):
            pair = (pad, pad)
        if pair is None or len(pair) != 2:
            raise caller.error(ValueError, rule, "padding", value, advice)
        low, high = (static_int(caller, "padding", end, given) for end in pair)
        pads.append((low, high))
    if len(pads) != rank:
        raise caller.error(TypeError, rule, "padding", value, advice)
    return tuple(pads)


def _pads(
    caller: Caller,
    value: Any,
    x_spatial: Sequence[int],
    windows: Sequence[int],
    strides: Sequence[int],
    lhs_dilation: Sequence[int],
) -> Pads:
    """(low, high) per spatial axis, from a string or from pairs."""

    def error(rule: str, advice: str) -> Exception:
        return caller.error(ValueError, rule, "padding", value, advice)

    if isinstance(value, str) and value.upper() in PADDING_STRINGS:
        if any(dilation != 1 for dilation in lhs_dilation):
            name = caller.name("lhs_dilation")
            rule = f"padding as a string has no meaning beside {name} > 1"
            advice = f"{name} is {tuple(lhs_dilation)}: pass pairs, or conv_transpose."
            raise error(rule, advice)
        pads = lax.padtype_to_pads(x_spatial, windows, strides, value.upper())
        return tuple((_plain(low), _plain(high)) for low, high in pads)
    pads = pairs_per_axis(caller, value, len(windows), PADDING_STRINGS, short=False)
    for i, (low, high) in enumerate(pads):
        extent = dilated(x_spatial[i], lhs_dilation[i])
        if is_static(extent, low, high) and extent + low + high < 0:
            rule = f"padding must not crop more than there is ({extent} on axis {i})"
            raise error(rule, "Crop less, or pad the other side.")
    return pads


def _plain(size: Any) -> Any:
    """NumPy ints as Python's; symbolic dimensions as they are."""
    return int(size) if is_static(size) else size


def _check_groups(
    caller: Caller,
    counts: dict[str, int],
    batch: int,
    in_features: int,
    kernel_in_features: int,
    out_features: int,
) -> None:
    """Refuse group counts that do not divide what they group."""

    def require(argument: str, holds: bool, rule: str, advice: str) -> None:
        if not holds:
            raise caller.error(ValueError, rule, argument, counts[argument], advice)

    divided: dict[str, dict[str, int]] = {
        "feature_group_count": {"input features": in_features},
        "batch_group_count": {"batch": batch},
    }
    for argument, sizes in divided.items():
        count, name = counts[argument], caller.name(argument)
        if not is_static(count):
            continue
        rule = f"{name} must be at least 1"
        require(argument, count > 0, rule, "Pass 1 for an ordinary convolution.")
        for what, size in {**sizes, "output features": out_features}.items():
            require(
                argument,
                not is_static(size) or size % count == 0,
                f"{name} must divide the {what}, and {size} is no multiple",
                f"Change {name} or the {what}, or check dimension_numbers.",
            )
    groups = counts["feature_group_count"]
    name, batch_name = map(caller.name, divided)
    require(
        "batch_group_count",
        not is_static(*counts.values()) or 1 in counts.values(),
        f"only one of {name} and {batch_name} may be above 1",
        f"{name} is {groups}: set one of the two to 1.",
    )
    require(
        "feature_group_count",
        not is_static(in_features, groups, kernel_in_features)
        or kernel_in_features == in_features // groups,
        f"the {caller.name('rhs')} must have input features // {name} = {in_features} "
        f"// {groups} input features, and has {kernel_in_features}",
        f"Check the kernel's shape and which axis of {caller.name('lhs')} "
        f"dimension_numbers take for its features, or set {name}.",
    )


def conv_spec(
    caller: Caller,
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    *,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: DimensionNumbers = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
) -> ConvSpec:
    """Build the spec of a convolution from what a user wrote, or say what is wrong.

    Takes what `jax.lax.conv_general_dilated` takes, in the same meaning: strides,
    padding and dilations stand in the order of the kernel's spatial axes.

    Args:
      caller: whom to name in errors.
      x_shape: shape of the input, of rank n + 2 for n ≥ 0 spatial axes.
      kernel_shape: shape of the kernel, of the same rank.
      window_strides: one int ≥ 1 per spatial axis.
      padding: "SAME", "SAME_LOWER" or "VALID" in any case, or (low, high) pairs.
      lhs_dilation: one int ≥ 1 per spatial axis; None for ones.
      rhs_dilation: one int ≥ 1 per spatial axis; None for ones.
      dimension_numbers: None, three strings, or a `ConvDimensionNumbers`.
      feature_group_count: an int ≥ 1 that divides the channels and the features.
      batch_group_count: an int ≥ 1 that divides the batch and the features.

    Returns:
      The spec, hashable, made of ints (and symbolic dimensions where shapes have them).

    Raises:
      TypeError: on a wrong kind of value, or wrong ranks.
      ValueError: on a value out of range, or one that does not fit the shapes.

    Example:
      >>> spec = conv_spec(Caller("conv"), (1, 3, 8), (4, 3, 5),
      ...                  window_strides=(2,), padding="SAME")
      >>> spec.padding, spec.output_shape((1, 3, 8), (4, 3, 5))
      (((1, 2),), (1, 4, 4))
    """
    layout = canonical_layout(caller, x_shape, kernel_shape, dimension_numbers)
    caller, rank = caller.given(x_shape, kernel_shape), len(x_shape) - 2
    strides = per_axis(caller, "window_strides", window_strides, rank)
    x_dilation = kernel_dilation = (1,) * rank
    if lhs_dilation is not None:
        x_dilation = per_axis(caller, "lhs_dilation", lhs_dilation, rank)
    if rhs_dilation is not None:
        kernel_dilation = per_axis(caller, "rhs_dilation", rhs_dilation, rank)
    given: dict[str, Any] = {
        "feature_group_count": feature_group_count,
        "batch_group_count": batch_group_count,
    }
    groups: dict[str, int] = {
        name: static_int(caller, name, count) for name, count in given.items()
    }
    batch, channels, *x_spatial = (x_shape[axis] for axis in layout.lhs_spec)
    features, kernel_channels = (kernel_shape[axis] for axis in layout.rhs_spec[:2])
    _check_groups(caller, groups, batch, channels, kernel_channels, features)
    windows = window_extents(kernel_shape, layout, kernel_dilation)
    return ConvSpec(
        window_strides=strides,
        padding=_pads(caller, padding, x_spatial, windows, strides, x_dilation),
        lhs_dilation=x_dilation,
        rhs_dilation=kernel_dilation,
        dimension_numbers=layout,
        feature_group_count=groups["feature_group_count"],
        batch_group_count=groups["batch_group_count"],
    )


def transposed_padding(
    window: int, stride: int, padding: str | tuple[int, int]
) -> tuple[int, int]:
    """Padding of the input-dilated convolution that transposes a convolution.

    Args:
      window: extent of the dilated kernel, d·(K − 1) + 1.
      stride: s of the convolution that is transposed.
      padding: "SAME" or "VALID" of that convolution, as lax reads them: the output has
        s·I points, or s·I + max(window − s, 0); or its pair (low, high).

    Returns:
      (low, high) around the input dilated by s.

    Example:
      >>> transposed_padding(3, 2, "SAME"), transposed_padding(3, 2, (1, 1))
      ((2, 1), (1, 1))
    """
    if padding == "SAME":
        total = window + stride - 2
        low = window - 1 if stride > window - 1 else -(-total // 2)
        return low, total - low
    if padding == "VALID":
        return window - 1, stride - 1 + max(window - stride, 0)
    assert not isinstance(padding, str)
    low, high = padding
    return window - 1 - low, window - 1 - high


def conv_numerics(
    caller: Caller,
    x: Any,
    kernel: Any,
    precision: Any,
    preferred_element_type: Any,
    otherwise: str = "",
) -> dict[str, Any]:
    """Check and canonicalise what a convolution has beside its geometry.

    Args:
      caller: whom to name in errors.
      x: the input, or its type.
      kernel: the kernel, or its type.
      precision: as `jax.lax.conv_general_dilated` takes it; None for the default of
        `jax.default_matmul_precision`, which is read here, at trace time.
      preferred_element_type: dtype of the sums and the result; None for that of `x`.
      otherwise: what else is advised where the dtypes differ.

    Returns:
      The two as hashable keyword arguments for `jaxconv.primitive.conv`.

    Raises:
      TypeError: if the dtypes differ or `preferred_element_type` does not suit them.
      ValueError: if `precision` is none that lax knows.
    """
    name = caller.name("rhs")
    dtypes = f"{caller.name('lhs')}.dtype={x.dtype}, {name}.dtype={kernel.dtype}"
    if x.dtype != kernel.dtype:
        raise TypeError(
            f"{caller.function}: {caller.name('lhs')} and {name} must have the same "
            f"dtype, but got {dtypes}. Convert one with .astype(...){otherwise}."
        )
    if precision is None:
        precision = jax.config.jax_default_matmul_precision
    if not isinstance(precision, lax.DotAlgorithm | lax.DotAlgorithmPreset):
        parts = elements(precision)
        precision = (
            tuple(map(_precision, parts))
            if parts is not None
            else _precision(precision)
        )
    numerics = {"precision": precision, "preferred_element_type": None}
    try:
        if preferred_element_type is not None:
            preferred = jax.dtypes.canonicalize_dtype(preferred_element_type)
            numerics["preferred_element_type"] = preferred
        _let_lax_judge(x.dtype, **numerics)
    except (TypeError, ValueError) as cause:
        told = {"precision": precision}
        if preferred_element_type is not None:  # which not every function takes
            told["preferred_element_type"] = preferred_element_type
        raise type(cause)(
            f"{caller.function}: {' and '.join(told)} must suit the operands, but got "
            f"{', '.join(f'{name}={value!r}' for name, value in told.items())} "
            f"({caller.name('lhs')}.dtype={x.dtype}). {cause}"
        ) from cause
    return numerics


def _precision(name: Any) -> Any:
    """A precision's name as the `lax.Precision` that it means, if it means one."""
    try:
        return lax.Precision(name) if isinstance(name, str) else name
    except ValueError:
        return name


@functools.lru_cache(maxsize=256)
def _let_lax_judge(dtype: Any, precision: Any, preferred_element_type: Any) -> None:
    """Trace the smallest convolution with these numerics."""
    jax.eval_shape(
        functools.partial(
            lax.conv_general_dilated,
            window_strides=(),
            padding=(),
            precision=precision,
            preferred_element_type=preferred_element_type,
        ),
        *[jax.ShapeDtypeStruct((1, 1), dtype)] * 2,
    )
