"""Convolutions that vmap has made one of, member by member.

Of several convolutions with a kernel each, vmap makes one in groups, its members b:

    y[n, (b, f), o] = Σ_{c, t} x̃[n, (b, c), s·o + d·t − p] · k[(b, f), c, t]
                    = conv(x[b], k[b])[n, f, o]

It moves each member's channels next to one another, and the result's back. Where the
members are taken one after the other, XLA cancels these moves with those that part
them again, and what is left are parts of the memory.

Applies to groups that vmap has made. Costs a turn of a loop for each member.
Milliseconds on 2 cores of an AMD EPYC with AVX-512, jax 0.12.0.1, float32, for 3x3 and
32 channels and features at 28x28:

    8 kernels, each on 32 images    XLA:CPU 56, in blocks of images 32, by member 13
    gradients of 32 single images   XLA:CPU 14, by patches of entries 6.5, by member 4.8
"""

import jax
import jax.numpy as jnp

from jaxconv.algorithms import patches_gradient
from jaxconv.algorithms.axes import countable
from jaxconv.algorithms.blocks import at, stacked
from jaxconv.algorithms.protocol import Conv
from jaxconv.algorithms.windows import entries
from jaxconv.calculus import merge_axis, split_axis
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem

TURN, ALONE = 4e-6, 1.5
"""Seconds of a turn of the loop, and how much longer patches take within one.

Fitted to the kernel gradients of 64 to 1024 single examples, 60 layers.
"""


def applies(problem: ConvProblem) -> bool:
    """There are members among the groups, and sizes that can be counted."""
    return problem.spec.members > 1 and countable(problem)


def single(problem: ConvProblem) -> ConvProblem:
    """The problem of one member."""
    return problem.of_groups(problem.spec.groups // problem.spec.members)


def gradients_cost(problem: ConvProblem, processor: Processor) -> float:
    """Seconds, about, of the kernel gradients of single examples by patches."""
    start = patches_gradient.RATES[processor].start
    each = patches_gradient.cost(single(problem), processor) - start
    return start + problem.spec.members * (TURN + ALONE * each)


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Convolve member by member."""
    spec, one = problem.spec, single(problem)
    _, (feature, *_), (_, y_feature, *_) = spec.dimension_numbers

    def parted(array: jax.Array, axis: int) -> jax.Array:
        array = jnp.moveaxis(split_axis(array, axis, spec.members), axis, 0)
        # Else XLA lets the loop read what it has moved in an order of its own.
        return entries(array).reshape(array.shape)

    members = parted(x, spec.block_axis), parted(kernel, feature)

    def of_member(index: jax.Array) -> jax.Array:
        return conv(one.spec, *(at(array, index) for array in members))

    y = stacked(spec.members, of_member, one.output_shape, problem.output_dtype, x)
    return merge_axis(y, 0, y_feature)
