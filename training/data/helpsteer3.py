"""Rows of HelpSteer3: whom its annotators prefer, and a rationale from their feedback.

The parts of the rationale are those of the prompt of GRAM-R2 (arXiv 2509.02492), in its spelling. The fields of the
feedback are individual_preference: a list of objects with score, reasoning, feedback1 and feedback2.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any, Literal

from gram_fast.errors import InputError, shown_value
from gram_fast.rows.bad_rows import get_field
from gram_fast.text.lists import as_list

PREFERENCE = "overall_preference"
FEEDBACK = "individual_preference"
_TEXTS = ("feedback1", "feedback2", "reasoning")
# How annotators name the responses, "@Response 1", "response #2", "response_1", and both, "Responses 1 and 2".
_NAME = re.compile(
    r"@?\bresponse(?P<plural>s?)[ _-]?#? ?(?P<numbers>[12](?: ?(?:[/&+]|and|or|vs\.?|versus) ?@?#?[12])*)\b",
    re.IGNORECASE,
)
_LETTERS = str.maketrans("12", "AB", "@#")


def preferred(row: Mapping[str, Any]) -> Literal["A", "B"] | None:
    """The better response: A is response1; None of a tie. Raises InputError for what is no number from -3 to 3."""
    score = get_field(row, PREFERENCE)
    if isinstance(score, bool) or not isinstance(score, int | float) or not -3 <= score <= 3:
        raise InputError(f"{PREFERENCE}: expected a number from -3 to 3, got {shown_value(score)}")
    return _side(score)


def rationale(row: Mapping[str, Any], label: Literal["A", "B"]) -> str | None:
    """A rationale from the first annotator who prefers the same response and has both feedbacks and the reasoning.

    None where there is none such. Where fields are missing in place of them, a warning names these.
    """
    if FEEDBACK not in row:
        return None
    entries = as_list(row[FEEDBACK])
    if entries is None or not all(isinstance(entry, Mapping) for entry in entries):
        _warn("a list of objects")
        return None
    missing: dict[str, None] = {}
    for entry in entries:
        lacking = [name for name in ("score", *_TEXTS) if entry.get(name) is None]
        missing |= dict.fromkeys(lacking)
        if not lacking and _agrees(entry["score"], label) and all(_is_said(entry[name]) for name in _TEXTS):
            return _written(entry, label)
    if missing:
        _warn(f"{', '.join(map(repr, missing))}, which are missing")
    return None


def _side(score: float) -> Literal["A", "B"] | None:
    return None if score == 0 else "B" if score > 0 else "A"


def _agrees(score: Any, label: str) -> bool:
    return isinstance(score, int | float) and _side(score) == label


def _is_said(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


def _written(entry: Mapping[str, Any], label: str) -> str:
    a, b, comparison = (_named(entry[name].strip()) for name in _TEXTS)
    return (
        f"Feedback:\nResponse A: {a}\nResponse B: {b}\n\nComparision:\n{comparison}\n\n"
        f"Conclusion:\nResponse {label} is better."
    )


def _named(text: str) -> str:
    """The text with names of responses as the judge's prompt has them."""
    return _NAME.sub(lambda name: f"Response{name['plural'].lower()} {name['numbers'].translate(_LETTERS)}", text)


def _warn(expected: str) -> None:
    warnings.warn(f"HelpSteer3's {FEEDBACK}: expected {expected} in some rows, which have no rationale", stacklevel=2)
