"""A convolution whose result has its axes in the order of its input's.

    y[n, o, f] = Σ_{t, c} x̃[n, s·o + d·t − p, c] · k[t, c, f]

is the same array in any order of its axes. XLA's partitioner gives each device whole
groups of one channel, or of one image, where the groups are spread over devices, and
takes the order of y's axes for its inverse as it does: where the two differ, all but
some of the results are wrong, with no word said. In the order of x they are right.

Applies to such groups, whose axes change their order. Costs a transposition of y. Of
120 random ones of four axes in any order, over 4 devices, 36 are wrong as they stand,
and none so (jax 0.10.2 and 0.12.0.1). A gradient for each example of a batch that is
spread over devices is such a convolution.
"""

import dataclasses

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxconv.algorithms import direct
from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem


def applies(problem: ConvProblem) -> bool:
    """Groups of one channel or image, of known sizes, and another order of axes."""
    if not problem.is_static or problem.spec.groups == 1:
        return False
    single = problem.channels == 1 or problem.batch == problem.spec.batch_group_count
    x_axes, _, y_axes = problem.spec.dimension_numbers
    return single and x_axes != y_axes


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Convolve, then put the axes in order, and their sharding before that."""
    layout, sharding = problem.spec.dimension_numbers, problem.out_sharding
    # Where each axis of y stands in the order of x.
    order = [layout.lhs_spec[role] for role in np.argsort(layout.out_spec)]
    if sharding is not None:
        names = (*sharding.spec, *[None] * (len(order) - len(sharding.spec)))
        aligned = PartitionSpec(*(names[axis] for axis in np.argsort(order)))
        sharding = NamedSharding(sharding.mesh, aligned)
    layout = layout._replace(out_spec=layout.lhs_spec)
    own = dataclasses.replace(
        problem,
        spec=problem.spec.replace(dimension_numbers=layout),
        out_sharding=sharding,
    )
    return direct.by_lax(own, x, kernel).transpose(order)
