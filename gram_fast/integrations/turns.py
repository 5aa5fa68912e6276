"""Prompts and responses taken out of text that a policy's chat template wrote, for hosts that pass such text.

What the template writes around messages is found by rendering words that occur nowhere else, so that no template is
known by name. A prompt is split there into messages, and accepted where the template writes exactly it from them.
"""

import os
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from gram_fast import InputError, PairwiseJudge
from gram_fast.integrations.grouped import RowRewards, rewards_of_rows

Message = dict[str, str]
# Words that a template leaves alone and that no text has.
_WORDS = ("Qzvxsystemqzvx", "Qzvxfirstqzvx", "Qzvxanswerqzvx", "Qzvxlastqzvx")
# Characters of a text in messages.
_SHOWN = 60


@dataclass(frozen=True)
class Row:
    """A prompt with a response to it, as a judge reads them."""

    prompt: str | list[Message]
    response: str | None
    """None where there is no response of one turn."""
    reason: str | None
    """Why there is none."""


class Turns:
    """What a tokenizer's chat template writes around messages, or what a format writes around a prompt."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        input_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Nothing is loaded or rendered before the first text.

        Args:
            tokenizer: the policy's, of transformers, or its folder or name.
            input_template: a format such as "User: {}\\nAssistant: " that wrote the prompts in place of the chat
                template, "{}" where prompts are plain text. Raises InputError unless it has "{}" once.
            chat_template_kwargs: variables that the prompts were rendered with, such as {"enable_thinking": False}.
        """
        if input_template is not None and input_template.count("{}") != 1:
            raise InputError(f"input_template: expected a text with {{}} once, got {input_template!r}")
        self._source = tokenizer
        self._input_template = input_template
        self._variables = dict(chat_template_kwargs or {})

    def row(self, prompt: str | list[Message], text: str, *, has_prompt: bool) -> Row:
        """Reads a rendered prompt, and the response in `text`, which begins with the prompt where it `has_prompt`.

        A prompt that is messages stays as it is. Raises InputError where nothing here writes this prompt: the tokenizer
        or the variables are not those of the policy, and no row can be read. What is wrong with one response, or one
        prompt, is the row's `reason`.
        """
        read = self.prompt(prompt) if isinstance(prompt, str) else prompt
        if read is None:
            return Row(prompt, None, f"prompt: expected turns of system, user and assistant, got {_beginning(prompt)}")
        try:
            behind = self._behind(text, prompt) if has_prompt and isinstance(prompt, str) else text
            return Row(read, self.response(behind), None)
        except InputError as error:
            return Row(read, None, str(error))

    def prompt(self, text: str) -> str | list[Message] | None:
        """Reads a rendered prompt -> its messages, or its text where a format wrote it.

        None where the template wrote turns of other roles, or a message has a turn inside. Raises InputError where
        neither writes such a text.
        """
        if self._input_template is not None:
            before, after = self._input_template.split("{}")
            if len(text) < len(before + after) or not text.startswith(before) or not text.endswith(after):
                raise InputError(f"prompt: expected what {self._input_template!r} writes, got {_beginning(text)}")
            return text[len(before) : len(text) - len(after)]
        split = [messages for around in self._around if (messages := _messages(text, around)) is not None]
        if not split:
            raise InputError(
                "prompt: expected what the chat template of this tokenizer writes (is it the policy's? with the same "
                f"chat_template_kwargs?), got {_beginning(text)}"
            )
        # What is split wrong is written as another text, or has a turn inside.
        right = (
            m for m in split if self._mark_in(*(n["content"] for n in m)) is None and self._render(m, True) == text
        )
        return next(right, None)

    def response(self, text: str) -> str:
        """Reads a response as it was generated -> its own text, without special tokens at the end.

        Raises InputError on one with a special token or a turn of the template inside: what comes behind it is no part
        of an answer.
        """
        response = self._ends.sub("", text)
        if (mark := self._mark_in(response)) is not None:
            raise InputError(f"response: expected text of one turn, found {mark!r} in {_beginning(response)}")
        return response

    @cached_property
    def _tokenizer(self) -> Any:
        if isinstance(self._source, str | os.PathLike):
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(self._source)
        return self._source

    def _behind(self, text: str, prompt: str) -> str:
        if text.startswith(prompt):
            return text[len(prompt) :]
        # Some tokenizers do not give back the text that they read.
        ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        decoded = self._tokenizer.decode(ids, skip_special_tokens=False)
        if not text.startswith(decoded):
            raise InputError(
                f"query: expected a text that begins with its prompt {_beginning(prompt)} (was it cut to fit?), got "
                f"{_beginning(text)}"
            )
        return text[len(decoded) :]

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str | None:
        """What the template writes, None where it takes no such messages."""
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **self._variables
                )
            )
        except Exception:  # jinja2 raises what the template's author wrote
            return None

    def _literals(self, roles: Sequence[str], add_generation_prompt: bool) -> list[str] | None:
        """Texts before, between and behind messages of these roles."""
        words = _WORDS[1 - (roles[0] == "system") :][: len(roles)]
        chat = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
        text = self._render(chat, add_generation_prompt)
        if text is None or any(text.count(word) != 1 for word in words):
            return None
        return re.split("|".join(words), text)

    @cached_property
    def _around(self) -> "list[_Around]":
        found = []
        for system in ([], ["system"]):
            one, more = (self._literals([*system, *roles], True) for roles in (["user"], ["user", "assistant", "user"]))
            if one is not None:
                found.append(_Around(one, more[len(system) + 1 : -1] if more else []))
        if not found:
            raise InputError("tokenizer: expected one with a chat template that takes a message of the user")
        return found

    @cached_property
    def _marks(self) -> list[str]:
        """Texts that only the template places, longest first: special tokens, tokens that frame turns, whole frames."""
        added = self._tokenizer.added_tokens_decoder.values()
        special = {*self._tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        if self._input_template is not None:
            turns = [self._input_template.split("{}")[1]]
        else:
            literals = self._literals(["user", "assistant", "user"], False) or self._literals(["user"], False) or []
            frame, turns = "".join(literals), literals[1:-1]
            # Words and white space that happen to be added tokens frame nothing.
            special |= {t.content for t in added if t.content in frame and re.search(r"[^\w\s]", t.content)}
        return sorted(filter(str.strip, {*special, *(turn.strip(" ") for turn in turns)}), key=lambda m: (-len(m), m))

    def _mark_in(self, *texts: str) -> str | None:
        return next((mark for mark in self._marks if any(mark in text for text in texts)), None)

    @cached_property
    def _ends(self) -> re.Pattern[str]:
        """Special tokens at the end of a text, with white space behind each."""
        marks = "|".join(map(re.escape, self._marks))
        return re.compile(rf"(?:(?:{marks})\s*)+\Z" if marks else r"(?!)")


def rewards_of_read(
    judge: PairwiseJudge,
    keys: Sequence[Hashable],
    read: Sequence[Row],
    references: Sequence[str | None] | None,
    settings: Mapping[str, Any],
) -> RowRewards:
    """Rewards of rows, as `rewards_of_rows`; the reason of one that could not be read is that of its `Row`."""
    prompts, responses = [row.prompt for row in read], [row.response for row in read]
    rows = rewards_of_rows(judge, keys, prompts, responses, references=references, **settings)
    reasons = [row.reason or reason for row, reason in zip(read, rows.reasons, strict=True)]
    return replace(rows, reasons=reasons)


class _Around:
    """Texts around messages, of a chat with or without a message of the system."""

    def __init__(self, one: list[str], turns: list[str]) -> None:
        self.before, *self.system, self.end = one
        """Texts before the first message, behind that of the system, and behind the last."""
        self.turns = turns
        """Texts between user and assistant, and between assistant and user; none where it takes one turn only."""


def _messages(text: str, around: _Around) -> list[Message] | None:
    """Splits a rendered prompt at what is written around its messages."""
    if len(text) < len(around.before + around.end):
        return None
    if not text.startswith(around.before) or not text.endswith(around.end):
        return None
    rest, messages = text[len(around.before) : len(text) - len(around.end)], []
    for literal in around.system:
        system, found, rest = rest.partition(literal)
        if not found:
            return None
        messages.append({"role": "system", "content": system})
    roles = ("user", "assistant")
    while around.turns:
        role = roles[len(messages) - len(around.system) & 1]
        content, found, behind = rest.partition(around.turns[role == "assistant"])
        if not found:
            break
        messages.append({"role": role, "content": content})
        rest = behind
    return [*messages, {"role": "user", "content": rest}]


def _beginning(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
