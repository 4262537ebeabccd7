"""What a method is: a published system as a short composition of the rooms, and what there is to say of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from topiarist.errors import InputError, nearest
from topiarist.pruner import Pruner
from topiarist.pruning import PruneResult, prune

Run = Callable[..., PruneResult]
R = TypeVar("R", bound=Run)

NEEDS = ("data", "gradients", "training")


@dataclass(frozen=True)
class Method:
    """A published system: ``run(model, example_inputs, budget=…, data=…, loss=…, …)``, and what there is to say of it.

    Args:
        name: its word in recipes and on the command line.
        paper: who, when and what.
        structure: what one unit is, in the words of `topiarist.structure`.
        needs: of ``"data"``, ``"gradients"`` and ``"training"`` those it cannot do without.
        when: ``"before"``, ``"during"`` or ``"after"`` training.
        untrained: it starts from the weights of before the training, which the command line then keeps for it.
        headline: the figure that the paper is known for, with its source where it is not the paper.
    """

    name: str
    paper: str
    structure: str
    needs: tuple[str, ...]
    when: str
    headline: str
    run: Run
    untrained: bool = False

    @property
    def summary(self) -> str:
        """The idea in one sentence."""
        return (inspect.getdoc(self.run) or "").partition("\n")[0]

    @property
    def options(self) -> dict[str, Any]:
        """What can be said beyond the arguments of `topiarist.prune`: the method's own options and their defaults."""
        parameters = inspect.signature(self.run).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}

    def told(self, model: nn.Module, example_inputs: Any, options: Mapping[str, Any], **given: Any) -> PruneResult:
        """What ``run`` makes of the model with what it is ``given`` and with a user's ``options``.

        Raises:
            InputError: an option that the method decides itself, or does not have.
        """
        try:
            return self.run(model, example_inputs, **given, **options)
        except TypeError as error:
            refused = re.search(r"(multiple values for|unexpected) keyword argument '(\w+)'", str(error))
            if refused is None or refused[2] not in options:
                raise
            raise self._refusal(refused[2], options[refused[2]], decides=refused[1] != "unexpected") from error

    def check(self, options: Iterable[str]) -> None:
        """Refuse options that neither the method nor `topiarist.prune` has, before anything is run.

        Raises:
            InputError: there is one.
        """
        known = {name for made_by in (self.run, prune, Pruner) for name in inspect.signature(made_by).parameters}
        for name in options:
            if name not in known:
                raise self._refusal(name, decides=False)

    def _refusal(self, option: str, value: object = None, *, decides: bool) -> InputError:
        own = ", ".join(self.options) or "none of its own"
        if decides:
            return InputError(
                f"the method {self.name} decides {option!r} itself, got {value!r}; leave it out (its options: {own})"
            )
        return InputError(
            f"the method {self.name} has no option {option!r} ({nearest(option, self.options)}; its options: {own})"
        )


METHODS: dict[str, Method] = {}


def method(
    *,
    paper: str,
    structure: str,
    headline: str,
    needs: tuple[str, ...] = (),
    when: str = "after",
    untrained: bool = False,
) -> Callable[[R], R]:
    """List a function among `METHODS`, by its name with hyphens for underscores; the function stays what it is.

    Raises:
        InputError: a need that is not one of `NEEDS`.
    """
    for need in needs:
        if need not in NEEDS:
            raise InputError(f"a method needs {', '.join(NEEDS)}, got {need!r}")

    def decorate(run: R) -> R:
        name = run.__name__.replace("_", "-")
        METHODS[name] = Method(name, paper, structure, needs, when, headline, run, untrained)
        return run

    return decorate


def resolve(name: str) -> Method:
    """The method of this name.

    Raises:
        InputError: there is none.

    Example:
        >>> resolve("magnitude").structure
        'weight'
    """
    if name not in METHODS:
        raise InputError(f"no method is called {name!r} ({nearest(name, METHODS)})")
    return METHODS[name]
