"""Rendezvous: nothing is lost, nobody hangs, and every reward is that of its own group and prompt."""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from helpers.comparers import LengthComparer, p_longer
from helpers.forks import exit_code_of_fork
from hypothesis import given, settings
from hypothesis import strategies as st

import gram_fast
from gram_fast.errors import InputError
from gram_fast.gathering import Gathering, Member
from gram_fast.judge import PairwiseJudge
from gram_fast.rendezvous import Rendezvous
from gram_fast.results import Rewards


class RecordingJudge(PairwiseJudge):
    """The longer response is better. Records its calls; waits for `may_judge`, and fails on prompts named so."""

    def __init__(self) -> None:
        super().__init__(LengthComparer())
        self.calls: list[tuple[list[str], list[list[str]], Rewards]] = []
        self.may_judge, self.judging = threading.Event(), threading.Event()
        self.may_judge.set()

    def rewards(self, prompts: Any, groups: Any, *given: Any, **named: Any) -> Rewards:
        self.judging.set()
        assert self.may_judge.wait(30)
        if any("fails" in prompt for prompt in prompts if prompt):
            raise RuntimeError("the model is gone")
        rewards = super().rewards(prompts, groups, *given, **named)
        if groups:
            self.calls.append((list(prompts), [list(group) for group in groups], rewards))
        return rewards


@pytest.fixture
def judge() -> RecordingJudge:
    return RecordingJudge()


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def win_rates(responses: Sequence[str]) -> list[float]:
    """Rewards of distinct responses by their definition."""
    others = [[other for other in responses if other is not response] for response in responses]
    return [sum(p_longer(r, o) for o in of) / len(of) for r, of in zip(responses, others, strict=True)]


@dataclass
class Expected:
    """A plain model of one open group: who waits, and since when."""

    prompt: str
    since: float
    waiting: list[Member] = field(default_factory=list)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(2, 5), st.sampled_from(["judge", "none"]))
def test_ten_thousand_arrivals_losses_timeouts_and_cancellations(
    seed: int, count: int, size: int, partial: str
) -> None:
    """A hundred times up to 400 events in virtual time, against lists of who waits under which key."""
    rng = random.Random(seed)
    timeout, now = 10.0, 0.0
    rendezvous = Rendezvous(PairwiseJudge(LengthComparer()), size=size, timeout=timeout, partial=partial)
    gathering, open_groups, full = Gathering(size, timeout), {}, []
    members: list[Member] = []
    lengths = iter(rng.sample(range(1, 800), 400))
    answered: dict[Member, float | None] = {}

    def take() -> None:
        over = [key for key, group in open_groups.items() if group.since + timeout <= now]
        expected = [*full, *(open_groups.pop(key).waiting for key in over)]
        full.clear()
        groups = gathering.take(now)
        assert [group.members for group in groups] == expected
        rendezvous._answer(groups)
        for group in groups:
            least = size if partial == "none" else 2
            rewards = win_rates([member.response for member in group.members]) if len(group.members) > 1 else [None]
            rewards = rewards if len(group.members) >= least else [None] * len(group.members)
            answered.update(zip(group.members, rewards, strict=True))

    for _ in range(count):
        match rng.choices(["arrive", "cancel", "pass", "take"], [12, 2, 2, 1])[0]:
            case "arrive":
                key = rng.randrange(6)
                prompt = "the same in two groups" if key < 2 else f"prompt {key}"
                member = gathering.join(key, prompt, "x" * next(lengths), now)
                members.append(member)
                group = open_groups.setdefault(key, Expected(prompt, now))
                group.waiting.append(member)
                if len(group.waiting) == size:
                    full.append(open_groups.pop(key).waiting)
            case "cancel" if members:
                member = rng.choice(members)
                if not member.reward.done() and member.reward.cancel():
                    gathering.leave(member)
                    for key, group in list(open_groups.items()):
                        if member in group.waiting:
                            group.waiting.remove(member)
                            if not group.waiting:
                                del open_groups[key]
            case "pass":
                now += rng.choice([0.5, 3.0, 9.0])
            case "take":
                take()
        assert gathering.num_waiting == sum(map(len, full)) + sum(len(g.waiting) for g in open_groups.values())
        assert gathering.next_close == min((g.since + timeout for g in open_groups.values()), default=None)
    now += timeout
    take()
    assert not gathering.num_waiting
    for member in members:
        if not member.reward.cancelled():
            assert member.reward.result(timeout=0) == pytest.approx(answered[member]), "lost, or another's reward"


def test_threads_and_tasks_of_several_loops_meet_with_losses_and_cancellations() -> None:
    """Six hundred arrivals under ten keys in real time: threads that wait, tasks that all come, some that give up."""
    judge, size = RecordingJudge(), 4
    rendezvous = Rendezvous(judge, size=size, timeout=0.05)
    found: dict[str, float | None] = {}
    cancelled: set[str] = set()

    def jobs(seed: int) -> list[tuple[int, str, str]]:
        rng = random.Random(seed)
        return [
            (k := rng.randrange(10), f"prompt {k // 2}", f"{seed} {n} " + "x" * rng.randrange(50)) for n in range(50)
        ]

    def in_threads(seed: int) -> None:
        for key, prompt, response in jobs(seed):
            found[response] = rendezvous.reward(key, prompt, response)

    async def in_tasks(seed: int) -> None:
        rng = random.Random(seed)

        async def ask(key: int, prompt: str, response: str) -> None:
            await asyncio.sleep(rng.random() * 0.2)
            task = asyncio.ensure_future(rendezvous.reward_async(key, prompt, response))
            if rng.random() < 0.1:
                await asyncio.sleep(rng.random() * 0.02)
                if task.cancel():
                    cancelled.add(response)
                    return
            found[response] = await task

        await asyncio.gather(*(ask(*job) for job in jobs(seed)))

    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(in_threads, seed) for seed in range(8)]
        futures += [pool.submit(asyncio.run, in_tasks(seed)) for seed in range(100, 104)]
        _, late = wait(futures, timeout=60)
        assert not late, "somebody hangs"
        for future in futures:
            future.result()
    judged: dict[str, tuple[str, float]] = {}
    for prompts, groups, rewards in judge.calls:
        for prompt, group, values in zip(prompts, groups, rewards, strict=True):
            assert 2 <= len(group) <= size
            assert list(values) == pytest.approx(win_rates(group))
            for response, value in zip(group, values, strict=True):
                assert response not in judged, "judged twice"
                judged[response] = prompt, value
    prompt_of = {response: prompt for seed in (*range(8), *range(100, 104)) for _, prompt, response in jobs(seed)}
    assert found.keys() | cancelled == prompt_of.keys()
    for response, value in found.items():
        if value is not None:
            assert judged[response] == (prompt_of[response], value)
        else:
            assert response not in judged
    assert sum(value is not None for value in found.values()) > 100
    assert cancelled
    assert (rendezvous.num_open, rendezvous.num_waiting) == (0, 0)
    rendezvous.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "gram_fast.Rendezvous"]


def meet(rendezvous: Rendezvous, rows: Sequence[tuple[Any, Any, Any]]) -> list[Any]:
    """Rewards of rows that arrive together, each in a task; errors as results."""

    async def gather() -> list[Any]:
        return await asyncio.gather(*(rendezvous.reward_async(*row) for row in rows), return_exceptions=True)

    return asyncio.run(gather())


def test_a_key_names_a_group_not_a_prompt(judge: RecordingJudge) -> None:
    rendezvous = Rendezvous(judge, size=2, timeout=30)
    rows = [(0, "same", "a"), (1, "same", "bbbb"), (0, "same", "aa"), (1, "same", "bb")]
    assert meet(rendezvous, rows) == pytest.approx(
        [p_longer("a", "aa"), p_longer("bbbb", "bb"), p_longer("aa", "a"), p_longer("bb", "bbbb")]
    )
    # The next that come under a key are the next group, in the same breath or an epoch later.
    four = [(0, "same", text) for text in ("a", "aa", "aaa", "a" * 9)]
    assert meet(rendezvous, four)[:2] == pytest.approx([p_longer("a", "aa"), p_longer("aa", "a")])
    assert meet(rendezvous, [(0, "another", "a"), (0, "another", "b")]) == [0.5, 0.5]
    found = meet(Rendezvous(judge, size=2, timeout=0.05), [(0, "same", "a"), (0, "other", "b")])
    assert found[0] is None
    with pytest.raises(
        InputError, match=r"^key 0: expected the prompt of the 1 that wait under it, got another prompt"
    ):
        raise found[1]


def test_a_prompt_is_the_same_as_it_is_read(judge: RecordingJudge) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    forms = [messages, tuple(messages), np.array(messages), "User: a\n\nUser: b"]
    found = meet(Rendezvous(judge, size=4, timeout=30), [(0, prompt, "x" * k) for k, prompt in enumerate(forms)])
    assert found == pytest.approx(win_rates(["", "x", "xx", "xxx"]))
    found = meet(Rendezvous(judge, size=2, timeout=0.05), [(0, np.array(messages[:k]), "x") for k in (2, 1)])
    assert found[0] is None
    assert str(found[1]).startswith("key 0: expected the prompt of the 1 that wait under it")


def test_a_group_that_is_not_full_in_time(judge: RecordingJudge) -> None:
    three = [(0, "p", text) for text in ("a", "bb", "cccc")]
    assert meet(Rendezvous(judge, size=4, timeout=0.05), three) == pytest.approx(win_rates(["a", "bb", "cccc"]))
    assert meet(Rendezvous(judge, size=4, timeout=0.05), three[:1]) == [None]
    assert meet(Rendezvous(judge, size=4, timeout=0.05, partial="none"), three) == [None] * 3


@pytest.mark.parametrize(("partial", "fate"), [("judge", "are judged without the others"), ("none", "have no reward")])
def test_groups_that_are_not_full_are_said_now_and_then(
    judge: RecordingJudge, caplog: pytest.LogCaptureFixture, partial: Any, fate: str
) -> None:
    rendezvous = Rendezvous(judge, size=3, timeout=0.05, partial=partial)
    for row in range(5):
        meet(rendezvous, [(row, "p", "a"), (row, "p", "bb")])
    meet(rendezvous, [("full", "p", text) for text in ("a", "bb", "ccc")])
    assert [record.getMessage() for record in caplog.records] == [
        f"key {row}: 2 of 3 responses had come when the time was over (timeout=0.05), and {fate}; so far groups like "
        f"this: {row + 1}"
        for row in (0, 1, 3)
    ]


def test_groups_that_become_full_while_others_are_judged_go_into_one_call(judge: RecordingJudge) -> None:
    rendezvous = Rendezvous(judge, size=2, timeout=30)
    judge.may_judge.clear()
    judge.judging.clear()
    with ThreadPoolExecutor(14) as pool:
        futures: list[Future] = [pool.submit(rendezvous.reward, 0, "p0", text) for text in ("a", "bb")]
        assert judge.judging.wait(30)
        futures += [pool.submit(rendezvous.reward, k, f"p{k}", text) for k in range(1, 7) for text in ("a", "bb")]
        until(lambda: rendezvous.num_waiting == 12)
        assert repr(rendezvous) == "Rendezvous(size=2, timeout=30: 0 open groups, 12 waiting)"
        judge.may_judge.set()
        rewards = [future.result(timeout=30) for future in futures]
    assert sorted(rewards[::2] + rewards[1::2]) == pytest.approx([p_longer("a", "bb")] * 7 + [p_longer("bb", "a")] * 7)
    assert [sorted(prompts) for prompts, _, _ in judge.calls] == [["p0"], ["p1", "p2", "p3", "p4", "p5", "p6"]]


def test_an_error_of_judging_reaches_every_member_of_its_group_alone(judge: RecordingJudge) -> None:
    rendezvous = Rendezvous(judge, size=2, timeout=30)
    rows = [
        (0, "fails", "a"),
        (0, "fails", "b"),
        (1, "p", "a"),
        (1, "p", "bb"),
        (2, "fails too", "c"),
        (2, "fails too", "d"),
    ]
    found = meet(rendezvous, rows)
    assert [str(found[k]) for k in (0, 1, 4, 5)] == ["the model is gone"] * 4
    assert found[2:4] == pytest.approx([p_longer("a", "bb"), p_longer("bb", "a")])


def test_a_response_that_cannot_be_judged_is_its_members_own(judge: RecordingJudge) -> None:
    rows = [(0, "p", "a"), (0, "p", None), (0, "p", "bbb"), (1, None, "a"), (1, None, "b"), (1, None, "c")]
    found = meet(Rendezvous(judge, size=3, timeout=30), rows)
    assert [found[0], found[2]] == pytest.approx([p_longer("a", "bbb"), p_longer("bbb", "a")])
    assert str(found[1]) == "response: expected a string or a list of chat messages, got NoneType"
    assert {str(error) for error in found[3:]} == {"prompt: expected a string or a list of chat messages, got NoneType"}
    assert all(isinstance(error, InputError) for error in (found[1], *found[3:]))
    quiet = meet(Rendezvous(judge, size=3, timeout=30, on_error="none"), rows)
    assert quiet == [*found[:1], None, found[2], None, None, None]


def test_who_gives_up_leaves_a_place(judge: RecordingJudge) -> None:
    async def main() -> list[float | None]:
        rendezvous = Rendezvous(judge, size=2, timeout=30)
        lost = asyncio.ensure_future(rendezvous.reward_async(0, "p", "lost"))
        await asyncio.sleep(0.01)
        lost.cancel()
        await asyncio.sleep(0)
        assert (rendezvous.num_open, rendezvous.num_waiting) == (0, 0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rendezvous.reward_async(0, "p", "lost too"), 0.01)
        both = await asyncio.gather(*(rendezvous.reward_async(0, "p", text) for text in ("a", "bb")))
        with pytest.raises(InputError, match=r"would stop the event loop of this thread: expected `await reward_async"):
            rendezvous.reward(0, "p", "a")
        return both

    assert asyncio.run(main()) == pytest.approx([p_longer("a", "bb"), p_longer("bb", "a")])
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "gram_fast.Rendezvous"])


def test_an_interruption_leaves_a_place(judge: RecordingJudge) -> None:
    rendezvous = Rendezvous(judge, size=2, timeout=30)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    # A shell starts processes in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            rendezvous.reward(0, "p", "a")
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert rendezvous.num_waiting == 0


def test_close_ends_the_time_of_all_who_wait(judge: RecordingJudge) -> None:
    with ThreadPoolExecutor(3) as pool:
        with Rendezvous(judge, size=3, timeout=300) as rendezvous:
            futures = [pool.submit(rendezvous.reward, key, "p", text) for key, text in ((0, "a"), (0, "bb"), (1, "c"))]
            until(lambda: rendezvous.num_waiting == 3)
        assert [futures[k].result(timeout=30) for k in (0, 1)] == pytest.approx(win_rates(["a", "bb"]))
        assert futures[2].result(timeout=30) is None
    assert repr(rendezvous) == "Rendezvous(size=3, timeout=300: closed)"
    with pytest.raises(InputError, match=r"^the rendezvous is closed"):
        rendezvous.reward(0, "p", "a")
    rendezvous.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_starts_empty(judge: RecordingJudge) -> None:
    rendezvous = Rendezvous(judge, size=2, timeout=300)

    def in_child() -> None:
        assert meet(rendezvous, [(0, "p", "a"), (0, "p", "bb")]) == pytest.approx(win_rates(["a", "bb"]))

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(rendezvous.reward, 0, "p", "alone")
        until(lambda: rendezvous.num_waiting == 1)
        assert exit_code_of_fork(in_child) == 0
        rendezvous.close()
        assert waiting.result() is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 1}, "size: expected an integer of at least 2, got 1"),
        ({"size": 2.0}, "size: expected an integer of at least 2, got 2.0"),
        ({"timeout": 0}, "timeout: expected seconds above 0, got 0"),
        ({"timeout": float("inf")}, "timeout: expected seconds above 0, got inf"),
        ({"timeout": None}, "timeout: expected seconds above 0, got None"),
        ({"partial": 0.5}, "partial: expected one of judge, none, got 0.5"),
        ({"on_error": "skip"}, "on_error: expected one of raise, none, got 'skip'"),
        ({"strategy": "swiss"}, "there is no strategy 'swiss'"),
        ({"references": []}, "references: a rendezvous takes none"),
    ],
)
def test_wrong_arguments_are_found_when_it_is_made(judge: RecordingJudge, wrong: dict, message: str) -> None:
    with pytest.raises(InputError) as raised:
        Rendezvous(judge, **{"size": 2, "timeout": 1, **wrong})
    assert str(raised.value).startswith(message)


def test_what_is_no_key_and_no_judge(judge: RecordingJudge) -> None:
    with pytest.raises(InputError, match=r"^key: expected something hashable, got list$"):
        Rendezvous(judge, size=2, timeout=1).reward([0], "p", "a")
    with pytest.raises(InputError, match=r"^judge: expected a PairwiseJudge, got str$"):
        gram_fast.Rendezvous("small", size=2, timeout=1)  # type: ignore[arg-type]


def test_settings_are_those_of_rewards(judge: RecordingJudge) -> None:
    rendezvous = Rendezvous(judge, size=2, timeout=30, scores="margin", orders="ab")
    assert meet(rendezvous, [(0, "p", "a"), (0, "p", "bbb")]) == pytest.approx([-1.75, 1.75])
