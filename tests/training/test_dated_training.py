"""Training with a chat template that writes today's date: a trained judge reads its training text on any day."""

import json
import shutil
import warnings

import pytest
import torch
from helpers.days import set_today
from helpers.small_training import run, write_checkpoint, write_pairs
from safetensors.torch import load_file

from gram_fast import PairwiseJudge
from gram_fast.training.small_judge.tokenizer import QWEN_CHAT_TEMPLATE

SYSTEM = '<|im_start|>system\n{{ date_string or strftime_now("%d %b %Y") }}<|im_end|>\n'
FIRST, SECOND = (2030, 1, 2), (2031, 12, 24)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("base"))
    (folder / "chat_template.jinja").write_text(SYSTEM + QWEN_CHAT_TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "labeled.jsonl", 16)


def record_of(folder):
    return json.loads((folder / "config.json").read_text())["gram_fast"]


@pytest.mark.parametrize("more", [{}, {"lora": {"r": 2}}])
def test_the_date_of_training_is_recorded_and_read_again(base, labeled, tmp_path, monkeypatch, more):
    set_today(monkeypatch, *FIRST)
    with pytest.warns(UserWarning, match=r"fixed and recorded as chat_template_kwargs={'date_string': '02 Jan 2030'}"):
        out = run("finetune", base, labeled, tmp_path / "out", max_steps=1, **more)
    assert record_of(out)["chat_template_kwargs"] == {"date_string": "02 Jan 2030"}
    set_today(monkeypatch, *SECOND)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = PairwiseJudge.from_pretrained(out).comparer.tokenizer.text
    assert text.literals[0].startswith("<|im_start|>system\n02 Jan 2030<|im_end|>")
    assert list(text.literals) == record_of(out)["literals"]


def test_a_resumed_run_goes_on_with_the_date_of_its_beginning(base, labeled, tmp_path, monkeypatch):
    set_today(monkeypatch, *FIRST)
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    with pytest.warns(UserWarning, match="02 Jan 2030"):
        out = run("finetune", base, labeled, tmp_path / "out", **options)
    expected = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    shutil.rmtree(out / "checkpoint-4")
    set_today(monkeypatch, *SECOND)
    run("finetune", base, labeled, out, resume_from_checkpoint=True, **options)
    assert record_of(out)["chat_template_kwargs"] == {"date_string": "02 Jan 2030"}
    after = load_file(out / "model.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-6)


def test_a_given_date_is_trained_with(base, labeled, tmp_path):
    given = {"date_string": "26 Jul 2024"}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the chat template writes")
        out = run("scalar", base, labeled, tmp_path / "out", max_steps=1, chat_template_kwargs=given)
    assert record_of(out)["chat_template_kwargs"] == given
