"""examples/train_a_judge.py, on its own pairs."""

import re

import train_a_judge


def test_the_judge_learns_the_style_of_the_examples_pairs(tmp_path, capsys, two_threads):
    few = tmp_path / "pairs.jsonl"
    few.write_text("".join(train_a_judge.PAIRS.read_text().splitlines(keepends=True)[:50]))
    train_a_judge.main(few, train_a_judge.gram_fast.SMALL_JUDGE, tmp_path / "my-judge")
    printed = capsys.readouterr().out
    assert "50 pairs, 0 bad, 0 contradictions; in 0 the longer response is better, in 0 the shorter one" in printed
    before, after = (int(right) for right in re.findall(r"(\d+) of 10 right", printed))
    assert after > before + 2
