"""Dates that a chat template writes into the judge's prompt: found, by rendering on two days, and fixed.

transformers gives templates the function `strftime_now`. Llama 3.2's writes today's date where it is not given a
`date_string`; the same pair then has another score tomorrow.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from gram_fast.text.prompts import ChatTokenizer, PairTemplate

# Two moments of which no part is equal.
_MOMENTS = ("2001-02-03T04:05:06", "2018-11-27T21:47:38")


def date_remedy(template: PairTemplate, tokenizer: ChatTokenizer) -> Mapping[str, str] | None:
    """Finds the chat_template_kwargs that fix the date of today in the judge's prompt.

    None where the prompt does not change with the date.
    """
    kwargs = template.chat_template_kwargs

    def on(moment: str, **more: str) -> str:
        dated = replace(template, chat_template_kwargs={**kwargs, "strftime_now": moment, **more})
        return dated.chat(tokenizer, "x")

    if template.frame is not None or "strftime_now" in kwargs or on(_MOMENTS[0]) == on(_MOMENTS[1]):
        return None
    today = datetime.now()
    by_name = {"date_string": today.strftime("%d %b %Y")}
    if {on(moment, **by_name) for moment in _MOMENTS} == {on(today.isoformat())}:
        return by_name
    return {"strftime_now": today.date().isoformat()}


def fix_date(template: PairTemplate, tokenizer: ChatTokenizer) -> PairTemplate:
    """The template with the date of today fixed, and a warning; the template itself where nothing needs to be."""
    remedy = date_remedy(template, tokenizer)
    if remedy is None:
        return template
    warnings.warn(
        f"the chat template writes today's date into the judge's prompt: fixed and recorded as chat_template_kwargs="
        f"{remedy}",
        stacklevel=2,
    )
    return replace(template, chat_template_kwargs={**template.chat_template_kwargs, **remedy})
