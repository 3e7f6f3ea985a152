"""Random layers, as networks have them: where no table lists what is slow."""

import random

import numpy as np

from jaxconv.bench.rows import problem_of
from jaxconv.bench.zoo import layer
from jaxconv.cases import ConvCase

FLOPS, BYTES = 4e9, 1 << 26
"""What a layer may cost at most, so that a sweep ends."""

_KINDS = ("dense", "dense", "pointwise", "depthwise", "grouped", "transposed")


def random_layer(seed: int) -> ConvCase:
    """Draw a layer, the same for the same seed.

    1 to 3 spatial axes of 7 to 224 points, odd sizes among them, 1 to 1024 channels,
    batches of 1 to 64, groups of all kinds, strides, dilations, transposed layers, and
    both layouts; up to `FLOPS` and `BYTES`.

    Args:
      seed: of the draw.

    Example:
      >>> random_layer(3) == random_layer(3)
      True
    """
    draw = random.Random(seed)
    while True:
        case = _draw(draw, f"sweep.{seed}")
        problem = problem_of(case, "forward", np.float32)
        # Stock computes the kernel gradient of each group with all of the channels.
        flops = problem.flops * case.feature_group_count
        if 0 < flops <= FLOPS and problem.bytes <= BYTES:
            return case


def _draw(draw: random.Random, name: str) -> ConvCase:
    """One layer of any size."""
    kind, rank = draw.choice(_KINDS), draw.choice((1, 2, 2, 2, 3))
    size = draw.choice(
        {
            1: (49, 125, 256, 500, 1000, 1024, 2048, 4001),
            2: (7, 8, 13, 14, 17, 28, 32, 35, 56, 64, 75, 112, 128, 224),
            3: (7, 8, 14, 16, 28, 32, 45, 64),
        }[rank]
    )
    spatial = tuple(
        draw.choice((size, size, size + 1, max(size // 2, 7))) for _ in range(rank)
    )
    batch = draw.choice((1, 1, 2, 4, 8, 8, 16, 32, 64))
    channels = draw.choice(
        (1, 3, 4, 8, 16, 24, 32, 48, 64, 96, 128, 144, 256, 512, 1024)
    )
    features = draw.choice((1, 8, 16, 24, 32, 40, 64, 96, 128, 192, 256, 512, 1024))
    k = draw.choice((1, 2, 3, 3, 3, 4, 5, 7, 9) if rank < 3 else (1, 2, 3, 3, 3, 5))
    stride = draw.choice((1, 1, 1, 2, 2, 3, 4))
    dilation = draw.choice((1, 1, 1, 2, 4)) if stride == 1 and k > 1 else 1
    groups, input_dilation = 1, 1
    if kind == "pointwise":
        k, dilation, stride = 1, 1, draw.choice((1, 1, 2))
    elif kind == "depthwise":
        groups = max(channels, 8)
        channels, features = groups, groups * draw.choice((1, 1, 1, 2))
    elif kind == "grouped":
        groups = draw.choice((2, 4, 8, 16, 32))
        channels = groups * draw.choice((1, 2, 4, 8, 16, 32))
        features = groups * draw.choice((1, 2, 4, 8, 16, 32))
    elif kind == "transposed":
        input_dilation, stride, dilation = draw.choice((2, 2, 3, 4)), 1, 1
        k = draw.choice((input_dilation, input_dilation + 1, 2 * input_dilation))
    if rank == 1 and draw.random() < 0.1:
        k = draw.choice((64, 129, 256))
    extent = (k - 1) * dilation + 1
    low = draw.choice((0, extent // 2, extent // 2, extent - 1))
    if input_dilation > 1:
        low = draw.choice((k - 1, k - 1 - k // 4))
    return layer(
        name,
        batch,
        spatial,
        channels,
        features,
        (k,) * rank,
        strides=stride,
        dilation=dilation,
        input_dilation=input_dilation,
        groups=groups,
        padding=(low, min(low, extent - 1 - low) if low == extent - 1 else low),
        channels_first=draw.random() < 0.25,
    )
