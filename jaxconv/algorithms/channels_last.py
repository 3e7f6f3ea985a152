"""A convolution with its axes in the order that XLA:CPU's routines take.

    y[n, o, f] = Σ_{t, c} x̃[n, s·o + d·t − p, c] · k[t, c, f]

is the same sum in any order of the axes of x, k and y. XLA:CPU has routines for this
order alone, images first and channels last. It permutes the axes of others itself, but
only at the top level of a program: within a loop or a branch (`lax.scan` over
micro-batches, say) they are computed by nested loops.

A window of more points than the output has is a kernel gradient's if the channels stand
outermost. In order it would look like a layer's, which is planned otherwise: it is left
to XLA's routine. Of 231 random ones of one axis 40 are computed so, 1.1 times as fast
(AMD EPYC without AVX-512).

Applies to any other order. Costs what XLA's own permutation costs. Measured within
`lax.fori_loop` on 2 cores of an AMD EPYC, jax 0.12.0.1, float32, 3x3 at 28, 64 channels
and features, 8 images, stock's ms and ours: channels-first forward 69 and 4.2, input
gradient 28 and 4.3.
"""

import dataclasses

import jax

from jaxconv.algorithms import direct
from jaxconv.algorithms.order import written
from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem, in_order


def applies(problem: ConvProblem) -> bool:
    """The axes stand in another order, and XLA need not be told where to shard y."""
    ordered = in_order(len(problem.spec.window_strides))
    return problem.spec.dimension_numbers != ordered and problem.out_sharding is None


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Permute the axes of x, of the kernel, and back those of y."""
    spec = problem.spec
    ordered = spec.replace(dimension_numbers=in_order(len(spec.window_strides)))
    x, kernel = written(spec.images(x)), spec.filters(kernel)
    if problem.is_kernel_gradient and problem.taps > problem.outputs:
        y = direct.by_lax(dataclasses.replace(problem, spec=ordered), x, kernel)
    else:
        y = conv(ordered, x, kernel)
    return spec.laid_out(y)
