"""Functions of functions by the names and signatures of torch.func: arguments may be dicts and tuples of tensors.

    per_sample = cx.func.vmap(cx.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)

The same functions of tensors alone are cx.grad, cx.vjp, cx.jvp, cx.jacobian and cx.hessian (cyxcore/autograd.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cyxcore import autograd
from cyxcore.eager import Tensor, alias, generator_state, set_generator_state
from cyxcore.errors import GradientError, ShapeError, SpecError
from cyxcore.functional import stack
from cyxcore.keys import check_may_go_back
from cyxcore.nn.module import Module
from cyxcore.values import Value

__all__ = (
    "functional_call grad grad_and_value hessian jacfwd jacrev jvp linearize stack_module_state vjp vmap"
).split()

Rebuild = Callable[[Sequence[Any]], Any]
RANDOMNESS = ("error", "different", "same")


def flat(tree: Any) -> tuple[list[Any], Rebuild]:
    """What is in dicts, lists and tuples within each other, in order; and how others are put in their places."""
    if not isinstance(tree, (dict, list, tuple)):
        return [tree], lambda leaves: leaves[0]
    # Of a tuple what it is made of, whatever it shows: a PackedSequence shows what PyTorch's has.
    own = tree.values() if isinstance(tree, dict) else tuple.__iter__(tree) if isinstance(tree, tuple) else tree
    parts = [flat(part) for part in own]

    def rebuild(leaves: Sequence[Any]) -> Any:
        made, at = [], 0
        for own, again in parts:
            made.append(again(leaves[at : at + len(own)]))
            at += len(own)
        if isinstance(tree, dict):
            return type(tree)(zip(tree, made, strict=True))
        return type(tree)(*made) if hasattr(tree, "_fields") else type(tree)(made)

    return [leaf for own, _ in parts for leaf in own], rebuild


def _each(change: Callable[[Any], Any], tree: Any) -> Any:
    """A tree with every leaf changed."""
    leaves, rebuild = flat(tree)
    return rebuild([change(leaf) for leaf in leaves])


def _chosen(name: str, args: Sequence[Any], argnums: int | Sequence[int]) -> tuple[list[Any], Rebuild, Rebuild]:
    """The leaves of the arguments asked for, what makes a tree of their kind of others, and a call's arguments."""
    places = autograd._places(argnums, len(args), name)
    leaves, rebuild = flat(tuple(args[place] for place in places))

    def arguments(new: Sequence[Any]) -> list[Any]:
        given = list(args)
        for place, tree in zip(places, rebuild(new), strict=True):
            given[place] = tree
        return given

    return leaves, (lambda new: rebuild(new)[0]) if isinstance(argnums, int) else rebuild, arguments


def grad_and_value(
    func: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function with func's arguments that returns (its gradient, its value), with has_aux (…, (its value, aux)).

    func returns a scalar. The gradient has the form of the argument `argnums`: a tensor, or a dict of them; for several
    a tuple.
    """

    def call(*args: Any, **options: Any) -> Any:
        leaves, rebuild, arguments = _chosen("grad", args, argnums)
        both = autograd.value_and_grad(
            lambda *new: func(*arguments(new), **options), argnums=tuple(range(len(leaves))), has_aux=has_aux
        )
        value, gradients = both(*leaves)
        return rebuild(gradients), value

    return call


def grad(func: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function with func's arguments that returns its gradient, with has_aux (its gradient, aux)."""
    both = grad_and_value(func, argnums, has_aux)

    def call(*args: Any, **options: Any) -> Any:
        gradient, value = both(*args, **options)
        return (gradient, value[1]) if has_aux else gradient

    return call


def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """(func(*primals), pull), with has_aux (…, pull, aux): pull(g) is a tuple of the gradients of all primals.

    g has the form of the value. Raises ShapeError for another.
    """
    leaves, rebuild = flat(primals)
    found = func(*primals)
    output, aux = found if has_aux else (found, None)
    wanted = [leaf.shape for leaf in flat(output)[0]]

    def pull(cotangents: Any) -> Any:
        given = flat(cotangents)[0]
        if [g.shape for g in given] != wanted:
            raise ShapeError(f"vjp: expected cotangents of shapes {wanted}, got {[g.shape for g in given]}")

        def along(*new: Any) -> Any:
            again = func(*rebuild(new))
            parts = flat(again[0] if has_aux else again)[0]
            return sum((part * g).sum() for part, g in zip(parts, given, strict=True))

        return rebuild(autograd.grad(along, argnums=tuple(range(len(leaves))))(*leaves))

    shown = _each(_apart_from(primals), output)
    return (shown, pull, aux) if has_aux else (shown, pull)


def _apart_from(inputs: Any) -> Callable[[Any], Any]:
    """What takes the past from a result, unless somebody outside follows an input."""
    followed = autograd._depth.now or any(isinstance(x, Tensor) and x.requires_grad for x in flat(inputs)[0])
    return lambda x: x.detach() if isinstance(x, Tensor) and not followed else x


def jvp(func: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any], has_aux: bool = False) -> Any:
    """(func(*primals), how it changes along the tangents), with has_aux (…, …, aux)."""
    leaves, rebuild = flat(tuple(primals))
    moves = flat(tuple(tangents))[0]
    found = func(*primals)
    output, aux = found if has_aux else (found, None)
    count, again = len(flat(output)[0]), flat(output)[1]

    def part(place: int) -> Callable[..., Any]:
        def one(*new: Any) -> Any:
            value = func(*rebuild(new))
            return flat(value[0] if has_aux else value)[0][place]

        return one

    both = [autograd.jvp(part(place), leaves, moves) for place in range(count)]
    shown, along = (_each(_apart_from(primals), again([pair[at] for pair in both])) for at in (0, 1))
    return (shown, along, aux) if has_aux else (shown, along)


def linearize(func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """(func(*primals), a function of tangents that returns how it changes along them)."""
    value = func(*primals)
    return _each(_apart_from(primals), value), lambda *tangents: jvp(func, primals, tangents)[1]


def jacrev(func: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function with func's arguments that returns d value / d argument, of shape (*value.shape, *argument.shape).

    Of each tensor of the value (a tree of them), for each of the argument `argnums`: one walk back per element.
    """

    def call(*args: Any, **options: Any) -> Any:
        leaves, rebuild, arguments = _chosen("jacrev", args, argnums)
        found = func(*args, **options)
        output, aux = found if has_aux else (found, None)
        values, again = flat(output)

        def slope(value: int, place: int) -> Any:
            def of(x: Any) -> Any:
                result = func(*arguments([*leaves[:place], x, *leaves[place + 1 :]]), **options)
                return flat(result[0] if has_aux else result)[0][value]

            return autograd.jacobian(of)(leaves[place])

        slopes = again([rebuild([slope(value, place) for place in range(len(leaves))]) for value in range(len(values))])
        return (slopes, aux) if has_aux else slopes

    return call


def jacfwd(
    func: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False, *, randomness: str = "error"
) -> Callable[..., Any]:
    """jacrev: the same numbers, and here computed in the same way. randomness: accepted and without effect."""
    return jacrev(func, argnums, has_aux)


def hessian(func: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """A function with func's arguments that returns the second derivatives of its value."""
    return jacrev(jacrev(func, argnums), argnums)


# every example at once ----------------------------------------------------------------------------


def _dims(in_dims: Any, args: Any) -> list[Any]:
    """The axis of each leaf: what is said for a tree holds for all in it."""
    if not isinstance(in_dims, (dict, list, tuple)):
        return [in_dims] * len(flat(args)[0])
    if not isinstance(args, (dict, list, tuple)) or len(in_dims) != len(args):
        raise SpecError(f"vmap: expected in_dims of the form of the arguments, got {in_dims!r}")
    pairs = (
        [(in_dims[name], args[name]) for name in args] if isinstance(args, dict) else zip(in_dims, args, strict=True)
    )
    return [dim for own, part in pairs for dim in _dims(own, part)]


def vmap(
    func: Callable[..., Any],
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: str = "error",
    *,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """A function of examples: func of each one along the axes `in_dims` (None: the same for all), stacked again.

    It is called once per example: what it saves is writing, not time. Its results stand along `out_dims`.
    randomness: "different" or "same" for all examples; "error": func may not draw. chunk_size: accepted and without
    effect. Raises ShapeError for axes of different lengths or none, SpecError where func draws and may not. In a
    compiled function draws are those of its calls: "same" is a GraphError there, and "error" finds none.
    """
    if randomness not in RANDOMNESS:
        raise SpecError(f"vmap: expected a randomness of {', '.join(RANDOMNESS)}, got {randomness!r}")

    def call(*args: Any, **options: Any) -> Any:
        leaves, rebuild = flat((args, options))
        dims = [*_dims(in_dims, args), *[0] * len(flat(options)[0])]
        along = [(x, x._axis(dim)) for x, dim in zip(leaves, dims, strict=True) if dim is not None]
        sizes = {x.shape[axis] for x, axis in along}
        if len(sizes) != 1 or 0 in sizes:
            raise ShapeError(f"vmap: expected axes of one length from 1 on, got {sorted(sizes) or 'none'}")
        results: list[list[Any]] = []
        before = generator_state()
        for place in range(sizes.pop()):
            if randomness == "same":
                check_may_go_back()
                set_generator_state(before)
            one = [x if dim is None else x.select(dim, place) for x, dim in zip(leaves, dims, strict=True)]
            given, named = rebuild(one)
            value = func(*given, **named)
            if randomness == "error" and generator_state() != before:
                raise SpecError('vmap: the function draws random numbers; say randomness="different" or "same"')
            found, again = flat(value)
            results.append(found)
        if not all(isinstance(x, Value) for found in results for x in found):
            raise GradientError("vmap: expected a function of tensors that returns tensors")
        columns = zip(*results, strict=True)
        return again([stack(list(column), at) for column, at in zip(columns, _dims(out_dims, value), strict=True)])

    return call


# modules as functions -----------------------------------------------------------------------------


def _homes(module: Module) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Of each dotted name of a parameter or buffer: the tables it stands in, in several where it is shared."""
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}
    named: dict[str, int] = {}
    for prefix, part in module.named_modules():
        for table in (part._parameters, part._buffers):
            for name, value in table.items():
                home = places.setdefault(id(value), [])
                if not any(table is known and name == other for known, other in home):
                    home.append((table, name))
                named[f"{prefix}.{name}" if prefix else name] = id(value)
    return {name: places[key] for name, key in named.items()}


def functional_call(
    module: Module,
    parameter_and_buffer_dicts: Any,
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    tie_weights: bool = True,
    strict: bool = False,
) -> Any:
    """module(*args, **kwargs) with other tensors in the place of its parameters and buffers, by dotted name.

    parameter_and_buffer_dicts: one dict, or several. What is not named stays. tie_weights: a shared parameter is
    replaced wherever it stands. strict: every name has to be given. Raises SpecError for names that there are not.
    """
    several = parameter_and_buffer_dicts if isinstance(parameter_and_buffer_dicts, (tuple, list)) else None
    given: dict[str, Any] = {}
    for part in (parameter_and_buffer_dicts,) if several is None else several:
        given |= part
    homes = _homes(module)
    unknown = sorted(set(given) - set(homes))
    missing = sorted(set(homes) - set(given)) if strict else []
    if unknown or missing:
        raise SpecError(f"functional_call: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
    named = {(id(table), name) for full in given for table, name in homes[full][:1]}
    before = []
    try:
        for full, value in given.items():
            for place, (table, name) in enumerate(homes[full]):
                if place == 0 or (tie_weights and (id(table), name) not in named):
                    before.append((table, name, table[name]))
                    table[name] = value
        arguments = () if args is None else args if isinstance(args, tuple) else (args,)
        return module(*arguments, **(kwargs or {}))
    finally:
        for table, name, value in reversed(before):
            table[name] = value


def stack_module_state(models: Sequence[Module]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters, buffers) of models of one architecture: under each name all of them, along a new first axis."""
    if not models or len({type(model) for model in models}) != 1:
        raise SpecError("stack_module_state: expected modules of one class, at least one")
    parameters = [dict(model.named_parameters()) for model in models]
    buffers = [dict(model.named_buffers()) for model in models]
    stacked = {name: stack([each[name].detach() for each in parameters]) for name in parameters[0]}
    return (
        {name: alias(x) if parameters[0][name].requires_grad else x for name, x in stacked.items()},
        {name: stack([each[name].detach() for each in buffers]) for name in buffers[0]},
    )
