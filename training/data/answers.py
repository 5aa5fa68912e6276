"""Answers of judges that reason, as data: what a judge is trained to write, and what rows of others hold.

    [<think>\\n] body \\n  |  answer_prefix  |  label  |  answer_suffix
     the rationale             </think>\\n<answer>\\n   A   \\n</answer>

The body is the text of the thought without tags: a row's `rationale`.
"""

from dataclasses import dataclass

from gram_fast.errors import InputError, shown_value
from gram_fast.generating.verdicts import reader
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.thinking import THINKING_TAG


@dataclass(frozen=True)
class AnswerForm:
    """How a judge's answers are written."""

    opening: str
    """What a rationale begins with: the tag that the answer prefix closes and a newline, or nothing."""
    prefix: str
    suffix: str
    labels: tuple[str, str]

    @classmethod
    def of(cls, template: PairTemplate, in_thinking: bool = False) -> "AnswerForm":
        """The form of a template's answers. `in_thinking`: its prompt ends in a thinking block, which it has opened."""
        tag = THINKING_TAG.search(template.answer_prefix)
        opens = tag is not None and any(tag.groups()) and not in_thinking
        opening = tag[0].replace("/", "", 1) + "\n" if tag is not None and opens else ""
        return cls(opening, template.answer_prefix, template.answer_suffix, template.labels)

    def write(self, body: str | None, label: int) -> str:
        """The answer that gives label 0 or 1 after this thought; None: the verdict alone.

        Raises InputError for a thought where nothing would part it from the label.
        """
        verdict = self.prefix + self.labels[label] + self.suffix
        if body is None:
            return verdict
        if not self.prefix.strip():
            raise InputError("preset: expected an answer_prefix, which stands between a rationale and its label")
        return f"{self.opening}{body}\n{verdict}"

    def read(self, answer: str) -> tuple[str, int] | None:
        """Inverts `write` for a thought, to the letter -> (body, number of the label); None of any other text."""
        for label in (0, 1):
            ending = "\n" + self.write(None, label)
            is_whole = len(answer) >= len(self.opening) + len(ending)
            if is_whole and answer.startswith(self.opening) and answer.endswith(ending):
                return answer[len(self.opening) : len(answer) - len(ending)], label
        return None


def body_of(thought: str) -> str:
    """The text of a thought without the tags around it and without white space at its ends."""
    text = thought.strip()
    tags = list(THINKING_TAG.finditer(text))
    if tags and any(tags[-1].groups()) and tags[-1].end() == len(text):
        text = text[: tags[-1].start()]
    if tags and not any(tags[0].groups()) and tags[0].start() == 0:
        text = text[tags[0].end() :]
    return text.strip()


def early_end(template: PairTemplate, body: str) -> str | None:
    """Finds what in the text of a thought would end it where the judge's answer does not, as a model would learn.

    That is a tag of thinking, or the answer prefix with a label behind it. Between marks that are no tags, as [[A]],
    other text, as [[1, 2]], is a thought's own.
    """
    if tag := THINKING_TAG.search(body):
        return tag[0]
    found = reader(template).read(body) if template.answer_prefix.strip() else None
    if found is None or found.label is None or found.label_at is None:
        return None
    return body[len(found.rationale) : found.label_at + len(template.labels[found.label].strip())].strip()


def read_answer(template: PairTemplate, text: str, name: str) -> tuple[str | None, int]:
    """Reads an answer to a template's prompt as rows have it -> (body, number of the label).

    White space may differ from the form. An answer without a rationale, of which the body is None, may be the label
    alone or lack the end of the thought. Raises InputError that names the text's field `name`.
    """
    labels = tuple(label.strip() for label in template.labels)
    if text.strip() in labels:
        return None, labels.index(text.strip())
    prefix, suffix = template.answer_prefix, template.answer_suffix
    found = reader(template).read(text)
    if found.label is None or found.label_at is None:
        raise InputError(
            f"{name}: expected {labels[0]!r} or {labels[1]!r}, alone or between {prefix!r} and {suffix!r}, found "
            f"{found.problem} in {shown_value(text)}"
        )
    body = body_of(found.rationale)
    before = text[len(found.rationale) : found.label_at]
    after = text[found.label_at + len(labels[found.label]) :]
    short = prefix.strip().rpartition("\n")[2]
    if _plain(before) != _plain(prefix) and (body or _plain(before) != _plain(short)):
        raise InputError(f"{name}: expected {prefix!r} between rationale and verdict, found {shown_value(before)}")
    if _plain(after) != _plain(suffix):
        raise InputError(f"{name}: expected {suffix!r} at the end of the answer, found {shown_value(after)}")
    return body or None, found.label


def _plain(text: str) -> str:
    return "".join(text.split())
