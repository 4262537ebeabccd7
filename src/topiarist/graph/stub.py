"""The beginning of a rule for an operator that has none: made from its schema and one call, it pins until filled in."""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor


def stub(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, where: str) -> str:
    """Python text that registers a rule for ``operator``, with its arguments and a name for each dimension.

    As it stands the rule pins every axis, like no rule at all. ``args``, ``kwargs`` and ``out`` are those of the call
    at ``where``: only tensors that it was given have named dimensions.

    Example:
        >>> import torch
        >>> x = torch.zeros(3, 8)
        >>> print(stub(torch.ops.aten.erfinv.default, (x,), {}, x, "my/net.py:12").splitlines()[1])
        def erfinv(trace, out, self):
    """
    name = str(operator.overloadpacket)
    given = dict(zip((a.name for a in operator._schema.arguments), args, strict=False)) | dict(kwargs)
    tensors = {_safe(key): value for key, value in given.items() if isinstance(value, Tensor)}
    lists = [_safe(key) for key, value in given.items() if _is_list_of_tensors(value)]
    return "\n".join(
        [
            f"@topiarist.graph.rule(torch.ops.{_target(operator)})",
            f"def {_safe(name.rpartition('.')[2])}({', '.join(_parameters(operator._schema))}):",
            f'    """{operator._schema}, first met at {where}."""',
            *(f"    {line}" for line in _body(name, tensors, lists, out)),
        ]
    )


def _target(operator: Any) -> str:
    """The operator with all its overloads, where there is one: others may take other arguments."""
    alone = len(operator.overloadpacket.overloads()) == 1
    return str(operator.overloadpacket if alone else operator)


def _parameters(schema: Any) -> Iterator[str]:
    yield from ("trace", "out")
    starred = False
    for argument in schema.arguments:
        if argument.kwarg_only and not starred:
            starred = True
            yield "*"
        default = f"={argument.default_value!r}" if argument.has_default_value() else ""
        yield _safe(argument.name) + default


def _body(name: str, tensors: Mapping[str, Tensor], lists: Sequence[str], out: Any) -> Iterator[str]:
    named = {key: _dims(key, tensor) for key, tensor in tensors.items() if tensor.dim()}
    for key, dims in named.items():
        yield f"{_unpacked(dims)} = trace[{key}].axes  # {_sizes(tensors[key])}"
    yield from _examples(name, named)
    pinned = f'"the rule of {name} is a stub", "rule"'
    for key in lists:
        yield f"for axis in [axis for tensor in {key} for axis in trace[tensor].axes]:"
        yield f"    trace.pin(axis, {pinned})"
    if named:
        yield f"for axis in [{', '.join(dim for dims in named.values() for dim in dims)}]:"
        yield f"    trace.pin(axis, {pinned})"
    yield "# Each dimension of the output: an axis from above, a trace.graph.product or sum of some, or pinned anew;"
    yield "# and whether it is zero where such an index of the inputs is zero (True where f(0) = 0)."
    if isinstance(out, Tensor):
        yield from _output("out", out, pinned)
    elif isinstance(out, tuple) and all(isinstance(t, Tensor) for t in out):
        names = [f"out{i}" for i in range(len(out))]
        yield f"{_unpacked(names)} = out"
        for key, tensor in zip(names, out, strict=True):
            yield from _output(key, tensor, pinned)
    else:
        yield "for tensor in out:"
        yield f"    trace.put(tensor, trace.pinned(tensor.shape, {pinned}), [False] * tensor.dim())"


def _examples(name: str, named: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What a rule can say, with the names at hand, as comments."""
    if not named:
        return
    (first, dims), (second, others) = (list(named.items()) * 2)[:2]
    a, b, short = dims[-1], others[0] if others is not dims else dims[0], name.rpartition(".")[2]
    said = {
        "one axis in two places": f'trace.unify({a}, {b}, "{short}")',
        "summed over": f'trace.contract(({first}, {len(dims) - 1}), ({second}, 0), "{short}")',
        "it must stay": f'trace.pin({a}, "its values are ranked")',
        "no zero stands for a missing index": f'trace.inexact({a}, "{short}")',
        "multiply-accumulates": f"trace.cost({', '.join(dims)}, source=trace[{second}].source)",
    }
    yield "# Say what holds, then delete the loop that pins:"
    width = max(map(len, said))
    yield from (f"#   {what:{width}}  {code}" for what, code in said.items())


def _output(key: str, tensor: Tensor, pinned: str) -> Iterator[str]:
    dims = _dims(key, tensor)
    if dims:
        yield f"{_unpacked(dims)} = trace.pinned({key}.shape, {pinned})  # {_sizes(tensor)}"
    axes, zero = (f"({', '.join(each)}{',' * (len(each) == 1)})" for each in (dims, ["False"] * len(dims)))
    yield f"trace.put({key}, {axes}, zero={zero})"


def _dims(key: str, tensor: Tensor) -> list[str]:
    return [f"{key}_{i}" for i in range(tensor.dim())]


def _unpacked(names: Sequence[str]) -> str:
    return f"({names[0]},)" if len(names) == 1 else ", ".join(names)


def _sizes(tensor: Tensor) -> str:
    return ("size " if tensor.dim() == 1 else "sizes ") + ", ".join(str(int(size)) for size in tensor.shape)


def _safe(name: str) -> str:
    return f"{name}_" if keyword.iskeyword(name) else name


def _is_list_of_tensors(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and bool(value) and all(isinstance(t, Tensor) for t in value)
