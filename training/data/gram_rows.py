"""Rows of GRAM's own data: both stages hold the texts inside a template and are taken apart here.

Stage 1 has no label: the question is the input, both answers are the output. Stage 2 is a filled judge prompt with its
label. Source: README.md and data/clean_data.py of NiuTrans/GRAM.
"""

import re

from gram_fast.errors import InputError
from gram_fast.text.prompts import PairTemplate

ANSWER_MARKERS = (
    "[The Start of Assistant A's Answer]",
    "[The End of Assistant A's Answer]",
    "[The Start of Assistant B's Answer]",
    "[The End of Assistant B's Answer]",
)
"""Lines that frame the two answers of stage 1."""

# GRAM's cleaning script writes a backslash and an n where the template has a new line, and none before the first end.
_LINE = r"(?:\n|\\n)"
_PROMPT = re.compile(rf"\[User Question\]{_LINE}(.*?){_LINE}{{0,2}}", re.DOTALL)
_START_A, _END_A, _START_B, _END_B = map(re.escape, ANSWER_MARKERS)
_ANSWERS = re.compile(
    rf"{_START_A}{_LINE}(.*?){_LINE}?{_END_A}{_LINE}{{2}}{_START_B}{_LINE}(.*?){_LINE}?{_END_B}\s*", re.DOTALL
)


def stage_1_prompt(text: str, name: str) -> str:
    """The prompt under "[User Question]". Raises InputError, which calls the text by its field `name`."""
    match = _PROMPT.fullmatch(text)
    if match is None:
        raise InputError(f"{name}: expected the line '[User Question]' and the prompt under it")
    return match[1]


def stage_1_answers(text: str, name: str) -> tuple[str, str]:
    """Both answers, out of their marker lines. Raises InputError, which calls the text by its field `name`."""
    for marker in ANSWER_MARKERS:
        if text.count(marker) != 1:
            raise InputError(f"{name}: expected {marker!r} once, found it {text.count(marker)} times")
    match = _ANSWERS.fullmatch(text)
    if match is None:
        raise InputError(f"{name}: expected the marker lines of both answers in order, and nothing around them")
    return match[1], match[2]


def extract_slots(template: PairTemplate, text: str, name: str) -> dict[str, str]:
    """The slots of a filled template by their names; white space at its end counts only where a slot is the end.

    Raises InputError, which calls the text by its field `name`, when it does not match the template, or does so in more
    than one way.
    """
    begin, second, third, end = template.literals
    if end.strip():
        text, end = text.rstrip(), end.rstrip()
    if not text.startswith(begin):
        raise InputError(f"{name}: expected the judge's template, which begins with {_excerpt(begin)}")
    if not text.endswith(end) or len(text) < len(begin) + len(end):
        raise InputError(f"{name}: expected the judge's template, which ends with {_excerpt(end)}")
    body = text[len(begin) : len(text) - len(end)]
    # The leftmost place of the one and the rightmost of the other: any other match moves one of the two inwards.
    left = body.find(second)
    right = body.rfind(third, left + len(second))
    for literal, place in ((second, left), (third, right)):
        if place < 0:
            raise InputError(f"{name}: expected the judge's template, found no {_excerpt(literal)} where it should be")
    for literal, moved in (
        (second, body.rfind(second, 0, right) != left),
        (third, body.find(third, left + len(second)) != right),
    ):
        if moved:
            raise InputError(
                f"{name}: expected the judge's template, found {_excerpt(literal)} more than once, so that it can be "
                "taken apart in more than one way"
            )
    values = (body[:left], body[left + len(second) : right], body[right + len(third) :])
    return dict(zip(template.slots, values, strict=True))


def _excerpt(literal: str) -> str:
    line = literal.strip().partition("\n")[0] or literal
    return repr(line if len(line) <= 60 else f"{line[:60]}...")
