"""Arrays, Series and tuples are lists to every argument, and numpy's integers are integers."""

from collections import deque

import numpy as np
import pytest
from helpers.comparers import LengthComparer

from gram_fast.errors import InputError
from gram_fast.judge import PairwiseJudge
from gram_fast.text.lists import as_list
from gram_fast.text.messages import read_text

RESPONSES = ["a", "ccc", "bb"]


def series(values):
    """With an index that is not that of the places."""
    pandas = pytest.importorskip("pandas")
    return pandas.Series(values, index=range(len(values), 0, -1), dtype=object)


class Polars:
    """As a Series of Polars, which has no `tolist`."""

    def __init__(self, values):
        self.values = values

    def to_list(self):
        return list(self.values)

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(self.values)


def objects(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


MAKE = {"tuple": tuple, "array": objects, "Series": series, "Polars": Polars, "deque": deque}


@pytest.fixture
def judge():
    return PairwiseJudge(LengthComparer())


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_calls_take_lists_of_any_kind(judge, make):
    ranking, expected = judge.rank("p", make(RESPONSES)), judge.rank("p", RESPONSES)
    assert (ranking.order, ranking.scores) == (expected.order, expected.scores)
    assert type(ranking.best) is int
    best = judge.best_of_n("p", make(RESPONSES))
    assert (best.index, best.response) == (1, "ccc")
    assert judge.matrix("p", make(RESPONSES)).tolist() == judge.matrix("p", RESPONSES).tolist()
    prompts, groups, references = ["p", "q"], [RESPONSES, ["a", "aa"]], ["r", "s"]
    ours = judge.rewards(make(prompts), make([make(group) for group in groups]), make(references))
    assert ours == judge.rewards(prompts, groups, references)
    pairs = judge.compare_many(make(prompts), make([make(pair) for pair in (["a", "b"], ["c", "cc"])]))
    assert pairs == judge.compare_many(prompts, [["a", "b"], ["c", "cc"]])
    bad = judge.rewards(make(prompts), make([make(["a", None, "bb"]), ["a", "b"]]), on_error="none")
    assert list(bad.errors) == ["groups[0][1]"]


def test_arrays_of_text_are_lists_of_text(judge):
    plain = judge.rewards(["p", "q"], [["a", "bb"], ["c", "dd"]])
    assert judge.rewards(np.array(["p", "q"]), np.array([["a", "bb"], ["c", "dd"]])) == plain
    assert judge.compare(np.str_("p"), np.array(["a", "b"])[0], "b").p == judge.compare("p", "a", "b").p
    assert type(read_text(np.str_("a"), "text")[0]) is str


@pytest.mark.parametrize("make", [tuple, objects, series])
def test_messages_may_be_read_from_tables(make):
    parts = make([{"type": "text", "text": "Hi"}, {"type": "text", "text": " there"}])
    call = {"function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": parts, "tool_calls": None},
        {"role": "assistant", "content": "", "tool_calls": make([call])},
    ]
    listed = [{**messages[0], "content": list(parts)}, {**messages[1], "tool_calls": [call]}]
    assert read_text(make(messages), "p") == read_text(listed, "p")
    assert read_text([{"role": "user", "content": "a", "tool_calls": make([])}], "p") == ("a", ())


@pytest.mark.parametrize("integer", [np.int64, np.int8, np.uint32])
def test_integers_of_numpy_are_integers(judge, integer):
    for strategy, k in (("top_k", 2), ("knockout", None)):
        ours = judge.rank("p", RESPONSES, strategy, seed=integer(3), k=k and integer(k))
        theirs = judge.rank("p", RESPONSES, strategy, seed=3, k=k)
        assert (ours.order, ours.comparisons) == (theirs.order, theirs.comparisons)


OTHERS = ["ab", b"ab", bytearray(2), {"a": 1}, {1, 2}, iter("ab"), 3, None, object(), list, np.ndarray]
OTHERS += [np.array("ab"), np.float32(1)]


@pytest.mark.parametrize("value", OTHERS)
def test_other_things_are_no_lists(judge, value):
    assert as_list(value) is None
    with pytest.raises(InputError, match=r"^responses: expected a list of responses, got \w+$"):
        judge.rank("p", value)
