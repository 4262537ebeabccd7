"""Data for the demo, the command line and the bench: digits, parquet, the hub, texts, and the user's own loaders."""

from topiarist.data.digits import digits
from topiarist.data.loader import Batches, count_batches, first_batch
from topiarist.data.parquet import Images, read_folder, read_hub
from topiarist.data.resolve import Data, import_object, load_data
from topiarist.data.text import Segments, read_characters

__all__ = [
    "Batches",
    "Data",
    "Images",
    "Segments",
    "count_batches",
    "digits",
    "first_batch",
    "import_object",
    "load_data",
    "read_characters",
    "read_folder",
    "read_hub",
]
