"""The identities: gradients and vmapped forms as convolutions, exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxconv import calculus
from jaxconv.arguments import Caller, conv_spec
from jaxconv.cases import CASES, random_case
from jaxconv.testing import reference_conv, reference_conv_vjp

NOT_EMPTY = [case for case in CASES if "no-" not in case.name]


def by_reference(spec, x, kernel):
    """The convolution of a spec, by the NumPy reference."""
    layouts = []
    for first, axes in zip(("NC", "OI", "NC"), spec.dimension_numbers, strict=True):
        letters = dict(zip(axes, [*first, *"abcd"[: len(axes) - 2]], strict=True))
        layouts.append("".join(letters[axis] for axis in range(len(axes))))
    # With strings, strides and the like stand in the order of the kernel's axes.
    order = np.argsort(spec.dimension_numbers.rhs_spec[2:])
    return reference_conv(
        x,
        kernel,
        [spec.window_strides[i] for i in order],
        [spec.padding[i] for i in order],
        [spec.lhs_dilation[i] for i in order],
        [spec.rhs_dilation[i] for i in order],
        layouts,
        spec.feature_group_count,
        spec.batch_group_count,
    )


def operands(case, integers):
    spec = conv_spec(Caller("t"), case.x_shape, case.kernel_shape, **case.geometry)
    x, kernel = integers(*case.x_shape), integers(*case.kernel_shape)
    return spec, x, kernel, integers(*spec.output_shape(x.shape, kernel.shape))


@pytest.mark.parametrize("case", NOT_EMPTY, ids=lambda case: case.name)
def test_gradients_are_convolutions(case, integers):
    spec, x, kernel, g = operands(case, integers)
    _, dx, dkernel = reference_conv_vjp(x, kernel, g, **case.geometry)
    axes = spec.dimension_numbers.rhs_spec
    turned = np.asarray(calculus.transposed_kernel(axes, spec.groups, kernel))
    shapes = x.shape, kernel.shape, g.shape
    got = by_reference(calculus.input_gradient(spec, *shapes), g, turned)
    got = calculus.ungrouped_input_gradient(spec, jnp.asarray(got, jnp.float32))
    np.testing.assert_array_equal(got, dx)
    if spec.feature_group_count == 1:
        axes = calculus.swapped(spec.dimension_numbers.out_spec)
        turned = np.asarray(calculus.transposed_kernel(axes, spec.groups, g))
        over_kernel = calculus.input_gradient_over_kernel(spec, *shapes)
        np.testing.assert_array_equal(by_reference(over_kernel, kernel, turned), dx)
    got = by_reference(calculus.kernel_gradient(spec, *shapes), x, g)
    np.testing.assert_array_equal(got, dkernel)


@pytest.mark.parametrize("seed", range(60))
def test_gradients_of_random_convolutions(seed, integers):
    case = random_case(seed)
    *_, g = operands(case, integers)
    if g.size:
        test_gradients_are_convolutions(case, integers)


def test_the_calculus_is_closed(integers):
    # The kernel gradient of the kernel gradient, in its first operand, is the input
    # gradient of the convolution: ∂/∂x ⟨K, dkernel(x, g)⟩ = dx(K, g).
    case = next(case for case in CASES if case.name == "2d.strided-dilated")
    spec, x, kernel, g = operands(case, integers)
    second = calculus.kernel_gradient(spec, x.shape, kernel.shape, g.shape)
    third = calculus.input_gradient(second, x.shape, g.shape, kernel.shape)
    turned = calculus.transposed_kernel(second.dimension_numbers.rhs_spec, 1, g)
    _, dx, _ = reference_conv_vjp(x, kernel, g, **case.geometry)
    np.testing.assert_array_equal(by_reference(third, kernel, np.asarray(turned)), dx)


@settings(max_examples=25)  # each compiles its shapes
@given(
    shape=st.lists(st.integers(1, 3), min_size=2, max_size=4),
    outer=st.integers(1, 3),
    data=st.data(),
)
def test_unfold_undoes_fold(shape, outer, data):
    source = data.draw(st.integers(0, len(shape) - 1))
    target = data.draw(st.integers(0, len(shape) - 2))
    size = shape[source]
    rest = shape[:source] + shape[source + 1 :]
    rest[target] *= outer
    full = [*rest[:source], size, *rest[source:]]
    x = jnp.arange(np.prod(full)).reshape(full)
    folded = calculus.merge_axis(x, source, target, outer)
    assert folded.shape[target] == rest[target] * size
    back = calculus.split_axis(folded, target, size, outer)
    np.testing.assert_array_equal(back, jnp.moveaxis(x, source, target))


@pytest.mark.parametrize("mapped", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    "name", ["2d.same", "2d.grouped", "2d.batch-grouped", "2d.nchw-transposed-grouped"]
)
def test_batched_is_one_convolution_for_all(name, mapped, integers):
    case = next(case for case in CASES if case.name == name)
    spec, _, _, _ = operands(case, integers)
    xs, kernels = integers(3, *case.x_shape), integers(3, *case.kernel_shape)
    x_mapped, kernel_mapped = mapped
    form = calculus.batched(spec, 3, x_mapped=x_mapped, kernel_mapped=kernel_mapped)
    x = calculus.merge_axis(xs, 0, *form.x) if form.x else xs[0]
    kernel = (
        calculus.merge_axis(kernels, 0, *form.kernel) if form.kernel else kernels[0]
    )
    y = by_reference(form.spec, np.asarray(x), np.asarray(kernel))
    y = calculus.split_axis(jnp.asarray(y, jnp.float32), form.y.axis, 3, form.y.outer)
    expected = [
        reference_conv(xs[b * x_mapped], kernels[b * kernel_mapped], **case.geometry)
        for b in range(3)
    ]
    np.testing.assert_array_equal(jnp.moveaxis(y, form.y.axis, 0), np.stack(expected))


def test_the_reference_agrees_with_lax_in_integers(integers):
    # int32 convolutions take none of XLA's fast paths, and are right on all of these.
    for case in [*NOT_EMPTY, *map(random_case, range(20))]:
        x, kernel = integers(*case.x_shape), integers(*case.kernel_shape)
        conv = functools.partial(lax.conv_general_dilated, **case.geometry)
        y = jax.jit(conv)(x.astype(np.int32), kernel.astype(np.int32))
        np.testing.assert_array_equal(y, reference_conv(x, kernel, **case.geometry))
