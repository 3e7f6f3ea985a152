"""Norms of the kernel gradients of single examples, without those gradients.

The kernel gradient of example n is a sum of outer products over outputs, of the patches
p that the convolution multiplies with its kernel and of the cotangent g,

    dk[n] = Σ_o p[n, o] ⊗ g[n, o],

so that its squared norm is that of a product of two Gram matrices of the outputs:

    ‖dk[n]‖² = Σ_{o, q} ⟨p[n, o], p[n, q]⟩ · ⟨g[n, o], g[n, q]⟩.

That takes O² entries where the gradient has C·K·F (the ghost norm of differentially
private training, arXiv:2009.03106, arXiv:2205.10683), and for groups the sum over them.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxconv import primitive
from jaxconv.arguments import (
    Caller,
    as_array,
    as_cotangent,
    as_shape,
    demand_inexact,
    in_own_widths,
)
from jaxconv.layer import ConvOptions, Layer, conv_layer
from jaxconv.spec import accumulation_dtype, is_static
from jaxconv.unfold import unfold

BLOCK = 16 << 20
"""Bytes of Gram matrices, patches or gradients that are held at a time."""


@in_own_widths
def conv_kernel_grad_sq_norms(
    x: ArrayLike,
    kernel_shape: Sequence[int],
    g: ArrayLike,
    **options: Unpack[ConvOptions],
) -> jax.Array:
    """Compute the squared norm of each example's kernel gradient.

    ‖dk[n]‖², where dk[n][t, c, f] = Σ_o x̃[n, d·t + s·o − p, c] · g[n, o, f]: by Gram
    matrices of the outputs where they are smaller than the gradient, else by the
    gradients of some examples at a time.

    Args:
      x: [*batch, *spatial, Cin], an example for each entry of the batch axes.
      kernel_shape: shape of the kernel, [*taps, Cin // groups, Cout].
      g: cotangent of the result, of each example's own loss.
      **options: as for `jaxconv.conv_forward`, but for `cast_kernel`.

    Returns:
      [*batch], in the order of x, real, of at least 32 bits: sums are taken in float32
      or wider.

    Raises:
      TypeError: as `jaxconv.conv_vjp`, or on `cast_kernel`.
      ValueError: as `jaxconv.conv_vjp`.
      NotImplementedError: on symbolic sizes.

    Differentiation: forward and reverse mode.

    Source: arXiv:2009.03106, arXiv:2205.10683; derived in docs/per_example.md.

    Example:
      >>> x, g = jnp.ones((2, 8, 3)), jnp.ones((2, 8, 4))
      >>> norms = conv_kernel_grad_sq_norms(x, (1, 3, 4), g)
      >>> norms.tolist()  # each of the 12 entries is a sum of 8 ones
      [768.0, 768.0]
    """
    function = "conv_kernel_grad_sq_norms"
    if "cast_kernel" in options:
        raise TypeError(
            f"{function}: there is no kernel to round, but got "
            f"cast_kernel={options['cast_kernel']!r}. Leave it out."
        )
    x, shape = (
        as_array(function, "x", x),
        as_shape(function, "kernel_shape", kernel_shape),
    )
    demand_inexact(function, "x", x)
    layer = conv_layer(
        function,
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.ShapeDtypeStruct(shape, x.dtype),
        options,
    )
    g = as_cotangent(function, g, layer.y_type)
    leading = x.ndim - (len(shape) - 1)
    batch = x.shape[: max(leading - 1, 0)]
    if leading > 0:  # the last of them stands in its layout's place
        batch += (x.shape[leading - 1 + layer.spec.dimension_numbers.lhs_spec[0]],)
    if not is_static(*x.shape, *shape):
        raise NotImplementedError(
            f"{function}: sizes must be ints, but got x.shape={x.shape} (kernel_shape="
            f"{shape}). Map `conv_kernel_grad` over symbolic sizes."
        )
    return _by_example(layer, layer.x_map.apply(x), layer.y_map.transpose(g), batch)


def _by_example(
    layer: Layer, x: jax.Array, g: jax.Array, batch: Sequence[int]
) -> jax.Array:
    """The norms of all examples, some at a time."""
    spec, real = layer.spec, jnp.finfo(accumulation_dtype(g.dtype)).dtype
    if 0 in x.shape or 0 in g.shape or 0 in layer.kernel_type.shape:
        return jnp.zeros(batch, real)  # sums of no terms
    batch_axis, y_batch = spec.dimension_numbers.lhs_spec[0], spec.dimension_numbers[2]
    x = jnp.moveaxis(x, batch_axis, 0)
    g = jnp.moveaxis(g, y_batch[0], 0)
    outputs = math.prod(g.shape[axis] for axis in range(1, g.ndim))
    outputs //= layer.y_features
    entries = math.prod(layer.kernel_type.shape)
    patches = outputs * entries * spec.groups // layer.y_features
    gram = 2 * spec.groups * outputs**2
    norm: Callable = _of_gradient
    held = entries
    if gram < entries:
        norm, held = _of_gram_matrices, gram + patches
    norm = functools.partial(norm, layer)
    at_a_time = max(BLOCK // (held * real.itemsize), 1)
    if at_a_time >= len(x):
        norms = jax.vmap(norm)(x, g)
    else:
        norms = lax.map(lambda each: norm(*each), (x, g), batch_size=at_a_time)
    return norms.reshape(batch)


def _of_gradient(layer: Layer, x: jax.Array, g: jax.Array) -> jax.Array:
    """One example: the sum of squares of its kernel gradient."""
    sums = accumulation_dtype(g.dtype)
    batch, y_batch = (axes[0] for axes in layer.spec.dimension_numbers[::2])
    dkernel = primitive.kernel_gradient(
        jnp.expand_dims(g, y_batch),
        jnp.expand_dims(x, batch),
        jax.ShapeDtypeStruct(layer.kernel_type.shape, sums),
        spec=layer.spec,
        precision=layer.numerics["precision"],
    )
    return (jnp.abs(dkernel) ** 2).sum()


def _of_gram_matrices(layer: Layer, x: jax.Array, g: jax.Array) -> jax.Array:
    """One example: the sum of products of the Gram matrices of patches and of g."""
    spec, sums = layer.spec, accumulation_dtype(g.dtype)
    precision = layer.numerics["precision"]
    (batch, *_), (_, _, *taps), (y_batch, feature, *spatial) = spec.dimension_numbers
    patches = unfold(
        Caller("conv_kernel_grad_sq_norms"),
        jnp.expand_dims(x, batch),
        [layer.kernel_type.shape[axis] for axis in taps],
        spec.dimension_numbers,
        precision,
        window_strides=spec.window_strides,
        padding=spec.padding,
        lhs_dilation=spec.lhs_dilation,
        rhs_dilation=spec.rhs_dilation,
    )

    def gram(rows: jax.Array) -> jax.Array:
        """⟨row o, row q⟩ for each group, of an array laid out as y is."""
        rows = rows.transpose(y_batch, *spatial, feature)
        rows = rows.reshape(-1, spec.groups, rows.shape[-1] // spec.groups)
        return jnp.einsum(
            "ogp,qgp->goq",
            rows,
            rows.conj(),
            precision=precision,
            preferred_element_type=sums,
        )

    products = gram(patches) * gram(jnp.expand_dims(g, y_batch))
    return products.sum().real
