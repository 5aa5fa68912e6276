"""What the runs of this folder start from: a tiny judge and pairs of generated tasks, made once and only read."""

import pytest
from helpers.small_training import STEPS, run, write_checkpoint, write_pairs


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def labeled(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "labeled.jsonl", 24)


@pytest.fixture(scope="session")
def unlabeled(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "unlabeled.jsonl", 24, labeled=False)


@pytest.fixture(scope="session")
def whole(base, labeled, tmp_path_factory):
    """A run that nothing disturbed."""
    return run("finetune", base, labeled, tmp_path_factory.mktemp("whole") / "out", **STEPS)
