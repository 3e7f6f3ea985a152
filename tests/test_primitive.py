"""Every transform of JAX, on the primitive: exactly, on small-integer data."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.jet import jet
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxconv
import jaxconv.lax
from jaxconv.cases import CASES

TRANSFORMED = [
    case
    for case in CASES
    if case.name
    in (
        *("0d", "1d.causal-dilated", "2d.strided-dilated", "2d.grouped"),
        *("2d.depthwise-multiplier", "2d.batch-grouped", "2d.transposed-grouped"),
        *("2d.odd-layout", "3d.transposed"),
    )
]
LAYOUT = ("NHWC", "HWIO", "NHWC")
DEPTH = ("NDHWC", "DHWIO", "NDHWC")
each_case = pytest.mark.parametrize("case", TRANSFORMED, ids=lambda case: case.name)


def ours_of(case):
    return functools.partial(jaxconv.lax.conv_general_dilated, **case.geometry)


def stock_of(case):
    return functools.partial(lax.conv_general_dilated, **case.geometry)


def ours(eqn):
    return eqn.primitive.name == "jaxconv"


def same(transform, case, *operands):
    """The transform gives exactly what it gives for stock lax."""
    expected = jax.jit(transform(stock_of(case)))(*operands)
    got = jax.jit(transform(ours_of(case)))(*operands)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    chex.assert_trees_all_equal(got, expected)


@pytest.fixture
def operands(case, integers):
    x, kernel = integers(*case.x_shape), integers(*case.kernel_shape)
    return x, kernel, integers(*jax.eval_shape(stock_of(case), x, kernel).shape)


@each_case
def test_jvp(case, operands, integers):
    x, kernel, _ = operands
    tangents = integers(*x.shape), integers(*kernel.shape)
    same(lambda f: lambda *a: jax.jvp(f, a, tangents), case, x, kernel)
    for i in (0, 1):  # a symbolically zero tangent for the other

        def one(f, i=i):
            def moved(*a):
                def of_one(operand):
                    return f(*a[:i], operand, *a[i + 1 :])

                return jax.jvp(of_one, (a[i],), (tangents[i],))

            return moved

        same(one, case, x, kernel)


class WithAndWithoutJit(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_forward_and_gradients(self):
        case = next(case for case in CASES if case.name == "2d.transposed-grouped")
        generator = np.random.default_rng(0)
        x, kernel = (
            generator.integers(-4, 5, shape).astype(np.float32)
            for shape in (case.x_shape, case.kernel_shape)
        )

        def gradients(conv, x, kernel):
            y, pull_back = jax.vjp(conv, x, kernel)
            return y, pull_back(jnp.ones_like(y))

        variant: Any = self.variant
        got = variant(functools.partial(gradients, ours_of(case)))(x, kernel)
        chex.assert_trees_all_equal(got, gradients(stock_of(case), x, kernel))


@each_case
def test_vjp_and_linearize(case, operands):
    x, kernel, g = operands
    same(lambda f: lambda *a: jax.vjp(f, *a)[1](g), case, x, kernel)
    same(lambda f: lambda *a: jax.linearize(f, *a)[1](*a), case, x, kernel)


@each_case
def test_linear_transpose(case, operands):
    x, kernel, g = operands

    def in_x(f):
        return lambda k, g: jax.linear_transpose(lambda x: f(x, k), x)(g)

    def in_kernel(f):
        return lambda x, g: jax.linear_transpose(lambda k: f(x, k), kernel)(g)

    same(in_x, case, kernel, g)
    same(in_kernel, case, x, g)


@each_case
def test_higher_orders(case, operands, integers):
    x, kernel, g = operands
    u, v = integers(*x.shape), integers(*kernel.shape)

    def loss(f):
        return lambda x, k: (f(x, k) * g).sum()

    def grad_of_grad(f):
        def inner(x, k):
            dx, dk = jax.grad(loss(f), (0, 1))(x, k)
            return (dx * u).sum() + (dk * v).sum()

        return jax.grad(inner, (0, 1))

    def forward_over_reverse(f):
        return lambda *a: jax.jvp(jax.grad(loss(f), (0, 1)), a, (u, v))

    same(grad_of_grad, case, x, kernel)
    same(forward_over_reverse, case, x, kernel)


def test_hessian_and_jacobians(integers):
    case = next(case for case in CASES if case.name == "1d.strided")
    x, kernel = integers(1, 5, 3), integers(2, 3, 2)
    for transform in (jax.jacfwd, jax.jacrev):
        same(lambda f, t=transform: t(f, argnums=(0, 1)), case, x, kernel)
    same(
        lambda f: jax.hessian(lambda x, k: (f(x, k) ** 2).sum(), argnums=(0, 1)),
        case,
        x[:, :3],
        kernel,
    )


@each_case
@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0), (2, 1), (1, None)])
def test_vmap(case, mapped, integers):
    shapes = case.x_shape, case.kernel_shape
    x, kernel = (
        integers(*shape) if axis is None else integers(*shape[:axis], 3, *shape[axis:])
        for shape, axis in zip(shapes, mapped, strict=True)
    )
    same(lambda f: jax.vmap(f, mapped), case, x, kernel)
    same(lambda f: jax.vmap(f, mapped, out_axes=-1), case, x, kernel)


@each_case
def test_vmap_before_and_after_grad(case, operands, integers):
    x, kernel, g = operands
    xs, gs = integers(3, *x.shape), integers(3, *g.shape)
    kernels = integers(3, *kernel.shape)

    def grad_of_vmap(f):
        def loss(xs, kernel):
            return (jax.vmap(f, (0, None))(xs, kernel) * gs).sum()

        return jax.grad(loss, (0, 1))

    def vmap_of_grad(axes):
        def loss(f):
            return lambda x, k, g: (f(x, k) * g).sum()

        return lambda f: jax.vmap(jax.grad(loss(f), (0, 1)), axes)

    same(grad_of_vmap, case, xs, kernel)
    same(vmap_of_grad((0, None, 0)), case, xs, kernel, gs)
    same(vmap_of_grad((0, 0, 0)), case, xs, kernels, gs)
    same(vmap_of_grad((None, 0, None)), case, x, kernels, g)


@each_case
def test_nested_vmap(case, integers):
    xs, kernels = integers(2, *case.x_shape), integers(3, *case.kernel_shape)
    same(lambda f: jax.vmap(jax.vmap(f, (0, None)), (None, 0)), case, xs, kernels)
    both = integers(2, 3, *case.x_shape)
    same(lambda f: jax.vmap(jax.vmap(f, (0, None)), (0, None)), case, both, kernels[0])


def test_grad_of_vmap_with_a_shared_kernel_is_one_kernel_gradient(integers):
    def loss(kernel, xs):
        return jax.vmap(lambda x: jaxconv.lax.conv(x, kernel, (1,), "SAME"))(xs).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(integers(4, 3, 3), integers(5, 2, 3, 8))
    results = [str(eqn.outvars[0].aval) for eqn in jaxpr.eqns if ours(eqn)]
    assert results == ["float32[10,4,8]", "float32[4,3,3]"]


def test_vmap_over_nothing(integers):
    case = next(case for case in CASES if case.name == "2d.grouped")
    for mapped in ((0, None), (None, 0), (0, 0)):
        x, kernel = (
            np.zeros((0, *shape), np.float32) if axis == 0 else integers(*shape)
            for shape, axis in zip(
                (case.x_shape, case.kernel_shape), mapped, strict=True
            )
        )
        y = jax.vmap(ours_of(case), mapped)(x, kernel)
        expected = jax.vmap(stock_of(case), mapped)(x, kernel)
        assert y.shape == expected.shape


@each_case
def test_checkpoint_and_scan(case, operands):
    x, kernel, g = operands

    def rematerialised(f):
        def loss(x, k):
            return (jax.checkpoint(f)(x, k) * g).sum()

        return jax.grad(loss, (0, 1))

    def scanned(f):
        def loss(x, k):
            total, _ = lax.scan(lambda c, k: (c + f(x, k), None), jnp.zeros_like(g), k)
            return (total * g).sum()

        return jax.grad(loss, (0, 1))

    same(rematerialised, case, x, kernel)
    same(scanned, case, x, np.stack([kernel, -2 * kernel]))


def test_a_gradient_that_nobody_asked_for_is_not_computed(integers):
    def convolutions(argnums):
        def loss(x, k):
            return jaxconv.lax.conv(x, k, (1,), "SAME").sum()

        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums))(
            integers(2, 3, 8), integers(4, 3, 3)
        )
        return sum(map(ours, jaxpr.eqns))

    # The forward itself is dead code of a linear loss, and stays in the jaxpr.
    assert (convolutions(0), convolutions(1), convolutions((0, 1))) == (2, 2, 3)


def test_a_symbolically_zero_cotangent_stays_so(integers):
    def loss(x, k):
        y = jaxconv.lax.conv(x, k, (1,), "SAME")
        return lax.stop_gradient(y).sum() + x.sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(integers(2, 3, 8), integers(4, 3, 3))
    assert sum(map(ours, jaxpr.eqns)) <= 1


def test_one_trace_for_equal_shapes(integers):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def gradient(x, k):
        def loss(k):
            return (jaxconv.lax.conv(x, k, [1], "SAME") ** 2).sum()

        return jax.grad(loss)(k)

    for _ in range(3):
        gradient(integers(2, 3, 8), integers(4, 3, 3))


def test_ahead_of_time_lowering(integers):
    x, k = integers(2, 3, 8), integers(4, 3, 3)
    compiled = jax.jit(jaxconv.conv_general_dilated, static_argnums=(2, 3)).lower(
        x, k, (1,), "SAME"
    )
    got = compiled.compile()(x, k)
    np.testing.assert_array_equal(got, lax.conv(x, k, (1,), "SAME"))


@each_case
def test_export_round_trip(case, operands):
    x, kernel, g = operands

    def gradients(x, k):
        return jax.vjp(ours_of(case), x, k)[1](g)

    exported = jax.export.export(jax.jit(gradients))(x, kernel)
    again = jax.export.deserialize(exported.serialize())
    chex.assert_trees_all_equal(again.call(x, kernel), gradients(x, kernel))


@pytest.mark.parametrize("sizes", ["b, 8, 9, 3", "b, h, w, 3"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((-1, 0), (2, 0))])
def test_symbolic_shapes(sizes, strides, padding, integers):
    def conv(x, k):
        return jaxconv.lax.conv_general_dilated(
            x, k, strides, padding, dimension_numbers=LAYOUT
        )

    def gradients(x, k):
        return jax.grad(lambda *a: (conv(*a) ** 2).sum(), (0, 1))(x, k)

    x, k = integers(2, 8, 9, 3), integers(3, 3, 3, 4)
    symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape(sizes), jnp.float32)
    for function in (conv, gradients):
        exported = jax.export.export(jax.jit(function))(symbolic, k)
        chex.assert_trees_all_equal(exported.call(x, k), function(x, k))


@pytest.mark.parametrize(
    ("x_shape", "k_shape", "layout", "geometry"),
    [
        ((8, 9, 16), (3, 3, 1, 16), LAYOUT, {"feature_group_count": 16}),
        ((8, 9, 16), (1, 1, 4, 8), LAYOUT, {"feature_group_count": 4}),
        ((16, 8, 9), (16, 1, 3, 3), None, {"feature_group_count": 16}),
        ((4, 4, 4, 3), (2, 2, 2, 3, 2), DEPTH, {"lhs_dilation": (2, 2, 2)}),
        ((5, 6, 4, 3), (3, 3, 3, 3, 2), DEPTH, {"padding": [(1, 1), (-1, 2), (1, 1)]}),
    ],
)
def test_images_of_a_symbolic_batch_are_planned(
    x_shape, k_shape, layout, geometry, integers
):
    options = {
        "window_strides": (1,) * (len(x_shape) - 1),
        "padding": "SAME" if "lhs_dilation" not in geometry else [(1, 1)] * 3,
        "dimension_numbers": layout,
        **geometry,
    }
    conv = functools.partial(jaxconv.conv_general_dilated, **options)
    k = integers(*k_shape)
    (batch,) = jax.export.symbolic_shape("b")
    symbolic = jax.ShapeDtypeStruct((batch, *x_shape), jnp.float32)
    (only,) = jaxconv.explain(conv, symbolic, k).convolutions
    assert only.algorithm == "by_image"

    def value_and_gradient(x, k):
        y, pull_back = jax.vjp(lambda x: conv(x, k), x)
        return y, *pull_back(y)

    exported = jax.export.export(jax.jit(value_and_gradient))(symbolic, k)
    for size in (1, 3):
        x = integers(size, *x_shape)
        expected = lax.conv_general_dilated(x, k, **options)
        y, dx = exported.call(x, k)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(dx, value_and_gradient(x, k)[1])


@pytest.mark.parametrize("wrap", [jax.jit, lambda fn: fn, jaxconv.accelerate])
def test_64_bits_within_a_function_alone(wrap):
    x = jnp.asarray([[[1e8, 1.0, -1e8]]])

    def wide_sums(x, kernel):
        with jax.enable_x64(True):
            options = {"preferred_element_type": "float64"}
            y = jaxconv.lax.conv(x, kernel, (1,), "VALID", **options)
            return y.astype("float32").sum()

    def wide_operands(x, kernel):
        with jax.enable_x64(True):
            x, kernel = x.astype("float64"), kernel.astype("float64")
            return jaxconv.lax.conv(x, kernel, (1,), "VALID").astype("float32").sum()

    for total in (wide_sums, wide_operands):
        assert wrap(total)(x, jnp.ones((1, 1, 3))) == 1  # 0 if added up in float32
    dx = wrap(jax.grad(wide_operands))(x, jnp.ones((1, 1, 3)))
    np.testing.assert_array_equal(dx, jnp.ones((1, 1, 3)))


def test_arrays_of_64_bits_with_these_switched_off(integers):
    with jax.enable_x64(True):
        x, k = (jnp.asarray(integers(*s), "float64") for s in ((2, 3, 8), (4, 3, 3)))
    y = jaxconv.lax.conv(x, k, (1,), "SAME")
    assert y.dtype == "float64"
    np.testing.assert_array_equal(y, lax.conv(x, k, (1,), "SAME"))


def test_symbolic_batch_is_cropped_too(integers):
    def conv(x, k):
        return jaxconv.lax.conv(x, k, (1,), [(-2, 1)])

    x, k = integers(2, 3, 8), integers(4, 3, 3)
    symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 3, 8"), jnp.float32)
    exported = jax.export.export(jax.jit(conv))(symbolic, k)
    np.testing.assert_array_equal(exported.call(x, k), conv(x, k))
    assert "pad = [[0, 1]]" in exported.mlir_module()


def gradients_of(conv, g):
    def gradients(x, kernel):
        y, pull_back = jax.vjp(conv, x, kernel)
        return y, *pull_back(g)

    return gradients


@pytest.mark.parametrize("geometry", ["plain", "strided", "transposed", "cropped"])
def test_shard_map(geometry, integers):
    options = {
        "plain": {"padding": "SAME"},
        "strided": {"window_strides": (2, 2), "padding": "SAME"},
        "transposed": {"padding": [(1, 2), (2, 1)], "lhs_dilation": (2, 2)},
        "cropped": {"padding": [(-1, 2), (2, -1)]},
    }[geometry]
    options = {"window_strides": (1, 1), "dimension_numbers": LAYOUT, **options}
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x, kernel = integers(8, 6, 5, 3), integers(3, 3, 3, 4)
    results = []
    for function in (jaxconv.lax.conv_general_dilated, lax.conv_general_dilated):
        conv = functools.partial(function, **options)
        sharded = jax.shard_map(
            conv, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data")
        )
        g = np.ones(jax.eval_shape(conv, x, kernel).shape, np.float32)
        results.append(jax.jit(gradients_of(sharded, g))(x, kernel))
    plain = jax.jit(gradients_of(conv, g))(x, kernel)
    chex.assert_trees_all_equal(*results, plain)


@pytest.mark.parametrize("spec", [P("data"), P(None, None, None, "data")])
def test_jit_of_sharded_arrays(spec, integers):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x, kernel = integers(4, 6, 5, 4), integers(4, 3, 4, 8)
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    for options in ({}, {"strides": 2}, {"strides": 3, "groups": 2}):
        k = kernel[:, :, : 4 // options.get("groups", 1)]

        def gradients(x, k, options=options):
            def loss(x, k):
                y = jaxconv.conv_forward(jaxconv.ConvParams(k), x, **options)
                return (y * y).sum()

            return jax.grad(loss, (0, 1))(x, k)

        got = jax.jit(gradients)(placed, k)
        chex.assert_trees_all_equal(
            jax.device_get(got), jax.device_get(gradients(x, k))
        )


@pytest.mark.parametrize("layer", ["conv", "conv_transpose", "conv_forward"])
@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_layers_in_shard_map(layer, padding, integers):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    params = jaxconv.ConvParams(integers(3, 2, 4), integers(4))
    x = integers(8, 6, 2)

    def loss(params, x):
        y = getattr(jaxconv, layer)(params, x, strides=2, padding=padding)
        return (y * y).sum()

    def sharded(params, x):
        return jax.shard_map(
            lambda params, x: lax.psum(loss(params, x), "data"),
            mesh=mesh,
            in_specs=(P(), P("data")),
            out_specs=P(),
        )(params, x)

    got = jax.jit(jax.grad(sharded, (0, 1)))(params, x)
    chex.assert_trees_all_equal(got, jax.jit(jax.grad(loss, (0, 1)))(params, x))


def test_empty_results_in_shard_map(integers):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def loss(x, k):
        y = jaxconv.lax.conv_general_dilated(
            x, k, (1, 1), "VALID", dimension_numbers=LAYOUT
        )
        return y.sum()

    total = jax.shard_map(
        lambda x, k: lax.psum(loss(x, k), "data"),
        mesh=mesh,
        in_specs=(P("data"), P()),
        out_specs=P(),
    )
    x, k = integers(4, 2, 2, 3), integers(3, 3, 3, 4)
    got = jax.jit(jax.grad(total, (0, 1)))(x, k)
    chex.assert_trees_all_equal(got, (np.zeros_like(x), np.zeros_like(k)))


def test_without_jit_and_with_checks_for_nan(integers):
    x, k = integers(2, 3, 8), integers(4, 3, 3)
    with jax.disable_jit():
        y = jaxconv.lax.conv(x, k, (1,), "SAME")
    np.testing.assert_array_equal(y, lax.conv(x, k, (1,), "SAME"))
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        jaxconv.lax.conv(x + np.inf, 0 * k, (1,), "SAME")


def test_explicit_sharding(integers):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    x, kernel = integers(8, 6, 5, 3), integers(3, 3, 3, 4)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, P("data")))
        kernel = jnp.asarray(kernel)
        results = []
        for function in (jaxconv.lax.conv_general_dilated, lax.conv_general_dilated):

            @jax.jit
            def gradients(x, kernel, function=function):
                def loss(x, kernel):
                    y = function(x, kernel, (2, 1), "SAME", dimension_numbers=LAYOUT)
                    assert jax.typeof(y).sharding.spec[0] == "data"
                    return (y * y).sum()

                return jax.grad(loss, (0, 1))(x, kernel)

            results.append(gradients(x, kernel))
        assert [jax.typeof(a) for a in results[0]] == [
            jax.typeof(a) for a in results[1]
        ]
        chex.assert_trees_all_equal(*map(jax.device_get, results))

        @jax.jit
        def by_hand(x, kernel):
            params = jaxconv.ConvParams(kernel)
            y = jaxconv.conv_forward(params, x, strides=(2, 1))
            dparams, dx = jaxconv.conv_vjp(params, x, 2 * y, strides=(2, 1))
            return dx, jax.tree.leaves(dparams)[0]

        got = by_hand(x, kernel)
        assert [jax.typeof(a) for a in got] == [jax.typeof(a) for a in results[1]]
        chex.assert_trees_all_equal(jax.device_get(got), jax.device_get(results[1]))


@pytest.mark.parametrize("per_example", [False, True])
def test_kernel_gradients_of_explicitly_sharded_images_are_on_all_devices(
    per_example, integers
):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    x, g, shape = integers(4, 6, 5, 2), integers(4, 6, 5, 3), (3, 3, 2, 3)

    def results(x, g):
        gradient = functools.partial(jaxconv.conv_kernel_grad, kernel_shape=shape)
        mapped = jax.vmap(lambda x, g: gradient(x, g=g)) if per_example else gradient
        norms = jaxconv.conv_kernel_grad_sq_norms(x, shape, g)
        return mapped(x, g=g), norms

    expected = results(x, g)
    with jax.set_mesh(mesh):
        images = NamedSharding(mesh, P("data"))
        got = jax.jit(results)(jax.device_put(x, images), jax.device_put(g, images))
    assert jax.typeof(got[0]).sharding.spec[0] == ("data" if per_example else None)
    assert jax.typeof(got[1]).sharding.spec[0] == "data"
    chex.assert_trees_all_equal(*map(jax.device_get, (got, expected)))


def test_explicit_out_sharding(integers):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jnp.asarray(integers(2, 3, 8))
        kernel = jax.device_put(integers(8, 3, 3), NamedSharding(mesh, P("model")))

        @jax.jit
        def sharded(x, kernel):
            return jaxconv.lax.conv_general_dilated(
                x, kernel, (1,), "SAME", out_sharding=P(None, "model", None)
            )

        y = sharded(x, kernel)
        assert jax.typeof(y).sharding.spec == P(None, "model", None)
        expected = lax.conv(jax.device_get(x), jax.device_get(kernel), (1,), "SAME")
        np.testing.assert_array_equal(jax.device_get(y), jax.device_get(expected))


def test_vmap_over_an_explicitly_sharded_axis(integers):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        xs = jax.device_put(integers(4, 2, 3, 8), NamedSharding(mesh, P("data")))
        kernel = jnp.asarray(integers(4, 3, 3))

        def mapped(conv):
            return jax.jit(
                jax.vmap(lambda x, k: conv(x, k, (1,), "SAME"), in_axes=(0, None))
            )(xs, kernel)

        got, expected = mapped(jaxconv.lax.conv), mapped(lax.conv)
        assert jax.typeof(got) == jax.typeof(expected)
        chex.assert_trees_all_equal(jax.device_get(got), jax.device_get(expected))


def test_loops_are_for_one_device(integers):
    # XLA would gather all images for a loop over their windows.
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x, kernel = integers(8, 9, 9, 16), integers(3, 3, 1, 16)

    def conv(x, kernel):
        return jaxconv.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=16,
        )

    placed = jax.device_put(x, NamedSharding(mesh, P("data")))
    local = jax.shard_map(
        conv, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data")
    )
    texts = [
        jax.jit(function).lower(array, kernel).as_text()
        for function, array in ((conv, x), (conv, placed), (local, x))
    ]
    assert ["stablehlo.convolution" in text for text in texts] == [False, True, False]
    np.testing.assert_array_equal(jax.jit(conv)(placed, kernel), conv(x, kernel))
    np.testing.assert_array_equal(jax.jit(local)(x, kernel), conv(x, kernel))


def test_taylor_series_are_those_of_lax():
    x = jax.random.normal(jax.random.key(0), (1, 3, 8))
    kernel = jax.random.normal(jax.random.key(1), (4, 3, 3))

    def series(conv):
        def fn(x, kernel):
            return jnp.sin(conv(x, jnp.tanh(kernel), (1,), "SAME"))

        both = jet(fn, (x, kernel), ([x, 2 * x, x], [kernel, -kernel, kernel]))
        return both, jet(lambda x: fn(x, kernel), (x,), ([x, x],))

    chex.assert_trees_all_close(series(jaxconv.lax.conv), series(lax.conv), rtol=1e-4)
