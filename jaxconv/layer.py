"""A layer as one convolution between linear maps: what `functional` is made of.

    y = y_map(conv(x_map(x), kernel_map(kernel)))

`x_map` merges the batch axes into one and continues x beyond its border where zeros
will not do; `kernel_map` flips the kernel of a transposed layer; `y_map` splits the
batch axes. The gradients are those of the convolution, written by `calculus` as
convolutions, pulled back through the transposes of the maps.
"""

import difflib
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxconv import calculus, primitive
from jaxconv.arguments import (
    PADDING_STRINGS,
    Caller,
    DimensionNumbers,
    canonical_layout,
    conv_numerics,
    conv_spec,
    demand_bool,
    elements,
    pairs_per_axis,
    per_axis,
    static_int,
    transposed_padding,
)
from jaxconv.linear_maps import (
    IDENTITY,
    LinearMap,
    circular,
    continued,
    merged_batch,
    turned_kernel,
)
from jaxconv.spec import ConvSpec, is_static, window_extents

IntOrInts = int | Sequence[int]
Pairs = int | Sequence[int | tuple[int, int]]


class ConvOptions(TypedDict, total=False):
    """Keyword arguments of `conv_forward` and of every function that goes with it.

    Attributes:
      strides: s ≥ 1, an int or one per spatial axis. Default 1.
      padding: what surrounds x, whose windows span w = d·(K − 1) + 1 points:
        "SAME", "SAME_LOWER": zeros, so that ⌈I / s⌉ windows fit, the odd one at the
        high or low end; "VALID": none; "CAUSAL": w − 1 zeros before x; "CIRCULAR",
        "REFLECT", "REPLICATE": (w − 1) // 2 points before and w // 2 after x, that
        continue it periodically, mirrored about its end points, or by its end points;
        an int, or one int or (low, high) pair per spatial axis: so many zeros, negative
        ones crop. Default "SAME".
      input_dilation: L ≥ 1, an int or one per spatial axis: L − 1 zeros between the
        points of x; only with explicit padding. Default 1.
      dilation: d ≥ 1, an int or one per spatial axis: distance of the taps. Default 1.
      groups: G ≥ 1, divides the input and output features. Default 1.
      dimension_numbers: layouts of x, kernel and result as `jax.lax` takes them, for x
        with one batch axis; further batch axes lead. Default: channels last.
      precision: as in `jax.lax.conv_general_dilated`. Default None.
      preferred_element_type: dtype of the sums and the result. Default: that of x.
      cast_kernel: take a kernel of another precision, and round it to that of x, as
        mixed precision has float32 parameters and bfloat16 activations; its gradient is
        of its own dtype, and never rounded to that of x. Default False.
    """

    strides: IntOrInts
    padding: str | Pairs
    input_dilation: IntOrInts
    dilation: IntOrInts
    groups: int
    dimension_numbers: DimensionNumbers
    precision: Any
    preferred_element_type: DTypeLike | None
    cast_kernel: bool


class ConvTransposeOptions(TypedDict, total=False):
    """Keyword arguments of `conv_transpose_forward` and of its twins.

    Attributes:
      strides: s ≥ 1, an int or one per spatial axis: s − 1 zeros between the points
        of x. Default 1.
      padding: "SAME" (s·I outputs), "VALID" (s·I + max(w − s, 0) outputs, where windows
        span w = d·(K − 1) + 1 points), "CIRCULAR" (s·I outputs, the further ones of
        "VALID" wrapped around, as Flax does); or an int, or one int or (low, high) pair
        per spatial axis: zeros around the dilated x. Default "SAME".
      output_padding: points added at the high end of y, an int or one per spatial axis,
        below the stride or the dilation. Default 0.
      dilation: d ≥ 1, an int or one per spatial axis. Default 1.
      groups: G ≥ 1, divides the input and output features. Default 1.
      transpose_kernel: the kernel is that of the convolution which this transposes,
        [*taps, Cout // groups, Cin]: it is flipped, and its features exchanged.
        Haiku's, of the same shape, are not flipped: give `dimension_numbers` such as
        ("NHWC", "HWOI", "NHWC") for these. Default False.
      use_consistent_padding: read explicit padding as that of the convolution which
        this transposes, as PyTorch does. Default False.
      dimension_numbers: as in `ConvOptions`.
      precision: as in `jax.lax.conv_general_dilated`. Default None.
      preferred_element_type: dtype of the sums and the result. Default: that of x.
      cast_kernel: as in `ConvOptions`. Default False.
    """

    strides: IntOrInts
    padding: str | Pairs
    output_padding: IntOrInts
    dilation: IntOrInts
    groups: int
    transpose_kernel: bool
    use_consistent_padding: bool
    dimension_numbers: DimensionNumbers
    precision: Any
    preferred_element_type: DTypeLike | None
    cast_kernel: bool


_CONV_DEFAULTS = ConvOptions(
    strides=1,
    padding="SAME",
    input_dilation=1,
    dilation=1,
    groups=1,
    dimension_numbers=None,
    precision=None,
    preferred_element_type=None,
    cast_kernel=False,
)
_TRANSPOSE_DEFAULTS = ConvTransposeOptions(
    strides=1,
    padding="SAME",
    output_padding=0,
    dilation=1,
    groups=1,
    transpose_kernel=False,
    use_consistent_padding=False,
    dimension_numbers=None,
    precision=None,
    preferred_element_type=None,
    cast_kernel=False,
)
_NAMES: dict[str, str] = {
    "lhs": "x",
    "rhs": "kernel",
    "window_strides": "strides",
    "rhs_dilation": "dilation",
    "feature_group_count": "groups",
}
_BORDERS = {"CIRCULAR": "wrap", "REFLECT": "reflect", "REPLICATE": "edge"}


class Layer(NamedTuple):
    """A layer's convolution and the linear maps around it.

    Attributes:
      spec: the convolution.
      numerics: precision and preferred_element_type.
      x_type: shape and dtype of the convolution's input.
      kernel_type: shape and dtype of its kernel.
      x_map: from the layer's input to the convolution's.
      kernel_map: from the layer's kernel to the convolution's.
      y_map: from the convolution's result to the layer's.
    """

    spec: ConvSpec
    numerics: dict[str, Any]
    x_type: jax.ShapeDtypeStruct
    kernel_type: jax.ShapeDtypeStruct
    x_map: LinearMap
    kernel_map: LinearMap
    y_map: LinearMap

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The layer without its bias."""
        x, kernel = self.x_map.apply(x), self.kernel_map.apply(kernel)
        return self.y_map.apply(primitive.conv(x, kernel, self.spec, **self.numerics))

    def input_gradient(
        self, g: jax.Array, kernel: jax.Array, x: jax.Array | None = None
    ) -> jax.Array:
        """The input gradient, as a convolution; sharded like `x` if that is given."""
        x_type = self.x_type if x is None else jax.typeof(self.x_map.apply(x))
        kernel, g = self.kernel_map.apply(kernel), self.y_map.transpose(g)
        dx = primitive.input_gradient(
            g, kernel, x_type, spec=self.spec, **self.numerics
        )
        return self.x_map.transpose(dx)

    def kernel_gradient(
        self, g: jax.Array, x: jax.Array, kernel: jax.Array | None = None
    ) -> jax.Array:
        """The kernel gradient, as a convolution; sharded like `kernel` if given."""
        kernel_type = self.kernel_type
        if kernel is not None:
            kernel_type = jax.typeof(self.kernel_map.apply(kernel))
        x, g = self.x_map.apply(x), self.y_map.transpose(g)
        dkernel = primitive.kernel_gradient(
            g, x, kernel_type, spec=self.spec, **self.numerics
        )
        return self.kernel_map.transpose(dkernel)

    @property
    def y_type(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the layer's result."""
        conv = functools.partial(primitive.conv, spec=self.spec, **self.numerics)
        y_type = jax.eval_shape(conv, self.x_type, self.kernel_type)
        return jax.eval_shape(self.y_map.apply, y_type)

    @property
    def output_dtype(self) -> Any:
        """Dtype of the layer's result."""
        return self.numerics["preferred_element_type"] or self.x_type.dtype

    @property
    def y_features(self) -> int:
        """Output features of the layer."""
        return self.kernel_type.shape[self.spec.dimension_numbers.rhs_spec[0]]

    def y_feature_axis(self, rank: int) -> int:
        """Where the features stand in a result of that many axes, counted from 0."""
        batch, feature, *spatial = self.spec.dimension_numbers.out_spec
        if rank == len(spatial) + 1:  # no batch axis
            return feature - (batch < feature)
        return feature + rank - (len(spatial) + 2)


_ELSEWHERE = {
    "dtype": ("preferred_element_type",),
    "feature_group_count": ("groups",),
    "input_dilation": ("strides",),  # of a transposed layer
    "kernel_dilation": ("dilation",),
    "lhs_dilation": ("input_dilation", "strides"),
    "rate": ("dilation",),
    "rhs_dilation": ("dilation",),
    "window_strides": ("strides",),
}
"""What options are called, by what other libraries call them."""


def _all_options(function: str, given: Any, defaults: Any) -> dict[str, Any]:
    """Defaults replaced by what was given; a keyword that nothing has is refused."""
    for name, value in given.items():
        if name not in defaults:
            close = [n for n in _ELSEWHERE.get(name, ()) if n in defaults]
            close += difflib.get_close_matches(name, defaults, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise TypeError(
                f"{function}: keywords must be known ones, but got {name}={value!r}. "
                f"{hint}Known keywords: {', '.join(defaults)}."
            )
    for name, value in given.items():
        if isinstance(defaults[name], bool):
            demand_bool(function, name, value)
    return {**defaults, **given}


class _Operands(NamedTuple):
    """What both kinds of layer know of their operands.

    Attributes:
      caller: whom to name in errors.
      layout: with one batch axis.
      x_shape: shape of x with all batch axes merged into the one of its layout.
      batch: sizes of the batch axes as given, none to many.
      rank: number of spatial axes.
    """

    caller: Caller
    layout: lax.ConvDimensionNumbers
    x_shape: tuple[int, ...]
    batch: tuple[int, ...]
    rank: int

    def sizes(self, argument: str, value: Any, least: int = 1) -> tuple[int, ...]:
        """One int per spatial axis, from one int for all of them or one for each."""
        given = elements(value)
        if given is None:
            given = (static_int(self.caller, argument, value),) * self.rank
        return per_axis(self.caller, argument, given, self.rank, least)


def _operands(
    caller: Caller, x: Any, kernel: Any, dimension_numbers: DimensionNumbers
) -> _Operands:
    """Sort the axes of the operands; the kernel says how many of them are spatial."""
    caller = caller.given(x.shape, kernel.shape)
    rank = kernel.ndim - 2
    leading = x.ndim - (rank + 1)
    if rank < 0 or leading < 0:
        raise ValueError(
            f"{caller.function}: kernel must have n ≥ 0 spatial axes and two feature "
            f"axes, and x n spatial axes and a feature axis, but got {caller.shapes}. "
            "Add the axes that are missing."
        )
    if dimension_numbers is None:
        last, spatial = rank + 1, range(1, rank + 1)
        data = (0, last, *spatial)
        layout = lax.ConvDimensionNumbers(data, (last, rank, *range(rank)), data)
    else:
        like = (1,) * (rank + 2)
        layout = canonical_layout(caller, like, like, dimension_numbers)
    axis = layout.lhs_spec[0]
    if leading == 0:
        x_shape, batch = (*x.shape[:axis], 1, *x.shape[axis:]), ()
    else:
        others, one = x.shape[: leading - 1], list(x.shape[leading - 1 :])
        batch = (*others, one[axis])
        one[axis] = math.prod(batch)
        x_shape = tuple(one)
    return _Operands(caller, layout, x_shape, batch, rank)


def conv_layer(function: str, x: Any, kernel: Any, given: ConvOptions) -> Layer:
    """The layer that `conv_forward` applies to operands of these types."""
    options = _all_options(function, given, _CONV_DEFAULTS)
    caller = Caller(function, {**_NAMES, "lhs_dilation": "input_dilation"})
    operands = _operands(caller, x, kernel, options["dimension_numbers"])
    caller, layout, x_shape, batch, rank = operands
    dilation = operands.sizes("rhs_dilation", options["dilation"])
    input_dilation = operands.sizes("lhs_dilation", options["input_dilation"])
    windows = window_extents(kernel.shape, layout, dilation)
    x_map, padding = merged_batch(layout.lhs_spec[0], batch), options["padding"]
    mode = _mode(options)
    if mode in _BORDERS:
        sizes = [x_shape[axis] for axis in layout.lhs_spec[2:]]
        advice = "Pass explicit padding."
        if not is_static(*sizes):
            rule = f"padding by {mode} needs spatial sizes that are not symbolic"
            raise caller.error(NotImplementedError, rule, "padding", padding, advice)
        if 0 in sizes or max(input_dilation, default=1) > 1:
            rule = f"padding by {mode} needs points of x to continue, undilated"
            raise caller.error(ValueError, rule, "padding", padding, advice)
        edges = [(0, 0)] * (rank + 2)
        for axis, window in zip(layout.lhs_spec[2:], windows, strict=True):
            edges[axis] = (max(window - 1, 0) // 2, window // 2)
        x_map = continued(x_map, edges, _BORDERS[mode])
        x_shape = tuple(n + sum(edge) for n, edge in zip(x_shape, edges, strict=True))
        padding = "VALID"
    elif mode == "CAUSAL":
        padding = tuple((max(window - 1, 0), 0) for window in windows)
    elif mode not in PADDING_STRINGS:
        known = (*PADDING_STRINGS, "CAUSAL", *_BORDERS)
        padding = pairs_per_axis(caller, padding, rank, known, short=True)
    spec = conv_spec(
        caller,
        x_shape,
        kernel.shape,
        window_strides=operands.sizes("window_strides", options["strides"]),
        padding=padding,
        lhs_dilation=input_dilation,
        rhs_dilation=dilation,
        dimension_numbers=layout,
        feature_group_count=options["groups"],
    )
    return Layer(
        spec,
        _numerics(caller, x, kernel, options),
        jax.ShapeDtypeStruct(x_shape, x.dtype),
        jax.ShapeDtypeStruct(kernel.shape, kernel.dtype),
        x_map,
        IDENTITY,
        merged_batch(layout.out_spec[0], batch).transposed,
    )


def transposed_layer(
    function: str, x: Any, kernel: Any, given: ConvTransposeOptions
) -> Layer:
    """The layer that `conv_transpose_forward` applies to operands of these types."""
    options = _all_options(function, given, _TRANSPOSE_DEFAULTS)
    caller = Caller(function, {**_NAMES, "lhs_dilation": "strides"})
    operands = _operands(caller, x, kernel, options["dimension_numbers"])
    caller, layout, x_shape, batch, rank = operands
    strides = operands.sizes("lhs_dilation", options["strides"])
    dilation = operands.sizes("rhs_dilation", options["dilation"])
    windows = window_extents(kernel.shape, layout, dilation)
    pads = _transposed_pads(operands, options, strides, dilation, windows)
    y_map = merged_batch(layout.out_spec[0], batch).transposed
    if _mode(options) == "CIRCULAR":
        y_map = _around(operands, options, strides, windows, y_map)
    kernel_map, kernel_shape, groups = IDENTITY, list(kernel.shape), options["groups"]
    if options["transpose_kernel"]:
        # The kernel of the convolution that this transposes.
        feature, channel, *_ = layout.rhs_spec
        blocks = static_int(caller, "feature_group_count", groups)
        if blocks < 1 or kernel.shape[feature] % blocks:
            rule = "groups must be at least 1 and divide the input features, of which "
            rule += f"the kernel has {kernel.shape[feature]}"
            advice = "Change groups, or the kernel: [*taps, Cout // groups, Cin]."
            raise caller.error(ValueError, rule, "feature_group_count", groups, advice)
        kernel_map = turned_kernel(layout.rhs_spec, blocks)
        layout = layout._replace(rhs_spec=calculus.swapped(layout.rhs_spec))
        kernel_shape[feature] //= blocks
        kernel_shape[channel] *= blocks
    spec = conv_spec(
        caller,
        x_shape,
        kernel_shape,
        window_strides=(1,) * rank,
        padding=pads,
        lhs_dilation=strides,
        rhs_dilation=dilation,
        dimension_numbers=layout,
        feature_group_count=groups,
    )
    return Layer(
        spec,
        _numerics(caller, x, kernel, options),
        jax.ShapeDtypeStruct(x_shape, x.dtype),
        jax.ShapeDtypeStruct(kernel_shape, kernel.dtype),
        merged_batch(layout.lhs_spec[0], batch),
        kernel_map,
        y_map,
    )


def _numerics(
    caller: Caller, x: Any, kernel: Any, options: dict[str, Any]
) -> dict[str, Any]:
    """Precision and preferred_element_type, of a kernel that may be rounded first."""
    kinds = [
        next(
            (k for k in (jnp.complexfloating, jnp.floating) if jnp.issubdtype(d, k)), d
        )
        for d in (x.dtype, kernel.dtype)
    ]
    if options["cast_kernel"] and kinds[0] == kinds[1]:
        kernel = jax.ShapeDtypeStruct(kernel.shape, x.dtype)
    return conv_numerics(
        caller,
        x,
        kernel,
        options["precision"],
        options["preferred_element_type"],
        " (or pass cast_kernel=True, which rounds a kernel and not its gradient)",
    )


def _mode(options: dict[str, Any]) -> str | None:
    """Padding by name, in capitals, or None."""
    padding = options["padding"]
    return padding.upper() if isinstance(padding, str) else None


def _transposed_pads(
    operands: _Operands,
    options: dict[str, Any],
    strides: Sequence[int],
    dilation: Sequence[int],
    windows: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """Padding around the dilated input, output padding included."""
    caller, rank, mode = operands.caller, operands.rank, _mode(options)
    known = ("SAME", "VALID", "CIRCULAR")
    pads: Any = ("VALID" if mode == "CIRCULAR" else mode,) * rank
    if mode not in known:
        pads = pairs_per_axis(caller, options["padding"], rank, known, short=True)
    if mode in known or options["use_consistent_padding"]:
        pads = map(transposed_padding, windows, strides, pads)
    value = options["output_padding"]
    extra = operands.sizes("output_padding", value, least=0)
    limits = (1,) * rank if mode == "CIRCULAR" else tuple(map(max, strides, dilation))
    if any(map(operator.ge, extra, limits)):
        rule = "output_padding must be below the larger of stride and dilation, and 0 "
        rule += f"beside CIRCULAR: below {limits}"
        advice = "Pad the output instead."
        raise caller.error(ValueError, rule, "output_padding", value, advice)
    return tuple((low, high + n) for (low, high), n in zip(pads, extra, strict=True))


def _around(
    operands: _Operands,
    options: dict[str, Any],
    strides: Sequence[int],
    windows: Sequence[int],
    split: LinearMap,
) -> LinearMap:
    """Wrap the result of "VALID" around a circle of s·I points, as Flax does."""
    layout = operands.layout
    sizes = [operands.x_shape[axis] for axis in layout.lhs_spec[2:]]
    if not is_static(*sizes) or 0 in sizes:
        rule = (
            "padding by CIRCULAR needs spatial sizes of at least 1, not symbolic ones"
        )
        advice = "Pass other padding."
        value = options["padding"]
        raise operands.caller.error(ValueError, rule, "padding", value, advice)
    axes = []
    for axis, size, stride, window in zip(
        layout.out_spec[2:], sizes, strides, windows, strict=True
    ):
        period = size * stride
        extent = period + max(window - stride, 0)
        # Half of what makes an odd number of periods goes first; an odd half goes there
        # too, unless the kernel is flipped.
        missing = (period - extent) % (2 * period)
        before = (missing + (not options["transpose_kernel"])) // 2
        axes.append((axis, extent, period, before))
    return circular(split, axes)
