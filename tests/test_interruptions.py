"""Ctrl-C at any line of a call: the next call gives right answers, at once, whatever was half done."""

import pytest
from helpers.interruptions import interrupted_at, lines_of
from helpers.small_models import tiny_judge, write_judge
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.judge import PairwiseJudge

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT, RESPONSES = "Name a colour of the sky.", ["Blue.", "It is blue, mostly.", "Green?"]


def ask(judge: PairwiseJudge) -> list[float]:
    rewards = judge.rewards([PROMPT, "Say hi."], [RESPONSES, RESPONSES[:2]], strategy="knockout")
    return [reward for group in rewards for reward in group]


@pytest.mark.parametrize("kind", ["dense", "replicas", "a caller's model"])
def test_a_call_after_an_interruption_is_right(tmp_path, kind):
    if kind == "a caller's model":
        judge = tiny_judge(max_batch_tokens=64)
    else:
        device = ["cpu", "cpu"] if kind == "replicas" else "cpu"
        judge = PairwiseJudge.from_pretrained(write_judge(tmp_path), device=device, max_batch_tokens=64)
    expected = ask(judge)
    # The call that is interrupted may run some lines fewer: it starts over, or its instruction was kept.
    lines = lines_of(lambda: ask(judge)) * 9 // 10

    @settings(max_examples=25, deadline=None, database=None)
    @given(st.integers(0, lines - 1))
    def interrupt(line: int) -> None:
        with pytest.raises(KeyboardInterrupt) as caught:
            interrupted_at(line, lambda: ask(judge))
        # While the error and its frames are alive, as in an interactive session.
        assert ask(judge) == pytest.approx(expected, abs=1e-5)
        del caught

    interrupt()
