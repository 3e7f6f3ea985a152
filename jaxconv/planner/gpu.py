"""Rules for one GPU, by what was measured on an NVIDIA H100.

XLA hands a convolution to cuDNN, or to kernels of its own, after timing them. Most
dense layers are as fast so as anything else. What is not is slower by up to 300 times:
groups in one or three dimensions, dilated ones, and inputs with zeros between their
entries that are no input gradients as cuDNN knows them. Times below are in
microseconds, stock's and ours, for float32 with jax 0.11.2.
"""

import jax.numpy as jnp

from jaxconv.algorithms import (
    by_output,
    by_tap,
    depthwise,
    fold_depth,
    fourier,
    patches,
    patches_gradient,
    shifts,
    subpixel,
)
from jaxconv.planner.choice import Plan, first
from jaxconv.spec import ConvProblem

AXES = 3
"""Spatial axes that cuDNN knows."""

SUMS = 32
"""Taps up to which sums for each of them are faster, as `_depthwise_gradient` tells."""

FEW = 8
"""Features below which phases are the faster ones, of an input with zeros in it.

1 feature of 16 images with 400 points and 256 taps 16097 and 131, 3 features and 16x16
taps with stride 16 13213 and 80, 7x7 with stride 2 197 and 109, 4 features 88 and 62; 8
features 83 and 79, 16 60 and 71, 64 features and 4x4 taps 59 and 95.
"""


ZEROS = 9
"""Taps of two axes up to which sums beat cuDNN on an input with zeros in it."""

SLOW, FAST = 0.3e12, 1.5e12
"""Products a second of XLA's kernels for groups, and of sums tap by tap or for 3 axes.

Measured were 0.2 to 0.5 and 0.9 to 2.5 million million.
"""

START, POINT, TRANSFORMS = 6e-5, 1.3e-11, 1 << 30
"""Seconds of transforms, and for each point; bytes of them, some copies apart."""


def many_axes(problem: ConvProblem) -> Plan | None:
    """More axes than cuDNN knows, on which XLA:GPU crashes."""
    if len(problem.x_spatial) <= AXES:
        return None
    single = problem.channels == 1 and depthwise.applies(problem)
    for name, applies in {
        "fold_depth": fold_depth.applies(problem),
        "depthwise": single,
        "patches": patches.applies(problem),
        "patches_gradient": patches_gradient.applies(problem),
    }.items():
        if applies:
            return Plan(name, "XLA:GPU crashes on more than three axes")
    return None


def rule(problem: ConvProblem) -> Plan | None:
    """Transforms, or else the answer of the first rule that has one."""
    if not jnp.issubdtype(problem.dtype, jnp.floating):
        return None
    gradients = _transposed_gradient, _depthwise_gradient, _dilated_gradient
    found = first((*gradients, _depthwise, _pointwise, _phases), problem)
    return _transformed(problem, found) or found


def _is_gradient(problem: ConvProblem) -> bool:
    """Whether it is a kernel gradient of a layer without groups."""
    several = problem.is_kernel_gradient and problem.taps > problem.outputs
    return several and problem.spec.groups == 1


def _transposed_gradient(problem: ConvProblem) -> Plan | None:
    """Kernel gradients of transposed layers.

    1-D with stride 64 14548 and 106, 3x3x3 5537 and 93, 2x2x2 1304 and 117, 4x4 115 and
    71; 4 taps of 8 channels 2597 and 96, 8 taps of 1024 features 465 and 58.
    """
    # Else the swapped input would be dilated in turn.
    undilated = not problem.spec.is_kernel_dilated
    if undilated and problem.spec.is_input_dilated and _is_gradient(problem):
        return Plan("swap", "the kernel gradient of the layer that it transposes")
    return None


def _depthwise_gradient(problem: ConvProblem) -> Plan | None:
    """Kernel gradients of depthwise layers with one axis.

    4 taps of 512 channels 255 and 113, with the channels first 297 and 59, in bfloat16
    627 and 43; 31 taps 550 and 498, 3 taps with dilation 16 20183 and 66.
    """
    few = len(problem.x_spatial) == 1 and problem.output_spatial[0] <= SUMS
    if few and by_output.applies(problem):
        return Plan("by_output", "a sum for each tap of a depthwise layer")
    return None


def _dilated_gradient(problem: ConvProblem) -> Plan | None:
    """Kernel gradients of dilated layers with one axis.

    2 taps with dilation 8, 8 images of 4096 points with 64 channels, 1093 and 108; with
    dilation 64, 4 images of 16000 points, 3064 and 143; 3 taps with dilation 16, 256
    channels, 1164 and 593, with dilation 2 and the channels first 569 and 129.
    """
    spec, one_axis = problem.spec, len(problem.x_spatial) == 1
    dilated = one_axis and spec.window_strides[0] > 1 and spec.rhs_dilation[0] == 1
    if dilated and _is_gradient(problem) and patches_gradient.applies(problem):
        return Plan("patches_gradient", "products of patches")
    return None


def _depthwise(problem: ConvProblem) -> Plan | None:
    """One channel in each group.

    cuDNN has kernels for two axes with the channels last: 3x3 104 and 114, 7x7 374 and
    422. One axis of 4 taps 625 and 56, of 31 1309 and 149, 3 taps with dilation 16 1366
    and 40; 3x3x3 208 and 84; 3x3 with dilation 2 1215 and 116, with two features each
    1012 and 176, with zeros in the input 164 and 118, but 5x5 128 and 224. With the
    channels first, of which `shifts` transposes nothing, 5 taps 754 and 103, 3x3 265
    and 178, 7x7 256 and 108, 3x3x3 184 and 53.
    """
    spec, rank = problem.spec, len(problem.x_spatial)
    terms = problem.taps
    known = depthwise.applies(problem) and problem.channels == 1
    if not known or not 1 < terms <= depthwise.TERMS:
        return None
    single = problem.features == spec.groups
    if not spec.channels_last:
        if shifts.applies(problem):
            return Plan("shifts", "one channel per group, in the order of the axes")
        if rank > 1:
            return None
    elif rank == 2 and single and not spec.is_kernel_dilated:
        if not spec.is_input_dilated or terms > ZEROS:
            return None
    return Plan("depthwise", "few channels per group, summed tap by tap")


def _transformed(problem: ConvProblem, found: Plan | None) -> Plan | None:
    """Fourier transforms, for large windows of one channel and feature in each group.

    1-D of 1024 taps 7825 and 104, its kernel gradient 3814 and 118, 128 taps 4675 and
    307, 31 taps' kernel gradient 505 and 273; with the channels last 9x9 1420 and 232,
    31x31 3519 and 139, kernel gradients of 7x7 taps 2529 and 356, of 9x9 1909 and 224
    (727 and 205 in bfloat16); 5x5x5 515 and 247. Kernel gradients of 5x5x5 taps take
    both 0.7 to 1.1 times as long. One image of one channel, 21x21 taps, 322 and 118.
    """
    spec, three_axes = problem.spec, len(problem.x_spatial) == 3
    images = problem.batch // spec.batch_group_count
    single = problem.features == spec.groups and 1 in (images, problem.channels)
    if not (single and fourier.applies(problem)) or _is_known(problem):
        return None
    if problem.dtype.itemsize > 4 or (spec.batch_group_count > 1 and three_axes):
        return None
    if spec.groups * fourier.group_bytes(problem) > TRANSFORMS:
        return None
    by_taps = found is not None and found.algorithm in ("depthwise", "shifts")
    rate = FAST if three_axes or by_taps or spec.groups == 1 else SLOW
    if problem.flops / 2 / rate < START + POINT * fourier.points(problem):
        return None
    return Plan("fourier", "Fourier transforms, which a large window costs nothing")


def _is_known(problem: ConvProblem) -> bool:
    """Whether cuDNN has a kernel for it: two axes, the channels last, and few taps.

    Of depthwise layers 7x7 taps take 197, of kernel gradients 5x5 65, in bfloat16 7x7
    88; 9x9 are 10 times as slow.
    """
    spec = problem.spec
    last = spec.block_axis == len(problem.x_shape) - 1
    undilated = not (spec.is_input_dilated or spec.is_kernel_dilated)
    gradient = spec.batch_group_count > 1
    sizes = problem.output_spatial if gradient else problem.kernel_spatial
    side = 5 if gradient and problem.dtype.itemsize > 2 else 7
    return len(sizes) == 2 and last and undilated and max(sizes) <= side


def _pointwise(problem: ConvProblem) -> Plan | None:
    """Groups of one tap, which are products.

    2 groups of 256 and 64 at 64 444 and 125, with the channels first 325 and 174; 8
    groups of 30 125 and 37, 32 of 8 81 and 40, 4 of 64 57 and 38.
    """
    spec = problem.spec
    one = problem.taps == 1 and not spec.is_input_dilated
    several = max(problem.channels, problem.features // spec.groups) > 1
    if one and several and not spec.is_strided:
        if by_tap.applies(problem):
            return Plan("by_tap", "a product of each group")
    return None


def _phases(problem: ConvProblem) -> Plan | None:
    """An input with zeros in it, in three dimensions or for few features.

    2x2x2 at 16 128 and 85, at 32 519 and 120, 64 and 32 channels and features; 3x3x3 to
    one feature 209 and 98, 2x2x2 from 1024 to one 1068 and 57.
    """
    few = problem.features < FEW or len(problem.x_spatial) == 3
    if few and problem.spec.groups == 1 and subpixel.applies(problem):
        return Plan("subpixel", "XLA:GPU multiplies by the zeros of a dilated input")
    return None
