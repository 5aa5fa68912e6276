"""Fixtures and hooks, imported before any test is."""

from helpers.fixtures import cluster, one_thread, poisoned_outputs, pytest_runtest_setup, rounded_float8, two_threads

__all__ = ["cluster", "one_thread", "poisoned_outputs", "pytest_runtest_setup", "rounded_float8", "two_threads"]
