"""The date of today in a chat template: found, and fixed to the text that it renders today."""

import warnings
from dataclasses import replace
from datetime import datetime

import pytest
from helpers.days import set_today
from helpers.small_tokenizers import DATED, LLAMA3, MAKE, tokenizer

from gram_fast.errors import InputError, UnsupportedModelError
from gram_fast.text.dates import date_remedy, fix_date
from gram_fast.text.prompts import ChatText, PairTemplate
from gram_fast.text.settings import check_kwargs
from gram_fast.text.tokens import PairTokenizer

GRAM = PairTemplate.load("gram")
OWN_NAME = DATED.replace("date_string", "today")
SECONDS = DATED.replace('"%d %b %Y"', '"%d.%m.%Y %H h"')


def dated(chat_template=DATED):
    tok = MAKE["llama3"]()
    tok.chat_template = chat_template
    return tok


@pytest.mark.parametrize(("chat_template", "name"), [(DATED, "date_string"), (OWN_NAME, "strftime_now")])
def test_fixed_date_is_today_s_and_stays(monkeypatch, chat_template, name):
    tok = dated(chat_template)
    now = ChatText.render(GRAM, tok)
    assert list(date_remedy(GRAM, tok)) == [name]
    with pytest.warns(UserWarning, match=f"fixed and recorded as chat_template_kwargs={{'{name}'"):
        fixed = fix_date(GRAM, tok)
    assert ChatText.render(fixed, tok) == now
    set_today(monkeypatch, 2031, 12, 24)
    assert ChatText.render(GRAM, tok) != now
    assert "24 Dec 2031" in ChatText.render(GRAM, tok).literals[0]
    assert ChatText.render(fixed, tok) == now
    assert date_remedy(fixed, tok) is None
    assert fix_date(fixed, tok) is fixed


def test_another_format_is_not_taken_for_the_date_string():
    """Its date_string would be written in another form than what is rendered today."""
    assert list(date_remedy(GRAM, dated(SECONDS))) == ["strftime_now"]


@pytest.mark.parametrize("kwargs", [{"date_string": "26 Jul 2024"}, {"strftime_now": "2024-07-26"}])
def test_a_given_date_is_rendered(kwargs):
    template = replace(GRAM, chat_template_kwargs=kwargs)
    assert "Today Date: 26 Jul 2024\n" in ChatText.render(template, dated()).literals[0]
    assert date_remedy(template, dated()) is None


@pytest.mark.parametrize("name", ["llama3", "qwen", "llama2", "deepseek"])
def test_no_date_needs_no_remedy(name):
    assert date_remedy(GRAM, tokenizer(name)) is None


def test_a_moment_does_not_pass_for_a_changed_slot_or_a_word_that_is_reacted_to():
    tok = dated(DATED.replace("%d %b %Y", "%f"))
    assert ChatText.render(GRAM, tok).slots == GRAM.slots
    assert ChatText.reacting_words(GRAM, tok) == ()


def test_a_format_that_the_template_makes_is_an_error():
    with pytest.raises(UnsupportedModelError, match="the format of a date is made by the template: %Y"):
        ChatText.render(GRAM, dated("{{ strftime_now('%' ~ 'Y') }}" + LLAMA3))


def test_a_branch_that_the_judge_does_not_take_needs_no_remedy():
    """That the template names strftime_now says nothing: only what it writes counts."""
    assert date_remedy(GRAM, dated("{% if tools %}{{ strftime_now('%Y') }}{% endif %}" + LLAMA3)) is None


def test_judge_warns_with_the_remedy():
    with pytest.warns(
        UserWarning, match=r"today's date .* fix it, as with chat_template_kwargs={'date_string': '"
    ) as got:
        pairs = PairTokenizer(dated(), GRAM)
    assert len(got) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PairTokenizer(dated(), replace(GRAM, chat_template_kwargs=pairs.date_remedy))


def test_a_variable_that_the_template_lacks_is_named():
    with pytest.warns(UserWarning, match="the checkpoint's chat template has no 'date_sting', which changes nothing"):
        PairTokenizer(tokenizer("llama3"), replace(GRAM, chat_template_kwargs={"date_sting": "26 Jul 2024"}))


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        (["date_string"], "expected names and values, got list"),
        ({3: "x"}, "expected variables of the chat template, found 3"),
        ({"chat_template": "{{ x }}"}, "expected variables of the chat template, found 'chat_template'"),
        ({"tokenize": True}, "expected variables of the chat template, found 'tokenize'"),
        ({"date_string": datetime(2024, 7, 26)}, "date_string: expected a JSON value, got datetime"),
        ({"strftime_now": "26 Jul 2024"}, "strftime_now: expected a day such as '2024-07-26', got '26 Jul 2024'"),
        ({"strftime_now": 3}, "strftime_now: expected a day such as '2024-07-26', got 3"),
    ],
)
def test_bad_variables_are_named(kwargs, said):
    with pytest.raises(InputError) as error:
        check_kwargs(kwargs)
    assert str(error.value).startswith(f"chat_template_kwargs: {said}")
