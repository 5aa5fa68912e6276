"""vLLM's server as benchmarks/serving starts it: how it is called, counted and ended. A stand-in runs."""

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import psutil
import pytest

from benchmarks.serving.beside_vllm import VLLM_COUNTER
from benchmarks.serving.load import counted
from benchmarks.serving.servers import Running, VllmOptions, cpu_seconds, vllm_server

STAND_IN = """
import json, os, pathlib, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

if "13" in sys.argv:
    raise SystemExit("no such size")
notes = {"arguments": sys.argv[1:], "threads": os.environ["OMP_NUM_THREADS"]}
notes |= {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}
pathlib.Path(sys.argv[2], "notes.json").write_text(json.dumps(notes))
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
METRICS = '''# HELP vllm:prompt_tokens_by_source_total Number of prompt tokens by source.
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 12.0
vllm:prompt_tokens_by_source_total{engine="1",model_name="m",source="local_compute"} 3.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 100.0
'''


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(METRICS.encode())


HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[VllmOptions], AbstractContextManager[Running]]:
    folder = tmp_path / "vllm/entrypoints/openai"
    folder.mkdir(parents=True)
    (folder / "api_server.py").write_text(STAND_IN, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return partial(
        vllm_server, Path(sys.executable), tmp_path, dtype="bfloat16", threads=1, cache_gib=2, max_length=512
    )


def test_it_is_started_and_ended_with_all_its_processes(start, tmp_path: Path) -> None:
    with start(VllmOptions(2048, True)) as (url, process):
        family = [process, *process.children()]
        assert counted(url, VLLM_COUNTER) == 15
        assert cpu_seconds(process) > 0
    assert len(family) == 2
    assert not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family)
    notes = json.loads((tmp_path / "notes.json").read_text("utf-8"))
    port = url.rpartition(":")[2]
    assert notes.pop("arguments") == [
        *("--model", str(tmp_path), "--host", "127.0.0.1", "--port", port, "--dtype", "bfloat16"),
        *("--max-model-len", "512", "--enable-prefix-caching", "--block-size", "32", "--disable-uvicorn-access-log"),
        *("--max-num-batched-tokens", "2048", "--enforce-eager"),
    ]
    assert notes["threads"] == "1"
    assert notes["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert notes["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"
    assert len(notes["VLLM_CPU_OMP_THREADS_BIND"].split(",")) == 1


def test_compiled_it_is_not_eager(start, tmp_path: Path) -> None:
    with start(VllmOptions(1024, False)):
        pass
    assert "--enforce-eager" not in json.loads((tmp_path / "notes.json").read_text("utf-8"))["arguments"]


def test_a_server_that_does_not_start_is_an_error(start) -> None:
    with (
        pytest.raises(RuntimeError, match="vLLM's server did not start; it wrote no such size"),
        start(VllmOptions(13, True)),
    ):
        pass
