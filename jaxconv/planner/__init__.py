"""Which algorithm computes a convolution: a pure function of problem and platform.

A rule may look at geometry, dtypes and platform, never at a layer's name, and says in
its reason why it chose. Where nothing was measured to be better the plan is `direct`,
the program that stock JAX emits. Each platform's rules stand apart.
"""

import functools

from jaxconv.algorithms import aligned, crop, empty
from jaxconv.planner import cpu, gpu
from jaxconv.planner.choice import Plan
from jaxconv.planner.cpu import symbolic_batch
from jaxconv.planner.cpu.groups import partitioned
from jaxconv.planner.cpu.routines import mended
from jaxconv.processor import Processor, this_processor
from jaxconv.spec import ConvProblem


def plan(
    problem: ConvProblem,
    platform: str,
    devices: int = 1,
    processor: Processor | None = None,
    *,
    explicit: bool = False,
) -> Plan:
    """Choose the algorithm for `problem` on `platform`.

    Args:
      problem: what is to be computed.
      platform: "cpu", "gpu", or anything else for platforms without measured rules.
      devices: over how many the program is partitioned by XLA.
      processor: whose costs count on a CPU; None for this machine's.
      explicit: whether an operand's sharding over several devices belongs to its type.

    Returns:
      The plan. Algorithms leave smaller convolutions, which are planned in turn.

    Example:
      >>> import numpy as np
      >>> from jaxconv.arguments import Caller, conv_spec
      >>> shapes = (512, 3, 256), (4, 3, 2)
      >>> spec = conv_spec(Caller("conv"), *shapes, window_strides=(1,),
      ...                  padding=[(1, 1)], lhs_dilation=(2,))
      >>> plan(ConvProblem(spec, *shapes, np.dtype("float32")), "cpu").algorithm
      'subpixel'
    """
    if empty.applies(problem):
        return Plan("empty", "a sum of no terms is zero")
    planned = functools.partial(
        _static_plan,
        platform=platform,
        devices=devices,
        processor=processor or this_processor(),
        explicit=explicit,
    )
    if problem.is_static:
        chosen = planned(problem)
    else:
        alone = platform == "cpu" and devices == 1 and not explicit
        found = symbolic_batch.rule(problem, planned) if alone else None
        chosen = found or Plan("direct", "a symbolic size cannot be planned")
    if chosen.algorithm == "direct" and crop.applies(problem):
        return Plan("crop", "negative padding is computed wrongly by some XLA backends")
    if chosen.algorithm == "direct" and devices > 1 and aligned.applies(problem):
        return Plan("aligned", "XLA's partitioner is wrong about another order of axes")
    if chosen.algorithm == "direct" and platform == "cpu" and devices == 1:
        return mended(problem) or chosen
    return chosen


@functools.lru_cache(maxsize=4096)
def _static_plan(
    problem: ConvProblem,
    platform: str,
    devices: int,
    processor: Processor,
    explicit: bool,
) -> Plan:
    """`plan` for problems of known sizes, whose hashes and comparisons are sound."""
    if problem.dtype == bool:
        return Plan("direct", "only XLA's own convolution adds up truth values")
    if platform not in ("cpu", "gpu"):
        return Plan("direct", f"nothing was measured to be faster on {platform}")
    found = gpu.many_axes(problem) if platform == "gpu" else None
    if found is not None:
        return found
    if explicit or problem.out_sharding is not None:
        return Plan("direct", "explicitly sharded, by the rules of XLA's convolution")
    if devices > 1:
        found = partitioned(problem) if platform == "cpu" else None
        return found or Plan("direct", "XLA partitions its own convolution")
    found = cpu.rule(problem, processor) if platform == "cpu" else gpu.rule(problem)
    reason = f"no rule knows anything faster than XLA:{platform.upper()}'s own routine"
    return found or Plan("direct", reason)
