"""accelerate replaces every convolution, wherever it stands, and nothing else."""

import functools
import re

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.experimental import checkify
from jax.sharding import NamedSharding, PartitionSpec

import jaxconv
from jaxconv import accelerate, explain
from jaxconv.algorithms import ALGORITHMS

NHWC = ("NHWC", "HWIO", "NHWC")
X = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
KERNEL = jax.random.normal(jax.random.key(1), (3, 3, 4, 4)) / 6


def conv(kernel, x, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=NHWC,
        feature_group_count=groups,
    )


def block(kernel, x):
    return jnp.tanh(conv(kernel, x))


def repeated(kernel, x):
    def step(x, _):
        return block(kernel, x), x.sum()

    return lax.scan(step, x, None, length=3)


def until(kernel, x):
    def step(carry):
        return carry[0] + 1, block(kernel, carry[1])

    return lax.while_loop(lambda carry: carry[0] < 3, step, (0, x))[1]


def either(kernel, x):
    return lax.cond(
        x.sum() > 0, block, lambda kernel, x: conv(kernel, 2 * x), kernel, x
    )


def switched(kernel, x):
    return lax.switch(x.astype(int)[0, 0, 0, 0] % 3, [block, conv, block], kernel, x)


@jax.custom_jvp
def with_jvp(kernel, x):
    return conv(kernel, x)


@with_jvp.defjvp
def _(primals, tangents):
    (kernel, x), (dkernel, dx) = primals, tangents
    return with_jvp(kernel, x), conv(dkernel, x) + conv(kernel, dx)


@jax.custom_vjp
def with_vjp(kernel, x):
    return conv(kernel, x)


def _backward(residuals, g):
    return jax.vjp(conv, *residuals)[1](g)


with_vjp.defvjp(lambda kernel, x: (conv(kernel, x), (kernel, x)), _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def with_static(kernel, x, scale):
    return conv(kernel, scale * x)


with_static.defvjp(
    lambda kernel, x, scale: (conv(kernel, scale * x), (kernel, x)),
    lambda scale, residuals, g: _backward(residuals, scale * g),
)


@jax.custom_vjp
def only_backward(kernel, x):
    return x * kernel.sum()


only_backward.defvjp(
    lambda kernel, x: (x * kernel.sum(), (kernel, x)), lambda r, g: _backward(r, g)
)


@jax.custom_batching.custom_vmap
def with_vmap(kernel, x):
    return conv(kernel, x)


@with_vmap.def_vmap
def _(size, mapped, kernel, x):
    y = conv(kernel, x.reshape(-1, *x.shape[2:]))
    return y.reshape(size, -1, *y.shape[1:]), True


def solve(kernel, x):
    # (1 + small convolution) y = x
    def matvec(y):
        return y + conv(kernel * 1e-2, y)

    def by_iteration(matvec, b):
        return b - matvec(b) + b

    return lax.custom_linear_solve(
        matvec, x, by_iteration, transpose_solve=by_iteration
    )


def on_shards(kernel, x):
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (PartitionSpec(), PartitionSpec("i"))
    shard_map = jax.shard_map(block, mesh=mesh, in_specs=specs, out_specs=specs[1])
    return shard_map(kernel, x)


FUNCTIONS = {
    "plain": conv,
    "jit": jax.jit(block),
    "scan": repeated,
    "while": until,
    "cond": either,
    "switch": switched,
    "checkpoint": jax.checkpoint(block),
    "checkpoint.policy": jax.checkpoint(
        block, policy=jax.checkpoint_policies.dots_saveable
    ),
    "vmap": jax.vmap(lambda kernel, x: block(kernel, x[None])[0], (None, 0)),
    "map": lambda kernel, x: lax.map(lambda x: block(kernel, x[None])[0], x),
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "custom_vjp.nondiff": lambda kernel, x: with_static(kernel, x, 2.0),
    "custom_vjp.backward": only_backward,
    "custom_vmap": with_vmap,
    "linear_solve": solve,
    "shard_map": on_shards,
    "nested": jax.jit(lambda kernel, x: jax.checkpoint(repeated)(kernel, x)),
}
DIFFERENTIABLE = sorted(FUNCTIONS.keys() - {"while", "custom_vmap"})


def gradient(fn):
    def loss(kernel, x):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(fn(kernel, x)))

    return jax.grad(loss, (0, 1))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_convolution_is_replaced(name, count):
    fn = FUNCTIONS[name]
    stock, none = count(fn, KERNEL, X)
    assert none == 0 and (stock > 0 or name == "custom_vjp.backward")
    assert count(accelerate(fn), KERNEL, X) == (0, stock)
    for run in (lambda fn: fn, jax.jit):
        chex.assert_trees_all_close(
            run(accelerate(fn))(KERNEL, X), fn(KERNEL, X), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_inside_and_outside(name, count):
    fn = FUNCTIONS[name]
    expected = gradient(fn)(KERNEL, X)
    stock, _ = count(gradient(fn), KERNEL, X)
    scale = max(float(jnp.abs(leaf).max()) for leaf in expected)
    for fast in (
        gradient(accelerate(fn)),
        accelerate(gradient(fn)),
        accelerate(jax.jit(gradient(fn))),
        jax.jit(gradient(jax.jit(accelerate(fn)))),
    ):
        left, ours = count(fast, KERNEL, X)
        # One less where JAX removed what it does not need.
        assert left == 0 and stock - (name == "linear_solve") <= ours <= stock
        chex.assert_trees_all_close(
            fast(KERNEL, X), expected, rtol=0, atol=1e-5 * scale
        )


@pytest.mark.parametrize("name", ["plain", "scan", "checkpoint", "custom_jvp"])
def test_second_derivatives_and_maps(name):
    fn = FUNCTIONS[name]
    tangents = jnp.ones_like(KERNEL), X / 2

    def hessian_vector(fn):
        return jax.jvp(gradient(fn), (KERNEL, X), tangents)

    def per_example(fn):
        one = gradient(lambda kernel, x: fn(kernel, x[None]))
        return jax.vmap(one, (None, 0))(KERNEL, X)

    for of in (hessian_vector, per_example):
        expected = of(fn)
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        for fast in (of(accelerate(fn)), accelerate(lambda: of(fn))()):  # noqa: B023
            chex.assert_trees_all_close(fast, expected, rtol=0, atol=2e-5 * scale)


def members_of(fn, *args):
    return [conv.problem.spec.members for conv in explain(fn, *args).convolutions]


@pytest.mark.parametrize("mapped", [(0, 0), (3, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_members_of_an_ensemble_are_found_in_and_outside_of_vmap(groups, mapped):
    def loss(x, kernel):
        return (jnp.tanh(conv(kernel, x, groups)) ** 2).sum()

    def gradients_of_vmap(loss):
        return jax.grad(lambda *args: jax.vmap(loss, mapped)(*args).sum(), (0, 1))

    def vmap_of_gradients(loss):
        return jax.vmap(jax.grad(loss, (0, 1)), mapped)

    x_axis, kernel_axis = mapped
    x = jnp.stack([X, X + 1, X - 1], x_axis)
    kernel = KERNEL[:, :, : 4 // groups]
    kernels = jnp.stack([kernel, kernel / 2, -kernel], kernel_axis)
    for gradients in (gradients_of_vmap, vmap_of_gradients):
        expected = gradients(loss)(x, kernels)
        for fast in (accelerate(gradients(loss)), gradients(accelerate(loss))):
            assert members_of(fast, x, kernels) == [3, 3, 3]
            chex.assert_trees_all_close(
                jax.jit(fast)(x, kernels), expected, rtol=1e-4, atol=1e-4
            )


def test_members_of_members_and_what_they_share():
    xs, kernels = jnp.stack([X, X + 1, X - 1]), jnp.stack([KERNEL, -KERNEL])

    def of_both(conv):  # 3 times 2 kernels
        inner = jax.vmap(
            lambda kernel, x: conv(x * kernel.sum(), x[0, 0, 0, 0] * kernel), (0, None)
        )
        return lambda: jax.vmap(inner, (None, 0))(kernels, xs)

    def of_inner(conv):  # 2 kernels, on 3 times as many images
        inner = jax.vmap(lambda kernel, x: conv(x * kernel.sum(), kernel), (0, None))
        return lambda: jax.vmap(inner, (None, 0))(kernels, xs)

    def of_kernels(conv):  # x is shared: the kernels are one with more features
        return lambda: jax.vmap(lambda kernel: conv(X, kernel))(kernels)

    for of, members in ((of_both, 6), (of_inner, 2), (of_kernels, 1)):
        stock, ours = (
            of(functools.partial(of_conv, window_strides=(1, 1), padding="SAME",
                                 dimension_numbers=NHWC))
            for of_conv in (lax.conv_general_dilated, jaxconv.conv_general_dilated)
        )  # fmt: skip
        for fast in (accelerate(stock), ours):
            assert members_of(fast) == [members]
            chex.assert_trees_all_close(fast(), stock(), rtol=1e-4, atol=1e-4)


def test_an_unknown_number_of_members_is_not_looked_for():
    (n,) = jax.export.symbolic_shape("n")
    kernels = jax.ShapeDtypeStruct((n, *KERNEL.shape), KERNEL.dtype)
    assert members_of(jax.vmap(conv, (0, None)), kernels, X) == [1]
    xs = jax.ShapeDtypeStruct((n, *X.shape), X.dtype)
    assert members_of(jax.vmap(conv), kernels, xs) == [1]


def test_nans_are_looked_for_when_jax_is_told_to():
    def fn(kernel, x):
        return conv(kernel, jnp.log(-jnp.abs(x)))

    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        accelerate(fn)(KERNEL, X)


def test_an_argument_that_is_no_array_may_be_returned():
    name = "encoder" + str(X.ndim)
    y, told = accelerate(lambda kernel, x, name: (conv(kernel, x), name))(
        KERNEL, X, name
    )
    assert told is name
    np.testing.assert_array_equal(y, accelerate(conv)(KERNEL, X))


def test_a_type_stays_a_type_unless_it_is_explained():
    def fn(x, given):
        return conv(KERNEL, x), given, jax.eval_shape(conv, KERNEL, x)

    given = jax.ShapeDtypeStruct((2,), jnp.float32)
    _, *types = accelerate(fn)(X, given)
    assert types == [given, jax.eval_shape(conv, KERNEL, X)]
    x = jax.ShapeDtypeStruct(X.shape, X.dtype)
    assert len(explain(fn, x, given).convolutions) == 1
    assert jax.eval_shape(accelerate(conv), KERNEL, x) == types[1]


class Counted:
    """A layer that counts its calls, in place."""

    def __init__(self, kernel, calls):
        self.kernel, self.calls = kernel, calls

    def __call__(self, x):
        self.calls = self.calls + 1
        return conv(self.kernel, x)


jax.tree_util.register_pytree_with_keys(
    Counted,
    lambda layer: (
        [
            (jax.tree_util.GetAttrKey(name), getattr(layer, name))
            for name in ("kernel", "calls")
        ],
        None,
    ),
    lambda _, leaves: Counted(*leaves),
)


def test_what_changes_an_object_returns_it():
    layer = Counted(KERNEL, jnp.zeros(()))

    def forgotten(layer, x):
        return layer(x)

    message = r"forgotten must not change its arguments, but sets \[0\].calls"
    with pytest.raises(TypeError, match=message):
        accelerate(forgotten)(layer, X)
    _, calls = accelerate(lambda layer, x: (layer(x), layer.calls))(layer, X)
    assert calls == 1

    counted = Counted(KERNEL, 0)  # a number is no array, but may be returned as well
    _, calls = accelerate(lambda layer, x: (layer(x), layer.calls))(counted, X)
    assert calls == 1
    with pytest.raises(TypeError, match=r"sets \['layer'\].calls"):
        accelerate(forgotten)(layer=counted, x=X)

    def renamed(batch):
        batch["y"] = batch.pop("x") + 1.0
        return conv(KERNEL, batch["y"])

    accelerate(renamed)({"x": X})  # a dictionary is a copy under jit, too

    def renamed_in(state):
        return renamed(state.calls), renamed(state.kernel[0])

    accelerate(renamed_in)(Counted([{"x": X}], {"x": X}))  # wherever it stands

    def replaced(kernels):
        kernels[0] = 2 * kernels[0]
        return conv(kernels[0], X)

    accelerate(replaced)([KERNEL])
    with pytest.raises(TypeError, match=r"sets \[0\]\[0\]"):
        accelerate(replaced)(nnx.List([KERNEL]))  # an object, under nnx.jit as well


@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat])
def test_state_that_is_set_to_what_it_was_has_not_changed(transform, count):
    @transform
    def called(layer, x):
        return layer(x)

    @transform
    def counting(layer, x):
        layer.kernel[...] += 1
        return layer(x)

    @transform
    def exchanging(layer, x):
        layer.scale[...], layer.bias[...] = layer.bias[...], layer.scale[...]
        return layer(x)

    class Layer(nnx.Conv):
        scale: nnx.Variable

    layer = Layer(4, 4, (3, 3), rngs=nnx.Rngs(0))
    layer.scale = nnx.Variable(jnp.ones(4))
    twice = accelerate(lambda layer, x: called(layer, transform(called)(layer, x)))
    expected = layer(layer(X))
    chex.assert_trees_all_close(twice(layer, X), expected, rtol=1e-4, atol=1e-4)
    assert count(lambda x: twice(layer, x), X) == (0, 2)
    for changing, name in ((counting, "kernel"), (exchanging, "bias")):
        with pytest.raises(TypeError, match=rf"but sets \[0\].{name}"):
            accelerate(changing)(layer, X)


def test_state_may_be_used_up():
    class Net(eqx.Module):
        layer: eqx.nn.Conv1d
        calls: eqx.nn.StateIndex

        def __init__(self):
            self.layer = eqx.nn.Conv1d(2, 2, 3, key=jax.random.key(0))
            self.calls = eqx.nn.StateIndex(jnp.zeros(()))

        def __call__(self, x, state):
            return self.layer(x), state.set(self.calls, state.get(self.calls) + 1)

    net, state = eqx.nn.make_with_state(Net)()
    y, state = accelerate(lambda net, x, state: net(x, state))(
        net, jnp.ones((2, 8)), state
    )
    assert y.shape == (2, 6)
    assert state.get(net.calls) == 1


def test_what_is_known_when_tracing_is_an_array_nevertheless():
    def known(x):
        return conv(KERNEL, x), jnp.zeros(()), jnp.asarray(0.5), jnp.int32(3)

    for own, stock in zip(accelerate(known)(X)[1:], known(X)[1:], strict=True):
        assert isinstance(own, jax.Array)
        assert (own, own.dtype, own.weak_type) == (stock, stock.dtype, stock.weak_type)
    params = {"kernel": KERNEL, "unused": jnp.float32(1)}
    gradient = accelerate(jax.grad(lambda params: conv(params["kernel"], X).sum()))
    assert isinstance(gradient(params)["unused"], jax.Array)


def test_memory_of_the_host_is_that_of_the_result():
    def there(kernel, x):
        host = jax.memory.Space.Host
        kernel, x = jax.device_put(kernel, host), jax.device_put(x, host)
        return conv(kernel, x) + x

    own, stock = (jax.make_jaxpr(f)(KERNEL, X) for f in (accelerate(there), there))
    assert own.out_avals == stock.out_avals


def test_checked_functions_name_the_convolution():
    def checked(conv):
        return checkify.checkify(
            lambda x, k: conv(x, k, (1,), "VALID"), errors=checkify.nan_checks
        )

    x, k = jnp.full((1, 1, 4), jnp.inf), jnp.zeros((1, 1, 3))
    error, _ = accelerate(checked(lax.conv))(x, k)
    assert "nan generated by primitive: conv_general_dilated" in str(error.get())


def test_groups_of_a_shuffled_layer_are_not_members():
    def shuffled(kernel, x):
        parted = x.reshape(*x.shape[:-1], 2, -1)
        x = jnp.swapaxes(parted, -1, -2).reshape(x.shape)
        return conv(kernel, x, 2)

    def turned(kernel, x):  # a reshape that folds nothing
        return conv(kernel, lax.reshape(x, x.shape, (0, 2, 1, 3)), 2)

    def split(kernel, x):
        return conv(kernel, x.reshape(*X.shape), 2)

    assert members_of(shuffled, KERNEL[:, :, :2], X) == [1]
    assert members_of(turned, KERNEL[:, :, :2], X) == [1]
    assert members_of(split, KERNEL[:, :, :2], X.reshape(2, 64, 4)) == [1]


@pytest.mark.parametrize("groups", [1, 4])
def test_the_size_of_a_program_does_not_depend_on_how_many_examples_it_has(groups):
    def instructions(examples):
        def loss(kernel, x):
            return (conv(kernel, x[None], groups) ** 2).sum()

        gradients = accelerate(jax.vmap(jax.grad(loss), (None, 0)))
        x = jax.ShapeDtypeStruct((examples, 28, 28, 16), jnp.float32)
        kernel = jax.ShapeDtypeStruct((3, 3, 16 // groups, 16), jnp.float32)
        return str(jax.jit(gradients).lower(kernel, x).compile().as_text()).count(" = ")

    assert instructions(256) <= 1.1 * instructions(32)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_a_mapped_layer_are_those_of_the_batched_layer(groups, costs):
    """An unbatched layer under vmap, as Equinox has them, with one kernel for all."""

    def layer(kernel, x):
        return jaxconv.conv_forward({"kernel": kernel}, x, groups=groups)

    def gradients(mapped):
        layers = jax.vmap(layer, (None, 0)) if mapped else layer
        step = jax.grad(lambda kernel, x: (layers(kernel, x) ** 2).sum(), (0, 1))
        return jax.jit(step).lower(KERNEL[:, :, : 4 // groups], X).compile()

    for cost, most in zip(
        *map(costs, (gradients(True), gradients(False))), strict=True
    ):
        assert cost <= 1.01 * most


@pytest.mark.parametrize("groups", [1, 16])
def test_a_gradient_of_gradients_costs_what_forward_mode_does(groups, costs):
    """The gradient of a kernel gradient is a layer again, and no window of an image."""

    def gradients(kernel, x):
        def loss(kernel, x):
            return (conv(kernel, x, groups) ** 2).sum()

        return jax.grad(loss, (0, 1))(kernel, x)

    def forward(*args):
        return jax.jvp(gradients, args, args)[1]

    def reverse(*args):
        return jax.vjp(gradients, *args)[1](args)

    kernel = jax.ShapeDtypeStruct((3, 3, 16 // groups, 16), jnp.float32)
    x = jax.ShapeDtypeStruct((2, 14, 14, 16), jnp.float32)
    (flops, _), (most, _) = (
        costs(jax.jit(accelerate(of)).lower(kernel, x).compile())
        for of in (reverse, forward)
    )
    assert flops <= 1.5 * most


def test_rules_of_custom_vmap_are_followed(count):
    def mapped(fn):
        return jax.vmap(fn, (None, 0))

    for fast in (accelerate(mapped(with_vmap)), mapped(accelerate(with_vmap))):
        assert count(fast, KERNEL, X[:, None]) == (0, 1)
        chex.assert_trees_all_close(
            fast(KERNEL, X[:, None])[:, 0], conv(KERNEL, X), rtol=1e-5, atol=1e-5
        )


def test_what_stands_around_survives():
    def step(kernel, x):
        with jax.named_scope("encoder"):
            y = conv(kernel, x)
        jax.debug.print("sum {}", y.sum())
        return y + x

    devices = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(devices, PartitionSpec("i"))
    jitted = jax.jit(
        step, donate_argnums=1, in_shardings=(None, rows), out_shardings=rows
    )
    equations = [
        jax.make_jaxpr(fn)(KERNEL, X).eqns[0] for fn in (jitted, accelerate(jitted))
    ]
    before, after = ({**equation.params} for equation in equations)
    assert "conv_general_dilated[" in str(before.pop("jaxpr"))
    inner = after.pop("jaxpr")
    assert "jaxconv[" in str(inner) and "debug" in str(inner)
    assert before == after and before["donated_invars"] == (False, True)
    assert equations[0].effects == equations[1].effects
    text = jax.jit(accelerate(step)).lower(KERNEL, X).as_text(debug_info=True)
    assert "encoder" in text
    donated = jnp.array(X)
    accelerate(jax.jit(step, donate_argnums=1))(KERNEL, donated)
    assert donated.is_deleted()


def test_effects_happen(capfd):
    def step(x):
        jax.debug.print("mean {m}", m=x.mean())
        return conv(KERNEL, x)

    accelerate(step)(jnp.zeros_like(X))
    jax.effects_barrier()
    assert capfd.readouterr().out == "mean 0.0\n"


def test_programs_without_a_convolution_are_left_untouched():
    @jax.jit
    def inner(x):
        return jax.nn.relu(lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), x))

    plain, fast = (jax.make_jaxpr(fn)(X) for fn in (inner, accelerate(inner)))
    assert plain.eqns[0].params["jaxpr"] is fast.eqns[0].params["jaxpr"]


def test_a_jitted_function_is_compiled_once():
    traced = []

    @jax.jit
    def step(x):
        traced.append(x.shape)
        return conv(KERNEL, x)

    fast = accelerate(step)
    programs = [jax.make_jaxpr(fast)(X).eqns[0].params["jaxpr"] for _ in range(2)]
    assert programs[0] is programs[1]
    for _ in range(3):
        fast(X)
    fast(X[:1])
    assert traced == [X.shape, X[:1].shape]


def test_the_transpose_of_a_linear_call_is_followed(count):
    def transpose(kernel, g):
        return jax.linear_transpose(lambda x: conv(kernel, x), X)(g)[0]

    def linear(kernel, x):
        return jax.custom_derivatives.linear_call(conv, transpose, kernel, x)

    gradient = jax.grad(lambda x: accelerate(linear)(KERNEL, x).sum())
    assert count(gradient, X) == (0, 2)


def test_what_optimize_remat_computes_again_is_followed(count):
    @jax.custom_vjp
    def own(kernel, x):
        return conv(kernel, x)

    own.defvjp(
        lambda kernel, x: (conv(kernel, x), (kernel, x)),
        lambda kept, g: jax.vjp(conv, *kept)[1](g),
        optimize_remat=True,
    )
    loss = accelerate(jax.checkpoint(lambda kernel: own(kernel, X).sum()))
    assert count(jax.grad(loss), KERNEL)[0] == 0


def test_policies_see_lax_convolutions(count):
    def blocks(kernel, x):
        return jnp.sin(conv(kernel, jnp.sin(conv(kernel, x)))).sum()

    counts = []
    for policy in (None, jax.checkpoint_policies.dots_saveable):
        fn = jax.checkpoint(blocks, policy=policy)
        stock, _ = count(jax.grad(fn), KERNEL, X)
        assert count(jax.grad(accelerate(fn)), KERNEL, X) == (0, stock)
        counts.append(stock)
    assert counts[0] > counts[1]  # saved, and not computed again


def test_arguments_of_every_kind(count):
    @functools.partial(jax.jit, static_argnums=1, static_argnames="mode")
    def fn(params, strides, x, *, mode, extra=None):
        assert extra is None or extra["none"] is None
        y = lax.conv(x, params["kernel"], (strides, strides), "SAME")
        return {"y": y if mode == "plain" else -y, "none": None, "number": 3}

    params, x = {"kernel": jnp.ones((4, 3, 3, 3)), "bias": None}, jnp.ones((1, 3, 8, 8))
    for extra in (None, {"none": None, "array": np.ones(3)}):
        for strides, mode in ((1, "plain"), (2, "plain"), (2, "negative")):
            options = {"mode": mode, "extra": extra}
            actual = accelerate(fn)(params, strides, x, **options)
            chex.assert_trees_all_close(actual, fn(params, strides, x, **options))
    assert count(lambda x: accelerate(fn)(params, 2, x, mode="plain"), x) == (0, 1)


@jax.tree_util.register_pytree_with_keys_class
class Pair:
    """A pytree whose leaves have one name."""

    def __init__(self, *values):
        self.values = values

    def tree_flatten_with_keys(self):
        key = jax.tree_util.GetAttrKey("value")
        return [(key, value) for value in self.values], None

    def tree_flatten(self):
        return self.values, None

    @classmethod
    def tree_unflatten(cls, _, values):
        return cls(*values)


def test_names_of_leaves_need_not_differ():
    def fn(x, pair):
        return conv(KERNEL, x) * (pair.values[0] - pair.values[1])

    chex.assert_trees_all_close(accelerate(fn)(X, Pair(3.0, 1.0)), 2 * conv(KERNEL, X))


def test_explain_follows_the_order_of_the_program():
    def fn(kernel, x):
        return lax.cond(
            x.sum() > 0, lambda: conv(kernel, x), lambda: conv(kernel[:1, :1], x)
        )

    found = explain(fn, KERNEL, X).convolutions
    assert [conv.problem.kernel_spatial for conv in found] == [(1, 1), (3, 3)]

    def images_last(kernel, x):
        layout = ("CHWN", "HWIO", "CHWN")
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=layout
        )

    given = KERNEL, X.transpose(3, 1, 2, 0)
    (only,) = explain(images_last, *given).convolutions
    assert only.role == "plain"
    both = jax.grad(lambda *operands: images_last(*operands).sum(), (0, 1))
    found = explain(both, *given).convolutions
    known = {"input gradient": given[1].shape, "kernel gradient": KERNEL.shape}
    own = {c.role: c.problem.output_shape for c in found if c.role != "forward"}
    assert own.keys() == known.keys()
    assert all(sorted(own[role]) == sorted(known[role]) for role in known)

    def again(kernel, x):
        return jax.checkpoint(lambda *operands: jnp.sin(conv(*operands)))(kernel, x)

    roles = [c.role for c in explain(gradient(again), KERNEL, X).convolutions]
    assert sorted(roles) == [
        *("forward", "forward"),
        "input gradient",
        "kernel gradient",
    ]


@pytest.mark.parametrize("features_last", [True, False])
def test_explain_tells_layers_within_what_is_transposed(features_last):
    layout = ("NHWC", "HWIO", "NHWC") if features_last else ("NCHW", "OIHW", "NCHW")
    x, kernel = X, KERNEL
    if not features_last:
        x, kernel = X.transpose(0, 3, 1, 2), KERNEL.transpose(3, 2, 0, 1)

    def layer(kernel, x):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=layout
        )

    own = jax.custom_vjp(layer)  # whose rule computes the layer once more
    own.defvjp(
        lambda *operands: (layer(*operands), operands),
        lambda operands, g: jax.vjp(layer, *operands)[1](g),
    )
    found = explain(gradient(own), kernel, x).convolutions
    assert [conv.role for conv in found] == [
        *("forward", "forward"),
        *("kernel gradient", "input gradient"),
    ]

    def of_gradient(kernel, x):  # whose transpose has layers of kernel cotangents
        inner = jax.grad(lambda kernel: (layer(kernel, x) ** 2).sum())
        return (inner(kernel) ** 2).sum()

    found = explain(jax.grad(of_gradient, (0, 1)), kernel, x).convolutions
    assert [conv.role for conv in found] == [
        *("forward", "kernel gradient", "forward", "input gradient"),
        *("kernel gradient", "input gradient"),
    ]


def test_operands_that_are_made_of_nothing():
    def fn(kernel):
        x = lax.broadcasted_iota(jnp.float32, (1, 4, 8, 8), 2)
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", feature_group_count=4
        )

    kernel = jnp.arange(36.0).reshape(4, 1, 3, 3)
    np.testing.assert_array_equal(accelerate(fn)(kernel), fn(kernel))
    assert len(explain(fn, kernel).convolutions) == 1


def test_explain_takes_any_keyword():
    def model(kernel, x, fn=jnp.tanh):
        return fn(conv(kernel, x))

    assert len(explain(model, KERNEL, X, fn=jnp.sin).convolutions) == 1


def test_explain_knows_arrays_that_are_literals():
    def fn(kernel, x):
        y, pull_back = jax.vjp(conv, kernel, x)
        return pull_back(np.ones(y.shape, np.float32))

    jax.config.update("jax_use_simplified_jaxpr_constants", True)
    try:
        found = explain(fn, KERNEL, X).convolutions
    finally:
        jax.config.update("jax_use_simplified_jaxpr_constants", False)
    gradients = {conv.role for conv in found if conv.role != "forward"}
    assert gradients == {"input gradient", "kernel gradient"}


def test_errors_of_jax_name_the_place_and_the_argument():
    def step(params, mode, x, **more):
        return conv(params["kernel"], x) if more["scale"][0] > 0 else x

    class Model:
        def __call__(self, params, mode, x, **more):
            return conv(params["kernel"], x) if more["scale"][0] > 0 else x

    params = {"kernel": KERNEL, "epoch": 3}
    message = re.escape(__file__) + r":\d+ for jit.*argument more\['scale'\]\[0\]\."
    for fn in (step, jax.jit(step, static_argnums=1), Model()):
        for call in (accelerate(fn), jax.jit(accelerate(fn), static_argnums=1)):
            with pytest.raises(jax.errors.TracerBoolConversionError, match=message):
                call(params, "train", X, scale=[jnp.ones(())])
        with pytest.raises(jax.errors.TracerBoolConversionError, match=message):
            explain(fn, params, "train", X, scale=[jnp.ones(())])


def test_values_that_decide_stay_values():
    def fn(x, repeats, axes):
        for _ in range(repeats):
            x = conv(KERNEL, x)
        return (x.transpose(axes), repeats)

    y, repeats = accelerate(fn)(X, 2, np.array([3, 0, 1, 2]))
    assert y.shape == (4, 2, 8, 8) and repeats == 2


def test_closures_over_traced_values():
    def loss(kernel):
        def layer(x):
            return conv(kernel, x)

        return (accelerate(layer)(X) ** 2).sum()

    def stock(kernel):
        return (conv(kernel, X) ** 2).sum()

    chex.assert_trees_all_close(
        jax.jit(jax.grad(loss))(KERNEL), jax.grad(stock)(KERNEL), rtol=1e-5, atol=1e-4
    )


def test_no_tracer_outlives_its_trace():
    with jax.checking_leaks():
        accelerate(conv)(KERNEL, X)
        jax.jit(accelerate(gradient(conv)))(KERNEL, X)


def test_accelerated_twice_and_with_jaxconv_inside(count):
    def fn(kernel, x):
        return jaxconv.conv_forward({"kernel": kernel}, conv(kernel, x))

    for fast in (accelerate(fn), accelerate(accelerate(fn))):
        assert count(fast, KERNEL, X) == (0, 2)


def test_the_compiled_program_is_that_of_jaxconv():
    def forward(kernel, x):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=4
        )

    def ours(kernel, x):
        return jaxconv.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=4
        )

    kernel = KERNEL[:, :, :1]
    texts = [
        re.sub(r"module @\w+", "", jax.jit(fn).lower(kernel, X).as_text())
        for fn in (accelerate(forward), ours, forward)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_as_many_equations_are_bound_as_the_program_has():
    def step(kernel, x):
        for _ in range(30):
            x = block(kernel, x)
        return jax.grad(lambda kernel: conv(kernel, x).sum())(kernel)

    def programs(fn):
        equations = jax.make_jaxpr(fn)(KERNEL, X).eqns
        return len(equations)

    # As many equations are bound again as the program has at its top level.
    assert programs(accelerate(step)) == programs(step)


def test_bad_input():
    with pytest.raises(
        TypeError, match=r"accelerate: fn must be a function, but got 3"
    ):
        accelerate(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"but got Array\(.{,30} of type Array"):
        accelerate(jnp.ones((9, 9)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"explain: fn must be a function"):
        explain(X, X)  # type: ignore[arg-type]

    def forward(x):
        return {"y": x, "name": "encoder" + 1000 * "s"}

    message = r"accelerate: forward must return arrays.*'encoder.*str.*\['name'\]"
    with pytest.raises(TypeError, match=message) as caught:
        accelerate(forward)(X)
    assert len(str(caught.value)) < 300
    fast = jax.jit(conv, compiler_options={"xla_cpu_enable_fast_math": True})
    judges = {
        "accelerate": accelerate(fast),
        "explain": functools.partial(explain, fast),
    }
    for name, judge in judges.items():
        message = f"^{name}: fn must not be jitted with .* but got fn=conv"
        with pytest.raises(ValueError, match=message):
            judge(KERNEL, X)
    assert not hasattr(accelerate(jax.pmap(conv)), "lower")  # that would be stock's
    kept = []

    def leaking(x):
        kept.append(conv(KERNEL, x))
        return x

    accelerate(leaking)(X)
    with pytest.raises(jax.errors.UnexpectedTracerError, match="leaking"):
        jnp.sin(kept[0])


def test_what_cannot_be_looked_into_runs_as_it_is():
    def on_host(x):
        return np.asarray(x) * 2

    def fn(x):
        y = jax.pure_callback(on_host, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        return conv(KERNEL, y)

    chex.assert_trees_all_close(accelerate(fn)(X), fn(X), rtol=1e-5, atol=1e-5)
    explanation = explain(fn, X)
    assert explanation.opaque == {"pure_callback": 1}
    assert "left as they are" in str(explanation)
    exported = jax.export.export(jax.jit(conv))(KERNEL, X)
    chex.assert_trees_all_equal(accelerate(exported.call)(KERNEL, X), conv(KERNEL, X))
    assert explain(exported.call, KERNEL, X).opaque == {"call_exported": 1}


def test_what_keeps_functions_for_itself_is_told():
    def root(kernel, x):
        def of(y):
            return y - 0.01 * conv(kernel, y) - 1

        return lax.custom_root(of, x, lambda f, y: y - f(y), lambda g, y: y)

    explanation = explain(root, KERNEL, X)
    # JAX 0.10.2 has programs there, 0.12 a primitive that holds functions.
    assert len(explanation.convolutions) + sum(explanation.opaque.values()) == 1
    chex.assert_trees_all_close(
        accelerate(root)(KERNEL, X), root(KERNEL, X), rtol=1e-5, atol=1e-5
    )
    assert not explain(lambda x: jnp.tile(jnp.split(x, 2)[0], 2), X).opaque


def test_checkpoints_of_the_newer_kind_run_as_they_are(count):
    jax.config.update("jax_remat3", True)
    try:
        again = jax.checkpoint(lambda kernel, x: jnp.sin(conv(kernel, x)))
        own, stock = accelerate(again)(KERNEL, X), again(KERNEL, X)
        chex.assert_trees_all_equal(own, stock)
        assert explain(again, KERNEL, X).opaque == {"call_hi_primitive": 1}
        assert count(accelerate(gradient(again)), KERNEL, X)[0] == 0
    finally:
        jax.config.update("jax_remat3", False)


def test_explain_knows_what_explicit_sharding_leaves_to_xla():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    kernel = jnp.ones((3, 3, 1, 4))
    depthwise = functools.partial(conv, groups=4)
    (alone,) = explain(depthwise, kernel, X).convolutions
    with jax.set_mesh(mesh):
        x = jax.device_put(X, PartitionSpec("d"))
        (sharded,) = explain(depthwise, kernel, x).convolutions
        program = jax.jit(accelerate(depthwise)).lower(kernel, x).as_text()
    assert alone.algorithm != sharded.algorithm == "direct"
    assert "stablehlo.convolution" in program


def test_explain_tells_roles_places_and_costs():
    def loss(params, x):
        with jax.named_scope("stem"):
            y = conv(params["stem"], x)
        y, _ = lax.scan(lambda y, k: (block(k, y), None), y, params["blocks"])
        return (y**2).sum()

    params = {"stem": KERNEL, "blocks": jnp.stack([KERNEL] * 3)}
    types = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    found = explain(jax.jit(jax.grad(loss)), types, X)
    roles = sorted((conv.role, conv.times) for conv in found.convolutions)
    assert roles == [
        ("forward", 1),
        ("forward", 3),
        ("input gradient", 3),
        ("kernel gradient", 1),
        ("kernel gradient", 3),
    ]
    for conv_found in found.convolutions:
        assert conv_found.algorithm in ALGORITHMS and conv_found.reason
        assert ("stem" in conv_found.where) is (conv_found.times == 1)
    first = found.convolutions[0]
    assert first.flops == 2 * 2 * 8 * 8 * 4 * 4 * 9
    assert first.bytes == 4 * (2 * X.size + KERNEL.size)
    assert len(str(found).splitlines()) == 6

    def slope(kernel, x):  # of a kernel gradient: its window is larger than its input
        gradient = jax.grad(lambda kernel: (conv(kernel, x) * X).sum())(kernel)
        return (gradient * kernel).sum()

    last = explain(jax.grad(slope, 1), KERNEL, X).convolutions[-1]
    assert (last.algorithm, last.flops) == ("swap", first.flops)
    assert explain(conv, KERNEL, X).convolutions[0].role == "plain"
    assert str(explain(jnp.sin, X)) == "no convolutions"
    symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, h, 8, 4"), X.dtype)
    _, row = str(explain(conv, KERNEL, symbolic)).splitlines()
    assert row.split()[1] == "bxhx8x4" and row.split()[4:6] == ["-", "-"]
    assert explain(accelerate(conv), KERNEL, X) == explain(conv, KERNEL, X)
