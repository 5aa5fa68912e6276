"""A Ray cluster of one machine: `python ray_cluster.py CPUS` is one until the end of its standard input."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
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

    def kill_one(self, name: str) -> None:
        """Ends one of the actors whose process Ray names so, as a machine that fails would."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for process in psutil.Process(self.pid).children(recursive=True):
                if any(part.startswith(name) for part in process.cmdline()[:1]):
                    os.kill(process.pid, signal.SIGKILL)
                    return
            time.sleep(0.05)
        raise AssertionError(f"there is no process {name}")


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
