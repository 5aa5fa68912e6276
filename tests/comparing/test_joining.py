"""Calls of several threads that wait for a judge are scored together: the answers, errors and bits of each alone."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_models import tiny_judge, write_judge

from gram_fast.errors import InputError, NumericalError
from gram_fast.judge import PairwiseJudge
from gram_fast.text.encoded import EncodedTexts

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT, RESPONSES = "Name a colour of the sky.", ["Blue.", "It is blue, mostly.", "Green?", "Red, at dusk"]


@pytest.fixture(scope="module")
def judge() -> PairwiseJudge:
    return tiny_judge(max_batch_tokens=4096)


class Passes:
    """What a judge's model runs: tokens of each pass. A pass waits while `may_run` is not set."""

    def __init__(self, judge: PairwiseJudge, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine, self.tokens = judge.comparer.engine, []
        self.may_run = threading.Event()
        self.may_run.set()
        own = judge.comparer.runner.forward

        def forward(tree_pass: Any, store: Any) -> Any:
            self.tokens.append(tree_pass.num_tokens)
            assert self.may_run.wait(60)
            return own(tree_pass, store)

        monkeypatch.setattr(judge.comparer.runner, "forward", forward)


@contextmanager
def together(passes: Passes, calls: Sequence[Callable[[], Any]]) -> Iterator[list[Future]]:
    """Makes calls in threads. The first runs alone; all others wait for it, and then go together."""
    passes.tokens.clear()
    passes.may_run.clear()
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = []
        for count, call in enumerate(calls, start=1):
            futures.append(pool.submit(call))
            deadline = time.monotonic() + 60
            while not (passes.tokens and len(passes.engine._turns._asked) == count):
                assert time.monotonic() < deadline
                assert not futures[-1].done()
                time.sleep(0.0005)
        passes.may_run.set()
        yield futures


def compare(judge: PairwiseJudge, k: int, **how: Any) -> Callable[[], Any]:
    return partial(judge.compare, PROMPT, f"{RESPONSES[k % 4]} {k}", RESPONSES[(k + 1) % 4], **how)


def test_calls_that_wait_share_their_passes_and_their_cost(judge, monkeypatch):
    calls = [compare(judge, k) for k in range(9)]
    alone = [call() for call in calls]
    passes = Passes(judge, monkeypatch)
    with together(passes, calls) as futures:
        found = [future.result() for future in futures]
    assert [result.p for result in found] == pytest.approx([result.p for result in alone], abs=1e-6)
    assert len(passes.tokens) == 2  # the first, and all others
    for ours, theirs in zip(found, alone, strict=True):
        assert (ours.stats.comparisons, ours.stats.tokens_unshared) == (2, theirs.stats.tokens_unshared)
        assert (theirs.stats.passes, ours.stats.passes) == (1, 1)
        assert 0 < ours.stats.tokens_computed <= ours.stats.tokens_tree <= ours.stats.tokens_unshared
    assert sum(result.stats.tokens_computed for result in found) == sum(passes.tokens)
    assert sum(result.stats.tokens_tree for result in found) == sum(passes.tokens)
    # They have their prompt in common, too.
    head = len(judge.comparer.tokenizer.head_ids)
    assert passes.tokens[1] < sum(result.stats.tokens_computed for result in alone[1:]) - 7 * head - 100


def test_calls_of_any_kind_go_together(judge, monkeypatch):
    calls = [
        compare(judge, 0),
        partial(judge.rank, PROMPT, RESPONSES, "sort"),
        compare(judge, 1, orders="ab"),
        partial(judge.rank, "Say hi.", ["hi", "hello", "hm", "hallo"], "knockout", "ba", seed=3),
        partial(judge.rewards, [PROMPT, "Say hi."], [RESPONSES, ["hi", "hello"]]),
        partial(judge.matrix, PROMPT, RESPONSES[:3]),
    ]
    alone = [call() for call in calls]
    passes = Passes(judge, monkeypatch)
    with together(passes, calls) as futures:
        found = [future.result() for future in futures]
    assert len(passes.tokens) < sum(result.stats.passes for result in alone)
    assert found[0].p == pytest.approx(alone[0].p, abs=1e-6)
    assert (found[2].p_ab, found[2].p_ba) == (pytest.approx(alone[2].p_ab, abs=1e-6), None)
    for k in (1, 3):
        assert (found[k].order, len(found[k].comparisons)) == (alone[k].order, len(alone[k].comparisons))
        assert [c.p for c in found[k].comparisons] == pytest.approx([c.p for c in alone[k].comparisons], abs=1e-6)
    for ours, theirs in zip(found[4], alone[4], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    np.testing.assert_allclose(found[5], alone[5], atol=1e-6)


def test_a_call_of_one_round_does_not_wait_for_the_rounds_of_another(judge, monkeypatch):
    passes = Passes(judge, monkeypatch)
    over: list[str] = []

    def noted(name: str, call: Callable[[], Any]) -> None:
        call()
        over.append(f"{name} after {len(passes.tokens)}")

    long = partial(judge.rank, PROMPT, [f"{k} {text}" for k in range(3) for text in RESPONSES], "linear")
    calls = [compare(judge, 0), partial(noted, "long", long), partial(noted, "short", compare(judge, 1))]
    with together(passes, calls) as futures:
        for future in futures:
            future.result()
    assert over[0].startswith("short")
    assert over[1] == "long after 12"  # the first call's pass, and eleven rounds, the first of which is shared


def test_as_many_go_together_as_fill_a_pass(monkeypatch):
    judge = tiny_judge(max_batch_tokens=700)
    calls = [compare(judge, k) for k in range(12)]
    alone = [call() for call in calls]
    passes = Passes(judge, monkeypatch)
    with together(passes, calls) as futures:
        found = [future.result() for future in futures]
    assert [result.p for result in found] == pytest.approx([result.p for result in alone], abs=1e-6)
    head = len(judge.comparer.tokenizer.head_ids)
    behind = [result.stats.tokens_unshared - 2 * head for result in alone]
    turns, room = [behind[:1]], 0
    for tokens in behind[1:]:
        if room < tokens:
            turns.append([])
            room = 700
        turns[-1].append(tokens)
        room -= tokens
    assert 3 <= len(turns) < 7
    assert len(passes.tokens) == len(turns)


def test_a_pair_that_is_too_long_is_the_error_of_its_own_call(judge, monkeypatch):
    expected = compare(judge, 2)().p
    passes = Passes(judge, monkeypatch)
    long = pytest.raises(InputError, match=r"^b: .* tokens, the limit is 4096")
    with together(passes, [compare(judge, 0), compare(judge, 1)]) as futures, long:
        judge.compare(PROMPT, "short", "word " * 5000)  # at once: nothing to wait for
    assert len(passes.tokens) == 2
    assert all(future.exception() is None for future in futures)
    assert compare(judge, 2)().p == expected


def test_logits_that_are_not_finite_are_the_error_of_their_own_call(monkeypatch):
    judge = tiny_judge(max_batch_tokens=4096)
    (strange,) = judge.comparer.tokenizer.ids_between(("", ""), [("@",)])
    with torch.no_grad():
        judge.comparer.runner.model.get_input_embeddings().weight[int(strange[0])] = torch.nan
    expected = compare(judge, 2)().p
    passes = Passes(judge, monkeypatch)
    calls = [compare(judge, 0), partial(judge.compare, PROMPT, "a @", "b"), compare(judge, 2), compare(judge, 3)]
    with together(passes, calls) as futures:
        pass
    assert isinstance(futures[1].exception(), NumericalError)
    assert futures[2].result().p == pytest.approx(expected, abs=1e-6)
    assert futures[3].exception() is None
    assert len(passes.tokens) == 1 + 1 + 3  # together, then each by itself
    for k in (2, 3):  # the tree of what failed is shared out, not the first one's alone
        stats = futures[k].result().stats
        assert 0 < stats.tokens_tree < stats.tokens_unshared


@pytest.mark.parametrize("runner", ["dense", "transformers"])
def test_a_call_after_one_whose_logits_are_not_finite_is_right(tmp_path, runner):
    judge = PairwiseJudge.from_pretrained(write_judge(tmp_path), runner=runner)
    expected = compare(judge, 2)().p
    (strange,) = judge.comparer.tokenizer.ids_between(("", ""), [("@",)])
    model = judge.comparer.runner.model
    weight = model.embedding_VD if runner == "dense" else model.get_input_embeddings().weight
    with torch.no_grad():
        weight[int(strange[0])] = torch.nan
    for prompt, text in ((PROMPT, "a @"), ("@", "a"), ("@ " * 3, "a")):
        judge.comparer.engine._forget()  # the instruction is computed in the same pass
        with pytest.raises(NumericalError):
            judge.compare(prompt, text, "b")
        assert compare(judge, 2)().p == pytest.approx(expected, abs=1e-6)


def test_an_error_of_the_model_reaches_the_call_whose_it_is(judge, monkeypatch):
    calls = [compare(judge, 0), compare(judge, 1), partial(judge.compare, PROMPT, "@", "b"), compare(judge, 3)]
    expected = [call().p for call in calls]
    (strange,) = judge.comparer.tokenizer.ids_between(("", ""), [("@",)])
    own = judge.comparer.runner.forward

    def forward(tree_pass: Any, store: Any) -> Any:
        if int(strange[0]) in tree_pass.input_ids.tolist():
            raise RuntimeError("a kernel does not know this token")
        return own(tree_pass, store)

    monkeypatch.setattr(judge.comparer.runner, "forward", forward)
    with together(Passes(judge, monkeypatch), calls) as futures:
        pass
    assert str(futures[2].exception()) == "a kernel does not know this token"
    assert [futures[k].result().p for k in (0, 1, 3)] == pytest.approx([expected[k] for k in (0, 1, 3)], abs=1e-6)
    monkeypatch.setattr(judge.comparer.runner, "forward", own)
    assert calls[2]().p == pytest.approx(expected[2], abs=1e-6)


def test_a_deterministic_judge_keeps_its_bits(tmp_path, monkeypatch):
    judge = PairwiseJudge.from_pretrained(write_judge(tmp_path), deterministic=True)
    calls = [compare(judge, k) for k in range(6)] + [partial(judge.compare, PROMPT, *RESPONSES[2:])]
    alone = [call() for call in calls]
    passes = Passes(judge, monkeypatch)
    with together(passes, calls) as futures:
        found = [future.result() for future in futures]
    assert len(passes.tokens) < len(calls)
    assert [(c.p, c.p_ab, c.p_ba, c.margin) for c in found] == [(c.p, c.p_ab, c.p_ba, c.margin) for c in alone]


def test_texts_that_cannot_be_cut_go_with_their_like(judge, monkeypatch):
    """They have no head in common with the others, and a tree of their own."""
    calls = [compare(judge, k) for k in range(5)]
    expected = [call().p for call in calls]
    own = EncodedTexts.of
    whole = f"{RESPONSES[2]} 2", f"{RESPONSES[3]} 3"

    def of(tokenizer: Any, prompts: Any, groups: Any, **more: Any) -> EncodedTexts:
        if groups[0][0] in whole:
            return EncodedTexts(tokenizer, prompts, groups, np.empty(0, np.int32), (), ())
        return own(tokenizer, prompts, groups, **more)

    monkeypatch.setattr(EncodedTexts, "of", of)
    passes = Passes(judge, monkeypatch)
    with together(passes, calls) as futures:
        found = [future.result().p for future in futures]
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(passes.tokens) == 3  # the first; the second and the last; two whole
