"""What a model costs: counted exactly, timed side by side."""

from topiarist.measure.accuracy import evaluate
from topiarist.measure.latency import Latency, compare, latency
from topiarist.measure.macs import MacCount, macs, nonzero_macs
from topiarist.measure.memory import peak_activation_bytes
from topiarist.measure.params import num_nonzero, num_params
from topiarist.measure.size import bytes_in_memory, bytes_on_disk, bytes_stored
from topiarist.measure.summary import Measurement, measure

__all__ = [
    "Latency",
    "MacCount",
    "Measurement",
    "bytes_in_memory",
    "bytes_on_disk",
    "bytes_stored",
    "compare",
    "evaluate",
    "latency",
    "macs",
    "measure",
    "nonzero_macs",
    "num_nonzero",
    "num_params",
    "peak_activation_bytes",
]
