"""What a model multiplies its weights by: every product of activations with a parameter, seen below its modules.

Matrix products and convolutions are watched as torch runs them, whatever module or function asked for them, so that
layers written by hand and those inside `torch.nn.MultiheadAttention` are seen like any other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


@dataclass(frozen=True)
class Window:
    """How a convolution slides: one number per spatial dimension, and its groups."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool

    def num_positions(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """How many patches there are along each spatial dimension of inputs of these sizes."""
        if self.transposed:
            return tuple(sizes)
        of = zip(sizes, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((size + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, gap in of)


@dataclass(frozen=True, eq=False)
class Use:
    """One product of activations with the parameter called ``weight``, whose dimension ``in_dim`` is summed over.

    ``inputs`` is of shape (rows, features) for a matrix, (groups, rows, features) for a stack of matrices, and
    (samples, channels, *positions) for a convolution, which has a ``window``. ``gradient``, of the same shape, is that
    of the loss by the inputs through this product alone; None on the way forward. ``outputs`` is what the product gave,
    its features in the same dimension as those of the inputs; None on the way back.
    """

    weight: str
    in_dim: int
    inputs: Tensor
    window: Window | None = None
    gradient: Tensor | None = None
    outputs: Tensor | None = None

    def features(self, of: Tensor | None = None) -> Tensor:
        """The inputs, or what has their shape, as (rows, groups, features): a row is a sample at a position."""
        x = self.inputs if of is None else of
        if self.window is not None:
            return x.movedim(1, -1).reshape(-1, self.window.groups, x.shape[1] // self.window.groups)
        return x.movedim(0, 1) if x.dim() == 3 else x[:, None]

    def rows(self, where: Tensor | None = None) -> Tensor:
        """What one output is a linear function of: (rows, groups, weights of one output), as the weight lies.

        For a convolution these are its patches, (channels of the group, *kernel) flattened. ``where``, int64 of shape
        (rows,), takes those rows alone.
        """
        window = self.window
        if window is None or window.transposed:
            return self.features() if where is None else self.features()[where]
        x = F.pad(self.inputs, [side for pad in reversed(window.padding) for side in (pad, pad)])
        for dim, (size, step, gap) in enumerate(zip(window.kernel, window.stride, window.dilation, strict=True)):
            x = x.unfold(dim + 2, (size - 1) * gap + 1, step)[..., ::gap]
        x = x.movedim(1, len(window.kernel) + 1)  # (samples, *positions, channels, *kernel)
        if where is not None:
            x = x[torch.unravel_index(where, x.shape[: len(window.kernel) + 1])]
        return x.reshape(
            -1, window.groups, x.shape[-len(window.kernel) - 1] // window.groups * math.prod(window.kernel)
        )

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        if self.window is None:
            return self.inputs.shape[-2]
        return len(self.inputs) * math.prod(self.window.num_positions(self.inputs.shape[2:]))

    def total(self, of: Tensor | None = None) -> Tensor:
        """The sum of all rows, or of what they would be of what has the shape of the inputs: (groups, weights).

        It is float64; samples are summed before their patches are looked at.
        """
        x = self.inputs if of is None else of
        if self.window is None or self.window.transposed:
            return self.features(x).sum(0, dtype=torch.float64)
        return replace(self, inputs=x.sum(0, keepdim=True, dtype=torch.float64)).rows().sum(0)

    def samples(self, num: int, of: Tensor | None = None) -> Tensor:
        """The inputs, or what has their shape, as (samples, groups, features, positions), for ``num`` samples.

        Rows of a matrix are taken to be ordered by sample; where they are no multiple of ``num``, each is a sample.
        """
        x = self.features(of)
        num = num if len(x) % num == 0 else len(x)
        return x.reshape(num, -1, *x.shape[1:]).movedim(1, -1)


class Watch(TorchDispatchMode):
    """Inside the ``with``, ``on_use`` is called with every `Use` of a parameter of ``model``.

    With ``on_gradient`` as well, run the backward pass inside `backward`: it is called with the same uses, last first,
    each with the gradient of its inputs, where one is computed.

    Example:
        >>> layer, x = nn.Linear(2, 1), torch.ones(3, 2)
        >>> with Watch(layer, lambda use: print(use.weight, tuple(use.inputs.shape))):
        ...     _ = layer(x)
        weight (3, 2)
    """

    def __init__(
        self, model: nn.Module, on_use: Callable[[Use], None], on_gradient: Callable[[Use], None] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_use, self.on_gradient = on_use, on_gradient
        self._parameters: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if not parameter.is_meta:
                self._parameters[parameter.untyped_storage().data_ptr()].append((name, parameter))
        self._seen: dict[str, list[Use]] = defaultdict(list)
        self._is_backward = False

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Inside, products are those of the backward pass."""
        self._is_backward = True
        try:
            yield
        finally:
            self._is_backward = False
            self._seen.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            left, right = args[_PRODUCTS[func] : _PRODUCTS[func] + 2]
            self._product(left, right, out)
            self._product(right.mT, left.mT, out.mT)
        elif func is _aten.convolution.default and not self._is_backward:
            self._convolution(args, out)
        elif func is _aten.convolution_backward.default and self._is_backward:
            self._convolution_backward(args, out)
        return out

    def _product(self, rows: Tensor, matrix: Tensor, out: Tensor) -> None:
        """``rows @ matrix``, where the matrix may be a parameter: on the way back, the gradient of what it had."""
        found = self._parameter(matrix)
        if found is None and matrix.dim() == 3 and len(matrix) == 1:  # einsum makes stacks of one of matrices
            rows, matrix, out = rows[0], matrix[0], out[0]
            found = self._parameter(matrix)
        if found is None:
            return
        name, in_dim = found
        if not self._is_backward:
            self._forward(Use(name, in_dim, rows, outputs=out))
        elif self._seen[name] and self._seen[name][-1].in_dim != in_dim:
            self._gradient(self._seen[name].pop(), out)

    def _convolution(self, args: Sequence[Any], out: Tensor) -> None:
        x, weight, _, stride, padding, dilation, transposed, _, groups = args
        name = self._same(weight)
        if name is not None:
            kernel = tuple(weight.shape[2:])
            stride, padding, dilation = (tuple(s) * (len(kernel) // len(s)) for s in (stride, padding, dilation))
            window = Window(kernel, stride, padding, dilation, groups, transposed)
            self._forward(Use(name, 0 if transposed else 1, x, window, outputs=out))

    def _convolution_backward(self, args: Sequence[Any], out: Sequence[Tensor | None]) -> None:
        name = self._same(args[2])
        if name is not None and self._seen[name]:
            use = self._seen[name].pop()
            if out[0] is not None:
                self._gradient(use, out[0])

    def _forward(self, use: Use) -> None:
        if self.on_gradient is not None and torch.is_grad_enabled():
            self._seen[use.weight].append(replace(use, outputs=None))
        with torch.no_grad():
            self.on_use(use)

    def _gradient(self, use: Use, gradient: Tensor) -> None:
        if self.on_gradient is not None and gradient.shape == use.inputs.shape:
            with torch.no_grad():
                self.on_gradient(replace(use, gradient=gradient))

    def _same(self, weight: Tensor) -> str | None:
        candidates = self._parameters.get(weight.untyped_storage().data_ptr(), ())
        return next((n for n, p in candidates if p.shape == weight.shape and p.stride() == weight.stride()), None)

    def _parameter(self, matrix: Tensor) -> tuple[str, int] | None:
        """The parameter that a matrix (features, outputs), or a stack of them, is, whole or some of its outputs."""
        last = matrix.dim() - 1
        for name, p in self._parameters.get(matrix.untyped_storage().data_ptr(), ()):
            if p.dim() != matrix.dim() or (last == 2 and p.shape[0] != matrix.shape[0]):
                continue
            for in_dim, out_dim in ((last, last - 1), (last - 1, last)):
                if (
                    matrix.shape[-2] == p.shape[in_dim]
                    and matrix.shape[-1] <= p.shape[out_dim]
                    and matrix.stride()[-2:] == (p.stride(in_dim), p.stride(out_dim))
                ):
                    return name, in_dim
        return None


_PRODUCTS = {
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.addmm.default: 1,
    _aten.baddbmm.default: 1,
}  # where the left factor stands among the arguments
