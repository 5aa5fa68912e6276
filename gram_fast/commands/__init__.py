"""Shared parts of the gram-fast subcommands: options, input and output rows, installation report."""
