"""The layers that are timed: those of well-known networks, and of users' reports.

A name is the network's and the layer's; a number after `#` is the report's.
"""

from collections.abc import Sequence

from jaxconv.cases import ConvCase

_LETTERS = {0: "", 1: "W", 2: "HW", 3: "DHW", 4: "BDHW", 5: "ABDHW"}


def layer(
    name: str,
    batch: int,
    spatial: Sequence[int],
    in_features: int,
    features: int,
    taps: Sequence[int],
    *,
    strides: int = 1,
    dilation: int = 1,
    input_dilation: int = 1,
    groups: int = 1,
    padding: tuple[int, int] = (0, 0),
    channels_first: bool = False,
) -> ConvCase:
    """A layer with the same geometry along each spatial axis.

    Args:
      name: a readable id.
      batch: N.
      spatial: sizes of the input.
      in_features: C.
      features: F.
      taps: sizes of the kernel.
      strides: window stride.
      dilation: of the kernel.
      input_dilation: of the input, the stride of a transposed layer.
      groups: feature groups.
      padding: (low, high).
      channels_first: whether it is [N, C, *I] with [F, C/G, *K], or else
        [N, *I, C] with [*K, C/G, F].

    Example:
      >>> layer("stem", 8, (32,), 3, 16, (5,), strides=2).kernel_shape
      (5, 3, 16)
    """
    rank, spaces = len(spatial), _LETTERS[len(spatial)]
    x_shape: tuple[int, ...] = (batch, *spatial, in_features)
    kernel_shape: tuple[int, ...] = (*taps, in_features // groups, features)
    layout = (f"N{spaces}C", f"{spaces}IO", f"N{spaces}C")
    if channels_first:
        x_shape = (batch, in_features, *spatial)
        kernel_shape = (features, in_features // groups, *taps)
        layout = (f"NC{spaces}", f"OI{spaces}", f"NC{spaces}")
    return ConvCase(
        name,
        x_shape,
        kernel_shape,
        (strides,) * rank,
        (padding,) * rank,
        (input_dilation,) * rank,
        (dilation,) * rank,
        layout,
        groups,
    )


# fmt: off
ZOO = (
    layer("resnet50.stem7x7s2", 8, (224, 224), 3, 64, (7, 7), strides=2,
          padding=(3, 3)),
    layer("resnet50.3x3@56", 8, (56, 56), 64, 64, (3, 3), padding=(1, 1)),
    layer("resnet50.3x3s2@28", 8, (56, 56), 128, 128, (3, 3), strides=2,
          padding=(1, 1)),
    layer("resnet50.1x1@14", 8, (14, 14), 1024, 256, (1, 1)),
    layer("resnet50.1x1s2", 8, (56, 56), 256, 512, (1, 1), strides=2),
    layer("resnext.3x3g32", 8, (28, 28), 256, 256, (3, 3), groups=32, padding=(1, 1)),
    layer("mbv2.dw3x3@56", 8, (56, 56), 144, 144, (3, 3), groups=144, padding=(1, 1)),
    layer("mbv2.dw3x3s2@56", 8, (56, 56), 144, 144, (3, 3), strides=2, groups=144,
          padding=(1, 1)),
    layer("convnext.dw7x7", 8, (56, 56), 96, 96, (7, 7), groups=96, padding=(3, 3)),
    layer("convnext.stem4x4s4", 8, (224, 224), 3, 96, (4, 4), strides=4),
    layer("vit.patch16", 8, (224, 224), 3, 768, (16, 16), strides=16),
    layer("deeplab.3x3d2", 4, (32, 32), 256, 256, (3, 3), dilation=2, padding=(2, 2)),
    layer("lenet.5x5", 64, (28, 28), 1, 32, (5, 5), padding=(2, 2)),
    layer("wavenet.k2d8", 8, (4096,), 64, 64, (2,), dilation=8, padding=(8, 0)),
    layer("dw1d.k4(mamba)", 8, (2048,), 512, 512, (4,), groups=512, padding=(3, 0)),
    layer("conv1d.k5", 32, (1024,), 128, 128, (5,), padding=(2, 2)),
    layer("whisper.k3s2", 4, (3000,), 384, 384, (3,), strides=2, padding=(1, 1)),
    layer("unet3d.3x3x3", 1, (32, 32, 32), 32, 32, (3, 3, 3), padding=(1, 1)),
    layer("unet3d.down2", 1, (32, 32, 32), 32, 64, (2, 2, 2), strides=2),
    layer("resnet50.3x3@14", 8, (14, 14), 256, 256, (3, 3), padding=(1, 1)),
    layer("resnet50.3x3@7", 8, (7, 7), 512, 512, (3, 3), padding=(1, 1)),
    layer("unet.3x3@64", 4, (64, 64), 128, 64, (3, 3), padding=(1, 1)),
    layer("atari.8x8s4", 32, (84, 84), 4, 32, (8, 8), strides=4),
    layer("dcgan.convT4x4s2", 8, (16, 16), 128, 64, (4, 4), input_dilation=2,
          padding=(2, 2)),
    layer("unet3d.convT2x2x2", 1, (16, 16, 16), 64, 32, (2, 2, 2), input_dilation=2,
          padding=(1, 1)),
    layer("mbv2.dw3x3@56.nchw", 8, (56, 56), 144, 144, (3, 3), groups=144,
          padding=(1, 1), channels_first=True),
    layer("resnet50.3x3@56.nchw", 8, (56, 56), 64, 64, (3, 3), padding=(1, 1),
          channels_first=True),
    layer("jax#23783.convT1d", 16, (400,), 129, 1, (256,), input_dilation=64,
          padding=(159, 159), channels_first=True),
    layer("jax#31662.convT3d", 1, (32, 32, 16), 64, 1, (3, 3, 3), input_dilation=2,
          padding=(1, 2)),
    layer("jax#13800.dw1d", 8, (1024,), 512, 512, (5,), groups=512, padding=(2, 2),
          channels_first=True),
    layer("jax#23713.dw3x3@124", 1, (124, 124), 256, 256, (3, 3), groups=256,
          padding=(1, 1)),
    layer("keras#20471.1x1g2", 8, (64, 64), 512, 128, (1, 1), groups=2),
)
LARGE = (
    layer("replknet.dw31x31", 4, (28, 28), 256, 256, (31, 31), groups=256,
          padding=(15, 15)),
    layer("replknet.dw13x13@7", 8, (7, 7), 1024, 1024, (13, 13), groups=1024,
          padding=(6, 6)),
    layer("dw9x9@28", 8, (28, 28), 192, 192, (9, 9), groups=192, padding=(4, 4)),
    layer("hyena.k1024", 2, (4096,), 256, 256, (1024,), groups=256,
          padding=(1023, 0)),
    layer("conformer.dw31", 8, (512,), 256, 256, (31,), groups=256, padding=(15, 15)),
    layer("dw7x7x7", 2, (24, 24, 24), 32, 32, (7, 7, 7), groups=32, padding=(3, 3)),
    layer("blur21x21", 8, (256, 256), 1, 1, (21, 21), padding=(10, 10)),
    layer("psf21x21@2048", 1, (2048, 2048), 1, 1, (21, 21), padding=(10, 10)),
    layer("gabor15x15", 8, (128, 128), 1, 8, (15, 15), padding=(7, 7)),
    layer("few9x9", 8, (104, 104), 5, 4, (9, 9), padding=(4, 4)),
)
# fmt: on


def _groups(case: ConvCase) -> int:
    """0 for one group, 1 for several, 2 for one channel in each."""
    channels = case.kernel_shape[case.dimension_numbers[1].index("I")]
    return (case.feature_group_count > 1) * (1 + (channels == 1))


SUITES = {
    "zoo": ZOO,
    "dense": tuple(case for case in ZOO if _groups(case) == 0),
    "grouped": tuple(case for case in ZOO if _groups(case) == 1),
    "depthwise": tuple(case for case in ZOO if _groups(case) == 2),
    "large": LARGE,
    "transposed": tuple(case for case in ZOO if max(case.lhs_dilation or (1,)) > 1),
}
"""Layers by the name of their suite."""
