"""What tests of reward functions share: a judge that records its groups, and the rewards that it should give."""

from collections.abc import Callable, Sequence
from typing import Any

from gram_fast.judge import PairwiseJudge
from helpers.comparers import LengthComparer, p_longer


class Recorded:
    """Passes the calls of a reward function on, and keeps what came in and what went out."""

    def __init__(self, reward: Callable[..., Any]) -> None:
        self.reward = reward
        self.__name__ = reward.__name__
        self.calls: list[tuple[list, list, list]] = []
        """Prompts, completions and rewards of each call."""

    def __call__(self, prompts, completions, **columns):
        values = self.reward(prompts, completions, **columns)
        self.calls.append((list(prompts), list(completions), values))
        return values


def length_judge() -> PairwiseJudge:
    """A judge that finds longer texts better, and whose comparer records the groups that it is asked about."""
    return PairwiseJudge(LengthComparer())


def asked(judge: PairwiseJudge) -> list[tuple[str, set[str]]]:
    """Prompt and distinct texts of every group that such a judge was asked about, in order."""
    return [(group.prompt, set(group.texts)) for call in judge.comparer.opened for group in call["groups"]]


def text_of(value: Any) -> str:
    """The text of a string, or of a list of one message."""
    return value if isinstance(value, str) else value[0]["content"]


def win_rates(texts: Sequence[str]) -> list[float]:
    """Win rates of a group in the eyes of such a judge, plainly: of each text against all that differ from it."""
    rates = [[p_longer(text, other) for other in set(texts) - {text}] or [0.5] for text in texts]
    return [sum(rate) / len(rate) for rate in rates]
