"""Convolutions worth checking and timing: a table, and a generator of random ones.

The table is pairwise different in sizes, unequal in strides and asymmetric in padding
where it can be, so that a swapped axis or a dropped pad shows. A mended bug adds a case
whose name carries the number of its report.
"""

import dataclasses
import random
from typing import Any

from jaxconv.spec import dilated


@dataclasses.dataclass(frozen=True)
class ConvCase:
    """One convolution, as `jax.lax.conv_general_dilated` takes it.

    Attributes:
      name: a readable id.
      x_shape: shape of the input, in the case's layout.
      kernel_shape: shape of the kernel, in the case's layout.
      window_strides: per spatial axis; None for ones.
      padding: a string, or pairs per spatial axis.
      lhs_dilation: per spatial axis; None for ones.
      rhs_dilation: per spatial axis; None for ones.
      dimension_numbers: three strings.
      feature_group_count: groups of channels.
      batch_group_count: groups of the batch.
    """

    name: str
    x_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    window_strides: tuple[int, ...] | None = None
    padding: Any = "SAME"
    lhs_dilation: tuple[int, ...] | None = None
    rhs_dilation: tuple[int, ...] | None = None
    dimension_numbers: tuple[str, str, str] = ("NHWC", "HWIO", "NHWC")
    feature_group_count: int = 1
    batch_group_count: int = 1

    @property
    def geometry(self) -> dict[str, Any]:
        """Keyword arguments for `conv_general_dilated`."""
        rank = len(self.x_shape) - 2
        return {
            "window_strides": self.window_strides or (1,) * rank,
            "padding": self.padding,
            "lhs_dilation": self.lhs_dilation,
            "rhs_dilation": self.rhs_dilation,
            "dimension_numbers": self.dimension_numbers,
            "feature_group_count": self.feature_group_count,
            "batch_group_count": self.batch_group_count,
        }


_1D = ("NWC", "WIO", "NWC")
_3D = ("NDHWC", "DHWIO", "NDHWC")
_NCHW = ("NCHW", "OIHW", "NCHW")

CASES = (
    ConvCase("0d", (5, 3), (3, 4), None, (), dimension_numbers=("NC", "IO", "NC")),
    ConvCase("0d.depthwise", (2, 3), (1, 3), None, (),
             dimension_numbers=("NC", "IO", "NC"), feature_group_count=3),
    ConvCase("1d.same", (2, 11, 3), (4, 3, 5), dimension_numbers=_1D),
    ConvCase("1d.causal-dilated", (2, 13, 3), (3, 3, 4), None, [(8, 0)], None, (4,),
             _1D),
    ConvCase("1d.strided", (2, 14, 3), (5, 3, 4), (3,), [(2, 1)], None, None, _1D),
    ConvCase("1d.depthwise", (2, 10, 6), (4, 1, 6), None, [(3, 0)], None, None, _1D, 6),
    ConvCase("1d.transposed", (2, 6, 3), (7, 3, 4), None, [(4, 5)], (3,), None, _1D),
    ConvCase("2d.same", (2, 7, 9, 3), (3, 5, 3, 4)),
    ConvCase("2d.same-lower-strided", (2, 8, 7, 3), (2, 4, 3, 4), (2, 3), "SAME_LOWER"),
    ConvCase("2d.valid", (2, 9, 8, 3), (4, 3, 3, 5), None, "VALID"),
    ConvCase("2d.1x1", (3, 5, 4, 6), (1, 1, 6, 7), None, "VALID"),
    ConvCase("1d.pointwise", (2, 9, 3), (1, 3, 5), dimension_numbers=_1D),
    ConvCase("2d.1x1-nchw", (3, 6, 5, 4), (7, 6, 1, 1), dimension_numbers=_NCHW),
    ConvCase("2d.whole-window", (3, 5, 4, 6), (5, 4, 6, 7), None, "VALID"),
    ConvCase("2d.whole-height", (2, 5, 4, 3), (5, 1, 3, 6), None, "VALID"),
    ConvCase("3d.whole-depth", (2, 3, 4, 2, 5), (3, 1, 2, 5, 4), None, "VALID",
             dimension_numbers=_3D),
    ConvCase("2d.1x1-odd-layout", (6, 2, 3, 7), (1, 5, 1, 3), None, "VALID",
             None, None, ("HNCW", "WOHI", "CWNH")),
    ConvCase("2d.1x1-strided", (2, 7, 6, 5), (1, 1, 5, 4), (2, 3), "VALID"),
    ConvCase("2d.kernel=stride", (2, 12, 8, 3), (4, 2, 3, 5), (4, 2), "VALID"),
    ConvCase("2d.kernel<stride", (2, 11, 13, 3), (2, 1, 3, 4), (3, 4),
             [(1, 0), (0, 2)]),
    ConvCase("2d.strided-dilated", (2, 13, 12, 3), (3, 2, 3, 4), (2, 3),
             [(2, 1), (0, 3)], None, (2, 4)),
    ConvCase("2d.grouped", (2, 6, 7, 6), (3, 2, 2, 9), (1, 2), [(0, 1), (1, 0)],
             feature_group_count=3),
    ConvCase("2d.depthwise", (2, 7, 6, 5), (3, 3, 1, 5), feature_group_count=5),
    ConvCase("2d.depthwise-multiplier", (2, 6, 7, 4), (3, 2, 1, 12), (2, 1),
             feature_group_count=4),
    ConvCase("2d.batch-grouped", (6, 5, 6, 3), (2, 3, 3, 8), (2, 1), [(1, 0), (1, 2)],
             batch_group_count=2),
    ConvCase("2d.transposed", (2, 5, 4, 3), (3, 4, 3, 5), None, [(2, 1), (2, 3)],
             (2, 3)),
    ConvCase("2d.transposed-strided", (2, 5, 6, 3), (4, 5, 3, 4), (3, 2),
             [(3, 4), (2, 5)], (2, 4)),
    ConvCase("2d.transposed-dilated", (2, 5, 6, 3), (3, 2, 3, 4), (2, 3),
             [(4, 3), (6, 1)], (4, 6), (2, 3)),
    ConvCase("2d.transposed-taps-between", (2, 5, 6, 3), (3, 2, 3, 4), (2, 3),
             [(4, 3), (5, 1)], (4, 6), (2, 3)),
    ConvCase("2d.transposed-grouped", (2, 4, 5, 6), (3, 4, 3, 8), None,
             [(2, 2), (2, 1)], (2, 2), None, feature_group_count=2),
    ConvCase("2d.transposed-batch-grouped", (4, 4, 5, 3), (3, 2, 3, 6), None,
             [(1, 2), (0, 1)], (2, 3), None, batch_group_count=2),
    ConvCase("2d.negative", (2, 9, 10, 3), (2, 3, 3, 4), (2, 1), [(-2, 1), (3, -4)]),
    ConvCase("2d.negative-transposed", (2, 5, 6, 3), (2, 3, 3, 4), None,
             [(-3, 2), (1, -5)], (3, 4)),
    ConvCase("2d.cropped-away", (2, 3, 4, 3), (2, 2, 3, 4), None, [(-4, 5), (1, 1)]),
    ConvCase("2d.over-padded", (2, 4, 3, 3), (2, 3, 3, 4), (3, 2), [(5, 6), (4, 7)]),
    ConvCase("2d.kernel>input", (2, 3, 4, 3), (5, 6, 3, 4), None, [(3, 1), (2, 4)]),
    ConvCase("2d.unused-edge", (2, 8, 9, 3), (2, 3, 3, 4), (3, 4), "VALID"),
    ConvCase("2d.no-output", (2, 3, 4, 3), (5, 2, 3, 4), None, "VALID"),
    ConvCase("2d.no-batch", (0, 5, 6, 3), (3, 2, 3, 4)),
    ConvCase("2d.nchw", (2, 3, 7, 6), (4, 3, 2, 3), (2, 1), dimension_numbers=_NCHW),
    ConvCase("2d.nchw-transposed-grouped", (2, 6, 4, 5), (4, 3, 3, 2), None,
             [(1, 3), (2, 0)], (3, 2), None, _NCHW, 2),
    ConvCase("2d.odd-layout", (6, 2, 3, 7), (4, 3, 3, 2), (2, 1), [(2, 1), (0, 3)],
             None, (1, 2), ("HNCW", "OWIH", "CWNH")),
    ConvCase("3d.same", (2, 5, 4, 6, 3), (2, 3, 3, 3, 4), dimension_numbers=_3D),
    ConvCase("3d.strided", (1, 6, 5, 8, 3), (3, 2, 2, 3, 4), (2, 1, 3),
             [(1, 1), (0, 2), (2, 0)], dimension_numbers=_3D),
    ConvCase("3d.transposed", (1, 3, 4, 2, 3), (3, 2, 4, 3, 2), None,
             [(2, 1), (1, 1), (3, 2)], (2, 2, 3), None, _3D),
    ConvCase("3d.depthwise", (2, 4, 5, 3, 4), (2, 3, 3, 1, 4), None, "SAME", None, None,
             _3D, 4),
    ConvCase("4d.valid", (2, 3, 4, 3, 4, 2), (2, 2, 1, 3, 2, 3), (1, 2, 1, 1), "VALID",
             dimension_numbers=("NABHWC", "ABHWIO", "NABHWC")),
    ConvCase("xla#48713.1x1", (1, 15, 6, 8), (1, 1, 8, 4), None, [(0, 0), (-5, 1)]),
    ConvCase("xla#48713.1d", (2, 9, 2), (4, 2, 5), (3,), [(-3, 3)],
             dimension_numbers=_1D),
)  # fmt: skip


def random_case(seed: int, *, wild: bool = False) -> ConvCase:
    """Draw a small convolution, the same for the same seed.

    0 to 3 spatial axes, any layout, strides, dilations, groups of either kind, and
    padding of either sign, that crops no more than there is.

    Args:
      seed: of the generator.
      wild: four spatial axes and sizes of 0, too.

    Example:
      >>> random_case(7) == random_case(7)
      True
    """
    draw = random.Random(seed)
    spatial = "ADHW"[4 - draw.choice((0, 1, 1, 2, 2, 2, 3, *[4] * wild)) :]
    least, most = (int(draw.random() < 0.97), 5) if wild else (1, 9)
    groups = draw.choice((1, 1, 1, 2, 3))
    by_feature = draw.random() < 0.7
    axes: list[dict[str, Any]] = []
    for _ in spatial:
        size, lhs_dilation = draw.randint(least, most), draw.choice((1, 1, 1, 2, 3, 4))
        extent = dilated(size, lhs_dilation)
        low = draw.randint(-min(3, extent), 5)
        high = draw.randint(-min(3, extent + min(low, 0)), 5)
        axes.append(
            {
                "size": size,
                "taps": draw.randint(1, 5),
                "stride": draw.choice((1, 1, 2, 3)),
                "padding": (low, high),
                "lhs_dilation": lhs_dilation,
                "rhs_dilation": draw.choice((1, 1, 2, 3)),
            }
        )
    layouts = []
    for letters in ("NC", "OI", "NC"):
        layout = list(letters + spatial)
        if draw.random() < 0.5:
            draw.shuffle(layout)
        layouts.append("".join(layout))
    of_axis = dict(zip(spatial, axes, strict=True))
    # lax takes strides, padding and dilations in the order of the kernel's axes.
    ordered = [of_axis[letter] for letter in layouts[1] if letter in of_axis]
    in_features, features = draw.randint(1, 4), draw.randint(1, 4) * groups
    batch = draw.randint(least, 3)
    sizes = {
        "N": batch * (1 if by_feature else groups),
        "C": in_features * (groups if by_feature else 1),
        "I": in_features,
        "O": features,
    }

    def shape(layout: str, of_axes: str) -> tuple[int, ...]:
        return tuple(
            sizes[letter] if letter in sizes else of_axis[letter][of_axes]
            for letter in layout
        )

    return ConvCase(
        f"random.{seed}",
        shape(layouts[0], "size"),
        shape(layouts[1], "taps"),
        tuple(axis["stride"] for axis in ordered),
        tuple(axis["padding"] for axis in ordered),
        tuple(axis["lhs_dilation"] for axis in ordered),
        tuple(axis["rhs_dilation"] for axis in ordered),
        (layouts[0], layouts[1], layouts[2]),
        groups if by_feature else 1,
        1 if by_feature else groups,
    )
