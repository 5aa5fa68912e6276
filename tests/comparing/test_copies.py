"""Judges that are pickled, hashed and deep-copied, as Ray, datasets and trainers do with reward functions."""

import copy
import pickle
from functools import partial

import pytest
from helpers.comparers import LengthComparer
from helpers.small_models import tiny_judge, write_judge

from gram_fast.comparing.replicas import Replicas
from gram_fast.errors import InputError
from gram_fast.judge import PairwiseJudge

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT, RESPONSES = "Name a colour of the sky.", ["Blue.", "It is blue, mostly.", "Green?"]


@pytest.mark.parametrize(
    "options",
    [
        {"deterministic": True, "max_length": 700},
        {"runner": "transformers", "preset": "short", "include_reasoning": True},
        {"device": ["cpu", "cpu"], "max_batch_tokens": 64},
    ],
)
def test_an_unpickled_judge_is_loaded_with_its_options(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    write_judge(tmp_path / "checkpoint")
    judge = PairwiseJudge.from_pretrained("checkpoint", **options)
    data = pickle.dumps(partial(judge.rank, PROMPT))
    assert len(data) < 2000
    monkeypatch.chdir("/")  # a worker's folder is another one
    ask = pickle.loads(data)
    ours, theirs = ask(RESPONSES), judge.rank(PROMPT, RESPONSES)
    assert ours.scores == pytest.approx(theirs.scores, abs=1e-6)
    loaded = ask.func.__self__
    assert loaded.comparer is not judge.comparer
    assert (loaded.max_length, loaded.include_reasoning) == (judge.max_length, judge.include_reasoning)
    assert loaded.comparer.tokens_at_once == judge.comparer.tokens_at_once
    assert type(loaded.comparer) is type(judge.comparer)
    assert pickle.dumps(loaded) == pickle.dumps(judge)  # also of a copy's copy


def test_a_function_that_holds_a_judge_has_one_fingerprint(tmp_path):
    """datasets caches the result of `map` under the hash of what dill makes of the function."""
    dill = pytest.importorskip("dill")
    checkpoint = write_judge(tmp_path)
    first, again = (PairwiseJudge.from_pretrained(checkpoint) for _ in range(2))
    first.rank(PROMPT, RESPONSES)  # a call changes nothing of it
    assert dill.dumps(first) == dill.dumps(again)
    assert dill.dumps(first) != dill.dumps(PairwiseJudge.from_pretrained(checkpoint, max_length=700))


def test_a_judge_of_a_model_in_memory_says_that_it_cannot_be_pickled():
    with pytest.raises(InputError, match=r"^a judge of a model in memory cannot be pickled: expected one of from_pre"):
        pickle.dumps(tiny_judge())


def test_a_copy_shares_the_model():
    for judge in (tiny_judge(), PairwiseJudge(Replicas([LengthComparer(), LengthComparer()]))):
        settings = copy.deepcopy({"reward": judge, "weight": [1.0]})
        assert settings["reward"].comparer is copy.copy(judge).comparer is copy.copy(judge.comparer) is judge.comparer
        assert settings["reward"].rank(PROMPT, RESPONSES).order == judge.rank(PROMPT, RESPONSES).order


def test_replicas_of_another_kind_are_pickled_one_by_one():
    replicas = pickle.loads(pickle.dumps(Replicas([LengthComparer(at_once=1), LengthComparer()])))
    assert [comparer.at_once for comparer in replicas.comparers] == [1, None]
    assert replicas.in_flight == [0, 0]
