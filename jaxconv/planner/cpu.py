"""Rules for one CPU, by what was measured there.

Where nothing was measured to be better a rule answers nothing. Rules and costs rest on
jax 0.12.0.1, whose fast path is YNNPACK, and were found to hold on 0.10.2, where it is
Eigen.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.algorithms import (
    by_groups,
    by_image,
    by_member,
    by_output,
    by_rows,
    by_tap,
    channels_last,
    depthwise,
    depthwise_gradient,
    direct,
    fold_depth,
    fourier,
    overlap_add,
    overlap_slices,
    pad,
    patches,
    patches_gradient,
    per_group,
    pointwise_groups,
    product,
    shifts,
    slices_gradient,
    stencil,
    subpixel,
    swap,
)
from jaxconv.algorithms.windows import LANES, padded_bytes
from jaxconv.planner.choice import LARGER, Plan, cheapest, first, is_kernel_gradient
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem, dilated

ZEROS, ZEROS_3D = 32, 100
"""Taps up to which depthwise layers of an input with zeros read these, and from 3-D on.

Phases multiply by few of them, but interleave. The input gradient of a depthwise 3x3
layer with stride 2 took 137 ms by stock, 15 by phases and 0.95 with three quarters of
the terms zero; 7x7 with 24 channels at 112x56 0.10 by phases and 0.31; 3x3x3, stride 4
in 4 groups of 2, 2.9 and 51. With the channels first phases were the faster ones in 29
of 39 random layers, 2.1 times in geometric mean (AMD EPYC with AVX-512).
"""

NARROW = 32
"""Channels or features below which XLA's convolution is faster than its product.

Pointwise layers of 8 to 24, 3 to 8, 96 to 3 and 1024 to 8 channels: 0.59 to 0.76 of
stock's speed by a product (AMD EPYC with AVX-512).
"""

SMALL = 4
"""Features of a small group.

With 8 groups, 64 taps and 2 features each, 10.4 ms entry by entry and 6.4 ms by stock.
Kernel gradients with 8 groups of one channel 26 and 12 ms.
"""

FEW = 8
"""Groups of one channel below which vectors along them are mostly empty.

16 images of 56x75 with 3 channels: 0.8 ms entry by entry along the channels, 0.12 by
shifts along an axis; with 8 of them 0.40 and 0.45 (AMD EPYC with AVX-512).
"""

WEIGHTS = 8
"""Entries of a group's kernel up to which channels are summed entry by entry.

Of 130 random layers with several channels in each group, this was 0.4 to 40 times as
fast as the best of the others with up to 8 such entries, 1.8 in geometric mean, and
half as fast with 9 to 64 of them; with one feature in each group, 1.5 to 100 times as
fast up to 64 (AMD EPYC with AVX-512).
"""

SQUARE = 16
"""Channels times features of a group up to which channels are copied for features.

While a copy stays in the cache: 4 and 4 in 32 groups at 32x32, 3x3 1.1 ms and by
patches 1.9 to 3.1, 2 and 2 0.4 and 2.8 (AMD EPYC with AVX-512).
"""

PAIRS = 8
"""Channels times features of a group up to which terms may be summed entry by entry.

For more of them the cost of that was not fitted: 16 and 4 in 16 groups, 7x7, take 1.2
ms, and 0.5 group by group (AMD EPYC with AVX-512).
"""

PAIRS_3D = 96
"""Channels times features up to which a stencil is faster where there is no routine.

Of 67 random layers with three axes it was the fastest of all in 41; where `overlap_add`
does not apply in 27 of the 36 with so few pairs, up to 30 times as fast as the choice
before (AMD EPYC with AVX-512).
"""

PAIRS_DENSE = 256
"""Channels times features up to which a stencil of more than a few may be the faster.

Of 92 random layers of one or two axes it was so for 20, all of which have at most four
channels or so few pairs; with more, it was thought to be in four and took 1.6 to 3.7
times as long (AMD EPYC with AVX-512).
"""

SHORT = 64
"""Terms up to which patches of layers with three axes are few enough to copy.

Of 44 random strided ones, four had up to two channels and 3x3x3 taps: 1.3 to 2.2 times
as fast as slice by slice, 1.2 to 1.5 times as by a stencil. With more channels either
may be faster. Over 45 random ones of many more features than channels the choice takes
1.08 times as long as the best, and 1.26 where patches are not asked for (AMD EPYC with
AVX-512).
"""

WIDENED = 16
"""Features over channels from which on it is cheaper to copy x than to add up slices.

Of 50 random layers with three axes, seven were so wide, and took 1.5 times as long by
`overlap_slices` as by the fastest, 3 to 256 at 14x7x7 0.47 and 0.28 ms by patches. Over
all of them the choice takes 1.08 times as long as the best, without it 1.30 and at most
31 times (AMD EPYC with AVX-512).
"""

NEARLY = 0.9
"""Estimates are rough: what is not so much cheaper than XLA's own is not chosen.

Over 307 random dense kernel gradients on an AMD EPYC with AVX-512, the choice takes
1.07 times as long as the best in geometric mean, and stock 1.6 times as long as it.
With 0.7 it takes 1.12 times as long, with 1.2 1.09 times.
"""

PADDED = 0.8
"""Time of layers of one channel with the zeros laid around it, over that without.

0.71 to 0.9 by features over 100 random ones: lenet's first 5x5 0.66 and 0.42 ms. With
more channels, or taps that are dilated, it is 1 (AMD EPYC with AVX-512). The choice for
170 layers of one channel takes 1.07 times as long as the best, and 1.45 before.
"""

COPIED = 1.15
"""What a product has to be faster by that needs a copy of the kernel in memory.

It is one more loop to compile, in 70 ms where XLA's routine takes 7: 14x14 with 256
channels takes 4.0 instead of 4.4 ms by it, and 7 MB.
"""

BLOCKS = 1.25
"""How much longer a product that is added up takes block by block of the images.

From 1.25 to 1.5 the choices over 60 random layers are the same; with 1 they are worse.
"""

ROWS, MANY_WEIGHTS = 800, 300_000
"""Outputs and entries of a kernel to which the dense costs were fitted."""

OWN = 0.75 if jax.__version_info__ < (0, 11) else 1.0
"""XLA's own kernel gradients over the estimate of them, by version of jax.

They were Eigen's until 0.10.2, 5.8 ms for 3x3 at 7x7 with 512 channels and features and
patches 6.7; later YNNPACK's, 7.2 and 5.2 ms (AMD EPYC with AVX-512).
"""

SUMS, PEAK, CALL = 10e9, 225e9, 4e-5
"""Products a second for one channel and feature, at most, and seconds of a call.

Between them the rate grows with the cube root of how many pairs there are. Of 200
random layers that have no cost of their own, half take 0.7 to 2 times as long (AMD EPYC
with AVX-512).
"""

WORTH = 0.75
"""How much of the time of sums transforms may take, whose rounding is another one."""

SPLIT = 2
"""How much longer transforms may take by rows, which overlap, to need less memory."""

UNMEASURED = 3
"""How much longer transforms may take on processors where they were not measured."""

SLICE = 128
"""Points of a slice from which on it is worth a convolution of its own.

Stride-2 3x3x3 with slices of 81 points: 5.6 ms slice by slice, 4.0 by patches; with
slices of 1024 points 11 and 24.
"""


def rule(problem: ConvProblem, processor: Processor) -> Plan | None:
    """The answer of the first rule that has one.

    Args:
      problem: what is to be computed, of known sizes.
      processor: whose costs count.
    """
    found = _by_sums(problem, processor)
    return _transformed(problem, found, processor) or found


def _by_sums(problem: ConvProblem, processor: Processor) -> Plan | None:
    """The answer of the first rule that has one, of all but transforms."""
    gradient = functools.partial(_gradient, processor=processor)
    of_depthwise = functools.partial(_depthwise_gradient, processor=processor)
    members = functools.partial(_members, processor=processor)
    small = _product, _pointwise, of_depthwise, _depthwise
    large = members, gradient, _grouped, _dilated, _deep, _dense
    found = first((_larger_window, *small, *large), problem)
    if found is not None and found.algorithm in ("subpixel", "depthwise"):
        found = _in_memory(problem, found)
    return found


def partitioned(problem: ConvProblem) -> Plan | None:
    """What XLA divides over devices, along any axis, with no more communication.

    Phases would interleave along a sharded axis of features, which XLA gathers for it.
    A kernel gradient's window is as large as an image, and the images, which it sums
    over, may be spread: each of its points would be a sum over devices.
    """
    several = max(problem.channels, problem.features // problem.spec.groups) > 1
    taps, outputs = map(math.prod, (problem.kernel_spatial, problem.output_spatial))
    if by_tap.applies(problem) and several and taps <= outputs:
        return Plan("by_tap", "XLA gathers the images of groups, but not for products")
    return None


def mended(problem: ConvProblem) -> Plan | None:
    """A plan that lets XLA:CPU use its own routine, by laying out zeros or axes."""
    if _is_exchanged(problem):
        return Plan("pad", "XLA:CPU exchanges input and kernel, if that has more taps")
    if _is_routine(problem):
        return Plan("channels_last", "XLA:CPU orders axes itself, but not within loops")
    return None


def _larger_window(problem: ConvProblem) -> Plan | None:
    """A window of more taps than the input has entries, which it exchanges.

    Outputs are more than the entries, too: else it is a kernel gradient.
    """
    entries, taps, outputs = map(
        math.prod, (problem.x_spatial, problem.kernel_spatial, problem.output_spatial)
    )
    positions = entries * math.prod(problem.spec.lhs_dilation)
    fills = problem.batch >= LANES and problem.channels > 1
    larger = taps > positions if fills else taps >= LARGER * positions
    if swap.applies(problem) and larger and entries < outputs:
        return Plan("swap", "the input is a kernel on the window, which is an image")
    return None


def _product(problem: ConvProblem) -> Plan | None:
    """A matrix product as it stands.

    Pointwise layers: 1.2 to 3 times as fast as stock; with the channels first 256 to 96
    on 4 images of 64x65 1.3 times image by image, 0.73 as one product.
    """
    if not product.applies(problem):
        return None
    terms = problem.channels * math.prod(problem.kernel_spatial)
    chain, columns = patches_gradient.CHAIN, min(problem.batch, problem.features)
    if product.is_apart(problem) and terms <= chain * problem.channels:
        return Plan("product", "a matrix product of each image")
    if terms > chain and columns < NARROW and is_kernel_gradient(problem):
        return None  # stock's sum of so many terms is more accurate than one product
    if min(terms, problem.features) < NARROW and not is_kernel_gradient(problem):
        return Plan("direct", "a product with so few columns is slower")
    return Plan("product", "a matrix product")


def _pointwise(problem: ConvProblem) -> Plan | None:
    """Groups of one tap for whose products nothing, or a part of x, is transposed.

    Over 64 random layers with the channels first 5 times as fast as stock and as the
    choice before, in geometric mean, and within 4 % of the best. One channel each is a
    scaling: 8 images of 56x56, 16 to 64 channels, 0.08 ms, with copies of x 0.29, by
    stock 5.8 (AMD EPYC with AVX-512).
    """
    taps, in_a_row = math.prod(problem.kernel_spatial), _is_in_a_row(problem)
    scaled = by_tap.applies(problem) and taps == problem.channels == 1
    if scaled and not (in_a_row and shifts.applies(problem)):
        return Plan("by_tap", "each channel times its weights, entry by entry")
    several = problem.channels > 1 and problem.features > problem.spec.groups
    strided = max(problem.spec.window_strides, default=1) > 1
    if not (pointwise_groups.applies(problem) and several):
        return None
    if pointwise_groups.is_apart(problem) or strided:
        return Plan("pointwise_groups", "products of what all outputs read")
    return None


def _is_depthwise_gradient(problem: ConvProblem) -> bool:
    """Whether it is one of few features for each channel, to which costs were fitted.

    Not of an input with zeros, but in full vectors: sub-pixel phases are faster.
    """
    spec = problem.spec
    few = problem.features <= SMALL * spec.groups
    full = problem.features >= LANES or len(problem.x_spatial) > 2
    known = few and (full or max(spec.lhs_dilation, default=1) == 1)
    return spec.batch_group_count > 1 and known and depthwise_gradient.applies(problem)


def _depthwise_gradient(problem: ConvProblem, processor: Processor) -> Plan | None:
    """Kernel gradients of depthwise layers, whether or not vmap has made their groups.

    Over 220 random ones the choice takes 1.2 times as long as the best, 1.4 times
    without the costs, and stock, which computes all pairs of groups, 10 times.
    """
    return _gradient(problem, processor) if _is_depthwise_gradient(problem) else None


def _depthwise(problem: ConvProblem) -> Plan | None:
    """Groups too small for matrix products.

    12 to 130 times as fast as stock's on every depthwise layer of the zoo.
    """
    spec, G, rank = problem.spec, problem.spec.groups, len(problem.x_spatial)
    if G == 1 or problem.features > SMALL * G:
        return None
    in_a_row = _is_in_a_row(problem)
    if shifts.applies(problem) and (in_a_row or G < FEW):
        reason = "one channel per group, added up along a spatial axis"
        return Plan("shifts", reason, shifts.cost(problem))
    taps = math.prod(problem.kernel_spatial)
    weights = taps * problem.channels * problem.features // G
    alone = problem.channels * problem.features == G
    few_taps = taps <= 2 * LANES
    fills = G >= LANES or alone or few_taps
    # As many taps take as long with full vectors.
    reads = taps * problem.channels * max(LANES / problem.features, 1)
    undilated = max(spec.lhs_dilation, default=1) == 1
    few = not in_a_row and reads <= (ZEROS if rank < 3 else ZEROS_3D)
    few_zeros = undilated or few
    single = problem.features == G and weights <= depthwise.TERMS
    copied = math.prod(problem.x_spatial) * problem.batch * problem.features
    in_cache = weights <= SQUARE * taps and 4 * copied <= by_image.BLOCK
    in_cache &= problem.channels * taps <= depthwise.TERMS
    small = problem.channels == 1 or weights <= WEIGHTS or single or in_cache
    if not (depthwise.applies(problem) and small and fills and few_zeros):
        return None
    if stencil.applies(problem) and not shifts.applies(problem):
        costs = {
            name: _OF_GROUPS[name].cost(problem) for name in ("depthwise", "stencil")
        }
        return cheapest(costs)
    reason = "few channels per group, summed tap by tap"
    return Plan("depthwise", reason, depthwise.cost(problem))


def _is_in_a_row(problem: ConvProblem) -> bool:
    """Whether x has a spatial axis last, as it has with the channels first."""
    x_axes = problem.spec.dimension_numbers.lhs_spec
    return x_axes[-1] == len(x_axes) - 1


def _members(problem: ConvProblem, processor: Processor) -> Plan | None:
    """Groups that vmap has made: an ensemble's, or gradients of single examples.

    Over 90 random ensembles of layers that are not depthwise, their gradients among
    them, 1.7 times as fast as the best by groups in geometric mean, and 3.6 at most.
    """
    if not by_member.applies(problem):
        return None
    one = by_member.single(problem)
    taps, outputs = map(math.prod, (one.kernel_spatial, one.output_spatial))
    if max(one.channels, one.spec.groups) > 1 or not 1 < outputs < taps:
        return Plan("by_member", "one member after the other, as vmap found them")
    costs = {
        "direct": NEARLY * direct.grouped_cost(problem),
        "by_member": by_member.gradients_cost(problem, processor),
    }
    return cheapest(costs)


def _gradient(problem: ConvProblem, processor: Processor) -> Plan | None:
    """Windows with more points than the output has: kernel gradients.

    Which is the fastest depends on channels, features, images and cache as the costs
    say; stock is 1.5 times faster to 20 times slower.
    """
    spec = problem.spec
    taps, outputs = (
        math.prod(sizes) for sizes in (problem.kernel_spatial, problem.output_spatial)
    )
    own = spec.batch_group_count == 1  # else XLA:CPU computes all pairs of groups
    costs = _of_depthwise_gradient(problem) if _is_depthwise_gradient(problem) else {}
    if not patches_gradient.applies(problem):
        return cheapest(costs) if costs else None
    if own:
        if outputs >= (16 * taps if is_kernel_gradient(problem) else taps / 4):
            return None
        if math.prod(problem.output_spatial) == 1 and max(spec.rhs_dilation) > 1:
            return Plan("patches_gradient", "a product of strided entries")
        if _is_complex(problem.dtype) and len(problem.x_spatial) > 2:
            return Plan("patches_gradient", "XLA:CPU ends the process on some of these")
    elif not costs and depthwise_gradient.applies(problem) and problem.features < LANES:
        return None  # phases, for few pairs in at most two dimensions
    costs |= _by_patches(problem, processor)
    if max(spec.rhs_dilation) == 1:
        # Else the swapped input would be dilated.
        exchanged = swap.swapped_problem(problem)
        few = not own and depthwise_gradient.applies(exchanged)
        if not few and _larger_window(exchanged) is None:  # else exchanged once more
            costs["swap"] = min(_by_patches(exchanged, processor).values())
    if own:
        costs["direct"] = NEARLY * OWN * direct.gradient_cost(problem, processor)
    elif _is_in_a_row(problem):
        costs |= _by_blocks_of_groups(problem, processor)
    return cheapest(costs)


def _of_depthwise_gradient(problem: ConvProblem) -> dict[str, float]:
    """Costs of what multiplies no other pairs than those of each channel."""
    costs = {"depthwise_gradient": depthwise_gradient.cost(problem)}
    if not by_output.applies(problem):  # several features for each channel
        return costs
    few = problem.features <= LANES and len(problem.x_spatial) < 3
    if math.prod(problem.output_spatial) == 1:
        costs["by_output"] = by_output.cost(problem)
    elif few and _is_fast(problem.dtype):
        costs["direct"] = NEARLY * direct.depthwise_gradient_cost(problem)
    return costs


def _by_blocks_of_groups(
    problem: ConvProblem, processor: Processor
) -> dict[str, float]:
    """Cost of the groups block by block, where each lies in one piece.

    Single groups are layers for which XLA:CPU has its routine, and need less memory at
    a time. Of 45 random kernel gradients with the channels first it is planned for 7,
    1.4 to 3 times as fast as all groups at once (AMD EPYC with AVX-512).
    """
    count, one = by_groups.of_block(problem)
    inner = rule(one, processor) if count > 1 else None
    if inner is None or inner.seconds is None:
        return {}
    return {"by_groups": count * inner.seconds}


def _by_patches(problem: ConvProblem, processor: Processor) -> dict[str, float]:
    """Costs of products of patches: of all taps, or of those of the further axes."""
    costs = {"patches_gradient": patches_gradient.cost(problem, processor)}
    if len(problem.x_spatial) > 2 and slices_gradient.applies(problem):
        costs["slices_gradient"] = slices_gradient.cost(problem, processor)
    return costs


def _grouped(problem: ConvProblem) -> Plan | None:
    """Feature groups of an undilated input."""
    spec = problem.spec
    if spec.feature_group_count == 1 or max(spec.lhs_dilation, default=1) > 1:
        return None
    wide = problem.channels <= SMALL and problem.features >= NARROW * spec.groups
    if pointwise_groups.applies(problem) and not wide:
        # Over 236 random layers 1.3 times as fast as by the costs, and 2 as stock; few
        # channels and 32 to 240 features 1.4 times slower than stock.
        return Plan("pointwise_groups", "products of all groups")
    costs = {"direct": NEARLY * direct.grouped_cost(problem)}
    pairs = problem.channels * problem.features
    few = problem.channels == 1 or pairs <= PAIRS * spec.groups
    for name, algorithm in _OF_GROUPS.items():
        if algorithm.applies(problem) and (few or algorithm is not depthwise):
            costs[name] = algorithm.cost(problem)
    return cheapest(costs)


_OF_GROUPS: dict[str, Any] = {
    "depthwise": depthwise,
    "patches": patches,
    "per_group": per_group,
    "stencil": stencil,
}
"""Algorithms for feature groups of several taps, all of which have a cost."""


def _dilated(problem: ConvProblem) -> Plan | None:
    """Sub-pixel phases, or a product that is added up where windows overlap.

    XLA's own routine is such a product. Phases need no adding up, but multiply by the
    zeros that fill up their windows. jax 0.10.2 gave the same order.
    """
    if not subpixel.applies(problem):
        return None
    costs = {}
    if _is_product_and_scatter(problem):
        costs["direct"] = NEARLY * direct.scatter_cost(problem)
    if not _is_complex(problem.dtype):
        costs |= _added_up(problem)
    if not costs:
        return Plan("subpixel", "XLA:CPU multiplies by the zeros of a dilated input")
    # A large copy of the kernel is worth its memory where XLA has no routine.
    small = subpixel.weights(problem) * problem.dtype.itemsize <= by_image.BLOCK
    if small or pad.is_exchanged(problem):
        costs["subpixel"] = subpixel.cost(problem)
    return cheapest(costs)


def _added_up(problem: ConvProblem) -> dict[str, float]:
    """Costs of one product that is added up, of all images or a block at a time.

    Over 60 random layers of more images than are multiplied at once, the choice takes
    1.10 times as long as the best, and 1.27 without the blocks (AMD EPYC with AVX-512).
    """
    if overlap_add.applies(problem):
        return {"overlap_add": overlap_add.cost(problem)}
    if not by_image.applies(problem):
        return {}
    count, one = by_image.of_block(problem)
    if not overlap_add.applies(one):
        return {}
    return {"by_image": BLOCKS * count * overlap_add.cost(one)}


def _in_memory(problem: ConvProblem, chosen: Plan) -> Plan:
    """By blocks of images, or of rows, where a copy of x or y is too large.

    Sub-pixel phases need one before they interleave, and depthwise layers of several
    channels or features in each group one of x.
    """
    phases, G = chosen.algorithm == "subpixel", problem.spec.groups
    copies = phases or max(problem.channels, problem.features // G) > 1
    sizes = math.prod(problem.output_shape), math.prod(problem.x_shape)
    size = (sizes[0] if phases else max(sizes)) * problem.dtype.itemsize
    copied = 0 if phases else by_image.image_bytes(problem) * problem.batch
    # Half as much again, so that a block is not divided again.
    large = 2 * size > 3 * by_image.BLOCK or copied > depthwise.NEW
    if not copies or not large:
        return chosen
    reason = f"bounds the memory of {chosen.algorithm}"
    single = problem.batch == 1 or by_image.image_bytes(problem) > by_image.BLOCK
    # Rows are cut out of a copy of x with its zeros in place.
    small = 4 * math.prod(problem.x_shape) <= math.prod(problem.output_shape)
    if phases and single and small and by_rows.applies(problem):
        return chosen._replace(algorithm="by_rows", reason=reason)
    if by_image.applies(problem):
        return chosen._replace(algorithm="by_image", reason=reason)
    return chosen


def _transformed(
    problem: ConvProblem, found: Plan | None, processor: Processor
) -> Plan | None:
    """Fourier transforms, where windows have so many taps that sums take longer.

    Over 500 random layers with large windows or few channels, of all roles, the choice
    takes 1.06 times as long as the better of sums and transforms, and 2.1 times without
    transforms (AMD EPYC with AVX-512). jax 0.10.2 has the same transforms.
    """
    if not fourier.applies(problem):
        return None
    algorithm, count, one = "fourier", 1, problem
    if by_groups.applies(problem):
        count, one = by_groups.of_block(problem)
        algorithm = "by_groups" if count > 1 else "fourier"
    if by_image.applies(problem) and not _fits(one):
        algorithm, (count, one) = "by_image", by_image.of_block(problem)
    if count == 1 and not _fits(one) and by_rows.applies(problem):
        rows, part = by_rows.of_block(problem)
        if 1 < rows < SPLIT * fourier.cost(problem) / fourier.cost(part):
            algorithm, count, one = "by_rows", rows, part
    if count == 1 and not _fits(one, at_most=2 * _operand_bytes(one)):
        return None
    seconds = count * fourier.cost(one)
    if processor is not Processor.WIDE_AMD:
        seconds *= UNMEASURED
    sums = None if found is None else found.seconds
    if sums is None:
        # Batch groups XLA:CPU expands, to compute all pairs of them.
        pairs = 1 if found else problem.spec.batch_group_count
        sums = CALL + pairs * _sums(problem)
    if count > 1 and seconds < WORTH * sums:  # a block may be divided in turn
        inner = _transformed(one, _by_sums(one, processor), processor)
        if inner is None or inner.seconds is None:
            return None
        seconds = count * inner.seconds
    if seconds >= WORTH * sums:
        return None
    told = f"{1e3 * seconds:.3g} ms as estimated, and by sums {1e3 * sums:.3g} ms"
    return Plan(algorithm, f"a window of many taps, by transforms {told}", seconds)


def _fits(problem: ConvProblem, at_most: int = 0) -> bool:
    """Whether transforms of a block, and copies of all operands, are of a few MB.

    Or transforms alone of no more than `at_most` bytes, where nothing is to be divided:
    kernel gradients of large images, 21x21 on one of 2048x2048 with 48 MB of them 30
    ms, otherwise 614 ms and 64 MB (AMD EPYC with AVX-512).
    """
    block = max(fourier.group_bytes(problem), fourier.BLOCK)
    return block <= max(3 * fourier.BLOCK - _operand_bytes(problem), at_most)


def _operand_bytes(problem: ConvProblem) -> int:
    """Bytes of x and of the kernel."""
    entries = math.prod(problem.x_shape) + math.prod(problem.kernel_shape)
    return entries * problem.dtype.itemsize


def _sums(problem: ConvProblem) -> float:
    """Seconds, roughly, of the sums of any algorithm for which nothing was fitted."""
    pairs = problem.channels * problem.features // problem.spec.groups
    return fourier.products(problem) / min(SUMS * math.cbrt(pairs), PEAK)


def _is_fast(dtype: Any) -> bool:
    """Whether XLA:CPU has a routine for the dtype: floats of 16 and 32 bits."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits <= 32


def _is_complex(dtype: Any) -> bool:
    """Whether products are complex, of which XLA:CPU's are slower than real ones."""
    return jnp.issubdtype(dtype, jnp.complexfloating)


def _has_routine(problem: ConvProblem) -> bool:
    """Whether XLA:CPU has one for an undilated input.

    For doubles in two dimensions: 3x3 at 25 with 29 channels takes 0.7 ms, and by
    patches 2.4 (1.2 and 2.7 on jax 0.10.2); in one dimension, 200 points with 64
    channels, 3.0 and 0.2. Complex ones are three real ones: 0.3 and 0.7 ms, and 2.1 and
    4.0 in two dimensions.
    """
    dtype, rank = problem.dtype, len(problem.x_spatial)
    if _is_complex(dtype):
        return rank <= 2
    return _is_fast(dtype) or (dtype == jnp.float64 and rank == 2)


def _deep(problem: ConvProblem) -> Plan | None:
    """What XLA:CPU computes by nested loops: other dtypes, many spatial axes."""
    if max(problem.spec.lhs_dilation, default=1) > 1:
        return None
    rank = len(problem.x_spatial)
    loops = not _has_routine(problem) or rank > 3
    if loops and not jnp.issubdtype(problem.dtype, jnp.inexact):
        return None
    if loops or rank == 3:
        if _reads_once(problem) and patches.applies(problem):
            return Plan("patches", "windows that do not overlap are copied as they lie")
        costs = _added_up(problem)
        few = problem.channels * problem.features <= PAIRS_3D
        if few and stencil.applies(problem):
            costs["stencil"] = stencil.cost(problem)
        terms = problem.channels * math.prod(problem.kernel_spatial)
        strided = not loops and max(problem.spec.window_strides) > 1
        wide = problem.features >= WIDENED * problem.channels
        short = terms <= SHORT and (strided or (wide and costs))
        if short and patches.applies(problem):
            costs["patches"] = patches.dense_cost(problem)
        if not (loops or wide) and overlap_slices.applies(problem):
            costs["overlap_slices"] = overlap_slices.cost(problem)
        if costs:
            return cheapest(costs)
    if loops:
        known = patches.applies(problem)
        return Plan("patches", "XLA:CPU has no routine for it") if known else None
    taps = math.prod(problem.kernel_spatial)
    if rank < 3 or not fold_depth.applies(problem):
        return None
    if taps == 1 or math.prod(problem.output_spatial[1:]) < SLICE:
        return Plan("patches", "slices too small to convolve one by one")
    return Plan("fold_depth", "XLA:CPU has a fast path for two spatial axes")


def _reads_once(problem: ConvProblem) -> bool:
    """Whether windows do not overlap, so that all patches are no larger than x."""
    spec = problem.spec
    return all(
        stride >= dilated(taps, dilation)
        for stride, taps, dilation in zip(
            spec.window_strides, problem.kernel_spatial, spec.rhs_dilation, strict=True
        )
    )


def _dense(problem: ConvProblem) -> Plan | None:
    """Windows over an undilated input, without groups, in one or two dimensions.

    XLA's own routine reads each entry for every tap, and orders the kernel first: with
    many weights and few outputs, and in input gradients, other products are faster.
    """
    spec, weights = problem.spec, math.prod(problem.kernel_shape)
    if spec.groups > 1 or max(spec.lhs_dilation, default=1) > 1:
        return None
    known = _has_routine(problem) and not _is_complex(problem.dtype)
    if is_kernel_gradient(problem) or not known:
        return None
    costs = _added_up(problem)
    if "overlap_add" in costs and not overlap_add.as_it_lies(problem):
        costs["overlap_add"] *= COPIED
    pairs = problem.channels * problem.features
    few = problem.channels <= SMALL or pairs <= PAIRS_DENSE
    if few and stencil.applies(problem):
        costs["stencil"] = stencil.cost(problem) / NEARLY
    rows = problem.batch * math.prod(problem.output_spatial)
    if rows <= ROWS and weights >= MANY_WEIGHTS and patches.applies(problem):
        costs["patches"] = patches.dense_cost(problem)
    own = NEARLY * direct.dense_cost(problem)
    steps = max(spec.rhs_dilation, default=1)
    if problem.channels == 1 and steps == 1 and pad.applies(problem):
        costs["pad"] = PADDED * own
    return cheapest({"direct": own, **costs})


def _is_exchanged(problem: ConvProblem) -> bool:
    """Whether zeros around x keep XLA:CPU from exchanging it with the kernel."""
    return (
        pad.is_exchanged(problem)
        and pad.applies(problem)
        and padded_bytes(problem) <= 2 * by_image.BLOCK
    )


def _is_routine(problem: ConvProblem) -> bool:
    """Whether XLA:CPU has a routine for it, if only the axes stand in order."""
    spec = problem.spec
    undilated = max(spec.lhs_dilation, default=1) == 1
    return (
        problem.is_static
        and channels_last.applies(problem)
        and _is_fast(problem.dtype)
        and 1 <= len(spec.window_strides) <= 3
        and spec.batch_group_count == 1
        and (undilated or _is_product_and_scatter(problem))
    )


def _is_product_and_scatter(problem: ConvProblem) -> bool:
    """Whether XLA:CPU computes an input-dilated convolution without its zeros.

    It does so for ungrouped ones in one or two dimensions whose windows take steps of
    one: a matrix product with the kernel, added up where windows overlap. It has that
    for floats of up to 32 bits; in float64, phases were 4 to 10 times faster than stock
    on layers of 3x3, 1x1 and 4x4 taps with stride 2.
    """
    spec, dtype = problem.spec, problem.dtype
    ones = all(n == 1 for n in (*spec.window_strides, *spec.rhs_dilation))
    short = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits <= 32
    return short and ones and spec.groups == 1 and len(spec.window_strides) <= 2
