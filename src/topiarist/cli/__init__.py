"""The command line: ``topiarist train | prune | sensitivity | explain | measure | report | demo``."""

from topiarist.cli.app import main

__all__ = ["main"]
