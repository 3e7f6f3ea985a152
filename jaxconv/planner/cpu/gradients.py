"""Kernel gradients: windows with more points than the output has."""

import jax

from jaxconv.algorithms import (
    by_groups,
    by_output,
    crop,
    depthwise_gradient,
    direct,
    patches,
    patches_gradient,
    runs_gradient,
    slices_gradient,
    swap,
)
from jaxconv.planner.choice import (
    Plan,
    Rule,
    cheapest,
    is_in_a_row,
)
from jaxconv.planner.cpu import larger_windows
from jaxconv.planner.cpu.depthwise import SMALL
from jaxconv.planner.cpu.routines import NEARLY, is_complex, is_fast
from jaxconv.processor import LANES, Processor
from jaxconv.spec import ConvProblem

IS_EIGEN = jax.__version_info__ < (0, 11)
"""Whether XLA's own kernel gradients are Eigen's, and not YNNPACK's as since then."""

LARGE, BLOCKED = 4 << 20, 1.27
"""Bytes of x from which on groups of a few channels are copied block by block on
processors that prefer it, and how many times as fast that is.

The channels of a group are part of a line of the cache each, and the lines of a large x
are gone when the next group asks for them. Over 57 random kernel gradients of 2 to 32
channels in each of 2 to 64 groups it is so in geometric mean, 0.83 to 2.9 times; over
47 of smaller x 1.04 times, over 20 of one tap 0.87 times (AMD EPYC without AVX-512). On
one of the fourth generation, over 60 others, it is 1.18 times as fast, 0.62 to 2.2.
"""

WINDOW = 400
"""Taps up to which a window that leaves few outputs is asked for products of patches.

More are mostly those of kernel gradients, which look alike once XLA is to have their
axes in order: of 32 sequences of 1024 points and 128 channels, 5 taps, in 105 ms by
patches and 68 by XLA's routine (AMD EPYC without AVX-512).
"""

SLOWER = {Processor.NARROW: 1.4}
"""How many times as long depthwise ones take as on the processor of their costs.

Products of patches are estimated in the processor's own time. Over 246 random kernel
gradients of 1 to 32 channels and 5 to 64 features for each the choice takes 1.14 times
as long as the best, and 1.41 where these are asked for up to 4 features alone, and one
channel never (AMD EPYC without AVX-512).
"""

FEW_GROUPS = {Processor.NARROW: 1.1}
"""How many times as long as estimated XLA's own take, beside the others' costs.

Over 111 random ones of 2 to 16 channels the choice takes 1.02 times as long as the
fastest, and 1.04 with `NEARLY` (AMD EPYC without AVX-512).
"""


def of_depthwise(problem: ConvProblem, processor: Processor, plan: Rule) -> Plan | None:
    """Kernel gradients of depthwise layers, whether or not vmap has made their groups.

    Over 220 random ones the choice takes 1.2 times as long as the best, 1.4 times
    without the costs, and stock, which computes all pairs of groups, 10 times.
    """
    if not _is_depthwise_gradient(problem) or _has_many_outputs(problem):
        return None
    of_channels, others = _of_channels(problem, processor), {}
    if patches_gradient.applies(problem):
        others = _of_products(problem, processor, plan)
    chosen = cheapest(of_channels | others)
    # Not all processors' times of channels are known.
    own_time = processor in SLOWER or chosen.algorithm not in of_channels
    return chosen._replace(own_time=own_time)


def rule(problem: ConvProblem, processor: Processor, plan: Rule) -> Plan | None:
    """Windows with more points than the output has: all other kernel gradients.

    Which is the fastest depends on channels, features, images and cache as the costs
    say; stock is 1.5 times faster to 20 times slower. The taps of strided layers'
    cotangents are dilated, and their inputs where they are exchanged: with few features
    those are so small that the zeros are worth it, 5x5 with stride 2 on 16 images of
    14x28, 512 to 1, 9.2 and 2.7 ms. Over 299 random layers on an Intel Xeon the choice
    takes 1.11 times as long as the best.

    A layer whose window is nearly as large as its images is such a problem, too, but
    its kernel lies as a product of patches reads it: over 124 random ones, 1-D to 3-D,
    the choice takes 1.66 times as long as the best without that product, and 1.14 with
    it (AMD EPYC without AVX-512).
    """
    if _is_depthwise_gradient(problem) or not patches_gradient.applies(problem):
        return None
    # Phases, for few pairs in at most two dimensions.
    of_phases = depthwise_gradient.applies(problem) and problem.features < LANES
    if _has_many_outputs(problem) or (problem.spec.groups > 1 and of_phases):
        return None
    costs = _of_products(problem, processor, plan)
    return cheapest(costs)._replace(own_time=True)


def _has_many_outputs(problem: ConvProblem) -> bool:
    """Whether it is a layer rather than a kernel gradient, of no groups."""
    taps = problem.taps
    most = 16 * taps if problem.is_kernel_gradient else taps / 4
    return problem.spec.groups == 1 and problem.outputs >= most


def _of_products(
    problem: ConvProblem, processor: Processor, plan: Rule
) -> dict[str, float]:
    """Costs of matrix products, those of XLA's routine among them."""
    spec, costs = problem.spec, _by_patches(problem, processor)
    exchanged = swap.swapped_problem(problem)
    if spec.groups > 1:
        return costs | _of_groups(problem, exchanged, processor, plan)
    # Of complex ones XLA:CPU crashes on some.
    crashes = is_complex(problem.dtype) and len(problem.x_spatial) > 2
    if crashes or (problem.outputs == 1 and spec.is_kernel_dilated):
        return costs
    costs |= _of_exchanged(exchanged, processor)
    alone = _by_xla(problem, processor) + crop.slice_cost(problem)
    costs["direct"] = NEARLY * alone
    small = problem.taps <= WINDOW
    if small and not problem.is_kernel_gradient and patches.applies(problem):
        # In the processor's own time, as the other costs are.
        product = patches_gradient.RATES[processor].product
        costs["patches"] = patches.dense_cost(problem, processor, product)
    return costs


def _of_groups(
    problem: ConvProblem, exchanged: ConvProblem, processor: Processor, plan: Rule
) -> dict[str, float]:
    """Costs of groups besides patches: exchanged, or block by block.

    XLA:CPU itself computes all pairs of groups.
    """
    if depthwise_gradient.applies(exchanged):
        costs = {}
        inner = plan(exchanged) if _is_worth_exchanging(problem, exchanged) else None
        if inner is not None and inner.seconds is not None:
            costs["swap"] = inner.seconds
    else:
        costs = _of_exchanged(exchanged, processor)
    if is_in_a_row(problem):
        costs |= _by_blocks_of_groups(problem, plan)
    elif processor.prefers_blocks and _is_spread(problem):
        by_patches = patches_gradient.cost(problem, processor)
        costs["by_groups"] = by_patches / BLOCKED
    return costs


def _of_exchanged(exchanged: ConvProblem, processor: Processor) -> dict[str, float]:
    """Cost of the exchanged operands' products of patches."""
    if not patches_gradient.applies(exchanged) or larger_windows.rule(exchanged):
        return {}
    return {"swap": min(_by_patches(exchanged, processor).values())}


def _by_xla(problem: ConvProblem, processor: Processor) -> float:
    """Cost of XLA's own kernel gradient, which is YNNPACK's.

    Eigen's of 3x3 at 7x7 with 512 channels and features take 5.8 instead of 7.2 ms on
    an AMD EPYC with AVX-512, 9.1 instead of 18.9 on an Intel Xeon. Over 378 random ones
    on the latter (jax 0.10.2) the choice takes 1.09 times as long as the best, and 30
    lose to stock; with the factor of the former 1.10 times, and 43 do.
    """
    seconds = direct.gradient_cost(problem, processor)
    if IS_EIGEN:
        seconds *= 0.6 if processor is Processor.WIDE else 0.75
    return seconds


def _is_depthwise_gradient(problem: ConvProblem) -> bool:
    """Whether it is a depthwise one or of one channel, to which costs were fitted.

    With zeros between its entries, only if it is of few features for each channel that
    fill a vector, or has three axes: sub-pixel phases are faster otherwise.
    """
    spec = problem.spec
    few = problem.features <= SMALL * spec.groups
    full = problem.features >= LANES or len(problem.x_spatial) > 2
    if spec.is_input_dilated and not (few and full):
        return False
    if spec.batch_group_count > 1:
        return depthwise_gradient.applies(problem)
    return problem.is_kernel_gradient and runs_gradient.applies(problem)


def _is_worth_exchanging(problem: ConvProblem, exchanged: ConvProblem) -> bool:
    """Whether to exchange x and the kernel of a gradient that is a depthwise one then.

    So is one whose groups have one feature. Not with zeros between the entries of what
    x is then, nor where both are, which would be exchanged without end. Over 159 random
    kernel gradients the choice takes 1.08 times as long as the best, and 1.58 without:
    64 to 32 in 32 groups, 1x1 on 16 images of 39x16, 6.6 and 0.92 ms; transposed, 8 to
    2 in 2, 2x2 with stride 4 on 8 of 41x18, 3.7 and 0.18 (Intel Xeon).
    """
    undilated = not exchanged.spec.is_input_dilated
    return undilated and not depthwise_gradient.applies(problem)


def _of_channels(problem: ConvProblem, processor: Processor) -> dict[str, float]:
    """Costs of what multiplies no pairs but each channel's, of depthwise ones."""
    costs, G = {}, problem.spec.groups
    if G > 1:
        costs["depthwise_gradient"] = depthwise_gradient.cost(problem)
    if runs_gradient.applies(problem):
        costs["runs_gradient"] = runs_gradient.cost(problem)
    dilated = problem.spec.is_input_dilated
    if G > 1 and problem.features == G and not dilated:
        few = G <= LANES and len(problem.x_spatial) < 3
        if problem.outputs == 1:
            costs["by_output"] = by_output.cost(problem)
        elif few and is_fast(problem.dtype):
            own = direct.depthwise_gradient_cost(problem)
            costs["direct"] = FEW_GROUPS.get(processor, NEARLY) * own
    factor = SLOWER.get(processor, 1.0)
    return {name: factor * seconds for name, seconds in costs.items()}


def _is_spread(problem: ConvProblem) -> bool:
    """Whether several taps read groups of few channels of a large x."""
    several = problem.batch > problem.spec.batch_group_count
    large = problem.x_bytes >= LARGE and problem.outputs > 1
    return several and large and by_groups.of_block(problem)[0] > 1


def _by_blocks_of_groups(problem: ConvProblem, plan: Rule) -> dict[str, float]:
    """Cost of the groups block by block, where each lies in one piece.

    Single groups are layers for which XLA:CPU has its routine, and need less memory at
    a time. Of 45 random kernel gradients with the channels first it is planned for 7,
    1.4 to 3 times as fast as all groups at once (AMD EPYC with AVX-512).
    """
    count, one = by_groups.of_block(problem)
    inner = plan(one) if count > 1 else None
    if inner is None or inner.seconds is None:
        return {}
    return {"by_groups": count * inner.seconds}


def _by_patches(problem: ConvProblem, processor: Processor) -> dict[str, float]:
    """Costs of products of patches: of all taps, or of those of the further axes."""
    costs = {"patches_gradient": patches_gradient.cost(problem, processor)}
    if len(problem.x_spatial) > 2 and slices_gradient.applies(problem):
        costs["slices_gradient"] = slices_gradient.cost(problem, processor)
    return costs
