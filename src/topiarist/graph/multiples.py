"""Which tensors are multiples of which weights: what a layer makes is twice as large where its weights are.

While a model runs on tensors without values, each tensor is known as a product of powers of *atoms*: the weights it was
made by, or one of the numbers in the code. Multiplying all entries of an atom by c > 0 multiplies the tensor by cᵉ, e
its power. Operators hand powers on (products add them, a root halves them, a slice keeps the rows it keeps), and what
does not (softmax, a sum of two things, the end of the model) *reads* a tensor: the powers at each such place are
written down. A number in the code and a weight stand for one another where all that is read holds both, or neither.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from topiarist.graph.kernels import Kernels
from topiarist.graph.rehearsal import Numbers
from topiarist.outputs import tensors_in

aten = torch.ops.aten
NUMBER = "the number "  # in place of the name of a weight; no name has a space


class Factor(NamedTuple):
    """One digit of an index, most significant first: it adds ``stride`` times itself to the place along ``dim`` of the
    weight; ``dim`` is None where the tensor repeats."""

    size: int
    dim: int | None
    stride: int


class Part(NamedTuple):
    """The entries of a weight that a tensor hangs on: those at ``offset`` plus what the digits of the tensor's own
    dimensions, ``dims``, and ``rest`` add; ``dims`` is None where which entry lies where is not known any more."""

    tensor: str
    offset: tuple[int, ...]
    dims: tuple[tuple[Factor, ...], ...] | None
    rest: tuple[Factor, ...]

    def loose(self) -> Part:
        """The same entries, without saying which lies where."""
        return self._replace(dims=None, rest=(*self.rest, *(f for dim in self.dims or () for f in dim if f.stride)))


Atom = frozenset[Part]
Powers = Mapping[Atom, float]
_NOTHING: Powers = {}


@functools.lru_cache(maxsize=1 << 12)
def places(part: Part) -> tuple[frozenset[int], ...]:
    """Which places along each dimension of the weight a part takes up."""
    found = []
    for dim, offset in enumerate(part.offset):
        own = {offset}
        for factor in (*part.rest, *(f for factors in part.dims or () for f in factors)):
            if factor.dim == dim:
                own = {place + factor.stride * i for place in own for i in range(factor.size)}
        found.append(frozenset(own))
    return tuple(found)


def overlap(left: Atom, right: Atom) -> bool:
    """Whether two atoms share an entry."""
    return any(
        a.tensor == b.tensor and all(p & q for p, q in zip(places(a), places(b), strict=True))
        for a in left
        for b in right
    )


class Multiples(Numbers):  # type: ignore[no-untyped-call]
    """Follows the powers of atoms through a run, as `Numbers` follows numbers, which count as atoms at ``sites``."""

    def __init__(self, kernels: Kernels, weights: Mapping[str, Tensor], inputs: Any, sites: Collection[int]) -> None:
        super().__init__(kernels)
        self.reads: list[Powers] = []  # what is read as it is, in order
        self.site: Atom | None = None  # the number in the operator that runs
        self._sites = sites
        self._known: dict[int, tuple[Tensor, Powers]] = {}
        self._sharing: dict[int, list[Tensor]] = {}  # storage → tensors that look at it
        self._from_inputs: set[int] = set()
        for name, weight in weights.items():
            strides = [(Factor(size, dim, 1),) for dim, size in enumerate(weight.shape)]
            self.put(weight, {frozenset({Part(name, (0,) * weight.dim(), tuple(strides), ())}): 1.0})

        for tensor in tensors_in(inputs):
            self.put(tensor, _NOTHING)
            self._from_inputs.add(id(tensor))

    def end(self, out: Any) -> None:
        """What the model returns is read."""
        self.read(*tensors_in(out))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        num = len(self.found)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.site = frozenset({Part(f"{NUMBER}{num}", (), None, ())}) if num in self._sites else None
        if len(self.found) == num:
            self.site = None
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        rule = _RULES.get(func.overloadpacket)
        found = None if rule is None else rule(self, out, *args, **kwargs)
        if found is None:
            self.read(*given)
            if self.site is not None:
                self.reads.append({self.site: 1.0})
            found = [_NOTHING] * len(made)
        for tensor, powers in zip(made, found, strict=True):
            self.put(tensor, powers)
        if any(id(t) in self._from_inputs for t in given):
            self._from_inputs.update(map(id, made))
        return out

    def let_go(self) -> None:
        """Hold no tensor of the run any more."""
        self._known.clear()
        self._sharing.clear()

    def put(self, tensor: Tensor, powers: Powers) -> None:
        """Say of what a tensor is a multiple."""
        if id(tensor) not in self._known:
            self._sharing.setdefault(_storage(tensor), []).append(tensor)
        self._known[id(tensor)] = (tensor, powers)

    def __getitem__(self, tensor: Tensor) -> Powers:
        """Of what a tensor is a multiple; one that was made behind the operators' back reads what shares its memory."""
        if id(tensor) not in self._known:
            self.read(*self._sharing.get(_storage(tensor), ()))
            self.put(tensor, _NOTHING)
        return self._known[id(tensor)][1]

    def read(self, *tensors: Tensor) -> None:
        """These are used as they are: what comes of them is a multiple of nothing."""
        self.reads.extend(powers for t in tensors if (powers := self[t]))

    def written(self, tensor: Tensor, powers: Powers) -> None:
        """A number has been multiplied into ``tensor``: others that look at it hold it too, or at some places only."""
        for other in self._sharing.get(_storage(tensor), ()):
            if other is not tensor and other.numel() == tensor.numel() and self[other] == self[tensor]:
                self.put(other, powers)
            elif other is not tensor and self.site is not None:
                self.read(other)
                self.put(other, {self.site: 1.0})

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor is made of weights alone."""
        if id(tensor) in self._from_inputs:
            return False
        return any(not part.tensor.startswith(NUMBER) for atom in self[tensor] for part in atom)

    def factors(self, a: Tensor, b: Tensor) -> tuple[Powers, Powers]:
        """The powers of two factors; where one of them is a weight, the other is read, and the product is its."""
        if self.is_weight(a) != self.is_weight(b):
            other = b if self.is_weight(a) else a
            self.read(other)
            return (self[a], _NOTHING) if other is b else (_NOTHING, self[b])
        return self[a], self[b]


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return id(tensor)


# --------------------------------------------------------------------------------------------------------------- powers

_Dims = tuple[tuple[Factor, ...], ...]
_RULES: dict[Any, Callable[..., list[Powers] | None]] = {}


def _rule(*packets: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(rule: Callable[..., Any]) -> Callable[..., Any]:
        _RULES.update(dict.fromkeys(packets, rule))
        return rule

    return register


def _relaid(powers: Powers, change: Callable[[Part], Part | None]) -> Powers:
    """The same with parts that lie in another way; None stands for: not known any more."""
    made: dict[Atom, float] = {}
    for atom, power in powers.items():
        parts = ((part, change(part) if part.dims is not None else part) for part in atom)
        new = frozenset([part.loose() if other is None else other for part, other in parts])
        made[new] = made.get(new, 0.0) + power
    return made


def _loose(powers: Powers) -> Powers:
    return _relaid(powers, lambda part: None)


def _multiplied(left: Powers, right: Powers, power: float = 1.0) -> Powers | None:
    """left · rightᵖ; None where an atom of one shares some entries with one of the other, and is not that."""
    made = dict(left)
    for atom, own in right.items():
        if any(other != atom and overlap(atom, other) for other in left):
            return None
        made[atom] = made.get(atom, 0.0) + own * power
    return {atom: own for atom, own in made.items() if own}


def _added(left: Powers, right: Powers) -> Powers | None:
    """left + right, where both are multiples of the same, but for one atom of each: that is both together then."""
    left_own = [a for a in left if right.get(a) != left[a]]
    right_own = [a for a in right if left.get(a) != right[a]]
    if not left_own and not right_own:
        return left
    if len(left_own) != 1 or len(right_own) != 1 or left[left_own[0]] != right[right_own[0]]:
        return None
    both = left_own[0] | right_own[0]
    shared = {atom: power for atom, power in left.items() if atom != left_own[0]}
    if any(overlap(both, atom) for atom in shared) or any(part.tensor.startswith(NUMBER) for part in both):
        return None
    return {**shared, both: left[left_own[0]]}


# ---------------------------------------------------------------------------------------------------- operators, layout


@_rule(
    aten.clone, aten.alias, aten.detach, aten._to_copy, aten.neg, aten.relu, aten.abs, aten.leaky_relu, aten.tril,
    aten.triu, aten.contiguous, aten.lift_fresh_copy,
)  # fmt: skip
def _same(m: Multiples, out: Tensor, x: Tensor, *_: Any, **__: Any) -> list[Powers] | None:
    return None if m.site is not None else [m[x]]


@_rule(aten.lift_fresh, aten.lift, aten.full, aten.scalar_tensor)
def _number(m: Multiples, out: Tensor, *_: Any, **__: Any) -> list[Powers] | None:
    return [{m.site: 1.0}] if m.site is not None else None


_LOOSE = (aten.sum, aten.mean, aten.view_as_real, aten.view_as_complex, aten.repeat, aten.index_select, aten.flip)


@_rule(*_LOOSE)
def _over(m: Multiples, out: Tensor, x: Tensor, *_: Any, **__: Any) -> list[Powers]:
    return [_loose(m[x])]


@_rule(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.squeeze)
def _view(m: Multiples, out: Tensor, x: Tensor, *_: Any) -> list[Powers]:
    shape = tuple(out.shape)
    return [_relaid(m[x], lambda part: _with_dims(part, _regrouped(part.dims or (), shape)))]


def _with_dims(part: Part, dims: _Dims | None) -> Part | None:
    return None if dims is None else part._replace(dims=dims)


def _regrouped(dims: _Dims, shape: tuple[int, ...]) -> _Dims | None:
    """The digits of all dimensions, divided among others; None where these part a digit in a way that leaves a rest."""
    left = [f for dim in dims for f in dim if f.size != 1][::-1]
    result: list[tuple[Factor, ...]] = []
    for wanted in shape:
        taken: list[Factor] = []
        while wanted > 1:
            if not left:
                return None
            digit = left.pop()
            if wanted % digit.size == 0:
                taken.append(digit)
                wanted //= digit.size
            elif digit.size % wanted == 0:
                inner = digit.size // wanted
                taken.append(digit._replace(size=wanted, stride=digit.stride * inner))
                left.append(digit._replace(size=inner))
                wanted = 1
            else:
                return None
        result.append(tuple(taken))
    return tuple(result)


@_rule(aten.permute, aten.transpose, aten.t)
def _permute(m: Multiples, out: Tensor, x: Tensor, *dims: Any) -> list[Powers]:
    order = list(range(x.dim()))
    if len(dims) == 1:
        order = [d % x.dim() for d in dims[0]]
    elif len(dims) == 2 or x.dim() == 2:
        a, b = (d % x.dim() for d in (dims or (0, 1)))
        order[a], order[b] = order[b], order[a]
    return [_relaid(m[x], lambda part: part._replace(dims=tuple((part.dims or ())[d] for d in order)))]


@_rule(aten.unsqueeze)
def _unsqueeze(m: Multiples, out: Tensor, x: Tensor, dim: int) -> list[Powers]:
    place = dim % out.dim()

    def change(part: Part) -> Part:
        dims = part.dims or ()
        return part._replace(dims=(*dims[:place], (), *dims[place:]))

    return [_relaid(m[x], change)]


@_rule(aten.expand)
def _expand(m: Multiples, out: Tensor, x: Tensor, *_: Any, **__: Any) -> list[Powers]:
    return [_broadcast(m[x], tuple(x.shape), tuple(out.shape))]


def _broadcast(powers: Powers, shape: tuple[int, ...], wanted: tuple[int, ...]) -> Powers:
    """The same for a tensor that repeats along dimensions of size 1 and new ones in front."""
    if shape == wanted:
        return powers
    sizes = (1,) * (len(wanted) - len(shape)) + shape

    def change(part: Part) -> Part:
        dims = ((),) * (len(wanted) - len(shape)) + (part.dims or ())
        pairs = zip(dims, sizes, wanted, strict=True)
        return part._replace(dims=tuple(d if have == size else (Factor(size, None, 0),) for d, have, size in pairs))

    return _relaid(powers, change)


@_rule(aten.select)
def _select(m: Multiples, out: Tensor, x: Tensor, dim: int, index: int) -> list[Powers]:
    dim, size = dim % x.dim(), int(x.shape[dim % x.dim()])
    cut = _sliced(m[x], dim, size, int(index) % size, 1)
    return [_relaid(cut, lambda p: p._replace(dims=(*(p.dims or ())[:dim], *(p.dims or ())[dim + 1 :])))]


@_rule(aten.slice)
def _slice(
    m: Multiples, out: Tensor, x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> list[Powers]:
    dim = dim % x.dim()
    size = int(x.shape[dim])
    if step != 1:
        return [_loose(m[x])]
    return [_sliced(m[x], dim, size, slice(start, end).indices(size)[0], int(out.shape[dim]))]


@_rule(aten.split, aten.split_with_sizes)
def _split(m: Multiples, out: Sequence[Tensor], x: Tensor, _: Any, dim: int = 0) -> list[Powers]:
    dim, start, found = dim % x.dim(), 0, []
    for part in out:
        found.append(_sliced(m[x], dim, int(x.shape[dim]), start, int(part.shape[dim])))
        start += int(part.shape[dim])
    return found


@_rule(aten.unbind)
def _unbind(m: Multiples, out: Sequence[Tensor], x: Tensor, dim: int = 0) -> list[Powers]:
    made: list[list[Powers]] = [_select(m, part, x, dim, i) for i, part in enumerate(out)]
    return [powers for (powers,) in made]


def _sliced(powers: Powers, dim: int, size: int, start: int, length: int) -> Powers:
    """What is left of a dimension of ``size``; of digits, the first ones are cut, or none."""

    def change(part: Part) -> Part | None:
        dims = list(part.dims or ())
        digits = [f for f in dims[dim] if f.size != 1]
        if length == size or not digits:
            return part
        first, *others = digits
        inner = math.prod(f.size for f in others)
        if start % inner or length % inner:
            return None
        dims[dim] = (first._replace(size=length // inner), *others)
        offset = list(part.offset)
        if first.dim is not None:
            offset[first.dim] += start // inner * first.stride
        return part._replace(dims=tuple(dims), offset=tuple(offset))

    return _relaid(powers, change)


@_rule(aten.cat, aten.stack)
def _cat(m: Multiples, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> list[Powers] | None:
    made: Powers | None = _loose(m[tensors[0]])
    for tensor in tensors[1:]:
        made = None if made is None else _added(made, _loose(m[tensor]))
    return None if made is None else [made]


# -------------------------------------------------------------------------------------------------- operators, products


def _scaled(power: float) -> Callable[..., list[Powers] | None]:
    def rule(m: Multiples, out: Tensor, a: Any, b: Any, **options: Any) -> list[Powers] | None:
        if options:  # rounded
            return None
        if not isinstance(b, Tensor):
            made = m[a] if m.site is None else _multiplied(m[a], {m.site: 1.0}, power)
            return None if made is None else [made]
        pair = m.factors(a, b)
        left, right = (_broadcast(p, tuple(t.shape), tuple(out.shape)) for p, t in zip(pair, (a, b), strict=True))
        made = _multiplied(left, right, power)
        return None if made is None else [made]

    return rule


def _scaled_in_place(power: float) -> Callable[..., list[Powers] | None]:
    def rule(m: Multiples, out: Tensor, a: Tensor, b: Any, **options: Any) -> list[Powers] | None:
        if isinstance(b, Tensor):
            return None
        made = _scaled(power)(m, out, a, b, **options)
        if made is not None and m.site is not None:
            m.written(a, made[0])
        return made

    return rule


_RULES.update({aten.mul: _scaled(1.0), aten.div: _scaled(-1.0)})
_RULES.update({aten.mul_: _scaled_in_place(1.0), aten.div_: _scaled_in_place(-1.0)})


def _powered(power: float) -> Callable[..., list[Powers] | None]:
    return lambda m, out, x: [{atom: power * own for atom, own in m[x].items()}]


_RULES.update({aten.sqrt: _powered(0.5), aten.rsqrt: _powered(-0.5), aten.reciprocal: _powered(-1.0)})


@_rule(aten.add, aten.sub)
def _sum(m: Multiples, out: Tensor, a: Any, b: Any, alpha: float = 1) -> list[Powers] | None:
    if not isinstance(b, Tensor) or alpha != 1 or m.site is not None:
        return None
    shape = tuple(out.shape)
    made = _added(_broadcast(m[a], tuple(a.shape), shape), _broadcast(m[b], tuple(b.shape), shape))
    return None if made is None else [made]


@_rule(aten.mm, aten.bmm)
def _matmul(m: Multiples, out: Tensor, a: Tensor, b: Tensor) -> list[Powers] | None:
    left, right = m.factors(a, b)
    rows, columns = int(a.shape[-2]), int(b.shape[-1])
    made = _multiplied(_contracted(left, a.dim() - 1, True, columns), _contracted(right, b.dim() - 2, False, rows))
    return None if made is None else [made]


def _contracted(powers: Powers, dim: int, is_left: bool, size: int) -> Powers:
    """A factor of a matrix product: dimension ``dim`` is summed over, and it repeats along that of the other one."""

    def change(part: Part) -> Part:
        dims = list(part.dims or ())
        summed = [f for f in dims.pop(dim) if f.dim is not None]
        dims.insert(len(dims) if is_left else len(dims) - 1, (Factor(size, None, 0),))
        return part._replace(dims=tuple(dims), rest=(*part.rest, *summed))

    return _relaid(powers, change)


@_rule(aten.addmm)
def _addmm(m: Multiples, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product = None if (beta, alpha) != (1, 1) or m.site is not None else _matmul(m, out, a, b)
    if product is None:
        return None
    made = _added(product[0], _broadcast(m[bias], tuple(bias.shape), tuple(out.shape)))
    return None if made is None else [made]


@_rule(aten.convolution)
def _convolution(m: Multiples, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    m.read(x)
    made: Powers | None = _loose(m[weight])
    if rest[-1] == 1 and not rest[3]:  # neither groups nor transposed
        made = _relaid(m[weight], lambda part: _of_channels(part, tuple(out.shape)))
    if bias is not None and made is not None:
        made = _added(made, _of_rows(m[bias], 1, tuple(out.shape)))
    return None if made is None else [made]


def _of_channels(part: Part, shape: tuple[int, ...]) -> Part:
    dims = part.dims or ()
    free = [(Factor(size, None, 0),) for size in shape]
    rest = (f for factors in dims[1:] for f in factors if f.dim is not None)
    return part._replace(dims=(free[0], dims[0], *free[2:]), rest=(*part.rest, *rest))


def _of_rows(powers: Powers, dim: int, shape: tuple[int, ...]) -> Powers:
    """A vector along one dimension of a tensor that repeats along the others."""
    free = [(Factor(size, None, 0),) for size in shape]
    return _relaid(powers, lambda p: p._replace(dims=(*free[:dim], *(p.dims or ()), *free[dim + 1 :])))


@_rule(aten.embedding)
def _embedding(m: Multiples, out: Tensor, weight: Tensor, indices: Tensor, *_: Any) -> list[Powers]:
    free = tuple([(Factor(int(size), None, 0),) for size in indices.shape])

    def change(part: Part) -> Part:
        rows, columns = part.dims or ((), ())
        return part._replace(dims=(*free, columns), rest=(*part.rest, *(f for f in rows if f.dim is not None)))

    return [_relaid(m[weight], change)]


@_rule(aten.native_layer_norm)
def _layer_norm(
    m: Multiples, out: Any, x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float
) -> list[Powers] | None:
    if weight is None or m.site is not None:
        return None
    m.read(x)
    made: Powers | None = _broadcast(m[weight], tuple(weight.shape), tuple(out[0].shape))
    if bias is not None and made is not None:
        made = _added(made, _broadcast(m[bias], tuple(bias.shape), tuple(out[0].shape)))
    return None if made is None else [made, _NOTHING, _NOTHING]
