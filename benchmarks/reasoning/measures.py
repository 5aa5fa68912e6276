"""What a judge gets right on a test: verdicts of few votes and of many, and what its rationales say."""

from collections import Counter
from collections.abc import Sequence
from statistics import mean
from typing import Any

from scipy.special import logit

from benchmarks.reasoning.inputs import RowOfTest
from gram_fast.generating.ballots import Ballot
from gram_fast.generating.options import VerdictKind
from gram_fast.judge import PairwiseJudge
from gram_fast.results import Comparison, Vote
from gram_fast.training.small_judge.rationales import CLAIMS, check_rationale

VOTES = (1, 4, 16)
"""Votes of an order. The fewer are the first of the more."""


def measure(judge: PairwiseJudge, rows: Sequence[RowOfTest]) -> dict[str, Any]:
    """Tests a judge on pairs in both orders -> shares in [0, 1] by name."""
    found = judge.compare_many([row.prompt for row in rows], [row.responses for row in rows])
    if found[0].reasoning is None:
        return {"accuracy": mean(_is_right(row, c.p) for row, c in zip(rows, found, strict=True))}
    return {
        **{
            f"{kind}@{votes}": mean(_is_right(row, recount(c, votes, kind)) for row, c in zip(rows, found, strict=True))
            for kind in ("soft", "hard")
            for votes in VOTES
        },
        **_written(rows, found),
        "tokens_generated": found.stats.tokens_generated,  # type: ignore[attr-defined]
        "seconds": found.stats.seconds,
    }


def recount(comparison: Comparison, votes: int, kind: VerdictKind) -> float:
    """P(first better) of the first votes of each order."""
    assert comparison.reasoning is not None
    ballot = Ballot.of(comparison.i, comparison.j, "both", votes, is_adaptive=False)
    for order in ballot.orders:
        of_order = [vote for vote in comparison.reasoning.votes if vote.order == order][:votes]
        ballot.votes += of_order
        ballot.margins += [None if vote.p is None else float(logit(vote.p)) for vote in of_order]
    return ballot.preference(kind).p


def _is_right(row: RowOfTest, p: float) -> float:
    """1 or 0; a tie counts half."""
    return 0.5 if p == 0.5 else float((p > 0.5) == (row.label == "A"))


def _written(rows: Sequence[RowOfTest], found: Sequence[Comparison]) -> dict[str, Any]:
    """Of all votes: how many have no verdict, and which claims of the rationales hold, all of them together too."""
    problems, false, count = Counter[str](), Counter[str](), 0
    whole = 0
    for row, comparison in zip(rows, found, strict=True):
        assert comparison.reasoning is not None
        for vote in comparison.reasoning.votes:
            count += 1
            problems[vote.problem or "valid"] += 1
            wrong = _false_claims(row, vote)
            false.update(wrong)
            whole += not wrong
    return {
        "problems": dict(problems),
        "claims": {claim: 1 - false[claim] / count for claim in CLAIMS},
        "rationale": whole / count,
    }


def _false_claims(row: RowOfTest, vote: Vote) -> list[str]:
    a, b = row.responses if vote.order == "ab" else row.responses[::-1]
    return check_rationale(row.task, a, b, vote.rationale.removeprefix("<think>\n").removesuffix("\n"))
