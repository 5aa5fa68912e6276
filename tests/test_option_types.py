"""A value of a wrong type for an option of the public API is an InputError of one sentence, whatever the value is."""

import inspect

import numpy as np
import pytest
import torch
from helpers.comparers import LengthComparer

import gram_fast
from gram_fast.judge import PairwiseJudge

RESPONSES = ["a", "bb", "ccc"]
# Lists, dicts and sets have no hash; arrays and tensors have no truth value.
WRONG = [
    [],
    ["auto", 1],
    {},
    {"a": 1},
    set(),
    2.5,
    float("nan"),
    b"auto",
    object(),
    np.array(["auto", "both"]),
    np.array([1, 2]),
    torch.zeros(3),
    np.float32,
    np.dtype("float32"),
]
CALLS = {
    "rank": lambda judge, **option: judge.rank("p", RESPONSES, **option),
    "best_of_n": lambda judge, **option: judge.best_of_n("p", RESPONSES, **option),
    "rewards": lambda judge, **option: judge.rewards(["p"], [RESPONSES], **option),
    "rewards with references": lambda judge, **option: judge.rewards(["p"], [RESPONSES], references=["r"], **option),
    "compare": lambda judge, **option: judge.compare("p", "a", "b", **option),
    "compare_many": lambda judge, **option: judge.compare_many(["p"], [("a", "b")], **option),
    "matrix": lambda judge, **option: judge.matrix("p", RESPONSES, **option),
}
OF_A_TOURNAMENT = ("strategy", "orders", "scores", "seed")
OPTIONS = [(call, name) for call in list(CALLS)[:4] for name in OF_A_TOURNAMENT]
OPTIONS += [("rank", "k"), ("rewards", "k"), ("rewards", "duplicates"), *((call, "orders") for call in list(CALLS)[4:])]
OPTIONS += [(call, "on_error") for call in ("rank", "rewards", "rewards with references", "compare_many")]


def check(call, wrong, name):
    with pytest.raises(gram_fast.InputError, match=name) as caught:
        call(wrong)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(("call", "name"), OPTIONS)
def test_options_of_a_call(call, name):
    judge = PairwiseJudge(LengthComparer())
    beside = {"strategy": "top_k"} if name == "k" else {}
    for wrong in [*WRONG, True, ""]:
        check(lambda value: CALLS[call](judge, **beside, **{name: value}), wrong, name)


@pytest.mark.parametrize("name", inspect.signature(PairwiseJudge.from_pretrained).parameters)
def test_options_of_loading(name):
    takes_mappings = name == "chat_template_kwargs"
    for wrong in [value for value in WRONG if not (takes_mappings and isinstance(value, dict))]:
        check(lambda value: PairwiseJudge.from_pretrained(**{"name_or_path": "./nothing", name: value}), wrong, name)


@pytest.mark.parametrize("name", ["deterministic", "tensor_parallel", "trust_remote_code"])
def test_a_switch_that_is_text_is_not_on(name):
    with pytest.raises(gram_fast.InputError, match=f"{name}: expected bool, got 'false'"):
        PairwiseJudge.from_pretrained("./nothing", **{name: "false"})


def test_a_preset_may_be_a_path(tmp_path):
    with pytest.raises(gram_fast.InputError, match="there is no preset or template file"):
        PairwiseJudge.from_pretrained("./nothing", preset=tmp_path / "nothing")
