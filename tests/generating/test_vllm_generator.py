"""What vLLM is asked, and what becomes of its answers. A stand-in runs: benchmarks/tests/test_real_vllm.py has vLLM."""

import copy
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.small_tokenizers import tokenizer

from gram_fast import InputError
from gram_fast.errors import BackendError
from gram_fast.generating.generator import GenerationRequest, Sampling
from gram_fast.generating.loading import load_engine
from gram_fast.generating.options import ReasoningOptions
from gram_fast.generating.vllm_generator import VllmGenerator
from gram_fast.models.options import JudgeOptions
from gram_fast.scoring.stops import StoppedError, stopped_by

TOKENIZER = tokenizer("qwen")
END = TOKENIZER.eos_token_id


class ClientError(Exception):
    pass


class Parameters(SimpleNamespace):
    def clone(self) -> "Parameters":
        return copy.copy(self)


class Engine:
    """Finishes the oldest request with each step, with the text "prompt, number of the answer, seed"."""

    def __init__(self) -> None:
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=128))
        self.waiting: dict[str, Any] = {}
        self.asked: list[Any] = []
        self.aborted: list[str] = []
        self.steps = 0

    def add_request(self, key: str, prompt: dict[str, Any], parameters: Any) -> None:
        if len(prompt["prompt_token_ids"]) > 9:
            raise ClientError("The prompt is\ntoo long for it")
        if max(prompt["prompt_token_ids"]) > 999:
            raise ValueError("Token id 1000 is out of vocabulary")
        assert key not in self.waiting
        self.asked.append((prompt, parameters))
        self.waiting[key] = prompt, parameters

    def abort_request(self, keys: list[str]) -> None:
        self.aborted.extend(keys)
        for key in keys:
            self.waiting.pop(key, None)

    def step(self) -> list[Any]:
        self.steps += 1
        if not self.waiting:
            return []
        key = next(iter(self.waiting))
        if self.steps % 2:
            return [SimpleNamespace(request_id=key, finished=False, outputs=[])]
        prompt, parameters = self.waiting.pop(key)
        answers = []
        for number in range(parameters.n):
            text = f"{prompt['prompt_token_ids'][0]}, {number}, {parameters.seed}"
            ids = [*TOKENIZER.encode(text, add_special_tokens=False), END]
            is_cut = len(ids) > parameters.max_tokens
            ids = ids[: parameters.max_tokens]
            likely = [{token: SimpleNamespace(logprob=-0.5), 11: SimpleNamespace(logprob=-2.0)} for token in ids]
            answers.append(
                SimpleNamespace(
                    index=number,
                    token_ids=ids,
                    finish_reason="length" if is_cut else "stop",
                    logprobs=likely if parameters.logprobs else None,
                )
            )
        return [SimpleNamespace(request_id=key, finished=True, outputs=answers[::-1])]


class Llm:
    def __init__(self, name: str, **options: Any) -> None:
        if name == "broken":
            raise ValueError("it is\nno checkpoint")
        self.options, self.llm_engine = options, Engine()
        stated = {"do_sample": True, "temperature": 0.6} if name == "sampling" else {"temperature": 0.6}
        self.model_config = SimpleNamespace(try_get_generation_config=lambda: stated)

    def get_tokenizer(self) -> Any:
        return TOKENIZER

    def get_default_sampling_params(self) -> Parameters:
        return Parameters(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0, repetition_penalty=1.1)


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.LLM = Llm  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    exceptions = ModuleType("vllm.exceptions")
    exceptions.VLLMClientError = ClientError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.exceptions", exceptions)
    kinds = ModuleType("vllm.sampling_params")
    kinds.RequestOutputKind = SimpleNamespace(FINAL_ONLY="at the end")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", kinds)


def request(number: int, n: int = 1) -> GenerationRequest:
    return GenerationRequest("", np.array([number, 2], np.int32), n, 100 + number)


def engine_of(generator: VllmGenerator) -> Engine:
    return generator._engine  # type: ignore[no-any-return]


def write(generator: VllmGenerator, requests: list[GenerationRequest], sampling: Sampling) -> list[Any]:
    found = list(generator.generate(requests, sampling))
    assert sorted(number for number, _ in found) == list(range(len(requests)))
    return [dict(found)[number] for number in range(len(requests))]


def test_what_is_asked_and_answered() -> None:
    generator = VllmGenerator("sampling", dtype="bfloat16", max_model_len=4096)
    assert generator.name == "vLLM, sampling"
    assert generator.at_once == 128
    assert generator._llm.options == {
        **{"revision": None, "dtype": "bfloat16", "max_model_len": 4096, "gpu_memory_utilization": 0.9},
        **{"trust_remote_code": False, "enable_prefix_caching": True},
    }
    one, two = write(generator, [request(1, n=2), request(2)], Sampling(50))
    assert [answer.text for answer in one] == ["1, 0, 101", "1, 1, 101"]
    assert [answer.text for answer in two] == ["2, 0, 102"]
    assert one[0].num_tokens == len(TOKENIZER.encode("1, 0, 101")) + 1
    assert not one[0].is_cut
    (prompt, parameters), _ = engine_of(generator).asked
    assert prompt == {"prompt_token_ids": [1, 2]}
    assert vars(parameters) == {
        **{"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.1},
        **{"n": 2, "seed": 101, "max_tokens": 50, "logprobs": None, "detokenize": False, "output_kind": "at the end"},
    }
    assert engine_of(generator).aborted == []
    ((cut,),) = write(generator, [request(1)], Sampling(3))
    assert (cut.num_tokens, cut.is_cut) == (3, True)
    assert "1, 0, 101".startswith(cut.text)


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [("sampling", None, 0.6), ("other", None, 0.0), ("sampling", 0, 0), ("other", 1.5, 1.5)],
)
def test_the_temperature_is_that_of_the_checkpoint_unless_another_is_asked_for(
    name: str, asked: float | None, expected: float
) -> None:
    generator = VllmGenerator(name)
    (answers,) = write(generator, [request(1, n=3)], Sampling(50, temperature=asked))
    ((_, parameters),) = engine_of(generator).asked
    assert parameters.temperature == expected
    # vLLM refuses several greedy answers, which are all the same.
    assert parameters.n == (3 if expected else 1)
    assert len(answers) == 3
    assert len({answer.text for answer in answers}) == parameters.n
    assert (parameters.top_p, parameters.top_k) == ((0.95, 20) if expected else (1.0, 0))


def test_tokens_join_to_the_text_and_have_probabilities() -> None:
    generator = VllmGenerator("sampling")
    ((answer,),) = write(generator, [request(1)], Sampling(50, top_logprobs=2))
    assert engine_of(generator).asked[0][1].logprobs == 2
    assert "".join(token.text for token in answer.tokens) == answer.text == "1, 0, 101"
    assert answer.tokens[0].logprobs == {answer.tokens[0].text: -0.5, TOKENIZER.decode([11]): -2.0}


def test_what_vllm_refuses_is_its_own_error() -> None:
    requests = [GenerationRequest("", np.zeros(10, np.int32), 1, 0), GenerationRequest("text", None, 1, 0)]
    requests += [request(1000), request(1)]
    long, no_ids, unknown, (answer,) = write(VllmGenerator("sampling"), requests, Sampling(50))
    assert isinstance(long, InputError)
    assert str(long) == "a prompt of 10 tokens: refused by vLLM: The prompt is too long for it"
    assert isinstance(no_ids, InputError)
    assert isinstance(unknown, InputError)
    assert "out of vocabulary" in str(unknown)
    assert answer.text == "1, 0, 101"


def test_closing_and_stopping_end_what_is_under_way() -> None:
    generator = VllmGenerator("sampling")
    found = generator.generate([request(k) for k in range(5)], Sampling(50))
    next(found)
    found.close()
    engine = engine_of(generator)
    assert not engine.waiting
    assert len(engine.aborted) == 4
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        stopped_by(stop).run(write, generator, [request(1)], Sampling(50))
    assert not engine.waiting
    assert not generator._finished


def test_calls_that_are_open_at_once_get_their_own_answers() -> None:
    generator = VllmGenerator("sampling")
    one = generator.generate([request(k) for k in range(3)], Sampling(50))
    other = generator.generate([request(k) for k in range(3, 6)], Sampling(50))
    found = [next(one), next(other), *other, *one]
    assert [answers[0].text for _, answers in found] == [f"{k}, 0, {100 + k}" for k in (0, 3, 4, 5, 1, 2)]
    assert not generator._finished


def test_vllm_that_is_not_there_or_cannot_load_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"^vLLM cannot load broken: it is no checkpoint$"):
        VllmGenerator("broken")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(BackendError, match=r"^vLLM cannot be imported: expected it to be installed, as by"):
        VllmGenerator("other")


def test_several_votes_of_a_checkpoint_that_draws_none_are_an_error() -> None:
    judge = JudgeOptions(preset="gram-r2")
    with pytest.raises(InputError, match="4 votes would be one vote 4 times"):
        load_engine("greedy", judge, ReasoningOptions(engine="vllm", votes=4))
    load_engine("greedy", judge, ReasoningOptions(engine="vllm", votes=4, temperature=0.5))
    load_engine("sampling", judge, ReasoningOptions(engine="vllm", votes=4))
