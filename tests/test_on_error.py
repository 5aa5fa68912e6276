"""One bad row is one bad row: on_error="none" judges the others, to the numbers that they have without it."""

import numpy as np
import pytest
from helpers.comparers import LengthComparer
from hypothesis import given, settings
from hypothesis import strategies as st

import gram_fast
from gram_fast.judge import PairwiseJudge
from gram_fast.ranking.tournament import STRATEGY_NAMES, WITH_K

IMAGE = [{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
BAD = {
    "None": None,
    "no messages": [],
    "a number": 3,
    "not a message": ["text"],
    "no content": [{"role": "assistant", "content": None}],
    "an image": IMAGE,
    "half a character": "\ud800",
}
bad = st.sampled_from(list(BAD.values()))
good = st.text("ab", max_size=5)
mixed = st.lists(st.one_of(good, good, bad), max_size=6)


def is_bad(value) -> bool:
    return any(value is one for one in BAD.values())


@pytest.fixture(scope="module")
def judge() -> PairwiseJudge:
    return PairwiseJudge(LengthComparer())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.one_of(good, good, bad), mixed, st.one_of(good, good, bad)), max_size=5),
    st.booleans(),
    st.sampled_from(["round_robin", "knockout", "sort"]),
)
def test_the_others_have_the_rewards_that_they_have_alone(judge, rows, has_references, strategy):
    prompts, groups, references = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    how = {"references": references} if has_references else {"strategy": strategy}
    rewards = judge.rewards(prompts, groups, **how, on_error="none")
    assert [len(values) for values in rewards] == [len(group) for group in groups]
    least = 1 if has_references else 2
    kept = []
    for g, (prompt, group, reference) in enumerate(rows):
        judged = [c for c, response in enumerate(group) if not is_bad(response)]
        at_fault = {f"prompts[{g}]": is_bad(prompt), f"references[{g}]": has_references and is_bad(reference)}
        if any(at_fault.values()) or len(judged) < least:
            assert (list(rewards[g]), rewards.comparisons[g]) == ([None] * len(group), ())
            explained = [name for name, wrong in at_fault.items() if wrong] or [f"groups[{g}]"]
            assert all(rewards.errors[name] for name in explained)
        else:
            kept.append((g, judged))
        for c in range(len(group)):
            assert (f"groups[{g}][{c}]" in rewards.errors) == is_bad(group[c])
    alone = judge.rewards(
        [prompts[g] for g, _ in kept],
        [[groups[g][c] for c in judged] for g, judged in kept],
        **({"references": [references[g] for g, _ in kept]} if has_references else {"strategy": strategy}),
    )
    assert (alone.errors, alone.stats.comparisons) == ({}, rewards.stats.comparisons)
    for place, (g, judged) in enumerate(kept):
        assert [rewards[g][c] for c in judged] == alone[place]
        assert all(rewards[g][c] is None for c in range(len(groups[g])) if c not in judged)
        number = {-1: -1, **dict(enumerate(judged))}
        found = [(number[p.i], number[p.j], p.p) for p in alone.comparisons[place]]
        assert [(p.i, p.j, p.p) for p in rewards.comparisons[g]] == found


@pytest.mark.parametrize("strategy", STRATEGY_NAMES)
@settings(deadline=None, max_examples=25)
@given(responses=mixed, seed=st.integers(0, 3))
def test_a_ranking_is_that_of_the_others(judge, strategy, responses, seed):
    how = {"strategy": strategy, "seed": seed, "k": 2 if strategy in WITH_K else None}
    ranking = judge.rank("p", responses, **how, on_error="none")
    judged = [c for c, response in enumerate(responses) if not is_bad(response)]
    if len(judged) < 2:
        assert (ranking.best, ranking.order, ranking.scores) == (None, (), (None,) * len(responses))
        assert "responses" in ranking.errors
        return
    alone = judge.rank("p", [responses[c] for c in judged], **how)
    assert ranking.order == tuple(judged[c] for c in alone.order)
    assert ranking.best == judged[alone.best]
    assert [ranking.scores[c] for c in judged] == list(alone.scores)
    assert {f"responses[{c}]" for c, score in enumerate(ranking.scores) if score is None} == set(ranking.errors)
    assert [(judged[p.i], judged[p.j]) for p in alone.comparisons] == [(p.i, p.j) for p in ranking.comparisons]


@settings(deadline=None)
@given(st.lists(st.tuples(st.one_of(good, good, bad), st.lists(st.one_of(good, good, bad), max_size=3)), max_size=6))
def test_pairs_are_those_of_the_others(judge, rows):
    prompts, pairs = [prompt for prompt, _ in rows], [pair for _, pair in rows]
    found = judge.compare_many(prompts, pairs, on_error="none")
    judged = [k for k, (p, pair) in enumerate(rows) if len(pair) == 2 and not any(map(is_bad, (p, *pair)))]
    alone = judge.compare_many([prompts[k] for k in judged], [pairs[k] for k in judged])
    assert [found[k].p for k in judged] == [c.p for c in alone]
    assert [k for k, c in enumerate(found) if c is not None] == judged
    assert found.stats.comparisons == alone.stats.comparisons == 2 * len(judged)
    for k in set(range(len(rows))) - set(judged):
        assert any(name == f"prompts[{k}]" or name.startswith(f"pairs[{k}]") for name in found.errors)


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_reason_is_what_the_error_says(judge, value):
    (reason,) = judge.rewards(["p"], [["a", value, "bb"]], on_error="none").errors.values()
    with pytest.raises(gram_fast.InputError) as caught:
        judge.rewards(["p"], [["a", value, "bb"]])
    assert str(caught.value) == f"groups[0][1]: {reason}"
    assert caught.value.reasons == {"groups[0][1]": reason}
    with pytest.raises(gram_fast.InputError, match=r"^prompts\[0\]: "):
        judge.rewards([value], [["a", "bb"]])


keys = ["role", "content", "type", "text", "tool_calls", "function", "name", "arguments", "refusal", "thinking", "x", 3]
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=2), st.binary(max_size=2), st.just("\ud800"),
    st.sampled_from(["text", "tool_use", "tool_result", "thinking", "image_url"]),
    st.sampled_from([np.array("a"), np.array([]), np.array([1, 2]), np.float32(1), object()]),
)  # fmt: skip
anything = st.recursive(
    leaves,
    lambda part: st.one_of(
        st.lists(part, max_size=3),
        st.tuples(part, part),
        st.lists(st.dictionaries(st.sampled_from(keys), part, max_size=4), max_size=2),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(anything, anything, anything)
def test_whatever_a_row_holds_it_has_a_reward_or_a_reason_that_the_error_has_too(judge, prompt, a, b):
    found = judge.rewards([prompt], [["x", a, b, "y"]], on_error="none")
    for c, value in enumerate(found[0]):
        assert (value is None) == bool({f"groups[0][{c}]", "prompts[0]"} & set(found.errors))
    assert all("\n" not in reason for reason in found.errors.values())
    if found.errors:
        with pytest.raises(gram_fast.InputError) as caught:
            judge.rewards([prompt], [["x", a, b, "y"]])
        assert caught.value.reasons == found.errors


def test_an_error_names_all_in_a_message_of_bounded_length(judge):
    with pytest.raises(gram_fast.InputError) as caught:
        judge.rewards(["p", None], [["a", None, "bb"], ["a", "b", IMAGE]], references=["r", []])
    said = "expected a string or a list of chat messages, got"
    assert str(caught.value) == (
        f"groups[0][1]: {said} NoneType; prompts[1]: {said} NoneType; references[1]: {said} an empty list; "
        "groups[1][2]: message 0, part 0 is of type 'image_url', expected text"
    )
    with pytest.raises(gram_fast.InputError) as caught:
        judge.rewards(["p"], [[None] * 900])
    message = str(caught.value)
    assert "; and 896 more: groups[0][4], groups[0][5], " in message
    assert message.endswith("groups[0][19], ...")
    assert len(message) < 800
    assert list(caught.value.reasons) == [f"groups[0][{c}]" for c in range(900)]


def test_wrong_arguments_stay_errors(judge):
    for call, message in (
        (lambda: judge.rewards(["p"], [["a", "b"]] * 2, on_error="none"), "prompts: expected one for each of 2 groups"),
        (lambda: judge.rewards(["p"], ["ab"], on_error="none"), r"groups\[0\]: expected a list of responses, got str"),
        (lambda: judge.rewards(["p"], [None], on_error="none"), r"groups\[0\]: expected a list of responses, got None"),
        (lambda: judge.rank("p", "ab", on_error="none"), "responses: expected a list of responses, got str"),
        (lambda: judge.rank("p", [None], "nope", on_error="none"), "there is no strategy 'nope'"),
        (lambda: judge.rank("p", [None], orders="aa", on_error="none"), "there are no orders 'aa'"),
        (lambda: judge.rank("p", ["a", "b"], on_error="skip"), "^on_error: expected one of raise, none, got 'skip'$"),
        (lambda: judge.compare_many(["p"], "ab", on_error="none"), "pairs: expected a list, got str"),
    ):
        with pytest.raises(gram_fast.InputError, match=message):
            call()


def test_only_what_is_judged_is_flagged(judge):
    found = judge.rewards(["long", None], [["long", None, "a"], ["long", "b"]], on_error="none")
    assert set(found.flagged) == {"prompts[0]", "groups[0][0]"}
