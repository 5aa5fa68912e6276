"""Preference tasks whose answer can be verified: what the small judge is trained and tested on.

A kind of task draws a prompt, a right answer and wrong ones that look right, and knows how to check any response to
that prompt. Phrasing is drawn apart from the answer, so it says nothing about it. `SEEN` kinds are for training and for
tests in distribution; `UNSEEN` kinds are for tests alone: each asks of other material, or in another story, for
something that training teaches.
"""

import random
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from gram_fast.training.small_judge.list_kinds import (
    append_number,
    category,
    copy,
    count,
    first_or_last,
    month,
    recite,
    reverse,
    second,
    sort_down,
    sort_up,
    sort_words,
    swap_ends,
    swap_ends_of_numbers,
    which_number,
)
from gram_fast.training.small_judge.number_kinds import (
    above,
    addition,
    below,
    buying,
    extreme,
    giving,
    larger_or_smaller,
    subtraction,
    weight,
)
from gram_fast.training.small_judge.passage_kinds import fact, inverse, price, rearrange, table, told, who
from gram_fast.training.small_judge.task import Task, TaskMaker
from gram_fast.training.small_judge.text_kinds import (
    append_word,
    change_case,
    json_object,
    lettered,
    list_format,
    number_format,
    remove_word,
    repeat,
    replace_word,
    spell,
    wrap,
    wrap_curly,
    wrap_name,
)

SEEN: tuple[TaskMaker, ...] = (
    addition, subtraction, buying, larger_or_smaller, extreme, sort_up, sort_down, sort_words, reverse, copy, recite,
    swap_ends_of_numbers, above, below, replace_word, remove_word, append_number, repeat, change_case, list_format,
    number_format, wrap, wrap_name, fact, who, table, rearrange, inverse, told, count, first_or_last, which_number,
    category, spell, month, json_object,
)  # fmt: skip


# What training draws from, some kinds more often. `recite` and `rearrange` ask for many words of what was read: from
# them the model learns to copy, then to look up, which the other kinds with their one looked-up word did not teach it
# in six times as many pairs. Sums are learned last.
TRAINED: tuple[TaskMaker, ...] = (
    *SEEN, *4 * (recite, rearrange), inverse, told, fact, who, table, replace_word,
    *3 * (addition, subtraction), *2 * (buying,),
)  # fmt: skip


UNSEEN: tuple[TaskMaker, ...] = (giving, weight, swap_ends, append_word, lettered, wrap_curly, price, second)


def tasks(kinds: tuple[TaskMaker, ...], seed: int, without: Collection[str] = ()) -> Iterator[Task]:
    """Tasks of these kinds in turn, without end, whose prompts are not in `without`. Equal seeds give equal tasks."""
    rng = random.Random(seed)
    while True:
        for kind in kinds:
            task = kind(rng)
            while task.prompt in without:
                task = kind(rng)
            yield task


def distinct_tasks(kinds: tuple[TaskMaker, ...], seed: int, count: int) -> list[Task]:
    """That many tasks of each kind, no prompt twice: a test, whose prompts training goes `without`."""
    found: dict[str, Task] = {}
    for kind in kinds:
        stream = tasks((kind,), seed, found)
        for task in islice(stream, count):
            found[task.prompt] = task
    return list(found.values())


def labeled_row(task: Task, rng: random.Random) -> dict[str, Any]:
    """A preference: one right response, one wrong."""
    return {
        "kind": task.kind,
        "prompt": task.prompt,
        "chosen": rng.choice(task.right),
        "rejected": rng.choice(task.wrong),
    }


def unlabeled_row(task: Task, rng: random.Random, share_right: float = 0.85) -> dict[str, Any]:
    """Two different responses, each right with probability `share_right`, as two draws from a policy would be."""
    responses: list[str] = []
    while len(responses) < 2:
        drawn = rng.choice(task.right if rng.random() < share_right else task.wrong)
        if drawn not in responses:
            responses.append(drawn)
    return {"kind": task.kind, "prompt": task.prompt, "responses": responses}
