"""One Ray cluster for all tests of this folder: it takes seconds to start."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers.ray_cluster import Cluster, ray_cluster
from helpers.small_models import write_judge


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster that has room for four judges."""
    pytest.importorskip("ray", reason="needs Ray: pip install gram_fast[ray]")
    with ray_cluster(cpus=4) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge that the tests of all kinds of clusters load."""
    return write_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def kill_one(cluster: Cluster) -> Callable[[str], None]:
    """Ends one of the processes that Ray names so, as a machine that fails would."""

    def kill(name: str) -> None:
        found: list[psutil.Process] = []
        deadline = time.monotonic() + 30
        while not found and time.monotonic() < deadline:
            found = [one for one in cluster.processes() if name in one.name() or name in " ".join(one.cmdline()[:1])]
            time.sleep(0.05)
        os.kill(found[0].pid, signal.SIGKILL)

    return kill
