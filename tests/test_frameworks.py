"""Models of the frameworks, accelerated: the same gradients, no convolution left."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import pytest
from flax import nnx

from jaxconv import accelerate

X = jax.random.normal(jax.random.key(0), (4, 12, 12, 6))


@pytest.fixture(autouse=True)
def promotion():
    """The frameworks' own code relies on promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def squared(y):
    return (y**2).mean()


def linen():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=6)(x))
            x = nn.gelu(nn.Conv(8, (3, 3), strides=2, padding="CIRCULAR")(x))
            x = nn.remat(nn.Conv)(8, (3, 3), kernel_dilation=2)(x)
            x = nn.ConvLocal(4, (3, 3))(x)
            return nn.ConvTranspose(4, (4, 4), strides=(2, 2))(x)

    params = Net().init(jax.random.key(1), X)
    return lambda params, x: squared(Net().apply(params, x)), params, X


def nnx_module():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.one = nnx.Conv(6, 8, (3, 3), strides=2, rngs=rngs)
            self.two = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
            self.three = nnx.ConvTranspose(8, 4, (2, 2), strides=(2, 2), rngs=rngs)

        def __call__(self, x):
            return self.three(nnx.gelu(self.two(nnx.relu(self.one(x)))))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    return lambda state, x: squared(nnx.merge(graph, state)(x)), state, X


def haiku():
    def model(x):
        x = jax.nn.relu(hk.DepthwiseConv2D(2, 3)(x))
        x = hk.Conv2D(8, 3, rate=2, padding="VALID")(x)
        return hk.Conv2DTranspose(4, 3, stride=2)(x)

    network = hk.without_apply_rng(hk.transform(model))
    params = network.init(jax.random.key(1), X)
    return lambda params, x: squared(network.apply(params, x)), params, X


def equinox():
    keys = jax.random.split(jax.random.key(1), 3)
    layers = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(6, 6, 3, groups=6, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Conv2d(6, 8, 3, stride=2, key=keys[1]),
            eqx.nn.ConvTranspose2d(8, 4, 2, stride=2, key=keys[2]),
        ]
    )
    arrays, static = eqx.partition(layers, eqx.is_array)

    def loss(arrays, x):
        return squared(jax.vmap(eqx.combine(arrays, static))(x))

    return loss, arrays, X.transpose(0, 3, 1, 2)


def keras_model():
    model = keras.Sequential(
        [
            keras.layers.Input(X.shape[1:]),
            keras.layers.DepthwiseConv2D(3, padding="same", activation="relu"),
            keras.layers.SeparableConv2D(8, 3, strides=2, padding="same"),
            keras.layers.Conv2D(8, 3, dilation_rate=2, padding="same", groups=2),
            keras.layers.Conv2DTranspose(4, 4, strides=2, padding="same"),
        ]
    )
    variables = [variable.value for variable in model.trainable_variables]

    def loss(variables, x):
        y, *_ = model.stateless_call(variables, [], x, training=True)
        return squared(y)

    return loss, variables, X


MODELS = [linen, nnx_module, haiku, equinox, keras_model]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_gradients_are_those_of_the_framework(model, count):
    loss, params, x = model()
    gradient = jax.value_and_grad(loss)

    def per_example(params, x):
        return jax.vmap(lambda x: jax.grad(loss)(params, x[None]))(x)

    for fn in (gradient, per_example, jax.checkpoint(loss)):
        stock, _ = count(fn, params, x)
        assert stock > 2
        assert count(accelerate(fn), params, x) == (0, stock)
        expected, actual = (jax.jit(f)(params, x) for f in (fn, accelerate(fn)))
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        chex.assert_trees_all_close(actual, expected, rtol=0, atol=1e-5 * scale)
