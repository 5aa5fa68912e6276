"""The judge's prompt: presets and template files, rendered with the checkpoint's chat template.

    prompt, response A, response B -> PairTemplate.fill -> user message -> chat template -> whole text

A ChatText is that whole text with the slots cut out: four literals with three slots between them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from gram_fast.errors import InputError, UnsupportedModelError, one_line
from gram_fast.text.bounded import bounded_template, words_of
from gram_fast.text.digest import digest
from gram_fast.text.messages import Message
from gram_fast.text.settings import check_settings, split_front_matter
from gram_fast.text.told_day import tell_day

SLOTS = ("input", "response_a", "response_b")
VERIFIER_SLOTS = ("input", "response")
LABELS = ("A", "B")

# Shorter lines of a template ("A:") are too common in real text to say anything.
_SHORTEST_MARKER = 4


def preset_names() -> list[str]:
    """Names of the judge prompts that ship with the package, sorted."""
    folder = resources.files("gram_fast") / "presets"
    return sorted(entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt"))


@dataclass(frozen=True)
class PairTemplate:
    """Template of the judge's user message, `literals[0] + {slots[0]} + literals[1] + ...`, and how it is answered.

    It shows a pair, or one response: then it is a verifier's.
    """

    literals: tuple[str, ...]
    slots: tuple[str, ...]
    labels: tuple[str, str] = LABELS
    """Answers whose logits are read: the first for response A, or for a right response. One token each."""
    answer_prefix: str = ""
    """What the answer begins with before its label, such as "[["."""
    answer_suffix: str = ""
    """What the answer ends with behind its label, such as "]]"."""
    reasons: bool = False
    """Whether the judge writes a rationale, which stands between the prompt and the answer prefix."""
    frame: str | None = None
    """Chat around the user message, `{content}`, in place of the checkpoint's chat template."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template, beside `enable_thinking`, which says whether it `reasons`; JSON values."""

    @classmethod
    def parse(cls, text: str, source: str = "template", **settings: Any) -> "PairTemplate":
        """Parses a template with `{input}`, `{response_a}` and `{response_b}`, each exactly once, in any order.

        With `{response}` in place of the two it is a verifier's. Other braces are text. `settings`: the other fields,
        as JSON or TOML values. Raises InputError that names `source` and the slot or setting.
        """
        is_verifier = "{response}" in text and not re.search(r"\{response_[ab]\}", text)
        names = VERIFIER_SLOTS if is_verifier else SLOTS
        parts = re.split(r"\{(" + "|".join(names) + r")\}", text)
        slots = tuple(parts[1::2])
        for slot in names:
            if slots.count(slot) != 1:
                raise InputError(f"{source}: expected {{{slot}}} exactly once, found it {slots.count(slot)} times")
        return cls(tuple(parts[0::2]), slots, **check_settings(settings, source))

    @classmethod
    def load(cls, preset: str) -> "PairTemplate":
        """Loads a preset by name, or a UTF-8 preset file by path. Raises InputError where neither exists."""
        if preset in preset_names():
            return cls._of_file((resources.files("gram_fast") / "presets" / f"{preset}.txt").read_text("utf-8"), preset)
        try:
            text = Path(preset).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"template {preset}: expected UTF-8, found byte {error.start} that is not") from None
        except (OSError, ValueError):  # ValueError: a name that no file can have
            name = str(preset) if len(str(preset)) <= 80 else f"{str(preset)[:80]}..."
            presets = ", ".join(preset_names())
            raise InputError(f"there is no preset or template file {name!r}: presets are {presets}") from None
        return cls._of_file(text, preset)

    @classmethod
    def _of_file(cls, text: str, source: str) -> "PairTemplate":
        settings, text = split_front_matter(text, source)
        return cls.parse(text, source, **settings)

    @property
    def text(self) -> str:
        """Template text, as `parse` reads it."""
        slots = [f"{{{slot}}}" for slot in self.slots]
        return self.literals[0] + "".join(s + literal for s, literal in zip(slots, self.literals[1:], strict=True))

    @property
    def preset(self) -> str | None:
        """Name of the preset that it is, whatever variables the chat template has and whether it reasons, or None."""
        settings: dict[str, Any] = {"chat_template_kwargs": {}, "reasons": False}
        plain = replace(self, **settings)
        presets = ((name, replace(self.load(name), **settings)) for name in preset_names())
        return next((name for name, preset in presets if preset == plain), None)

    @property
    def is_verifier(self) -> bool:
        """Whether it shows one response rather than a pair."""
        return "response" in self.slots

    def fill(self, *values: str) -> str:
        """Fills the slots with a prompt and each response shown -> the user message of one presentation."""
        return _join(self.literals, self.slots, values)

    def chat(self, tokenizer: "ChatTokenizer", content: str) -> str:
        """Renders a user message with this content as a chat, up to the assistant's answer.

        Raises UnsupportedModelError where there is neither a frame nor a chat template.
        """
        if self.frame is not None:
            return self.frame.replace("{content}", content)
        kwargs = {"enable_thinking": self.reasons, **self.chat_template_kwargs}
        return str(render_chat(tokenizer, [{"role": "user", "content": content}], kwargs=kwargs))

    @property
    def answer_begin(self) -> str:
        """What of the answer the prompt has already: its prefix, where no rationale comes before it."""
        return "" if self.reasons else self.answer_prefix

    @property
    def markers(self) -> tuple[str, ...]:
        """Lines around the slots and the label, stripped: who writes one may pass for part of the template."""
        texts = (*self.literals[1:], self.answer_prefix, self.answer_suffix)
        lines = self.literals[0].splitlines()[-1:] + [line for text in texts for line in text.splitlines()]
        stripped = dict.fromkeys(line.strip() for line in lines)
        return tuple(line for line in stripped if len(line) >= _SHORTEST_MARKER)


class ChatTokenizer(Protocol):
    """Part of a transformers tokenizer that renders a chat."""

    chat_template: Any

    def get_chat_template(self) -> str:
        """The template that `apply_chat_template` renders."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Renders a conversation as text."""


@dataclass(frozen=True)
class ChatText:
    """Whole text of a presentation, special tokens included, as literals between slots."""

    literals: tuple[str, ...]
    slots: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Digest of the text: of every literal and the order of the slots."""
        return digest([self.literals, self.slots])

    @classmethod
    def render(cls, template: PairTemplate, tokenizer: ChatTokenizer) -> "ChatText":
        """Renders the template as one user message up to the answer's label, thinking off where it can be.

        Of a judge that reasons, up to its rationale, thinking on.

        Raises UnsupportedModelError when there is no chat template, or when it alters the text of a slot.
        """
        if template.frame is None and not tokenizer.chat_template:
            raise UnsupportedModelError(
                "the checkpoint's tokenizer has no chat template, so a judge cannot be prompted"
            )

        template = _at_one_moment(template)

        def whole_text(*values: str) -> str:
            return template.chat(tokenizer, template.fill(*values)) + template.answer_begin

        # Private-use characters stand in for the slots; they occur in no template and are not white space.
        stand_ins = {slot: f"\ue000{index}\ue001" for index, slot in enumerate(slot_names(template.slots))}
        parts = re.split(f"({'|'.join(stand_ins.values())})", whole_text(*stand_ins.values()))
        by_stand_in = {stand_in: slot for slot, stand_in in stand_ins.items()}
        text = cls(tuple(parts[0::2]), tuple(by_stand_in[part] for part in parts[1::2]))
        awkward = (" \n x {{ y }} \n\n", "\n <b> {response_a} \n", " \t z ' \" \\n \n ")[: len(template.slots)]
        if text.slots != template.slots or text.fill(*awkward) != whole_text(*awkward):
            raise UnsupportedModelError(
                "the checkpoint's chat template alters the text of the slots (many strip white space at the ends of a "
                "message): put text of the template before the first slot and after the last"
            )
        return text

    @staticmethod
    def reacting_words(template: PairTemplate, tokenizer: ChatTokenizer) -> tuple[str, ...]:
        """Words in a slot to which the chat template would react, by another text or an error, such as "/no_think"."""
        programs = tokenizer.chat_template
        source = "".join(programs.values()) if isinstance(programs, dict) else str(programs or "")
        words = [] if template.frame is not None else words_of(source)
        template = _at_one_moment(template)
        plain = ChatText.render(template, tokenizer)

        def reacts(text: str) -> bool:
            values = [text] * len(plain.slots)
            try:
                return template.chat(tokenizer, template.fill(*values)) + template.answer_begin != plain.fill(*values)
            except UnsupportedModelError:
                return True

        return tuple(word for word in words if reacts(word)) if reacts("\n".join(words)) else ()

    def fill(self, *values: str) -> str:
        """Fills the slots with a prompt and each response shown -> the whole text of one presentation."""
        return _join(self.literals, self.slots, values)

    def place(self, *values: str, index: int) -> int:
        """Where the value with this index begins in the whole text, in characters."""
        names = slot_names(self.slots)
        before = self.slots[: self.slots.index(names[index])]
        return len("".join(self.literals[: len(before) + 1])) + sum(len(values[names.index(slot)]) for slot in before)


def _at_one_moment(template: PairTemplate) -> PairTemplate:
    """The template with one moment for all renderings: a chat template may write seconds."""
    if template.frame is not None:
        return template
    kwargs = {"strftime_now": datetime.now().isoformat(), **template.chat_template_kwargs}
    return replace(template, chat_template_kwargs=kwargs)


def render_chat(
    tokenizer: ChatTokenizer,
    messages: list[Message],
    add_generation_prompt: bool = True,
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Renders messages with the tokenizer's chat template -> text, thinking off where it can be.

    `kwargs`: variables of the template; `strftime_now` is the day that it is told, ISO 8601. Raises
    UnsupportedModelError when the template fails.
    """
    variables = {"enable_thinking": False, **(kwargs or {})}
    try:
        if moment := variables.pop("strftime_now", None):
            variables |= tell_day(tokenizer.get_chat_template(), moment)
        with bounded_template():
            return tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
            )
    except Exception as error:  # jinja2 raises what the template's author wrote
        raise UnsupportedModelError(f"the checkpoint's chat template failed: {one_line(error)}") from error


def slot_names(slots: Sequence[str]) -> tuple[str, ...]:
    """The slots of a template in the order of a presentation's texts: the prompt, then each response shown."""
    return VERIFIER_SLOTS if "response" in slots else SLOTS


def _join(literals: tuple[str, ...], slots: tuple[str, ...], texts: Sequence[str]) -> str:
    values = dict(zip(slot_names(slots), texts, strict=True))
    return literals[0] + "".join(values[slot] + literal for slot, literal in zip(slots, literals[1:], strict=True))
