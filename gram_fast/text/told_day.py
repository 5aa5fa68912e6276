"""Tells a chat template another moment than the present one, which it asks for by the function `strftime_now`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from gram_fast.text.bounded import words_of

# transformers gives templates data alone since 5.24, so that no function of ours can stand in place of its own. This
# macro does: it looks up what the function would say of each format that the template names.
_MACRO = (
    "{%- macro strftime_now(format) -%}{{ told_day[format] if format in told_day "
    "else raise_exception('the format of a date is made by the template: ' ~ format) }}{%- endmacro %}{{ '' }}"
)


def tell_day(chat_template: str, moment: str) -> Mapping[str, Any]:
    """Makes the arguments of `apply_chat_template` with which it renders as at that moment, ISO 8601.

    None are needed where the template does not ask for it.
    """
    if "strftime_now" not in chat_template:
        return {}
    told = datetime.fromisoformat(moment)
    texts = {word: told.strftime(word) for word in words_of(chat_template) if "%" in word}
    return {"chat_template": _MACRO + chat_template, "told_day": texts}
