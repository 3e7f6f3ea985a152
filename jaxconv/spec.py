"""The static description of a convolution: what it computes, and of which shape.

A convolution of an input `x` with a kernel `k` is, in canonical axis order,

    y[n, f, o] = Σ_{c, t} x̃[n, c, s·o + d·t − p] · k[f, c, t]

per spatial axis with window stride s, kernel dilation d and low padding p. x̃ is x with
L − 1 zeros between neighbours (input dilation L), and zero outside of its range. With
`feature_group_count` G the channels of `x` and the features of `k` fall into G blocks
that are convolved pair by pair; with `batch_group_count` G it is the batch of `x`, in
place of its channels.

`ConvSpec` holds s, p, L, d, the layout and the group counts; `ConvProblem` adds what a
planner must know: the shapes and dtypes. Both are hashable, so that they may be static
parameters of a JAX primitive and keys of a cache. Sizes are ints, or the symbolic
dimensions of `jax.export.symbolic_shape`.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pads = tuple[tuple[int, int], ...]


def is_static(*sizes: object) -> bool:
    """Whether every size is an int (and none a symbolic dimension).

    Example:
      >>> is_static(3, 4)
      True
    """
    return all(isinstance(size, int | np.integer) for size in sizes)


def accumulation_dtype(dtype: Any) -> np.dtype:
    """Dtype in which numbers are added up: short floats in float32, as XLA does.

    Example:
      >>> [accumulation_dtype(name).name for name in ("float16", "int8", "float64")]
      ['float32', 'int8', 'float64']
    """
    short = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return np.dtype(np.float32 if short else dtype)


def as_wide_as(*arrays: Any) -> contextlib.AbstractContextManager:
    """A context with types of 64 bits where one of the arrays is of such a type.

    A backward rule, and what lowers a program, is called when the `jax.enable_x64`
    that surrounded the call has ended.
    """
    is_off = any(
        jnp.issubdtype(a.dtype, np.number)
        and jax.dtypes.canonicalize_dtype(a.dtype) != a.dtype
        for a in arrays
    )
    return jax.enable_x64(True) if is_off else contextlib.nullcontext()


def dilated(size: int, dilation: int) -> int:
    """Extent of `size` points that lie `dilation` apart; no points have no extent.

    Example:
      >>> dilated(3, 2), dilated(0, 2)
      (5, 0)
    """
    if is_static(size):
        return (size - 1) * dilation + 1 if size else 0
    # A symbolic size may turn out to be 0: lax knows how to say that.
    line = jax.ShapeDtypeStruct((size,), np.float32)
    spread = functools.partial(
        lax.pad, padding_value=np.float32(0), padding_config=[(0, 0, dilation - 1)]
    )
    return jax.eval_shape(spread, line).shape[0]


def window_extents(
    kernel_shape: Sequence[int],
    layout: lax.ConvDimensionNumbers,
    rhs_dilation: Sequence[int],
) -> list[int]:
    """Extent of the dilated kernel along each spatial axis."""
    taps = (kernel_shape[axis] for axis in layout.rhs_spec[2:])
    return [dilated(k, d) for k, d in zip(taps, rhs_dilation, strict=True)]


@dataclasses.dataclass(frozen=True, slots=True)
class ConvSpec:
    """Everything about a convolution but its shapes and dtypes.

    Attributes:
      window_strides: s ≥ 1 per spatial axis.
      padding: (low, high) per spatial axis, of the dilated input; negative ones crop.
      lhs_dilation: L ≥ 1 per spatial axis, the input dilation.
      rhs_dilation: d ≥ 1 per spatial axis, the kernel dilation.
      dimension_numbers: where (batch, feature, *spatial) stand in `x` and `y`, and
        (output feature, input feature, *spatial) in the kernel.
      feature_group_count: G ≥ 1, blocks of input channels.
      batch_group_count: G ≥ 1, blocks of the input's batch; one of the two is 1.
      members: of the G groups, how many vmap (or a reshape like its own) has put side
        by side; a divisor of G, for they are the outermost blocks. What is computed
        does not depend on it.
    """

    window_strides: tuple[int, ...]
    padding: Pads
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    dimension_numbers: lax.ConvDimensionNumbers
    feature_group_count: int = 1
    batch_group_count: int = 1
    members: int = 1

    def replace(self, **changes: Any) -> "ConvSpec":
        """The spec with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def groups(self) -> int:
        """Number of independent convolutions, of either kind."""
        return self.feature_group_count * self.batch_group_count

    @property
    def is_strided(self) -> bool:
        """Whether the window takes steps of more than one along an axis."""
        return max(self.window_strides, default=1) > 1

    @property
    def is_input_dilated(self) -> bool:
        """Whether there are zeros between the entries of the input."""
        return max(self.lhs_dilation, default=1) > 1

    @property
    def is_kernel_dilated(self) -> bool:
        """Whether there are entries of the input between those that the taps meet."""
        return max(self.rhs_dilation, default=1) > 1

    @property
    def is_plain(self) -> bool:
        """Whether nothing is strided and nothing dilated."""
        return not (self.is_strided or self.is_input_dilated or self.is_kernel_dilated)

    @property
    def channels_last(self) -> bool:
        """Whether the channels of `x` stand last."""
        return self.dimension_numbers.lhs_spec[1] == 1 + len(self.window_strides)

    @property
    def features_last(self) -> bool:
        """Whether the features of `y` stand last."""
        return self.dimension_numbers.out_spec[1] == 1 + len(self.window_strides)

    @property
    def block_axis(self) -> int:
        """The axis of `x` whose blocks are the groups: its batch or its channels."""
        batch, channel, *_ = self.dimension_numbers.lhs_spec
        return batch if self.batch_group_count > 1 else channel

    def regrouped(self, groups: int, members: int) -> "ConvSpec":
        """The spec with another number of groups, of the kind that it has."""
        by_batch = self.batch_group_count > 1
        kind = "batch_group_count" if by_batch else "feature_group_count"
        return self.replace(**{kind: groups, "members": members})

    @property
    def geometry(self) -> dict[str, Any]:
        """The spec as the arguments of `jax.lax.conv_general_dilated`."""
        return {name: getattr(self, name) for name in FIELDS}

    @property
    def edges(self) -> list[tuple[int, int, int]]:
        """(low, high, L − 1) per spatial axis, as `lax.pad` takes them."""
        return [
            (low, high, dilation - 1)
            for (low, high), dilation in zip(
                self.padding, self.lhs_dilation, strict=True
            )
        ]

    def output_shape(
        self, x_shape: Sequence[int], kernel_shape: Sequence[int]
    ) -> tuple[int, ...]:
        """Shape of `y`: ⌊(dilated x + padding − dilated kernel) / s⌋ + 1 per axis."""
        x_axes, kernel_axes, y_axes = self.dimension_numbers
        shape = [0] * len(x_axes)
        shape[y_axes[0]] = x_shape[x_axes[0]] // self.batch_group_count
        shape[y_axes[1]] = kernel_shape[kernel_axes[0]]
        for i, stride in enumerate(self.window_strides):
            extent = dilated(x_shape[x_axes[2 + i]], self.lhs_dilation[i])
            extent += sum(self.padding[i])
            window = dilated(kernel_shape[kernel_axes[2 + i]], self.rhs_dilation[i])
            shape[y_axes[2 + i]] = max((extent - window) // stride + 1, 0)
        return tuple(shape)

    def images(self, x: jax.Array) -> jax.Array:
        """The input with its axes in order, [N, *I, C]."""
        batch, channel, *spatial = self.dimension_numbers.lhs_spec
        return x.transpose(batch, *spatial, channel)

    def filters(self, kernel: jax.Array) -> jax.Array:
        """The kernel with its axes in order, [*K, C, F]."""
        feature, in_feature, *taps = self.dimension_numbers.rhs_spec
        return kernel.transpose(*taps, in_feature, feature)

    def laid_out(self, y: jax.Array) -> jax.Array:
        """A result [N, *O, F] in the layout's order of axes."""
        batch, feature, *spatial = self.dimension_numbers.out_spec
        return y.transpose(np.argsort((batch, *spatial, feature)))


def in_order(rank: int) -> lax.ConvDimensionNumbers:
    """[N, *I, C], [*K, C, F] and [N, *O, F], of so many spatial axes."""
    spatial = range(rank)
    images = (0, rank + 1, *(1 + i for i in spatial))
    return lax.ConvDimensionNumbers(images, (rank + 1, rank, *spatial), images)


FIELDS = tuple(
    field.name for field in dataclasses.fields(ConvSpec) if field.name != "members"
)
"""Names of the fields that lax's convolution has as parameters."""


def exchanged(precision: Any) -> Any:
    """Precision, of both operands or a pair of one each, where these change places."""
    return precision[::-1] if isinstance(precision, tuple) else precision


@dataclasses.dataclass(frozen=True, slots=True)
class ConvProblem:
    """A convolution to be computed: the spec with its shapes and dtypes.

    Attributes:
      spec: the geometry.
      x_shape: shape of the input, in the spec's layout.
      kernel_shape: shape of the kernel, in the spec's layout.
      dtype: dtype of both operands.
      precision: as in lax, canonical.
      preferred_element_type: dtype of the sums and of the result; None for `dtype`.
      out_sharding: explicit sharding of the result, or None.
    """

    spec: ConvSpec
    x_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    dtype: np.dtype
    precision: Any = None
    preferred_element_type: np.dtype | None = None
    out_sharding: Any = None

    @property
    def output_dtype(self) -> np.dtype:
        """Dtype of the result."""
        return self.preferred_element_type or self.dtype

    @property
    def sum_dtype(self) -> np.dtype:
        """Dtype of the sums, until they are rounded to that of the result."""
        return accumulation_dtype(self.output_dtype)

    @property
    def exchanged_precision(self) -> Any:
        """Precision of a product whose first factor is the kernel, and x the second."""
        return exchanged(self.precision)

    def of_groups(self, groups: int) -> "ConvProblem":
        """The problem of so many of the groups, none of them members any more."""
        spec = self.spec
        x_shape, kernel_shape = list(self.x_shape), list(self.kernel_shape)
        for shape, axis in (
            (x_shape, spec.block_axis),
            (kernel_shape, spec.dimension_numbers.rhs_spec[0]),
        ):
            shape[axis] = shape[axis] // spec.groups * groups
        return dataclasses.replace(
            self,
            spec=spec.regrouped(groups, 1),
            x_shape=tuple(x_shape),
            kernel_shape=tuple(kernel_shape),
        )

    @property
    def is_static(self) -> bool:
        """Whether all sizes are ints: a symbolic dimension cannot be planned."""
        pads = [pad for pair in self.spec.padding for pad in pair]
        groups = (self.spec.feature_group_count, self.spec.batch_group_count)
        return is_static(*self.x_shape, *self.kernel_shape, *pads, *groups)

    @property
    def is_kernel_gradient(self) -> bool:
        """Whether its channels, as if they were the images of a layer, stand outermost.

        That is told from the layout alone: a layer whose channels stand outermost, as
        CHWN has them, looks alike.
        """
        return self.spec.dimension_numbers.lhs_spec[1] == 0

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the result, in the spec's layout."""
        return self.spec.output_shape(self.x_shape, self.kernel_shape)

    @property
    def flops(self) -> int:
        """Additions and multiplications of the sum, padding included.

        An output has a term for each tap, and for each entry of x at most; none for the
        zeros between entries.
        """
        dilation = self.spec.lhs_dilation
        terms = math.prod(
            min(taps, entries * between)
            for taps, entries, between in zip(
                self.kernel_spatial, self.x_spatial, dilation, strict=True
            )
        )
        products = math.prod(self.output_shape) * self.channels * terms
        return 2 * products // math.prod(dilation)

    @property
    def x_bytes(self) -> int:
        """Bytes of the input."""
        return math.prod(self.x_shape) * self.dtype.itemsize

    @property
    def kernel_bytes(self) -> int:
        """Bytes of the kernel."""
        return math.prod(self.kernel_shape) * self.dtype.itemsize

    @property
    def y_bytes(self) -> int:
        """Bytes of the result."""
        return math.prod(self.output_shape) * self.output_dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes of the two operands and of the result."""
        return self.x_bytes + self.kernel_bytes + self.y_bytes

    @property
    def taps(self) -> int:
        """Taps of the kernel along all spatial axes together."""
        return math.prod(self.kernel_spatial)

    @property
    def outputs(self) -> int:
        """Points of the result along all spatial axes together."""
        return math.prod(self.output_spatial)

    @property
    def batch(self) -> int:
        """Images of the input, those of all batch groups."""
        return self.x_shape[self.spec.dimension_numbers.lhs_spec[0]]

    @property
    def channels(self) -> int:
        """Channels of the kernel, those of one group."""
        return self.kernel_shape[self.spec.dimension_numbers.rhs_spec[1]]

    @property
    def features(self) -> int:
        """Features of the result, those of all groups."""
        return self.kernel_shape[self.spec.dimension_numbers.rhs_spec[0]]

    @property
    def x_spatial(self) -> tuple[int, ...]:
        """Spatial sizes of the input."""
        return tuple(self.x_shape[a] for a in self.spec.dimension_numbers.lhs_spec[2:])

    @property
    def kernel_spatial(self) -> tuple[int, ...]:
        """Spatial sizes of the kernel."""
        axes = self.spec.dimension_numbers.rhs_spec[2:]
        return tuple(self.kernel_shape[a] for a in axes)

    @property
    def output_spatial(self) -> tuple[int, ...]:
        """Spatial sizes of the result."""
        shape = self.output_shape
        return tuple(shape[a] for a in self.spec.dimension_numbers.out_spec[2:])
