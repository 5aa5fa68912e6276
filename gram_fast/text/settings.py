"""Settings of a judge's template: how it is answered and framed. A preset file has them before its text, as TOML:

    +++
    labels = ["Yes", "No"]
    +++
    text of the template

A file that does not begin so is all text.
"""

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from gram_fast.errors import InputError, one_line, shown_value

_FRONT = re.compile(r"\+\+\+\r?\n((?:.*?\n)??)\+\+\+\r?(?:\n|\Z)", re.DOTALL)
# Arguments of transformers' apply_chat_template itself: what render_chat gives, or would not be that template's text.
_TAKEN = (
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages",
    "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs",
    "truncation",
)  # fmt: skip


def _are_labels(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(label, str) and label for label in value)
        and value[0] != value[1]
    )


_SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "labels": ("a list of two texts that differ", _are_labels),
    "answer_prefix": ("text", lambda value: isinstance(value, str)),
    "answer_suffix": ("text", lambda value: isinstance(value, str)),
    "reasons": ("true or false", lambda value: isinstance(value, bool)),
    "frame": ("text with {content} once", lambda value: isinstance(value, str) and value.count("{content}") == 1),
    "chat_template_kwargs": ("a table of names and values", lambda value: isinstance(value, Mapping)),
}


def split_front_matter(text: str, source: str) -> tuple[Mapping[str, Any], str]:
    """Splits the text of a preset file into its settings and the template's text, which is kept byte for byte.

    A file whose first line is not `+++` has no settings and is all text. Raises InputError that names `source` where
    the second border is missing or the settings are not TOML.
    """
    if text.partition("\n")[0].rstrip("\r") != "+++":
        return {}, text
    match = _FRONT.match(text)
    if match is None:
        raise InputError(f"{source}: expected a second line +++ at the end of its settings, found none")
    try:
        return tomllib.loads(match[1]), text[match.end() :]
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source}: expected TOML between the lines +++, {one_line(error)}") from None


def check_settings(settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Checks settings of a template, values of JSON or TOML -> fields of PairTemplate.

    Raises InputError that names `source` and the setting.
    """
    for name, value in settings.items():
        if name not in _SETTINGS:
            raise InputError(f"{source}: there is no setting {name!r}: expected one of {', '.join(_SETTINGS)}")
        expected, is_right = _SETTINGS[name]
        if not is_right(value):
            raise InputError(f"{source}: {name}: expected {expected}, found {shown_value(value)}")
    check_kwargs(settings.get("chat_template_kwargs", {}), source)
    if settings.get("chat_template_kwargs") and settings.get("frame") is not None:
        raise InputError(f"{source}: a frame stands in place of the chat template: expected no chat_template_kwargs")
    return {name: tuple(value) if name == "labels" else value for name, value in settings.items()}


def check_kwargs(kwargs: Any, source: str | None = None) -> None:
    """Checks variables of a chat template, JSON values; `strftime_now` is the day that the template is told.

    Raises InputError that names `source`, where it is given, and the variable.
    """
    where = f"{source}: chat_template_kwargs" if source else "chat_template_kwargs"
    if not isinstance(kwargs, Mapping):
        raise InputError(f"{where}: expected names and values, got {type(kwargs).__name__}")
    for name, value in kwargs.items():
        if not isinstance(name, str) or name in _TAKEN:
            raise InputError(f"{where}: expected variables of the chat template, found {name!r}")
        try:
            json.dumps(value)
            if name == "strftime_now":
                datetime.fromisoformat(value)
        except (TypeError, ValueError):
            what = "a day such as '2024-07-26'" if name == "strftime_now" else "a JSON value"
            raise InputError(f"{where}: {name}: expected {what}, got {shown_value(value)}") from None
