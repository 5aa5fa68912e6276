"""Inputs of the benchmark: generated pairs with and without labels, their rationales, tests, models to begin with."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks.training import KINDS, SHARE_RIGHT, UNSEEN, train
from gram_fast.text.prompts import PairTemplate
from gram_fast.training.small_judge.make import SHAPE, make_base, small_tokenizer, tokenizer_texts
from gram_fast.training.small_judge.rationales import worked
from gram_fast.training.small_judge.task import Task
from gram_fast.training.small_judge.tasks import SHOWN, distinct_tasks, reasoned_row, tasks, unlabeled_row
from gram_fast.training.small_judge.wordings import every, held_out, trained

LABELED, UNLABELED, HELD_OUT = 1_000, 20_000, 400
# Unlabeled pairs that teach the language model to begin with the tasks, as in benchmarks/training.py.
PRETRAINING = 300_000
SHARE_WORKED = 0.5
TESTS = {
    "seen": "kinds and wordings of the training",
    "worded": "other wordings",
    "unseen": "other kinds",
}
TEST_ROWS = 360
PRESET = Path(__file__).with_name("preset.txt")


@dataclass(frozen=True)
class RowOfTest:
    """A pair of a test, and the task by which its rationales are checked."""

    task: Task
    prompt: str
    responses: tuple[str, str]
    label: str


def rows_of_test(test: str, count: int = TEST_ROWS) -> list[RowOfTest]:
    """Draws a test's pairs, as many of each kind: the same in every run."""
    makers, seed, split = {
        "seen": (KINDS, 11, trained),
        "worded": (KINDS, 12, held_out),
        "unseen": (UNSEEN, 13, every),
    }[test]
    rng = random.Random(seed)
    found = []
    for task in distinct_tasks(makers, seed, count // len(makers), split):
        row = reasoned_row(task, rng)
        found.append(RowOfTest(task, row["prompt"], tuple(row["responses"]), row["label"]))
    return found


def training_tasks(seed: int) -> Iterator[Task]:
    """Draws tasks endlessly, with no prompt of a test."""
    without = SHOWN | {row.prompt for test in TESTS for row in rows_of_test(test)}
    return tasks(KINDS, seed, without)


def make_data(folder: Path, seeds: int) -> None:
    """Writes pairs to begin with, held-out ones, and for each seed labeled and unlabeled ones, JSON lines.

    The labels of unlabeled pairs stand in files of their own, for what is said about them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    rows = (pretraining_row(task, rng) for task in islice(training_tasks(20), PRETRAINING))
    _write(folder / "pretrain.jsonl", tqdm(rows, total=PRETRAINING, desc="pretrain", unit=" rows", disable=None))
    rng = random.Random(30)
    _write(folder / "heldout.jsonl", (reasoned_row(task, rng) for task in islice(training_tasks(30), HELD_OUT)))
    for seed in range(seeds):
        rng = random.Random(100 + seed)
        drawn = (reasoned_row(task, rng) for task in training_tasks(100 + seed))
        _write(folder / f"labeled-{seed}.jsonl", islice(drawn, LABELED))
        unlabeled = list(islice(drawn, UNLABELED))
        _write(folder / f"unlabeled-{seed}.jsonl", ({k: row[k] for k in ("prompt", "responses")} for row in unlabeled))
        _write(folder / f"truth-{seed}.jsonl", ({"label": row["label"]} for row in unlabeled))


def pretraining_row(task: Task, rng: random.Random) -> dict[str, Any]:
    """Draws an unlabeled pair; in half of them one response shows its work, as texts on the web do."""
    row = unlabeled_row(task, rng, SHARE_RIGHT)
    if rng.random() < SHARE_WORKED:
        row["responses"][rng.randrange(2)] = worked(task)
    return row


def make_inputs(folder: Path, seeds: int) -> None:
    """Writes data, tokenizer and the language model to begin with, where they are not there yet."""
    data = folder / "data"
    if not (folder / "tokenizer").exists():
        make_data(data, seeds)
        answers = [written(row["rationale"], row["label"]) for row in read(data / "labeled-0.jsonl")]
        small_tokenizer([*tokenizer_texts(data), *answers * 10]).save_pretrained(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    if not (folder / "untrained").exists():
        make_base(folder / "untrained", tokenizer, 0, **SHAPE)
    if not (folder / "base" / "model.safetensors").exists():
        train(
            "pretrain", folder / "base", model_name_or_path=str(folder / "untrained"),
            train_data=str(data / "pretrain.jsonl"), per_device_train_batch_size=64, learning_rate=3e-3,
            num_train_epochs=1, torch_compile=True, pad_to_multiple_of=256, save_strategy="steps",
            save_steps=500, save_total_limit=1, resume_from_checkpoint=True,
        )  # fmt: skip


def written(rationale: str, label: str) -> str:
    """The whole answer of a judge with this rationale."""
    template = PairTemplate.load(str(PRESET))
    return f"<think>\n{rationale}\n{template.answer_prefix}{label}{template.answer_suffix}"


def read(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _write(path: Path, rows: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
