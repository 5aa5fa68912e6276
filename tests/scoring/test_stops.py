"""Awaited calls that are cancelled: they end at the next pass and free the judge."""

import asyncio
import threading

import pytest
from helpers.small_models import tiny_judge, write_judge

from gram_fast.comparing.replicas import _SpreadSession
from gram_fast.judge import PairwiseJudge
from gram_fast.scoring.stops import to_thread

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT, RESPONSES = "Name a colour of the sky.", ["Blue.", "It is blue, mostly.", "Green? " * 20]
BATCH = [PROMPT, "Say hi."], [RESPONSES, ["hi", "hello " * 30]]


class Gate:
    """Has every pass of a judge wait until it may go on, and counts them."""

    def __init__(self, judge: PairwiseJudge, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes = 0
        self.is_reached, self.may_go = threading.Event(), threading.Event()
        comparers = getattr(judge.comparer, "comparers", [judge.comparer])
        for runner in (comparer.runner for comparer in comparers):

            def forward(*given, own=runner.forward):
                self.passes += 1
                self.is_reached.set()
                assert self.may_go.wait(60)
                return own(*given)

            monkeypatch.setattr(runner, "forward", forward)


@pytest.fixture(scope="module")
def replicas(tmp_path_factory) -> PairwiseJudge:
    checkpoint = write_judge(tmp_path_factory.mktemp("checkpoint"))
    return PairwiseJudge.from_pretrained(checkpoint, device=["cpu", "cpu"], max_batch_tokens=32)


@pytest.fixture(scope="module", params=["model", "replicas"])
def judge(request, replicas) -> PairwiseJudge:
    return tiny_judge(max_batch_tokens=32) if request.param == "model" else replicas


def test_what_is_awaited_is_what_the_method_returns(judge):
    async def ask():
        first, second = await asyncio.gather(
            to_thread(judge.rewards, *BATCH, orders="ab"), to_thread(judge.compare, PROMPT, *RESPONSES[:2])
        )
        with pytest.raises(ValueError, match=r"no strategy 'best'"):
            await to_thread(judge.rank, PROMPT, RESPONSES, strategy="best")
        assert judge.compare(PROMPT, *RESPONSES[:2]).p == pytest.approx(second.p, abs=1e-5)  # in a loop that runs
        return first

    for ours, theirs in zip(asyncio.run(ask()), judge.rewards(*BATCH, orders="ab"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_cancelled_call_ends_before_its_next_pass(judge, monkeypatch, how):
    expected = judge.rewards(*BATCH)
    num_passes = expected.stats.passes
    gate = Gate(judge, monkeypatch)

    async def ask() -> int:
        task = asyncio.create_task(to_thread(judge.rewards, *BATCH))
        await asyncio.to_thread(gate.is_reached.wait, 60)
        waiting = asyncio.create_task(to_thread(judge.rewards, *BATCH))  # until the first one is over
        if how == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(task, 0.01)
        reached = gate.passes
        gate.may_go.set()
        for ours, theirs in zip(await waiting, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
        return reached

    reached = asyncio.run(ask())
    assert reached <= 2
    # Of the first call those that had begun; the other one computes the instruction again.
    assert gate.passes - reached < 2 * num_passes - 2
    assert num_passes > 6


def test_a_call_that_waits_is_cancelled_without_a_pass(judge, monkeypatch):
    gate = Gate(judge, monkeypatch)

    async def ask() -> None:
        first = asyncio.create_task(to_thread(judge.rewards, *BATCH))
        await asyncio.to_thread(gate.is_reached.wait, 60)
        second = asyncio.create_task(to_thread(judge.rewards, ["other " * 50], [["a " * 99, "b " * 99]]))
        await asyncio.sleep(0.05)
        second.cancel()
        gate.may_go.set()
        alone = await first
        await asyncio.sleep(0)
        assert gate.passes == alone.stats.passes

    asyncio.run(ask())


def test_an_interruption_ends_the_shares_of_replicas_before_their_next_pass(replicas, monkeypatch):
    expected = replicas.rewards(*BATCH)
    gate = Gate(replicas, monkeypatch)

    def interrupted(session, rounds):
        for share in session._shares:
            share.ask({g: rounds[g] for g in share.numbers})
        assert gate.is_reached.wait(60)
        threading.Timer(0.05, gate.may_go.set).start()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_SpreadSession, "compare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            replicas.rewards(*BATCH)
    assert gate.passes <= 2
    assert replicas.comparer.in_flight == [0, 0]
    for ours, theirs in zip(replicas.rewards(*BATCH), expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
