"""Convolution layers as pure functions of their parameters, with explicit gradients.

`conv_forward(params, x)` is the layer and `conv_vjp(params, x, g)` its vector-Jacobian
product, written as convolutions. `conv` is the `jax.custom_vjp` that the two define,
with residuals (params, x). Their transposed twins stand beside them, and
`conv_input_grad` and `conv_kernel_grad` are the two gradients on their own.

`conv_forward` is built on a primitive that knows its own derivatives: it has forward
mode and every higher order. `conv` states the rule by hand and has, like every
`jax.custom_vjp`, reverse mode alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxconv import primitive
from jaxconv.arguments import (
    as_array,
    as_cotangent,
    as_shape,
    demand_inexact,
    elements,
    in_own_widths,
)
from jaxconv.layer import (
    ConvOptions,
    ConvTransposeOptions,
    Layer,
    conv_layer,
    transposed_layer,
)
from jaxconv.params import Params, by_role, role_of
from jaxconv.spec import accumulation_dtype

Wrt = Sequence[Literal["params", "x"]]
LayerOf = Callable[[str, Any, Any, Any], Layer]


def conv_forward(
    params: Params, x: ArrayLike, **options: Unpack[ConvOptions]
) -> jax.Array:
    """Apply a convolution layer.

    y[n, o, f] = bias[f] + Σ_{t, c} x̃[n, s·o + d·t − p, c] · kernel[t, c, f], where x̃ is
    x with L − 1 zeros between neighbours and what `padding` says around it.

    Args:
      params: `ConvParams`, or a mapping with "kernel" and maybe "bias" (Flax), or "w"
        and maybe "b" (Haiku). The kernel is [*taps, Cin // groups, Cout], the bias
        [Cout], or as y is without its batch, with spatial axes of size 1.
      x: [*batch, *spatial, Cin]. As many axes are spatial as the kernel has taps'
        axes; any number of batch axes, or none, stand before them. Of the kernel's
        dtype, any numeric one, unless `cast_kernel` is set.
      **options: strides, padding, input_dilation, dilation, groups, dimension_numbers,
        precision, preferred_element_type, cast_kernel: see `ConvOptions`.

    Returns:
      [*batch, *out_spatial, Cout], of dtype `preferred_element_type` or that of x.

    Raises:
      TypeError: on a wrong kind of argument, an unknown keyword, or unequal dtypes.
      ValueError: on sizes, counts or padding that do not fit.

    Differentiation: forward and reverse mode, to any order.

    Source: derived in docs/identities.md.

    Example:
      >>> from jaxconv import init_conv_params
      >>> params = init_conv_params(jax.random.key(0), 6, 8, (3, 3), groups=2)
      >>> conv_forward(params, jnp.ones((5, 32, 32, 6)), strides=2, groups=2).shape
      (5, 16, 16, 8)
    """
    return _forward("conv_forward", conv_layer, params, x, options)


def conv_vjp(
    params: Params,
    x: ArrayLike,
    g: ArrayLike,
    *,
    wrt: Wrt = ("params", "x"),
    **options: Unpack[ConvOptions],
) -> tuple[Params | None, jax.Array | None]:
    """Pull a cotangent of `conv_forward` back to its parameters and its input.

    Both gradients are convolutions:

      dkernel[t, c, f] = Σ_{n, o} x̃[n, d·t + s·o − p, c] · g[n, o, f]
      dx[n, i, c] = Σ_{t', f} g̃[n, L·i + d·t' − (d·(K−1) − p), f] · kernel[K−1−t', c, f]
      dbias[f] = Σ_{n, o} g[n, o, f]

    where g̃ is g with s − 1 zeros between neighbours.

    Args:
      params: as for `conv_forward`.
      x: as for `conv_forward`.
      g: cotangent of the result, of its shape and dtype.
      wrt: which gradients to compute, of "params" and "x".
      **options: as for `conv_forward`.

    Returns:
      (dparams, dx): `dparams` in the structure of `params`, and None for what `wrt`
      does not ask for. Integers have zeros of dtype float0, as `jax.vjp` has it.

    Raises:
      TypeError: as `conv_forward`, and on a `g` of another dtype than the result.
      ValueError: as `conv_forward`, on a `g` of another shape, or an unknown `wrt`.

    Differentiation: forward and reverse mode, to any order.

    Source: derived in docs/identities.md; the signature is that of `jax.vjp`.

    Example:
      >>> from jaxconv import ConvParams
      >>> params, x = ConvParams(jnp.ones((3, 2, 4))), jnp.ones((7, 2))
      >>> dparams, dx = conv_vjp(params, x, jnp.ones((7, 4)))
      >>> dparams.kernel.shape, dparams.bias, dx.shape
      ((3, 2, 4), None, (7, 2))
    """
    return _vjp("conv_vjp", conv_layer, params, x, g, wrt, options)


def conv(params: Params, x: ArrayLike, **options: Unpack[ConvOptions]) -> jax.Array:
    """Apply a convolution layer that is differentiated by `conv_vjp`, stated by hand.

    It applies the `jax.custom_vjp` with `conv_forward` as function, (params, x) as
    residuals and `conv_vjp` as backward rule. As every `jax.custom_vjp`, it has no
    forward mode, and `jax.grad(jax.vmap(...))` with shared parameters computes one
    kernel gradient per example before it sums them; `conv_forward` has neither limit.

    Args:
      params: as for `conv_forward`.
      x: as for `conv_forward`.
      **options: as for `conv_forward`.

    Returns:
      As `conv_forward`.

    Raises:
      TypeError: as `conv_forward`; and from JAX, under forward mode.
      ValueError: as `conv_forward`.

    Differentiation: reverse mode, once by the rule and from then on to any order.

    Source: `conv_forward` and `conv_vjp`, by `jax.custom_vjp`.

    Example:
      >>> from jaxconv import ConvParams
      >>> params, x = ConvParams(jnp.ones((3, 1, 1))), jnp.arange(4.0)[:, None]
      >>> jax.grad(lambda x: conv(params, x).sum())(x).ravel().tolist()
      [2.0, 3.0, 3.0, 2.0]
    """
    return _custom("conv", conv_layer, params, x, options)


def conv_transpose_forward(
    params: Params, x: ArrayLike, **options: Unpack[ConvTransposeOptions]
) -> jax.Array:
    """Apply a transposed convolution layer.

    y[n, o, f] = bias[f] + Σ_{t, c} x̃[n, o + d·t − p, c] · kernel[t, c, f], where x̃ is x
    with s − 1 zeros between neighbours.

    Args:
      params: as for `conv_forward`; with transpose_kernel=True, the kernel is
        [*taps, Cout // groups, Cin].
      x: [*batch, *spatial, Cin], with any number of batch axes, or none.
      **options: strides, padding, output_padding, dilation, groups, transpose_kernel,
        use_consistent_padding, dimension_numbers, precision, preferred_element_type,
        cast_kernel: see `ConvTransposeOptions`.

    Returns:
      [*batch, *out_spatial, Cout]; for padding="SAME" s·I points per axis, I ≥ 1.

    Raises:
      TypeError: on a wrong kind of argument, an unknown keyword, or unequal dtypes.
      ValueError: on sizes, counts or padding that do not fit.

    Differentiation: forward and reverse mode, to any order.

    Source: derived in docs/identities.md; the options are `jax.lax.conv_transpose`'s.

    Example:
      >>> from jaxconv import ConvParams
      >>> params, x = ConvParams(jnp.ones((4, 4, 3, 5))), jnp.ones((8, 8, 3))
      >>> conv_transpose_forward(params, x, strides=2).shape
      (16, 16, 5)
    """
    return _forward("conv_transpose_forward", transposed_layer, params, x, options)


def conv_transpose_vjp(
    params: Params,
    x: ArrayLike,
    g: ArrayLike,
    *,
    wrt: Wrt = ("params", "x"),
    **options: Unpack[ConvTransposeOptions],
) -> tuple[Params | None, jax.Array | None]:
    """Pull a cotangent of `conv_transpose_forward` back to parameters and input.

    The gradients of a transposed convolution are convolutions too: those of `conv_vjp`
    with its stride 1 and its input dilation s,

      dkernel[t, c, f] = Σ_{n, o} x̃[n, o + d·t − p, c] · g[n, o, f]
      dx[n, i, c] = Σ_{t', f} g[n, s·i + d·t' − (d·(K−1) − p), f] · kernel[K−1−t', c, f]
      dbias[f] = Σ_{n, o} g[n, o, f]

    Args:
      params: as for `conv_transpose_forward`.
      x: as for `conv_transpose_forward`.
      g: cotangent of the result, of its shape and dtype.
      wrt: which gradients to compute, of "params" and "x".
      **options: as for `conv_transpose_forward`.

    Returns:
      (dparams, dx), as `conv_vjp`.

    Raises:
      TypeError: as `conv_transpose_forward`, and on a `g` of another dtype.
      ValueError: as `conv_transpose_forward`, on a `g` of another shape, or an unknown
        `wrt`.

    Differentiation: forward and reverse mode, to any order.

    Source: derived in docs/identities.md; the signature is that of `jax.vjp`.

    Example:
      >>> from jaxconv import ConvParams
      >>> params, x = ConvParams(jnp.ones((4, 3, 5))), jnp.ones((8, 3))
      >>> _, dx = conv_transpose_vjp(params, x, jnp.ones((16, 5)), strides=2, wrt=["x"])
      >>> dx.shape
      (8, 3)
    """
    return _vjp("conv_transpose_vjp", transposed_layer, params, x, g, wrt, options)


def conv_transpose(
    params: Params, x: ArrayLike, **options: Unpack[ConvTransposeOptions]
) -> jax.Array:
    """Apply a transposed layer that is differentiated by `conv_transpose_vjp`.

    The `jax.custom_vjp` that the two define; see `conv` for what that means.

    Args:
      params: as for `conv_transpose_forward`.
      x: as for `conv_transpose_forward`.
      **options: as for `conv_transpose_forward`.

    Returns:
      As `conv_transpose_forward`.

    Raises:
      TypeError: as `conv_transpose_forward`; and from JAX, under forward mode.
      ValueError: as `conv_transpose_forward`.

    Differentiation: reverse mode, once by the rule and from then on to any order.

    Source: `conv_transpose_forward` and `conv_transpose_vjp`, by `jax.custom_vjp`.

    Example:
      >>> from jaxconv import ConvParams
      >>> params, x = ConvParams(jnp.ones((2, 1, 1))), jnp.arange(3.0)[:, None]
      >>> conv_transpose(params, x, strides=2).ravel().tolist()
      [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    """
    return _custom("conv_transpose", transposed_layer, params, x, options)


@in_own_widths
def conv_input_grad(
    x_shape: Sequence[int],
    kernel: ArrayLike,
    g: ArrayLike,
    *,
    dtype: DTypeLike | None = None,
    **options: Unpack[ConvOptions],
) -> jax.Array:
    """Compute the input gradient of a convolution, and nothing else.

    dx[n, i, c] = Σ_{t', f} g̃[n, L·i + d·t' − (d·(K−1) − p), f] · kernel[K−1−t', c, f]:
    the convolution of the padded cotangent with the flipped kernel.

    Args:
      x_shape: shape of the input, [*batch, *spatial, Cin].
      kernel: [*taps, Cin // groups, Cout].
      g: cotangent of the result.
      dtype: that of x, and of the gradient; None for the kernel's, or where this is
        cast (`cast_kernel`) for that of g.
      **options: as for `conv_forward`.

    Returns:
      The gradient, of shape `x_shape`.

    Raises:
      TypeError: as `conv_vjp`, on a `dtype` that x cannot have, and on integers.
      ValueError: as `conv_vjp`.

    Differentiation: forward and reverse mode, to any order.

    Source: derived in docs/identities.md.

    Example:
      >>> conv_input_grad((8, 8, 3), jnp.ones((3, 3, 3, 4)), jnp.ones((8, 8, 4))).shape
      (8, 8, 3)
    """
    function = "conv_input_grad"
    kernel, g = as_array(function, "kernel", kernel), as_array(function, "g", g)
    demand_inexact(function, "kernel", kernel)
    shape = as_shape(function, "x_shape", x_shape)
    like = ("g", g) if options.get("cast_kernel") else ("kernel", kernel)
    x_type = jax.ShapeDtypeStruct(shape, _dtype_like(function, dtype, *like))
    layer = conv_layer(function, x_type, _type(kernel), options)
    return layer.input_gradient(as_cotangent(function, g, layer.y_type), kernel)


@in_own_widths
def conv_kernel_grad(
    x: ArrayLike,
    kernel_shape: Sequence[int],
    g: ArrayLike,
    *,
    dtype: DTypeLike | None = None,
    **options: Unpack[ConvOptions],
) -> jax.Array:
    """Compute the kernel gradient of a convolution, and nothing else.

    dkernel[t, c, f] = Σ_{n, o} x̃[n, d·t + s·o − p, c] · g[n, o, f]: the convolution of
    the input with the cotangent.

    Args:
      x: [*batch, *spatial, Cin].
      kernel_shape: shape of the kernel, [*taps, Cin // groups, Cout].
      g: cotangent of the result.
      dtype: of the gradient; None for that of x. A wider one, such as float32 for
        bfloat16 operands, is that of the sums, which are not rounded before.
      **options: as for `conv_forward`, but for `cast_kernel`, which `dtype` replaces.

    Returns:
      The gradient, of shape `kernel_shape`.

    Raises:
      TypeError: as `conv_vjp`, on a `dtype` of another kind than that of x, on
        `cast_kernel`, and on integers.
      ValueError: as `conv_vjp`.

    Differentiation: forward and reverse mode, to any order.

    Source: derived in docs/identities.md.

    Example:
      >>> conv_kernel_grad(jnp.ones((8, 3)), (5, 3, 4), jnp.ones((8, 4))).shape
      (5, 3, 4)
    """
    function = "conv_kernel_grad"
    if "cast_kernel" in options:
        raise TypeError(
            f"{function}: dtype says of which dtype the gradient is, but got "
            f"cast_kernel={options['cast_kernel']!r}. Pass dtype=jnp.float32, or the "
            "like, instead."
        )
    x = as_array(function, "x", x)
    shape = as_shape(function, "kernel_shape", kernel_shape)
    demand_inexact(function, "x", x)
    wanted = _dtype_like(function, dtype, "x", x)
    kernel = jax.ShapeDtypeStruct(shape, wanted)
    options["cast_kernel"] = dtype is not None
    layer = conv_layer(function, _type(x), kernel, options)
    return layer.kernel_gradient(as_cotangent(function, g, layer.y_type), x)


def _dtype_like(
    function: str, dtype: DTypeLike | None, name: str, operand: jax.Array
) -> np.dtype:
    """The dtype, of the operand's kind; that of the operand for None."""
    own = operand.dtype
    try:
        wanted = jax.dtypes.canonicalize_dtype(own if dtype is None else dtype)
    except TypeError as cause:
        raise TypeError(
            f"{function}: dtype must be a dtype, but got dtype={dtype!r}. Pass one "
            "such as jnp.float32, or None."
        ) from cause
    kinds = (jnp.floating, jnp.complexfloating)
    if any(jnp.issubdtype(wanted, kind) != jnp.issubdtype(own, kind) for kind in kinds):
        raise TypeError(
            f"{function}: dtype must be of the kind of {name}, but got "
            f"dtype={dtype!r} ({name}.dtype={own}). Pass one such as jnp.float32, "
            "or None."
        )
    return wanted


def _type(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _checked(
    function: str, layer_of: LayerOf, params: Params, x: ArrayLike, options: Any
) -> tuple[Layer, jax.Array, jax.Array, jax.Array | None]:
    """The layer for these operands, with x, kernel and bias."""
    leaves, x = by_role(function, params), as_array(function, "x", x)
    kernel, bias = leaves["kernel"], leaves.get("bias")
    layer = layer_of(function, _type(x), _type(kernel), options)
    features, along = layer.y_features, [1] * (1 + len(layer.spec.window_strides))
    along[layer.y_feature_axis(len(along))] = features
    if bias is not None and bias.shape not in ((features,), tuple(along)):
        raise ValueError(
            f"{function}: the bias must have one entry per output feature, shape "
            f"({features},) or {tuple(along)}, but got bias.shape={bias.shape} "
            f"(kernel.shape={kernel.shape}). Reshape it, or pass bias=None."
        )
    if bias is not None and not _holds(layer.output_dtype, bias.dtype):
        raise TypeError(
            f"{function}: the result's dtype must hold the bias, but got bias.dtype="
            f"{bias.dtype} for a result of dtype {layer.output_dtype}. Convert one "
            "with .astype(...)."
        )
    return layer, x, kernel, bias


def _holds(dtype: Any, other: Any) -> bool:
    """Whether `dtype` has room for the kind of number that `other` is."""
    kinds = jnp.complexfloating, jnp.floating, jnp.integer
    ranks = [
        next((i for i, kind in enumerate(kinds) if jnp.issubdtype(d, kind)), len(kinds))
        for d in (dtype, other)
    ]
    return ranks[0] <= ranks[1]


def _forward(
    function: str, layer_of: LayerOf, params: Params, x: ArrayLike, options: Any
) -> jax.Array:
    """Apply a layer to checked operands."""
    layer, x, kernel, bias = _checked(function, layer_of, params, x, options)
    y = layer.convolve(x, kernel)
    if bias is None:
        return y
    shape = [1] * y.ndim
    shape[layer.y_feature_axis(y.ndim)] = bias.size
    # Rounded entry by entry: the transpose adds up entries that are wide already.
    wide = bias.astype(_sums_of(bias, y)).reshape(shape)
    return y + jnp.broadcast_to(wide, y.shape).astype(y.dtype)


def _sums_of(bias: jax.Array, y: jax.Array) -> np.dtype:
    """Dtype in which the cotangents of the results `y` are added up to a bias's."""
    with jax.numpy_dtype_promotion("standard"):  # the conversion is explicit
        return accumulation_dtype(jnp.promote_types(bias.dtype, y.dtype))


@in_own_widths
def _vjp(
    function: str,
    layer_of: LayerOf,
    params: Params,
    x: ArrayLike,
    g: ArrayLike,
    wrt: Wrt,
    options: Any,
) -> tuple[Params | None, jax.Array | None]:
    """Pull `g` back through a layer of checked operands."""
    asked = (wrt,) if isinstance(wrt, str) else elements(wrt)
    if asked is None or any(name not in ("params", "x") for name in asked):
        raise ValueError(
            f"{function}: wrt must name gradients among 'params' and 'x', but got "
            f"wrt={wrt!r}. Pass wrt=('params',), ('x',) or both."
        )
    layer, x, kernel, bias = _checked(function, layer_of, params, x, options)
    g = as_cotangent(function, g, layer.y_type)
    dparams, dx = None, None
    if "params" in asked:
        gradients = {
            "kernel": _if_inexact(kernel, lambda: layer.kernel_gradient(g, x, kernel))
        }
        if bias is not None:
            gradients["bias"] = _if_inexact(
                bias, lambda: _bias_gradient(layer, g, bias)
            )
        dparams = jax.tree_util.tree_map_with_path(
            lambda path, _: gradients[role_of(path) or ""], params
        )
    if "x" in asked:
        dx = _if_inexact(x, lambda: layer.input_gradient(g, kernel, x))
    return dparams, dx


def _if_inexact(array: jax.Array, gradient: Callable[[], jax.Array]) -> Any:
    """The gradient, or what JAX has in its place where the array is one of integers."""
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return gradient()
    return np.zeros(array.shape, jax.dtypes.float0)


def _bias_gradient(layer: Layer, g: jax.Array, bias: jax.Array) -> jax.Array:
    """Σ_{n, o} g[n, o, f]."""
    feature = layer.y_feature_axis(g.ndim)
    others = tuple(axis for axis in range(g.ndim) if axis != feature)
    dbias = g.sum(others, dtype=_sums_of(bias, g))
    if not jnp.issubdtype(bias.dtype, jnp.complexfloating):
        dbias = dbias.real
    return dbias.astype(bias.dtype).reshape(bias.shape)


def _custom(
    function: str, layer_of: LayerOf, params: Params, x: ArrayLike, options: Any
) -> jax.Array:
    """Call the custom_vjp on checked operands that vary alike.

    Inside shard_map an operand that is the same everywhere is marked as varying out
    here, so that the sum of its gradient over the devices is taken out here too.
    """
    layer, x, *_ = _checked(function, layer_of, params, x, options)
    # A default precision that surrounds this call has ended when the rule is traced.
    options = {**options, **layer.numerics}
    leaves, tree = jax.tree.flatten((params, x))
    params, x = jax.tree.unflatten(
        tree, primitive.varying_alike(*map(jnp.asarray, leaves))
    )
    return _conv((function, layer_of, options), params, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(call: tuple[str, LayerOf, Any], params: Params, x: ArrayLike) -> jax.Array:
    function, layer_of, options = call
    return _forward(function, layer_of, params, x, options)


def _conv_fwd(
    call: tuple[str, LayerOf, Any], params: Params, x: ArrayLike
) -> tuple[jax.Array, tuple[Params, ArrayLike]]:
    # The undecorated function, so that forward mode over this reverse mode works.
    function, layer_of, options = call
    return _forward(function, layer_of, params, x, options), (params, x)


def _conv_bwd(
    call: tuple[str, LayerOf, Any],
    residuals: tuple[Params, ArrayLike],
    g: jax.Array,
) -> tuple[Params | None, jax.Array | None]:
    function, layer_of, options = call
    return _vjp(function, layer_of, *residuals, g, ("params", "x"), options)


_conv.defvjp(_conv_fwd, _conv_bwd)
