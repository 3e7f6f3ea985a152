"""Layers as pure functions: values, gradients, parameters, padding and batches."""

import functools
import itertools
from typing import Any

import chex
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from jax import lax

import jaxconv
from jaxconv import ConvParams

NHWC = ("NHWC", "HWIO", "NHWC")

LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"strides": (2, 3), "padding": "SAME_LOWER"},
    "dilated-grouped": {"dilation": (2, 1), "groups": 2, "padding": ((1, 2), (0, -1))},
    "causal": {"padding": "CAUSAL", "dilation": (1, 2)},
    "circular": {"padding": "CIRCULAR", "strides": 2, "dilation": (2, 1)},
    "reflect": {"padding": "reflect", "strides": (1, 2)},
    "replicate": {"padding": "REPLICATE", "dilation": 2, "strides": 2},
    "ints": {"padding": (2, (1, 0)), "strides": 3},
    "int": {"padding": 1, "input_dilation": (2, 3)},
    "nchw": {"dimension_numbers": ("NCHW", "OIHW", "NCHW"), "strides": (2, 1)},
    "odd-layout": {"dimension_numbers": ("HNCW", "OWIH", "CWNH"), "strides": (2, 1)},
}
TRANSPOSED: dict[str, dict[str, Any]] = {
    "plain": {"strides": (2, 3)},
    "valid": {"strides": 2, "padding": "VALID", "dilation": (1, 2)},
    "grouped": {"strides": 2, "groups": 2, "padding": ((1, 2), 0)},
    "output-padding": {"strides": (2, 3), "padding": 1, "output_padding": (1, 2)},
    "consistent": {"strides": 2, "padding": 1, "use_consistent_padding": True},
    "turned": {"strides": 2, "transpose_kernel": True},
    "turned-grouped": {"strides": (3, 2), "transpose_kernel": True, "groups": 2},
    "circular": {"strides": (2, 1), "padding": "CIRCULAR"},
    "circular-turned": {"strides": 2, "padding": "CIRCULAR", "transpose_kernel": True},
    "nchw": {"strides": 2, "dimension_numbers": ("NCHW", "OIHW", "NCHW")},
}


def operands(options, integers, batch=(2,), turned=False):
    """Parameters and an input: 4 to 6 features, 3×4 taps, 6×7 points."""
    sizes = {"N": None, "C": 4, "H": 6, "W": 7}
    groups = options.get("groups", 1)
    taps = {"H": 3, "W": 4, "I": 4 // groups, "O": 6}
    if turned:
        taps = {"H": 3, "W": 4, "I": 6 // groups, "O": 4}
    data, weights, _ = options.get("dimension_numbers", NHWC)
    x_shape = [sizes[letter] for letter in data]
    if batch:
        x_shape[data.index("N")] = batch[-1]
    else:
        del x_shape[data.index("N")]
    kernel = integers(*(taps[letter] for letter in weights))
    return ConvParams(kernel, integers(6)), integers(*batch[:-1], *x_shape)


KINDS = {
    "conv": (
        LAYERS,
        jaxconv.conv_forward,
        jaxconv.conv_vjp,
        jaxconv.conv,
    ),
    "transposed": (
        TRANSPOSED,
        jaxconv.conv_transpose_forward,
        jaxconv.conv_transpose_vjp,
        jaxconv.conv_transpose,
    ),
}
each_layer = pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, (layers, *_) in KINDS.items() for name in layers],
)


def layer_of(kind, name):
    layers, *functions = KINDS[kind]
    return layers[name], [functools.partial(f, **layers[name]) for f in functions]


@each_layer
@pytest.mark.parametrize("batch", [(), (2,), (3, 1, 2)])
def test_vjp_is_that_of_jax_grad(kind, name, batch, integers):
    options, (forward, vjp, conv) = layer_of(kind, name)
    turned = options.get("transpose_kernel", False)
    params, x = operands(options, integers, batch, turned)
    g = integers(*jax.eval_shape(forward, params, x).shape)

    @jax.jit
    def run(params, x, g):
        return {
            "grad": (forward(params, x), jax.vjp(forward, params, x)[1](g)),
            "by hand": (forward(params, x), vjp(params, x, g)),
            "custom_vjp": (conv(params, x), jax.vjp(conv, params, x)[1](g)),
        }

    results = run(params, x, g)
    y, expected = results.pop("grad")
    for got in results.values():
        chex.assert_trees_all_equal_shapes_and_dtypes(got, (y, expected))
        chex.assert_trees_all_equal(got, (y, expected))
    # ⟨y − bias, g⟩ = ⟨x, dx⟩ = ⟨kernel, dkernel⟩, exactly.
    (dkernel, dbias), dx = jax.device_get(expected)
    inner = (np.asarray(y, np.float64) * g).sum() - (params.bias * dbias).sum()
    assert inner == (x * dx).sum() == (params.kernel * dkernel).sum()


def by_lax(x: Any, kernel: Any, layout: Any, **options: Any) -> jax.Array:
    """A layer by lax, from options that leave nothing to be found out but windows."""
    taps = [n for letter, n in zip(layout[1], kernel.shape, strict=True)
            if letter not in "IO"]  # fmt: skip
    dilation = options.get("dilation", (1, 1))
    windows = [d * (n - 1) + 1 for n, d in zip(taps, dilation, strict=True)]
    padding = options.get("padding", "SAME")
    if padding == "CAUSAL":
        padding = [(window - 1, 0) for window in windows]
    elif padding in BORDERS:
        axes = [layout[0].index(letter) for letter in layout[1] if letter not in "IO"]
        edges = [(0, 0)] * x.ndim
        for axis, window in zip(axes, windows, strict=True):
            edges[axis] = ((window - 1) // 2, window // 2)
        x, padding = np.pad(x, edges, mode=BORDERS[padding]), "VALID"
    return lax.conv_general_dilated(
        x,
        kernel,
        options.get("strides", (1, 1)),
        padding,
        lhs_dilation=options.get("input_dilation"),
        rhs_dilation=dilation,
        dimension_numbers=layout,
        feature_group_count=options.get("groups", 1),
    )


BORDERS: dict[Any, Any] = {
    "CIRCULAR": "wrap",
    "reflect": "reflect",
    "REPLICATE": "edge",
}
IN_FULL = {
    "ints": {"padding": ((2, 2), (1, 0))},
    "int": {"padding": ((1, 1), (1, 1))},
}
"""Padding for which the layers have shorter forms."""


@pytest.mark.parametrize("name", LAYERS)
def test_options_of_layers_mean_what_lax_has_for_them(name, integers):
    options = LAYERS[name]
    params, x = operands(options, integers)
    layout = options.get("dimension_numbers", NHWC)
    in_full = {
        key: (value,) * 2 if isinstance(value, int) and key != "groups" else value
        for key, value in {**options, **IN_FULL.get(name, {})}.items()
    }
    in_full.pop("dimension_numbers", None)
    others = tuple(i for i, letter in enumerate(layout[2]) if letter != "C")
    bias = np.expand_dims(np.asarray(params.bias), others)
    expected = by_lax(x, params.kernel, layout, **in_full) + bias
    np.testing.assert_array_equal(jaxconv.conv_forward(params, x, **options), expected)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
@pytest.mark.parametrize("strides", [1, 2, (3, 2)])
def test_options_of_transposed_layers_mean_what_lax_has_for_them(
    strides, dilation, padding, integers
):
    kernel, x = integers(3, 2, 4, 6), integers(2, 5, 4, 4)
    y = jaxconv.conv_transpose_forward(
        ConvParams(kernel), x, strides=strides, dilation=dilation, padding=padding
    )
    both = [(n,) * 2 if isinstance(n, int) else n for n in (strides, dilation)]
    stock = lax.conv_transpose(x, kernel, both[0], padding, both[1])
    np.testing.assert_array_equal(y, stock)


@each_layer
def test_batch_axes_are_only_batch_axes(kind, name, integers):
    options, (forward, _, _) = layer_of(kind, name)
    turned = options.get("transpose_kernel", False)
    params, x = operands(options, integers, (3, 1, 2), turned)
    mapped = jax.jit(jax.vmap(jax.vmap(functools.partial(forward, params))))(x)
    np.testing.assert_array_equal(forward(params, x), mapped)
    axis = options.get("dimension_numbers", NHWC)[0].index("N")
    out_axis = options.get("dimension_numbers", NHWC)[2].index("N")
    one = forward(params, jnp.take(x[1, 0], 1, axis))
    np.testing.assert_array_equal(one, jnp.take(mapped[1, 0], 1, out_axis))


@pytest.mark.parametrize(
    ("padding", "mode"),
    [("CIRCULAR", "wrap"), ("REFLECT", "reflect"), ("REPLICATE", "edge")],
)
@pytest.mark.parametrize(("strides", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_border_is_that_of_numpy(padding, mode, strides, dilation, integers):
    x, kernel = integers(2, 8, 3), integers(4, 3, 5)
    window = 3 * dilation + 1
    edges = ((window - 1) // 2, window // 2)
    padded = jnp.asarray(np.pad(x, [(0, 0), edges, (0, 0)], mode=mode))
    y = jaxconv.conv_forward(
        ConvParams(kernel), x, padding=padding, strides=strides, dilation=dilation
    )
    expected = lax.conv_general_dilated(
        padded,
        kernel,
        (strides,),
        "VALID",
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    np.testing.assert_array_equal(y, expected)
    assert y.shape[1] == -(-8 // strides)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", "REFLECT", 1, (2,)])
@pytest.mark.parametrize(("strides", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_conv_is_that_of_flax(padding, strides, dilation, integers):
    layer = nn.Conv(
        6, (4,), strides, padding, kernel_dilation=dilation, feature_group_count=2
    )
    x = integers(2, 9, 4)
    variables = {"params": {"kernel": integers(4, 2, 6), "bias": integers(6)}}
    y = jaxconv.conv_forward(
        variables["params"], x, strides=strides, dilation=dilation, padding=padding,
        groups=2,
    )  # fmt: skip
    np.testing.assert_array_equal(y, layer.apply(variables, x))


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", 1, ((2, 0), (1, 3))])
@pytest.mark.parametrize("taps", [(3, 4), (2, 5), (6, 1)])
@pytest.mark.parametrize("transpose_kernel", [False, True])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3), (3, 1)])
def test_transposed_conv_is_that_of_flax(
    padding, taps, transpose_kernel, strides, integers
):
    layer = nn.ConvTranspose(
        6, taps, strides, padding, transpose_kernel=transpose_kernel
    )
    x = integers(2, 5, 4, 3)
    features = (6, 3) if transpose_kernel else (3, 6)
    params = {"kernel": integers(*taps, *features), "bias": integers(6)}
    y = jaxconv.conv_transpose_forward(
        params, x, strides=strides, padding=padding, transpose_kernel=transpose_kernel
    )
    np.testing.assert_array_equal(y, layer.apply({"params": params}, x))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_parameters_of_haiku_layers(layout, integers):
    layer = hk.without_apply_rng(
        hk.transform(lambda x: hk.Conv2D(6, (3, 2), 2, data_format=layout)(x))
    )
    x = integers(2, 7, 8, 4)  # of a layer with the channels first 7 channels
    ((name, params),) = layer.init(jax.random.key(0), x).items()
    params = {"w": integers(*params["w"].shape), "b": integers(*params["b"].shape)}
    options = {"strides": 2, "dimension_numbers": (layout, "HWIO", layout)}
    y = jaxconv.conv_forward(params, x, **options)
    expected, pull_back = jax.vjp(lambda p, x: layer.apply({name: p}, x), params, x)
    np.testing.assert_array_equal(y, expected)
    gradients = jaxconv.conv_vjp(params, x, y, **options)
    chex.assert_trees_all_equal(gradients, pull_back(y))


@pytest.mark.parametrize(
    "params",
    [
        ConvParams(jnp.ones((3, 2, 4))),
        ConvParams(jnp.ones((3, 2, 4)), jnp.ones(4)),
        {"kernel": jnp.ones((3, 2, 4)), "bias": None},
        {"bias": jnp.ones(4), "kernel": jnp.ones((3, 2, 4))},
        FrozenDict({"kernel": jnp.ones((3, 2, 4)), "bias": jnp.ones(4)}),
    ],
)
def test_gradients_come_in_the_structure_of_the_parameters(params):
    x = jnp.ones((5, 2))
    y = jaxconv.conv(params, x)
    for dparams in (
        jaxconv.conv_vjp(params, x, y)[0],
        jax.grad(lambda params: jaxconv.conv(params, x).sum())(params),
    ):
        assert type(dparams) is type(params)
        chex.assert_trees_all_equal_shapes_and_dtypes(dparams, params)


def test_wrt_computes_only_what_it_names(integers):
    params, x = ConvParams(integers(3, 2, 4), integers(4)), integers(2, 5, 2)
    g = integers(2, 5, 4)
    dparams, dx = jaxconv.conv_vjp(params, x, g)
    only_params, no_dx = jaxconv.conv_vjp(params, x, g, wrt=["params"])
    no_dparams, only_dx = jaxconv.conv_vjp(params, x, g, wrt=["x"])
    assert no_dx is None
    assert no_dparams is None
    chex.assert_trees_all_equal((only_params, only_dx), (dparams, dx))
    counts: dict[Any, int] = {("params",): 1, ("x",): 1, ("params", "x"): 2}
    for wrt, count in counts.items():
        jaxpr = jax.make_jaxpr(functools.partial(jaxconv.conv_vjp, wrt=wrt))(
            params, x, g
        )
        convolutions = [eqn for eqn in jaxpr.eqns if "jaxconv" in str(eqn.primitive)]
        assert len(convolutions) == count  # and the forward is not computed again


def test_input_and_kernel_gradients_on_their_own(integers):
    for options in ({}, LAYERS["dilated-grouped"], LAYERS["reflect"]):
        params, x = operands(options, integers, (3, 2))
        y = jaxconv.conv_forward(params, x, **options)
        g = integers(*y.shape)
        dparams, dx = jaxconv.conv_vjp(params, x, g, **options)
        got = jaxconv.conv_input_grad(x.shape, params.kernel, g, **options)
        np.testing.assert_array_equal(got, dx)
        got = jaxconv.conv_kernel_grad(x, np.shape(params.kernel), g, **options)
        np.testing.assert_array_equal(got, dparams.kernel)  # pyright: ignore[reportOptionalMemberAccess]


def test_transposed_is_the_transpose_of_the_convolution(integers):
    # With the kernel turned and consistent padding, as in PyTorch.
    kernel, y = integers(3, 4, 2, 6), integers(2, 5, 4, 6)
    padding, strides, size = ((1, 2), (0, 1)), (2, 3), (9, 13)
    forward = functools.partial(
        jaxconv.conv_forward, ConvParams(kernel), strides=strides, padding=padding
    )
    x_type = jax.ShapeDtypeStruct((2, *size, 2), jnp.float32)
    assert jax.eval_shape(forward, x_type).shape == y.shape
    (expected,) = jax.linear_transpose(forward, x_type)(y)
    got = jaxconv.conv_transpose_forward(
        ConvParams(kernel),
        y,
        strides=strides,
        padding=padding,
        output_padding=tuple(
            n - (s * (o - 1) + k - sum(pair))
            for n, s, o, k, pair in zip(
                size, strides, (5, 4), (3, 4), padding, strict=True
            )
        ),
        transpose_kernel=True,
        use_consistent_padding=True,
    )
    np.testing.assert_array_equal(got, expected)


def test_forward_mode_and_hessian_of_conv_forward(integers):
    params, x = ConvParams(integers(3, 1, 2), integers(2)), integers(4, 1)

    def loss(params):
        return (jaxconv.conv_forward(params, x, padding="REFLECT") ** 2).sum()

    forward, reverse = jax.jacfwd(loss)(params), jax.grad(loss)(params)
    chex.assert_trees_all_equal(forward, reverse)
    hessian = jax.hessian(loss)(params)
    assert hessian.kernel.kernel.shape == (3, 1, 2, 3, 1, 2)


def test_low_precision_and_preferred_types(integers):
    params = ConvParams(
        *(a.astype(jnp.bfloat16) for a in (integers(3, 2, 4), integers(4)))
    )
    x = integers(2, 5, 2).astype(jnp.bfloat16)
    y = jaxconv.conv_forward(params, x, preferred_element_type=jnp.float32)
    assert y.dtype == jnp.float32
    dparams, dx = jaxconv.conv_vjp(params, x, y, preferred_element_type=jnp.float32)
    assert dparams is not None
    assert dx is not None
    assert {a.dtype for a in (*dparams, dx)} == {jnp.dtype(jnp.bfloat16)}


def test_no_spatial_axes_is_a_dense_layer(integers):
    params, x = ConvParams(integers(3, 4), integers(4)), integers(5, 3)
    y = jaxconv.conv_forward(params, x)
    np.testing.assert_array_equal(y, x @ params.kernel + params.bias)
    dparams, dx = jaxconv.conv_vjp(params, x, y)
    assert dparams is not None
    np.testing.assert_array_equal(dparams.kernel, x.T @ y)
    np.testing.assert_array_equal(dx, y @ np.transpose(params.kernel))


def test_zero_sizes():
    params = ConvParams(jnp.ones((3, 2, 4)), jnp.ones(4))
    shapes = (0, 5, 2), (2, 0, 2), (0, 2), (0, 3, 5, 2), (3, 0, 5, 2)
    for shape, padding in itertools.product(shapes, ("SAME", "REFLECT")):
        if shape[-2] == 0 and padding == "REFLECT":
            continue  # no point to reflect
        x = jnp.ones(shape)
        y = jaxconv.conv_forward(params, x, padding=padding)
        assert y.shape == (*shape[:-1], 4)
        dparams, dx = jaxconv.conv_vjp(params, x, y, padding=padding)
        assert dparams is not None
        chex.assert_trees_all_equal(dparams.kernel, jnp.zeros((3, 2, 4)))
        assert dx is not None
        assert dx.shape == shape


def test_init_draws_lecun_normal_kernels():
    params = jaxconv.init_conv_params(jax.random.key(0), 64, 32, (3, 5), groups=2)
    assert isinstance(params.kernel, jax.Array)
    assert params.kernel.shape == (3, 5, 32, 32)
    assert abs(params.kernel.std() * np.sqrt(3 * 5 * 32) - 1) < 0.02
    assert params.bias is not None
    chex.assert_trees_all_equal(params.bias, jnp.zeros(32))
    bare = jaxconv.init_conv_params(
        jax.random.key(0), 1, 2, 3, bias=False, dtype=jnp.bfloat16,
        kernel_init=jax.nn.initializers.ones,
    )  # fmt: skip
    assert bare.bias is None
    chex.assert_trees_all_equal(bare.kernel, jnp.ones((3, 1, 2), jnp.bfloat16))


def test_small_integers_are_wrapped_around_in_their_own_dtype():
    params = {"kernel": jnp.ones((3, 2, 4), jnp.int8)}
    x = jnp.ones((5, 2), jnp.int8)
    y = jaxconv.conv_transpose_forward(params, x, strides=2, padding="CIRCULAR")
    assert y.dtype == jnp.int8


@pytest.mark.parametrize("padding", ["CIRCULAR", "REFLECT", "REPLICATE", "CAUSAL"])
def test_a_kernel_without_taps_has_windows_without_points(padding):
    params = {"kernel": jnp.ones((0, 2, 4))}
    y = jaxconv.conv_forward(params, jnp.ones((5, 2)), padding=padding)
    valid = jaxconv.conv_forward(params, jnp.ones((5, 2)), padding="VALID")
    np.testing.assert_array_equal(y, valid)


def test_a_kernel_without_taps_gives_the_bias():
    params = ConvParams(jnp.ones((0, 2, 4)), jnp.arange(4.0))
    y = jaxconv.conv_forward(params, jnp.ones((5, 2)), padding="VALID")
    np.testing.assert_array_equal(y, np.tile(np.arange(4.0), (6, 1)))
    dparams, dx = jaxconv.conv_vjp(params, jnp.ones((5, 2)), y, padding="VALID")
    assert dparams is not None
    assert dparams.kernel.shape == (0, 2, 4)
    np.testing.assert_array_equal(dx, jnp.zeros((5, 2)))


def test_lists_are_arrays():
    kernel, x = [[[1.0, 2.0]]], [[1.0], [3.0]]

    def total(function, params):
        return function(params, x).sum()

    for function in (jaxconv.conv, jaxconv.conv_forward):
        gradient = jax.grad(functools.partial(total, function))
        got = gradient(ConvParams(jnp.asarray(kernel)))
        np.testing.assert_array_equal(got.kernel, [[[4.0, 4.0]]])


def test_a_real_bias_of_a_complex_layer(integers):
    params = ConvParams(integers(3, 2, 4) + 1j * integers(3, 2, 4), integers(4))
    x = integers(5, 2) + 1j * integers(5, 2)
    y = jaxconv.conv_forward(params, x)
    got = jaxconv.conv_vjp(params, x, y)
    expected = jax.vjp(jaxconv.conv_forward, params, x)[1](y)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    chex.assert_trees_all_equal(got, expected)


def test_integers_have_the_gradients_that_jax_gives_them():
    x, kernel = jnp.full((1, 8, 2), 100, jnp.int8), jnp.ones((3, 2, 4), jnp.int8)
    g = jnp.full((1, 8, 4), 0.3)
    options: dict[str, Any] = {"preferred_element_type": jnp.float32}
    params = jaxconv.ConvParams(kernel, jnp.zeros(4))
    forward = functools.partial(jaxconv.conv_forward, **options)
    own: Any = jaxconv.conv_vjp(params, x, g, **options)
    stock = jax.vjp(forward, params, x)[1](g)
    chex.assert_trees_all_equal_shapes_and_dtypes(own, stock)
    assert own[1].dtype == jax.dtypes.float0
    np.testing.assert_allclose(own[0].bias, 2.4, rtol=1e-6)
    counts = jaxconv.ConvParams(jnp.ones((3, 2, 4)), jnp.zeros(4, int))
    dparams: Any = jaxconv.conv_vjp(counts, x.astype(float), g)[0]
    assert dparams.bias.dtype == jax.dtypes.float0
    assert dparams.kernel.dtype == jnp.float32


def test_layers_are_exported_with_their_parameters():
    params = jaxconv.init_conv_params(jax.random.key(0), 6, 4, (3, 3))
    x = jnp.ones((2, 8, 8, 6))
    exported = jax.export.export(jax.jit(jaxconv.conv_forward))(params, x)
    again = jax.export.deserialize(exported.serialize(vjp_order=1))
    chex.assert_trees_all_equal(again.call(params, x), jaxconv.conv_forward(params, x))


LAYER_FUNCTIONS = (
    *(jaxconv.conv_forward, jaxconv.conv),
    *(jaxconv.conv_transpose_forward, jaxconv.conv_transpose),
)


@pytest.mark.parametrize("layer", LAYER_FUNCTIONS, ids=lambda fn: fn.__name__)
def test_gradients_have_the_precision_that_surrounded_the_layer(layer):
    def loss(kernel, x):
        with jax.default_matmul_precision("highest"):
            return layer({"kernel": kernel}, x).sum()

    gradients = jax.grad(loss, (0, 1))
    told = jaxconv.explain(gradients, jnp.ones((3, 3, 2, 4)), jnp.ones((2, 8, 8, 2)))
    precisions = {each.problem.precision for each in told.convolutions}
    assert precisions == {lax.Precision.HIGHEST}
    assert len(told.convolutions) == 3


@pytest.mark.parametrize("layer", LAYER_FUNCTIONS, ids=lambda fn: fn.__name__)
def test_gradients_have_the_widths_that_surrounded_the_layer(layer):
    def loss(kernel, x):
        with jax.enable_x64(True):
            y = layer({"kernel": kernel.astype("float64")}, x.astype("float64"))
            assert y.dtype == jnp.float64
            return (y**2).sum().astype("float32")

    operands = jnp.ones((3, 3, 2, 4)), jnp.ones((2, 8, 8, 2))
    for gradient, operand in zip(
        jax.grad(loss, (0, 1))(*operands), operands, strict=True
    ):
        assert (gradient.shape, gradient.dtype) == (operand.shape, operand.dtype)


def test_gradients_of_wide_arrays_are_wide(x64):
    kernel, x = jnp.ones((3, 2, 2), "float64"), jnp.ones((2, 8, 2), "float64")
    with jax.enable_x64(False):
        gradients = jaxconv.conv_vjp({"kernel": kernel}, x, x)
        dkernel = jaxconv.conv_kernel_grad(x, kernel.shape, x)
        norms = jaxconv.conv_kernel_grad_sq_norms(x, kernel.shape, x)
        same = jaxconv.conv_input_grad(x.shape, kernel, x)
    arrays = jax.tree.leaves((gradients, dkernel, norms, same))
    assert len(arrays) == 5
    assert {array.dtype.name for array in arrays} == {"float64"}
