"""Other values in the place of parameters during each forward pass, and the parameters themselves the rest of the time.

No key of the state dict changes, no module is wrapped and optimizers keep their parameters; autograd goes through what
is computed. Copies of the model made meanwhile are plain models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from topiarist.held import held_tensors, put_tensor

Compute = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class Replaced:
    """While attached, the named parameters of ``model`` are what ``compute`` makes of them, whenever it runs.

    ``compute`` gets the parameters by name, and returns tensors of their shapes; it runs once a forward pass of the
    whole model. Not for activation checkpointing, which runs parts of the model again by themselves.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> doubled = Replaced(layer, ["weight"], lambda weights: {n: 2 * w for n, w in weights.items()})
        >>> import torch
        >>> once = layer(torch.ones(1, 1))
        >>> doubled.attach()
        >>> bool(layer(torch.ones(1, 1)) == 2 * once)
        True
        >>> doubled.detach()
    """

    def __init__(self, model: nn.Module, names: Sequence[str], compute: Compute) -> None:
        self.model, self._names, self._compute = model, tuple(names), compute
        self._handles: list[RemovableHandle] = []
        self._put_back: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._depth = 0  # a model may call itself

    def attach(self) -> None:
        """Replace from now on; a second call changes nothing."""
        if self._handles:
            return

        def before(
            module: nn.Module, args: Any
        ) -> None:  # plain functions: a deep copy of the model keeps them as they
            if module is self.model:  # are, where they do nothing
                self._enter()

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if module is self.model:
                self._leave()

        self._handles = [
            self.model.register_forward_pre_hook(before),
            self.model.register_forward_hook(after, always_call=True),
        ]

    def detach(self) -> None:
        """Stop replacing, without a trace."""
        while self._handles:
            self._handles.pop().remove()

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        held = dict(self.model.named_parameters(remove_duplicate=False))
        made = self._compute({name: held[name] for name in self._names})
        by_id = {id(held[name]): made[name] for name in self._names}
        for name, parameter in held.items():  # tied parameters under each of their names
            if id(parameter) in by_id:
                path, _, leaf = name.rpartition(".")
                owner = self.model.get_submodule(path)
                self._put_back.append((owner, leaf, parameter))
                owner._parameters[leaf] = by_id[id(parameter)]  # type: ignore[assignment]

    def _leave(self) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            while self._put_back:
                owner, leaf, parameter = self._put_back.pop()
                made, owner._parameters[leaf] = owner._parameters[leaf], parameter
                for path, tensor in held_tensors(owner).items():  # recurrent layers list their weights as they run
                    if tensor is made:
                        put_tensor(owner, path, parameter)
