"""Fixtures, imported before any test is."""

from helpers.fixtures import one_thread, poisoned_outputs

__all__ = ["one_thread", "poisoned_outputs"]
