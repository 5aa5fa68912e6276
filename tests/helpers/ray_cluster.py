"""A Ray cluster of one machine, in a process of its own: `python ray_cluster.py`; it ends with its standard input."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs."""

    pid: int
    environment: dict[str, str]
    """Environment variables of processes that use it."""

    def processes(self) -> list[psutil.Process]:
        """All of its processes; Ray names those of actors by what they do."""
        return psutil.Process(self.pid).children(recursive=True)


@contextmanager
def ray_cluster(cpus: int) -> Iterator[Cluster]:
    """Starts a cluster for the context; `cpus`: cores that it reckons with, however many there are."""
    # By name, so that those who use the cluster need not find where Ray keeps a token.
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, **access, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with subprocess.Popen(
        [sys.executable, __file__, str(cpus)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = json.loads(next(line for line in process.stdout if line.startswith("{")))["address"]
            yield Cluster(process.pid, {**environment, "RAY_ADDRESS": address})
        finally:
            process.stdin.close()
            process.wait(60)


def _run(cpus: int) -> None:
    import ray

    # Not below a test's folder: the names of its sockets would be too long.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        # A cluster of its own, whatever runs on the machine.
        ray.init("local", num_cpus=cpus, include_dashboard=False, _temp_dir=folder)
        print(json.dumps({"address": ray.get_runtime_context().gcs_address}), flush=True)
        sys.stdin.read()
        ray.shutdown()


if __name__ == "__main__":
    _run(int(sys.argv[1]))
