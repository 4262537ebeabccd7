"""Layer-wise pruning by a window of three layers that slides over the network: cut the middle one, refit the next."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist import recover as recoveries
from topiarist.errors import InputError, nearest
from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.recover import InTurn, Refit

ORDERS = {"shallow-first": True, "deep-first": "deep-first"}


@method(
    paper="a scheme of several papers: He, Zhang, Sun 2017 and Luo, Wu, Lin 2017 are instances with their own criteria",
    structure="channel",
    needs=("data",),
    headline="none of its own; see channel-lasso and thinet",
)
def layerwise(
    model: nn.Module,
    example_inputs: Any,
    *,
    order: str = "shallow-first",
    saliency: Any = "filter-l2",
    max_samples: int = 1024,
    ridge: float | None = None,
    recover: Any = "none",
    **options: Any,
) -> PruneResult:
    """Cut one layer after the other by any criterion, and refit what reads it to what the original network computed.

    The window holds the layers l − 1, l, l + 1: units of l go, and the outgoing weights are refitted by least squares
    to the original inputs of l + 1's activation, on what the layers before the window give by now. ``order`` is the way
    it slides: ``"shallow-first"``, errors of the prefix are made up for, or ``"deep-first"``. ``max_samples`` is how
    much of ``data`` the fits take, ``ridge`` as in `topiarist.recover.Reconstruct`, ``recover`` what follows the last
    layer. Every layer loses the fraction that meets
    ``budget``, unless ``allocation`` says otherwise. Other options are those of `topiarist.prune`.

    Raises:
        InputError: no such order.
    """
    if order not in ORDERS:
        raise InputError(f"no order is called {order!r} ({nearest(order, ORDERS)})")
    sequential: Any = ORDERS[order]
    follows = InTurn(Refit(max_samples, ridge), recoveries.resolve(recover))
    return prune(
        model,
        example_inputs,
        structure="channel",
        saliency=saliency,
        recover=follows,
        sequential=sequential,
        **{"allocation": "uniform", **options},
    )
