"""Scores for verl: compute_score against a reference, as its reward managers call it."""

import asyncio
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.comparers import LengthComparer, p_longer
from helpers.hosts import RewardManagerBase, has_host, namespace
from helpers.small_tokenizers import tokenizer

from gram_fast import InputError, PairwiseJudge
from gram_fast.integrations.verl import group_reward_manager, reference_score

REFERENCE = "Rome, Italy"


@pytest.fixture
def judge():
    return PairwiseJudge(LengthComparer())


def test_a_score_is_that_against_the_reference(judge):
    info = {"question": "Name a city.", "split": "train", "good": "Oslo"}
    call = {"data_source": "d", "solution_str": "Paris", "ground_truth": REFERENCE, "extra_info": info}
    assert reference_score(judge)(**call) == {"score": pytest.approx(p_longer("Paris", REFERENCE)), "unjudged": 0.0}
    found = reference_score(judge, reference="good")(**call, reward_router_address=None)
    assert found["score"] == pytest.approx(p_longer("Paris", "Oslo"))
    assert judge.comparer.opened[0]["groups"][0].prompt == "Name a city."


def test_what_cannot_be_judged_has_an_entry(judge, caplog):
    info = {"question": "Name a city."}
    with caplog.at_level(logging.WARNING):
        without = [reference_score(judge, unjudged=u)("d", "Paris", "", info) for u in (0.0, -1.0)]
    assert "1 of 1 responses were not judged: reference: expected" in caplog.text
    assert without == [{"score": 0.0, "unjudged": 1.0}, {"score": -1.0, "unjudged": 1.0}]


def test_a_key_that_is_not_there_is_an_error(judge):
    with pytest.raises(InputError, match=r"^prompt: expected a key of extra_info \(split, index\), got 'question'"):
        reference_score(judge)("d", "Paris", REFERENCE, {"split": "train", "index": 3})
    with pytest.raises(InputError, match=r"strategies: expected an argument of PairwiseJudge\.rewards"):
        reference_score(judge, strategies="knockout")


REWARD_FILE = """
from helpers.comparers import LengthComparer
from gram_fast import PairwiseJudge
from gram_fast.integrations.verl import reference_score

compute_score = reference_score(PairwiseJudge(LengthComparer()))
"""


def sample(response, **columns):
    """One sample as the agent loop passes it to a reward worker."""
    from verl import DataProto

    tok = tokenizer("qwen")
    prompt, ids = tok("Name a city.")["input_ids"], [*tok(response)["input_ids"], tok.eos_token_id]
    padded = ids + [tok.pad_token_id] * (12 - len(ids))
    mask = [1] * (len(prompt) + len(ids)) + [0] * (12 - len(ids))
    columns = {"data_source": "d", "reward_model": {"ground_truth": REFERENCE}, **columns}
    return DataProto.from_dict(
        tensors={
            "prompts": torch.tensor([prompt]),
            "responses": torch.tensor([padded]),
            "attention_mask": torch.tensor([mask]),
        },
        non_tensors={name: np.array([value], dtype=object) for name, value in columns.items()},
    )


@pytest.mark.parametrize("manager", ["naive", "dapo", "rate_limited"])
def test_the_host_s_managers_call_a_reward_file(tmp_path, manager):
    reward = pytest.importorskip("verl.trainer.ppo.reward", reason="needs verl", exc_type=ImportError)
    from omegaconf import OmegaConf

    (tmp_path / "reward.py").write_text(REWARD_FILE)
    function = {"path": str(tmp_path / "reward.py"), "name": "compute_score", "reward_kwargs": {}}
    chosen = {"source": "register", "name": manager}
    config = OmegaConf.create({"reward": {"custom_reward_function": function, "reward_manager": chosen}})
    info = {"question": "Name a city."}

    async def run():
        host = reward.load_reward_manager(config, tokenizer("qwen"))
        rows = [{"reward_model": {"ground_truth": truth}, "extra_info": dict(info)} for truth in (REFERENCE, "")]
        return await asyncio.gather(*(host.run_single(sample("Paris", **row)) for row in rows))

    judged, without = asyncio.run(run())
    assert judged["reward_score"] == pytest.approx(p_longer("Paris", REFERENCE))
    assert without["reward_score"] == 0.0
    assert without["reward_extra_info"].keys() == judged["reward_extra_info"].keys()
    assert without["reward_extra_info"]["unjudged"] == 1.0


MANAGER_FILE = """
from helpers.comparers import LengthComparer
from gram_fast import PairwiseJudge
from gram_fast.integrations.verl import group_reward_manager

judge = PairwiseJudge(LengthComparer())
Manager = group_reward_manager(judge, timeout=0.2)
"""
PROMPT = [{"role": "user", "content": "Name a city."}]
# One prompt under each uid, the samples in any order; w and x are not full.
ROWS = [
    ("u", "a"),
    ("v", "bb"),
    ("u", "ccc"),
    ("v", "d"),
    ("v", "eeee"),
    ("u", "ff"),
    ("w", "g"),
    ("w", "hh"),
    ("x", "i"),
]


def config_of(**changes):
    """What a manager reads of verl's configuration; names of `changes` have __ for a dot."""
    config = {
        "algorithm": {"adv_estimator": "grpo"},
        "trainer": {"use_v1": True},
        "reward": {"num_workers": 1},
        "actor_rollout_ref": {"rollout": {"n": 3, "val_kwargs": {"n": 3}}},
    }
    for name, value in changes.items():
        *path, last = name.split("__")
        place = config
        for key in path:
            place = place[key]
        place[last] = value
    return config


def check_groups(found):
    """Checks the rewards of ROWS: of full groups alone."""
    full = [[text for uid, text in ROWS if uid == group] for group in "uv"]
    for group, rewards in zip("uv", PairwiseJudge(LengthComparer()).rewards(["x"] * 2, full), strict=True):
        ours = [row["reward_score"] for (uid, _), row in zip(ROWS, found, strict=True) if uid == group]
        assert ours == pytest.approx(rewards)
    assert [row["reward_extra_info"]["unjudged"] for row in found] == [0.0] * 6 + [1.0] * 3
    assert [row["reward_score"] for row in found[6:]] == [0.0] * 3


def test_the_host_loads_a_manager_of_groups(tmp_path):
    reward = pytest.importorskip("verl.trainer.ppo.reward", reason="needs verl", exc_type=ImportError)
    from omegaconf import OmegaConf
    from verl import DataProto

    (tmp_path / "manager.py").write_text(MANAGER_FILE)
    module = {"path": str(tmp_path / "manager.py"), "name": "unused"}
    chosen = {"source": "importlib", "name": "Manager", "module": module}
    function = {"path": None}
    config = config_of(reward__reward_manager=chosen, reward__custom_reward_function=function)

    async def run():
        host = reward.load_reward_manager(OmegaConf.create(config), tokenizer("qwen"))
        return host, await asyncio.gather(
            *(host.run_single(sample(text, uid=uid, raw_prompt=PROMPT)) for uid, text in ROWS)
        )

    host, found = asyncio.run(run())
    check_groups(found)
    scores = [row["reward_score"] for row in found[:2]]
    batch = DataProto.concat([sample(text) for _, text in ROWS[:2]])
    assert type(host).assemble_rm_scores(batch, scores).sum(1).tolist() == pytest.approx(scores)


@pytest.fixture
def manager(judge, monkeypatch):
    """Makes a manager of a configuration, by verl's class where that is installed."""
    has_host(monkeypatch, "verl.experimental.reward_loop.reward_manager.base", RewardManagerBase)

    def make(**changes):
        return group_reward_manager(judge, timeout=0.2)(namespace(config_of(**changes)), tokenizer("qwen"))

    return make


def row(text, uid, prompt=PROMPT):
    """The parts of one sample that a manager reads."""
    tok = tokenizer("qwen")
    ids = [*tok(text)["input_ids"], tok.eos_token_id]
    batch = {
        "responses": torch.tensor(ids + [tok.pad_token_id] * 4),
        "attention_mask": torch.tensor([1] * (5 + len(ids)) + [0] * 4),
    }
    columns = {"uid": uid, "raw_prompt": np.array(prompt, dtype=object)}
    return [SimpleNamespace(batch=batch, non_tensor_batch=columns)]


async def run_all(manager, rows):
    return await asyncio.gather(*(manager.run_single(one) for one in rows), return_exceptions=True)


def test_a_manager_judges_full_groups(manager, caplog):
    async def run():
        return await run_all(manager(), [row(text, uid) for uid, text in ROWS])

    check_groups(asyncio.run(run()))
    assert "key 'w': 2 of 3 responses had come when the time was over (timeout=0.2), and have no reward" in caplog.text


def test_two_prompts_of_one_uid_are_an_error(manager):
    other = [{"role": "user", "content": "Name a river."}]

    async def run():
        return await run_all(manager(), [row("a", "u"), row("b", "u", other), row("c", "u"), row("d", "u")])

    _, error, *_ = asyncio.run(run())
    with pytest.raises(InputError, match="key 'u': expected the prompt of the 1 that wait under it"):
        raise error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward__num_workers": 8}, r"reward\.num_workers: expected 1, where groups meet, got 8"),
        (
            {"actor_rollout_ref__rollout__val_kwargs__n": 1},
            r"rollout\.val_kwargs\.n: expected 3 as in training.*, got 1$",
        ),
        ({"algorithm__adv_estimator": "remax"}, r"algorithm\.adv_estimator: expected another than remax"),
        ({"trainer__use_v1": False}, r"trainer\.use_v1: expected true.*copies of samples"),
    ],
)
def test_where_groups_could_not_meet_is_an_error(manager, changes, message):
    async def run():
        manager(**changes)

    with pytest.raises(InputError, match=message):
        asyncio.run(run())


def test_a_manager_without_the_host_says_what_to_install(judge, monkeypatch):
    monkeypatch.setitem(sys.modules, "verl.experimental.reward_loop.reward_manager.base", None)
    with pytest.raises(InputError, match=r"verl: expected the package to be installed \(pip install verl\)"):
        group_reward_manager(judge)
