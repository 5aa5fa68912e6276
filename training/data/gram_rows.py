"""Extracts prompt and responses from the texts of GRAM's own training data.

Rows of stage 1 are unlabeled: the prompt is in the instruction, both responses are in the output, between marker lines.
Rows of stage 2 are a filled judge prompt and its label. Source: README.md and data/clean_data.py of NiuTrans/GRAM.
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
"""Lines before and after the two responses of a stage 1 output."""

# GRAM's cleaning script writes a backslash and an n for a newline of the template, and omits the one before the first
# end marker.
_LINE = r"(?:\n|\\n)"
_PROMPT = re.compile(rf"\[User Question\]{_LINE}(.*?){_LINE}{{0,2}}", re.DOTALL)
_START_A, _END_A, _START_B, _END_B = map(re.escape, ANSWER_MARKERS)
_ANSWERS = re.compile(
    rf"{_START_A}{_LINE}(.*?){_LINE}?{_END_A}{_LINE}{{2}}{_START_B}{_LINE}(.*?){_LINE}?{_END_B}\s*", re.DOTALL
)


def stage_1_prompt(text: str, name: str) -> str:
    """Returns the prompt below the line "[User Question]". Raises InputError that names the text's field `name`."""
    match = _PROMPT.fullmatch(text)
    if match is None:
        raise InputError(f"{name}: expected the line '[User Question]' and the prompt under it")
    return match[1]


def stage_1_answers(text: str, name: str) -> tuple[str, str]:
    """Returns the two responses between their marker lines. Raises InputError that names the text's field `name`."""
    for marker in ANSWER_MARKERS:
        if text.count(marker) != 1:
            raise InputError(f"{name}: expected {marker!r} once, found it {text.count(marker)} times")
    match = _ANSWERS.fullmatch(text)
    if match is None:
        raise InputError(f"{name}: expected the marker lines of both answers in order, and nothing around them")
    return match[1], match[2]


def extract_slots(template: PairTemplate, text: str, name: str) -> dict[str, str]:
    """Inverts PairTemplate.fill: returns the texts in the slots of a filled template, by slot name.

    Trailing white space is ignored unless a slot is last. Raises InputError that names the text's field `name` when the
    text does not match the template or matches it in more than one way.
    """
    begin, second, third, end = template.literals
    if end.strip():
        text, end = text.rstrip(), end.rstrip()
    if not text.startswith(begin):
        raise InputError(f"{name}: expected the judge's template, which begins with {_excerpt(begin)}")
    if not text.endswith(end) or len(text) < len(begin) + len(end):
        raise InputError(f"{name}: expected the judge's template, which ends with {_excerpt(end)}")
    body = text[len(begin) : len(text) - len(end)]
    # Leftmost match of the second literal and rightmost of the third: any other match moves one of them inwards.
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
