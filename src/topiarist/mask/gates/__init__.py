"""Gates that learn which units are needed: one kind of gate a file, and `Gates`, which puts them on a model."""

from topiarist.mask.gates.attach import Gates
from topiarist.mask.gates.base import Gate
from topiarist.mask.gates.beta_bernoulli import BetaBernoulli
from topiarist.mask.gates.hard_concrete import HardConcrete
from topiarist.mask.gates.scalar import ScalarGate

__all__ = ["BetaBernoulli", "Gate", "Gates", "HardConcrete", "ScalarGate"]
