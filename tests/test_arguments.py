"""What users may write, and the errors for what they may not."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
import jaxconv.lax
from jaxconv.arguments import Caller, conv_spec
from jaxconv.cases import CASES, random_case
from jaxconv.params import ConvParams

X, K = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 6, 4))
NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize(
    "case", [*CASES, *map(random_case, range(40))], ids=lambda case: case.name
)
def test_shape_rule_is_that_of_lax(case):
    spec = conv_spec(Caller("t"), case.x_shape, case.kernel_shape, **case.geometry)
    expected = jax.eval_shape(
        lambda x, k: lax.conv_general_dilated(x, k, **case.geometry),
        jax.ShapeDtypeStruct(case.x_shape, jnp.float32),
        jax.ShapeDtypeStruct(case.kernel_shape, jnp.float32),
    )
    assert spec.output_shape(case.x_shape, case.kernel_shape) == expected.shape


def test_spec_is_made_of_plain_ints_and_equal_however_it_was_written():
    shapes = (2, 8, 8, 6), (3, 3, 6, 4)
    layout = lax.conv_dimension_numbers(*shapes, NHWC)
    written = [
        conv_spec(
            Caller("t"),
            *shapes,
            window_strides=strides,
            padding=padding,
            dimension_numbers=numbers,
        )
        for strides, padding, numbers in [
            ((1, 2), "SAME", NHWC),
            ([1, 2], "same", list(NHWC)),
            (np.array([1, 2]), [(1, 1), (0, 1)], layout),
            ((np.int64(1), 2), ((1, np.int32(1)), [0, 1]), layout),
        ]
    ]
    assert len(set(written)) == 1
    assert {type(n) for n in written[2].window_strides + written[3].padding[0]} == {int}


def lax_conv(
    x=X, k=K, strides: Any = (1, 1), padding: Any = "SAME", numbers: Any = NHWC, **more
):
    return jaxconv.lax.conv_general_dilated(
        x, k, strides, padding, dimension_numbers=numbers, **more
    )


def forward(x: Any = X, k: Any = K, **options: Any):
    return jaxconv.conv_forward(ConvParams(k), x, **options)


def vjp(g: Any = X, **options: Any):
    return jaxconv.conv_vjp(ConvParams(K), X, g, **options)


def transposed(x: Any = X, k: Any = K, **options: Any):
    return jaxconv.conv_transpose_forward(ConvParams(k), x, **options)


LAX_ERRORS = {
    "sharding": (
        lambda: lax_conv(out_sharding=cast(Any, "x")),
        TypeError,
        r"conv_general_dilated: out_sharding .* but got out_sharding='x' \(lhs.shape",
    ),
    "sharding-without-a-mesh": (
        lambda: lax_conv(out_sharding=jax.P()),
        ValueError,
        r"conv_general_dilated: out_sharding .* call it within jax.set_mesh",
    ),
    "taps-of-patches": (
        lambda: jaxconv.lax.conv_general_dilated_patches(X, (3,), (1, 1), "SAME"),
        TypeError,
        r"filter_shape must hold one size per spatial axis, of which lhs has 2 "
        r"beside .* got filter_shape=\(3,\) \(lhs.shape=\(2, 8, 8, 6\)\)",
    ),
    "taps-of-a-fold": (
        lambda: jaxconv.fold(jnp.ones((1, 2, 3)), (1, 1, 4), (2, 2), (1,), "VALID"),
        TypeError,
        r"fold: filter_shape .* lhs has 1 .* \(patches.shape=.*lhs_shape=\(1, 1, 4\)\)",
    ),
    "taps-are-floats": (
        lambda: jaxconv.lax.conv_general_dilated_patches(
            X, cast(Any, np.ones(2)), (1, 1), "SAME"
        ),
        TypeError,
        "filter_shape must be made of ints",
    ),
    "channels-of-patches": (
        lambda: jaxconv.lax.conv_general_dilated_patches(
            X[:, :0], (3, 3), (1, 1), "SAME"
        ),
        ValueError,
        "conv_general_dilated_patches: axis 1 of lhs must have at least one channel",
    ),
    "strides-of-a-local-layer": (
        lambda: jaxconv.lax.conv_general_dilated_local(
            jnp.ones((1, 2, 5)), jnp.ones((4, 6, 3)), (0,), "VALID", (3,)
        ),
        ValueError,
        r"conv_general_dilated_local: window_strides .* rhs.shape=\(4, 6, 3\)",
    ),
    "rank": (lambda: lax_conv(x=X[0]), TypeError, r"same rank.*\(8, 8, 6\).*Add the"),
    "rank-0": (
        lambda: jaxconv.lax.conv(jnp.ones(3), jnp.ones(3), (), ()),
        TypeError,
        r"^conv: lhs and rhs must have the same rank, n \+ 2.*lhs.shape=\(3,\)",
    ),
    "channels": (
        lambda: lax_conv(k=K[:, :, :5]),
        ValueError,
        r"rhs must have input features // feature_group_count = 6 // 1 .* has 5, but "
        r"got feature_group_count=1 \(lhs.shape=\(2, 8, 8, 6\), rhs.shape=\(3, 3, 5, 4",
    ),
    "groups-not-dividing-channels": (
        lambda: lax_conv(feature_group_count=4),
        ValueError,
        "feature_group_count must divide the input features, and 6 is no multiple",
    ),
    "groups-not-dividing-features": (
        lambda: lax_conv(k=jnp.ones((3, 3, 2, 4)), feature_group_count=3),
        ValueError,
        "feature_group_count must divide the output features, and 4 is no multiple",
    ),
    "batch-groups-not-dividing": (
        lambda: lax_conv(x=jnp.ones((3, 8, 8, 6)), batch_group_count=2),
        ValueError,
        "batch_group_count must divide the batch, and 3 is no multiple",
    ),
    "batch-groups-not-dividing-features": (
        lambda: lax_conv(k=jnp.ones((3, 3, 6, 5)), batch_group_count=2),
        ValueError,
        "batch_group_count must divide the output features, and 5",
    ),
    "both-groups": (
        lambda: lax_conv(feature_group_count=2, batch_group_count=2),
        ValueError,
        "only one of feature_group_count and batch_group_count may be above 1",
    ),
    "no-groups": (
        lambda: lax_conv(feature_group_count=0),
        ValueError,
        "feature_group_count must be at least 1, but got feature_group_count=0",
    ),
    "negative-batch-groups": (
        lambda: lax_conv(batch_group_count=-1),
        ValueError,
        "batch_group_count must be at least 1, but got batch_group_count=-1",
    ),
    "number-of-strides": (
        lambda: lax_conv(strides=(1, 1, 1)),
        ValueError,
        r"window_strides must hold one int ≥ 1 per spatial axis \(2\), but got "
        r"window_strides=\(1, 1, 1\)",
    ),
    "zero-stride": (
        lambda: lax_conv(strides=(0, 1)),
        ValueError,
        r"int ≥ 1 .* but got window_strides=\(0, 1\)",
    ),
    "float-stride": (
        lambda: lax_conv(strides=(1.0, 1)),
        TypeError,
        "window_strides must be made of ints known at trace time",
    ),
    "int-stride": (
        lambda: lax_conv(strides=2),
        TypeError,
        r"window_strides must hold one int.*such as \(1, 1\)",
    ),
    "lhs-dilation": (
        lambda: lax_conv(padding=((0, 0),) * 2, lhs_dilation=(1, 0)),
        ValueError,
        r"lhs_dilation must hold .* but got lhs_dilation=\(1, 0\)",
    ),
    "rhs-dilation": (
        lambda: lax_conv(rhs_dilation=(1,)),
        ValueError,
        r"rhs_dilation must hold .* but got rhs_dilation=\(1,\)",
    ),
    "padding-string": (
        lambda: lax_conv(padding="FULL"),
        ValueError,
        r"one of SAME, SAME_LOWER, VALID, or a \(low, high\) pair for each of 2 "
        r"spatial axes, but got padding='FULL'",
    ),
    "padding-string-dilated": (
        lambda: lax_conv(lhs_dilation=(2, 1)),
        ValueError,
        r"padding as a string has no meaning beside lhs_dilation > 1.*conv_transpose",
    ),
    "padding-no-pairs": (
        lambda: lax_conv(padding=(3, 3)),
        ValueError,
        r"a \(low, high\) pair for each of 2 spatial axes, but got padding=\(3, 3\)",
    ),
    "padding-int": (lambda: lax_conv(padding=3), ValueError, "but got padding=3"),
    "padding-triple": (
        lambda: lax_conv(padding=[(1, 1), (1, 1, 1)]),
        ValueError,
        r"pair for each of",
    ),
    "padding-count": (
        lambda: lax_conv(padding=[(1, 1)]),
        TypeError,
        r"pair for each of 2 spatial axes, but got padding=\[\(1, 1\)\]",
    ),
    "padding-float": (
        lambda: lax_conv(padding=[(1, 1), (0.5, 1)]),
        TypeError,
        "padding must be made of ints",
    ),
    "padding-crops-too-much": (
        lambda: lax_conv(padding=[(0, 0), (-5, -4)]),
        ValueError,
        r"padding must not crop more than there is \(8 on axis 1\)",
    ),
    "dtype": (
        lambda: lax_conv(k=K.astype(jnp.bfloat16)),
        TypeError,
        "lhs and rhs must have the same dtype, but got lhs.dtype=float32, "
        r"rhs.dtype=bfloat16. Convert one",
    ),
    "preferred": (
        lambda: lax_conv(preferred_element_type=jnp.float16),
        TypeError,
        "preferred_element_type.*float16.*lhs.dtype=float32",
    ),
    "precision": (
        lambda: lax_conv(precision="sharp"),
        ValueError,
        "but got precision='sharp'",
    ),
    "layout-letters": (
        lambda: lax_conv(numbers=("NHWC", "HWIX", "NHWC")),
        TypeError,
        r"dimension_numbers must tell the place of every axis once, but got",
    ),
    "layout-count": (
        lambda: lax_conv(numbers=("NHWC", "HWIO")),
        TypeError,
        "dimension_numbers must tell",
    ),
    "layout-length": (
        lambda: lax_conv(numbers=("NHC", "HIO", "NHC")),
        TypeError,
        r"dimension_numbers.*\(2, 8, 8, 6\)",
    ),
    "layout-axes": (
        lambda: lax_conv(
            numbers=lax.ConvDimensionNumbers((0, 3, 1, 1), (3, 2, 0, 1), (0, 3, 1, 2))
        ),
        TypeError,
        "place of every axis once",
    ),
    "transpose-default-layout": (
        lambda: jaxconv.lax.conv_transpose(
            jnp.ones((1,) * 6), jnp.ones((1,) * 6), (1,) * 4, "SAME"
        ),
        ValueError,
        "conv_transpose: dimension_numbers have a default for 0 to 3 spatial axes",
    ),
    "transpose-strides": (
        lambda: jaxconv.lax.conv_transpose(X, K, (2,), "SAME"),
        ValueError,
        r"^conv_transpose: strides must hold .* but got strides=\(2,\)",
    ),
    "transpose-consistent-count": (
        lambda: jaxconv.lax.conv_transpose(
            X, K, (2, 2), [(1, 1)], use_consistent_padding=True
        ),
        TypeError,
        r"pair for each of 2 spatial axes, but got padding=\[\(1, 1\)\]",
    ),
    "transpose-string": (
        lambda: jaxconv.lax.conv_transpose(X, K, (2, 2), "same"),
        ValueError,
        "conv_transpose: padding must be SAME or VALID, in capitals, or pairs",
    ),
    "transpose-consistent-ints": (
        lambda: jaxconv.lax.conv_transpose(
            X, K, (2, 2), cast(Any, (1, 1)), use_consistent_padding=True
        ),
        ValueError,
        r"conv_transpose: padding .* but got padding=\(1, 1\)",
    ),
    "layout-of-strings": (
        lambda: lax_conv(numbers=lax.ConvDimensionNumbers(*cast(Any, NHWC))),
        TypeError,
        "dimension_numbers must tell the place of every axis once",
    ),
    "no-array": (
        lambda: lax_conv(x=cast(Any, None)),
        TypeError,
        "conv_general_dilated: lhs must be an array, but got lhs of type NoneType",
    ),
    "patches-shape": (
        lambda: jaxconv.lax.conv_general_dilated_patches(
            X, cast(Any, 3), (1, 1), "SAME"
        ),
        TypeError,
        "conv_general_dilated_patches: filter_shape must be a shape",
    ),
    "patches-negative": (
        lambda: jaxconv.lax.conv_general_dilated_patches(X, (-3, 3), (1, 1), "SAME"),
        ValueError,
        r"filter_shape must hold sizes of at least 0, but got filter_shape=\(-3, 3\)",
    ),
    "local-kernel": (
        lambda: jaxconv.lax.conv_general_dilated_local(
            jnp.ones((1, 2, 5)), jnp.ones((4, 6, 4)), (1,), "VALID", (3,)
        ),
        TypeError,
        r"conv_general_dilated_local: rhs must have .* = \(6, 3\).*\(4, 6, 4\)",
    ),
    **{
        f"local-precision-{precision}": (
            lambda precision=precision: jaxconv.lax.conv_general_dilated_local(
                jnp.ones((1, 2, 5)),
                jnp.ones((4, 6, 3), jnp.bfloat16),
                (1,),
                "VALID",
                (3,),
                precision=precision,
            ),
            ValueError,
            f"dilated_local: precision must suit the operands, but got {told} "
            r"\(lhs.dtype=float32\)",
        )
        for precision, told in [
            ((), r"precision=\(\)"),
            ("sharp", "precision='sharp'"),
            (0, "precision=0"),
            ((None, None), r"precision=\(None, None\)"),
            (("sharp",), r"precision=\('sharp',\)"),
        ]
    },
}


@pytest.mark.parametrize("name", LAX_ERRORS)
def test_lax_drop_ins_say_what_is_wrong(name):
    call, kind, match = LAX_ERRORS[name]
    with pytest.raises(kind, match=match):
        call()


def test_traced_strides_are_refused():
    with pytest.raises(TypeError, match=r"window_strides.*static_argnums"):
        jax.jit(lambda s: lax_conv(strides=(s, 1)))(2)
    with pytest.raises(TypeError, match=r"padding must be made of ints known at trace"):
        jax.jit(lambda p: forward(padding=p))(2)


FUNCTIONAL_ERRORS = {
    "unknown-keyword": (
        lambda: forward(stride=2),
        TypeError,
        r"conv_forward: keywords must be known ones, but got stride=2. Did you mean "
        "strides",
    ),
    "unknown-keyword-vjp": (
        lambda: vjp(rate=2),
        TypeError,
        "conv_vjp: keywords must be known ones, but got rate=2. Did you mean dilation",
    ),
    "unknown-keyword-of-lax": (
        lambda: forward(lhs_dilation=2),
        TypeError,
        r"conv_forward: keywords .* lhs_dilation=2. Did you mean input_dilation\?",
    ),
    "cast-kernel-of-a-gradient": (
        lambda: jaxconv.conv_kernel_grad(X, K.shape, X, cast_kernel=True),
        TypeError,
        "conv_kernel_grad: dtype .* but got cast_kernel=True. Pass dtype=jnp.float32",
    ),
    "bool": (
        lambda: transposed(transpose_kernel=cast(Any, "False")),
        TypeError,
        "conv_transpose_forward: transpose_kernel must be True or False, known at "
        "trace time, but got transpose_kernel='False'. Pass a Python bool.",
    ),
    "bias-itself": (
        lambda: jaxconv.init_conv_params(jax.random.key(0), 3, 4, 3, bias=cast(Any, X)),
        TypeError,
        "init_conv_params: bias must be True or False",
    ),
    "kind-of-a-gradient": (
        lambda: jaxconv.conv_kernel_grad(
            X.astype("complex64"), K.shape, X.astype("complex64"), dtype=jnp.int32
        ),
        TypeError,
        "conv_kernel_grad: dtype must be of the kind of x, but got dtype=.*int32",
    ),
    "kind-of-an-input": (
        lambda: jaxconv.conv_input_grad(X.shape, K, X, dtype=jnp.complex64),
        TypeError,
        "conv_input_grad: dtype must be of the kind of kernel, but got "
        "dtype=.*complex64.* .kernel.dtype=float32.",
    ),
    "kind-of-an-input-whose-kernel-is-cast": (
        lambda: jaxconv.conv_input_grad(
            X.shape, K, X, dtype=jnp.complex64, cast_kernel=True
        ),
        TypeError,
        "conv_input_grad: dtype must be of the kind of g, but got "
        "dtype=.*complex64.* .g.dtype=float32.",
    ),
    "kernel-shape-of-parameters": (
        lambda: jaxconv.conv_kernel_grad(X, cast(Any, jaxconv.ConvParams(K)), X),
        TypeError,
        "conv_kernel_grad: kernel_shape must be a shape, a tuple of ints, but got "
        "kernel_shape of type ConvParams. Pass array.shape.",
    ),
    "unknown-keyword-transposed": (
        lambda: transposed(input_dilation=2),
        TypeError,
        "conv_transpose_forward: keywords .* got input_dilation=2. .* mean strides",
    ),
    "groups": (
        lambda: forward(groups=4),
        ValueError,
        r"conv_forward: groups must divide the input features, and 6 is no multiple, "
        r"but got groups=4 \(x.shape=\(2, 8, 8, 6\), kernel.shape=\(3, 3, 6, 4\)\)",
    ),
    "strides": (
        lambda: forward(strides=(1, 2, 3)),
        ValueError,
        r"strides must hold one int ≥ 1 per spatial axis \(2\)",
    ),
    "zero-dilation": (lambda: forward(dilation=0), ValueError, r"dilation=\(0, 0\)"),
    "padding-string": (
        lambda: forward(padding="CIRCLE"),
        ValueError,
        "padding must be one of SAME, SAME_LOWER, VALID, CAUSAL, CIRCULAR, REFLECT, "
        "REPLICATE, or an int.*padding='CIRCLE'",
    ),
    "padding-pair-for-one-axis": (
        lambda: forward(jnp.ones((2, 8, 3)), jnp.ones((3, 3, 4)), padding=(1, 2)),
        TypeError,
        r"an int for all axes, or an int or a \(low, high\) pair for each of 1 spatial "
        r"axes, but got padding=\(1, 2\).*\(\(1, 1\),\)",
    ),
    "padding-strings": (
        lambda: forward(padding=("SAME", "SAME")),
        ValueError,
        r"but got padding=\('SAME', 'SAME'\)",
    ),
    "padding-border-dilated": (
        lambda: forward(padding="REFLECT", input_dilation=2),
        ValueError,
        "padding by REFLECT needs points of x to continue, undilated",
    ),
    "rank": (lambda: forward(X[0, 0]), ValueError, r"x n spatial axes.*\(8, 6\)"),
    "kernel-rank": (lambda: forward(X, K[0, 0, 0]), ValueError, "n ≥ 0 spatial axes"),
    "params-type": (
        lambda: jaxconv.conv_forward(K, X),
        TypeError,
        r"params must be ConvParams\(kernel, bias\).* with no parts \(its shape is "
        r"\(3, 3, 6, 4\)\). Wrap a kernel as ConvParams\(kernel\), pass params bef",
    ),
    "params-of-another-precision": (
        lambda: jaxconv.conv_forward({"kernel": K}, X.astype(jnp.bfloat16)),
        TypeError,
        r"kernel.dtype=float32. Convert one .* \(or pass cast_kernel=True",
    ),
    "channels-first": (
        lambda: jaxconv.conv_forward({"kernel": K}, jnp.ones((2, 6, 8, 8))),
        ValueError,
        "and which axis of x dimension_numbers take for its features, or set groups",
    ),
    "params-empty": (
        lambda: jaxconv.conv_forward({}, X),
        TypeError,
        "params of type dict with no arrays. Pass",
    ),
    "params-names": (
        lambda: jaxconv.conv_forward({"weight": K}, X),
        TypeError,
        r"params of type dict with arrays at \['weight'\]",
    ),
    "params-of-lists": (
        lambda: jaxconv.conv_forward({"kernel": K.tolist()}, X),
        TypeError,
        r"\['kernel'\]\[0\]\[0\]\[0\]\[3\], ... \(216 in all\). .* as one array.$",
    ),
    "params-nested": (
        lambda: jaxconv.conv_forward({"params": {"kernel": K}}, X),
        TypeError,
        "Pass the parameters of one layer",
    ),
    "bias": (
        lambda: jaxconv.conv_forward(ConvParams(K, jnp.ones(3)), X),
        ValueError,
        r"bias must have one entry per output feature, shape \(4,\).*\(3,\)",
    ),
    "cotangent-shape": (
        lambda: jaxconv.conv_vjp(ConvParams(K), X, X),
        ValueError,
        r"conv_vjp: g must have the shape of the result, \(2, 8, 8, 4\), but got "
        r"g.shape=\(2, 8, 8, 6\)",
    ),
    "cotangent-dtype": (
        lambda: jaxconv.conv_vjp(
            ConvParams(K), X, jnp.ones((2, 8, 8, 4), jnp.bfloat16)
        ),
        TypeError,
        "g must have the dtype of the result, float32, but got g.dtype=bfloat16",
    ),
    "no-array": (
        lambda: forward(x=None),
        TypeError,
        "conv_forward: x must be an array, but got x of type NoneType",
    ),
    "no-cotangent": (
        lambda: vjp(g=None),
        TypeError,
        "conv_vjp: g must be an array, but got g of type NoneType",
    ),
    "integer-cotangent": (
        lambda: jaxconv.conv_vjp(
            ConvParams(K.astype(int)), X.astype(int), jnp.ones((2, 8, 8, 4), int)
        ),
        TypeError,
        "conv_vjp: gradients are for floating and complex dtypes",
    ),
    "bias-kind": (
        lambda: jaxconv.conv_forward(ConvParams(K, jnp.ones(4, complex)), X),
        TypeError,
        "the result's dtype must hold the bias, but got bias.dtype=complex64",
    ),
    "wrt-none": (lambda: vjp(wrt=None), ValueError, "but got wrt=None"),
    "wrt-nested": (lambda: vjp(wrt=[["x"]]), ValueError, r"got wrt=\[\['x'\]\]"),
    "array-for-shape": (
        lambda: jaxconv.conv_kernel_grad(X, cast(Any, K), X),
        TypeError,
        "kernel_shape must be a shape, a tuple of ints, .* Pass array.shape",
    ),
    "symbolic-border": (
        lambda: jax.export.export(jax.jit(lambda x: forward(x, padding="CIRCULAR")))(
            jax.ShapeDtypeStruct(jax.export.symbolic_shape("2, h, 8, 6"), X.dtype)
        ),
        NotImplementedError,
        "padding by CIRCULAR needs spatial sizes that are not symbolic",
    ),
    "init-kind": (
        lambda: jaxconv.init_conv_params(jax.random.key(0), 4, 6, cast(Any, 3.0)),
        TypeError,
        "init_conv_params: kernel_size must be made of ints .* got kernel_size=3.0",
    ),
    "init-dtype": (
        lambda: jaxconv.init_conv_params(
            jax.random.key(0), 4, 6, 3, dtype=cast(Any, "float3")
        ),
        TypeError,
        "init_conv_params: parameters must be floating or complex, .* dtype=float3",
    ),
    "initializer": (
        lambda: jaxconv.init_conv_params(
            jax.random.key(0), 4, 6, 3, kernel_init=cast(Any, "he")
        ),
        TypeError,
        "init_conv_params: kernel_init must be an initializer, .* kernel_init='he'",
    ),
    "initializer-not-called": (
        lambda: jaxconv.init_conv_params(
            jax.random.key(0),
            4,
            6,
            3,
            kernel_init=cast(Any, jax.nn.initializers.he_normal),
        ),
        TypeError,
        r"kernel_init must be an initializer, .* returned function\). .*he_normal\(\)",
    ),
    "initializer-of-another-shape": (
        lambda: jaxconv.init_conv_params(
            jax.random.key(0), 4, 6, 3, kernel_init=cast(Any, lambda *_: jnp.zeros(3))
        ),
        TypeError,
        r"an array of shape \(3, 4, 6\) and dtype float32, .* returned shape \(3,\)",
    ),
    "initializer-of-another-dtype": (
        lambda: jaxconv.init_conv_params(
            jax.random.key(0),
            4,
            6,
            3,
            dtype=jnp.bfloat16,
            kernel_init=cast(Any, lambda _, shape, dtype: jnp.zeros(shape)),
        ),
        TypeError,
        r"an array of shape \(3, 4, 6\) and dtype bfloat16, .* and dtype float32\)",
    ),
    "key": (
        lambda: jaxconv.init_conv_params(cast(Any, 0), 4, 6, 3),
        TypeError,
        r"init_conv_params: key must be a random key, but got key=0. .*key\(0\)",
    ),
    "parameters-of-integers": (
        lambda: jaxconv.init_conv_params(jax.random.key(0), 4, 6, 3, dtype=jnp.int32),
        TypeError,
        "parameters must be floating or complex",
    ),
    "wrt": (
        lambda: vjp(g=jnp.ones((2, 8, 8, 4)), wrt=["k"]),
        ValueError,
        r"wrt must name gradients among 'params' and 'x', but got wrt=\['k'\]",
    ),
    "dtype": (
        lambda: forward(X.astype(jnp.bfloat16)),
        TypeError,
        "x and kernel must have the same dtype",
    ),
    "output-padding": (
        lambda: transposed(strides=2, output_padding=2),
        ValueError,
        r"output_padding must be below the larger of stride and dilation.*\(2, 2\)",
    ),
    "output-padding-negative": (
        lambda: transposed(output_padding=-1),
        ValueError,
        r"output_padding must hold one int ≥ 0 per spatial axis",
    ),
    "output-padding-circular": (
        lambda: transposed(strides=2, padding="CIRCULAR", output_padding=1),
        ValueError,
        "0 beside CIRCULAR",
    ),
    "circular-nothing": (
        lambda: transposed(x=jnp.ones((2, 0, 8, 6)), padding="CIRCULAR"),
        ValueError,
        "padding by CIRCULAR needs spatial sizes of at least 1",
    ),
    "transposed-padding": (
        lambda: transposed(padding="CAUSAL"),
        ValueError,
        "padding must be one of SAME, VALID, CIRCULAR",
    ),
    "transposed-kernel-groups": (
        lambda: transposed(k=jnp.ones((3, 3, 2, 7)), groups=2, transpose_kernel=True),
        ValueError,
        r"groups must .* divide the input features, of which the kernel has 7",
    ),
    "init-groups": (
        lambda: jaxconv.init_conv_params(jax.random.key(0), 4, 6, 3, groups=3),
        ValueError,
        "init_conv_params: groups must divide the features, but got groups=3",
    ),
    "init-size": (
        lambda: jaxconv.init_conv_params(jax.random.key(0), 4, 6, (3, 0)),
        ValueError,
        r"sizes must be at least 1, but got kernel_size=\(3, 0\)",
    ),
    "layout-of-another-rank": (
        lambda: forward(dimension_numbers=("NHC", "HIO", "NHC")),
        TypeError,
        r"tell the place of every axis .*x.shape=\(2, 8, 8, 6\).* for the default.$",
    ),
    "kernel-of-integers": (
        lambda: jaxconv.conv_input_grad(
            X.shape, K.astype(int), X[..., :4], preferred_element_type=jnp.float32
        ),
        TypeError,
        "conv_input_grad: gradients are for floating .* got kernel.dtype=int32",
    ),
    "x-of-integers": (
        lambda: jaxconv.conv_kernel_grad(
            X.astype(int), K.shape, X[..., :4], preferred_element_type=jnp.float32
        ),
        TypeError,
        "conv_kernel_grad: gradients are for floating .* got x.dtype=int32",
    ),
    "norms-of-integers": (
        lambda: jaxconv.conv_kernel_grad_sq_norms(
            X.astype(int), K.shape, X[..., :4], preferred_element_type=jnp.float32
        ),
        TypeError,
        "conv_kernel_grad_sq_norms: gradients are for floating .* got x.dtype=int32",
    ),
    "input-grad": (
        lambda: jaxconv.conv_input_grad((2, 8, 8, 6), K, X),
        ValueError,
        "conv_input_grad: g must have the shape of the result",
    ),
    "kernel-grad": (
        lambda: jaxconv.conv_kernel_grad(X, (3, 3, 6, 4), X),
        ValueError,
        "conv_kernel_grad: g must have the shape of the result",
    ),
}


@pytest.mark.parametrize("name", FUNCTIONAL_ERRORS)
def test_functions_say_what_is_wrong(name):
    call, kind, match = FUNCTIONAL_ERRORS[name]
    with pytest.raises(kind, match=match):
        call()


def test_messages_tell_the_shapes_that_the_user_passed():
    for options in ({}, {"padding": "CIRCULAR"}, {"dimension_numbers": "NHWC"}):
        with pytest.raises((TypeError, ValueError), match=r"x.shape=\(5, 2, 8, 8, 3\)"):
            forward(jnp.ones((5, 2, 8, 8, 3)), **options)


def test_iterables_and_arrays_are_sequences():
    expected = lax_conv(strides=(2, 1), padding=((1, 0), (2, 1)))
    for strides, padding in [
        (np.array([2, 1]), np.array([[1, 0], [2, 1]])),
        (jnp.array([2, 1]), jnp.array([[1, 0], [2, 1]])),
        (iter([2, 1]), zip((1, 2), (0, 1), strict=True)),
        ({"h": 2, "w": 1}.values(), [np.array([1, 0]), (2, 1)]),
    ]:
        if isinstance(strides, np.ndarray):
            y = forward(strides=strides, padding=padding)
            np.testing.assert_array_equal(y, expected)
        y = lax_conv(strides=strides, padding=padding)
        np.testing.assert_array_equal(y, expected)
    patches = jaxconv.lax.conv_general_dilated_patches
    np.testing.assert_array_equal(
        patches(X, cast(Any, np.array([3, 2])), (1, 1), "SAME"),
        patches(X, (3, 2), (1, 1), "SAME"),
    )
