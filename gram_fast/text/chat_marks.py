"""Marks of other models' chat templates: a text that holds one was not taken out of its chat."""

import re
from collections.abc import Iterable

_MARK = re.compile(
    # ChatML, Llama 3, Phi, GLM, Cohere, Harmony; DeepSeek, whose bars have full width; Gemma 4, with one bar.
    r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]?>|<[^<>|/\s]{1,40}\|>"
    r"|<(?:start|end)_of_turn>|<bos>|<eos>"  # Gemma
    r"|\[/?INST\]|<</?SYS>>|</s>(?=\s*\Z)"  # Llama 2, Mistral; elsewhere </s> may be HTML
    r"|^### (?:Instruction|Response|Human|Assistant):",  # Alpaca and others without tokens of their own
    re.MULTILINE,
)


def chat_marks(text: str) -> tuple[str, ...]:
    """Finds what frames a turn in the chat templates that are in use, each once, in order of appearance."""
    return tuple(dict.fromkeys(_MARK.findall(text)))


def flags_of(text: str, markers: Iterable[str]) -> tuple[str, ...]:
    """Finds the `markers` of a judge's own prompt in a text, and marks of chats; each once."""
    own = tuple(marker for marker in markers if marker in text)
    return own + tuple(mark for mark in chat_marks(text) if mark not in own)
