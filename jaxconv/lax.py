"""Drop-ins for the convolution functions of `jax.lax`, with their names and signatures.

Results, gradients, shapes and dtypes are those of `jax.lax`; what it refuses is
refused. Use them where a library takes a convolution function, or in place of an
import:

    >>> import jaxconv.lax
    >>> x, kernel = jnp.ones((1, 3, 8, 8)), jnp.ones((4, 3, 3, 3))
    >>> jaxconv.lax.conv(x, kernel, (1, 1), "SAME").shape
    (1, 4, 8, 8)
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import ConvDimensionNumbers as ConvDimensionNumbers
from jax.lax import conv_dimension_numbers as conv_dimension_numbers
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike, DTypeLike

from jaxconv import primitive
from jaxconv.arguments import (
    Caller,
    DimensionNumbers,
    Padding,
    as_array,
    canonical_layout,
    conv_numerics,
    conv_spec,
    pairs_per_axis,
    per_axis,
    transposed_padding,
)
from jaxconv.spec import ConvSpec, window_extents
from jaxconv.unfold import unfold

__all__ = [
    "ConvDimensionNumbers",
    "conv",
    "conv_dimension_numbers",
    "conv_general_dilated",
    "conv_general_dilated_local",
    "conv_general_dilated_patches",
    "conv_transpose",
    "conv_with_general_padding",
]

Array = jax.Array


def conv_general_dilated(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: DimensionNumbers = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Array:
    """Convolve `lhs` with `rhs`: n spatial axes, any strides, dilations and groups.

    y[n, f, o] = Σ_{c, t} x̃[n, c, s·o + d·t − p] · rhs[f, c, t], per spatial axis, where
    x̃ is `lhs` with L − 1 zeros between neighbours, and zero outside of its range.

    Args:
      lhs: the input, of rank n + 2, n ≥ 0; any numeric dtype.
      rhs: the kernel, of the same rank and dtype.
      window_strides: s ≥ 1 per spatial axis, in the order of the kernel's axes.
      padding: "SAME", "SAME_LOWER", "VALID" in any case, or n pairs (p, high);
        negative ones crop.
      lhs_dilation: L ≥ 1 per spatial axis; None for ones. Not with string padding.
      rhs_dilation: d ≥ 1 per spatial axis; None for ones.
      dimension_numbers: layouts of lhs, rhs and result, as three strings such as
        ("NHWC", "HWIO", "NHWC") or a `jax.lax.ConvDimensionNumbers`; None for
        channels first.
      feature_group_count: G ≥ 1; `lhs` has G times the input features of `rhs`.
      batch_group_count: G ≥ 1; divides the batch of `lhs`. One of the two is 1.
      precision: as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the sums and the result; None for lhs's dtype.
      out_sharding: sharding of the result, in explicit mode.

    Returns:
      The convolution, in the layout that `dimension_numbers` gives.

    Raises:
      TypeError: on a wrong kind of argument, on unequal ranks or dtypes.
      ValueError: on sizes, counts or padding that do not fit.

    Differentiation: forward and reverse mode, to any order; also `linear_transpose`.

    Source: derived in docs/identities.md.

    Example:
      >>> conv_general_dilated(
      ...     jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 2, 9)), (2, 2), "SAME",
      ...     dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3,
      ... ).shape
      (2, 4, 4, 9)
    """
    return _conv(
        Caller("conv_general_dilated"),
        lhs,
        rhs,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
    )


def _conv(
    caller: Caller,
    lhs: ArrayLike,
    rhs: ArrayLike,
    *,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
    **geometry: Any,
) -> Array:
    """`conv_general_dilated`, called by the function that `caller` names."""
    x = as_array(caller.function, "lhs", lhs)
    kernel = as_array(caller.function, "rhs", rhs)
    numerics = conv_numerics(caller, x, kernel, precision, preferred_element_type)
    spec = conv_spec(caller, x.shape, kernel.shape, **geometry)
    if out_sharding is not None:
        _let_lax_place(caller, x, kernel, spec, out_sharding)
    if isinstance(out_sharding, PartitionSpec):
        out_sharding = NamedSharding(jax.sharding.get_abstract_mesh(), out_sharding)
    return primitive.conv(x, kernel, spec, out_sharding=out_sharding, **numerics)


def _let_lax_place(
    caller: Caller, x: Array, kernel: Array, spec: ConvSpec, out_sharding: Any
) -> None:
    """Refuse a sharding of the result that lax refuses."""
    placed = functools.partial(
        lax.conv_general_dilated, out_sharding=out_sharding, **spec.geometry
    )
    try:
        jax.eval_shape(placed, x, kernel)
    except (TypeError, ValueError) as cause:
        rule = "out_sharding must lay the result out over explicit axes of a mesh"
        advice = f"Pass None, or call it within jax.set_mesh. ({cause})"
        raise caller.given(x.shape, kernel.shape).error(
            type(cause), rule, "out_sharding", out_sharding, advice
        ) from cause


def conv(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: Padding,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """Convolve in the default layout, [N, C, *spatial] with [O, I, *spatial].

    y[n, f, o] = Σ_{c, t} lhs[n, c, s·o + t − p] · rhs[f, c, t]

    Args:
      lhs: the input, [N, C, *spatial].
      rhs: the kernel, [O, C, *spatial].
      window_strides: s ≥ 1 per spatial axis.
      padding: "SAME", "SAME_LOWER", "VALID", or pairs (p, high).
      precision: as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the sums and the result.

    Returns:
      [N, O, *out_spatial].

    Raises:
      TypeError: on a wrong kind of argument, on unequal ranks or dtypes.
      ValueError: on sizes or padding that do not fit.

    Source: `jax.lax.conv`, whose arguments and results these are.

    Example:
      >>> conv(jnp.ones((1, 3, 8)), jnp.ones((4, 3, 3)), (1,), "VALID").shape
      (1, 4, 6)
    """
    return _conv(
        Caller("conv"),
        lhs,
        rhs,
        window_strides=window_strides,
        padding=padding,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def conv_with_general_padding(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """Convolve in the default layout, with dilations.

    y[n, f, o] = Σ_{c, t} x̃[n, c, s·o + d·t − p] · rhs[f, c, t]

    Args:
      lhs: the input, [N, C, *spatial].
      rhs: the kernel, [O, C, *spatial].
      window_strides: s ≥ 1 per spatial axis.
      padding: "SAME", "SAME_LOWER", "VALID", or pairs (p, high).
      lhs_dilation: L ≥ 1 per spatial axis, or None.
      rhs_dilation: d ≥ 1 per spatial axis, or None.
      precision: as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the sums and the result.

    Returns:
      [N, O, *out_spatial].

    Raises:
      TypeError: on a wrong kind of argument, on unequal ranks or dtypes.
      ValueError: on sizes or padding that do not fit.

    Source: `jax.lax.conv_with_general_padding`, whose arguments and results these are.

    Example:
      >>> x, k = jnp.ones((1, 3, 8)), jnp.ones((4, 3, 3))
      >>> conv_with_general_padding(x, k, (1,), [(0, -1)], (2,), None).shape
      (1, 4, 12)
    """
    return _conv(
        Caller("conv_with_general_padding"),
        lhs,
        rhs,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def conv_transpose(
    lhs: ArrayLike,
    rhs: ArrayLike,
    strides: Sequence[int],
    padding: Padding,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: DimensionNumbers = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    use_consistent_padding: bool = False,
) -> Array:
    """Convolve with a fractional stride: the transposed convolution.

    y[n, f, o] = Σ_{c, t} x̃[n, c, o + d·t − p] · rhs[f, c, t], where x̃ is `lhs` with
    s − 1 zeros between neighbours.

    Args:
      lhs: the input, of rank n + 2.
      rhs: the kernel, of the same rank and dtype.
      strides: s ≥ 1 per spatial axis.
      padding: "SAME" or "VALID", as of the convolution that is transposed, or pairs
        (p, high) around x̃.
      rhs_dilation: d ≥ 1 per spatial axis, or None.
      dimension_numbers: as in `conv_general_dilated`; None for channels last, up to
        three spatial axes.
      transpose_kernel: flip the kernel's spatial axes and swap its features, which
        makes this the input gradient of the convolution with `rhs`.
      precision: as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the sums and the result.
      use_consistent_padding: read pairs as the padding of the convolution that is
        transposed too, as PyTorch does.

    Returns:
      The transposed convolution.

    Raises:
      TypeError: on a wrong kind of argument, on unequal ranks or dtypes.
      ValueError: on sizes or padding that do not fit, and for more than three spatial
        axes without `dimension_numbers`.

    Source: `jax.lax.conv_transpose`, whose arguments and results these are.

    Example:
      >>> x, k = jnp.ones((1, 8, 8, 3)), jnp.ones((4, 4, 3, 5))
      >>> conv_transpose(x, k, (2, 2), "SAME").shape
      (1, 16, 16, 5)
    """
    caller = Caller("conv_transpose", {"lhs_dilation": "strides"})
    x = as_array("conv_transpose", "lhs", lhs)
    kernel = as_array("conv_transpose", "rhs", rhs)
    if dimension_numbers is None:
        layouts = ("NC", "IO"), ("NHC", "HIO"), ("NHWC", "HWIO"), ("NHWDC", "HWDIO")
        if not 2 <= x.ndim <= 5:
            raise ValueError(
                "conv_transpose: dimension_numbers have a default for 0 to 3 spatial "
                f"axes, but got dimension_numbers=None (lhs.shape={x.shape}). Pass "
                "three strings, such as ('NWXYZC', 'WXYZIO', 'NWXYZC')."
            )
        data, weights = layouts[x.ndim - 2]
        dimension_numbers = (data, weights, data)
    layout = canonical_layout(caller, x.shape, kernel.shape, dimension_numbers)
    feature, channel, *spatial = layout.rhs_spec
    rank, caller = len(spatial), caller.given(x.shape, kernel.shape)
    strides = per_axis(caller, "lhs_dilation", strides, rank)
    if rhs_dilation is not None:
        rhs_dilation = per_axis(caller, "rhs_dilation", rhs_dilation, rank)
    known = ("SAME", "VALID")
    if not isinstance(padding, str):
        padding = pairs_per_axis(caller, padding, rank, known, short=False)
    elif padding not in known and (
        use_consistent_padding or max(strides, default=1) > 1
    ):
        rule = "padding must be SAME or VALID, in capitals, or pairs"
        raise caller.error(ValueError, rule, "padding", padding, "Pass one of them.")
    if use_consistent_padding or padding in known:
        dilations = rhs_dilation or (1,) * rank
        windows = window_extents(kernel.shape, layout, dilations)
        pads = (padding,) * rank if isinstance(padding, str) else padding
        padding = tuple(map(transposed_padding, windows, strides, pads))
    if transpose_kernel:
        kernel = jnp.flip(kernel, spatial).swapaxes(feature, channel)
    return _conv(
        caller,
        x,
        kernel,
        window_strides=(1,) * rank,
        padding=padding,
        lhs_dilation=strides,
        rhs_dilation=rhs_dilation,
        dimension_numbers=layout,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def conv_general_dilated_patches(
    lhs: ArrayLike,
    filter_shape: Sequence[int],
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: DimensionNumbers = None,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """Extract the patches that a convolution multiplies with its kernel (im2col).

    y[n, (c, t), o] = x̃[n, c, s·o + d·t − p]: the convolution, channel by channel, with
    the kernel δ(t, t') whose output features are the taps t. `jaxconv.fold` adds them
    up again.

    Args:
      lhs: the input, of rank n + 2.
      filter_shape: taps K per spatial axis, in the order of the kernel's axes.
      window_strides: s ≥ 1 per spatial axis.
      padding: "SAME", "SAME_LOWER", "VALID", or pairs (p, high).
      lhs_dilation: L ≥ 1 per spatial axis, or None.
      rhs_dilation: d ≥ 1 per spatial axis, or None.
      dimension_numbers: as in `conv_general_dilated`.
      precision: precision of `lhs`, as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the result.

    Returns:
      The patches; the feature axis has the channels outermost, then the taps.

    Raises:
      TypeError: on a wrong kind of argument.
      ValueError: on sizes or padding that do not fit.

    Source: `jax.lax.conv_general_dilated_patches`, whose arguments and results these
      are.

    Example:
      >>> x = jnp.arange(4.0).reshape(1, 1, 4)
      >>> conv_general_dilated_patches(x, (2,), (1,), "VALID")[0].tolist()
      [[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]
    """
    function = "conv_general_dilated_patches"
    x = as_array(function, "lhs", lhs)
    caller = Caller(function, shapes=f"lhs.shape={x.shape}")
    return unfold(
        caller,
        x,
        filter_shape,
        dimension_numbers,
        **conv_numerics(caller, x, x, precision, preferred_element_type),
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
    )


def conv_general_dilated_local(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: Padding,
    filter_shape: Sequence[int],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: DimensionNumbers = None,
    precision: Any = None,
) -> Array:
    """Convolve with a kernel of its own at every output: a locally connected layer.

    y[n, f, o] = Σ_{c, t} x̃[n, c, s·o + d·t − p] · rhs[f, (c, t), o]

    Args:
      lhs: the input, of rank n + 2.
      rhs: the kernels: spatial axes as large as the output's, and the taps of
        `conv_general_dilated_patches`, channels outermost, in the input-feature axis.
      window_strides: s ≥ 1 per spatial axis.
      padding: "SAME", "SAME_LOWER", "VALID", or pairs (p, high).
      filter_shape: taps K per spatial axis, in the order of the kernel's axes.
      lhs_dilation: L ≥ 1 per spatial axis, or None.
      rhs_dilation: d ≥ 1 per spatial axis, or None.
      dimension_numbers: as in `conv_general_dilated`.
      precision: as in `jax.lax.conv_general_dilated`.

    Returns:
      The result, in the layout that `dimension_numbers` gives.

    Raises:
      TypeError: on a wrong kind of argument, or kernels that do not fit the patches.
      ValueError: on sizes or padding that do not fit, or a precision that is none.

    Source: `jax.lax.conv_general_dilated_local`, whose arguments and results these are.

    Example:
      >>> x, kernels = jnp.ones((1, 2, 5)), jnp.ones((4, 2 * 3, 3))
      >>> conv_general_dilated_local(x, kernels, (1,), "VALID", (3,)).shape
      (1, 4, 3)
    """
    function = "conv_general_dilated_local"
    x, kernels = as_array(function, "lhs", lhs), as_array(function, "rhs", rhs)
    caller = Caller(function).given(x.shape, kernels.shape)
    layout = canonical_layout(caller, x.shape, kernels.shape, dimension_numbers)
    # The kernels may have a dtype of their own, as they are multiplied afterwards.
    numerics = conv_numerics(caller, x, x, precision, None)
    patches = unfold(
        caller,
        x,
        filter_shape,
        layout,
        **numerics,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
    )
    y_batch, y_feature, *y_spatial = layout.out_spec
    _, channel, *spatial = layout.rhs_spec
    expected = [patches.shape[axis] for axis in (y_feature, *y_spatial)]
    if expected != [kernels.shape[axis] for axis in (channel, *spatial)]:
        raise TypeError(
            "conv_general_dilated_local: rhs must have (input features · taps, *output "
            f"sizes) = {tuple(expected)} in axes {(channel, *spatial)}, but got "
            f"rhs.shape={kernels.shape} (lhs.shape={x.shape}, filter_shape="
            f"{tuple(filter_shape)}). Reshape rhs, or check dimension_numbers."
        )
    dims = ((y_feature,), (channel,)), (y_spatial, spatial)
    y = lax.dot_general(patches, kernels, dims, **numerics)  # [*O, N, F]
    sources = (*range(len(spatial)), len(spatial), len(spatial) + 1)
    return jnp.moveaxis(y, sources, (*y_spatial, y_batch, y_feature))
