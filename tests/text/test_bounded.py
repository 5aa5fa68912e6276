"""Chat templates that do not end, grow without end, or react to words of the text."""

import sys
import time

import pytest
from helpers.small_tokenizers import ALL, MAKE, tokenizer

from gram_fast.errors import UnsupportedModelError
from gram_fast.text.bounded import words_of
from gram_fast.text.prompts import ChatText, PairTemplate, render_chat
from gram_fast.text.tokens import PairTokenizer

MESSAGES = [{"role": "user", "content": "hello"}]
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def rendered_with(chat_template):
    tok = MAKE["gpt2"]()
    tok.chat_template = chat_template
    return render_chat(tok, MESSAGES)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (ENDLESS, "runs more than 200000 lines"),
        ("{% for i in range(10**12) %}{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{{ messages[0].content * 99 }}{% endfor %}", "more than 4194304 characters"),
        ("{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "4194304"),
        ("{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", "4194304"),
        ("{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('ab') }}", "4194304"),
    ],
)
def test_template_without_an_end_is_one_sentence(program, message):
    started, before = time.perf_counter(), sys.gettrace()
    with pytest.raises(UnsupportedModelError, match=f"^the checkpoint's chat template failed: .*{message}"):
        rendered_with(program + "{{ messages[0].content }}")
    assert time.perf_counter() - started < 20
    assert sys.gettrace() is before
    assert rendered_with("{{ messages[0].content }}") == "hello"


def test_long_template_that_ends_is_rendered():
    assert rendered_with("{% for i in range(9999) %}ab{% endfor %}{{ messages[0].content }}") == "ab" * 9999 + "hello"


def test_words_are_those_of_the_program():
    program = "it's {% if '/no_think' in m and m[\"a b\"] == 'x' -%}don't{%- endif %}{{ 'c\\'d\\n' }} isn't 'text'"
    assert words_of(program) == ["/no_think", "a b", "c'd\n"]


SWITCH = (
    "{%- set text = messages[0].content -%}"
    "{%- if '/no_think' in text -%}{%- set text = text.replace('/no_think', '') -%}{%- endif -%}"
    "{%- if 'forbidden' in text -%}{{ raise_exception('not allowed') }}{%- endif -%}"
    "<|im_start|>{{ 'user' }}\n{{ text }}<|im_end|>\n<|im_start|>{{ 'assistant' }}\n\n"
)


def test_words_to_which_the_chat_template_reacts_stay_text_and_are_flagged():
    tok, plain = MAKE["gpt2"](), MAKE["gpt2"]()
    tok.chat_template, plain.chat_template = SWITCH, SWITCH.replace("/no_think", "\ue005").replace("forb", "\ue005")
    template = PairTemplate.load("gram")
    assert ChatText.reacting_words(template, tok) == ("/no_think", "forbidden")
    pairs, expected = PairTokenizer(tok, template), PairTokenizer(plain, template)
    assert pairs.flags("please /no_think") == ("/no_think",)
    assert pairs.flags("a forbidden user") == ("forbidden",)
    texts = ("q /no_think", "forbidden", "b")
    assert pairs.whole_ids([texts])[0].tolist() == expected.whole_ids([texts])[0].tolist()


@pytest.mark.parametrize("name", ALL)
def test_usual_templates_react_to_no_word(name):
    tok, template = tokenizer(name), PairTemplate.load("gram")
    assert ChatText.reacting_words(template, tok) == ()
