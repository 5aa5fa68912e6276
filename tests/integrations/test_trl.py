"""Rewards for TRL: every completion is judged with its own prompt and in its own group, in the real trainers."""

import asyncio
import json
import logging
import math
import os
import pickle
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from helpers.comparers import LengthComparer, p_longer
from helpers.rewarded import Recorded, asked, length_judge, text_of, win_rates
from hypothesis import given
from hypothesis import strategies as st

import gram_fast
from gram_fast import InputError, PairwiseJudge
from gram_fast.integrations.trl import greedy_completions, group_keys, group_reward

pytest.importorskip("trl", reason="needs the extra trl")

import grpo
import online_dpo
import policy
import rloo
from helpers.trl_trainers import PROMPTS, tiny_trainer
from trl.chat_template_utils import qwen3_template


def blocks(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def pairs(rows):
    half = len(rows) // 2
    return [[rows[row], rows[row + half]] for row in range(half)]


def check(call, groups_of, groups_asked):
    """The judge was asked about these groups and no others, and each row has its own group's reward."""
    prompts, completions, values = call
    texts = groups_of([text_of(completion) for completion in completions])
    assert groups_asked == [
        (text_of(group[0]), set(some)) for group, some in zip(groups_of(prompts), texts, strict=True)
    ]
    assert groups_of(values) == [pytest.approx(win_rates(some)) for some in texts]


@pytest.mark.parametrize(("kind", "chat"), [("grpo", False), ("rloo", True)])
def test_blocks_of_training_and_of_evaluation(kind, chat, tmp_path):
    judge = length_judge()
    reward = Recorded(group_reward(judge))
    options = {"per_device_eval_batch_size": 6, "num_generations_eval": 3, "log_completions": False}
    trainer = tiny_trainer(kind, tmp_path, [reward], chat=chat, **options)
    evaluated = trainer.evaluate()
    trainer.train()
    first, last, training = reward.calls
    groups = asked(judge)
    check(first, lambda rows: blocks(rows, 3), groups[:2])
    check(last, lambda rows: blocks(rows, 3), groups[2:3])
    check(training, lambda rows: blocks(rows, 4), groups[3:])
    # A prompt that stands twice in a batch has two groups.
    assert sorted(prompt for prompt, _ in groups[3:]) == sorted(PROMPTS)
    metrics = {"position_consistency", "ties", "seconds", "unjudged"}
    assert {f"group_reward/{metric}" for metric in metrics} <= trainer.state.log_history[0].keys()
    assert {f"eval_group_reward/{metric}" for metric in metrics} <= evaluated.keys()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes saw that trained together."""
    folder, script = tmp_path_factory.mktemp("ranks"), Path(__file__).parents[1] / "helpers" / "trl_ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*command, str(folder)], env=environment, check=True, timeout=240)
    return [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in (0, 1)]


@pytest.mark.parametrize("reward", [0, 1, 2])
def test_groups_that_straddle_processes(ranks, reward):
    """Six rows in training, two blocks in the first process, and four in evaluation: all are judged once, as one."""
    calls = [
        [first + second for first, second in zip(*parts, strict=True)]
        for parts in zip(*(rank["calls"][reward] for rank in ranks), strict=True)
    ]
    assert [len(prompts) for prompts, _, _ in calls] == [6, 4, 4, 4]
    expected = []
    for (prompts, completions, values), size in zip(calls, (2, 4, 4, 4), strict=True):
        for group in blocks(list(zip(prompts, completions, values, strict=True)), size):
            prompt, texts = group[0][0], [text for _, text, _ in group]
            assert {prompt for prompt, _, _ in group} == {prompt}
            against = [p_longer(text, f"not {prompt}") for text in texts]
            assert [value for _, _, value in group] == pytest.approx(against if reward == 2 else win_rates(texts))
            expected.append([prompt, sorted({*texts, f"not {prompt}"} if reward == 2 else set(texts))])
    first, second = (rank["asked"][reward] for rank in ranks)
    # The first process holds the first rows of two of the three training blocks, and of every block in evaluation.
    assert first == [*expected[:2], *expected[3:]]
    assert second == expected[2:3]


def test_the_failure_of_one_process_is_one_of_all(ranks):
    assert [rank["failures"] for rank in ranks] == [
        [
            "BackendError: the judge of process 1 failed: no number",
            "BackendError: the reading of rows and references of process 1 failed: nobody answers",
        ],
        ["NumericalError: no number", "ValueError: nobody answers"],
    ]


def test_processes_with_unequal_numbers_of_rows(ranks):
    """The last batch of an evaluation with `even_batches=False`, where one process alone has a part of a block."""
    first, second = (rank["unequal"] for rank in ranks)
    assert first == pytest.approx(win_rates(["a", "bb"]))
    assert second == [*map(pytest.approx, win_rates(["ccc", "d"])), None]


def test_examples_over_two_processes(ranks):
    first, second = (rank["examples"] for rank in ranks)
    assert first == second
    assert 0.3 < first[0]["rewards/win_rate/mean"] < 0.7
    assert 0 < first[1]["rewards/over_greedy/mean"] < 1


@pytest.mark.parametrize(("chat", "is_known"), [(False, False), (True, False), (False, True)])
def test_pairs_of_online_dpo(chat, is_known, tmp_path):
    judge = length_judge()
    reward = Recorded(group_reward(judge))
    trainer = tiny_trainer("dpo", tmp_path, [reward], chat=chat)
    reward.reward.trainer = trainer if is_known else None
    trainer.train()
    (call,) = reward.calls
    assert [text_of(prompt) for prompt in call[0]].count("one") == 4
    check(call, pairs, asked(judge))


def test_blocks_of_sdpo_are_counted_where_its_trainer_is_known(tmp_path):
    judge = length_judge()
    reward = Recorded(group_reward(judge))
    trainer = tiny_trainer("sdpo", tmp_path, [reward])
    reward.reward.trainer = trainer
    trainer.train()
    (call,) = reward.calls
    check(call, lambda rows: blocks(rows, 4), asked(judge))


@pytest.mark.parametrize("prompts", [["p"] * 8, ["p", "p", "q", "q"] * 2, ["p", "q", "q", "p"] * 2])
def test_pairs_that_may_be_blocks_are_refused(prompts):
    texts, state = [str(number) * number for number in range(1, 9)], object()
    with pytest.raises(InputError, match=r"trainer: expected .* pairs \(OnlineDPO\) or blocks \(SDPO\)"):
        group_reward(length_judge())(prompts, texts, trainer_state=state)
    # Against a reference it is one.
    over = group_reward(length_judge(), reference="reference")(prompts, texts, trainer_state=state, reference=prompts)
    assert over == pytest.approx([p_longer(text, "p") for text in texts])


def test_a_column_is_the_reference(tmp_path):
    reward = Recorded(group_reward(length_judge(), reference="reference"))
    tiny_trainer("grpo", tmp_path, [reward]).train()
    ((prompts, completions, values),) = reward.calls
    expected = [p_longer(text, f"not {prompt}") for prompt, text in zip(prompts, completions, strict=True)]
    assert values == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "chat"), [("grpo", True), ("rloo", False), ("sdpo", True), ("dpo", False), ("dpo", True)]
)
def test_greedy_completions_are_those_of_the_policy(kind, chat, tmp_path):
    """Batched and padded they are what the policy says to each prompt alone, and training goes on as it was."""
    found = {}

    def recorded(prompts, trainer):
        found.update(zip(map(text_of, prompts), greedy_completions(prompts, trainer), strict=True))
        assert trainer.model.training
        return list(found.values())

    reward = Recorded(group_reward(length_judge(), reference=recorded))
    trainer = tiny_trainer(kind, tmp_path, [reward], chat=chat)
    reward.reward.trainer = trainer if "dpo" in kind else None
    expected = {}
    for prompt in set(PROMPTS):
        tokenizer = trainer.processing_class
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) if chat else prompt
        inputs = tokenizer(text, return_tensors="pt")
        tokens = trainer.model.eval().generate(**inputs, do_sample=False, max_new_tokens=6)
        expected[prompt] = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    trainer.train()
    assert {prompt: text_of(made) for prompt, made in found.items()} == expected
    ((prompts, completions, values),) = reward.calls
    texts = zip(map(text_of, prompts), map(text_of, completions), strict=True)
    assert values == pytest.approx([p_longer(text, expected[prompt]) for prompt, text in texts])


def test_training_goes_on_where_greedy_completions_fail(tmp_path, monkeypatch):
    trainer = tiny_trainer("grpo", tmp_path, [group_reward(length_judge())])
    trainer.model.train()
    monkeypatch.setattr(trainer.model, "generate", lambda **_: {}["no memory"])
    with pytest.raises(KeyError, match="no memory"):
        greedy_completions(["one"], trainer)
    assert trainer.model.training


def test_greedy_completions_are_read_as_grpo_reads_its_own(tmp_path, monkeypatch):
    trainer = tiny_trainer("grpo", tmp_path, [group_reward(length_judge())], chat=True)
    tokenizer = trainer.processing_class
    tokenizer.response_template = qwen3_template
    said = torch.tensor([tokenizer.encode("<think>\nWell.\n</think>\n\nYes.<|im_end|><|endoftext|>")])
    monkeypatch.setattr(trainer.model, "generate", lambda input_ids, **_: torch.cat([input_ids, said], 1))
    prompt = [{"role": "user", "content": "Is it?"}]
    assert greedy_completions([prompt], trainer) == [trainer._generate([prompt])[3][0]]
    message = greedy_completions([prompt], trainer)[0][0]
    assert (message["content"], message["reasoning_content"]) == ("Yes.", "Well.")


def test_an_asynchronous_reward_runs_while_another_waits(tmp_path):
    """Each waits for the other to begin: one after the other they would never end."""
    judging, waiting = threading.Event(), threading.Event()

    class Waiting(LengthComparer):
        def open(self, *arguments, **options):
            judging.set()
            assert waiting.wait(30)
            return super().open(*arguments, **options)

    async def other(prompts, **_):
        waiting.set()
        while not judging.is_set():
            await asyncio.sleep(0.01)
        return [0.0] * len(prompts)

    reward = group_reward(PairwiseJudge(Waiting()), asynchronous=True, name="judged")
    trainer = tiny_trainer("grpo", tmp_path, [reward, other])
    trainer.train()
    assert trainer.state.log_history[0]["rewards/judged/mean"] > 0
    assert trainer.state.log_history[0]["judged/comparisons"] > 0


def test_what_cannot_be_judged_has_none_and_a_reason(caplog):
    reward = group_reward(length_judge(), name="mine")
    metrics = {}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            values = reward(["p"] * 3, [None, "a", "abc"], log_metric=metrics.__setitem__)
    assert values == [None, pytest.approx(p_longer("a", "abc")), pytest.approx(p_longer("abc", "a"))]
    assert metrics["mine/unjudged"] == pytest.approx(1 / 3)
    (message,) = [record.getMessage() for record in caplog.records if "gram_fast" in record.name]
    assert message.startswith("mine: 1 of 3 rows have no reward (response: expected a string")


def test_rows_of_a_block_that_are_alone_have_no_reward():
    """An environment may give them other prompts, and a caller of one process may leave the last block unfinished."""
    judge = length_judge()
    model = SimpleNamespace(training=True)
    trainer = SimpleNamespace(num_generations=4, num_generations_eval=2, model=model)
    log_metric = (lambda self, name, value: None).__get__(trainer)
    values = group_reward(judge)(["p", "q", "p", "r", "r"], ["a", "b", "cc", "d", "e"], log_metric=log_metric)
    assert asked(judge) == [("p", {"a", "cc"})]
    assert values[1] is values[3] is values[4] is None
    assert values[0] == pytest.approx(p_longer("a", "cc"))


def test_messages_may_have_tool_calls_and_results():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    completion = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]
    judge = length_judge()
    prompt = [{"role": "user", "content": "1 + 2?"}]
    values = group_reward(judge)([prompt, prompt], [completion, [{"role": "assistant", "content": "4"}]])
    assert values[0] > 0.99
    ((_, texts),) = asked(judge)
    assert any("add" in text and "It is 3." in text for text in texts)


@given(
    prompts=st.lists(st.sampled_from("abc"), min_size=1, max_size=8),
    size=st.integers(2, 5),
    chat=st.booleans(),
)
def test_keys_are_equal_in_a_group_and_nowhere_else(prompts, size, chat):
    wrapped = [[{"role": "user", "content": prompt}] if chat else prompt for prompt in prompts]
    repeated = [prompt for prompt in wrapped for _ in range(size)]
    numbers = [number for number in range(len(prompts)) for _ in range(size)]
    # Blocks, whatever stands beside them.
    assert same(group_keys(repeated, size, may_be_doubled=True), numbers)
    # P + P of a trainer that is known, whatever P.
    pairs = group_keys(wrapped * 2, None, may_be_doubled=True, may_be_blocks=False)
    assert same(pairs, [*range(len(prompts))] * 2)
    if all(a != b for a, b in pairwise([*prompts, prompts[0]])):  # such are no blocks
        assert group_keys(wrapped * 2, None, may_be_doubled=True) == pairs
    # Blocks of a caller that says nothing: those of one prompt are one group where they touch, and only there.
    touching = [sum(a != b for a, b in pairwise(prompts[: n + 1])) for n in range(len(prompts))]
    assert same(group_keys(repeated, None, may_be_doubled=False), [touching[number] for number in numbers])
    # Any other order: never two prompts in a group, nor one prompt in two.
    if len(set(prompts)) == len(prompts) > 1:
        assert same(group_keys(wrapped * size, None, may_be_doubled=False), [*range(len(prompts))] * size)


def same(keys, numbers):
    """Whether two numberings of rows make the same groups."""
    return len(set(zip(keys, numbers, strict=True))) == len(set(keys)) == len(set(numbers))


@pytest.mark.parametrize(
    ("example", "sizes"),
    [(rloo, {"generations": 2, "prompts": 3}), (online_dpo, {"prompts": 3})],
)
def test_examples_train(example, sizes):
    toy = policy.make_toy(count=1, steps=2)
    before = [weights.detach().clone() for weights in toy.model.parameters()]
    rows = example.train(toy, 2, **sizes)
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert len(rows) == 2
    assert not all(map(torch.equal, before, toy.model.parameters()))


def test_the_reward_against_a_fixed_reference_rises(tmp_path):
    """By 0.18 to 0.22 in each of four seeds; without training, at a rate of 0, by 0.01 at most."""
    rows = grpo.train(policy.make_toy(count=2, steps=100), 24, prompts=6)
    rewards = [row["rewards/over_reference/mean"] for row in rows]
    assert fmean(rewards[-4:]) > fmean(rewards[:4]) + 0.1
    grpo.draw(rows, tmp_path / "grpo.png")
    assert (tmp_path / "grpo.png").stat().st_size > 5000


def test_a_reward_pickles_as_the_name_of_its_judge():
    reward = group_reward(gram_fast.SMALL_JUDGE, scores="margin", name="mine", asynchronous=True)
    reward.trainer = threading.Lock()  # as a trainer, it does not pickle
    copy = pickle.loads(pickle.dumps(reward))
    assert (copy.__name__, copy.trainer, type(copy)) == ("mine", None, type(reward))


@pytest.mark.parametrize(
    ("options", "columns", "message"),
    [
        ({"score": "margin"}, {}, "score: expected an argument of PairwiseJudge.rewards (duplicates, "),
        ({"on_error": "raise"}, {}, "on_error: expected an argument of PairwiseJudge.rewards (duplicates, "),
        (
            {"reference": "answer"},
            {"answers": ["a"]},
            "reference: expected a column of the data set (answers), got 'ans",
        ),
        (
            {"reference": greedy_completions},
            {},
            "trainer: expected the trainer in this attribute of the reward functio",
        ),
    ],
)
def test_mistakes_are_named(options, columns, message):
    with pytest.raises(InputError) as caught:
        group_reward(length_judge(), **options)(["p"], ["a"], **columns)
    assert str(caught.value).startswith(message)
