"""Physical pruning, for shipping: smaller tensors, the same class, and the proof that nothing else changed."""

from topiarist.shrink.apply import shrink
from topiarist.shrink.verify import Verification, verify

__all__ = ["Verification", "shrink", "verify"]
