"""Scores the pairs of a benchmark in batches with a judge and writes one result row for each pair, resumably."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from typing import Any

from tqdm import tqdm

from gram_fast.commands.chunks import CHARACTERS, chunks, score_chunk
from gram_fast.commands.output import Output, id_key
from gram_fast.comparing.modes import Mode, in_mode
from gram_fast.errors import GramFastError
from gram_fast.evaluation.rows import RESULT_FIELDS, SLOT_FIELDS, VOTE_FIELDS, BenchmarkPair, Fields
from gram_fast.judge import PairwiseJudge
from gram_fast.ranking.packed import compare_groups
from gram_fast.results import Preference
from gram_fast.text.group import Group, Names
from gram_fast.text.messages import read_text

NumberedPair = tuple[int, BenchmarkPair]
"""A pair with its number in the data file, from 1."""


def score_pairs(
    judge: PairwiseJudge,
    pairs: Sequence[BenchmarkPair],
    output: Output,
    on_bad: Callable[[GramFastError], None],
    mode: Mode = "full",
) -> int:
    """Scores all pairs that are not done, in both orders, writes one row for each, and returns the number written.

    A row has `pair_number` (from 1), the fields of the pair, its scores and `run`, the settings that the output
    records. The error of a pair that cannot be scored goes to `on_bad`, which raises to stop or returns to skip it.
    `mode` as for `PairwiseJudge.compare`. Raises errors like `in_mode` on a judge that does not have it.
    """
    in_mode(judge.comparer, mode)
    pending = [(number, pair) for number, pair in enumerate(pairs, 1) if id_key(number) not in output.done]
    written = 0
    with tqdm(total=len(pairs), initial=len(pairs) - len(pending), unit="pair", disable=None) as bar:
        for batch in batches(pending, CHARACTERS * judge.comparer.tokens_at_once):
            for (number, pair), found in score_chunk(batch, partial(_compare, judge, mode), _where):
                if isinstance(found, GramFastError):
                    on_bad(found)
                    continue
                output.write({"pair_number": number, **_scored(pair.texts.fields, found)})
                written += 1
            bar.update(len(batch))
    return written


def batches(pairs: Iterable[NumberedPair], characters: int) -> Iterator[list[NumberedPair]]:
    """Splits pairs into lists of at least `characters` characters of text each, except the last.

    Pairs of one item stay together, as they share text.
    """
    items = (list(of_item) for _, of_item in groupby(pairs, key=lambda numbered: numbered[1].place.item or numbered[0]))
    for chunk in chunks(items, _characters, characters):
        yield [numbered for item in chunk for numbered in item]


def _characters(item: Sequence[NumberedPair]) -> int:
    texts = (text for _, pair in item for text in (pair.texts.prompt, pair.texts.chosen, pair.texts.rejected))
    return sum(len(read_text(text, "text")[0]) for text in texts)


def _where(numbered: NumberedPair) -> str:
    return numbered[1].where


def _compare(judge: PairwiseJudge, mode: Mode, batch: Sequence[NumberedPair]) -> Sequence[Preference]:
    """Compares the chosen response of each pair with the rejected one."""
    texts = [pair.texts for _, pair in batch]
    # Each is called in errors as alone: its number in the batch tells nobody anything.
    names, whole = Names(candidate="ab".__getitem__), judge.include_reasoning
    groups = [Group.of(t.prompt, [t.chosen, t.rejected], names, include_reasoning=whole) for t in texts]
    return compare_groups(groups, in_mode(judge.comparer, mode))


def _scored(fields: Fields, preference: Preference) -> dict[str, Any]:
    own = {name: value for name, value in fields.items() if name not in RESULT_FIELDS}
    scores = {"score_chosen": preference.p, "score_rejected": 1 - preference.p, "correct": preference.p > 0.5}
    by_slot = dict(zip(SLOT_FIELDS, (preference.p_ab, preference.p_ba), strict=True))
    return {**own, **scores, **by_slot, **_written(preference)}


def _written(preference: Preference) -> dict[str, Any]:
    """What a judge that reasons wrote: the counts of its verdicts in each order, and all of it."""
    if preference.reasoning is None:
        return {}
    verdicts = [(vote.order, vote.is_for_i) for vote in preference.reasoning.votes]
    counts = [[verdicts.count((order, kind)) for kind in (True, False, None)] for order in ("ab", "ba")]
    return {**dict(zip(VOTE_FIELDS, counts, strict=True)), "judge_reasoning": asdict(preference.reasoning)}
