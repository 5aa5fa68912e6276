"""Mixtures and streams of the preference tasks on which the small judge is trained and tested.

Each kind of task is a function that draws a problem: a right answer, plausible wrong ones, and at least a dozen ways to
ask and to answer. The wording is drawn independently of the answer and carries no information about it; each fifth
wording is in no training data (wordings.py). `SEEN` kinds are for training and for tests in distribution, in wordings
of the training and in others. `UNSEEN` kinds are for tests alone: each asks for a skill that training teaches, about
other material or in another story. A program writes why one response is better, and checks who else does
(rationales.py).
"""

import random
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from gram_fast.training.small_judge.chatter import QUIET, Chatter
from gram_fast.training.small_judge.choice_kinds import (
    category,
    contains,
    contains_number,
    count,
    count_numbers,
    exact_words,
    first_or_last,
    longer,
    month,
    second,
    starting,
    which_number,
)
from gram_fast.training.small_judge.format_kinds import (
    lettered,
    list_format,
    number_format,
    wrap,
    wrap_curly,
    wrap_name,
)
from gram_fast.training.small_judge.number_kinds import (
    above,
    addition,
    below,
    buying,
    extreme,
    giving,
    is_larger,
    larger,
    more,
    subtraction,
    times,
    weight,
)
from gram_fast.training.small_judge.order_kinds import (
    append_number,
    copy,
    recite,
    reverse,
    sort_down,
    sort_names,
    sort_up,
    sort_words,
    sort_words_down,
    swap_ends,
    swap_ends_of_numbers,
)
from gram_fast.training.small_judge.passage_kinds import fact, inverse, price, rearrange, table, told, who
from gram_fast.training.small_judge.rationales import rationale
from gram_fast.training.small_judge.task import Split, Task, TaskMaker, make_task
from gram_fast.training.small_judge.text_kinds import (
    append_word,
    change_case,
    json_object,
    remove_word,
    repeat,
    replace_word,
    spell,
)
from gram_fast.training.small_judge.wordings import trained

SEEN: tuple[TaskMaker, ...] = (
    addition, subtraction, times, buying, larger, is_larger, extreme, more, above, below, sort_up, sort_down,
    sort_words, sort_words_down, reverse, copy, recite, swap_ends_of_numbers, append_number, count, exact_words,
    first_or_last, which_number, contains, category, month, longer, starting, replace_word, remove_word, repeat,
    change_case, spell, json_object, list_format, number_format, wrap, wrap_name, fact, who, table, rearrange, inverse,
    told,
)  # fmt: skip


# The training mixture, in which some kinds are more frequent. `recite` and `rearrange` ask for many words of the
# prompt: from them the model learns to copy and then to look up, which the other kinds, with one looked-up word each,
# did not teach it in six times as many pairs. Sums are learned last.
TRAINED: tuple[TaskMaker, ...] = (
    *SEEN, *2 * (recite, rearrange), inverse, told, fact, who, table, replace_word,
    *3 * (addition, subtraction), *2 * (buying,),
)  # fmt: skip


UNSEEN: tuple[TaskMaker, ...] = (
    giving, weight, sort_names, swap_ends, count_numbers, second, contains_number, append_word, lettered, wrap_curly,
    price,
)  # fmt: skip

SHOWN = frozenset(
    (
        "Sort from smallest to largest: 72, 15, 48, 31",
        "Keep the numbers below 50: 81, 23, 67, 44, 90",
        "Make a list with dashes of: lamp, river, key",
    )
)
"""Prompts of the README and the examples, which no training data has."""


def tasks(
    makers: tuple[TaskMaker, ...],
    seed: int,
    without: Collection[str] = SHOWN,
    split: Split = trained,
    chatter: Chatter = QUIET,
) -> Iterator[Task]:
    """Yields tasks endlessly, from each maker in turn, in wordings of the split, without the prompts in `without`.

    They are determined by the seed. `chatter`: see `make_task`.
    """
    rng = random.Random(seed)
    while True:
        for maker in makers:
            task = make_task(maker, rng, split, chatter)
            while task.prompt in without:
                task = make_task(maker, rng, split, chatter)
            yield task


def distinct_tasks(makers: tuple[TaskMaker, ...], seed: int, count: int, split: Split = trained) -> list[Task]:
    """Draws `count` tasks from each maker without repeating a prompt: a test set, to be held out from training."""
    found: dict[str, Task] = {}
    for maker in makers:
        stream = tasks((maker,), seed, found, split)
        for task in islice(stream, count):
            found[task.prompt] = task
    return list(found.values())


def labeled_row(task: Task, rng: random.Random) -> dict[str, Any]:
    """Draws a preference from a task: a right response and a wrong one, in half of the rows in the same wording."""
    chosen = rng.choice(task.answers)
    rejected = chosen if rng.random() < 0.5 else rng.choice(task.answers)
    problem = task.problem
    return {
        "kind": task.kind,
        "prompt": task.prompt,
        "chosen": problem.response(problem.right, chosen),
        "rejected": problem.response(rng.choice(problem.wrong), rejected),
    }


def reasoned_row(task: Task, rng: random.Random) -> dict[str, Any]:
    """Draws a preference from a task, as `labeled_row`, as two responses in random order, their label and a rationale.

    `label` is that of the right response, "A" or "B", each with equal chance.
    """
    row = labeled_row(task, rng)
    label = rng.choice("AB")
    a, b = (row["chosen"], row["rejected"]) if label == "A" else (row["rejected"], row["chosen"])
    return {
        "kind": task.kind,
        "prompt": task.prompt,
        "responses": [a, b],
        "label": label,
        "rationale": rationale(task, a, b),
    }


def unlabeled_row(task: Task, rng: random.Random, share_right: float = 0.85) -> dict[str, Any]:
    """Draws two different responses, each right with probability `share_right`, like two samples of a policy."""
    responses: list[str] = []
    while len(responses) < 2:
        answer = task.problem.right if rng.random() < share_right else rng.choice(task.problem.wrong)
        drawn = task.problem.response(answer, rng.choice(task.answers))
        if drawn not in responses:
            responses.append(drawn)
    return {"kind": task.kind, "prompt": task.prompt, "responses": responses}
