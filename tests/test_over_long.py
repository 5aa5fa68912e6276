"""What is too long is left out before anything is computed, exactly, however texts are tokenized."""

import functools

import pytest
from helpers.small_models import tiny_model
from helpers.small_tokenizers import MAKE, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.comparing.replicas import Replicas
from gram_fast.errors import InputError
from gram_fast.judge import PairwiseJudge

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:this tokenizer has no safe place"),
]
NAMES = ["gpt2", "lookbehind"]  # composed of pieces, and encoded whole
PROMPT = "Which?"
ROOM = 60


@functools.cache
def judge_of(name: str) -> PairwiseJudge:
    """Has room for `ROOM` tokens of two responses to PROMPT."""
    tok = tokenizer(name)
    model = tiny_model("llama", vocab_size=len(tok), max_position_embeddings=4096)
    judge = PairwiseJudge.from_model(model, tok)
    return PairwiseJudge.from_model(model, tok, max_length=length(judge, "", "") + ROOM)  # of two tokens an "x "


def length(judge: PairwiseJudge, *responses: str) -> int:
    (ids,) = judge.comparer.tokenizer.whole_ids([(PROMPT, *responses)])
    return len(ids)


def fits(judge: PairwiseJudge, a: str, b: str) -> bool:
    return max(length(judge, a, b), length(judge, b, a)) <= judge.max_length


def size(judge: PairwiseJudge, text: str) -> int:
    return len(judge.comparer.tokenizer.ids_between(("", ""), [(text,)])[0])


texts = st.one_of(
    st.integers(0, 40).map("x ".__mul__), st.integers(0, 15).map("7 a\n".__mul__), st.sampled_from(["", "long " * 400])
)


@pytest.mark.parametrize("strategy", ["round_robin", "knockout"])
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=8)
@given(group=st.lists(texts, min_size=2, max_size=5), seed=st.integers(0, 1))
def test_the_longest_go_until_all_others_fit(name, strategy, group, seed):
    judge = judge_of(name)
    how = {"strategy": strategy, "seed": seed}
    rewards = judge.rewards([PROMPT, PROMPT], [group, ["a", "b"]], **how, on_error="none")
    assert rewards[1] == pytest.approx(judge.rewards([PROMPT], [["a", "b"]], **how)[0], abs=1e-5)
    out = {c for c in range(len(group)) if f"groups[0][{c}]" in rewards.errors}
    stays = [c for c in range(len(group)) if c not in out]
    assert {c for c, value in enumerate(rewards[0]) if value is None} == (out if len(stays) > 1 else {*out, *stays})
    assert all(fits(judge, group[a], group[b]) for a in stays for b in stays if group[a] != group[b])
    for c in out:
        others = [text for text in group if text != group[c] and size(judge, text) <= size(judge, group[c])]
        assert not all(fits(judge, group[c], text) for text in others)
    if len(stays) > 1:
        alone = judge.rewards([PROMPT, PROMPT], [[group[c] for c in stays], ["a", "b"]], **how)
        assert alone[0] == [rewards[0][c] for c in stays]
        assert alone.stats.tokens_tree == rewards.stats.tokens_tree
    if out and strategy == "round_robin":
        with pytest.raises(InputError) as caught:
            judge.rewards([PROMPT, PROMPT], [group, ["a", "b"]], **how)
        assert caught.value.reasons == {name: why for name, why in rewards.errors.items() if name != "groups[0]"}


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_beside_its_reference_goes_and_candidates_need_not_fit_together(name):
    judge = judge_of(name)
    group = ["x " * 17, "y " * 17, "z " * 35, "z " * 35, "r"]
    found = judge.rewards([PROMPT], [group], references=["r"], on_error="none")
    assert not fits(judge, group[0], group[1])
    assert [value is None for value in found[0]] == [False, False, True, True, False]
    assert found[0][4] == 0.5
    assert set(found.errors) == {"groups[0][2]", "groups[0][3]"}
    assert "the pair with references[0] in slot " in found.errors["groups[0][2]"]
    none = judge.rewards([PROMPT], [["a", "b"]], references=["z " * 35], on_error="none")
    assert list(none) == [[None, None]]
    assert set(none.errors) == {"groups[0][0]", "groups[0][1]", "groups[0]"}


@pytest.mark.parametrize("name", NAMES)
def test_pairs_that_are_too_long_are_none(name):
    judge = judge_of(name)
    prompts, pairs = [PROMPT] * 4, [("a", "b"), ("x " * 35, "b"), ("x " * 17, "x " * 17), ("c", "x " * 8000)]
    found = judge.compare_many(prompts, pairs, on_error="none")
    assert found[0].p == pytest.approx(judge.compare(PROMPT, "a", "b").p, abs=1e-5)
    assert list(found[1:]) == [None] * 3
    assert set(found.errors) == {f"pairs[{k}]" for k in (1, 2, 3)} | {
        "pairs[1][0]", "pairs[2][0]", "pairs[2][1]", "pairs[3][1]"
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        judge.compare_many(prompts, pairs)
    assert set(caught.value.reasons) == {"pairs[1][0]", "pairs[2][0]", "pairs[2][1]", "pairs[3][1]"}
    assert judge.compare_many(prompts[:1], pairs[:1], "ab", on_error="none")[0].p_ba is None


def test_a_prompt_that_is_too_long_is_one_bad_group():
    judge = judge_of("gpt2")
    said = {9000: "the text has 18000 characters", 50: "the judge's prompt with it alone has"}
    for prompt, start in (("x " * count, start) for count, start in said.items()):
        found = judge.rewards([PROMPT, prompt], [["a", "b"], ["a", "b"]], on_error="none")
        assert list(found) == [pytest.approx(judge.rewards([PROMPT], [["a", "b"]])[0], abs=1e-5), [None, None]]
        (reason,) = found.errors.items()
        assert reason[0] == "prompts[1]"
        assert reason[1].startswith(start)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_without_an_embedding_are_one_bad_candidate(name):
    tok = MAKE[name]()
    model = tiny_model("llama", vocab_size=len(tok), max_position_embeddings=4096)
    tok.add_tokens(["<new>"])
    judge = PairwiseJudge.from_model(model, tok)
    same = judge.rewards(["p", "p"], [["<new>", "<new>"], ["a", "b"]], on_error="none")  # of which no pair is asked
    assert list(same) == [[None, None], judge.rewards(["p"], [["a", "b"]])[0]]
    found = judge.rewards(["p", "<new>"], [["a", "b <new>", "c"], ["a", "b"]], on_error="none")
    assert [found[0][0], found[0][2]] == judge.rewards(["p"], [["a", "c"]])[0]
    assert (found[0][1], found[1]) == (None, [None, None])
    assert set(found.errors) == {"groups[0][1]", "prompts[1]"}
    with pytest.raises(InputError) as caught:
        judge.rewards(["p", "<new>"], [["a", "b <new>", "c"], ["a", "b"]])
    assert caught.value.reasons == found.errors


def test_replicas_leave_out_the_same_and_an_error_names_what_all_of_them_have():
    judge = judge_of("gpt2")
    two = PairwiseJudge(Replicas([judge.comparer, judge.comparer]))
    groups = [["a", "x " * 35, "b"], ["a", "b"], ["c", "d", "x " * 17, "y " * 18], ["x " * 8000, "e", "f"]]
    ours, theirs = (each.rewards([PROMPT] * 4, groups, on_error="none") for each in (two, judge))
    assert ours.errors == theirs.errors
    assert set(ours.errors) == {"groups[0][1]", "groups[2][3]", "groups[3][0]"}
    for values, expected in zip(ours, theirs, strict=True):
        assert values == [None if value is None else pytest.approx(value, abs=1e-5) for value in expected]
    with pytest.raises(InputError) as caught:
        two.rewards([PROMPT] * 4, groups)
    assert caught.value.reasons == ours.errors


def test_a_matrix_names_all_that_is_too_long():
    with pytest.raises(InputError) as caught:
        judge_of("gpt2").matrix(PROMPT, ["x " * 35, "a", "y " * 36], orders="ab")
    assert set(caught.value.reasons) == {"responses[0]", "responses[2]"}
