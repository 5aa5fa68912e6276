"""Fixtures and hooks, imported before any test is."""

from helpers.fixtures import one_thread, poisoned_outputs, pytest_runtest_setup, rounded_float8, two_threads

__all__ = ["one_thread", "poisoned_outputs", "pytest_runtest_setup", "rounded_float8", "two_threads"]
