"""Parsers of the row formats of training data, one function for each format; docs/data.md shows rows of each.

A raw row is a mapping as JSON, Parquet and the datasets library return it; fields that are None count as absent.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple

from gram_fast.errors import InputError, shown_value
from gram_fast.rows.bad_rows import get_field
from gram_fast.text.lists import as_list
from gram_fast.text.messages import Message, Prompt, to_text
from gram_fast.text.prompts import SLOTS, PairTemplate
from gram_fast.training.data import helpsteer3
from gram_fast.training.data.answers import body_of, early_end, read_answer
from gram_fast.training.data.gram_rows import ANSWER_MARKERS, extract_slots, stage_1_answers, stage_1_prompt

RawRow = Mapping[str, Any]
Label = Literal["A", "B"]
Format = Literal["gram", "preference", "sharegpt", "responses", "genrm", "helpsteer3"]
"""GRAM's own data of both stages and GRAM-RR's; prompt, chosen and rejected; LLaMA-Factory's sharegpt; prompt and
responses; GenRM's; HelpSteer3's."""

# Presets in whose prompts data is published.
_PUBLISHED = ("gram", "gram-r2", "genrm")


class ParsedRow(NamedTuple):
    """What a row says of a pair."""

    prompt: str
    response_a: str
    response_b: str
    preferred: Label | None
    """None for an unlabeled pair."""
    rationale: str | None = None
    """Text of the thought that leads to the label, without tags."""


class TieError(InputError):
    """A row that says of two responses that neither is better: right as it is, and nothing to learn from."""


@dataclass(frozen=True)
class Layout:
    """Names of the fields and tags of a row in one format; a field whose name is None is not read.

    Names and defaults are those of LLaMA-Factory's dataset_info.json (data/README.md of hiyouga/LLaMA-Factory).
    """

    format: Format
    prompt: str = "instruction"
    query: str | None = "input"
    response: str = "output"
    system: str | None = None
    history: str | None = None
    messages: str = "conversations"
    chosen: str = "chosen"
    rejected: str = "rejected"
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str = "system"
    include_reasoning: bool = False
    """Whether the texts of chat messages include their reasoning."""

    @property
    def roles(self) -> dict[str, str]:
        """Maps each value of the role tag to its chat role."""
        return {
            self.user_tag: "user",
            self.assistant_tag: "assistant",
            self.observation_tag: "tool",
            self.function_tag: "assistant",
            self.system_tag: "system",
        }


_PREFERENCE = Layout("preference", prompt="prompt", query=None, system="system")
_ALPACA = Layout("preference", system="system", history="history")
_SHAREGPT = Layout("sharegpt", system="system")
_RESPONSES = Layout("responses", prompt="prompt", query=None, system="system")
_GRAM = Layout("gram")
_GENRM = Layout("genrm", prompt="prompt", query=None, response="response")
_HELPSTEER3 = Layout("helpsteer3", prompt="context", query=None)

# Turn markers of hh-rlhf dialogues.
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def parse_row(row: Any, layout: Layout | None, template: PairTemplate, include_reasoning: bool = False) -> ParsedRow:
    """Parses a raw row into prompt, two responses, label and rationale; without a `layout`, its fields determine it.

    `template` is the judge's prompt in which GRAM's stage 2 rows are written. An empty response is valid. Raises
    InputError that names the field for a row of no known format, an empty prompt, two equal responses with a
    preference, a rationale with an end of its own in it, and values that are not text; TieError for a tie.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"expected a JSON object, got {type(row).__name__}")
    row = {name: value for name, value in row.items() if value is not None}
    layout = layout or _layout_of(row)
    if include_reasoning:
        layout = replace(layout, include_reasoning=True)
    parsed = _PARSERS[layout.format](row, layout, template)
    if not parsed.prompt.strip():
        raise InputError("prompt: expected text, found none but white space")
    if parsed.preferred and parsed.response_a == parsed.response_b:
        raise InputError("responses: expected two that differ, as one is preferred, found two equal ones")
    if parsed.rationale and (mark := early_end(template, parsed.rationale)):
        raise InputError(f"rationale: expected a thought without tags of thinking and verdicts in it, found {mark!r}")
    return parsed


def _layout_of(row: RawRow) -> Layout:
    if "chosen" in row and "rejected" in row:
        if "conversations" in row:
            return _SHAREGPT
        return _ALPACA if "instruction" in row and "prompt" not in row else _PREFERENCE
    if "prompt" in row and "responses" in row:
        return _RESPONSES
    if "instruction" in row and "output" in row:
        return _GRAM
    if "prompt" in row and "response" in row:
        return _GENRM
    if "response1" in row and "response2" in row:
        return _HELPSTEER3
    raise InputError(
        "expected the fields of a pair (chosen and rejected; prompt and responses; instruction and output; prompt and "
        "response; or context, response1 and response2), found " + (", ".join(map(repr, row)) or "none")
    )


def _gram(row: RawRow, layout: Layout, template: PairTemplate) -> ParsedRow:
    instruction, output = _text(row, layout.prompt), _text(row, layout.response)
    instruction = _append_input(instruction, _optional_text(row, layout.query))
    written = _template_of(instruction, template)
    first, second = (text.strip() for text in (written or template).labels)
    if output.strip() in (first, second) or (written is not None and written.answer_prefix):
        return _answered(instruction, output, written or template, layout)
    if not any(marker in output for marker in ANSWER_MARKERS):
        raise InputError(
            f"{layout.response}: expected {first!r}, {second!r}, or two answers between lines such as "
            f"{ANSWER_MARKERS[0]!r}"
        )
    return ParsedRow(stage_1_prompt(instruction, layout.prompt), *stage_1_answers(output, layout.response), None)


def _genrm(row: RawRow, layout: Layout, template: PairTemplate) -> ParsedRow:
    text = _only_message(row, layout.prompt, "user")
    answer = _only_message(row, layout.response, "assistant")
    return _answered(text, answer, _template_of(text, template) or template, layout)


def _answered(filled: str, answer: str, template: PairTemplate, layout: Layout) -> ParsedRow:
    """Parses a filled template and what a judge answers to it."""
    slots = extract_slots(template, filled, layout.prompt)
    body, label = read_answer(template, answer, layout.response)
    prompt, response_a, response_b = (slots[slot] for slot in SLOTS)
    return ParsedRow(prompt, response_a, response_b, "B" if label else "A", body)


def _template_of(text: str, template: PairTemplate) -> PairTemplate | None:
    """The template that a text begins with: that of the run, else one in which data is published; None of no such."""
    known = (template, *_published())
    return next((known for known in known if known.literals[0] and text.startswith(known.literals[0])), None)


@cache
def _published() -> tuple[PairTemplate, ...]:
    return tuple(map(PairTemplate.load, _PUBLISHED))


def _preference(row: RawRow, layout: Layout, template: PairTemplate) -> ParsedRow:
    chosen, rejected = get_field(row, layout.chosen), get_field(row, layout.rejected)
    prompt = row.get(layout.prompt)
    if query := _optional_text(row, layout.query):
        prompt = _append_input(_optional_text(row, layout.prompt), query)
    if _is_conversation(chosen) or _is_conversation(rejected):
        prompt, chosen, rejected = _split_conversations(layout, prompt, chosen, rejected)
    elif prompt is None:
        prompt, chosen, rejected = _split_dialogues(layout, chosen, rejected)
    text = _in_context(row, layout, prompt, layout.prompt)
    return ParsedRow(text, _said(chosen, layout.chosen, layout), _said(rejected, layout.rejected, layout), "A")


def _sharegpt(row: RawRow, layout: Layout, template: PairTemplate) -> ParsedRow:
    conversation = get_field(row, layout.messages)
    if not isinstance(conversation, list) or not conversation:
        raise InputError(f"{layout.messages}: expected a list of messages, got {type(conversation).__name__}")
    messages = [_message(message, layout, f"{layout.messages}[{k}]") for k, message in enumerate(conversation)]
    if messages[-1]["role"] == "assistant":
        raise InputError(f"{layout.messages}: expected a last message to be answered, found the assistant's own")
    chosen, rejected = (_message(get_field(row, name), layout, name) for name in (layout.chosen, layout.rejected))
    for name, answer in ((layout.chosen, chosen), (layout.rejected, rejected)):
        if answer["role"] != "assistant":
            raise InputError(f"{name}: expected the assistant's message, found the {answer['role']}'s")
    prompt = _in_context(row, layout, messages, layout.messages)
    return ParsedRow(prompt, _said([chosen], layout.chosen, layout), _said([rejected], layout.rejected, layout), "A")


def _responses(row: RawRow, layout: Layout, template: PairTemplate) -> ParsedRow:
    responses = get_field(row, "responses")
    if not isinstance(responses, list) or len(responses) != 2:
        got = len(responses) if isinstance(responses, list) else type(responses).__name__
        raise InputError(f"responses: expected a list of 2, got {got}")
    response_a, response_b = (_said(response, f"responses[{k}]", layout) for k, response in enumerate(responses))
    prompt = _in_context(row, layout, get_field(row, layout.prompt), layout.prompt)
    label, rationale = row.get("label"), None
    if label not in ("A", "B", None):
        raise InputError(f"label: expected 'A' or 'B', the better of responses[0] and [1], got {shown_value(label)}")
    if "rationale" in row:
        rationale = body_of(_text(row, "rationale"))
        if not rationale:
            raise InputError("rationale: expected the text of a thought, or no such field, found none but white space")
        if label is None:
            raise InputError("rationale: expected 'label' as well, 'A' or 'B', to which it leads")
    return ParsedRow(prompt, response_a, response_b, label, rationale)


def _helpsteer3(row: RawRow, layout: Layout, template: PairTemplate) -> ParsedRow:
    label = helpsteer3.preferred(row)
    if label is None:
        raise TieError(f"{helpsteer3.PREFERENCE}: 0 is a tie, of which nothing can be learned")
    response_a, response_b = (_said(get_field(row, name), name, layout) for name in ("response1", "response2"))
    prompt = _in_context(row, layout, get_field(row, layout.prompt), layout.prompt)
    return ParsedRow(prompt, response_a, response_b, label, helpsteer3.rationale(row, label))


_PARSERS: dict[Format, Callable[[RawRow, Layout, PairTemplate], ParsedRow]] = {
    "gram": _gram,
    "preference": _preference,
    "sharegpt": _sharegpt,
    "responses": _responses,
    "genrm": _genrm,
    "helpsteer3": _helpsteer3,
}


def _only_message(row: RawRow, name: str, role: str) -> str:
    """Text of a field that is a list of one message by that role, or text."""
    value = get_field(row, name)
    messages = as_list(value)
    if messages is None:
        return _text(row, name)
    if len(messages) != 1 or not isinstance(messages[0], Mapping) or messages[0].get("role") != role:
        raise InputError(f"{name}: expected one message, the {role}'s, got {shown_value(value)}")
    return to_text(messages, name)


def _is_conversation(value: Any) -> bool:
    """Whether a response is a whole conversation: several messages, the first not by the assistant."""
    return (
        isinstance(value, list)
        and len(value) > 1
        and isinstance(value[0], Mapping)
        and value[0].get("role") != "assistant"
    )


def _split_conversations(layout: Layout, prompt: Any, chosen: Any, rejected: Any) -> tuple[Prompt, Prompt, Prompt]:
    """Splits two conversations into their common first messages (the prompt) and the non-empty rest of each."""
    shared = 0
    if isinstance(chosen, list) and isinstance(rejected, list):
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
    if not shared:
        raise InputError(
            f"{layout.chosen}, {layout.rejected}: expected conversations that begin with the same messages"
        )
    begin = chosen[:shared]
    if isinstance(prompt, list):
        if begin[: len(prompt)] != prompt:
            raise InputError(f"{layout.prompt}: expected the messages with which {layout.chosen} begins")
        shared = len(prompt)
    elif prompt and _said(prompt, layout.prompt, layout).strip() not in [
        _said([message], layout.chosen, layout).strip() for message in begin
    ]:
        raise InputError(f"{layout.prompt}: expected one of the messages with which {layout.chosen} begins")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _split_dialogues(layout: Layout, chosen: Any, rejected: Any) -> tuple[Prompt, Prompt, Prompt]:
    """Splits two hh-rlhf dialogues into their common turns, as messages, and the last answer of each."""
    turns, answers = [], []
    for name, dialogue in ((layout.chosen, chosen), (layout.rejected, rejected)):
        before, _, answer = dialogue.rpartition("\n\nAssistant:") if isinstance(dialogue, str) else ("", "", "")
        start, *parts = _TURN.split(before)
        if start or not parts:
            raise InputError(
                f"{layout.prompt}: expected this field, or {name} to be a conversation, as messages or as "
                r"'\n\nHuman: ...\n\nAssistant: ...'"
            )
        turns.append(list(zip(parts[0::2], parts[1::2], strict=True)))
        answers.append(answer.strip())
    if turns[0] != turns[1]:
        raise InputError(f"{layout.chosen}, {layout.rejected}: expected dialogues that differ in the last answer alone")
    messages = [{"role": _SPEAKERS[speaker], "content": said.strip()} for speaker, said in turns[0]]
    return messages, answers[0], answers[1]


def _in_context(row: RawRow, layout: Layout, prompt: Any, name: str) -> str:
    """Renders a prompt as text, preceded by the system message and the earlier turns of its row."""
    text = _said(prompt, name, layout)
    messages = [{"role": "user", "content": text}] if isinstance(prompt, str) else list(prompt)
    messages = [*_history(row, layout.history), *messages]
    system = _optional_text(row, layout.system)
    if system and messages[0].get("role") != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return _said(messages, name, layout)


def _history(row: RawRow, name: str | None) -> list[Message]:
    turns = row.get(name) if name else None
    if turns is None:
        return []
    if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise InputError(f"{name}: expected a list of turns, each a list of the user's text and the assistant's")
    roles = ("user", "assistant")
    return [{"role": role, "content": said} for turn in turns for role, said in zip(roles, turn, strict=True)]


def _message(value: Any, layout: Layout, name: str) -> Message:
    role_tag, content_tag = layout.role_tag, layout.content_tag
    has_calls = isinstance(value, Mapping) and (value.get("tool_calls") or value.get("function_call"))
    if not isinstance(value, Mapping) or role_tag not in value or not (content_tag in value or has_calls):
        raise InputError(f"{name}: expected a message with {role_tag!r} and {content_tag!r}")
    role = value[role_tag]
    if not isinstance(role, str) or role not in layout.roles:
        raise InputError(f"{name}: expected {role_tag!r} to be one of {', '.join(layout.roles)}, got {role!r}")
    rest = {key: item for key, item in value.items() if key not in (role_tag, content_tag)}
    return {**rest, "role": layout.roles[role], "content": value.get(content_tag)}


def _said(value: Any, name: str, layout: Layout) -> str:
    return to_text(value, name, layout.include_reasoning)


def _text(row: RawRow, name: str) -> str:
    value = get_field(row, name)
    if not isinstance(value, str):
        raise InputError(f"{name}: expected text, got {type(value).__name__}")
    return to_text(value, name)


def _optional_text(row: RawRow, name: str | None) -> str:
    return _text(row, name) if name is not None and name in row else ""


def _append_input(text: str, query: str) -> str:
    """Joins an instruction and its input as LLaMA-Factory does: with a newline, where neither is empty."""
    return "\n".join(part for part in (text, query) if part)
