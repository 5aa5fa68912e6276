"""The kernel benchmark from its command line, on tiny forests: what it measures, in which order, and what it keeps."""

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from helpers.ops import CPU, on_each_device

from benchmarks.kernel_speed import rivals as rivals
from benchmarks.kernel_speed import run as speed
from benchmarks.kernel_speed.options import read_options

pytestmark = pytest.mark.usefixtures("one_thread")


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, Any]:
    """What the whole benchmark prints, and the record in its last line."""
    monkeypatch.setattr("sys.argv", ["kernel_speed.py", *arguments])
    speed.main()
    text = capsys.readouterr().out
    return text, json.loads(text.splitlines()[-1])


@pytest.mark.large_memory
@on_each_device
def test_the_whole_benchmark(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if device == "cpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rival, output = "no sharing, SDPA flash, padded", tmp_path / "out.json"
    options = ["--forests", "tiny", "--heads", "small", "--rivals", rival, "--shapes", "32x32x4x2"]
    text, record = run(monkeypatch, capsys, *options, "--output", str(output))
    assert record == json.loads(output.read_text("utf-8"))
    names = [row["name"] for row in record["rows"] if row["op"] == "tree_attention"]
    assert names == ["ours", "ours, 32x32x4x2", rival]
    assert {"leaf_attention", "merge_states", "label_logits", "add_rms_norm", "rotary_into_cache", "swiglu"} < {
        row["op"] for row in record["rows"]
    }
    assert "problem" not in str(record["rows"])
    for words in ("ceilings:", "heads of small (6/2, 64)", "the best rival takes"):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--forests", "jungle"], "--forests: invalid choice: 'jungle' .*one-against-all"),
        (["--heads", "gpt"], "--heads: invalid choice: 'gpt' .*qwen3-8b"),
        (["--rivals", "fast"], "--rivals: invalid choice: 'fast' .*FlexAttention"),
        (["--shapes", "128x64"], "--shapes: expected MxNxWARPSxSTAGES, such as 128x64x8x3, got '128x64'"),
        (["--forests", "real"], "--forests real: needs --data"),
    ],
)
def test_what_cannot_be_chosen(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kernel_speed.py", *arguments])
    with pytest.raises(SystemExit):
        read_options(CPU, "")
    assert re.search(message, capsys.readouterr().err)


def test_slow_rivals_are_measured_after_the_ops(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # which would be slow
    monkeypatch.setattr(speed, "RIVALS", {"FlexAttention": rivals.masked_sdpa, "quick": rivals.masked_sdpa})
    monkeypatch.setattr("benchmarks.kernel_speed.options.RIVALS", speed.RIVALS)
    _, record = run(monkeypatch, capsys)
    names = [row["name"] for row in record["rows"]]
    assert names[:3] == ["ours", "extension", "quick"]
    assert names[-1] == "FlexAttention"
    assert record["rows"][-1]["shape"] == record["rows"][0]["shape"]


def test_what_was_measured_before_it_was_stopped_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(speed, "RIVALS", {"quick": rivals.masked_sdpa, "slow": stopped})
    monkeypatch.setattr("benchmarks.kernel_speed.options.RIVALS", speed.RIVALS)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    output = tmp_path / "out.json"
    text, record = run(monkeypatch, capsys, "--output", str(output))
    assert [row["name"] for row in record["rows"]] == ["ours", "extension", "quick"]
    assert record == json.loads(output.read_text("utf-8"))
    assert "stopped before the end" in text
    assert "the best rival takes" in text
