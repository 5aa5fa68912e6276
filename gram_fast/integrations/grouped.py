"""Rewards of rows: one prompt and one response each, with a key that says which rows are a group."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from gram_fast import InputError, PairwiseJudge, Rewards
from gram_fast.text.messages import is_same


@dataclass(frozen=True)
class RowRewards:
    """Rewards of rows, in their order."""

    values: list[float | None]
    """One a row; None for what could not be judged."""
    reasons: list[str | None]
    """Why a row has no reward, such as "prompt: expected ..."; None where it has one."""
    rewards: Rewards
    """The same by groups, with the comparisons and their cost; groups in the order of their first rows."""


def rewards_of_rows(
    judge: PairwiseJudge,
    keys: Sequence[Hashable],
    prompts: Sequence[Any],
    responses: Sequence[Any],
    *,
    references: Sequence[Any] | None = None,
    **settings: Any,
) -> RowRewards:
    """Rewards rows, those of equal key as the candidates of one group, all groups packed together.

    Args:
        judge: the judge.
        keys: one a row. The text of a prompt is no key: a batch may hold one prompt twice.
        prompts: one a row; those of a group must be read as one text.
        responses: one a row, the candidates.
        references: one a row, read as one text in a group; the reward is then against it.
        settings: other arguments of `PairwiseJudge.rewards`, but for `on_error`: a row that cannot be judged has None
            and a reason, the others of its group are judged.

    Raises InputError on lists of unequal length, and where one key has two prompts or references.
    """
    for name, values in (("prompts", prompts), ("responses", responses), ("references", references)):
        if values is not None and len(values) != len(keys):
            raise InputError(f"{name}: expected one for each of {len(keys)} rows, got {len(values)}")
    rows_of: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        rows_of.setdefault(key, []).append(row)
    groups = list(rows_of.values())
    for name, values in (("prompts", prompts), ("references", references)):
        if values is not None:
            _check_equal(name, values, rows_of)
    rewards = judge.rewards(
        [prompts[rows[0]] for rows in groups],
        [[responses[row] for row in rows] for rows in groups],
        None if references is None else [references[rows[0]] for rows in groups],
        on_error="none",
        **settings,
    )
    found: list[float | None] = [None] * len(keys)
    reasons: list[str | None] = [None] * len(keys)
    for g, rows in enumerate(groups):
        for number, row in enumerate(rows):
            found[row] = rewards[g][number]
            if found[row] is None:
                reasons[row] = _reason(rewards, g, number)
    return RowRewards(found, reasons, rewards)


def _reason(rewards: Rewards, g: int, number: int) -> str:
    names = {"response": f"groups[{g}][{number}]", "prompt": f"prompts[{g}]", "reference": f"references[{g}]"}
    names["group"] = f"groups[{g}]"
    return next(f"{what}: {rewards.errors[name]}" for what, name in names.items() if name in rewards.errors)


def _check_equal(name: str, values: Sequence[Any], rows_of: dict[Hashable, list[int]]) -> None:
    for key, rows in rows_of.items():
        for row in rows:
            if not is_same(values[row], values[rows[0]]):
                raise InputError(
                    f"{name}: expected equal ones under one key, rows {rows[0]} and {row} of key {key!r} differ"
                )
