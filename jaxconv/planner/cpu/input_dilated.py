"""Zeros between the entries of the input: transposed layers, strided gradients."""

from jaxconv.algorithms import by_image, direct, overlap_add, pad, subpixel
from jaxconv.planner.choice import Plan, cheapest
from jaxconv.planner.cpu import memory
from jaxconv.planner.cpu.routines import NEARLY, is_complex, is_product_and_scatter
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem

BLOCKS, BLOCKS_DILATED = 1.25, 1.4
"""How much longer a product that is added up takes block by block of the images.

From 1.25 to 1.5 the choices over 60 random layers are the same; with 1 they are worse
(AMD EPYC with AVX-512). Of zeros between the entries of the input the latter: whisper's
3 taps with stride 2 take 38 ms in blocks and XLA's own product 34 (Intel Xeon). Blocks
of phases count as the former: of 94 input gradients 3 are below 0.9 of stock's speed
with it and 8 with 1, 0.71 and 0.33 at worst (Intel Xeon).
"""

SECONDS_PER_FLOP = {Processor.HALVED: 3e-12}
"""Seconds more for each multiplication and addition than where costs were fitted.

Phases multiply more, and write less. With it whisper's input gradient is estimated to
take XLA 40 ms and phases 38, which take 34 and 36. Over 179 random input gradients and
transposed layers the choice takes 1.120 instead of 1.126 times as long as the best, and
10 instead of 11 are below 0.9 of stock's speed.
"""


def rule(problem: ConvProblem, processor: Processor) -> Plan | None:
    """Sub-pixel phases, or a product that is added up where windows overlap.

    XLA's own routine is such a product. Phases need no adding up, but multiply by the
    zeros that fill up their windows. jax 0.10.2 gave the same order.
    """
    if not subpixel.applies(problem):
        return None
    slower, costs = SECONDS_PER_FLOP.get(processor, 0.0), {}
    whole = slower * direct.scatter_flops(problem)
    if is_product_and_scatter(problem):
        costs["direct"] = NEARLY * (direct.scatter_cost(problem) + whole)
    if not is_complex(problem.dtype):
        sums = added_up(problem, BLOCKS_DILATED)
        costs |= {name: seconds + whole for name, seconds in sums.items()}
    if not costs:
        return Plan("subpixel", "XLA:CPU multiplies by the zeros of a dilated input")
    # A large copy of the kernel is worth its memory where XLA has no routine.
    small = subpixel.weights(problem) * problem.dtype.itemsize <= by_image.BLOCK
    if small or pad.is_exchanged(problem):
        blocks = 1.0 if memory.is_whole(problem, "subpixel") else BLOCKS
        phases = subpixel.cost(problem) + slower * subpixel.flops(problem)
        costs["subpixel"] = blocks * phases
    return cheapest(costs)


def added_up(problem: ConvProblem, blocks: float = BLOCKS) -> dict[str, float]:
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
    return {"by_image": blocks * count * overlap_add.cost(one)}
