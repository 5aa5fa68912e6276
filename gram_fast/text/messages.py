"""Prompts and responses as the judge reads them: text, or chat messages written as text; docs/prompts.md has the form.

Messages may be those of the OpenAI API, of transformers and TRL, or of the Anthropic API. Tool calls, tool results,
names and refusals are written out, reasoning is left out unless asked for, and content that is no text is an error.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from gram_fast.errors import InputError, one_line, shown_value
from gram_fast.text.lists import as_list

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]
"""Prompt or response: text, or a list of chat messages ({"role", "content", ...})."""

# One thing under the names of several servers and templates: DeepSeek, OpenRouter, transformers for gpt-oss.
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text")  # of OpenAI's two APIs
# Keys of a message, a tool call and a content part that are read, or that hold nothing which is said.
_MESSAGE = {"role", "content", "name", "tool_calls", "function_call", "tool_call_id", "refusal", "id", "type"}
_MESSAGE |= set(_REASONING)
_CALL = {"id", "type", "index", "function", "name", "arguments"}
_PART = {"type", "text", "refusal", "thinking", "signature", "id", "name", "input", "tool_use_id", "content"}
_PART |= {"is_error", "data", "cache_control"}


def to_text(value: Any, name: str, include_reasoning: bool = False) -> str:
    """Converts a prompt or response to text, as `read_text` does, and warns of what is left out, once for each key."""
    text, left_out = read_text(value, name, include_reasoning)
    for key in left_out:
        remedy = "; include_reasoning lets the judge read it" if key in _REASONING else ""
        warnings.warn(f"{key!r} of chat messages is left out of what the judge reads{remedy}", stacklevel=2)
    return text


def read_text(value: Any, name: str, include_reasoning: bool = False) -> tuple[str, tuple[str, ...]]:
    """Converts a prompt or response to (text, keys of its messages that the text leaves out).

    A string is itself; a single message that has nothing but content is its content; all other messages become
    paragraphs such as "Role: content", "Assistant (tool call 1): name(arguments)" and "Tool (name, call 1): result".
    `name` is the place of the value in messages ("responses[3]"). Raises InputError on anything else, and on a lone
    surrogate, which UTF-8 cannot encode.
    """
    left_out: tuple[str, ...] = ()
    if isinstance(value, str):
        text = str(value)  # numpy's own are no plain strings
    else:
        messages = as_list(value)
        if not messages:
            got = "an empty list" if messages is not None else type(value).__name__
            raise InputError(f"{name}: expected a string or a list of chat messages, got {got}")
        writer = _Writer(include_reasoning)
        text = writer.write(messages, name)
        left_out = tuple(writer.left_out)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise InputError(f"{name}: expected text, found the lone surrogate {code} at character {error.start}") from None
    return text, left_out


def is_same(one: Any, other: Any) -> bool:
    """Whether two prompts or responses are read as one text, reasoning included; of two that are none: for one reason.

    Messages are one whether they come in a list, a tuple or an array, whose `==` has no truth value.
    """
    return one is other or _read(one) == _read(other)


def _read(value: Any) -> tuple[str, bool]:
    """The text of a value, or why it has none; and which of the two it is."""
    try:
        return read_text(value, "value", include_reasoning=True)[0], True
    except InputError as error:
        return str(error), False


@dataclass(frozen=True)
class _Paragraph:
    role: str
    notes: tuple[str, ...]
    """What stands in parentheses behind the role; nothing for the plain content of a message."""
    text: str

    @property
    def labelled(self) -> str:
        notes = f" ({', '.join(self.notes)})" if self.notes else ""
        return f"{self.role.capitalize()}{notes}: {self.text}"


@dataclass
class _Writer:
    """Writes one list of messages; its tool calls are numbered from 1, and results name them by these numbers."""

    include_reasoning: bool
    left_out: dict[str, None] = field(default_factory=dict)
    """Keys that are left out, in order of appearance."""
    num_calls: int = 0
    calls: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Function and number of each tool call that has an id."""

    def write(self, messages: Sequence[Any], name: str) -> str:
        paragraphs = [p for k, message in enumerate(messages) for p in self._message(message, f"{name}: message {k}")]
        if len(messages) == len(paragraphs) == 1 and not paragraphs[0].notes:
            return paragraphs[0].text
        if not all(paragraph.role for paragraph in paragraphs):
            raise InputError(f"{name}: expected every chat message to have a 'role'")
        return "\n\n".join(paragraph.labelled for paragraph in paragraphs)

    def _message(self, message: Any, where: str) -> list[_Paragraph]:
        if not isinstance(message, Mapping):
            raise InputError(f"{where}: expected a dict with 'role' and 'content', got {type(message).__name__}")
        self._leave_out(message, _MESSAGE)
        role, refusal = _text(message, "role", where), _text(message, "refusal", where)
        notes = self._notes(_text(message, "name", where), _text(message, "tool_call_id", where))
        content = message.get("content")
        parts = _parts(content, where)
        said = [_Paragraph(role, ("reasoning",), text) for text in self._reasoning(message, where)]
        said += self._content(parts, role, notes, where)
        said += [self._call(call, role, f"{where}, tool call {k}") for k, call in enumerate(_calls(message, where))]
        said += [_Paragraph(role, ("refusal",), refusal)] if refusal else []
        if not parts and not said and not any(message.get(key) for key in _REASONING):
            got = _found(message) if content is None else "got an empty list"
            raise InputError(f"{where}: expected 'content' to be text, or tool calls beside it, {got}")
        return said or [_Paragraph(role, notes, "")]

    def _reasoning(self, holder: Message, where: str) -> list[str]:
        """Texts of the reasoning in a message or part: none unless they are included; equal ones once."""
        found = {key: text for key in _REASONING if (text := _text(holder, key, where))}
        if self.include_reasoning:
            return list(dict.fromkeys(found.values()))
        self.left_out |= dict.fromkeys(found)
        return []

    def _content(self, parts: Sequence[Any], role: str, notes: tuple[str, ...], where: str) -> Iterator[_Paragraph]:
        """Paragraphs of the parts of a content; texts in succession are one."""
        text = ""
        for k, part in enumerate(parts):
            place = f"{where}, part {k}"
            kind = _kind(part, place)
            self._leave_out(part, _PART)
            if kind in _TEXT_PARTS:
                text += _text(part, "text", place, needed=True)
                continue
            if text:
                yield _Paragraph(role, notes, text)
                text = ""
            yield from self._part(kind, part, role, place)
        if text:
            yield _Paragraph(role, notes, text)

    def _part(self, kind: str, part: Message, role: str, where: str) -> Iterator[_Paragraph]:
        """Paragraphs of a part that is not the content's own text."""
        if kind == "thinking":
            yield from (_Paragraph(role, ("reasoning",), text) for text in self._reasoning(part, where))
        elif kind == "redacted_thinking":  # encrypted
            self.left_out[kind] = None
        elif kind == "refusal":
            yield _Paragraph(role, ("refusal",), _text(part, "refusal", where, needed=True))
        elif kind == "tool_use":
            call = {"id": part.get("id"), "name": part.get("name"), "arguments": part.get("input")}
            yield self._call(call, role, where)
        elif kind == "tool_result":
            notes = self._notes("", _text(part, "tool_use_id", where))
            results = [(p, f"{where}, part {k}") for k, p in enumerate(_parts(part.get("content"), where))]
            for result, place in results:
                if (of := _kind(result, place)) not in _TEXT_PARTS:
                    raise InputError(f"{place} is of type {shown_value(of)}, expected text")
            text = "".join(_text(result, "text", place, needed=True) for result, place in results)
            yield _Paragraph("tool", (*notes, "error") if part.get("is_error") else notes, text)
        else:
            raise InputError(f"{where} is of type {shown_value(kind)}, expected text")

    def _call(self, call: Any, role: str, where: str) -> _Paragraph:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError(f"{where}: expected a function with 'name' and 'arguments', {_found(call)}")
        self._leave_out(call, _CALL)
        self._leave_out(function, _CALL)
        self.num_calls += 1
        name = function["name"]
        if call_id := _text(call, "id", where):
            self.calls[call_id] = name, self.num_calls
        arguments = _canonical(function.get("arguments"), where)
        return _Paragraph(role, (f"tool call {self.num_calls}",), f"{name}({arguments})")

    def _notes(self, name: str, call_id: str) -> tuple[str, ...]:
        """Notes of a speaker: a name, and the tool call that is answered, whose function may stand for the name."""
        function, number = self.calls.get(call_id, ("", 0))
        return tuple(note for note in (name or function, f"call {number}" if number else call_id) if note)

    def _leave_out(self, holder: Message, read: set[str]) -> None:
        """Records the other keys of a message, call or part under which anything is said."""
        for key, value in holder.items():
            if key not in read and _says_something(value):
                self.left_out[str(key)] = None


def _says_something(value: Any) -> bool:
    try:
        return len(value) > 0
    except TypeError:  # a number, None, an array without dimensions
        return False


def _kind(part: Any, where: str) -> str:
    if not isinstance(part, Mapping):
        raise InputError(f"{where}: expected a dict with 'type' and 'text', got {type(part).__name__}")
    return _text(part, "type", where) or "text"


def _parts(content: Any, where: str) -> Sequence[Any]:
    if content is None:
        return ()
    if isinstance(content, str):
        return ({"text": content},)
    parts = as_list(content)
    if parts is None:
        raise InputError(f"{where}: expected 'content' to be text, got {type(content).__name__}")
    return parts


def _calls(message: Message, where: str) -> Sequence[Any]:
    """Tool calls of a message, that of OpenAI's older API included."""
    value = message.get("tool_calls")
    calls = as_list(value)
    if calls is None and value:
        raise InputError(f"{where}: expected 'tool_calls' to be a list, got {type(value).__name__}")
    function_call = message.get("function_call")
    return [*(calls or ()), *([] if function_call is None else [function_call])]


def _text(holder: Message, key: str, where: str, needed: bool = False) -> str:
    """Text under a key, empty for None unless it is needed. Raises InputError on anything else."""
    value = holder.get(key)
    if isinstance(value, str):
        return value
    if value is None and not needed:
        return ""
    raise InputError(f"{where}: expected {key!r} to be text, got {type(value).__name__}")


def _canonical(arguments: Any, where: str) -> str:
    """Arguments as JSON with sorted keys, whether they come as text or parsed; text that is no JSON stays as it is."""
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments, object_pairs_hook=_distinct, parse_float=_exact)
            text = json.dumps(parsed, sort_keys=True, ensure_ascii=False)
            text.encode()
        except (ValueError, ArithmeticError, RecursionError):
            return arguments
        return text
    try:
        return json.dumps({} if arguments is None else arguments, sort_keys=True, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected 'arguments' to be JSON: {one_line(error)}") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of pairs. Raises ValueError where a key is repeated: all but its last value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("repeated key")
    return found


def _exact(number: str) -> float:
    """Parses a number. Raises ValueError where a float does not hold all of its digits."""
    if Decimal(repr(value := float(number))) != Decimal(number):
        raise ValueError("more digits than a float holds")
    return value


def _found(value: Any) -> str:
    """What was found in the place of something: the keys of a mapping that have a value, or a type."""
    if not isinstance(value, Mapping):
        return f"got {type(value).__name__}"
    return f"found {', '.join(repr(key) for key in value if value[key] is not None) or 'none'}"
