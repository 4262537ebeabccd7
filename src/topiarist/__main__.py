"""`python -m topiarist`: the command line."""

from topiarist.cli import main

main()
