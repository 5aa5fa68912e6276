"""Reading of benchmarks and of results: the forms that they come in, and what a bad row is told."""

import json
from datetime import datetime

import pyarrow
import pyarrow.parquet
import pytest
from helpers.benchmark_rows import refuse, result, write

from gram_fast.errors import InputError
from gram_fast.evaluation import BENCHMARKS, judgebench, rewardbench, rmbench
from gram_fast.evaluation.rows import VOTE_FIELDS, read_benchmark_pairs, read_results

GRAM_ROW = {"pair_id": "x", "source": "livecodebench", "prompt": "q", "chosen": "right", "rejected": "wrong"}
OFFICIAL_ROW = {
    "pair_id": "x",
    "source": "livecodebench",
    "question": "q",
    "response_A": "wrong",
    "response_B": "right",
    "label": "B>A",
}
RM_ROW = {"id": 8, "domain": "chat", "prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"]}
RM_ROWS = [
    {**RM_ROW, "chosen": c, "rejected": r, "matrix_id": f"{i}-{j}"}
    for i, c in enumerate("abc")
    for j, r in enumerate("xyz")
]
RB_ROW = {"id": 1, "subset": "hep-go", "prompt": [{"role": "user", "content": "q"}], "chosen": "c", "rejected": "r"}


def texts(benchmark, path):
    pairs = [pair.texts for pair in read_benchmark_pairs(benchmark, path, refuse)]
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


@pytest.mark.parametrize("as_array", [True, False])
def test_data_in_gram_and_in_official_form_are_the_same_pairs(tmp_path, as_array):
    for row in (GRAM_ROW, OFFICIAL_ROW):
        path = write(tmp_path / "data", [row, row], as_array)
        assert texts(judgebench, path) == [("q", "right", "wrong")] * 2
    nine = [("q", c, r) for c in "abc" for r in "xyz"]
    for rows in ([RM_ROW], RM_ROWS):
        assert texts(rmbench, write(tmp_path / "data", rows, as_array)) == nine
    first, second = (
        read_benchmark_pairs(rmbench, write(tmp_path / "data", rows), refuse) for rows in ([RM_ROW], RM_ROWS)
    )
    assert [pair.texts.fields for pair in first] == [pair.texts.fields for pair in second]
    assert len(texts(rewardbench, write(tmp_path / "data", [RB_ROW], as_array))) == 1


def test_the_files_of_single_domains_have_a_subset(tmp_path):
    row = {name: value for name, value in RM_ROW.items() if name != "domain"} | {"subset": "alpacaeval"}
    pairs = read_benchmark_pairs(rmbench, write(tmp_path / "data", [row]), refuse)
    assert {pair.place.group for pair in pairs} == {"alpacaeval"}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("rewardbench", {**RB_ROW, "subset": "nope"}, r"line 2: subset: expected one of RewardBench's.* got 'nope'"),
        (
            "rewardbench",
            {"prompt": "p", "chosen": "c"},
            "line 2: expected a field 'rejected', found 'prompt', 'chosen'",
        ),
        (
            "rewardbench",
            {**RB_ROW, "chosen": 3},
            "line 2: chosen: expected a string or a list of chat messages, got int",
        ),
        ("judgebench", {**GRAM_ROW, "source": "nope"}, "line 2: source: expected one that contains mmlu-pro"),
        ("judgebench", {**GRAM_ROW, "source": None}, "line 2: source: expected a string, got NoneType"),
        ("judgebench", {**OFFICIAL_ROW, "label": "A=B"}, "line 2: label: expected 'A>B' or 'B>A', got 'A=B'"),
        ("judgebench", [1], "line 2: expected a JSON object, got list"),
        ("rmbench", {**RM_ROW, "chosen": "one"}, "line 2: chosen: expected a list of three responses, or one response"),
        ("rmbench", {**RM_ROW, "rejected": ["x", "y"]}, "line 2: rejected: expected a list of three responses"),
        ("rmbench", {**RM_ROWS[0], "matrix_id": "0-3"}, "line 2: matrix_id: expected 'i-j' with i and j from 0 to 2"),
        ("rmbench", {**RM_ROWS[0], "id": 9}, "line 2, pair 0-0: expected each of the pairs .* of item chat 9 once"),
    ],
)
def test_a_bad_row_is_named_and_can_be_skipped(tmp_path, name, row, message):
    good = {"rewardbench": RB_ROW, "judgebench": GRAM_ROW, "rmbench": RM_ROW}[name]
    path = write(tmp_path / "data.jsonl", [good, row])
    with pytest.raises(InputError, match=message):
        read_benchmark_pairs(BENCHMARKS[name], path, refuse)
    errors = []
    assert len(read_benchmark_pairs(BENCHMARKS[name], path, errors.append)) == (9 if name == "rmbench" else 1)
    assert len(errors) == 1


def test_the_published_parquet_is_read_and_what_is_no_json_is_named(tmp_path):
    own = {
        "prompt": "q",
        "chosen": "c",
        "chosen_model": "m",
        "rejected": "r",
        "rejected_model": "n",
        "subset": "hep-go",
    }
    path = tmp_path / "filtered-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**own, "id": k} for k in range(2)]), path)
    pairs = read_benchmark_pairs(rewardbench, str(path), refuse)
    assert [(pair.where, pair.texts.fields) for pair in pairs] == [
        (f"{path} row {k + 1}", {**own, "id": k}) for k in range(2)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**own, "at": datetime(2024, 1, 1)}]), path)
    with pytest.raises(InputError, match=r"row 1: expected fields that are JSON: Object of type datetime"):
        read_benchmark_pairs(rewardbench, str(path), refuse)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected at least one pair of judgebench, found none"),
        (b"[{]", "line 1: expected JSON, "),
        (json.dumps(GRAM_ROW).encode() + b"\n{", "line 2: expected JSON, "),
        (b"\xff", "line 1: expected UTF-8, found the byte 0xff"),
        (None, "cannot read .*: there is no such file"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    path = tmp_path / "data"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_benchmark_pairs(judgebench, str(path), refuse)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score_chosen": None}, "line 2: score_chosen: expected a number from 0 to 1, got None"),
        ({"score_rejected": float("nan")}, "line 2: score_rejected: expected a number from 0 to 1, got nan"),
        ({"score_chosen": True}, "line 2: score_chosen: expected a number from 0 to 1, got True"),
        ({"p_chosen_in_slot_b": 2}, "line 2: p_chosen_in_slot_b: expected a number from 0 to 1, got 2"),
        ({"correct": False}, "line 2: correct: expected True from the two scores, got False"),
        ({"correct": 1}, "line 2: correct: expected True from the two scores, got 1"),
        ({"source": 5}, "line 2: source: expected a string, got int"),
    ],
)
def test_a_bad_result_is_named(tmp_path, change, message):
    row = result(0.9, (0.9, 0.9), source="livecodebench").fields
    with pytest.raises(InputError, match=message):
        read_results(judgebench, write(tmp_path / "results.jsonl", [row, {**row, **change}]))


@pytest.mark.parametrize("votes", [[1, 0], [1, 0, -1], [True, 0, 0], "100"])
def test_counts_of_votes_that_are_none_are_an_error(votes, tmp_path):
    fields = {**result(0.9, subset="hep-go").fields, VOTE_FIELDS[1]: votes}
    with pytest.raises(InputError, match="votes_chosen_in_slot_b: expected the numbers of votes"):
        read_results(rewardbench, write(tmp_path / "results.jsonl", [fields]))
