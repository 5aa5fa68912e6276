"""Mixtures and streams of the preference tasks on which the small judge is trained and tested.

Each kind of task is a function that draws a prompt, a right answer, plausible wrong ones, and a check for any response.
The phrasing is drawn independently of the answer and carries no information about it. `SEEN` kinds are for training and
for tests in distribution. `UNSEEN` kinds are for tests alone: each asks for a skill that training teaches, about other
material or in another story.
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


# The training mixture, in which some kinds are more frequent. `recite` and `rearrange` ask for many words of the
# prompt: from them the model learns to copy and then to look up, which the other kinds, with one looked-up word each,
# did not teach it in six times as many pairs. Sums are learned last.
TRAINED: tuple[TaskMaker, ...] = (
    *SEEN, *4 * (recite, rearrange), inverse, told, fact, who, table, replace_word,
    *3 * (addition, subtraction), *2 * (buying,),
)  # fmt: skip


UNSEEN: tuple[TaskMaker, ...] = (giving, weight, swap_ends, append_word, lettered, wrap_curly, price, second)


def tasks(makers: tuple[TaskMaker, ...], seed: int, without: Collection[str] = ()) -> Iterator[Task]:
    """Yields tasks endlessly, from each maker in turn, without the prompts in `without`; determined by the seed."""
    rng = random.Random(seed)
    while True:
        for maker in makers:
            task = maker(rng)
            while task.prompt in without:
                task = maker(rng)
            yield task


def distinct_tasks(makers: tuple[TaskMaker, ...], seed: int, count: int) -> list[Task]:
    """Draws `count` tasks from each maker without repeating a prompt: a test set, to be held out from training."""
    found: dict[str, Task] = {}
    for maker in makers:
        stream = tasks((maker,), seed, found)
        for task in islice(stream, count):
            found[task.prompt] = task
    return list(found.values())


def labeled_row(task: Task, rng: random.Random) -> dict[str, Any]:
    """Draws a preference from a task: one right response and one wrong one."""
    return {
        "kind": task.kind,
        "prompt": task.prompt,
        "chosen": rng.choice(task.right),
        "rejected": rng.choice(task.wrong),
    }


def unlabeled_row(task: Task, rng: random.Random, share_right: float = 0.85) -> dict[str, Any]:
    """Draws two different responses, each right with probability `share_right`, like two samples of a policy."""
    responses: list[str] = []
    while len(responses) < 2:
        drawn = rng.choice(task.right if rng.random() < share_right else task.wrong)
        if drawn not in responses:
            responses.append(drawn)
    return {"kind": task.kind, "prompt": task.prompt, "responses": responses}
