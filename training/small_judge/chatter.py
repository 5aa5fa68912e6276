"""Random English words around requests and answers, from which a model learns to read over words that it does not know.

Without chatter, 63 % of the requests in held-out wordings have a word that is in no training data: half of them stand
in held-out frames ("Quick question: ..."). A language model after 8 M tokens then found the right one of two answers
more likely in 25 of 25 questions of `rearrange`, and of `wrap`, in trained wordings, and in 20 and 19 in others.
"""

import random
import re
from functools import cache
from pydoc_data.topics import topics
from typing import NamedTuple

from gram_fast.training.small_judge.words import CATEGORIES, CITIES, JOBS, MONTHS, NAMES, NOUNS, PETS, SENTENCES, THINGS

_BEFORE = ("{chatter}: {lower}", "{chatter}. {ask}", "{chatter}! {ask}", "{chatter}\n{ask}")
_BEHIND = ("{ask}\n{chatter}.", "{ask}\n{chatter}!", "{ask} {chatter}.")


class Chatter(NamedTuple):
    """How much of it there is."""

    requests: float = 0.0
    """Share of the requests outside frames."""
    answers: float = 0.0
    """Share of the tasks whose answers all stand behind some."""


QUIET = Chatter()


@cache
def chatter_words() -> tuple[str, ...]:
    """English words of Python's help pages that no task is about."""
    found = {word for text in topics.values() for word in re.findall(r"(?<![\w.`*'\"])[a-z]{2,9}(?![\w(`*'\"])", text)}
    return tuple(sorted(found - _vocabulary()))


def around_request(ask: str, lower: str, rng: random.Random) -> str:
    """Puts a few words before a request, or behind it; `lower` is the request with a small first letter."""
    return rng.choice((*_BEFORE, *_BEHIND)).format(chatter=_chatter(rng), ask=ask, lower=lower)


def around_answer(wording: str, rng: random.Random) -> str:
    """Puts a few words before a way to answer."""
    return _chatter(rng) + rng.choice((": ", ". ", "! ", ":\n")) + wording


def _chatter(rng: random.Random) -> str:
    words = " ".join(rng.choices(chatter_words(), k=rng.randint(1, 4)))
    return words.capitalize() if rng.random() < 0.8 else words


def _vocabulary() -> set[str]:
    """Words that tasks are about, and words that turn the sense of a request."""
    parts = [part for sentence in SENTENCES for part in sentence]
    of_sentences = (word for part in parts for word in ((part,) if isinstance(part, str) else part))
    of_categories = (word for words in CATEGORIES.values() for word in words)
    turning = "not no never none without except instead yes first last second least most"
    material = (*NAMES, *CITIES, *JOBS, *PETS, *MONTHS, *CATEGORIES, *of_categories, *NOUNS, *THINGS, *of_sentences)
    return {word.lower() for word in (*material, *turning.split())}
