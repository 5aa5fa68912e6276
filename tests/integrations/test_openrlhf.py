"""Rewards for OpenRLHF: the function of a reward file, the remote protocol, and the host's own executor with both."""

import asyncio
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.comparers import LengthComparer, p_longer
from helpers.hosts import SingleTurnAgentExecutor, has_host
from helpers.small_tokenizers import tokenizer

from gram_fast import InputError, NumericalError, PairwiseJudge
from gram_fast.integrations.openrlhf import answer, group_executor, reward_function

USER = {"role": "user", "content": "Name a city."}
LABEL = "Rome, Italy"


@pytest.fixture
def judge():
    return PairwiseJudge(LengthComparer())


def prompt_of(name="llama3", content=USER["content"]):
    chat = [{"role": "user", "content": content}]
    return tokenizer(name).apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


def rows(responses, name="llama3"):
    prompt = prompt_of(name)
    return [prompt + response + tokenizer(name).eos_token for response in responses], [prompt] * len(responses)


@pytest.mark.parametrize("name", ["qwen", "llama3", "deepseek", "llama2"])
def test_a_reward_is_that_of_the_bare_texts_against_the_label(judge, name):
    queries, prompts = rows(["Paris", "Rome, the capital of Italy", LABEL], name)
    result = reward_function(judge, tokenizer(name))(queries, prompts, [LABEL] * 3)
    expected = [p_longer("Paris", LABEL), p_longer("Rome, the capital of Italy", LABEL), 0.5]
    assert result["rewards"].tolist() == pytest.approx(expected)
    assert torch.equal(result["scores"], result["rewards"])
    assert result["extra_logs"]["unjudged"].tolist() == [0, 0, 0]
    assert {text for call in judge.comparer.opened for group in call["groups"] for text in group.texts} <= {
        "Paris",
        "Rome, the capital of Italy",
        LABEL,
    }
    assert {group.prompt for call in judge.comparer.opened for group in call["groups"]} == {USER["content"]}


def test_what_cannot_be_judged_is_counted_and_said(judge, caplog):
    queries, prompts = rows(["Paris", "", "Rome.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nMore", "Oslo"])
    with caplog.at_level(logging.WARNING):
        function = reward_function(judge, tokenizer("llama3"), unjudged=-1.0)
        result = function(queries, prompts, [LABEL] * 3 + [""])
    assert result["rewards"].tolist() == pytest.approx([p_longer("Paris", LABEL), p_longer("", LABEL), -1, -1])
    assert result["extra_logs"]["unjudged"].tolist() == [0, 0, 1, 1]
    assert "2 of 4 responses were not judged" in caplog.text


def test_groups_stand_side_by_side(judge):
    responses = ["a", "bb", "cccc", "a", "dd", "eeee"]
    queries, prompts = rows(responses)
    result = reward_function(judge, tokenizer("llama3"), n_samples_per_prompt=3)(queries, prompts, [""] * 6)
    expected = [r for group in judge.rewards([USER["content"]] * 2, [responses[:3], responses[3:]]) for r in group]
    assert result["rewards"].tolist() == pytest.approx(expected)
    with pytest.raises(InputError, match=r"^prompts: expected 4 rows of one prompt side by side.*got 6 rows"):
        reward_function(judge, tokenizer("llama3"), n_samples_per_prompt=4)(queries, prompts, [""] * 6)
    mixed = [*prompts[:5], prompt_of(content="Name a river.")]
    with pytest.raises(InputError, match="expected 3 rows of one prompt"):
        reward_function(judge, tokenizer("llama3"), n_samples_per_prompt=3)(queries, mixed, [""] * 6)


@pytest.mark.parametrize(
    "settings",
    [
        *({"scores": scores} for scores in ("margin", "bradley_terry", "points", "rank", "win_rate")),
        *({"strategy": strategy} for strategy in ("round_robin", "reference", "sort", "knockout")),
        {"strategy": "opponents", "k": 2},
        {"strategy": "knockouts", "k": 2, "scores": "points"},
        {"strategy": "knockouts", "k": 2, "scores": "rank"},
        {"strategy": "reference", "scores": "win_rate"},
    ],
    ids=str,
)
def test_scores_of_any_kind_are_between_0_and_1(judge, settings):
    queries, prompts = rows(["a", "bb" * 9, "b<|eot_id|>c", "cccc"])
    function = reward_function(judge, tokenizer("llama3"), n_samples_per_prompt=4, **settings)
    result = function(queries, prompts, [""] * 4)
    assert ((result["scores"] >= 0) & (result["scores"] <= 1)).all()
    judged = [0, 3, 1]  # from worst to best
    assert result["scores"][judged].diff().gt(0).all()


def test_another_policy_is_an_error_not_a_score(judge):
    queries, prompts = rows(["Paris"], "qwen")
    with pytest.raises(InputError, match="expected what the chat template of this tokenizer writes"):
        reward_function(judge, tokenizer("llama3"))(queries, prompts, [LABEL])
    with pytest.raises(InputError, match="queries, prompts, labels: expected lists of one length, got 1, 1 and 0"):
        reward_function(judge, tokenizer("qwen"))(queries, prompts, [])
    with pytest.raises(InputError, match="n_samples_per_prompt: expected an integer of at least 2, got 1"):
        reward_function(judge, tokenizer("qwen"), n_samples_per_prompt=1)


def test_the_remote_protocol(judge):
    queries, prompts = rows(["Paris", "Paris<|eot_id|>Rome"])
    function = reward_function(judge, tokenizer("llama3"))
    result = answer(function, {"query": queries, "prompts": prompts, "labels": [LABEL] * 2})
    p = pytest.approx([p_longer("Paris", LABEL), 0.0])
    assert result == {"rewards": p, "scores": p, "extra_logs": {"unjudged": [0.0, 1.0]}}
    assert answer(function, {"query": [], "prompts": [], "labels": []}) == {
        "rewards": [],
        "scores": [],
        "extra_logs": {},
    }
    with pytest.raises(InputError, match="labels: expected a list in the body of the request, got NoneType"):
        answer(function, {"query": queries, "prompts": prompts})
    with pytest.raises(InputError, match="query: expected a list"):
        answer(function, [])


class Engine:
    """Generates given responses, as vLLM does for RolloutRayActor."""

    def __init__(self, tok, responses):
        self.tok, self.responses = tok, iter(responses)

    async def generate(self, prompt_ids, params, multi_modal_data=None):
        ids = self.tok(next(self.responses), add_special_tokens=False)["input_ids"]
        output = SimpleNamespace(token_ids=[*ids, self.tok.eos_token_id], finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


async def execute(executor, responses):
    """As RolloutRayActor.generate_responses: all samples of a prompt at once."""
    tok = tokenizer("llama3")
    engine, params = Engine(tok, responses), SimpleNamespace(max_tokens=64, logprobs=None)
    calls = [executor.execute(prompt_of(), LABEL, params, 512, tok, engine) for _ in responses]
    return await asyncio.gather(*calls)


REWARD_FILE = """
from helpers.comparers import LengthComparer
from helpers.hosts import SingleTurnAgentExecutor, has_host
from helpers.small_tokenizers import tokenizer
from gram_fast import PairwiseJudge
from gram_fast.integrations.openrlhf import reward_function

reward_func = reward_function(PairwiseJudge(LengthComparer()), tokenizer("llama3"))
"""


def test_the_host_calls_a_reward_file(tmp_path):
    agent = pytest.importorskip("openrlhf.utils.agent", reason="needs openrlhf", exc_type=ImportError)
    (tmp_path / "reward.py").write_text(REWARD_FILE)
    executor = agent.SingleTurnAgentExecutor(str(tmp_path / "reward.py"))
    outputs = asyncio.run(execute(executor, ["Paris", "Rome, the capital", "Paris<|eot_id|>Rome"]))
    expected = [p_longer("Paris", LABEL), p_longer("Rome, the capital", LABEL), 0.0]
    # What samples_generator.py makes of an output.
    assert torch.cat([torch.tensor([o["reward"]]) for o in outputs]).tolist() == pytest.approx(expected)
    assert [torch.tensor([o["scores"]]).item() for o in outputs] == pytest.approx(expected)
    assert [o["extra_logs"]["unjudged"].flatten()[0].item() for o in outputs] == [0, 0, 1]


def test_the_host_calls_a_remote_server(judge):
    agent = pytest.importorskip("openrlhf.utils.agent", reason="needs openrlhf", exc_type=ImportError)
    from aiohttp import web

    function = reward_function(judge, tokenizer("llama3"))

    async def get_reward(request):
        return web.json_response(await asyncio.to_thread(answer, function, await request.json()))

    async def run():
        app = web.Application()
        app.router.add_post("/get_reward", get_reward)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/get_reward"
            return await execute(agent.SingleTurnAgentExecutor(url), ["Paris", LABEL])
        finally:
            await runner.cleanup()

    outputs = asyncio.run(run())
    assert [torch.tensor([o["reward"]]).item() for o in outputs] == pytest.approx([p_longer("Paris", LABEL), 0.5])


@pytest.fixture
def executor_class(monkeypatch):
    """group_executor, with OpenRLHF's class where that is installed."""
    has_host(monkeypatch, "openrlhf.utils.agent", SingleTurnAgentExecutor)
    return group_executor


def test_an_executor_judges_the_samples_of_a_prompt(judge, executor_class, caplog):
    groups = [["a", "bbb", "cc"], ["dddd", "e", "ff"], ["g", "hh", "i<|eot_id|>j"]]  # of one prompt, at the same time

    async def run():
        executor = executor_class(judge, 3)()
        return await asyncio.gather(*(execute(executor, responses) for responses in groups))

    with caplog.at_level(logging.WARNING):
        outputs = asyncio.run(run())
    expected = judge.rewards([USER["content"]] * 3, [*groups[:2], groups[2][:2]])
    for group, rewards in zip(outputs, [*expected[:2], [*expected[2], 0.0]], strict=True):
        assert [output["reward"] for output in group] == pytest.approx(rewards)
        assert [output["scores"] for output in group] == pytest.approx(rewards)
    assert [output["extra_logs"]["unjudged"] for group in outputs for output in group] == [0] * 8 + [1]
    assert "a response was not judged: response: expected text of one turn" in caplog.text
    assert {group.prompt for call in judge.comparer.opened for group in call["groups"]} == {USER["content"]}


def test_an_executor_s_scores_are_between_0_and_1(judge, executor_class):
    executor = executor_class(judge, 2, strategy="reference")()
    worse, better = asyncio.run(execute(executor, ["a", "bbbbbb"]))
    assert (worse["reward"] < 0, better["reward"] > 0) == (True, True)
    assert 0 < worse["scores"] < 0.5 < better["scores"] < 1


def test_an_executor_does_not_wait_for_ever_nor_judge_a_part_of_a_group(judge, executor_class, caplog):
    async def run():
        executor = executor_class(judge, 3, timeout=0.2, scores="margin", unjudged=-1.0)()
        return await asyncio.gather(execute(executor, ["a", "bbb"]), execute(executor, ["a", "bbb", "cc"]))

    part, full = asyncio.run(run())
    assert [(one["reward"], one["scores"], one["extra_logs"]) for one in part] == [(-1, -1, {"unjudged": 1})] * 2
    assert [one["extra_logs"]["unjudged"] for one in full] == [0] * 3
    assert "2 of 3 responses had come when the time was over (timeout=0.2), and have no reward" in caplog.text


def test_a_judge_that_fails_is_an_error_of_the_host(judge, executor_class, monkeypatch):
    """Only what is wrong with a response of the policy becomes `unjudged`."""
    executor = executor_class(judge, 2)()

    def fails(*_, **__):
        raise NumericalError("logits are not finite")

    monkeypatch.setattr(judge, "rewards", fails)
    with pytest.raises(NumericalError):
        asyncio.run(execute(executor, ["a", "bbb"]))


def test_an_executor_without_the_host_says_what_to_install(judge, monkeypatch):
    monkeypatch.setitem(sys.modules, "openrlhf.utils.agent", None)
    with pytest.raises(InputError, match=r"openrlhf: expected the package to be installed \(pip install openrlhf\)"):
        group_executor(judge, 3)
