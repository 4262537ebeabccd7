"""Small difficult networks: what real models do to their axes, one thing at a time, in a few lines each.

`ZOO` maps a name to a function that makes a network and example inputs. `build` makes one the same way every time, with
every parameter and statistic away from its usual start (a bias of zero or a variance of one hides mistakes).
"""

from topiarist.testing.zoo import attention, convolution, gates, layers, signals, sizes, tensors
from topiarist.testing.zoo.base import ZOO, Entry, Factory, Net, build, net, x

__all__ = ["ZOO", "Entry", "Factory", "Net", "build", "net", "x"]

_THEMES = (
    attention,
    convolution,
    gates,
    layers,
    signals,
    sizes,
    tensors,
)  # importing them puts their networks into `ZOO`
