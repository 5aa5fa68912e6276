"""A preference task whose answer can be verified, and how one is made of answers and phrasings."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """One prompt with responses to it."""

    kind: str
    prompt: str
    right: tuple[str, ...]
    """The right answer in every phrasing."""
    wrong: tuple[str, ...]
    """Wrong answers, each in every phrasing."""
    is_right: Callable[[str], bool]
    """Whether a response to the prompt is right, found without looking at `right`."""


TaskMaker = Callable[[random.Random], Task]
# Phrasings of an answer that is said, and of one that is made.
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
    """A task whose answer is a text: a response is right that is this text in some phrasing."""

    def matches(response: str) -> bool:
        return any(response == phrasing.replace("{}", right) for phrasing in phrasings)

    def phrase(answers: list[str]) -> tuple[str, ...]:
        return tuple(phrasing.replace("{}", answer) for answer in answers for phrasing in phrasings)

    rng.shuffle(wrong)
    return Task(kind, prompt, phrase([right]), phrase(wrong[:3]), is_right or matches)


def make_choice(rng: random.Random, kind: str, prompt: str, right: str, wrong: list[str], *phrasings: str) -> Task:
    """A task whose answer is one word: a response is right whose last word that is."""
    return make_task(
        rng, kind, prompt, right, wrong, (*SAY, *phrasings), lambda text: re.findall(r"[\w']+", text)[-1:] == [right]
    )


def listed(items: list[Any]) -> str:
    """With commas between them."""
    return ", ".join(map(str, items))


def with_at(words: list[str], place: int, word: str) -> list[str]:
    """The words with another one at `place`."""
    return [*words[:place], word, *words[place + 1 :]]
