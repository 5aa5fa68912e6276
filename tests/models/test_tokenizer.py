"""Tokenizers of checkpoints are those of their tokenizer.json, whatever class the checkpoint names."""

import json
import logging

import pytest
from helpers.small_models import CONFIGS, tiny_model, write_judge
from helpers.small_tokenizers import MAKE
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from gram_fast.errors import InputError, UnsupportedModelError
from gram_fast.judge import PairwiseJudge
from gram_fast.models.tokenizer import load_tokenizer

TEXT = "Is it so?\n\n  It's 12345 - yes.\tÉtude, 中文; привет!\n"


def write(folder, name, tokenizer_class, **settings):
    """A checkpoint's tokenizer of that kind, published under that class, and a configuration of Llama's."""
    MAKE[name]().save_pretrained(folder)
    CONFIGS["llama"]().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": tokenizer_class, **settings}))
    return str(folder)


def ids_of_file(name: str) -> list[int]:
    return Tokenizer.from_file(f"{name}/tokenizer.json").encode(TEXT, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("kind", "tokenizer_class"),
    [
        ("deepseek", "LlamaTokenizerFast"),
        ("qwen", "LlamaTokenizer"),
        ("llama3", "Qwen2Tokenizer"),  # other runs of digits
        ("llama3", "LlamaTokenizerFast"),
        ("unigram", "LlamaTokenizerFast"),
        ("llama2", "Qwen2TokenizerFast"),
    ],
)
def test_class_that_reads_text_differently_gives_way_to_the_file(tmp_path, caplog, kind, tokenizer_class):
    name = write(tmp_path, kind, tokenizer_class)
    theirs = AutoTokenizer.from_pretrained(name)
    # transformers 5.24 reads more files itself than 5.17 did; then nothing need be said.
    differs = theirs(TEXT, add_special_tokens=False)["input_ids"] != ids_of_file(name)
    assert differs or tokenizer_class in ("LlamaTokenizer", "LlamaTokenizerFast")
    with caplog.at_level(logging.WARNING, "gram_fast"):
        tok = load_tokenizer(name)
    assert tok(TEXT, add_special_tokens=False)["input_ids"] == ids_of_file(name)
    assert tok.decode(tok(TEXT, add_special_tokens=False)["input_ids"]).strip() == TEXT.strip()
    assert (f"is read as it is: transformers' {type(theirs).__name__}" in caplog.text) == differs
    # What the configuration says beside the file stays.
    made = MAKE[kind]()
    assert (tok.chat_template, tok.eos_token, tok.bos_token) == (made.chat_template, made.eos_token, made.bos_token)


@pytest.mark.parametrize(
    ("kind", "tokenizer_class", "settings"),
    [
        ("qwen", "Qwen2TokenizerFast", {}),
        ("gpt2", "GPT2Tokenizer", {}),
        ("gpt2", "GPT2Tokenizer", {"add_prefix_space": True}),
        ("llama2", "LlamaTokenizerFast", {}),
        ("llama2", "LlamaTokenizer", {"legacy": True}),
        ("llama2", "LlamaTokenizer", {"add_prefix_space": False}),
        ("metaspace_first", "LlamaTokenizerFast", {"legacy": False}),
        ("deepseek", "PreTrainedTokenizerFast", {}),
        ("llama3", "PreTrainedTokenizerFast", {"extra_special_tokens": ["<|more|>"]}),
    ],
)
def test_class_of_the_file_and_its_options_stay(tmp_path, caplog, kind, tokenizer_class, settings):
    name = write(tmp_path, kind, tokenizer_class, **settings)
    with caplog.at_level(logging.WARNING, "gram_fast"):
        tok = load_tokenizer(name)
    assert type(tok) is type(AutoTokenizer.from_pretrained(name))
    assert tok.get_vocab() == AutoTokenizer.from_pretrained(name).get_vocab()
    assert not caplog.records


def test_words_that_merges_do_not_make_count_as_well(tmp_path):
    # Llama 3 takes entries of the vocabulary as they are, before it merges; no sample need have such a word.
    tok = MAKE["qwen"]()
    spec = json.loads(tok.backend_tokenizer.to_str())
    spec["model"]["ignore_merges"] = True
    name = write(tmp_path, "qwen", "Qwen2Tokenizer")
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert load_tokenizer(name).backend_tokenizer.model.ignore_merges
    assert not AutoTokenizer.from_pretrained(name).backend_tokenizer.model.ignore_merges


def test_judge_reads_what_the_file_says(tmp_path):
    name = write(tmp_path, "deepseek", "LlamaTokenizerFast")
    tiny_model("llama", vocab_size=1000, max_position_embeddings=2048).save_pretrained(tmp_path)
    judge = PairwiseJudge.from_pretrained(name)
    # These differ in white space alone.
    assert judge.compare("q", "a b c", "abc", orders="ab").p != judge.compare("q", "abc", "a b c", orders="ab").p
    ids = judge.comparer.tokenizer.whole_ids([("q?", "one\n\ntwo", "three")])[0]
    assert "one\n\ntwo" in MAKE["deepseek"]().decode(ids)


def test_tokenizer_that_panics_is_one_sentence(tmp_path):
    name = write(tmp_path, "unigram", "PreTrainedTokenizerFast")
    path = tmp_path / "tokenizer.json"
    broken = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": broken}))
    with pytest.raises(UnsupportedModelError, match=r"^cannot load a tokenizer from .*: Precompiled: .*$"):
        load_tokenizer(name)


def test_tokenizer_of_another_folder_is_used_with_its_chat_template(tmp_path):
    base = tmp_path / "base"
    write(base, "llama3", "PreTrainedTokenizerFast")
    judge = PairwiseJudge.from_pretrained(write_judge(tmp_path / "judge", vocab_size=1000), tokenizer=str(base))
    text = judge.comparer.tokenizer.text.fill("q", "a", "b")
    assert text.startswith("<|begin_of_text|><|start_header_id|>user")
    expected = MAKE["llama3"]()(text, add_special_tokens=False)["input_ids"]
    assert judge.comparer.tokenizer.whole_ids([("q", "a", "b")])[0].tolist() == expected
    assert 0 < judge.compare("q", "a", "b").p < 1
    with pytest.raises(InputError, match="nothing"):
        PairwiseJudge.from_pretrained(tmp_path / "judge", tokenizer=str(tmp_path / "nothing"))
