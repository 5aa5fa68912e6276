"""Labels, unlabeled pairs and test sets of the benchmark, as files, with the number of tokens of every pair.

The source is a folder with

    alpaca_eval/train.responses.jsonl.xz     {"prompt_id", "prompt", "responses": {name: answer}}; the same for dev
    alpaca_eval/train.pairs.jsonl.xz         {"prompt_id", "chosen", "rejected"}, names of answers; the same for dev
    rmbench_chat.json, judgebench_gpt.json   the benchmarks, in formats that `gram-fast eval` reads

A pair takes part where none of its sequences is longer than a limit. Labels stand in a seeded order, so that the first
n of them are the same in every run: subsets of different sizes are nested.
"""

import json
import lzma
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.real_judge.base import write_base
from gram_fast.errors import InputError
from gram_fast.evaluation import BENCHMARKS
from gram_fast.evaluation.rows import read_benchmark_pairs
from gram_fast.models.checkpoint import find_template, load_config
from gram_fast.models.tokenizer import load_tokenizer
from gram_fast.rows.bad_rows import raise_bad_row
from gram_fast.text.dates import fix_date
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training.config import Stage
from gram_fast.training.data import sequences
from gram_fast.training.data.records import PairRecord

Row = dict[str, Any]
FILES = {"rmbench": "rmbench_chat.json", "judgebench": "judgebench_gpt.json"}
CANDIDATES = 8
"""Answers of a group that is ranked."""
_CHUNK = 64


@dataclass(frozen=True)
class Sizes:
    """How much of the data takes part."""

    labels: int
    """Most labeled pairs."""
    unlabeled: int
    """Most unlabeled pairs, for stage 1."""
    tests: dict[str, int]
    """Most items of each test set: pairs, for rmbench prompts of nine pairs."""
    max_tokens: int
    """Longest sequence in training."""
    max_test_tokens: int
    """Longest presentation in a test."""
    groups: int = 20
    """Most prompts of the development set whose answers are ranked by judges of both modes."""
    preset: str = "short"
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """A folder with a base model, data and tests, written by `prepare`."""

    folder: Path

    @property
    def base(self) -> Path:
        """The checkpoint that trials start from."""
        return self.folder / "base"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The base model's config.json."""
        return dict(json.loads((self.base / "config.json").read_text("utf-8")))

    def data(self, stage: Stage) -> Path:
        """The training data of a stage."""
        return self.folder / ("unlabeled.jsonl" if stage == "pretrain" else "labels.jsonl")

    @cached_property
    def described(self) -> dict[str, Any]:
        """What was prepared: sizes, and `pairs` and `tokens` of each test set."""
        return dict(json.loads((self.folder / "inputs.json").read_text("utf-8")))

    def lengths(self, stage: Stage) -> np.ndarray[Any, Any]:
        """int64 [P, S]: tokens of each sequence of every pair, in the order of the data."""
        with np.load(self.folder / "lengths.npz") as found:
            return np.asarray(found[stage])

    def test(self, name: str) -> list[Row]:
        """The pairs of a test set: prompt, chosen, rejected, and the place in the benchmark."""
        return self._rows(f"test-{name}")

    def groups(self) -> list[Row]:
        """The groups that are ranked: prompt and candidates, which have no labels."""
        return self._rows("groups")

    def _rows(self, name: str) -> list[Row]:
        return [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_text("utf-8").splitlines()]


def prepare(folder: Path, source: Path, base: Path | None, sizes: Sizes) -> Inputs:
    """Writes base model, data and tests into a folder, or takes what is there. Raises InputError on other sizes."""
    inputs = Inputs(folder)
    if (folder / "inputs.json").exists():
        if inputs.described["asked"] != asdict(sizes):
            raise InputError(f"{folder}: expected inputs of these sizes, {sizes}; give another folder")
        return inputs
    folder.mkdir(parents=True, exist_ok=True)
    if not (inputs.base / "config.json").exists():
        write_base(base, inputs.base)
    counter = TokenCounter(inputs.base, sizes.preset)
    rng = random.Random(sizes.seed)
    prompts, pairs = answers(source, "train"), labeled(source, "train")
    rng.shuffle(pairs)
    data = {
        "labels": counter.fitting(pairs, sizes.max_tokens, sizes.labels, "labels"),
        "unlabeled": counter.fitting(unlabeled(prompts, rng), sizes.max_tokens, sizes.unlabeled, "unlabeled pairs"),
    }
    for name, rows in data.items():
        _write(folder / f"{name}.jsonl", rows)
    np.savez(
        folder / "lengths.npz",
        finetune=counter.lengths("finetune", data["labels"]),
        scalar=counter.lengths("scalar", data["labels"]),
        pretrain=counter.lengths("pretrain", data["unlabeled"]),
    )
    tests = {}
    for name, most in sizes.tests.items():
        items = counter.items(test_items(source, name, rng), sizes.max_test_tokens, most)
        rows = [row for item in items for row in item]
        _write(folder / f"test-{name}.jsonl", rows)
        tests[name] = {"items": len(items), "pairs": len(rows), "tokens": int(counter.lengths("finetune", rows).sum())}
    groups = counter.groups(answers(source, "dev"), sizes.max_test_tokens, rng)
    _write(folder / "groups.jsonl", islice(groups, sizes.groups))
    described = {
        **asdict(sizes),
        "asked": asdict(sizes),
        "labels": len(data["labels"]),
        "unlabeled": len(data["unlabeled"]),
        "tests": tests,
    }
    (folder / "inputs.json").write_text(json.dumps(described, indent=2), "utf-8")
    return inputs


class TokenCounter:
    """Counts the tokens of the sequences that training and the judge make of a pair."""

    def __init__(self, base: Path, preset: str) -> None:
        """Reads the tokenizer of the base model."""
        chat = load_tokenizer(str(base))
        tokenizer = PairTokenizer(chat, fix_date(find_template(preset, load_config(str(base)), {}), chat))
        self._encoders = {
            "pretrain": sequences.pretrain_encoder(tokenizer, chat),
            "finetune": sequences.finetune_encoder(tokenizer),
            "scalar": sequences.scalar_encoder(tokenizer, chat),
        }

    def lengths(self, stage: Stage, rows: Sequence[Row]) -> np.ndarray[Any, Any]:
        """Tokens of the sequences of each pair -> int64 [P, S]."""
        records = [PairRecord(row["prompt"], *_responses(row), "A", "") for row in rows]
        return np.array([pair.lengths for pair in self._encoders[stage](records)])

    def fitting(self, rows: Iterable[Row], max_tokens: int, most: int, name: str) -> list[Row]:
        """Takes the first `most` pairs whose longest presentation to a judge has at most `max_tokens` tokens."""
        found: list[Row] = []
        stream = iter(rows)
        with tqdm(total=most, desc=name, unit=" pairs", disable=None) as bar:
            while len(found) < most and (some := list(islice(stream, _CHUNK))):
                longest = self.lengths("finetune", some).max(axis=1)
                found += [row for row, length in zip(some, longest, strict=True) if length <= max_tokens]
                bar.update(min(len(found), most) - bar.n)
        return found[:most]

    def items(self, items: Iterable[list[Row]], max_tokens: int, most: int) -> list[list[Row]]:
        """Takes the first `most` items of which every pair fits."""
        fitting = (item for item in items if self.lengths("finetune", item).max() <= max_tokens)
        return list(islice(fitting, most))

    def groups(self, prompts: Sequence[Row], max_tokens: int, rng: random.Random) -> Iterator[Row]:
        """Draws CANDIDATES answers of each prompt that has so many of which any two fit."""
        for row in prompts:
            texts = sorted(set(row["responses"].values()))
            twice = [{"prompt": row["prompt"], "responses": (text, text)} for text in texts]
            longest = self.lengths("finetune", twice).max(axis=1)
            fitting = [text for text, length in zip(texts, longest, strict=True) if length <= max_tokens]
            if len(fitting) >= CANDIDATES:
                yield {"prompt": row["prompt"], "candidates": rng.sample(fitting, CANDIDATES)}


def answers(source: Path, split: str) -> list[Row]:
    """Reads the prompts of a split with all their answers."""
    return _read(source / "alpaca_eval" / f"{split}.responses.jsonl.xz")


def labeled(source: Path, split: str) -> list[Row]:
    """Reads the labeled pairs of a split, with their texts."""
    of_prompt = {row["prompt_id"]: row for row in answers(source, split)}
    rows = []
    for pair in _read(source / "alpaca_eval" / f"{split}.pairs.jsonl.xz"):
        row = of_prompt[pair["prompt_id"]]
        chosen, rejected = (row["responses"][pair[key]] for key in ("chosen", "rejected"))
        rows.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return rows


def unlabeled(prompts: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """Draws two different answers of one prompt after the other, without end, each time round in a new order."""
    texts = [(row["prompt"], sorted(set(row["responses"].values()))) for row in prompts]
    texts = [(prompt, found) for prompt, found in texts if len(found) > 1]
    for _ in count():
        rng.shuffle(texts)
        for prompt, found in texts:
            yield {"prompt": prompt, "responses": rng.sample(found, 2)}


def test_items(source: Path, name: str, rng: random.Random) -> list[list[Row]]:
    """Reads a test set in a seeded order: items of one pair, for rmbench of nine."""
    if name == "dev":
        items = [[{**row, "group": "", "item": "", "cell": ""}] for row in labeled(source, "dev")]
    else:
        pairs = read_benchmark_pairs(BENCHMARKS[name], str(source / FILES[name]), raise_bad_row)
        rows = [
            {"prompt": p.texts.prompt, "chosen": p.texts.chosen, "rejected": p.texts.rejected, **asdict(p.place)}
            for p in pairs
        ]
        numbered = enumerate(rows)
        items = [[row for _, row in item] for _, item in groupby(numbered, lambda pair: pair[1]["item"] or pair[0])]
    rng.shuffle(items)
    return items


def _responses(row: Row) -> tuple[str, str]:
    first, second = row["responses"] if "responses" in row else (row["chosen"], row["rejected"])
    return first, second


def _read(path: Path) -> list[Row]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
