"""Scores for verl: compute_score against a reference, as its reward managers call it."""

import asyncio
import logging

import numpy as np
import pytest
import torch
from helpers.comparers import LengthComparer, p_longer
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


def test_the_host_loads_a_manager_of_groups(tmp_path):
    reward = pytest.importorskip("verl.trainer.ppo.reward", reason="needs verl", exc_type=ImportError)
    from omegaconf import OmegaConf

    (tmp_path / "manager.py").write_text(MANAGER_FILE)
    module = {"path": str(tmp_path / "manager.py"), "name": "unused"}
    chosen = {"source": "importlib", "name": "Manager", "module": module}
    config = OmegaConf.create(
        {
            "reward": {"custom_reward_function": {"path": None}, "reward_manager": chosen, "num_workers": 1},
            "actor_rollout_ref": {"rollout": {"n": 3, "val_kwargs": {"n": 3}}},
        }
    )
    prompt = [{"role": "user", "content": "Name a city."}]
    # One prompt twice, the samples in any order, a group that is not full, and one of one sample.
    rows = [
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

    async def run():
        host = reward.load_reward_manager(config, tokenizer("qwen"))
        found = await asyncio.gather(*(host.run_single(sample(text, uid=uid, raw_prompt=prompt)) for uid, text in rows))
        return host, found

    host, found = asyncio.run(run())
    expected = PairwiseJudge(LengthComparer()).rewards(
        ["x"] * 3, [[text for uid, text in rows if uid == group] for group in "uvw"]
    )
    for group, rewards in zip("uvw", expected, strict=True):
        ours = [row["reward_score"] for (uid, _), row in zip(rows, found, strict=True) if uid == group]
        assert ours == pytest.approx(rewards)
    assert found[-1] == {"reward_score": 0.0, "reward_extra_info": {"unjudged": 1.0}}
    scores = [row["reward_score"] for row in found[:2]]
    from verl import DataProto

    batch = DataProto.concat([sample(text) for _, text in rows[:2]])
    assert type(host).assemble_rm_scores(batch, scores).sum(1).tolist() == pytest.approx(scores)


def test_where_groups_could_not_meet_is_an_error(judge):
    pytest.importorskip("verl.experimental.reward_loop", reason="needs verl", exc_type=ImportError)
    from omegaconf import OmegaConf

    def make(workers, val_n):
        rollout = {"n": 3, "val_kwargs": {"n": val_n}}
        config = {"reward": {"num_workers": workers}, "actor_rollout_ref": {"rollout": rollout}}
        return group_reward_manager(judge)(config=OmegaConf.create(config), tokenizer=None)

    with pytest.raises(InputError, match=r"reward\.num_workers: expected 1, where groups meet, got 8"):
        make(8, 3)
    with pytest.raises(InputError, match=r"rollout\.val_kwargs\.n: expected 3 as in training"):
        make(1, 1)
