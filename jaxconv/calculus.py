"""The gradients and the vmapped form of a convolution, each as a convolution.

A convolution is bilinear in input and kernel. With a cotangent g of its output it is
one trilinear form

    T(x, k, g) = Σ_{n, f, o} g[n, f, o] Σ_{c, t} x̃[n, c, s·o + d·t − p] · k[f, c, t],

where x̃ is x with L − 1 zeros between neighbours. Leaving out one of the three factors
gives the output, the input gradient or the kernel gradient. All three sum over the
solutions of one equation between positions i of x, t of k and o of g:

    L·i = s·o + d·t − p                                                          (1)

The convolution reads it as "window of k over x"; solving it for L·i (the input
gradient) or for d·t (the kernel gradient) gives the same form with the letters
exchanged, so each gradient is the convolution whose spec this file writes down. That
closes the calculus: a gradient of a gradient is again one of the three.

Sizes: x has I points per spatial axis, k has K, g has O; G groups.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.spec import ConvSpec, Pads, dilated


def swapped(axes: Sequence[int]) -> tuple[int, ...]:
    """Axis numbers with batch and feature (or output and input feature) exchanged."""
    return (axes[1], axes[0], *axes[2:])


def merge_axis(x: jax.Array, source: int, target: int, outer: int = 1) -> jax.Array:
    """Move axis `source` into `target`, whose index is then (outer, source, inner).

    Args:
      x: the array.
      source: the axis to be folded away.
      target: the axis that takes it in, numbered as in the result.
      outer: blocks that stay outermost; divides the target's size.

    Example:
      >>> merge_axis(jnp.arange(6).reshape(2, 3), 0, 0).tolist()
      [0, 1, 2, 3, 4, 5]
    """
    size = x.shape[source]
    x = jnp.moveaxis(x, source, target)  # [..., size, outer·inner, ...]
    before, after = x.shape[:target], x.shape[target + 2 :]
    if outer == 1:
        return x.reshape(*before, size * x.shape[target + 1], *after)
    inner = x.shape[target + 1] // outer
    x = x.reshape(*before, size, outer, inner, *after)
    x = jnp.swapaxes(x, target, target + 1)  # [..., outer, size, inner, ...]
    return x.reshape(*before, outer * size * inner, *after)


def split_axis(y: jax.Array, axis: int, size: int, outer: int = 1) -> jax.Array:
    """Undo `merge_axis`: take the axis of `size` out of `axis`, and put it before it.

    Args:
      y: the array.
      axis: the axis that is split, (outer, size, inner).
      size: of the axis that is taken out.
      outer: blocks that stay outermost.

    Example:
      >>> split_axis(jnp.arange(6), 0, 2).tolist()
      [[0, 1, 2], [3, 4, 5]]
    """
    before, after = y.shape[:axis], y.shape[axis + 1 :]
    if outer == 1:
        return y.reshape(*before, size, y.shape[axis] // size, *after)
    inner = y.shape[axis] // (outer * size)
    y = y.reshape(*before, outer, size, inner, *after)
    y = jnp.swapaxes(y, axis, axis + 1)  # [..., size, outer, inner, ...]
    return y.reshape(*before, size, outer * inner, *after)


def _extents(
    spec: ConvSpec,
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    y_shape: Sequence[int],
) -> tuple[list[int], list[int], list[int]]:
    """Extents of the dilated x, k and g, along each spatial axis."""
    dilations = spec.lhs_dilation, spec.rhs_dilation, spec.window_strides
    x, kernel, y = (
        [
            dilated(shape[axis], dilation)
            for axis, dilation in zip(axes[2:], between, strict=True)
        ]
        for shape, axes, between in zip(
            (x_shape, kernel_shape, y_shape),
            spec.dimension_numbers,
            dilations,
            strict=True,
        )
    )
    return x, kernel, y


def _padding(
    lows: Iterable[int], image: list[int], window: list[int], result: list[int]
) -> Pads:
    """Low padding, and the high padding that makes as many windows as results."""
    return tuple(
        (low, r + w - 1 - i - low)
        for low, i, w, r in zip(lows, image, window, result, strict=True)
    )


def input_gradient(
    spec: ConvSpec,
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    y_shape: Sequence[int],
) -> ConvSpec:
    """Spec of the input gradient, a convolution of g with the `transposed_kernel`.

    dx[n, c, i] = Σ_{f, o, t : (1)} g[n, f, o] · k[f, c, t]
                = Σ_{f, t'} g̃[n, f, L·i + d·t' − (d·(K−1) − p)] · k[f, c, K−1−t']

    With t = K−1−t' equation (1) reads s·o = L·i + d·t' − (d·(K−1) − p): windows that
    step by L over g dilated by s, with low padding d·(K−1) − p. The high padding is
    what makes I windows. Features and channels change places; batch groups come back
    as feature groups, their G blocks of dx side by side in the features
    (`ungrouped_input_gradient` moves them to the batch).

    Args:
      spec: of the convolution.
      x_shape: of its input, as of dx.
      kernel_shape: of its kernel.
      y_shape: of its output, as of g.
    """
    x_axes, kernel_axes, y_axes = spec.dimension_numbers
    x, k, g = _extents(spec, x_shape, kernel_shape, y_shape)
    lows = (window - 1 - low for window, (low, _) in zip(k, spec.padding, strict=True))
    return ConvSpec(
        window_strides=spec.lhs_dilation,
        padding=_padding(lows, g, k, x),
        lhs_dilation=spec.window_strides,
        rhs_dilation=spec.rhs_dilation,
        dimension_numbers=lax.ConvDimensionNumbers(
            y_axes, swapped(kernel_axes), x_axes
        ),
        feature_group_count=spec.groups,
        members=spec.members,
    )


def input_gradient_over_kernel(
    spec: ConvSpec,
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    y_shape: Sequence[int],
) -> ConvSpec:
    """Spec of the input gradient, a convolution of k with the window g.

    dx[n, c, i] = Σ_{f, o'} k̃[f, c, L·i + s·o' − (s·(O−1) − p)] · g[n, f, O−1−o']

    The other reading of (1) for L·i, with o' = O−1−o: the one for a kernel that is
    larger than g, as that of a kernel gradient is, an image. Its input features c are
    the batch, and g, flipped, has the batch n as its features. Batch groups come back
    as feature groups, whose G blocks stand in the features of k as they are, and are
    moved in g from its features to its batch, by `transposed_kernel`. Feature groups
    would have to be moved in dx, too, and are not taken.

    Args:
      spec: of the convolution, without feature groups.
      x_shape: of its input, as of dx.
      kernel_shape: of its kernel.
      y_shape: of its output, as of g.
    """
    x_axes, kernel_axes, y_axes = spec.dimension_numbers
    x, k, g = _extents(spec, x_shape, kernel_shape, y_shape)
    lows = (window - 1 - low for window, (low, _) in zip(g, spec.padding, strict=True))
    return ConvSpec(
        window_strides=spec.lhs_dilation,
        padding=_padding(lows, k, g, x),
        lhs_dilation=spec.rhs_dilation,
        rhs_dilation=spec.window_strides,
        dimension_numbers=lax.ConvDimensionNumbers(
            swapped(kernel_axes), y_axes, swapped(x_axes)
        ),
        feature_group_count=spec.batch_group_count,
        members=spec.members,
    )


def transposed_kernel(axes: Sequence[int], groups: int, kernel: jax.Array) -> jax.Array:
    """The kernel of the input gradient: k[f, c, K−1−t'], in the axis order of k.

    Its output features are the channels c, so that each group's block moves from the
    features (G, F/G) of k to its channels: [(G, F/G), C, t] → [F/G, (G, C), t].

    Args:
      axes: the kernel's (output feature, input feature, *spatial).
      groups: G, of either kind.
      kernel: k.
    """
    feature, channel, *spatial = axes
    if groups > 1:
        kernel = split_axis(kernel, feature, groups)
        kernel = merge_axis(kernel, feature, channel)
    return lax.rev(kernel, tuple(spatial))


def ungrouped_input_gradient(spec: ConvSpec, dx: jax.Array) -> jax.Array:
    """Move the batch groups from the features of `dx` back to its batch."""
    batch, channel, *_ = spec.dimension_numbers.lhs_spec
    if spec.batch_group_count > 1:
        dx = split_axis(dx, channel, spec.batch_group_count)
        dx = merge_axis(dx, channel, batch)
    return dx


def kernel_gradient(
    spec: ConvSpec,
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    y_shape: Sequence[int],
) -> ConvSpec:
    """Spec of the kernel gradient, the convolution of x with the window g.

    dk[f, c, t] = Σ_{n, o} x̃[n, c, d·t + s·o − p] · g[n, f, o]

    Windows step by d (one per tap) over x̃, and g is dilated by s; the high padding is
    what makes K windows. The sum runs over the batch, which therefore is the channel
    of this convolution, and the channels c are its batch: feature groups of the layer
    are batch groups of the gradient, and batch groups are feature groups.

    Args:
      spec: of the convolution.
      x_shape: of its input.
      kernel_shape: of its kernel, as of dk.
      y_shape: of its output, as of g.
    """
    x_axes, kernel_axes, y_axes = spec.dimension_numbers
    x, k, g = _extents(spec, x_shape, kernel_shape, y_shape)
    return ConvSpec(
        window_strides=spec.rhs_dilation,
        padding=_padding((low for low, _ in spec.padding), x, g, k),
        lhs_dilation=spec.lhs_dilation,
        rhs_dilation=spec.window_strides,
        dimension_numbers=lax.ConvDimensionNumbers(
            swapped(x_axes), swapped(y_axes), swapped(kernel_axes)
        ),
        feature_group_count=spec.batch_group_count,
        batch_group_count=spec.feature_group_count,
        members=spec.members,
    )


class Fold(NamedTuple):
    """Into which axis of an array a mapped axis goes: see `merge_axis`."""

    axis: int
    outer: int


class Batched(NamedTuple):
    """A vmapped convolution as one convolution of folded arrays."""

    spec: ConvSpec
    x: Fold | None
    kernel: Fold | None
    y: Fold


def batched(
    spec: ConvSpec, size: int, *, x_mapped: bool, kernel_mapped: bool
) -> Batched:
    """The convolution that computes `size` convolutions at once, as vmap asks for.

    The mapped index b joins an axis that the convolution carries along anyway:

      x alone:      y[b, n, f, o] = conv(x[b], k)     b joins the batch
      kernel alone: y[b, n, f, o] = conv(x, k[b])     b joins the features
      both:         y[b, n, f, o] = conv(x[b], k[b])  b multiplies the groups

    Where blocks stand in that axis already (G batch groups in the batch, G groups of
    either kind in the features) they stay outermost, so that block and block still
    meet; with both mapped, b is the outermost block itself.

    Args:
      spec: of one of them.
      size: how many there are, the size of the mapped axis.
      x_mapped: whether each has an x of its own.
      kernel_mapped: whether each has a kernel of its own; one of the two is.

    Returns:
      The spec of the one convolution, and where b goes in its three arrays.
    """
    (batch, *_), (feature, *_), (y_batch, y_feature, *_) = spec.dimension_numbers
    if x_mapped and kernel_mapped:
        x_axis = spec.block_axis
        spec = spec.regrouped(spec.groups * size, spec.members * size)
        return Batched(spec, Fold(x_axis, 1), Fold(feature, 1), Fold(y_feature, 1))
    if x_mapped:
        into_batch = Fold(batch, spec.batch_group_count)
        return Batched(spec, into_batch, None, Fold(y_batch, 1))
    into_features = Fold(feature, spec.groups)
    return Batched(spec, None, into_features, Fold(y_feature, spec.groups))
