"""Policies of jax.checkpoint: what is saved, and what is computed again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from jaxconv.checkpoint_policies import convs_saveable, like_lax, offload_convs

NHWC = ("NHWC", "HWIO", "NHWC")
X = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
KERNEL = jax.random.normal(jax.random.key(1), (3, 3, 4, 4)) / 6
JAX = jax.checkpoint_policies


def gradient(conv, policy):
    """Of two convolutions between sines, of which the second needs the first."""

    def layer(kernel, x):
        return jnp.sin(conv(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC))

    def loss(kernel, x):
        fn = jax.checkpoint(lambda k, x: layer(k, layer(k, x)), policy=policy)
        return fn(kernel, x).sum()

    return jax.grad(loss, argnums=(0, 1))


@pytest.mark.parametrize(
    ("policy", "recomputed"),
    [
        (None, 2),
        (JAX.nothing_saveable, 2),
        (JAX.dots_saveable, 2),  # knows lax's convolution alone
        (like_lax(JAX.dots_saveable), 0),
        (like_lax(JAX.dots_with_no_batch_dims_saveable), 2),
        (convs_saveable, 0),
        (JAX.save_from_both_policies(convs_saveable, JAX.nothing_saveable), 0),
    ],
)
def test_what_is_saved_is_not_computed_again(count, policy, recomputed):
    ours = gradient(jaxconv.conv_general_dilated, policy)
    forward_and_backward = 2 + 4
    assert count(ours, KERNEL, X) == (0, forward_and_backward + recomputed)
    plain = gradient(jaxconv.conv_general_dilated, JAX.everything_saveable)
    for own, other in zip(ours(KERNEL, X), plain(KERNEL, X), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", [convs_saveable, like_lax(JAX.dots_saveable)])
def test_lax_and_jaxconv_are_treated_alike(count, policy):
    stock, none = count(gradient(lax.conv_general_dilated, policy), KERNEL, X)
    assert none == 0
    assert count(gradient(jaxconv.conv_general_dilated, policy), KERNEL, X) == (
        0,
        stock,
    )


@pytest.mark.parametrize(
    "conv", [jaxconv.conv_general_dilated, lax.conv_general_dilated]
)
def test_offloaded_convolutions_wait_in_the_other_memory(count, conv):
    offloaded = gradient(conv, offload_convs("device", "pinned_host"))
    program = str(jax.make_jaxpr(offloaded)(KERNEL, X))
    assert program.count("f32<host>[2,8,8,4] = device_put") == 2
    assert sum(count(offloaded, KERNEL, X)) == 2 + 4  # none is computed again
    plain = gradient(conv, None)
    for own, other in zip(jax.jit(offloaded)(KERNEL, X), plain(KERNEL, X), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)


def test_a_policy_is_a_function():
    for wrong in ("dots_saveable", []):
        with pytest.raises(TypeError, match="like_lax: policy must be a function"):
            like_lax(wrong)  # pyright: ignore[reportArgumentType]
