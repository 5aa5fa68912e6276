"""What a judge that reasons writes about pairs, as rows: predictions on unlabeled pairs, and on held-out ones."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from gram_fast.commands.chunks import score_chunk
from gram_fast.comparing.comparer import Comparer
from gram_fast.errors import GramFastError, InputError
from gram_fast.generating.options import ReasoningOptions
from gram_fast.models.options import JudgeOptions
from gram_fast.ranking.packed import compare_groups
from gram_fast.results import Preference
from gram_fast.text.group import Group
from gram_fast.training.self_training.loading import load_judge
from gram_fast.training.self_training.rows import PairRow


class Judging:
    """A judge that is loaded when the first rows come: where a killed run had judged all, it is not needed."""

    def __init__(self, name: str, judge: JudgeOptions, options: ReasoningOptions, max_batch_tokens: int) -> None:
        """Arguments of `load_judge`."""
        self._arguments = (name, judge, options, max_batch_tokens)

    @cached_property
    def _comparer(self) -> Comparer:
        return load_judge(*self._arguments)

    def predict(self, rows: Sequence[PairRow]) -> list[dict[str, Any]]:
        """Judges pairs in both orders in one call -> a prediction of each, JSON values.

        A pair that cannot be judged, being too long or of two equal responses, has an `error` and no runs. Raises
        errors of the judge that are not of one pair.
        """
        differ = [row for row in rows if row.pair.response_a != row.pair.response_b]
        found: dict[str | int, Preference | InputError] = {}
        for row, result in score_chunk(differ, self._compare, lambda row: f"row {row.id}") if differ else ():
            if isinstance(result, GramFastError) and not isinstance(result, InputError):
                raise result
            found[row.id] = result
        equal = InputError("the two responses are equal")
        return [prediction(row, found.get(row.id, equal)) for row in rows]

    def _compare(self, rows: Sequence[PairRow]) -> Sequence[Preference]:
        groups = [Group.of(row.pair.prompt, [row.pair.response_a, row.pair.response_b]) for row in rows]
        return compare_groups(groups, self._comparer, "both")


def prediction(row: PairRow, result: Preference | InputError) -> dict[str, Any]:
    """A predicted row: what the runs say of the pair, without what they wrote.

    `p_a`: P(response A better), the judge's; of each run, the response that it prefers, why it prefers none, the same
    probability behind its rationale, and the characters of that.
    """
    if isinstance(result, InputError):
        return {"id": row.id, "error": str(result), "runs": []}
    assert result.reasoning is not None
    runs = [
        {
            "order": vote.order,
            "label": {True: "A", False: "B", None: None}[vote.is_for_i],
            "problem": vote.problem,
            "p_a": vote.p,
            "characters": len(vote.rationale),
        }
        for vote in result.reasoning.votes
    ]
    return {"id": row.id, "p_a": result.p, "runs": runs}
