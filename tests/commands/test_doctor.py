"""What doctor says of a judge's prompt."""

import pytest
from helpers.days import set_today
from helpers.small_models import tiny_model, tiny_tokenizer
from helpers.verifiers import verifier_tokenizer

from gram_fast import PairwiseJudge
from gram_fast.commands import doctor
from gram_fast.training.small_judge.tokenizer import QWEN_CHAT_TEMPLATE

DATED = '<|im_start|>system\n{{ date_string or strftime_now("%d %b %Y") }}<|im_end|>\n' + QWEN_CHAT_TEMPLATE


def judge_of(tokenizer, **options):
    model = tiny_model("qwen3", vocab_size=len(tokenizer), max_position_embeddings=4096)
    return PairwiseJudge.from_model(model, tokenizer, **options)


def test_a_date_is_shown_with_its_remedy(monkeypatch):
    set_today(monkeypatch, 2030, 1, 2)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = DATED
    with pytest.warns(UserWarning, match="today's date"):
        dated = judge_of(tokenizer)
    rows = dict(doctor.checkpoint(dated.comparer))
    assert (
        rows["date"] == "today's is in the prompt: fix it, as with chat_template_kwargs={'date_string': '02 Jan 2030'}"
    )
    fixed = judge_of(tokenizer, chat_template_kwargs={"date_string": "26 Jul 2024"})
    assert fixed.comparer.tokenizer.text.literals[0].startswith("<|im_start|>system\n26 Jul 2024<|im_end|>")
    assert "date" not in dict(doctor.checkpoint(fixed.comparer))


def test_a_verifier_is_shown_with_its_labels_and_both_known_answers():
    tokenizer = verifier_tokenizer()
    judge = judge_of(tokenizer, preset="verifier")
    rows = dict(doctor.checkpoint(judge.comparer))
    yes, no = tokenizer.convert_tokens_to_ids(["Yes", "No"])
    assert rows["labels"] == f"Yes = {yes}, No = {no}"
    assert all(rows[f"known answer, response {k}"].startswith("right: logits") for k in (1, 2))
