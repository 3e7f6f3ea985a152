"""Policies of `jax.checkpoint`: which convolutions are kept for the backward pass.

A policy is asked about each operation of a rematerialised function whether its result
is saved, offloaded, or computed anew in the backward pass. Those of JAX that save
convolutions, such as `jax.checkpoint_policies.dots_saveable`, know lax's primitive by
its identity, and would compute jaxconv's anew:

    jax.checkpoint(block, policy=like_lax(jax.checkpoint_policies.dots_saveable))

asks them about lax's convolution wherever jaxconv's stands. What `accelerate` replaces
within a `jax.checkpoint` has its policy wrapped so already.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxconv.primitive import conv_general_dilated_p, conv_p, dot_general_p
from jaxconv.spec import ConvSpec

Policy = Callable[..., Any]
"""Of (primitive, *types, **parameters); true to save, false to compute anew."""


def like_lax(policy: Policy) -> Policy:
    """The policy that treats jaxconv's convolutions as `policy` treats those of lax.

    Args:
      policy: any policy, such as those in `jax.checkpoint_policies`.

    Returns:
      A policy, to be given to `jax.checkpoint` or to those that combine policies.

    Raises:
      TypeError: if `policy` is not callable.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxconv import conv_forward
      >>> def block(kernel, x):
      ...     return jnp.sin(conv_forward({"kernel": kernel}, jnp.sin(x)))
      >>> policy = like_lax(jax.checkpoint_policies.dots_saveable)
      >>> loss = lambda *args: jax.checkpoint(block, policy=policy)(*args).sum()
      >>> gradient = jax.grad(loss, argnums=(0, 1))
      >>> jaxpr = jax.make_jaxpr(gradient)(jnp.ones((3, 2, 2)), jnp.ones((8, 2)))
      >>> str(jaxpr).count("jaxconv[")  # forward, and the two gradients
      3
    """
    if not callable(policy):
        raise TypeError(
            f"like_lax: policy must be a function, but got policy={policy!r}. Pass one "
            "of jax.checkpoint_policies, or one of your own."
        )

    return _like_lax(policy)


@functools.lru_cache(maxsize=256)
def _like_lax(policy: Policy) -> Policy:
    """The same policy for the same one, by which JAX knows what it has traced."""

    @functools.wraps(policy)
    def asked(primitive: Any, *types: Any, **params: Any) -> Any:
        if primitive is conv_p:
            spec: ConvSpec = params.pop("spec")
            params = {**spec.geometry, **params}
            primitive = conv_general_dilated_p
        return policy(primitive, *types, **params)

    return asked


def convs_saveable(primitive: Any, *types: Any, **params: Any) -> bool:
    """The policy that saves the results of convolutions, of lax and of jaxconv.

    Args:
      primitive: the operation.
      *types: of its operands.
      **params: its parameters.

    Returns:
      Whether it is a convolution.

    Example:
      >>> policy = jax.checkpoint_policies.save_from_both_policies(
      ...     convs_saveable, jax.checkpoint_policies.save_only_these_names("attention")
      ... )
    """
    return primitive in (conv_p, conv_general_dilated_p)


def offload_convs(offload_src: str, offload_dst: str) -> Policy:
    """The policy that moves results of convolutions to another memory until needed.

    Args:
      offload_src: the memory where they are computed, such as "device".
      offload_dst: the memory where they wait, such as "pinned_host".

    Returns:
      A policy, for lax's convolutions as for jaxconv's. All else is computed anew.

    Example:
      >>> block = jax.checkpoint(jax.numpy.sin,
      ...                        policy=offload_convs("device", "pinned_host"))
    """
    # JAX's policy for products, asked about one, gives the answer for a convolution.
    of_products = jax.checkpoint_policies.offload_dot_with_no_batch_dims(
        offload_src, offload_dst
    )
    no_batch = (((), ()), ((), ()))
    offloaded = of_products(dot_general_p, dimension_numbers=no_batch)
    return lambda primitive, *types, **params: convs_saveable(primitive) and offloaded
