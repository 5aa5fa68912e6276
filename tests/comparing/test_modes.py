"""A judge in mode "factored": what it reads, what its answers depend on, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.comparers import LengthComparer
from helpers.factored import plain_factored
from helpers.small_models import KINDS, LINEAR_CONFIGS, tiny_judge, tiny_model, tiny_tokenizer

from gram_fast.comparing.replicas import Replicas
from gram_fast.errors import InputError, UnsupportedModelError
from gram_fast.judge import PairwiseJudge
from gram_fast.text.encoded import EncodedTexts
from gram_fast.text.tokens import PairTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "Name a colour of the sky."
RESPONSES = ["Blue.", "It is blue, mostly.\n", "", "Green?", "Red, at dusk 🌇", "blue " * 30]
BOTH = ("full", "factored")


def in_both_modes(judge: PairwiseJudge) -> PairwiseJudge:
    """The judge, as if its checkpoint had been trained in both modes."""
    return PairwiseJudge(replace(judge.comparer, modes=BOTH))


@pytest.fixture(scope="module")
def judge() -> PairwiseJudge:
    return in_both_modes(tiny_judge())


def test_a_verdict_is_that_of_a_plain_forward_of_the_texts_tokens(judge):
    encoded = EncodedTexts.of(judge.comparer.tokenizer, [PROMPT], [RESPONSES], is_factored=True)
    model = tiny_judge().comparer.runner.model
    labels = list(judge.comparer.tokenizer.label_ids)
    for i, j in ((0, 1), (5, 2), (3, 4)):
        made = encoded.round([(0, i, j)], 0)
        prompt, first, second, tail = (made.segments[number].tolist() for number in made.sequences[0])
        parts = ([*encoded.head_ids.tolist(), *prompt], first, second, tail)
        whole = judge.comparer.tokenizer.whole_ids([(PROMPT, RESPONSES[i], RESPONSES[j])])[0]
        assert [token for part in parts for token in part] == whole.tolist()
        logits = plain_factored(model, parts, labels)
        ours = judge.compare(PROMPT, RESPONSES[i], RESPONSES[j], orders="ab", mode="factored")
        assert ours.margin == pytest.approx(logits[0] - logits[1], abs=1e-4)
        assert ours.mode == "factored"


def test_a_verdict_does_not_depend_on_other_candidates_or_their_order(judge):
    matrix = judge.matrix(PROMPT, RESPONSES, mode="factored")
    order = np.random.default_rng(0).permutation(len(RESPONSES))
    again = judge.matrix(PROMPT, [RESPONSES[k] for k in order], mode="factored")
    np.testing.assert_allclose(again, matrix[np.ix_(order, order)], atol=1e-5)
    for i, j in ((0, 5), (4, 1)):
        alone = judge.compare(PROMPT, RESPONSES[i], RESPONSES[j], mode="factored")
        assert alone.p == pytest.approx(matrix[i, j], abs=1e-5)
    full = judge.matrix(PROMPT, RESPONSES)
    assert np.abs(full - matrix).max() > 1e-3  # another judge than that which reads B after A


def test_equal_responses_that_begin_alike_are_read_twice(judge):
    """Both paths have the same tokens: each has its own share of the verdict's attention."""
    model = tiny_judge().comparer.runner.model
    encoded = EncodedTexts.of(judge.comparer.tokenizer, [PROMPT], [["Same words", "Same words!"]], is_factored=True)
    made = encoded.round([(0, 0, 1)], 0)
    prompt, first, second, tail = (made.segments[number].tolist() for number in made.sequences[0])
    labels = list(judge.comparer.tokenizer.label_ids)
    expected = plain_factored(model, ([*encoded.head_ids.tolist(), *prompt], first, second, tail), labels)
    found = judge.compare(PROMPT, "Same words", "Same words!", orders="ab", mode="factored")
    assert found.margin == pytest.approx(expected[0] - expected[1], abs=1e-4)


@pytest.mark.parametrize("strategy", ["round_robin", "knockout", "sort", "opponents", "linear"])
def test_every_strategy_computes_each_encoding_once(strategy, judge):
    k = {"k": 3} if strategy == "opponents" else {}
    ranking = judge.rank(PROMPT, RESPONSES, strategy, mode="factored", **k)
    stats = ranking.stats
    assert {c.mode for c in ranking.comparisons} == {"factored"}
    assert stats.tokens_computed <= stats.tokens_tree < stats.tokens_unshared
    encoded = EncodedTexts.of(judge.comparer.tokenizer, [PROMPT], [RESPONSES], is_factored=True)
    tail = len(encoded.pieces[-1])
    assert stats.tokens_tree <= len(encoded.head_ids) + sum(map(len, encoded.pieces)) + stats.comparisons * tail


def test_the_best_are_judged_again(judge):
    first = judge.rank(PROMPT, RESPONSES, mode="factored")
    ranking = judge.rank(PROMPT, [*RESPONSES, RESPONSES[0]], mode="factored", rejudge=3)
    again = [c for c in ranking.comparisons if c.mode == "full"]
    best = set(first.order[:3])
    copies = {0, 6} if 0 in best else set()
    assert {c.i for c in again} | {c.j for c in again} == best
    assert len(again) == 3
    assert set(ranking.order[: 3 + len(copies) // 2]) == best | copies
    full = judge.matrix(PROMPT, RESPONSES)
    rates = {i: sum(full[i, j] for j in best if j != i) for i in best}
    assert [i for i in ranking.order if i in best] == sorted(best, key=lambda i: -rates[i])
    assert [i for i in ranking.order if i not in best | copies] == [i for i in first.order if i not in best | copies]
    assert ranking.scores[:6] == pytest.approx(first.scores)
    assert ranking.stats.comparisons == 2 * (15 + 3)
    assert judge.best_of_n(PROMPT, RESPONSES, "round_robin", mode="factored", rejudge=3).index == ranking.order[0]


def test_what_is_too_long_to_be_judged_again_is_left_out():
    """Two long responses meet in the second stage alone: each of them has room beside any other."""
    judge = in_both_modes(tiny_judge(max_length=350))
    responses = ["x " * 60, *"yz", "q " * 60, *"rstu"]
    found = [
        judge.rank(PROMPT, responses, "opponents", k=2, seed=seed, on_error="none", mode="factored", rejudge=8)
        for seed in range(4)
    ]
    for ranking in found:
        assert len(ranking.order) == 7
        assert ranking.errors.keys() == {"responses[0]"}
    alone = judge.rank(PROMPT, responses, "opponents", k=2, on_error="none", mode="factored")
    assert len(alone.order) == 8


def test_rewards_of_groups(judge):
    groups = [RESPONSES, RESPONSES[:3], ["same", "same", "other"]]
    rewards = judge.rewards([PROMPT, "Why?", PROMPT], groups, mode="factored")
    for prompt, group, of_group in zip([PROMPT, "Why?", PROMPT], groups, rewards, strict=True):
        alone = judge.rank(prompt, group, mode="factored")
        assert of_group == pytest.approx(alone.scores, abs=1e-5)
    assert {c.mode for of_group in rewards.comparisons for c in of_group} == {"factored"}
    [pair] = judge.compare_many([PROMPT], [RESPONSES[:2]], mode="factored")
    assert pair.p == pytest.approx(judge.compare(PROMPT, *RESPONSES[:2], mode="factored").p, abs=1e-5)


def test_replicas_answer_as_one(judge):
    spread = PairwiseJudge(Replicas([judge.comparer, in_both_modes(tiny_judge()).comparer]))
    groups = [RESPONSES, RESPONSES[:3], RESPONSES[3:]]
    prompts = [PROMPT, "Why?", "How?"]
    ours = spread.rewards(prompts, groups, mode="factored")
    for a, b in zip(ours, judge.rewards(prompts, groups, mode="factored"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert {c.mode for c in spread.rank(PROMPT, RESPONSES).comparisons} == {"full"}


def test_many_candidates_in_bounded_memory():
    judge = in_both_modes(tiny_judge(max_batch_tokens=1024))
    engine = judge.comparer.engine
    engine.keep_limit = 4000
    responses = [f"Answer {n}, which is {n % 7}." for n in range(1000)]
    ranking = judge.rank(PROMPT, responses, "opponents", k=20, mode="factored")
    assert len(ranking.comparisons) == 1000 * 20 // 2
    pieces = EncodedTexts.of(judge.comparer.tokenizer, [PROMPT], [responses], is_factored=True).pieces
    # Encodings have slots side by side: between those that stay, some are too few for another one.
    assert engine.num_slots <= 1024 + 1.5 * 4000 < 0.3 * sum(map(len, pieces))
    few = judge.rank(PROMPT, responses[:4], mode="factored")
    for c in few.comparisons[:3]:
        alone = judge.compare(PROMPT, responses[c.i], responses[c.j], mode="factored")
        assert alone.p == pytest.approx(c.p, abs=1e-5)


def test_memory_that_runs_out_halves_the_passes(judge, monkeypatch):
    small = in_both_modes(tiny_judge())
    forward, calls = small.comparer.runner.forward, []

    def failing(tree_pass, store):
        calls.append(tree_pass.num_tokens)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return forward(tree_pass, store)

    monkeypatch.setattr(small.comparer.runner, "forward", failing)
    with pytest.warns(UserWarning, match="out of memory"):
        found = small.matrix(PROMPT, RESPONSES, mode="factored")
    np.testing.assert_allclose(found, judge.matrix(PROMPT, RESPONSES, mode="factored"), atol=1e-5)


@pytest.mark.parametrize("budget", [1, 20])
def test_passes_that_are_shorter_than_the_text_behind_the_responses(judge, budget):
    small = in_both_modes(tiny_judge(max_batch_tokens=budget))
    tail = len(EncodedTexts.of(judge.comparer.tokenizer, [PROMPT], [RESPONSES], is_factored=True).pieces[-1])
    assert tail > budget
    for _ in range(2):
        found = small.matrix(PROMPT, RESPONSES[:3], mode="factored")
        np.testing.assert_allclose(found, judge.matrix(PROMPT, RESPONSES[:3], mode="factored"), atol=1e-5)


def test_what_was_not_trained_for_it_refuses_with_the_command_that_adapts():
    judge = tiny_judge()
    with pytest.raises(InputError, match=r"trained in mode 'full' alone.*gram-fast train finetune factored"):
        judge.rank(PROMPT, RESPONSES, mode="factored")
    only = PairwiseJudge(replace(judge.comparer, modes=("factored",)))
    assert only.rank(PROMPT, RESPONSES, mode="factored").best is not None
    with pytest.raises(InputError, match="mode 'full': this judge was trained in mode 'factored' alone, expected mode"):
        only.rank(PROMPT, RESPONSES)


def test_what_goes_wrong_is_one_sentence(judge):
    with pytest.raises(InputError, match="mode: expected full or factored, got 'half'"):
        judge.rank(PROMPT, RESPONSES, mode="half")
    with pytest.raises(InputError, match="rejudge: expected at least 2 candidates, got 1"):
        judge.rank(PROMPT, RESPONSES, mode="factored", rejudge=1)
    with pytest.raises(InputError, match="rejudge: expected mode 'factored'"):
        judge.rank(PROMPT, RESPONSES, rejudge=3)
    with pytest.raises(InputError, match="a model which is loaded here, got LengthComparer"):
        PairwiseJudge(LengthComparer()).rank(PROMPT, RESPONSES, mode="factored")
    with pytest.raises(InputError, match=r"responses\[5\]"):
        in_both_modes(tiny_judge(max_length=250)).rank(PROMPT, RESPONSES, mode="factored")


@pytest.mark.parametrize("config", [KINDS["gemma3"], LINEAR_CONFIGS["qwen3_next"]], ids=["windows", "states"])
def test_models_that_do_not_read_whole_paths_refuse(config):
    tokenizer = tiny_tokenizer()
    name = "gemma3" if config is KINDS["gemma3"] else "qwen3_next"
    model = tiny_model(name, vocab_size=len(tokenizer), max_position_embeddings=4096)
    judge = in_both_modes(PairwiseJudge.from_model(model, tokenizer))
    with pytest.raises(UnsupportedModelError, match="whose layers all attend to everything before a token"):
        judge.rank(PROMPT, RESPONSES, mode="factored")


def test_a_text_that_moves_a_cut_is_named_and_left_out(monkeypatch):
    """No tokenizer is known to do that: as if each text with "odd" in it merged with what stands beside it."""
    judge = in_both_modes(tiny_judge())
    pieces = PairTokenizer.pieces

    def merging(self, frame, texts):
        texts = list(texts)
        return None if any("odd" in text for text in texts) else pieces(self, frame, texts)

    monkeypatch.setattr(PairTokenizer, "pieces", merging)
    responses = [*RESPONSES[:2], "an odd one", "fine"]
    with pytest.raises(InputError, match=r"^responses\[2\]: the text moves a cut"):
        judge.rank(PROMPT, responses, mode="factored")
    ranking = judge.rank(PROMPT, responses, mode="factored", on_error="none")
    assert ranking.errors.keys() == {"responses[2]"}
    assert ranking.scores[2] is None
    with pytest.raises(InputError, match=r"^prompt: the text moves a cut"):
        judge.rank("an odd prompt", responses[:2], mode="factored")
