"""The servers, in processes of their own: `gram-fast serve`, the naive one, and vLLM's."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from gram_fast import PairwiseJudge

SECONDS_TO_START = 300
SECONDS_TO_STOP = 30

Running = tuple[str, psutil.Process]
"""A server's address and process."""


@contextmanager
def gram_fast_server(model: str, *options: str, threads: int = 1) -> Iterator[Running]:
    """`gram-fast serve`."""
    command = (sys.executable, "-m", "gram_fast", "serve", "-m", model, "--port", "0", *options)
    with running(*command, threads=threads) as server:
        yield server


@contextmanager
def naive_server(model: str) -> Iterator[Running]:
    """The naive server."""
    with running(sys.executable, "-m", "benchmarks.serving", "--naive", "--model", model) as server:
        yield server


@contextmanager
def running(*command: str, threads: int = 1) -> Iterator[Running]:
    """A server that logs its address."""
    surroundings = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=surroundings) as process:
        assert process.stderr is not None
        url = next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.]+:\d+", line)))
        threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
        try:
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def _drain(log: Any) -> None:
    """Reads on, so that the server need not wait to write."""
    with contextlib.suppress(ValueError):  # closed
        for _ in log:
            pass


def serve_naively(model: str) -> None:
    """The naive server: one call at a time."""
    import uvicorn
    from fastapi import Body, FastAPI

    judge, lock = PairwiseJudge.from_pretrained(model), threading.Lock()
    app = FastAPI()

    @app.post("/v1/compare")
    def compare(prompt: str = Body(), a: str = Body(), b: str = Body()) -> dict[str, Any]:
        with lock:
            result = judge.compare(prompt, a, b)
        return {"p": result.p, "stats": vars(result.stats)}

    uvicorn.run(app, port=0, access_log=False, http="h11")


class VllmOptions(NamedTuple):
    """How vLLM runs."""

    batched_tokens: int
    """Most tokens of a pass."""
    is_eager: bool
    """Whether its forward is torch's calls, one by one; else torch.compile's, which takes a minute to start."""

    def arguments(self) -> list[str]:
        """As its command line takes them."""
        return ["--max-num-batched-tokens", str(self.batched_tokens), *(["--enforce-eager"] if self.is_eager else [])]


@contextmanager
def vllm_server(
    python: Path, model: Path, options: VllmOptions, *, dtype: str, threads: int, cache_gib: int, max_length: int
) -> Iterator[Running]:
    """vLLM's server, by the interpreter of an environment that has it. Raises RuntimeError where it does not start.

    A block is what its prefix cache shares. A CPU's default of 128 tokens finds less than 32 do
    (benchmarks/scorer/vllm_rival.py), and the kernels want multiples of 32.
    """
    cores = sorted(os.sched_getaffinity(0))[:threads]
    surroundings = os.environ | {
        # Else it leaves one core to its scheduler.
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
    }
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # The module, not the command `vllm`: that of vllm-cpu 0.32 looks for a distribution of the name "vllm" and fails.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--max-model-len", str(max_length)]
    command += ["--enable-prefix-caching", "--block-size", "32", "--disable-uvicorn-access-log", *options.arguments()]
    with tempfile.TemporaryFile("w+") as log, _ended(command, surroundings, log) as process:
        _await_start(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)


@contextmanager
def _ended(command: list[str], surroundings: Mapping[str, str], log: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process that starts others, none of which is left."""
    process = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=surroundings)
    try:
        yield process
    finally:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
            whole = psutil.Process(process.pid)
            family = [whole, *whole.children(recursive=True)]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_STOP)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        psutil.wait_procs(family, SECONDS_TO_STOP)


def _await_start(url: str, process: "subprocess.Popen[str]", log: Any) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        time.sleep(0.5)
    log.seek(0)
    raise RuntimeError(f"vLLM's server did not start; it wrote {log.read()[-2000:]}")


def cpu_seconds(process: psutil.Process) -> float:
    """What a server has computed so far, in all of its processes."""
    return sum(sum(member.cpu_times()[:2]) for member in [process, *process.children(recursive=True)])
