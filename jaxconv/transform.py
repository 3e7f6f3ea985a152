"""`accelerate(fn)`: every convolution in a function's program, replaced by jaxconv's.

A JAX function is a program, its jaxpr, whose equations hold the programs of jit, scan,
cond, checkpoint and others among their parameters. A convolution is one equation

    y = conv_general_dilated[window_strides, padding, ...] x k

wherever it stands, also where it is the gradient of another. It is replaced by

    y = jaxconv[spec, ...] x k

of the same operands and type, and so nothing around it need be understood: an equation
whose programs have changed is the same equation with other programs in it. Names,
donation, shardings, the structure of loops and effects stay what they are. What stands
among an equation's parameters as a function follows: the derivative rules of
`custom_jvp` and `custom_vjp` when they are asked for, and the policies of `checkpoint`,
which know lax's convolution by its primitive.
"""

import contextlib
import functools
import inspect
import itertools
import math
import reprlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Primitive, primitives
from jax.extend.core.primitives import jit_p, remat_p, reshape_p, rev_p

from jaxconv.checkpoint_policies import like_lax
from jaxconv.primitive import conv_general_dilated_p, conv_p
from jaxconv.spec import FIELDS, ConvSpec, is_static

P = ParamSpec("P")
R = TypeVar("R")


def accelerate(fn: Callable[P, R]) -> Callable[P, R]:
    """The same function, with every convolution in it computed by jaxconv.

    Each y[n, f, o] = Σ_{c, t} x̃[n, c, s·o + d·t − p] · k[f, c, t] in its program, the
    gradients of others among them, is computed by the algorithm that the planner
    chooses. `fn` may be a model, a loss, a gradient or a whole training step, jitted or
    not; the result may be jitted, differentiated, mapped and rematerialised.

    Args:
      fn: a function of arrays, in pytrees of any kind. Arguments that are no JAX
        arrays, among them numbers, NumPy arrays and `jax.ShapeDtypeStruct`, reach it as
        they are, and may be among its results.

    Returns:
      A function with the signature of `fn`. It traces `fn` each time that it is called,
      so that `jax.jit` belongs around it.

    Raises:
      TypeError: if `fn` is not callable, or, when called, returns what is neither an
        array nor an argument, or changes an object that is an argument.
      ValueError: when called, if `fn` was jitted with `compiler_options`.

    Source: the equations of a program are replaced one by one; see docs/accelerate.md.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss(kernel, x):
      ...     return jax.lax.conv(x, kernel, (2, 2), "SAME").sum()
      >>> kernel, x = jnp.ones((4, 3, 3, 3)), jnp.ones((1, 3, 8, 8))
      >>> step = jax.jit(accelerate(jax.grad(loss)))
      >>> step(kernel, x).shape
      (4, 3, 3, 3)
      >>> "conv_general_dilated" in str(jax.make_jaxpr(step)(kernel, x))
      False
    """
    demand_callable("accelerate", fn)

    # Without its attributes: the methods of another transform compute what it does.
    @functools.wraps(fn, updated=())
    def accelerated(*args: P.args, **kwargs: P.kwargs) -> R:
        program = trace("accelerate", fn, args, kwargs)
        if program.changed:
            raise TypeError(
                f"accelerate: {name_of(fn)} must not change its arguments, but sets "
                f"{program.changed[0]}. It is traced on copies, on which that would be "
                "lost. Return new state and update the object with it, as docs/"
                "frameworks.md shows for Flax NNX."
            )
        given = {id(leaf) for leaf in jax.tree.leaves((args, kwargs))}
        for path, value in program.others:
            known = isinstance(value, _KNOWN)
            if not known and id(value) not in given:
                raise TypeError(
                    f"accelerate: {name_of(fn)} must return arrays, but returned "
                    f"{reprlib.repr(value)} of type {type(value).__name__} as "
                    f"result{path}. Leave it out, or accelerate the function that "
                    "computes the arrays."
                )
        return program.run(rewritten(program.jaxpr))

    if not jax.tree_util.all_leaves([fn]):
        # Equinox takes a function that wraps a module for one that has lost its arrays.
        del accelerated.__wrapped__
    return accelerated


_KNOWN = (np.ndarray, np.generic, bool, int, float, complex, jax.ShapeDtypeStruct)
"""What a function may return besides JAX arrays and its arguments."""


def demand_callable(caller: str, fn: Any) -> None:
    """Refuse what cannot be traced, among it the result of a call."""
    if not callable(fn):
        raise TypeError(
            f"{caller}: fn must be a function, but got {reprlib.repr(fn)} of type "
            f"{type(fn).__name__}. Pass the function itself and not its result, as in "
            f"{caller}(train_step)."
        )


def name_of(fn: Any) -> str:
    """What the user calls the function."""
    return getattr(fn, "__name__", None) or type(fn).__name__


class Program(NamedTuple):
    """A function traced on some arguments.

    Attributes:
      jaxpr: its program, from the arrays among the arguments to those it returned, and
        then to what it set in objects.
      arrays: the former.
      others: what else it returned, with its path.
      returned: where each of both belongs.
      changed: the paths of what it changed in objects among its arguments and has not
        returned.
    """

    jaxpr: Any
    arrays: list[jax.Array]
    others: list[tuple[str, Any]]
    returned: Callable[[list[jax.Array]], Any]
    changed: list[str]

    def run(self, jaxpr: Any) -> Any:
        """What the function returns, computed by another program of the same type."""
        # What `jaxpr_as_fun` returns does not look for NaNs when JAX is told to.
        found = eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *self.arrays)
        # Scalars that are known when tracing come as NumPy's.
        arrays = [a if isinstance(a, jax.Array) else jnp.asarray(a) for a in found]
        return self.returned(arrays)


def trace(
    caller: str, fn: Callable, args: Any, kwargs: Any, traced: Any = jax.Array
) -> Program:
    """The program of `fn` on these arguments.

    Args:
      caller: the function to name in errors.
      fn: what is traced.
      args: its arguments.
      kwargs: its keyword arguments.
      traced: the types of those among them that become arrays of the program.
    """
    arrays, with_arrays, _ = _split((args, kwargs), traced)
    result: list = []  # and no tracer among it, which would outlive its trace

    def of_arrays(*args: Any, **kwargs: Any) -> list:
        nonlocal result
        arrays = jax.tree.leaves((args, kwargs))
        given = args, kwargs = with_arrays(arrays)
        before, again = _held(given), _held(given)  # some make them anew each time
        outputs, *result = _split(fn(*args, **kwargs), jax.Array)
        returned = {id(leaf) for leaf in (*outputs, *(leaf for _, leaf in result[1]))}
        changed = {
            path: leaf
            for path, leaf in _held(given).items()
            if before.get(path) is again.get(path) is not leaf
            and id(leaf) not in returned
        }
        places = {id(leaf): i for i, leaf in enumerate(arrays)}
        result.append([(path, places.get(id(before[path]))) for path in changed])
        # Which argument a value is can be told of results alone, 0 of what is no array.
        leaves = changed.values()
        return [*outputs, *(a if isinstance(a, jax.Array) else 0 for a in leaves)]

    # JAX's errors tell the file and line of what is wrapped, and its arguments' names.
    name = of_arrays.__name__ = of_arrays.__qualname__ = name_of(fn)
    call: Any = inspect.unwrap(fn).__call__
    vars(of_arrays)["__wrapped__"] = call if inspect.ismethod(call) else fn
    try:
        jaxpr = jax.make_jaxpr(of_arrays)(
            *(_Leaves.of(argument, traced) for argument in args),
            **{key: _Leaves.of(argument, traced) for key, argument in kwargs.items()},
        )
    except ValueError as cause:
        if "compiler_options" not in str(cause):
            raise
        raise ValueError(
            f"{caller}: fn must not be jitted with compiler_options, nor call what is, "
            "as JAX takes them from the outermost jax.jit alone, but got "
            f"fn={name}: {cause} Give them to the jax.jit around it, as in "
            f"jax.jit(accelerate({name}), compiler_options=...)."
        ) from cause
    returned, others, replaced = result
    kept = _passed(jaxpr)[-len(replaced) :] if replaced else []
    changed = [
        path
        for (path, before), after in zip(replaced, kept, strict=True)
        if before is None or before != after
    ]
    return Program(jaxpr, arrays, others, returned, changed)


def _passed(jaxpr: Any) -> list[int | None]:
    """Which argument each result of a program is, if calls in it hand that through.

    `nnx.jit` and `nnx.remat` set all state of a model to what they return.
    """
    own = getattr(jaxpr, "jaxpr", jaxpr)  # without its constants
    places: dict[Any, int | None] = {var: i for i, var in enumerate(own.invars)}

    def place_of(atom: Any) -> int | None:
        return None if isinstance(atom, Literal) else places.get(atom)

    for equation in own.eqns:
        if equation.primitive in (jit_p, remat_p):
            (program,) = programs_in(equation)
            for out, place in zip(equation.outvars, _passed(program), strict=True):
                if place is not None:
                    places[out] = place_of(equation.invars[place])
    return [place_of(out) for out in own.outvars]


class _Leaves(list[tuple[str, Any]]):
    """Arrays of an argument, with the names in it by which JAX's errors tell them."""

    @classmethod
    def of(cls, argument: Any, traced: Any) -> "_Leaves":
        """Those of the types that are traced."""
        leaves = jax.tree.leaves_with_path(argument)
        return cls(
            (jax.tree_util.keystr(path), leaf)
            for path, leaf in leaves
            if isinstance(leaf, traced)
        )


jax.tree_util.register_pytree_with_keys(
    _Leaves,
    lambda leaves: (leaves, tuple(name for name, _ in leaves)),
    lambda names, arrays: _Leaves(zip(names, arrays, strict=True)),
)


def _held(given: tuple[Any, Any]) -> dict[str, Any]:
    """Leaves that objects hold, by path, as an object may be there to be changed.

    A dictionary or list is a copy under `jax.jit` as well, wherever it stands. What
    refuses to be taken apart has been used up, as Equinox's `State` is by its update.

    Args:
      given: the arguments and the keyword arguments.
    """
    args, kwargs = given
    named = {f"[{i}]": argument for i, argument in enumerate(args)}
    named |= {f"[{name!r}]": argument for name, argument in kwargs.items()}
    held: dict[str, Any] = {}
    for name, argument in named.items():
        with contextlib.suppress(Exception):
            held.update(_held_in(argument, name))
    return held


def _held_in(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Leaves that a node of a pytree and those in it hold, by path."""
    inner = jax.tree.leaves_with_path(node, is_leaf=lambda child: child is not node)
    for path, child in inner:
        where = name + jax.tree_util.keystr(path)
        if not jax.tree_util.all_leaves([child]):
            yield from _held_in(child, where)
        elif not isinstance(node, (dict, list)):
            yield where, child


def _split(
    tree: Any, traced: Any
) -> tuple[list, Callable[[list], Any], list[tuple[str, Any]]]:
    """Arrays of a pytree, the pytree with others in their place, and what else it has.

    JAX arrays alone are traced: a number or a NumPy array may be what decides, by its
    value, what the function does.

    Args:
      tree: the pytree.
      traced: the types of what counts as an array.
    """
    leaves, structure = jax.tree.flatten_with_path(tree)
    places = [isinstance(leaf, traced) for _, leaf in leaves]
    arrays = list(itertools.compress((leaf for _, leaf in leaves), places))
    others = [
        (jax.tree_util.keystr(path), leaf)
        for (path, leaf), is_array in zip(leaves, places, strict=True)
        if not is_array
    ]

    def with_arrays(arrays: list) -> Any:
        own = {True: iter(arrays), False: (leaf for _, leaf in others)}
        return jax.tree.unflatten(structure, [next(own[place]) for place in places])

    return arrays, with_arrays, others


_REWRITTEN: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""Programs by those that they replace, None for the same.

JAX knows a program by its identity. A jitted function that is called again has the same
one, which is to stay the same here, or JAX would compile it once more.
"""


def rewritten(jaxpr: Any) -> Any:
    """The program with every convolution replaced; itself, if it has none."""
    if jaxpr not in _REWRITTEN:
        if isinstance(jaxpr, Jaxpr):
            made = makers(jaxpr)
            equations = [_replaced(equation, made) for equation in jaxpr.eqns]
            changed = any(map(_is_not, equations, jaxpr.eqns))
            new = jaxpr.replace(eqns=equations) if changed else None
        else:
            inner = rewritten(jaxpr.jaxpr)
            new = None if inner is jaxpr.jaxpr else jaxpr.replace(jaxpr=inner)
        _REWRITTEN[jaxpr] = new
    new = _REWRITTEN[jaxpr]
    return jaxpr if new is None else new


def _is_program(value: Any) -> bool:
    """Whether it is a jaxpr; older versions keep its constants in a type around it.

    What has a jaxpr of another kind in it, as `checkpoint` does under the flag
    `jax_remat3`, has no equations itself.
    """
    return hasattr(value, "eqns")


def _is_not(new: Any, old: Any) -> bool:
    return new is not old


def _replaced(equation: JaxprEqn, made: Mapping[Any, JaxprEqn]) -> JaxprEqn:
    """The equation, if it is a convolution that of jaxconv, or with other programs.

    Args:
      equation: of a program.
      made: the `makers` of that program.
    """
    params = conv_params(equation, made)
    if params is not None:
        return equation.replace(primitive=conv_p, params=params)
    params = {name: _within(value) for name, value in equation.params.items()}
    changed = any(map(_is_not, params.values(), equation.params.values()))
    is_vjp = "fwd_jaxpr_thunk" in params  # its rules may have them where it has none
    if not changed and not is_vjp:
        return equation
    for name, follow in _FUNCTIONS.items():
        if params.get(name) is not None:
            params[name] = follow(params[name])
    return equation.replace(params=params)


def _within(value: Any) -> Any:
    """A parameter, with its programs rewritten."""
    if _is_program(value):
        return rewritten(value)
    if not isinstance(value, tuple):
        return value
    items = [_within(item) for item in value]
    if not any(map(_is_not, items, value)):
        return value
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _jaxpr_rule(rule: Callable, *args: Any) -> Any:
    """A rule that returns a program and more."""
    jaxpr, *rest = rule(*args)
    return rewritten(jaxpr), *rest


def _array_rule(rule: Callable, *args: Any) -> Any:
    """A rule that returns arrays, among others."""
    program = trace("accelerate", rule, args, {})
    return program.run(rewritten(program.jaxpr))


def _follow(rule: Callable, function: Any) -> Any:
    """A function in JAX's own wrapper, with `rule` around it."""
    return function.wrap(rule, (), None)


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "jvp_jaxpr_fun": functools.partial(_follow, _jaxpr_rule),
    "fwd_jaxpr_thunk": functools.partial(_follow, _jaxpr_rule),
    "bwd": functools.partial(_follow, _array_rule),
    "fun_jaxpr_thunk": functools.partial(functools.partial, _jaxpr_rule),
    "transpose_thunk": functools.partial(functools.partial, _jaxpr_rule),
    "rule": functools.partial(functools.partial, _array_rule),
    "policy": like_lax,
}
"""What becomes of the functions among an equation's parameters, by their names."""


def makers(jaxpr: Any) -> dict[Any, JaxprEqn]:
    """The equations of a program by their results."""
    return {out: equation for equation in jaxpr.eqns for out in equation.outvars}


def maker_of(atom: Any, made: Mapping[Any, Any]) -> Any:
    """The equation that made a variable; None of an argument or a literal array.

    Args:
      atom: of the program.
      made: its `makers`.
    """
    return None if isinstance(atom, Literal) else made.get(atom)


def conv_params(
    equation: JaxprEqn, made: Mapping[Any, JaxprEqn]
) -> dict[str, Any] | None:
    """The parameters of `conv_p` if the equation is a convolution, lax's or ours.

    Args:
      equation: of a program.
      made: the `makers` of that program.
    """
    if equation.primitive is conv_p:
        return equation.params
    if equation.primitive is not conv_general_dilated_p:
        return None
    params = dict(equation.params)
    spec = ConvSpec(**{name: params.pop(name) for name in FIELDS})
    return {"spec": spec.replace(members=_members_of(spec, equation, made)), **params}


def _members_of(
    spec: ConvSpec, equation: JaxprEqn, made: Mapping[Any, JaxprEqn]
) -> int:
    """How many of a convolution's groups vmap has made, 1 if none.

    It has folded an axis of both operands into the blocks that are the groups.
    """
    if spec.groups == 1:
        return 1
    x, kernel = equation.invars
    feature = spec.dimension_numbers.rhs_spec[0]
    folded = _folded(x, spec.block_axis, made), _folded(kernel, feature, made)
    sizes = (spec.groups, *folded)
    return math.gcd(*sizes) if is_static(*sizes) else 1


def _folded(array: Any, axis: int, made: Mapping[Any, Any]) -> int:
    """The size of what reshapes have folded into an axis, as its outermost blocks."""
    maker = maker_of(array, made)
    if maker is None or maker.primitive not in (rev_p, reshape_p):
        return 1
    source, *_ = maker.invars
    if maker.primitive is rev_p:
        return _folded(source, axis, made)
    order = maker.params["dimensions"] or range(source.aval.ndim)
    shape, result = [source.aval.shape[i] for i in order], maker.outvars[0].aval.shape
    if len(shape) != len(result) + 1:
        return 1
    # Where sizes of 1 or equal ones leave a choice, the fold is the one looked for.
    for at in (axis, *range(len(result))):
        if (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]) == result:
            inner = _folded(source, order[axis + (at <= axis)], made)
            return inner * (shape[axis] if at == axis else 1)
    return 1


_TRANSPARENT = {p for p in vars(primitives).values() if isinstance(p, Primitive)}
"""Operations of JAX that compute what they say, or what the programs in them do."""


def hides_convolutions(equation: JaxprEqn) -> bool:
    """Whether an equation without a program is lowered to convolutions nevertheless.

    So are primitives of others, and those of JAX that keep functions for themselves.
    """
    if equation.primitive in _TRANSPARENT or any(programs_in(equation)):
        return False
    bound = functools.partial(equation.primitive.bind, **equation.params)
    avals: list[Any] = [atom.aval for atom in equation.invars]
    try:
        types = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        lowered = jax.jit(bound).trace(*types).lower(lowering_platforms=("cpu",))
    except Exception:  # of another platform, or what cannot stand alone: a collective
        return False
    return "stablehlo.convolution" in lowered.as_text()


def programs_in(equation: JaxprEqn) -> Iterator[Any]:
    """The programs among an equation's parameters, in their order."""
    yield from _programs_within(tuple(equation.params.values()))


def _programs_within(value: Any) -> Iterator[Any]:
    if _is_program(value):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _programs_within(item)
