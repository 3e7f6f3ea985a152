"""How far a result is from the sum itself, on a part of it that NumPy adds up.

A layer's role is a sum for each of its entries, so that some of them can be judged
alone: those of one image, or for kernel gradients of a few channels and features, of
one group. Such a part is a smaller layer, whose sums are taken in float64.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxconv.arguments import Caller, conv_spec
from jaxconv.cases import ConvCase
from jaxconv.testing import reference_conv_vjp

FEW = 4
"""Channels or features of a part, where the sum does not run over them."""

OPERANDS = {
    "forward": ("x", "kernel"),
    "input_gradient": ("g", "kernel"),
    "kernel_gradient": ("x", "g"),
}
"""Of which arrays each role is a function."""

_RESULT = {"forward": "g", "input_gradient": "x", "kernel_gradient": "kernel"}


def error_of(
    case: ConvCase, role: str, operands: Sequence[Any]
) -> Callable[[Any], float]:
    """A judge of results: the largest error of a part, over the part's largest entry.

    An error of less than half a unit in the last place of that entry, to which any
    result is rounded, counts as that.

    Args:
      case: the layer.
      role: one of `OPERANDS`.
      operands: of the role.

    Example:
      >>> from jaxconv.bench.zoo import layer
      >>> case = layer("", 1, (2,), 1, 1, (1,))
      >>> x, kernel = np.ones((1, 2, 1)), np.ones((1, 1, 1))
      >>> judge = error_of(case, "forward", (x, kernel))
      >>> round(judge(x - 0.25), 6)
      0.25
    """
    axes = conv_spec(
        Caller("bench"), case.x_shape, case.kernel_shape, **case.geometry
    ).dimension_numbers
    taken = _taken(case, role, axes)
    parts = {
        name: np.asarray(array)[taken[name]].astype(float)
        for name, array in zip(OPERANDS[role], operands, strict=True)
    }
    shapes = {"x": case.x_shape, "kernel": case.kernel_shape}
    for name, shape in shapes.items():  # what the role does not depend on
        if name not in parts:
            parts[name] = np.zeros(np.broadcast_to(0.0, shape)[taken[name]].shape)
    geometry = {**case.geometry, "feature_group_count": 1}
    reference = reference_conv_vjp(
        parts["x"], parts["kernel"], parts.get("g"), **geometry
    )[list(OPERANDS).index(role)]
    own = taken[_RESULT[role]]
    largest = np.abs(reference).max() or 1.0  # sums of zeros alone: the error itself

    def judge(result: Any) -> float:
        error = np.abs(np.asarray(result)[own].astype(float) - reference).max()
        return float(np.maximum(error / largest, jnp.finfo(result.dtype).eps / 2))

    return judge


def _taken(case: ConvCase, role: str, axes: Any) -> dict[str, tuple]:
    """The part of x, of the kernel and of g (as of y) that a part of the role needs."""
    (batch, channel, *_), (feature, in_feature, *_), (y_batch, y_feature, *_) = axes
    groups = case.feature_group_count
    channels, features = case.kernel_shape[in_feature], case.kernel_shape[feature]
    group, features = groups // 2, features // groups
    images = slice(None)
    if role != "kernel_gradient":
        image = case.x_shape[batch] // 2
        images = slice(image, image + 1)
    own_channels = channels if role == "forward" else min(channels, FEW)
    own_features = features if role == "input_gradient" else min(features, FEW)

    def at(places: dict[int, slice]) -> tuple:
        return tuple(places.get(i, slice(None)) for i in range(len(case.x_shape)))

    return {
        "x": at({batch: images, channel: _first(group * channels, own_channels)}),
        "kernel": at(
            {
                feature: _first(group * features, own_features),
                in_feature: _first(0, own_channels),
            }
        ),
        "g": at({y_batch: images, y_feature: _first(group * features, own_features)}),
    }


def _first(start: int, count: int) -> slice:
    """So many from there on."""
    return slice(start, start + count)
