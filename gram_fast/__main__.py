"""Runs the command line: python -m gram_fast."""

from gram_fast.cli import main

main()
