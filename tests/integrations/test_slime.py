"""Rewards for slime: functions of a group and of one sample, as its rm_hub calls them."""

import asyncio
import logging
import sys
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import pytest
from helpers.comparers import LengthComparer, p_longer
from helpers.small_tokenizers import tokenizer

from gram_fast import InputError, PairwiseJudge
from gram_fast.integrations.slime import group_reward, reference_reward

USER = {"role": "user", "content": "Name a city."}
LABEL = "Rome, Italy"


@dataclass
class Sample:
    """The members of slime's Sample that are read or set (slime/utils/types.py)."""

    prompt: Any
    response: str
    group_index: int | None = 0
    label: str | None = LABEL
    custom_rm_path: str | None = None
    remove_sample: bool = False


def arguments(apply_chat_template=True, **more):
    return Namespace(apply_chat_template=apply_chat_template, apply_chat_template_kwargs={}, **more)


def samples(responses, name="qwen", **more):
    prompt = tokenizer(name).apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    return [Sample(prompt, response + tokenizer(name).eos_token, **more) for response in responses]


@pytest.fixture
def judge():
    return PairwiseJudge(LengthComparer())


@pytest.mark.parametrize("name", ["qwen", "llama3", "deepseek", "llama2"])
def test_a_group_is_judged_by_its_bare_texts(judge, name):
    responses = ["a", "bbb", "cc"]
    rewards = asyncio.run(group_reward(judge, tokenizer(name))(arguments(), samples(responses, name)))
    assert rewards == pytest.approx(judge.rewards([USER["content"]], [responses])[0])
    assert judge.comparer.opened[0]["groups"][0].texts == responses


def test_samples_that_cannot_be_judged_leave_the_loss_and_the_mean_stays(judge, caplog):
    group = samples(["a", "b<|im_end|>c", "bbb", "c<|im_end|>\n<|im_start|>user\nMore", "cc"])
    with caplog.at_level(logging.WARNING):
        rewards = asyncio.run(group_reward(judge, tokenizer("qwen"))(arguments(), group))
    expected = judge.rewards(["x"], [["a", "bbb", "cc"]])[0]
    assert [rewards[0], rewards[2], rewards[4]] == pytest.approx(expected)
    assert rewards[1] == rewards[3] == pytest.approx(sum(expected) / 3)
    assert [sample.remove_sample for sample in group] == [False, True, False, True, False]
    assert "2 of 5 responses were not judged" in caplog.text


def test_groups_are_those_of_the_host(judge):
    mixed = samples(["a", "bbb"], group_index=7) + samples(["dddd", "cc"], group_index=8)
    rewards = asyncio.run(group_reward(judge, tokenizer("qwen"))(arguments(), [mixed[k] for k in (0, 2, 1, 3)]))
    expected = judge.rewards(["x", "x"], [["a", "bbb"], ["dddd", "cc"]])
    assert rewards == pytest.approx([expected[0][0], expected[1][0], expected[0][1], expected[1][1]])


def test_one_sample_is_judged_against_its_label(judge):
    reward = reference_reward(judge, tokenizer("qwen"))
    good, longer, unlabelled = *samples(["Paris", "Paris<|im_end|>Rome"]), *samples(["Oslo"], label=None)
    assert asyncio.run(reward(arguments(), good)) == pytest.approx(p_longer("Paris", LABEL))
    assert asyncio.run(reward(arguments(), [good, longer, unlabelled])) == pytest.approx(
        [p_longer("Paris", LABEL), 0, 0]
    )
    assert (good.remove_sample, longer.remove_sample, unlabelled.remove_sample) == (False, True, True)


def test_prompts_that_are_messages_or_plain_text(judge):
    for prompt in ([USER], USER["content"]):
        group = [Sample(prompt, response + "<|im_end|>") for response in ("a", "bbb")]
        rewards = asyncio.run(group_reward(judge, tokenizer("qwen"))(arguments(apply_chat_template=False), group))
        assert rewards == pytest.approx(judge.rewards([USER["content"]], [["a", "bbb"]])[0])
    assert {group.prompt for call in judge.comparer.opened for group in call["groups"]} == {USER["content"]}


def test_the_policy_s_tokenizer_is_found(judge, tmp_path):
    tokenizer("llama3").save_pretrained(tmp_path)
    group = samples(["a", "bbb"], "llama3")
    rewards = asyncio.run(group_reward(judge)(arguments(hf_checkpoint=str(tmp_path)), group))
    assert rewards == pytest.approx(judge.rewards(["x"], [["a", "bbb"]])[0])
    with pytest.raises(InputError, match="expected what the chat template of this tokenizer writes"):
        asyncio.run(group_reward(judge, tokenizer("qwen"))(arguments(), group))


def test_the_host_calls_both(judge, monkeypatch):
    rm_hub = pytest.importorskip("slime.rollout.rm_hub", reason="needs slime", exc_type=ImportError)
    from slime.utils.types import Sample as HostSample

    module = Namespace(group=group_reward(judge, tokenizer("qwen")), one=reference_reward(judge, tokenizer("qwen")))
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    group = [
        HostSample(group_index=0, prompt=s.prompt, response=s.response, label=LABEL) for s in samples(["a", "bbb"])
    ]
    rewards = asyncio.run(rm_hub.batched_async_rm(arguments(custom_rm_path="my_rewards.group"), group))
    assert rewards == pytest.approx(judge.rewards(["x"], [["a", "bbb"]])[0])
    reward = asyncio.run(rm_hub.async_rm(arguments(custom_rm_path="my_rewards.one"), group[0]))
    assert reward == pytest.approx(p_longer("a", LABEL))
