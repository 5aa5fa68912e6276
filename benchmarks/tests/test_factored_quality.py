"""The benchmark of factored verdicts: what it measures of a judge, and the tables that it makes of it."""

import pytest
from helpers.factored import write_factored_judge
from rich.console import Console

from benchmarks.factored_quality import ARMS, TESTS, losses, on_groups, on_pairs, tables
from benchmarks.two_modes import agreement
from gram_fast import PairwiseJudge

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [{"kind": f"k{n % 2}", "prompt": f"Say {n}.", "chosen": f"{n}", "rejected": "no"} for n in range(6)]


def test_orders_agree_in_their_firsts_and_by_tau():
    same, turned = (0, 1, 2), (2, 1, 0)
    assert agreement([[same, same, same]]) == {"same_first": 1, "same_first_rejudged": 1, "tau": pytest.approx(1)}
    found = agreement([[same, turned, same], [turned, same, (1, 2, 0)]])
    assert found == {"same_first": 0, "same_first_rejudged": 0.5, "tau": pytest.approx(-1)}


def test_both_modes_of_a_judge_are_measured_and_shown(tmp_path):
    judge = PairwiseJudge.from_pretrained(write_factored_judge(tmp_path / "judge"))
    results = {test: {mode: on_pairs(judge, ROWS, mode) for mode in ARMS["both"]} for test in TESTS}
    of_kinds = results["worded"]["full"]["by_kind"]
    assert results["worded"]["full"]["accuracy"] == pytest.approx(sum(of_kinds.values()) / 2)
    assert results["worded"]["full"] != results["worded"]["factored"]
    prompt, candidates = "Say hi.", ["hi", "hello", "no", "yes", "hi there"]
    groups = on_groups(judge, [(prompt, candidates)])
    assert groups["factored_right"] == (judge.rank(prompt, candidates, mode="factored").order[0] == 0)
    assert groups["rejudged_right"] == (judge.rank(prompt, candidates, mode="factored", rejudge=4).order[0] == 0)
    found = {"full": [results], "both": [{**results, "groups": groups}]}
    assert len(losses(found)) == 4
    console = Console(width=200, record=True)
    for table in tables(found):
        console.print(table)
    assert f"{100 * results['worded']['factored']['accuracy']:.1f}" in console.export_text()
