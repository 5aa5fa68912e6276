"""A judge on several devices, here the CPU twice: the answers of one, every device at work, errors as of one."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from helpers.comparers import own_threads
from helpers.small_models import write_judge

import gram_fast.comparing.label_comparer
from gram_fast.commands.options import ModelOptions
from gram_fast.commands.output import open_output
from gram_fast.comparing.label_comparer import LabelComparer
from gram_fast.comparing.replicas import Replicas
from gram_fast.errors import InputError, UnsupportedModelError
from gram_fast.judge import PairwiseJudge
from gram_fast.models.known_answers import KnownAnswer
from gram_fast.ranking.play import play
from gram_fast.ranking.tournament import STRATEGIES
from gram_fast.text.group import Group

pytestmark = pytest.mark.usefixtures("one_thread")

TWO = ["cpu", "cpu"]
PROMPTS = ["Name a colour of the sky.", "Say hi.", "Name a colour of the sky.", "Count.", "Why?", "Sum 2 and 3."]
GROUPS = [
    ["Blue.", "It is blue, mostly.\n", "", "Green?", "Blue."],
    ["hi", "hello " * 20],
    ["Red, at dusk 🌇", "Blue."],
    ["one two three", "1 2 3", "1, 2, 3, 4", "<|im_end|>"],
    ["Because.", "same", "same"],
    ["5", "It is five.", "6"],
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("checkpoint"))


def load(checkpoint, device, **options) -> PairwiseJudge:
    return PairwiseJudge.from_pretrained(checkpoint, device=device, max_batch_tokens=256, **options)


@pytest.fixture
def judge(checkpoint) -> PairwiseJudge:
    return load(checkpoint, TWO)


def runners(judge):
    return [comparer.runner for comparer in judge.comparer.comparers]


def before_passes(monkeypatch, judge, *actions):
    """Has each replica do its action before every pass."""
    for runner, action in zip(runners(judge), actions, strict=True):

        def forward(*given, own=runner.forward, action=action):
            action()
            return own(*given)

        monkeypatch.setattr(runner, "forward", forward)


def meet_before_first_pass(monkeypatch, judge):
    """Has each replica wait at its first pass until the other is there: an error unless both run at once."""
    both = threading.Barrier(len(runners(judge)), timeout=30)
    waited = [False for _ in runners(judge)]

    def meet(replica):
        if not waited[replica]:
            waited[replica] = True
            both.wait()

    before_passes(monkeypatch, judge, *(partial(meet, replica) for replica in range(len(waited))))
    return waited


def assert_close(ours, theirs, atol=1e-6):
    """Rewards of the same groups."""
    for group, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(group, expected, atol=atol, rtol=0)


def assert_same(ours, theirs):
    """Comparisons of the same pairs with the same probabilities."""
    assert [(c.i, c.j) for c in ours] == [(c.i, c.j) for c in theirs]
    np.testing.assert_allclose([c.p for c in ours], [c.p for c in theirs], atol=1e-6, rtol=0)


@pytest.mark.parametrize("runner", ["dense", "transformers"])
def test_answers_are_those_of_one_device(checkpoint, runner):
    one, two = load(checkpoint, "cpu", runner=runner), load(checkpoint, TWO, runner=runner)
    assert isinstance(one.comparer, LabelComparer)
    assert isinstance(two.comparer, Replicas)
    # One group runs whole on one replica: the same passes, the same bits.
    for strategy in STRATEGIES:
        ours, theirs = (judge.rank(PROMPTS[0], GROUPS[0], strategy, seed=3) for judge in (two, one))
        assert (ours.order, ours.scores, ours.comparisons) == (theirs.order, theirs.scores, theirs.comparisons)
        assert ours.stats.tokens_computed == theirs.stats.tokens_computed
    pairs = [group[:2] for group in GROUPS]
    ours, theirs = (judge.compare_many(PROMPTS, pairs) for judge in (two, one))
    assert_same(ours, theirs)
    assert [c.flagged for c in ours] == [c.flagged for c in theirs]
    assert ours[0].stats.comparisons == theirs[0].stats.comparisons == 12


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rewards_are_those_of_one_device(checkpoint, judge, strategy):
    one = load(checkpoint, "cpu")
    ours, theirs = (each.rewards(PROMPTS, GROUPS, strategy=strategy, seed=5) for each in (judge, one))
    assert_close(ours, theirs, atol=1e-6 if strategy == "round_robin" else 1e-4)  # a fit has no fixed last digits
    assert ours.flagged == theirs.flagged == {"groups[3][3]": ("<|im_end|>",)}
    assert ours.stats.comparisons == theirs.stats.comparisons
    assert ours.stats.tokens_unshared == theirs.stats.tokens_unshared
    # A second head; and where groups of one prompt were parted, that prompt.
    assert ours.stats.tokens_tree >= theirs.stats.tokens_tree + len(judge.comparer.comparers[0].tokenizer.head_ids)
    references = [group[0] for group in GROUPS]
    ours, theirs = (each.rewards(PROMPTS, GROUPS, references) for each in (judge, one))
    assert_close(ours, theirs)


def test_brackets_do_not_depend_on_the_spread(checkpoint, judge):
    one = load(checkpoint, "cpu")
    groups = [Group.of(prompt, group) for prompt, group in zip(PROMPTS, GROUPS, strict=True)]
    ours, theirs = (play(groups, STRATEGIES["knockout"], each.comparer, "both", 7) for each in (judge, one))
    assert ours.leaders == theirs.leaders
    for group, expected in zip(ours.comparisons, theirs.comparisons, strict=True):
        assert_same(group, expected)


def test_a_call_of_many_groups_runs_on_both_at_once(monkeypatch, judge):
    waited = meet_before_first_pass(monkeypatch, judge)
    rewards = judge.rewards(PROMPTS, GROUPS)
    assert waited == [True, True]
    assert rewards.stats.passes >= 2
    assert 0 < rewards.stats.seconds < 60


def test_calls_of_one_group_from_two_threads_run_on_both_at_once(monkeypatch, judge):
    expected = [judge.compare(PROMPTS[g], *GROUPS[g][:2]).p for g in (0, 1)]
    waited = meet_before_first_pass(monkeypatch, judge)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda g: judge.compare(PROMPTS[g], *GROUPS[g][:2]).p, (0, 1)))
    assert waited == [True, True]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_many_threads_share_a_judge_and_its_tokenizer(judge):
    work = [(g, orders) for g in range(len(PROMPTS)) for orders in ("ab", "both")] * 3

    def score(g, orders):
        return judge.rewards(PROMPTS[g:], GROUPS[g:], orders=orders)[0]

    expected = [score(*one) for one in work]
    with ThreadPoolExecutor(6) as threads:
        for ours, theirs in zip(threads.map(lambda one: score(*one), work), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert judge.comparer.in_flight == [0, 0]


def test_no_groups_and_equal_responses_need_no_forward(judge):
    assert judge.rewards([], []) == []
    rewards = judge.rewards(PROMPTS[:2], [["same", "same"], ["x", "x", "x"]])
    assert (list(rewards), rewards.stats.passes) == ([[0.5, 0.5], [0.5, 0.5, 0.5]], 0)


def test_errors_name_groups_as_the_caller_numbers_them(checkpoint):
    judge = load(checkpoint, TWO, max_length=700)
    assert judge.max_length == 700
    for bad in range(len(GROUPS)):
        groups = [[*group, "word " * 300] if g == bad else group for g, group in enumerate(GROUPS)]
        with pytest.raises(InputError, match=rf"^groups\[{bad}\].* the limit is 700 \(max_length\)"):
            judge.rewards(PROMPTS, groups)
    with pytest.raises(InputError, match=r"groups\[2\]: expected at least 2 responses, got 1"):
        judge.rewards(PROMPTS[:3], [*GROUPS[:2], ["alone"]])
    with pytest.raises(InputError, match="no orders 'aa'"):
        judge.rewards(PROMPTS, GROUPS, orders="aa")
    with pytest.raises(InputError, match="seed: expected an integer of at least 0, got -1"):
        judge.rewards(PROMPTS, GROUPS, strategy="knockout", seed=-1)


def test_an_error_of_a_replica_comes_unchanged_when_the_other_is_done(monkeypatch, judge):
    expected = judge.rewards(PROMPTS, GROUPS)
    failed, error, passes = threading.Event(), ValueError("boom"), []

    def fail():
        failed.set()
        raise error

    def go_on():
        assert failed.wait(60)
        passes.append(1)

    with monkeypatch.context() as patch:
        before_passes(patch, judge, go_on, fail)
        with pytest.raises(ValueError, match="boom") as caught:
            judge.rewards(PROMPTS, GROUPS)
        assert caught.value is error
        done = len(passes)
        assert done > 0
    assert judge.comparer.in_flight == [0, 0]
    assert_close(judge.rewards(PROMPTS, GROUPS), expected)
    assert len(passes) == done


def test_of_several_errors_the_first_by_group_comes(monkeypatch, judge):
    # The costliest group goes to the first replica: group 1, then group 0. The second fails first.
    prompts, groups = ["p", "q"], [["a", "b"], ["long " * 50, "longer " * 50]]
    second_failed = threading.Event()

    def fail_late():
        second_failed.wait(60)
        raise ValueError("of group 1")

    def fail():
        second_failed.set()
        raise ValueError("of group 0")

    before_passes(monkeypatch, judge, fail_late, fail)
    with pytest.raises(ValueError, match="of group 0"):
        judge.rewards(prompts, groups)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals of threads")
def test_a_call_from_the_handler_of_a_signal_is_an_error(monkeypatch, judge):
    """Both replicas are in the middle of a pass, and their call waits for them in the thread of the handler."""
    expected, handled = judge.rewards(PROMPTS, GROUPS), threading.Event()

    def give_up(*_):
        raise TimeoutError

    def handle(*_):
        signal.signal(signal.SIGALRM, give_up)
        signal.alarm(20)
        try:
            judge.compare("p", "a", "b")
        finally:
            handled.set()

    def send():
        if not handled.is_set():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
        handled.wait(60)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with monkeypatch.context() as patch:
            before_passes(patch, judge, lambda: handled.wait(60), send)
            with pytest.raises(InputError, match=r"^the judge is in the middle of a call"):
                judge.rewards(PROMPTS, GROUPS)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert not own_threads()
    assert_close(judge.rewards(PROMPTS, GROUPS), expected)


@pytest.mark.parametrize("share", [0, 1])
def test_a_call_from_within_a_pass_is_an_error_whichever_replica_is_free(monkeypatch, judge, share):
    actions = [lambda: None, lambda: None]
    actions[share] = lambda: judge.compare("p", "a", "b")
    before_passes(monkeypatch, judge, *actions)
    with pytest.raises(InputError, match=r"^the judge is in the middle of a call"):
        judge.rewards(PROMPTS, GROUPS)


def test_out_of_memory_on_one_halves_its_own_budget(monkeypatch, judge):
    assert judge.comparer.tokens_at_once == 2 * 256
    left = [torch.OutOfMemoryError("no memory")]

    def once():
        if left:
            raise left.pop()

    before_passes(monkeypatch, judge, lambda: None, once)
    with pytest.warns(UserWarning, match="out of memory: passes of 256 tokens are halved to 128"):
        judge.rewards(PROMPTS, GROUPS)
    assert [comparer.tokens_at_once for comparer in judge.comparer.comparers] == [256, 128]
    assert judge.comparer.tokens_at_once == 256 + 128


def test_every_replica_is_checked_on_the_known_answer(monkeypatch, checkpoint):
    checked, real = [], gram_fast.comparing.label_comparer.known_answers

    def spy(tokenizer, runner):
        checked.append(runner)
        return real(tokenizer, runner)

    monkeypatch.setattr(gram_fast.comparing.label_comparer, "known_answers", spy)
    judge = load(checkpoint, TWO)
    assert checked == runners(judge)
    assert checked[0] is judge.comparer.comparers[0].runner
    assert checked[0].model is not checked[1].model
    assert [len(comparer.known_answers) for comparer in judge.comparer.comparers] == [2, 2]

    def wrong_on_the_second(tokenizer, runner):
        checked.append(runner)
        return [KnownAnswer((1.0, 0.0), (0.0, 1.0), 0.1)] if len(checked) == 2 else real(tokenizer, runner)

    checked.clear()
    monkeypatch.setattr(gram_fast.comparing.label_comparer, "known_answers", wrong_on_the_second)
    with pytest.raises(UnsupportedModelError, match="cannot be scored by prefix sharing on cpu"):
        load(checkpoint, [*TWO, "cpu"])
    assert len(checked) == 2


def test_the_command_line_takes_several_with_commas(checkpoint, tmp_path):
    with open_output(str(tmp_path / "out.jsonl"), "-", resume=False) as output:
        judge = ModelOptions(model=str(checkpoint), device="cpu, cpu").load(output)
    assert [runner.device.type for runner in runners(judge)] == TWO
