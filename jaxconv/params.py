"""Parameters of layers: what holds them, how they are drawn, and what they are named.

A layer's parameters are a `ConvParams`, or a mapping such as a Flax or Haiku layer
holds; functions take either, and give gradients in the structure of what they took.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxconv.arguments import Caller, as_array, demand_bool, elements, static_int

Params = Any
"""A `ConvParams`, or a mapping such as a Flax or Haiku layer holds."""

PLACES = 4
"""Places up to which a message tells them all: nested lists have one per number."""

_ROLES = {"kernel": "kernel", "w": "kernel", "bias": "bias", "b": "bias"}


class ConvParams(NamedTuple):
    """Parameters of a layer.

    Attributes:
      kernel: [*taps, Cin // groups, Cout], or as `dimension_numbers` say.
      bias: [Cout], or None for a layer without one.

    Example:
      >>> from jaxconv import conv_forward
      >>> params = ConvParams(jnp.ones((3, 3, 2, 4)), jnp.zeros(4))
      >>> conv_forward(params, jnp.ones((8, 8, 2))).shape
      (8, 8, 4)
    """

    kernel: ArrayLike
    bias: ArrayLike | None = None


jax.export.register_namedtuple_serialization(
    ConvParams, serialized_name="jaxconv.ConvParams"
)


def init_conv_params(
    key: jax.Array,
    in_features: int,
    out_features: int,
    kernel_size: int | Sequence[int],
    *,
    groups: int = 1,
    bias: bool = True,
    dtype: DTypeLike = jnp.float32,
    kernel_init: jax.nn.initializers.Initializer | None = None,
) -> ConvParams:
    """Draw the parameters of a layer.

    Args:
      key: a PRNG key.
      in_features: Cin ≥ 1.
      out_features: Cout ≥ 1.
      kernel_size: taps per spatial axis: (3, 3) for images. An int is that of one
        axis, for sequences.
      groups: G ≥ 1, divides Cin and Cout.
      bias: whether the layer has a bias, which starts at zero.
      dtype: of the parameters.
      kernel_init: a `jax.nn.initializers` initializer for [*taps, Cin // groups, Cout];
        None for LeCun's normal: variance 1 / (taps · Cin // groups).

    Returns:
      `ConvParams(kernel, bias)`.

    Raises:
      TypeError: on sizes that are no ints, a dtype that is neither floating nor
        complex, a bias that is no bool, an initializer that is no function or returns
        another array than it should, or a key that is no random key.
      ValueError: on sizes below 1, or groups that do not divide the features.

    Source: LeCun et al., Efficient BackProp (1998), for the default initializer.

    Example:
      >>> params = init_conv_params(jax.random.key(0), 4, 6, (3, 3), groups=2)
      >>> params.kernel.shape, params.bias.shape
      ((3, 3, 2, 6), (6,))
    """
    taps = elements(kernel_size)
    sizes = {
        "kernel_size": (kernel_size,) if taps is None else taps,
        "in_features": (in_features,),
        "out_features": (out_features,),
        "groups": (groups,),
    }
    caller = Caller("init_conv_params")
    for name, values in sizes.items():
        whole = kernel_size if name == "kernel_size" else values[0]
        sizes[name] = tuple(static_int(caller, name, v, whole) for v in values)
        if min(sizes[name], default=1) < 1:
            rule = "sizes must be at least 1"
            raise caller.error(ValueError, rule, name, whole, "Pass positive ints.")
    taps, (in_features,), (out_features,), (groups,) = sizes.values()
    try:
        is_inexact = jnp.issubdtype(dtype, jnp.inexact)
    except TypeError:
        is_inexact = False
    if not is_inexact:
        raise TypeError(
            "init_conv_params: parameters must be floating or complex, but got "
            f"dtype={dtype}. Pass one such as jnp.float32."
        )
    demand_bool("init_conv_params", "bias", bias)
    if in_features % groups or out_features % groups:
        raise ValueError(
            "init_conv_params: groups must divide the features, but got "
            f"groups={groups} (in_features={in_features}, out_features={out_features})."
            " Change one of them."
        )
    if not _is_key(key):
        raise TypeError(
            f"init_conv_params: key must be a random key, but got key={key!r}. Pass "
            "one such as jax.random.key(0)."
        )
    init = jax.nn.initializers.lecun_normal() if kernel_init is None else kernel_init
    shape = (*taps, in_features // groups, out_features)
    kernel: Any = init(key, shape, dtype) if callable(init) else None
    if not _is_drawn(kernel, shape, dtype):
        # An initializer that was not called, as he_normal, returns a function.
        rule = "kernel_init must be an initializer, and return an array of shape "
        rule += f"{shape} and dtype {jnp.dtype(dtype)}"
        told = "nothing" if kernel is None else type(kernel).__name__
        if isinstance(kernel, jax.Array | np.ndarray):
            told = f"shape {kernel.shape} and dtype {kernel.dtype}"
        raise Caller(caller.function, shapes=f"it returned {told}").error(
            TypeError,
            rule,
            "kernel_init",
            kernel_init,
            "Pass one such as jax.nn.initializers.he_normal().",
        )
    return ConvParams(kernel, jnp.zeros(out_features, dtype) if bias else None)


def _is_key(key: Any) -> bool:
    """Whether it is one random key, of the typed or of the raw kind."""
    if not isinstance(key, jax.Array | np.ndarray):
        return False
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key.ndim == 0
    return key.ndim == 1 and key.dtype == np.uint32


def _is_drawn(kernel: Any, shape: tuple[int, ...], dtype: DTypeLike) -> bool:
    """Whether it is one array of the shape and dtype, in a box of Flax's or not."""
    try:
        (drawn,) = map(jax.typeof, jax.tree.leaves(kernel))
    except (TypeError, ValueError):
        return False
    return (drawn.shape, drawn.dtype) == (shape, jax.dtypes.canonicalize_dtype(dtype))


def by_role(function: str, params: Params) -> dict[str, jax.Array]:
    """The kernel and the bias, if there is one, by these names."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    roles = [role_of(path) for path, _ in paths]
    if None in roles or len(set(roles)) < len(roles) or "kernel" not in roles:
        places = ", ".join(jax.tree_util.keystr(path) for path, _ in paths[:PLACES])
        if len(paths) > PLACES:
            places += f", ... ({len(paths)} in all)"
        found = f"arrays at {places}"
        advice = "Pass the parameters of one layer, and each as one array."
        if isinstance(params, Mapping) and not isinstance(params, dict):
            advice += " Of a mapping whose keys JAX does not see, pass dict(params)."
        if not paths:
            found = "no arrays"
        elif not places:
            found = f"no parts (its shape is {getattr(params, 'shape', 'none')})"
            advice = (
                "Wrap a kernel as ConvParams(kernel), pass params before x, or call "
                "jaxconv.lax for the signatures of jax.lax."
            )
        raise TypeError(
            f"{function}: params must be ConvParams(kernel, bias), or a mapping with "
            f"'kernel' and maybe 'bias', or 'w' and maybe 'b', but got params of type "
            f"{type(params).__name__} with {found}. {advice}"
        )
    return {
        role or "": as_array(function, f"params' {role}", leaf)
        for role, (_, leaf) in zip(roles, paths, strict=True)
    }


def role_of(path: tuple[Any, ...]) -> str | None:
    """Which parameter stands at a path of a tree: "kernel", "bias", or neither."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return _ROLES.get(name.removesuffix("/value"))
