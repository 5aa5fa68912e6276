"""GroupRewards in Ray Data: the judge's own rewards, in order, also where an actor ends."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from helpers.comparers import LengthComparer
from helpers.ray_cluster import Cluster
from helpers.small_models import write_judge

from gram_fast import InputError, PairwiseJudge
from gram_fast.integrations.ray_data import GroupRewards


def test_no_row_is_lost_to_an_actor_that_ends(cluster: Cluster, tmp_path: Path) -> None:
    checkpoint = write_judge(tmp_path)
    script = Path(__file__).parents[1] / "helpers" / "ray_drivers.py"
    command = [sys.executable, script, "rewards", checkpoint]
    with subprocess.Popen(
        command, env=cluster.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        assert "begun" in next(line for line in driver.stdout if "begun" in line)
        cluster.kill_one("ray::MapWorker")
        driver.stdin.close()
        found = json.loads(next(line for line in driver.stdout if line.startswith("[{")))
        assert driver.wait() == 0
    assert [row["id"] for row in found] == list(range(len(found)))
    judge = PairwiseJudge.from_pretrained(checkpoint, device="cpu")
    groups = [row["responses"][:2] for row in found]
    for row, expected in zip(found, judge.rewards([row["prompt"] for row in found], groups), strict=True):
        assert row["rewards"][:2] == pytest.approx(expected, abs=1e-5)
        assert row["rewards"][2] is None
        assert row["errors"] == [None, None, "expected a string or a list of chat messages, got NoneType"]


def test_what_has_no_reward_has_a_reason() -> None:
    rewards = GroupRewards(PairwiseJudge(LengthComparer()), prompt="q", responses="all", rewards="r", errors="why")
    messages = [[{"role": "user", "content": "p"}], None, [{"role": "user", "content": "p"}]]
    batch = pyarrow.table({"q": messages, "all": [["aaa", "b"], ["a", "b"], ["alone"]], "more": [1, 2, 3]})
    found = rewards(batch)
    assert found.column_names == ["q", "all", "more", "r", "why"]
    (best, worst), *others = found["r"].to_pylist()
    assert best > worst
    assert others == [[None, None], [None]]
    no_prompt = "expected a string or a list of chat messages, got NoneType"
    assert found["why"].to_pylist() == [
        [None, None],
        [no_prompt, no_prompt],
        ["expected at least 2 responses, got 1"],
    ]
    assert rewards(batch.slice(0, 0)).num_rows == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["p"]}, "expected a column 'responses', found 'prompt'"),
        ({"prompt": ["p"], "responses": [["a", "b"]], "errors": [0]}, "column 'errors' is there already"),
    ],
)
def test_wrong_columns(columns: dict[str, list[object]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GroupRewards(PairwiseJudge(LengthComparer()))(pyarrow.table(columns))
    with pytest.raises(InputError, match=r"batch: expected a pyarrow\.Table"):
        GroupRewards(PairwiseJudge(LengthComparer()))(columns)
