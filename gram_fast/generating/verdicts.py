"""Reads the verdict of what a judge wrote: where its rationale ends, and which label stands behind it.

The published demo of GRAM-R2 makes three mistakes that are not made here (docs/reasoning.md).
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from gram_fast.text.prompts import PairTemplate

OVER_THE_LIMIT = "over the limit"
NO_CLOSING = "no closing tag"
NO_VERDICT = "no verdict"
UNKNOWN_VERDICT = "a verdict that is no label"


@dataclass(frozen=True)
class Verdict:
    """What an answer says."""

    rationale: str
    """The answer up to its prefix, which the template's `answer_prefix` goes on from; all of it where it has none."""
    label: int | None
    """Number of the label, 0 or 1; None where there is no verdict."""
    label_at: int | None
    """Where the label begins in the answer, in characters."""
    problem: str | None
    """Why there is none: one of the constants of this module."""


def reader(template: PairTemplate) -> "VerdictReader":
    """The reader of a template's answers."""
    return VerdictReader.of(template.answer_prefix, template.answer_suffix, template.labels)


@dataclass(frozen=True)
class VerdictReader:
    """Reads answers that end in answer prefix, label and answer suffix.

    White space where the prefix and the suffix have some, or at their ends, may be other white space or none. What
    counts is the last verdict. Between tags, as in <answer>A</answer>, that is the last pair of them, whatever stands
    in it; between other marks, as in [[A]], the last that has a label in it, as [[1, 2]] may be a matrix. With a prefix
    and no suffix, it is the label right behind the last prefix; without a prefix, the whole answer.
    """

    labels: tuple[str, str]
    begin: re.Pattern[str]
    """The whole prefix."""
    open: re.Pattern[str] | None
    """Its last line, behind which the verdict stands, as a group without width, as [[[A]] has [[ twice; None where
    there is no prefix."""
    close: re.Pattern[str] | None
    """The suffix; None where there is none."""
    thought_end: re.Pattern[str] | None
    """The prefix without its last line, such as </think>; None where it has one line."""
    are_tags: bool

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, prefix: str, suffix: str, labels: tuple[str, str]) -> "VerdictReader":
        """Makes the reader of an answer's form. `labels`: the two, read without white space around them."""
        lines = prefix.strip().splitlines()
        last = lines[-1] if lines else ""
        return cls(
            labels=(labels[0].strip(), labels[1].strip()),
            begin=_flexible(prefix),
            open=re.compile(f"(?=({_flexible(last).pattern}))") if last else None,
            close=_flexible(suffix) if suffix.strip() else None,
            thought_end=_flexible("\n".join(lines[:-1])) if len(lines) > 1 else None,
            are_tags=last.startswith("<") and last.endswith(">"),
        )

    def read(self, text: str, is_cut: bool = False) -> Verdict:
        """Reads an answer. `is_cut`: whether a limit of tokens ended it, which then is the problem where it has one."""
        found = self._of_all(text) if self.open is None else self._last(text, self.open)
        if found.problem is not None and is_cut:
            return Verdict(found.rationale, None, None, OVER_THE_LIMIT)
        return found

    def _of_all(self, text: str) -> Verdict:
        return self._of_words("", text.strip(), len(text) - len(text.lstrip()))

    def _last(self, text: str, open: re.Pattern[str]) -> Verdict:
        last = Verdict(self._thought(text), None, None, NO_VERDICT)
        for opening in reversed(list(open.finditer(text))):
            found = self._behind(text, opening)
            if found.problem is None or self.are_tags:
                return found
            last = found if last.problem == NO_VERDICT else last
        return last

    def _behind(self, text: str, opening: re.Match[str]) -> Verdict:
        rationale, rest = self._before(text, opening), text[opening.end(1) :]
        at = opening.end(1) + len(rest) - len(rest.lstrip())
        if self.close is None:
            return self._of_words(rationale, self._first_word(rest.lstrip()), at)
        closing = self.close.search(rest)
        if closing is None:
            return Verdict(rationale, None, None, NO_CLOSING)
        return self._of_words(rationale, rest[: closing.start()].strip(), at)

    def _first_word(self, rest: str) -> str:
        """The label that a text begins with, where no more of a word or choice, as in Yes/No, follows; else a word."""
        found = [label for label in self.labels if re.match(re.escape(label) + r"(?![\w/])", rest)]
        return max(found, key=len) if found else rest.partition(" ")[0]

    def _of_words(self, rationale: str, said: str, at: int) -> Verdict:
        if said not in self.labels:
            return Verdict(rationale, None, None, UNKNOWN_VERDICT if said else NO_VERDICT)
        return Verdict(rationale, self.labels.index(said), at, None)

    def _before(self, text: str, opening: re.Match[str]) -> str:
        """The rationale before an opening: up to the prefix that ends in it, or to the end of the thought before it."""
        wholes = [match for match in self.begin.finditer(text) if match.end() == opening.end(1)]
        if wholes:
            return text[: wholes[-1].start()]
        return self._thought(text[: opening.start()])

    def _thought(self, text: str) -> str:
        """What is before the end of the thought; all of it where it does not end."""
        end = None if self.thought_end is None else self.thought_end.search(text)
        return text if end is None else text[: end.start()]


def _flexible(text: str) -> re.Pattern[str]:
    """A pattern of the text, its ends stripped, with any white space, or none, where it has some."""
    return re.compile(r"\s*".join(map(re.escape, text.split())))
