"""The prompt that a checkpoint records: found again, and compared with what is rendered now."""

import json
import logging
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers.small_tokenizers import DATED, MAKE, tokenizer

from gram_fast.errors import InputError, UnsupportedModelError
from gram_fast.models.checkpoint import find_template, record_prompt, warn_of_another_prompt
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer

GRAM = PairTemplate.load("gram")
SETTINGS = {"labels": ("B", "A"), "answer_prefix": "[[", "chat_template_kwargs": {"date_string": "26 Jul 2024"}}


def dated(chat_template=DATED):
    tok = MAKE["llama3"]()
    tok.chat_template = chat_template
    return tok


def recorded(template, tok, include_reasoning=False):
    """The configuration of a judge that was trained with this template, as its file has it."""
    config = SimpleNamespace()
    record_prompt(config, PairTokenizer(tok, template), include_reasoning)
    return SimpleNamespace(**json.loads(json.dumps(vars(config))))


def said_of(config, tok, preset="auto", include_reasoning=False, **kwargs):
    """Warnings of a judge with that configuration and tokenizer."""
    pairs = PairTokenizer(tok, find_template(preset, config, kwargs))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_another_prompt(config, pairs, include_reasoning)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("setting", [{}, *({name: value} for name, value in SETTINGS.items())])
def test_what_is_recorded_is_found(setting):
    template = replace(GRAM, **setting)
    config = recorded(template, dated() if "chat_template_kwargs" in setting else tokenizer("llama3"))
    assert find_template("auto", config) == template
    assert config.gram_fast["preset"] == ("gram" if setting.keys() <= {"chat_template_kwargs"} else "custom")


def test_records_of_earlier_versions_are_read():
    config = SimpleNamespace(gram_fast={"preset": "gram", "template": GRAM.text, "labels": ["A", "B"]})
    assert find_template("auto", config) == GRAM
    assert said_of(config, tokenizer("llama3")) == []


@pytest.mark.parametrize(
    "record", [3, {}, {"template": 3}, {"template": "x"}, {"template": GRAM.text, "labels": ["A", "A"]}]
)
def test_a_broken_record_is_refused(record):
    with pytest.raises(UnsupportedModelError, match=r"gram_fast record"):
        find_template("auto", SimpleNamespace(gram_fast=record))


def test_given_variables_go_before_recorded_ones():
    config = recorded(
        replace(GRAM, chat_template_kwargs={"date_string": "26 Jul 2024", "x": 1}), dated(DATED + "{{x}}")
    )
    assert find_template("gram", config).chat_template_kwargs == {"date_string": "26 Jul 2024", "x": 1}
    given = find_template("auto", config, {"date_string": "1 Jan 2025"})
    assert given.chat_template_kwargs == {"date_string": "1 Jan 2025", "x": 1}


def test_the_same_prompt_is_not_mentioned(caplog):
    config = recorded(replace(GRAM, chat_template_kwargs={"date_string": "26 Jul 2024"}), dated())
    assert said_of(config, dated()) == said_of(config, dated(), preset="gram") == []
    assert caplog.records == []


def test_another_date_is_named_where_it_differs_first():
    config = recorded(replace(GRAM, chat_template_kwargs={"date_string": "26 Jul 2024"}), dated())
    (said,) = said_of(config, dated(), date_string="26 Jun 2024")
    at = "".join(config.gram_fast["literals"]).index("26 Jul") + len("26 Ju")
    assert (
        f"at character {at} it has 'n 2024\\n\\n<|eot_id|><|star', in training it had 'l 2024\\n\\n<|eot_id|>" in said
    )
    assert "chat_template_kwargs in training were {'date_string': '26 Jul 2024'}" in said


def test_another_chat_template_is_named_where_it_differs_first():
    config = recorded(GRAM, tokenizer("llama3"))
    ends = dated(tokenizer("llama3").chat_template.replace("assistant<|end_header_id|>", "judge<|end_header_id|>"))
    (said,) = said_of(config, ends)
    assert "it has 'judge<|end_header_id|>\\n\\n', in training it had 'assistant<|end_header_id'" in said
    longer = dated(tokenizer("llama3").chat_template + "{{ '[[' }}")
    assert "it has '[[', in training it had ''" in said_of(config, longer)[0]


@pytest.mark.parametrize("trained", [False, True])
def test_reasoning_that_is_read_otherwise_than_in_training_is_said(trained):
    config = recorded(GRAM, tokenizer("llama3"), trained)
    assert said_of(config, tokenizer("llama3"), include_reasoning=trained) == []
    (said,) = said_of(config, tokenizer("llama3"), include_reasoning=not trained)
    assert said.startswith(f"the judge was trained with include_reasoning={trained} and is used with {not trained}: ")


def test_another_preset_is_said_once(caplog):
    config = recorded(GRAM, tokenizer("llama3"))
    with caplog.at_level(logging.WARNING):
        assert said_of(config, tokenizer("llama3"), preset="short") == []
    assert "preset short is not the template that the checkpoint records (gram)" in caplog.text


def test_variables_beside_a_frame_are_refused(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(f"+++\nframe = '<s>{{content}}'\n+++\n{GRAM.text}")
    with pytest.raises(InputError, match=r"chat_template_kwargs: preset .*mine\.txt has a frame in place of the chat"):
        find_template(str(path), None, {"date_string": "26 Jul 2024"})
