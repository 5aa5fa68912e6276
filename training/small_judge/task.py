"""Preference tasks with a verifiable answer, and helpers that build one from answers and phrasings."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """One prompt with right and wrong responses."""

    kind: str
    """Name of the kind of task: that of the function that drew it."""
    prompt: str
    right: tuple[str, ...]
    """The right answer in every phrasing."""
    wrong: tuple[str, ...]
    """Wrong answers, each in every phrasing."""
    is_right: Callable[[str], bool]
    """Checks whether any response to the prompt is right, independently of `right`."""


TaskMaker = Callable[[random.Random], Task]
"""Draws one task of a kind."""

# Phrasings of answers to questions, and of results of instructions; the answer replaces {}.
SAY = ("{}", "{}.", "The answer is {}.", "It is {}.", "Answer: {}")
GIVE = ("{}", "Here it is: {}", "Sure: {}", "Result: {}")


def make_task(
    rng: random.Random,
    kind: str,
    prompt: str,
    right: str,
    wrong: list[str],
    phrasings: tuple[str, ...] = SAY,
    is_right: Callable[[str], bool] | None = None,
) -> Task:
    """Builds a task; unless `is_right` is given, a response is right if it is `right` in one of the phrasings."""

    def matches(response: str) -> bool:
        return any(response == phrasing.replace("{}", right) for phrasing in phrasings)

    def phrase(answers: list[str]) -> tuple[str, ...]:
        return tuple(phrasing.replace("{}", answer) for answer in answers for phrasing in phrasings)

    rng.shuffle(wrong)
    return Task(kind, prompt, phrase([right]), phrase(wrong[:3]), is_right or matches)


def make_choice(rng: random.Random, kind: str, prompt: str, right: str, wrong: list[str], *phrasings: str) -> Task:
    """Builds a task whose answer is one word; a response is right if its last word is `right`."""
    return make_task(
        rng, kind, prompt, right, wrong, (*SAY, *phrasings), lambda text: re.findall(r"[\w']+", text)[-1:] == [right]
    )


def listed(items: list[Any]) -> str:
    """Joins items with commas."""
    return ", ".join(map(str, items))


def with_at(words: list[str], place: int, word: str) -> list[str]:
    """Returns the words with `word` at position `place`."""
    return [*words[:place], word, *words[place + 1 :]]
