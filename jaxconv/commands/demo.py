"""``python -m jaxconv demo``: a CNN on handwritten digits, stock against jaxconv.

One network with a stem, a depthwise, a pointwise, a strided, a grouped, a dilated and a
transposed convolution is trained twice from the same seed on the UCI digits that
scikit-learn ships: with `jax.lax` convolutions under `jax.grad`, and with jaxconv's.
The two take their steps in turn, so that their times are comparable.
"""

import importlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxconv

BATCH = 64
LAYERS: dict[str, dict[str, Any]] = {
    "stem": {"features": (1, 16), "taps": 3},
    "depthwise": {"features": (16, 16), "taps": 3, "groups": 16},
    "pointwise": {"features": (16, 32), "taps": 1},
    "strided": {"features": (32, 32), "taps": 3, "strides": 2},
    "grouped": {"features": (32, 32), "taps": 3, "groups": 4},
    "dilated": {"features": (32, 32), "taps": 3, "dilation": 2},
    "transposed": {"features": (32, 8), "taps": 4, "strides": 2},
}
_DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")

Layer = Callable[..., jax.Array]


class Side(NamedTuple):
    """One way to train the network: its functions and what was measured of it."""

    name: str
    loss: Callable
    step: Callable
    losses: list[float]
    times: list[float]
    compile_time: float


def _stock_conv(params: Any, x: jax.Array, strides=1, dilation=1, groups=1):
    y = lax.conv_general_dilated(
        x,
        params.kernel,
        (strides, strides),
        "SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_DIMENSION_NUMBERS,
        feature_group_count=groups,
    )
    return y + params.bias


def _stock_conv_transpose(params: Any, x: jax.Array, strides=1):
    return lax.conv_transpose(x, params.kernel, (strides,) * 2, "SAME") + params.bias


def init(key: jax.Array) -> dict[str, Any]:
    """Draw the parameters of the network."""
    last, *keys = jax.random.split(key, len(LAYERS) + 1)
    params: dict[str, Any] = {}
    for (name, layer), key in zip(LAYERS.items(), keys, strict=True):
        in_features, features = layer["features"]
        taps, groups = (layer["taps"],) * 2, layer.get("groups", 1)
        params[name] = jaxconv.init_conv_params(
            key, in_features, features, taps, groups=groups
        )
    params["dense"] = jaxconv.init_conv_params(last, 8 * 8 * 8, 10, ())
    return params


def logits(params: Any, images: jax.Array, conv: Layer, conv_transpose: Layer):
    """The network: [N, 8, 8, 1] → [N, 10]."""
    x = images
    for name, layer in LAYERS.items():
        options = {k: v for k, v in layer.items() if k not in ("features", "taps")}
        apply = conv_transpose if name == "transposed" else conv
        x = jax.nn.relu(apply(params[name], x, **options))
    x = x.reshape(len(x), -1)  # [N, 8·8·8]
    return x @ params["dense"].kernel + params["dense"].bias


def _digits(seed: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Images and labels, for training and for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=0.25, random_state=seed, stratify=labels
    )
    return (train_x, train_y), (test_x, test_y)


def _side(
    name: str, conv: Layer, conv_transpose: Layer, optimizer: Any, example: tuple
) -> Side:
    """Compile one side's training step."""
    import optax

    def loss(params, images, labels):
        scores = logits(params, images, conv, conv_transpose)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    def step(params, state, images, labels):
        value, gradients = jax.value_and_grad(loss)(params, images, labels)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    start = time.perf_counter()
    compiled = jax.jit(step).lower(*example).compile()
    return Side(name, loss, compiled, [], [], time.perf_counter() - start)


def _accuracy(params: Any, conv: Layer, conv_transpose: Layer, test: tuple) -> float:
    images, labels = test
    scores = jax.jit(logits, static_argnums=(2, 3))(
        params, images, conv, conv_transpose
    )
    return float((scores.argmax(-1) == labels).mean())


def _difference(sides: list[Side], params: Any, batch: tuple) -> float:
    """Largest difference of the two gradients, over the largest gradient entry."""
    stock, ours = (jax.jit(jax.grad(side.loss))(params, *batch) for side in sides)
    apart = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), stock, ours)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(stock))
    return max(map(float, jax.tree.leaves(apart))) / scale


def run(*, steps: int, seed: int, out: Path) -> int:
    """Train both sides, print the table and write the picture.

    Args:
      steps: training steps, at least 1.
      seed: of the parameters, the split and the batches.
      out: where the picture goes.

    Returns:
      0.
    """
    import optax
    from rich.console import Console
    from rich.progress import track

    importlib.import_module("matplotlib")  # missing, it is missed before the run
    console = Console()
    train, test = _digits(seed)
    params = init(jax.random.key(seed))
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    batches = np.random.default_rng(seed).integers(0, len(train[0]), (steps, BATCH))
    first = tuple(array[batches[0]] for array in train)
    kinds = {
        "stock": (_stock_conv, _stock_conv_transpose),
        "jaxconv": (jaxconv.conv, jaxconv.conv_transpose),
    }
    start = (params, optimizer.init(params))
    with console.status("compiling the two training steps"):
        sides = [
            _side(name, conv, conv_transpose, optimizer, (*start, *first))
            for name, (conv, conv_transpose) in kinds.items()
        ]
        difference = _difference(sides, params, first)
    states = dict.fromkeys(kinds, start)
    for rows in track(batches, "training", console=console):
        batch = tuple(array[rows] for array in train)
        for side in sides:
            begin = time.perf_counter()
            params, state, loss = side.step(*states[side.name], *batch)
            jax.block_until_ready((params, state, loss))
            side.times.append(time.perf_counter() - begin)
            side.losses.append(float(loss))
            states[side.name] = params, state
    accuracies = [
        _accuracy(states[name][0], conv, conv_transpose, test)
        for name, (conv, conv_transpose) in kinds.items()
    ]
    _print(console, sides, accuracies, difference)
    _draw(sides, out)
    console.print(f"Picture: {out}")
    return 0


def _print(
    console: Any, sides: list[Side], accuracies: list[float], difference: float
) -> None:
    from rich.table import Table

    table = Table(title=f"UCI digits, {len(sides[0].losses)} steps of {BATCH} images")
    table.add_column("")
    for side in sides:
        table.add_column(side.name, justify="right")
    table.add_row("test accuracy", *(f"{value:.4f}" for value in accuracies))
    medians = [f"{1e3 * statistics.median(side.times):.2f} ms" for side in sides]
    table.add_row("step time, median", *medians)
    table.add_row("compile time", *(f"{side.compile_time:.2f} s" for side in sides))
    table.add_row("gradients apart, of the largest", "", f"{difference:.1e}")
    console.print(table)


def _draw(sides: list[Side], out: Path) -> None:
    """Loss curves and step times."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=(2, 1))
    for side, line in zip(sides, ("-", "--"), strict=True):
        curves.semilogy(side.losses, line, label=side.name, linewidth=1.2)
    curves.set(title="training loss", xlabel="step", ylabel="cross entropy")
    curves.legend()
    times = [1e3 * statistics.median(side.times) for side in sides]
    drawn = bars.bar([side.name for side in sides], times, color=("C0", "C1"))
    bars.bar_label(drawn, fmt="%.2f")
    bars.margins(y=0.1)
    bars.set(title="step time, median", ylabel="ms")
    figure.savefig(out, dpi=150)
