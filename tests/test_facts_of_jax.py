"""What JAX says of custom_vjp, forward mode and vmap, on which the design relies.

Each test states a fact about JAX that is a reason for the design. If JAX changes, the
test fails, and the design may be simplified.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from jaxconv import ConvParams

PARAMS, X = ConvParams(jnp.ones((3, 2, 4)), jnp.ones(4)), jnp.ones((5, 2))


def loss(function, params, x):
    return (function(params, x) ** 2).sum()


def test_custom_vjp_has_no_forward_mode():
    conv = functools.partial(loss, jaxconv.conv, PARAMS)
    with pytest.raises(TypeError, match="can't apply forward-mode"):
        jax.jvp(conv, (X,), (X,))
    with pytest.raises(TypeError, match="can't apply forward-mode"):
        jax.jacfwd(conv)(X)
    assert jax.jvp(functools.partial(loss, jaxconv.conv_forward, PARAMS), (X,), (X,))


def test_custom_vjp_is_not_linear_transposable():
    def transposed(function):
        def linear(x):
            return function(ConvParams(PARAMS.kernel), x)

        return jax.linear_transpose(linear, X)(jnp.ones((5, 4)))

    with pytest.raises(Exception, match="custom_vjp"):
        transposed(jaxconv.conv)
    assert transposed(jaxconv.conv_forward)[0].shape == X.shape


def test_forward_over_reverse_works_where_the_rules_call_undecorated_code():
    # jax.hessian is jacfwd(jacrev): it differentiates fwd and bwd, in forward mode.
    hessians = [
        jax.hessian(functools.partial(loss, function, PARAMS))(X)
        for function in (jaxconv.conv, jaxconv.conv_forward)
    ]
    np.testing.assert_array_equal(*hessians)


def test_forward_over_reverse_fails_where_fwd_calls_the_decorated_function():
    @jax.custom_vjp
    def conv(x):
        return jaxconv.conv_forward(PARAMS, x)

    conv.defvjp(
        lambda x: (conv(x), x), lambda x, g: (jaxconv.conv_vjp(PARAMS, x, g)[1],)
    )
    with pytest.raises(TypeError, match="can't apply forward-mode"):
        jax.hessian(lambda x: (conv(x) ** 2).sum())(X)


def saved(function):
    """Shapes that the backward pass of function(params, x) keeps."""
    _, pull_back = jax.vjp(function, PARAMS, X)
    return sorted(np.shape(leaf) for leaf in jax.tree.leaves(pull_back))


def test_residuals_are_exactly_params_and_x():
    assert saved(jaxconv.conv) == sorted(map(np.shape, (*PARAMS, X)))


def kernel_gradient_shapes(function):
    """Shapes of all convolutions' results in grad(vmap(layer)), kernel shared."""

    def total(params, xs):
        return jax.vmap(lambda x: function(params, x, padding="VALID"))(xs).sum()

    jaxpr = jax.make_jaxpr(jax.grad(total))(PARAMS, jnp.ones((7, 5, 2)))
    text = str(jaxpr)
    return [line.split("=")[0] for line in text.splitlines() if "jaxconv" in line]


def test_custom_vjp_is_batched_after_it_is_differentiated():
    # grad(vmap(layer)) makes one kernel gradient per example (7 of them, here in one
    # grouped convolution), where the primitive makes one for all.
    assert any("3,2,28" in line or "3,14,4" in line or "[7,3,2,4]" in line
               for line in kernel_gradient_shapes(jaxconv.conv))  # fmt: skip
    shapes = kernel_gradient_shapes(jaxconv.conv_forward)
    assert any("3,2,4" in line for line in shapes)
    assert not any("28" in line or "14" in line for line in shapes)


def test_linear_call_has_no_batching_rule():
    def conv(x):
        return jax.custom_derivatives.linear_call(
            lambda kernel, x: lax.conv(x, kernel, (1,), "VALID"),
            lambda kernel, g: lax.conv_transpose(g, kernel, (1,), "VALID"),
            jnp.ones((4, 2, 3)),
            x,
        )

    with pytest.raises(NotImplementedError, match="Batching rule"):
        jax.vmap(conv)(jnp.ones((6, 1, 2, 5)))


def test_custom_vmap_has_no_reverse_mode():
    @jax.custom_batching.custom_vmap
    def conv(x):
        return lax.conv(x, jnp.ones((4, 2, 3)), (1,), "VALID")

    @conv.def_vmap
    def _(size, mapped, x):
        return jax.vmap(conv.fun)(x), True

    x = jnp.ones((1, 2, 5))
    assert jax.vmap(conv)(x[None]).shape == (1, 1, 4, 3)
    with pytest.raises(ValueError, match=r"does not support reverse-mode"):
        jax.grad(lambda x: conv(x).sum())(x)
