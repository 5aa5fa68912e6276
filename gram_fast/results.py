"""Result types of PairwiseJudge. Candidates are numbered in the caller's order; results carry `stats` and `flagged`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Flagged = Mapping[str, tuple[str, ...]]
"""Suspicious texts: by place ("responses[2]", "a", "groups[0][1]"), what the text contains of the judge's template (its
lines), of its special tokens and of any model's chat template (marks such as "[INST]"). It is scored unchanged, but may
try to pass for part of the judge's prompt, or still have a policy's chat around it. Of chat messages also the keys
whose words the judge does not read, such as "reasoning_content left out"."""

MaybeNone: TypeAlias = Any
"""None of what was not judged. Only calls with `on_error="none"` have it, so that type checkers need not ask for it."""
Errors = Mapping[str, str]
"""Why prompts and responses were not judged: one sentence by place ("responses[2]", "groups[3][1]", "prompts[3]", and
"groups[3]" where too few of a group were left). Empty unless `on_error` is "none"."""


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Cost of a call, for any comparer."""

    comparisons: int
    """Presentations that were judged: pairs times orders, or responses that were verified."""
    seconds: float
    """Wall time of the call in seconds."""


@dataclass(frozen=True, kw_only=True)
class ForwardStats(Stats):
    """Cost of a call to a judge that reads label logits from forwards over shared prefixes."""

    tokens_unshared: int
    """Tokens of all presentations: what a judge without prefix sharing would compute."""
    tokens_tree: int
    """Tokens of the radix tree: distinct prefixes of the presentations."""
    tokens_computed: int
    """Tokens run through the model: less than tokens_tree by what earlier calls left (the judge's instruction), more by
    what was dropped between rounds and computed again."""
    passes: int
    """Forwards of the model."""


AnyStats = TypeVar("AnyStats", bound=Stats)


@dataclass(frozen=True, kw_only=True)
class ReasoningStats(ForwardStats):
    """Cost of a call to a judge that reasons; the forwards are those of its second step, 0 without one."""

    votes: int
    """Answers that were written: for each presentation as many as votes were asked for, less `votes_saved`."""
    votes_saved: int
    """Answers that were not needed, as the majority could not change any more."""
    invalid_votes: int
    """Answers without a verdict."""
    tokens_generated: int
    """Tokens of all answers."""


def total_stats(parts: Sequence[AnyStats], seconds: float) -> AnyStats:
    """Sums the counts of one or more parts of a call that ran at the same time; `seconds` is the wall time of all."""
    names = [field.name for field in fields(parts[0]) if field.name != "seconds"]
    return replace(parts[0], **{name: sum(getattr(part, name) for part in parts) for name in names}, seconds=seconds)


@dataclass(frozen=True)
class Vote:
    """One answer that a judge wrote about a pair in one order."""

    order: str
    """"ab": candidate i in slot A; "ba": in slot B. Of a verifier "ab"."""
    rationale: str
    """What it wrote before its verdict; all that it wrote, where there is none."""
    is_for_i: bool | None
    """Whether its verdict is for candidate i, or that the response is right; None of an invalid one."""
    problem: str | None
    """Why it has no verdict, such as "over the limit"; None of a valid one."""
    p: float | None
    """P(i better than j) behind this rationale, from the logits of the two labels; None where they are not known."""


@dataclass(frozen=True)
class Reasoning:
    """What a judge wrote about a pair, and both ways to count it."""

    votes: tuple[Vote, ...]
    for_i: int
    """Verdicts for candidate i, in all orders that were run."""
    for_j: int
    invalid: int
    """Votes without a verdict."""
    soft: float | None
    """P(i better than j): mean over orders of the mean of `Vote.p`; None where no vote has one."""
    hard: float
    """Share of the verdicts that are for i, the soft verdict (else a half) counted as one more: (for_i + soft) /
    (for_i + for_j + 1), so that it breaks ties and no share is 0 or 1."""


@dataclass(frozen=True)
class Preference:
    """Result of comparing candidates i and j of a group."""

    i: int
    j: int
    p: float
    """P(i better than j) in [0, 1], mean over the orders that were run."""
    margin: float
    """Label logit for i minus label logit for j, mean over the orders that were run. A judge without
    logits has the log odds of p here, and keeps p off 0 and 1: (votes + 1/2) / (verdicts + 1), say."""
    p_ab: float | None
    """P(i better than j) with i in slot A; None when order "ab" was not run."""
    p_ba: float | None
    """P(i better than j) with i in slot B; None when order "ba" was not run."""
    reasoning: Reasoning | None = None
    """What a judge that reasons wrote; None of others."""
    mode: str = "full"
    """How the pair was read: "full", or "factored", each response by itself."""


@dataclass(frozen=True, kw_only=True)
class Comparison(Preference):
    """Comparison of two responses, from `PairwiseJudge.compare`: response a is i = 0, response b is j = 1."""

    flagged: Flagged
    stats: Stats


@dataclass(frozen=True)
class Ranking:
    """Ranking of candidates, from `PairwiseJudge.rank`."""

    best: int | MaybeNone
    """Number of the winner: order[0]; None where nothing was judged."""
    order: tuple[int, ...]
    """Numbers of the candidates, from best to worst; without those that were not judged (`errors`)."""
    scores: tuple[float | MaybeNone, ...]
    """Score of each candidate, higher is better, in the range of the scores that were asked for (docs/ranking.md). None
    for one that was not judged."""
    comparisons: tuple[Preference, ...]
    """All comparisons in the order they were made; equal responses are compared once, under the first one's number."""
    flagged: Flagged
    stats: Stats
    errors: Errors = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """Best of several responses, from `PairwiseJudge.best_of_n`."""

    index: int
    """Number of the best response."""
    response: Any
    """The best response itself, the caller's object."""
    scores: tuple[float, ...]
    """Score of each candidate, as in Ranking."""
    comparisons: tuple[Preference, ...]
    flagged: Flagged
    stats: Stats


@dataclass(frozen=True)
class Verification:
    """Verification of responses one by one, from `PairwiseJudge.verify`."""

    p: tuple[float, ...]
    """P(the response is right) of each response, in [0, 1]: of the template's first label, "Yes", over the second."""
    flagged: Flagged
    stats: Stats
    reasoning: tuple[Reasoning | None, ...] = ()
    """What a judge that reasons wrote about each response; empty of others."""


class Rewards(list[list[float | MaybeNone]]):
    """Rewards from `PairwiseJudge.rewards`: one list per prompt of one float per candidate, higher is better.

    None for a candidate that was not judged (`on_error="none"`): its reason is in `errors` under its own name, or that
    of its group, prompt or reference.
    """

    def __init__(
        self,
        values: Iterable[list[float | MaybeNone]],
        *,
        comparisons: Iterable[tuple[Preference, ...]],
        errors: Errors,
        flagged: Flagged,
        stats: Stats,
    ) -> None:
        super().__init__(values)
        self.comparisons = list(comparisons)
        """Of each group its comparisons, as in Ranking; the reference of a group is number -1."""
        self.errors = errors
        self.flagged = flagged
        self.stats = stats


class Comparisons(list[Comparison | MaybeNone]):
    """Results of `PairwiseJudge.compare_many`, one for each pair; None for one that was not judged.

    Its reason is in `errors` under the name of its responses ("pairs[3][1]"), of the pair or of the prompt.
    """

    def __init__(self, values: Iterable[Comparison | MaybeNone], *, errors: Errors, stats: Stats) -> None:
        super().__init__(values)
        self.errors = errors
        self.stats = stats


class PreferenceMatrix(np.ndarray[Any, np.dtype[np.float64]]):
    """Preference matrix from `PairwiseJudge.matrix`: float64 [C, C], (i, j) = P(i better than j), diagonal 0.5."""

    flagged: Flagged
    stats: Stats | None
    """Cost of the call; None in an array that was not derived from a judge's result, such as an unpickled one."""

    def __array_finalize__(self, source: Any) -> None:
        self.flagged, self.stats = getattr(source, "flagged", {}), getattr(source, "stats", None)

    @classmethod
    def wrap(cls, values: NDArray[np.float64], flagged: Flagged, stats: Stats) -> "PreferenceMatrix":
        """Views a float64 [C, C] array as a PreferenceMatrix with these flags and stats."""
        matrix = values.view(cls)
        matrix.flagged, matrix.stats = flagged, stats
        return matrix
