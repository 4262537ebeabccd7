"""Why an axis is pinned or inexact: a text that knows its kind, and where in the model it arose."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "input", "output", "spatial", "single", "operator", "rule", "literal", "computed", "value", "branch", "hidden",
    "constant", "division", "order", "lookup", "groups", "foreign", "unused", "training", "config", "inexact",
]  # fmt: skip

FIXED: frozenset[Kind] = frozenset({"input", "output", "spatial", "single"})  # what no change of the code frees
ADVICE: dict[Kind, str] = {
    "input": "it is a dimension of what the model takes, and stays; cut what is made from it",
    "output": "it is a dimension of what the model returns, and stays; cut what it is made from",
    "spatial": "it is the extent of a kernel or an image, not a set of units, and stays",
    "single": "the last index of an axis stays",
    "operator": "register a rule for it with @topiarist.graph.rule(...), see docs/rules.md; axes.stub(name) begins it",
    "rule": "call the operator in a way that its rule knows, or mend the rule, see docs/rules.md",
    "literal": "take the size from the tensor's shape, or keep it in a module attribute that describes this axis alone",
    "computed": "compute that size from the tensor's shape, or from module attributes that describe one axis each",
    "value": "compute the number once in __init__, or pass it explicitly (scale=…), so that it stays as the size goes",
    "branch": "let the code take the same way whatever the size, or decide by a module attribute that stays",
    "hidden": "shape the tensor with view, reshape, split or cat, whose sizes can be followed",
    "constant": "register the constant as a buffer of its module, so that it is cut with the axis",
    "division": "divide the axis in the same way everywhere, into parts of equal size",
    "order": "the operator needs every index in its place: move it to where the axis does not come, or keep the axis",
    "lookup": "data or constants name its indices by number, and it stays as long as they do",
    "groups": "it counts groups that share something: cut inside of the groups, or give each member its own",
    "foreign": "compute it with torch's operators instead of NumPy, lists or raw memory",
    "unused": "pass example inputs that reach it, or delete it from the model",
    "training": "make model.train()(example_inputs) run; axes.training_error says what failed",
    "config": "no config describes fewer of it: prune without uniform=…, or give its size a field of its own",
    "inexact": "it may shrink, but no mask can equal the cut, since what runs over the axis sees its size",
}


class Reason(str):
    """A reason in words, with its kind, the source line of the model's code and the module that ran.

    Example:
        >>> reason = Reason("its values are ranked", "order", "my/net.py:12", "head")
        >>> print(reason, "|", reason.kind, reason.module)
        its values are ranked, at my/net.py:12 | order head
        >>> print(Reason("its values are ranked", "order", module="head"))  # no code of the model's own on the stack
        its values are ranked, in head
    """

    kind: Kind
    where: str
    module: str

    def __new__(cls, text: str, kind: Kind = "order", where: str = "", module: str = "") -> Reason:
        place = f", at {where}" if where else f", in {module}" if module else ""
        reason = super().__new__(cls, text + place)
        reason.kind, reason.where, reason.module = kind, where, module
        return reason

    @property
    def advice(self) -> str:
        """What to do about it, in one sentence."""
        return ADVICE[self.kind]

    def __reduce__(self) -> tuple[object, ...]:
        return (_restored, (str(self), self.kind, self.where, self.module))


def _restored(text: str, kind: Kind, where: str, module: str) -> Reason:
    reason = Reason(text, kind)
    reason.where, reason.module = where, module
    return reason
