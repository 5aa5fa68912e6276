"""Preference tasks with a verifiable answer: a problem, worded."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gram_fast.training.small_judge.chatter import QUIET, Chatter, around_answer, around_request
from gram_fast.training.small_judge.wordings import FRAMES, ONLY, SAY, trained

Answer = str | list[str]
"""A text, or a list whose form (commas, blanks, lines) belongs to the wording."""


@dataclass(frozen=True)
class Problem:
    """What is asked and answered, and the wordings for it."""

    asks: tuple[str, ...]
    """Ways to ask, templates of `fields`."""
    fields: dict[str, Any]
    right: Answer
    wrong: Sequence[Answer]
    answers: tuple[str, ...] = SAY
    """Ways to answer: templates of `{answer}`, or of the forms of a list (`forms`), and of `fields`."""
    working: str = ""
    """What the right answer is found from, in one line; empty where the request says it all."""
    any_words: bool = False
    """Whether any words are right, if they are as many as those of `right`."""

    def response(self, answer: Answer, wording: str) -> str:
        """Puts an answer into words."""
        return wording.format(**self.fields | (forms(answer) if isinstance(answer, list) else {"answer": answer}))


@dataclass(frozen=True)
class Task:
    """One prompt with right and wrong responses."""

    kind: str
    """Name of the kind of task: that of the function that drew its problem."""
    prompt: str
    problem: Problem
    answers: tuple[str, ...]
    """The ways to answer from which responses are drawn."""

    @property
    def right(self) -> tuple[str, ...]:
        """The right answer in every wording, the bare one first."""
        return tuple(self.problem.response(self.problem.right, wording) for wording in self.answers)

    @property
    def wrong(self) -> tuple[str, ...]:
        """Wrong answers, each in every wording."""
        return tuple(self.problem.response(wrong, wording) for wrong in self.problem.wrong for wording in self.answers)

    def is_right(self, response: str) -> bool:
        """Checks whether a response is the right answer in any wording of its kind, also one that is not trained."""
        problem = self.problem
        return any(response == problem.response(problem.right, wording) for wording in problem.answers + self.answers)


TaskMaker = Callable[[random.Random], Problem]
"""Draws a problem of a kind. The function's name is the kind's."""
Split = Callable[[tuple[str, ...]], tuple[str, ...]]
"""Which of some wordings are drawn: `trained`, `held_out` or `every`."""


def make_task(maker: TaskMaker, rng: random.Random, split: Split = trained, chatter: Chatter = QUIET) -> Task:
    """Draws a problem of a kind, and its wording: half of the requests stand in a frame.

    With `chatter`, others stand among random words, and so do answers beside which words may stand at all.
    """
    problem = maker(rng)
    ask = rng.choice(split(problem.asks))
    text = ask.format(**problem.fields)
    # A request that begins with its material keeps the material's first letter.
    lower = text if ask.startswith("{") else text[0].lower() + text[1:]
    if rng.random() < 0.5:
        text = rng.choice(split(FRAMES)).format(ask=text, lower=lower)
    elif chatter.requests and rng.random() < chatter.requests:
        text = around_request(text, lower, rng)
    answers = split(problem.answers)
    if chatter.answers and rng.random() < chatter.answers and problem.answers != ONLY:
        answers = tuple(around_answer(wording, rng) for wording in answers)
    return Task(maker.__name__, text, problem, answers)


def forms(items: list[str]) -> dict[str, str]:
    """The forms of a list: with commas, with blanks, and on lines."""
    return {"items": ", ".join(items), "spaced": " ".join(items), "lines": "\n".join(items)}


def numbered(items: list[str]) -> str:
    """Counts the entries of a list: "1 lamp, 2 river"."""
    return ", ".join(f"{n} {item}" for n, item in enumerate(items, 1))


def marked(items: list[str], found: list[str]) -> str:
    """Says of each entry of a list whether it is among those found: "lamp no, river yes"."""
    return ", ".join(f"{item} {'yes' if item in found else 'no'}" for item in items)


def ranked(sizes: dict[str, int]) -> str:
    """Compares things by their size: "key 3<lamp 4"."""
    return "<".join(f"{name} {sizes[name]}" for name in sorted(sizes, key=sizes.__getitem__))


def some_numbers(rng: random.Random, count: int) -> list[int]:
    """Draws different numbers, in most lists of two digits, in others of one or of one to three."""
    widths = rng.choice(((2,), (2,), (2,), (1,), (1, 2), (1, 2, 3)))
    found: dict[int, None] = {}
    while len(found) < count:
        width = rng.choice(widths)
        found[rng.randrange(10 ** (width - 1), 10**width)] = None
    return list(found)


def with_at(words: list[str], place: int, word: str) -> list[str]:
    """Returns the words with `word` at position `place`."""
    return [*words[:place], word, *words[place + 1 :]]


def others(material: tuple[str, ...], taken: list[str], count: int, rng: random.Random) -> list[str]:
    """Draws `count` different entries of the material that are not among those taken."""
    return [item for item in rng.sample(material, count + len(taken)) if item not in taken][:count]
