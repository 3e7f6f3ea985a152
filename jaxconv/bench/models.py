"""Whole models in Flax, and one training step of each: what layers add up to.

They are small, in depth or in their images, and else as their papers have them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxconv.bench.programs import measure_program
from jaxconv.bench.rows import Row


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, activation."""

    features: int
    size: int = 3
    strides: int = 1
    groups: int = 1
    act: Callable | None = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the layer."""
        x = nn.Conv(
            self.features,
            (self.size,) * (x.ndim - 2),
            self.strides,
            feature_group_count=self.groups,
            use_bias=False,
        )(x)
        x = nn.BatchNorm(use_running_average=False)(x)
        return x if self.act is None else self.act(x)


class Inverted(nn.Module):
    """The inverted bottleneck of MobileNetV2, arXiv:1801.04381, and of EfficientNet."""

    features: int
    expansion: int
    size: int = 3
    strides: int = 1
    squeeze: bool = False
    act: Callable = nn.relu6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the block."""
        wide, y = self.expansion * x.shape[-1], x
        if self.expansion > 1:
            y = ConvNorm(wide, 1, act=self.act)(y)
        y = ConvNorm(wide, self.size, self.strides, groups=wide, act=self.act)(y)
        if self.squeeze:
            z = self.act(nn.Dense(max(x.shape[-1] // 4, 1))(y.mean((1, 2))))
            y = y * nn.sigmoid(nn.Dense(wide)(z))[:, None, None]
        y = ConvNorm(self.features, 1, act=None)(y)
        return x + y if x.shape == y.shape else y


class Residual(nn.Module):
    """The blocks of ResNet, arXiv:1512.03385, and of ResNeXt, arXiv:1611.05431."""

    features: int
    strides: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the block."""
        if self.groups == 1:
            y = ConvNorm(self.features, 3, self.strides)(x)
            y = ConvNorm(self.features, 3, act=None)(y)
        else:
            y = ConvNorm(self.features // 2, 1)(x)
            y = ConvNorm(self.features // 2, 3, self.strides, groups=self.groups)(y)
            y = ConvNorm(self.features, 1, act=None)(y)
        if x.shape != y.shape:
            x = ConvNorm(self.features, 1, self.strides, act=None)(x)
        return nn.relu(x + y)


class Classifier(nn.Module):
    """A stem, blocks, and a head on the mean over the image."""

    stem: nn.Module
    blocks: tuple[nn.Module, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the logits."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return nn.Dense(100)(x.mean(range(1, x.ndim - 1)))


class ConvNeXtBlock(nn.Module):
    """arXiv:2201.03545."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the block."""
        C = x.shape[-1]
        y = nn.Conv(C, (7, 7), feature_group_count=C)(x)
        y = nn.Dense(C)(nn.gelu(nn.Dense(4 * C)(nn.LayerNorm()(y))))
        return x + y


class Patches(nn.Module):
    """Patch embedding: kernel = stride."""

    features: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the patches' features."""
        size = (self.size,) * 2
        return nn.LayerNorm()(nn.Conv(self.features, size, size, "VALID")(x))


class TemporalBlock(nn.Module):
    """Causal dilated convolutions with a residual, arXiv:1803.01271, separable ones."""

    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the block."""
        C = x.shape[-1]
        y = nn.Conv(
            C, (5,), padding="CAUSAL", kernel_dilation=self.dilation,
            feature_group_count=C,
        )(x)  # fmt: skip
        return nn.relu(x + nn.Dense(C)(nn.relu(y)))


class UNet3D(nn.Module):
    """arXiv:1606.06650, two levels deep."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute a map of the size of x."""
        skips = []
        for features in (16, 32):
            x = ConvNorm(features)(ConvNorm(features)(x))
            skips.append(x)
            x = nn.Conv(2 * features, (2, 2, 2), strides=2)(x)
        x = ConvNorm(64)(x)
        for skip in reversed(skips):
            features = skip.shape[-1]
            x = nn.ConvTranspose(features, (2, 2, 2), strides=(2, 2, 2))(x)
            x = ConvNorm(features)(jnp.concatenate([x, skip], -1))
        return nn.Conv(1, (1, 1, 1))(x)


class Adversaries(nn.Module):
    """The generator of DCGAN, arXiv:1511.06434, and its discriminator."""

    @nn.compact
    def __call__(self, noise: jax.Array) -> jax.Array:
        """Generate images of 32x32, and judge them."""
        x = nn.relu(nn.Dense(4 * 4 * 256)(noise)).reshape(-1, 4, 4, 256)
        for features in (128, 64):
            x = nn.ConvTranspose(features, (4, 4), strides=(2, 2))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        x = nn.tanh(nn.ConvTranspose(3, (4, 4), strides=(2, 2))(x))
        for features in (64, 128, 256):
            x = nn.leaky_relu(nn.Conv(features, (4, 4), strides=2)(x), 0.2)
        return nn.Dense(1)(x.reshape(len(x), -1))


def _mobilenet() -> nn.Module:
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2))
    stages += ((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    blocks = [
        Inverted(features, expansion, strides=strides if i == 0 else 1)
        for expansion, features, repeats, strides in stages
        for i in range(repeats)
    ]
    stem = ConvNorm(32, 3, 2, act=nn.relu6)
    return Classifier(stem, (*blocks, ConvNorm(1280, 1, act=nn.relu6)))


def _efficientnet() -> nn.Module:
    stages = ((1, 16, 3, 1), (6, 24, 3, 2), (6, 40, 5, 2), (6, 80, 3, 2))
    stages += ((6, 112, 5, 1), (6, 192, 5, 2), (6, 320, 3, 1))
    blocks = [
        Inverted(features, expansion, size, strides, squeeze=True, act=nn.silu)
        for expansion, features, size, strides in stages
    ]
    stem = ConvNorm(32, 3, 2, act=nn.silu)
    return Classifier(stem, (*blocks, ConvNorm(1280, 1, act=nn.silu)))


def _residual(groups: int, features: int, blocks: int) -> nn.Module:
    stages = [
        Residual(features << stage, 2 if stage and i == 0 else 1, groups)
        for stage in range(4)
        for i in range(blocks)
    ]
    return Classifier(ConvNorm(64, 7, 2), tuple(stages))


def _convnext() -> nn.Module:
    blocks: list[nn.Module] = []
    for features, depth in ((96, 1), (192, 1), (384, 3), (768, 1)):
        if features > 96:
            blocks.append(Patches(features, 2))
        blocks += [ConvNeXtBlock() for _ in range(depth)]
    return Classifier(Patches(96, 4), tuple(blocks))


def _temporal() -> nn.Module:
    blocks = [TemporalBlock(2**i) for i in range(8)]
    return Classifier(nn.Dense(128), tuple(blocks))


MODELS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobilenetv2": (_mobilenet, (8, 96, 96, 3)),
    "resnet18": (lambda: _residual(1, 64, 2), (8, 64, 64, 3)),
    "resnext": (lambda: _residual(32, 256, 1), (4, 64, 64, 3)),
    "convnext": (_convnext, (8, 96, 96, 3)),
    "efficientnet": (_efficientnet, (8, 96, 96, 3)),
    "unet3d": (UNet3D, (1, 32, 32, 32, 1)),
    "dcgan": (Adversaries, (16, 64)),
    "tcn": (_temporal, (8, 1024, 16)),
    "vit": (lambda: Classifier(Patches(384, 16), ()), (4, 224, 224, 3)),
}
"""Models by their names, and the shapes of their inputs."""


def training_step(name: str) -> tuple[Callable, Callable[[], tuple[Any, ...]]]:
    """One step of training, and what draws arguments for it.

    Args:
      name: a key of `MODELS`.

    Returns:
      A function of (variables, optimizer state, inputs, targets) that returns the new
      ones of the first two, the loss and the gradients, and one that draws those four.
    """
    make, shape = MODELS[name]
    model, optimizer = make(), optax.adam(1e-3)

    def loss(
        params: Any, others: Any, x: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, Any]:
        y, others = model.apply({"params": params, **others}, x, mutable=list(others))
        return optax.squared_error(y, targets).mean(), others

    def step(
        variables: Any, state: Any, x: jax.Array, targets: jax.Array
    ) -> tuple[Any, ...]:
        others = {key: of for key, of in variables.items() if key != "params"}
        params = variables["params"]
        (value, others), gradients = jax.value_and_grad(loss, has_aux=True)(
            params, others, x, targets
        )
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return {"params": params, **others}, state, value, gradients

    def arguments() -> tuple[Any, ...]:
        x = jax.random.normal(jax.random.key(0), shape)
        y, variables = jax.jit(model.init_with_output)(jax.random.key(1), x)
        targets = jax.random.normal(jax.random.key(2), y.shape)
        return variables, optimizer.init(variables["params"]), x, targets

    return step, arguments


def measure_model(name: str, *, rounds: int = 9) -> Row:
    """Time one training step, stock and accelerated in turn.

    Args:
      name: a key of `MODELS`.
      rounds: runs of each, at least.

    Returns:
      A row, as `measure_program` makes it of the gradients.
    """
    step, arguments = training_step(name)
    return measure_program(
        name,
        "training_step",
        step,
        arguments(),
        rounds=rounds,
        judged=lambda result: result[-1],
    )
