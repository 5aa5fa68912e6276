"""A plugin for pytest: a file that imports what is not installed is skipped, and does not fail the run.

python -m pytest -p benchmarks.gpu.left_out ...
"""

import re
from collections.abc import Generator

import pytest

OWN = ("gram_fast", "helpers", "benchmarks", "examples")
"""Packages of this repository: a file that misses one of them is broken."""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Makes an error of a missing package a skip that names it."""
    report = yield
    missing = re.search(r"ModuleNotFoundError: No module named '(\w+)", report.longreprtext) if report.failed else None
    if missing and missing[1] not in OWN:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"needs the package {missing[1]}")
    return report
