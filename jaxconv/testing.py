"""A NumPy reference for convolutions, and checks for a user's own layer.

The reference is written tap by tap in float64 and computes with no code of JAX or of
the rest of this library, so that it can judge both; these only check its arguments.
Errors are told in units of

    ε · √terms · max|reference|,

where ε is the rounding error of the dtype and `terms` the length of the sum behind each
entry: what rounding alone makes of a sum of random terms is of the order of one unit.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.arguments import Caller, as_shape, conv_spec

_NAMES = {"lhs": "x", "rhs": "kernel"}

LIMIT = 2.0
"""Units of error that `check_conv` tolerates."""


class Errors(NamedTuple):
    """Error of an output and of its two gradients, in units of ε·√terms·max|ref|."""

    forward: float
    input_gradient: float
    kernel_gradient: float


class _Taps:
    """The loop over taps, in canonical order [N, C, *I], [F, C/G, *K], [N, F, *O].

    x̃ is x with zeros between its entries and around them, cropped where padding is
    negative. Tap t of all outputs reads the strided window of x̃ that begins at d·t.
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        kernel_shape: Sequence[int],
        window_strides: Sequence[int],
        padding: str | Sequence[tuple[int, int]],
        lhs_dilation: Sequence[int] | None,
        rhs_dilation: Sequence[int] | None,
    ):
        sizes, self.taps = x_shape[2:], kernel_shape[2:]
        ones = (1,) * len(sizes)
        self.strides, self.rhs_dilation = window_strides, rhs_dilation or ones
        self.lhs_dilation = lhs_dilation or ones
        extents = [
            (n - 1) * step + 1 if n else 0
            for n, step in zip(sizes, self.lhs_dilation, strict=True)
        ]
        windows = [
            (k - 1) * step + 1 if k else 0
            for k, step in zip(self.taps, self.rhs_dilation, strict=True)
        ]
        if isinstance(padding, str):
            padding = [
                _string_padding(padding, *axis)
                for axis in zip(extents, windows, window_strides, strict=True)
            ]
        self.padding, self.extents = padding, extents
        self.padded = [
            n + low + high for n, (low, high) in zip(extents, padding, strict=True)
        ]
        self.outputs = [
            max((n - window) // stride + 1, 0)
            for n, window, stride in zip(
                self.padded, windows, window_strides, strict=True
            )
        ]

    def __iter__(self) -> Iterator[tuple[tuple, tuple]]:
        """Index of the tap in the kernel, and of its window in x̃."""
        for tap in itertools.product(*map(range, self.taps)):
            starts = [d * t for d, t in zip(self.rhs_dilation, tap, strict=True)]
            window = [
                slice(
                    start, start + stride * (count - 1) + 1 if count else start, stride
                )
                for start, stride, count in zip(
                    starts, self.strides, self.outputs, strict=True
                )
            ]
            yield (..., *tap), (..., *window)

    def spread(self, x: np.ndarray) -> np.ndarray:
        """From x to x̃."""
        between = np.zeros((*x.shape[:2], *self.extents), x.dtype)
        between[(..., *(slice(None, None, step) for step in self.lhs_dilation))] = x
        edges = [(max(low, 0), max(high, 0)) for low, high in self.padding]
        around = np.pad(between, [(0, 0), (0, 0), *edges])
        return around[self._inner(around.shape[2:], sign=-1)]

    def gather(self, dx: np.ndarray) -> np.ndarray:
        """From a cotangent of x̃ to that of x: the transpose of `spread`."""
        edges = [(max(-low, 0), max(-high, 0)) for low, high in self.padding]
        around = np.pad(dx, [(0, 0), (0, 0), *edges])
        between = around[self._inner(around.shape[2:], sign=1)]
        return between[(..., *(slice(None, None, step) for step in self.lhs_dilation))]

    def _inner(self, sizes: Sequence[int], sign: int) -> tuple:
        """What is left without the padding of one sign."""
        return (
            ...,
            *(
                slice(max(sign * low, 0), n - max(sign * high, 0))
                for n, (low, high) in zip(sizes, self.padding, strict=True)
            ),
        )


def _string_padding(mode: str, size: int, window: int, stride: int) -> tuple[int, int]:
    """Padding by name, for one axis."""
    if mode.upper() == "VALID":
        return 0, 0
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if mode.upper() == "SAME" else (large, small)


def _orders(dimension_numbers: Sequence[Any] | None, rank: int) -> list[list[int]]:
    """Axes of input, kernel and output in canonical order."""
    if dimension_numbers is None:
        return [list(range(rank))] * 3
    if not isinstance(dimension_numbers[0], str):  # axis numbers already
        return [list(axes) for axes in dimension_numbers]
    spatial = [letter for letter in dimension_numbers[1] if letter not in "OI"]
    return [
        [layout.index(letter) for letter in [*first, *spatial]]
        for first, layout in zip(("NC", "OI", "NC"), dimension_numbers, strict=True)
    ]


def reference_conv(
    x: Any,
    kernel: Any,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Sequence[Any] | None = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
) -> np.ndarray:
    """Compute a convolution in NumPy, tap by tap.

    y[n, f, o] = Σ_{c, t} x̃[n, c, s·o + d·t − p] · k[f, c, t], as `jaxconv.spec` has it.

    Args:
      x: the input.
      kernel: the kernel.
      window_strides: as in `jax.lax.conv_general_dilated`, like all that follow.
      padding: a string, or pairs.
      lhs_dilation: input dilation, or None.
      rhs_dilation: kernel dilation, or None.
      dimension_numbers: three strings, or None for channels first.
      feature_group_count: groups of channels.
      batch_group_count: groups of the batch.

    Returns:
      The convolution in float64, complex128 or int64.

    Raises:
      TypeError: on a geometry that `jax.lax.conv_general_dilated` does not take.
      ValueError: on shapes and a geometry that do not fit.

    Example:
      >>> reference_conv(np.ones((1, 1, 4)), np.ones((1, 1, 3)), (1,), "SAME").tolist()
      [[[2.0, 3.0, 3.0, 2.0]]]
    """
    y, _, _ = _reference(
        "reference_conv",
        x,
        kernel,
        None,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
    )
    return y


def reference_conv_vjp(
    x: Any,
    kernel: Any,
    g: Any,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Sequence[Any] | None = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute a convolution, its input gradient and its kernel gradient in NumPy.

    With y of `reference_conv`, dx̃[n, c, s·o + d·t − p] = Σ_{f} k[f, c, t] · g[n, f, o],
    summed over all o and t that meet there, and
    dk[f, c, t] = Σ_{n, o} x̃[n, c, s·o + d·t − p] · g[n, f, o].

    Args:
      x: the input.
      kernel: the kernel.
      g: cotangent of the output, not conjugated; None for zeros.
      window_strides: as for `reference_conv`, like all that follow.
      padding: a string, or pairs.
      lhs_dilation: input dilation, or None.
      rhs_dilation: kernel dilation, or None.
      dimension_numbers: three strings, or None for channels first.
      feature_group_count: groups of channels.
      batch_group_count: groups of the batch.

    Returns:
      (y, dx, dkernel) in float64, complex128 or int64.

    Raises:
      TypeError: on a geometry that `jax.lax.conv_general_dilated` does not take.
      ValueError: on shapes and a geometry that do not fit.

    Example:
      >>> x, kernel = np.arange(3.0).reshape(1, 1, 3), np.array([[[1.0, 2.0]]])
      >>> g = np.array([[[1.0, 10.0]]])
      >>> for array in reference_conv_vjp(x, kernel, g, (1,), "VALID"):
      ...     print(*array.ravel())
      2.0 5.0
      1.0 12.0 20.0
      10.0 21.0
    """
    return _reference(
        "reference_conv_vjp",
        x,
        kernel,
        g,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
    )


def _reference(
    function: str,
    x: Any,
    kernel: Any,
    g: Any,
    *,
    dimension_numbers: Sequence[Any] | None,
    feature_group_count: int,
    batch_group_count: int,
    **axes: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`reference_conv_vjp`, called by the function that errors name."""
    x, kernel = _wide(x), _wide(kernel)
    conv_spec(
        Caller(function, _NAMES),
        x.shape,
        kernel.shape,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        **axes,
    )
    orders = _orders(dimension_numbers, x.ndim)
    x, kernel = x.transpose(orders[0]), kernel.transpose(orders[1])
    taps = _Taps(x.shape, kernel.shape, **axes)
    groups = feature_group_count * batch_group_count
    spatial = "hijklmop"[: x.ndim - 2]
    # Batch groups stand in the batch of x, feature groups in its channels.
    data = f"znc{spatial}" if batch_group_count > 1 else f"nzc{spatial}"
    x_tilde = _grouped(taps.spread(x), 0 if batch_group_count > 1 else 1, groups)
    weights = _grouped(kernel, 0, groups)  # [G, F/G, C, *K]
    batch = x.shape[0] // batch_group_count
    y = np.zeros(
        (batch, groups, kernel.shape[0] // groups, *taps.outputs),
        np.result_type(x, kernel),
    )
    g = (
        np.zeros_like(y)
        if g is None
        else _wide(g).transpose(orders[2]).reshape(y.shape)
    )
    dx, dweights = np.zeros_like(x_tilde), np.zeros_like(weights)
    for tap, window in taps:
        y += np.einsum(f"{data},zfc->nzf{spatial}", x_tilde[window], weights[tap])
        dx[window] += np.einsum(f"nzf{spatial},zfc->{data}", g, weights[tap])
        dweights[tap] = np.einsum(f"{data},nzf{spatial}->zfc", x_tilde[window], g)
    dx = taps.gather(dx.reshape(*x.shape[:2], *taps.padded))
    y = y.reshape(batch, kernel.shape[0], *taps.outputs)
    return (
        y.transpose(np.argsort(orders[2])),
        dx.transpose(np.argsort(orders[0])),
        dweights.reshape(kernel.shape).transpose(np.argsort(orders[1])),
    )


def _wide(array: Any) -> np.ndarray:
    """The array in the widest dtype of its kind."""
    array = np.asarray(array)
    if np.iscomplexobj(array):
        return array.astype(np.complex128)
    return array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else float)


def _grouped(array: np.ndarray, axis: int, groups: int) -> np.ndarray:
    """An axis split in (groups, rest)."""
    shape = array.shape
    return array.reshape(
        *shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :]
    )


def error_units(got: Any, reference: Any, dtype: Any, terms: int) -> float:
    """Largest error in units of ε·√terms·max|reference|.

    Args:
      got: the array to judge.
      reference: what it should be.
      dtype: whose ε counts; 1 for integers, which must be exact.
      terms: length of the sum behind each entry.

    Returns:
      The error, ≥ 0; infinite where shapes differ, or where either is not finite.

    Example:
      >>> error_units(np.array([1.0]), np.array([1.0]), np.float32, 9)
      0.0
    """
    got, reference = _wide(got), _wide(reference)
    if got.shape != reference.shape:
        return math.inf
    if got.size == 0:
        return 0.0
    if not (np.isfinite(got).all() and np.isfinite(reference).all()):
        return math.inf
    worst = np.abs(got - reference).max()
    if jnp.issubdtype(dtype, jnp.integer):
        return float(worst)
    unit = float(jnp.finfo(dtype).eps) * math.sqrt(max(terms, 1))
    scale = np.abs(reference).max()
    return float(worst / (unit * scale)) if scale else (math.inf if worst else 0.0)


def sum_lengths(
    kernel_shape: Sequence[int],
    output_shape: Sequence[int],
    *,
    dimension_numbers: Sequence[Any] | None = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    **others: Any,
) -> tuple[int, int, int]:
    """Lengths of the sums behind each entry of y, of dx and of dkernel.

    Args:
      kernel_shape: shape of the kernel.
      output_shape: shape of y.
      dimension_numbers: as `reference_conv` takes it.
      feature_group_count: groups of channels.
      batch_group_count: groups of the batch.
      **others: what else `reference_conv` takes, which changes no length.

    Example:
      >>> sum_lengths((4, 3, 5), (2, 4, 7))  # channels · taps, features · taps, outputs
      (15, 20, 14)
    """
    orders = _orders(dimension_numbers, len(kernel_shape))
    features, channels, *taps = (kernel_shape[axis] for axis in orders[1])
    batch, _, *outputs = (output_shape[axis] for axis in orders[2])
    groups = feature_group_count * batch_group_count
    return (
        math.prod(taps) * channels,
        math.prod(taps) * features // groups,
        math.prod((batch, *outputs)),
    )


def draw(seed: int, dtype: Any, *shapes: Sequence[int]) -> list[np.ndarray]:
    """Standard normal arrays of a dtype, rounded to it.

    Args:
      seed: of the generator.
      dtype: any numeric one; integers are drawn from −4 to 4.
      *shapes: one for each array.

    Example:
      >>> [array.shape for array in draw(0, np.float32, (2, 3), (4,))]
      [(2, 3), (4,)]
    """
    generator = np.random.default_rng(seed)
    arrays = []
    for shape in shapes:
        if jnp.issubdtype(dtype, jnp.integer):
            array = generator.integers(-4, 5, shape)
        else:
            array = generator.standard_normal(shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            array = array + 1j * generator.standard_normal(shape)
        arrays.append(array.astype(dtype))
    return arrays


class Trial:
    """Random operands for one convolution, and what should come of them.

    Attributes:
      caller: whom to name in errors.
      operands: x, kernel and g.
      references: y, dx and dkernel in float64, complex128 or int64.
      terms: length of the sum behind each entry of the three.
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        kernel_shape: Sequence[int],
        *,
        dtype: Any = np.float32,
        seed: int = 0,
        **geometry: Any,
    ):
        """Draw the operands and compute the references.

        Args:
          x_shape: shape of the input.
          kernel_shape: shape of the kernel.
          dtype: of all operands.
          seed: of the generator.
          **geometry: as `reference_conv` takes it.
        """
        x_shape = as_shape("check_conv", "x_shape", x_shape)
        kernel_shape = as_shape("check_conv", "kernel_shape", kernel_shape)
        geometry.setdefault("window_strides", (1,) * (len(x_shape) - 2))
        caller = Caller("check_conv", _NAMES)
        unknown = geometry.keys() - inspect.signature(reference_conv).parameters.keys()
        if unknown or "padding" not in geometry:
            raise TypeError(
                "check_conv: the geometry must be told in the keywords of "
                "jax.lax.conv_general_dilated, padding among them, but got "
                f"{geometry}. Pass window_strides=..., padding=..., ...."
            )
        self.caller = caller.given(x_shape, kernel_shape)
        conv_spec(self.caller, x_shape, kernel_shape, **geometry)
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"check_conv: JAX must have the dtype, but got dtype={dtype} while "
                "64-bit types are off. Set jax_enable_x64."
            )
        self.dtype = dtype
        x, kernel = draw(seed, dtype, x_shape, kernel_shape)
        y = reference_conv(x, kernel, **geometry)
        (g,) = draw(seed + 1, dtype, y.shape)
        self.operands = tuple(map(jnp.asarray, (x, kernel, g)))
        self.references = reference_conv_vjp(x, kernel, g, **geometry)
        self.terms = sum_lengths(kernel_shape, y.shape, **geometry)

    def results(self, conv: Callable[[jax.Array, jax.Array], jax.Array]) -> tuple:
        """What `conv` and its `jax.vjp` make of the operands: y, dx and dkernel."""

        def run(x: jax.Array, kernel: jax.Array, g: jax.Array):
            y, pull_back = jax.vjp(conv, x, kernel)
            self._demand_like(g, y)
            return y, *pull_back(g)

        return jax.jit(run)(*self.operands)

    def _demand_like(self, g: jax.Array, y: Any) -> None:
        """Fail a layer whose result is not of the cotangent's shape and dtype."""

        def type_of(part: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(jnp.shape(part), jnp.result_type(part))

        got = jax.tree.map(type_of, y)
        if got != type_of(g):
            rule = f"conv must return an array of shape {g.shape} and dtype {g.dtype}"
            advice = "Compare the geometry and dtype with what the layer computes."
            raise self.caller.error(
                AssertionError, rule, "conv(x, kernel)", got, advice
            )

    def errors(self, results: Sequence[Any]) -> Errors:
        """Errors of results in units of ε·√terms·max|reference|."""
        forward, input_gradient, kernel_gradient = (
            error_units(result, reference, self.dtype, n)
            for result, reference, n in zip(
                results, self.references, self.terms, strict=True
            )
        )
        return Errors(forward, input_gradient, kernel_gradient)


def check_conv(
    conv: Callable[[jax.Array, jax.Array], jax.Array],
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    *,
    dtype: Any = np.float32,
    seed: int = 0,
    limit: float = LIMIT,
    **geometry: Any,
) -> Errors:
    """Check your own convolution layer and its gradients against the NumPy reference.

    Args:
      conv: computes y from (x, kernel); differentiable by `jax.vjp`.
      x_shape: shape of the input.
      kernel_shape: shape of the kernel.
      dtype: of both, floating or complex.
      seed: of the random operands.
      limit: units of ε·√terms·max|reference| to tolerate.
      **geometry: what it should compute, as `jax.lax.conv_general_dilated` takes it:
        window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
        feature_group_count, batch_group_count.

    Returns:
      The errors, each at most `limit`.

    Raises:
      AssertionError: if an error is above `limit`, or `conv` returns anything but an
        array of the shape and dtype that y should have.
      TypeError: on shapes that are none, a geometry that
        `jax.lax.conv_general_dilated` does not take, or a dtype without gradients.
      ValueError: on shapes and a geometry that do not fit, or a dtype of 64 bits while
        these are off.

    Example:
      >>> from jaxconv import ConvParams, conv_forward
      >>> layer = lambda x, kernel: conv_forward(ConvParams(kernel), x, strides=2)
      >>> errors = check_conv(layer, (2, 9, 3), (3, 3, 4), window_strides=(2,),
      ...                     padding="SAME", dimension_numbers=("NWC", "WIO", "NWC"))
      >>> errors.forward < 2
      True
    """
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            "check_conv: dtype must be floating or complex, as gradients are compared "
            f"too, but got dtype={np.dtype(dtype).name}. Pass one such as np.float32."
        )
    trial = Trial(x_shape, kernel_shape, dtype=dtype, seed=seed, **geometry)
    errors = trial.errors(trial.results(conv))
    wrong = {
        role: error for role, error in errors._asdict().items() if not error <= limit
    }
    if wrong:
        raise AssertionError(
            f"check_conv: errors must be at most {limit:g} units of ε·√terms·max|ref|, "
            f"but got {', '.join(f'{k}={v:.3g}' for k, v in wrong.items())} "
            f"(x_shape={tuple(x_shape)}, kernel_shape={tuple(kernel_shape)}, "
            f"dtype={np.dtype(dtype).name}, {geometry}). Compare the geometry with "
            "what the layer computes."
        )
    return errors
