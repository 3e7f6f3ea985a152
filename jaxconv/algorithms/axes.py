"""The geometry of a convolution along its spatial axes.

Along each axis output o reads x̃ for tap t at position s·o + d·t − p, where an entry of
x stands at every L-th position from the first. Outputs, taps and entries of several
axes are counted by one index, in row-major order.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import lax

from jaxconv.algorithms.blocks import Index
from jaxconv.spec import ConvProblem, dilated


class Axis(NamedTuple):
    """The geometry along one spatial axis: I, K, O, s, p, L, d."""

    size: int
    taps: int
    outputs: int
    stride: int
    low: int
    lhs_dilation: int
    rhs_dilation: int

    @property
    def reach(self) -> int:
        """How many positions all windows span together."""
        return (
            self.stride * (self.outputs - 1) + self.rhs_dilation * (self.taps - 1) + 1
        )

    @property
    def spread_size(self) -> int:
        """Positions of the input with the zeros between its entries."""
        return dilated(self.size, self.lhs_dilation)

    @property
    def most(self) -> int:
        """The largest number by which places are counted, or windows moved."""
        return max(self.reach + abs(self.low), self.spread_size, *self)

    @property
    def period(self) -> int:
        """P, the fewest outputs after which a tap meets an entry, or a zero, again."""
        return self.lhs_dilation // math.gcd(self.stride, self.lhs_dilation)

    @property
    def high(self) -> int:
        """Zeros after the dilated input up to the last window's end, or less than 0."""
        return self.reach - self.low - self.spread_size

    @property
    def edges(self) -> tuple[int, int]:
        """How many zeros lie before and after the dilated input, within a window."""
        return max(self.low, 0), max(self.high, 0)

    @property
    def is_inside(self) -> bool:
        """Whether every window reads entries of the input alone, along this axis."""
        return self.lhs_dilation == 1 and not any(self.edges)

    @property
    def extent(self) -> int:
        """Positions of the input with its zeros in place."""
        return self.spread_size + sum(self.edges)

    def read(self, output: Index, tap: Index) -> tuple[Index, Index]:
        """Where x has what the output reads for the tap, and whether it does at all."""
        first, steps = _times(self.stride, output), _times(self.rhs_dilation, tap)
        if isinstance(first, jax.Array):
            first, steps = steps, first
        position = (first - self.low) + steps  # by NumPy, the former, if it is static
        if self.is_inside:
            return position, np.True_
        entry = position if self.lhs_dilation == 1 else position // self.lhs_dilation
        # What is negative is larger than any other number, read as an unsigned one.
        there = entry.astype(np.uint32) < np.uint32(self.size)
        if self.lhs_dilation > 1:
            there &= position % self.lhs_dilation == 0
        return entry, there


def _times(factor: int, index: Index) -> Index:
    """The product, for which nothing is traced where it is the index."""
    return index if factor == 1 else factor * index


def axes_of(problem: ConvProblem) -> list[Axis]:
    """The geometry of each spatial axis."""
    spec = problem.spec
    return [
        Axis(*axis)
        for axis in zip(
            problem.x_spatial,
            problem.kernel_spatial,
            problem.output_spatial,
            spec.window_strides,
            (low for low, _ in spec.padding),
            spec.lhs_dilation,
            spec.rhs_dilation,
            strict=True,
        )
    ]


def is_inside(axes: Sequence[Axis]) -> bool:
    """Whether every window reads entries of the input alone."""
    return all(axis.is_inside for axis in axes)


def coordinates(axes: Sequence[Axis], field: str) -> list[np.ndarray]:
    """Coordinates of all taps, or outputs, in row-major order, along each axis.

    Example:
      >>> [t.tolist() for t in coordinates([Axis(9, 2, 8, 1, 0, 1, 1)] * 2, "taps")]
      [[0, 0, 1, 1], [0, 1, 0, 1]]
    """
    sizes = [getattr(axis, field) for axis in axes]
    linear = np.arange(math.prod(sizes), dtype=np.int32)
    return unravel(linear, sizes) if sizes else []


def unravel(index: Index, sizes: Sequence[int]) -> list[Index]:
    """The coordinates of a linear index in an array of those sizes.

    Example:
      >>> [int(i) for i in unravel(np.array(7), (2, 5))]
      [1, 2]
    """
    # A linear index is not negative, of which JAX's own `//` takes care.
    divide = lax.div if isinstance(index, jax.Array) else np.floor_divide
    coordinates = []
    for size in map(np.int32, reversed(sizes[1:])):
        outer = divide(index, size)
        # Of a remainder, as of each division, XLA:CPU makes a kernel of its own.
        coordinates.append(index - outer * size)
        index = outer
    return [index, *coordinates[::-1]]


def linear(indices: Sequence[Index], sizes: Sequence[int]) -> Index:
    """The linear index, of indices along each axis and sizes of all but the first.

    Example:
      >>> linear([np.array(1), np.array(2)], [5]).item()
      7
    """
    place = indices[0]
    for index, size in zip(indices[1:], sizes, strict=True):
        place = place * size + index
    return place


def countable(problem: ConvProblem) -> bool:
    """There are spatial axes, something to sum, and int32 counts every index."""
    if not problem.is_static or problem.out_sharding is not None:
        return False
    sizes = (problem.x_shape, problem.kernel_shape, problem.output_shape)
    counted = all(0 < math.prod(shape) < 2**31 for shape in sizes)
    reached = all(axis.most < 2**31 for axis in axes_of(problem))
    return counted and reached and len(problem.x_shape) > 2
