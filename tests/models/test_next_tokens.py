"""What a model expects behind the judge's prompt, and prompts that do not end where a label is read."""

import logging
import warnings

import pytest
import torch
from helpers.dense import dense_runner, save_in_shards
from helpers.small_models import VOCAB, tiny_model, tiny_tokenizer, write_judge
from helpers.small_tokenizers import MAKE

from gram_fast.commands.doctor import checkpoint
from gram_fast.judge import PairwiseJudge
from gram_fast.models.checkpoint import record_prompt
from gram_fast.models.next_tokens import NextTokens
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.thinking import is_thinking
from gram_fast.text.tokens import PairTokenizer


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_all_tokens_are_those_of_transformers(tmp_path, family, tied):
    model = save_in_shards(tmp_path, family, tie_word_embeddings=tied)
    ids = torch.arange(3, 40) % VOCAB
    expected = model(ids[None]).logits[0, -1]
    runner = dense_runner(tmp_path, model.config)
    torch.testing.assert_close(runner.next_logits(ids), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(runner.next_logits(ids)[[5, 7]], runner.plain_logits(ids), atol=1e-5, rtol=0)
    torch.testing.assert_close(TransformersRunner(model, (5, 7), "auto").next_logits(ids), expected)


def test_output_embedding_is_read_in_chunks(tmp_path, monkeypatch):
    model = save_in_shards(tmp_path, "qwen3")
    monkeypatch.setattr("gram_fast.models.dense.weights._CHUNK", 20)
    chunks = list(dense_runner(tmp_path, model.config).model.read_output())
    assert [len(rows) for rows in chunks] == [20, 20, 20, 20, 16]
    torch.testing.assert_close(torch.cat(chunks), model.lm_head.weight, atol=0, rtol=0)


def expecting(label: str):
    """A model that expects the label, or all but it, behind the prompt of the known answer; and its tokenizer."""
    tok = tiny_tokenizer()
    model = tiny_model("qwen3", vocab_size=len(tok), max_position_embeddings=4096, tie_word_embeddings=False)
    label_id = tok.convert_tokens_to_ids(label)
    model.lm_head.weight[label_id] = 0
    comparer = PairwiseJudge.from_model(model, tok).comparer
    ids = comparer.tokenizer.whole_ids([("What is the capital of France?", "Paris.", "Lyon.")])[0]
    hidden = model.base_model(torch.from_numpy(ids).long()[None]).last_hidden_state[0, -1]
    model.lm_head.weight[label_id] = 20 * hidden / hidden.norm()
    return model, tok


def test_judge_that_expects_a_label_is_not_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "gram_fast"):
        model, tok = expecting("B")
        caplog.clear()
        judge = PairwiseJudge.from_model(model, tok)
    assert not caplog.records
    found = NextTokens.of(judge.comparer.tokenizer, judge.comparer.runner)
    assert (found.rank, found.likely[0], found.problem) == (0, "B", None)
    assert len(found.likely) == 5


def test_judge_that_expects_no_label_is_warned_of_with_the_prompts_end(caplog):
    model, tok = expecting("*")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "gram_fast"):
        judge = PairwiseJudge.from_model(model, tok)
    found = NextTokens.of(judge.comparer.tokenizer, judge.comparer.runner)
    assert found.likely[0] == "*"
    assert found.rank >= 20
    (warned,) = [record.getMessage() for record in caplog.records]
    assert warned == found.problem
    assert repr(judge.comparer.tokenizer.text.literals[-1][-60:]) in warned
    assert f"the model expects '*', {found.likely[1]!r}" in warned
    assert "neither 'A' nor 'B'" in warned
    rows = dict(checkpoint(judge.comparer))
    assert "'*'" in rows["next tokens"]
    assert f"number {found.rank + 1}" in rows["next tokens"]
    assert rows["prompt ends in"] == repr(found.prompt_end)
    assert rows["tokenizer"] == "samples of text come back from their token ids"


def test_judge_with_the_prompt_that_it_records_is_not_warned_of(caplog):
    model, tok = expecting("*")
    for preset, warns in (("short", False), ("gram", True)):
        record_prompt(model.config, PairTokenizer(tok, PairTemplate.load("short")))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "gram_fast.comparing"):
            PairwiseJudge.from_model(model, tok, preset=preset)
        assert ("the model expects" in caplog.text) == warns


def test_loaded_judge_is_warned_of_once_whatever_the_devices(tmp_path, caplog):
    write_judge(tmp_path)
    with caplog.at_level(logging.WARNING, "gram_fast.comparing"):
        PairwiseJudge.from_pretrained(tmp_path, device=["cpu", "cpu"])
    assert len(caplog.records) == 1


TEMPLATE = (
    "Say <think> first.\n\n{input}\n\nOne:\n\n{response_a}\n\nTwo:\n\n{response_b}\n\nWrite your answer, no <think>: "
)


def read(chat_template, **settings):
    tok = MAKE["qwen"]()
    tok.chat_template = chat_template
    template = PairTemplate.parse(TEMPLATE, **settings)
    return PairTokenizer(tok, template)


def test_prompt_that_ends_inside_a_thinking_block_is_warned_of_with_its_end():
    opened = "{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    with pytest.warns(UserWarning, match=r"ends inside a thinking block, in '.*assistant.n<think>': .*answer_prefix"):
        assert read(opened).ends_in_thinking


@pytest.mark.parametrize(
    ("end", "settings"),
    [
        ("", {}),
        ("<think>\n\n</think>\n\n", {}),
        ("<think>\n", {"answer_prefix": "</think>\n"}),
    ],
)
def test_prompt_that_does_not_is_not(end, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = read("{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n" + end, **settings)
    assert not pairs.ends_in_thinking


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("<think>", True),
        ("[THINK]", True),
        ("<seed:think>\n", True),
        ("<thinking>x</thinking><thinking>", True),
        ("[THINK][/THINK]", False),
        ("<seed:think></seed:think>", False),
        ("</think>", False),
        ("<thinks>", False),
        ("", False),
    ],
)
def test_tags_of_thinking(end, expected):
    assert is_thinking(end) == expected
