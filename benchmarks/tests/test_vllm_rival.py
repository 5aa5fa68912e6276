"""vLLM as a rival of benchmarks/scorer: what its process is asked, and what becomes of its answers. A stand-in runs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.ops import CPU
from helpers.small_models import tiny_judge

from benchmarks.scorer.vllm_rival import Vllm
from gram_fast import PairwiseJudge

pytestmark = pytest.mark.usefixtures("one_thread")

STAND_IN = """
import json, os, pathlib
from types import SimpleNamespace

__version__ = "0.0"
NOTES = pathlib.Path(__file__).with_name("notes.jsonl")


def note(**what):
    with NOTES.open("a") as notes:
        print(json.dumps(what), file=notes)


def SamplingParams(**options):
    return SimpleNamespace(**options)


class LLM:
    def __init__(self, **options):
        print("noise on standard output")
        note(options=options, threads=os.environ.get("OMP_NUM_THREADS"))
        if options["max_num_batched_tokens"] == 13:
            raise SystemExit(3)

    def reset_prefix_cache(self):
        note(reset=True)

    def generate(self, prompts, asked, use_tqdm):
        a, b = asked.allowed_token_ids
        logprobs = [{b: SimpleNamespace(logprob=-2.0), a: SimpleNamespace(logprob=-0.5)}]
        output = SimpleNamespace(logprobs=logprobs)
        return [SimpleNamespace(num_cached_tokens=16, outputs=[output], **prompt) for prompt in prompts]
"""
PRESENTATIONS = [("a prompt", "one", "two"), ("a prompt", "two", "one"), ("a prompt", "three", "one")]


@pytest.fixture(scope="module")
def judge() -> PairwiseJudge:
    return tiny_judge()


@pytest.fixture
def vllm(judge: PairwiseJudge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Vllm:
    (tmp_path / "vllm.py").write_text(STAND_IN, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Vllm(Path(sys.executable), tmp_path, judge.comparer.tokenizer, CPU, torch.bfloat16, 99)


def test_it_is_asked_for_the_two_labels(vllm: Vllm) -> None:
    with vllm.started(2048) as process:
        for _ in range(2):
            scored = process.score(PRESENTATIONS, 0)
    assert scored.logits_P2.tolist() == [[-0.5, -2.0]] * 3
    assert scored.tokens == sum(len(ids) - 16 for ids in vllm.tokenizer.whole_ids(PRESENTATIONS))
    started, *runs = map(json.loads, (vllm.folder / "notes.jsonl").read_text("utf-8").splitlines())
    assert runs == [{"reset": True}] * 2
    assert started["threads"] == "1"
    assert started["options"] == {
        "block_size": 32,
        "model": str(vllm.folder),
        "dtype": "bfloat16",
        "enable_prefix_caching": True,
        "enforce_eager": True,
        "logprobs_mode": "processed_logprobs",
        "max_model_len": 100,
        "max_num_batched_tokens": 2048,
    }


def test_every_size_is_tried(vllm: Vllm) -> None:
    seconds = vllm.seconds_by_size(PRESENTATIONS)
    assert set(seconds) == {1024, 2048, 8192}
    assert min(seconds.values()) > 0


def test_a_process_that_ends_is_an_error(vllm: Vllm) -> None:
    with pytest.raises(RuntimeError, match="vLLM's process ended"), vllm.started(13):
        pass
