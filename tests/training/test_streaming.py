"""Runs that read their data while they train."""

import json

import pytest
from helpers.small_training import (
    assert_same,
    logged,
    run,
)

from gram_fast.errors import InputError


def test_streaming_reads_while_it_trains(base, unlabeled, tmp_path):
    out = run("pretrain", base, unlabeled, tmp_path / "out", streaming=True, max_steps=4, save_strategy="steps",
              save_steps=4)  # fmt: skip
    assert len(logged(out, "loss")) == 4


@pytest.mark.parametrize(
    "more",
    [
        {"max_steps": 13, "save_steps": 9},
        {"max_steps": 5, "save_steps": 4, "gradient_accumulation_steps": 4},
        {"max_steps": 13, "save_steps": 9, "dataloader_num_workers": 2},
    ],
    ids=["plain", "accumulation", "workers"],
)
def test_a_stream_goes_on_in_a_later_pass_to_the_same_weights(more, base, unlabeled, tmp_path):
    """A pass has 6 batches. Accumulation goes on across its end."""
    more = {**more, "streaming": True, "save_strategy": "steps"}
    whole = run("pretrain", base, unlabeled, tmp_path / "whole", **more)
    checkpoint = whole / f"checkpoint-{more['save_steps']}"
    again = run("pretrain", base, unlabeled, tmp_path / "again", resume_from_checkpoint=str(checkpoint), **more)
    assert_same(whole, again)


def test_a_stream_counts_what_it_leaves_out_once(base, tmp_path, caplog):
    data = tmp_path / "pairs.jsonl"
    long = json.dumps({"prompt": "p " * 300, "chosen": "a", "rejected": "b"})
    data.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n' * 3 + f'{{"prompt": "p"}}\n{long}\n')
    more = {"skip_bad": True, "streaming": True, "max_steps": 5, "cutoff_len": 200}
    run("finetune", base, data, tmp_path / "out", **more)
    assert "train_data: 1 bad rows left out" in caplog.text
    assert "train_data: 1 pairs longer than cutoff_len=200 left out" in caplog.text
    assert caplog.text.count("skipped: ") == 1


def test_a_stream_of_which_nothing_is_left_is_an_error(base, unlabeled, tmp_path, caplog):
    with pytest.raises(InputError, match=r"train_data: no pair of .* is left"):
        run("pretrain", base, unlabeled, tmp_path / "out", streaming=True, max_steps=2, cutoff_len=3)
    assert "train_data: 24 pairs longer than cutoff_len=3 left out" in caplog.text
    assert not (tmp_path / "out" / "model.safetensors").exists()
