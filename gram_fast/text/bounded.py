"""Bounds of chat templates, which are programs that come with a checkpoint: their loops and their texts end.

jinja's sandbox bounds one range to 100,000 steps, not ranges inside each other, nor a text that doubles.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gram_fast.errors import UnsupportedModelError

# A judge's prompt takes the templates of large models some hundred lines.
_MAX_LINES = 200_000
_MAX_CHARACTERS = 2**22
# File name of the Python code that jinja makes of a template.
_TEMPLATE = "<template>"
_BLOCK = re.compile(r"\{[%{].*?[%}]\}", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")


@contextmanager
def bounded_template() -> Iterator[None]:
    """Raises UnsupportedModelError in a chat template that runs too long, or makes too long a text, in this thread."""
    lines = characters = 0

    def check(size: int) -> None:
        if size > _MAX_CHARACTERS:
            raise UnsupportedModelError(f"it makes a text of more than {_MAX_CHARACTERS} characters")

    def check_locals(frame: FrameType) -> None:
        check(max((len(value) for value in frame.f_locals.values() if isinstance(value, str)), default=0))

    def trace_line(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal lines, characters
        lines += event == "line"
        if lines > _MAX_LINES:
            raise UnsupportedModelError(f"it runs more than {_MAX_LINES} lines of its program")
        if event == "return" and isinstance(value, str):  # or yields it
            characters += len(value)
            check(characters)
        check_locals(frame)
        return trace_line

    def trace_call(frame: FrameType, event: str, value: Any) -> Any:
        check_locals(frame)  # its arguments
        return trace_line if frame.f_code.co_filename == _TEMPLATE else None

    before = sys.gettrace()
    sys.settrace(trace_call)
    try:
        yield
    finally:
        sys.settrace(before)


def words_of(chat_template: str) -> list[str]:
    """Texts that the program of a chat template names: those that it may look for in a message are among them."""
    quoted = [text[1:-1] for block in _BLOCK.findall(chat_template) for text in _QUOTED.findall(block)]
    words = [re.sub(r"\\(.)", lambda match: _ESCAPED.get(match[1], match[1]), text) for text in quoted]
    return [word for word in dict.fromkeys(words) if len(word) > 1]
