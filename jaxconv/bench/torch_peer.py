"""The same layers through torch: a program of its own, that needs torch alone.

It reads one layer per line of its input, as JSON, and answers with a line of seconds.
Each role runs in torch's two memory layouts, and the faster counts.
"""

import importlib
import json
import sys
import time


def main() -> None:
    """Answer until the input ends."""
    torch = importlib.import_module("torch")
    F = importlib.import_module("torch.nn.functional")
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        seconds = min(
            _seconds(torch, F, asked, channels_last) for channels_last in (False, True)
        )
        print(json.dumps(seconds), flush=True)


def _seconds(torch, F, asked: dict, channels_last: bool) -> float:
    """Fastest run of the layer's role in one memory layout."""
    rank = len(asked["strides"])
    dtype = getattr(torch, asked["dtype"])
    transposed = max(asked["lhs_dilation"]) > 1
    layouts = {2: torch.channels_last, 3: torch.channels_last_3d}
    layout = layouts.get(rank) if channels_last else None

    def array(*shape):
        drawn = torch.randn(*shape, dtype=dtype)
        return drawn if layout is None else drawn.contiguous(memory_format=layout)

    x, kernel = array(*asked["x_shape"]), asked["kernel_shape"]
    lows, highs = zip(*asked["padding"], strict=True)
    reach = [
        d * (k - 1) for d, k in zip(asked["rhs_dilation"], kernel[2:], strict=True)
    ]
    if transposed:  # a convolution with a dilated input is torch's transposed one
        features, channels = kernel[:2]
        kernel = (channels * asked["groups"], features // asked["groups"], *kernel[2:])
        padding = [r - low for r, low in zip(reach, lows, strict=True)]
        more = [high - low for low, high in zip(lows, highs, strict=True)]
        beyond = [max(points, 0) for points in more]
        less = [max(-points, 0) for points in more]
        strides = asked["lhs_dilation"]
        edges = None
    else:
        strides, beyond, less = asked["strides"], [0] * rank, [0] * rank
        same = lows == highs
        padding = list(lows) if same else [0] * rank
        pairs = zip(reversed(lows), reversed(highs), strict=True)
        edges = None if same else [pad for pair in pairs for pad in pair]
    weight = array(*kernel)
    options = (
        *(strides, padding, asked["rhs_dilation"]),
        *(transposed, beyond, asked["groups"]),
    )

    # What torch cannot leave out at the end of a transposed layer is cut off.
    cut = [pad for points in reversed(less) for pad in (0, -points)]
    uncut = [-pad for pad in cut]

    def forward():
        inner = x if edges is None else F.pad(x, edges)
        y = torch.ops.aten.convolution(inner, weight, None, *options)
        return F.pad(y, cut) if any(less) else y

    with torch.no_grad():
        g = array(*forward().shape)
        masks = {"input_gradient": (True, False), "kernel_gradient": (False, True)}

        def backward():
            inner = x if edges is None else F.pad(x, edges)
            whole = F.pad(g, uncut) if any(less) else g
            wanted = [*masks[asked["role"]], False]
            return torch.ops.aten.convolution_backward(
                whole, inner, weight, None, *options, wanted
            )

        run = forward if asked["role"] == "forward" else backward
        run()
        times = []
        for _ in range(asked["rounds"]):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
