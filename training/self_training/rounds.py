"""Rounds of self-training, GRAM-R2 (arXiv 2509.02492): each step reads files, writes one, and is left out where it is.

round-N/batch.jsonl       unlabeled pairs, all written before the first round
    predicted.jsonl       what the judge's runs say of each
    kept.jsonl            those whose label is kept, with it
    proofs.jsonl          the rationale that the prover gives each
    rationales.jsonl      those that have one
    merged.json           the data of this round's training: seed data and all rationales so far
    model/                the judge of the next round
    evaluated.jsonl       what it says of the held-out pairs
    report.json           counts
"""

import gc
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gram_fast.errors import GramFastError, InputError
from gram_fast.training.checkpoints import WEIGHTS, checkpoints
from gram_fast.training.output_folder import LOCK
from gram_fast.training.run_file import trained_pairs
from gram_fast.training.saving import SAVING
from gram_fast.training.self_training.config import SelfTrainConfig
from gram_fast.training.self_training.denoising import Denoised, denoise, parse_runs
from gram_fast.training.self_training.files import (
    count_lines,
    read_json,
    read_lines,
    write_chunks,
    write_json,
    write_lines,
)
from gram_fast.training.self_training.judging import Judging
from gram_fast.training.self_training.prover import Prover, load_prover
from gram_fast.training.self_training.report import Report, accuracy_of, share
from gram_fast.training.self_training.rows import PairRow, derived_seed
from gram_fast.training.train import train

HELD_OUT = "held-out.jsonl"
BATCH = "batch.jsonl"
REPORT = "report.json"


def round_folder(folder: Path, number: int) -> Path:
    """Folder of a round; round 0 has what the first judge says of the held-out pairs."""
    return folder / f"round-{number}"


def read_pairs(path: Path) -> Iterator[PairRow]:
    """Reads the pairs of a file of a round or of the held-out ones."""
    for row in read_lines(path):
        yield PairRow.parse(row, f"row {row['id']}")


@dataclass(frozen=True)
class Round:
    """One round in the folder of a run."""

    config: SelfTrainConfig
    folder: Path
    """Of the run."""
    number: int
    source: str
    """What messages call the configuration."""

    @property
    def path(self) -> Path:
        """Folder of the round."""
        return round_folder(self.folder, self.number)

    @property
    def judge(self) -> str:
        """Checkpoint that labels this round's batch; of round 0, the one that is evaluated."""
        return self.config.judge if self.number <= 1 else str(round_folder(self.folder, self.number - 1) / "model")

    def run(self) -> Report:
        """Runs what is left of the round -> its report."""
        if not (self.path / REPORT).exists():
            self.path.mkdir(exist_ok=True)
            if self.number > 0:
                for step in (self.predict, self.keep, self.prove, self.merge, self.train):
                    step()
                    gc.collect()  # the model of a step, before that of the next is loaded
            self.evaluate()
            write_json(self.path / REPORT, self.report())
        return read_json(self.path / REPORT)

    def predict(self) -> None:
        """Has the judge label the batch."""
        options = self.config.predict.options(derived_seed(self.config.seed, self.number, "predict"))
        self._judge(self.judge, options, self.path / BATCH, self.path / "predicted.jsonl")

    def evaluate(self) -> None:
        """Has the judge of the round judge the held-out pairs."""
        judge = str(self.path / "model") if self.number else self.judge
        options = self.config.evaluate.options(derived_seed(self.config.seed, "evaluate"))
        self._judge(judge, options, self.folder / HELD_OUT, self.path / "evaluated.jsonl")

    def _judge(self, judge: str, options: Any, pairs: Path, path: Path) -> None:
        if path.exists():
            return
        judging = Judging(judge, self.config.judge_options, options, self.config.max_batch_tokens)
        self._write_chunks(path, pairs, judging.predict)

    def keep(self) -> None:
        """Keeps the pairs whose label holds, with it."""
        path = self.path / "kept.jsonl"
        if not path.exists():
            write_lines(
                path,
                (
                    {**row.fields, "label": found.label, "p": found.p}
                    for row, found in self._denoised()
                    if found.reason is None
                ),
            )

    def _denoised(self) -> Iterator[tuple[PairRow, Denoised]]:
        limits = self.config.denoise
        predicted = read_lines(self.path / "predicted.jsonl")
        for row, found in zip(read_pairs(self.path / BATCH), predicted, strict=True):
            yield (
                row,
                denoise(
                    parse_runs(found["runs"]),
                    row.pair.preferred,
                    limits.min_probability,
                    limits.max_rationale_characters,
                ),
            )

    def prove(self) -> None:
        """Has the prover write rationales of the kept labels."""
        path = self.path / "proofs.jsonl"
        if not path.exists():
            self._write_chunks(path, self.path / "kept.jsonl", Proofs(self.config, self.number).of)

    def merge(self) -> None:
        """Writes the rationales, and the list of the data of this round's training.

        Raises InputError where there is nothing to train on.
        """
        if not (self.path / "rationales.jsonl").exists():
            rows = (row for row in read_lines(self.path / "proofs.jsonl") if row["rationale"] is not None)
            write_lines(self.path / "rationales.jsonl", rows)
        if not (self.path / "merged.json").exists():
            data = {"seed_data": self.config.seed_data, "rationales": self._rationale_files()}
            if not any(data.values()):
                raise InputError(
                    f"{self.source}: round {self.number}: none of its {count_lines(self.path / BATCH)} pairs has a "
                    f"rationale to train on, and there are no seed_data: see {self._why_none()}"
                )
            write_json(self.path / "merged.json", data)

    def _rationale_files(self) -> list[str]:
        """Files of this and earlier rounds, in the folder of the run, that are not empty."""
        names = (f"round-{number}/rationales.jsonl" for number in range(1, self.number + 1))
        return [name for name in names if (self.folder / name).stat().st_size]

    def _why_none(self) -> Path:
        kept = count_lines(self.path / "kept.jsonl")
        return self.path / ("proofs.jsonl" if kept else "predicted.jsonl")

    def train(self) -> None:
        """Trains the judge of the round on the whole of the data; its checkpoints are removed."""
        model = self.path / "model"
        if not any((model / name).exists() for name in WEIGHTS):
            merged = read_json(self.path / "merged.json")
            data = [*merged["seed_data"], *(str(self.folder / name) for name in merged["rationales"])]
            train("reason", *self.config.training(str(model), data, self.source))
        tidy(model)

    def report(self) -> Report:
        """Counts of the round."""
        found_of = list(read_lines(self.path / "evaluated.jsonl"))
        evaluated = accuracy_of(
            [
                (row.pair.preferred, found.get("p_a"))  # type: ignore[misc]
                for row, found in zip(read_pairs(self.folder / HELD_OUT), found_of, strict=True)
            ]
        )
        answers = [run for found in found_of for run in found["runs"]]
        evaluated |= {"answers": len(answers), "invalid": sum(run["label"] is None for run in answers)}
        if self.number == 0:
            return {"round": 0, "evaluated": evaluated}
        dropped, labeled, agree, kept = Counter[str](), 0, 0, 0
        for row, found in self._denoised():
            if found.reason is None:
                kept += 1
            else:
                dropped[found.reason] += 1
            if row.pair.preferred is not None and found.label is not None:
                labeled += 1
                agree += row.pair.preferred == found.label
        proofs, unproved = Counter[str](), Counter[str]()
        for proven in read_lines(self.path / "proofs.jsonl"):
            proofs.update(proven["proofs"])
            if proven["rationale"] is None:
                unproved[why_unproved(proven)] += 1
        merged = read_json(self.path / "merged.json")
        return {
            "round": self.number,
            "pairs": kept + dropped.total(),
            "kept": kept,
            "dropped": dict(sorted(dropped.items())),
            "agreement": {"labeled": labeled, "agree": agree, "share": share(agree, labeled)},
            "proofs": {**dict(sorted(proofs.items())), "unproved": dict(sorted(unproved.items()))},
            "rationales": count_lines(self.path / "rationales.jsonl"),
            "merged": {
                "seed_data": merged["seed_data"],
                "rationales": sum(count_lines(self.folder / name) for name in merged["rationales"]),
            },
            "trained_on": trained_pairs(self.path / "model"),
            "evaluated": evaluated,
        }

    def _write_chunks(self, path: Path, pairs: Path, make: Any) -> None:
        write_chunks(
            path,
            read_pairs(pairs),
            make,
            size=self.config.chunk_rows,
            total=count_lines(pairs),
            name=f"round {self.number}, {path.stem}",
        )


@dataclass(frozen=True)
class Proofs:
    """Proofs of a round, by a prover that is loaded when the first rows come."""

    config: SelfTrainConfig
    number: int

    @cached_property
    def _prover(self) -> Prover:
        steps = self.config.prove
        return load_prover(self.config.prover, self.config.judge_options, steps.options(), steps.sampling, steps.proofs)

    def of(self, rows: Sequence[PairRow]) -> list[dict[str, Any]]:
        """Proves the labels of rows -> rows that training reads; without a rationale where there is none, and why."""
        seeds = [derived_seed(self.config.seed, self.number, "prove", row.id) for row in rows]
        found = []
        for row, proven in zip(rows, self._prover.prove([row.pair for row in rows], seeds), strict=True):
            if isinstance(proven, InputError):
                found.append({**row.fields, "rationale": None, "score": None, "proofs": {}, "error": str(proven)})
            elif isinstance(proven, GramFastError):
                raise proven
            else:
                found.append({**row.fields, **proven.recorded})
        return found


def why_unproved(row: dict[str, Any]) -> str:
    """Why a row of proofs.jsonl has no rationale: most of its proofs' reason, of as frequent ones the first by name."""
    if "error" in row:
        return "a prompt that is too long"
    reasons: dict[str, int] = {
        reason: count for reason, count in row["proofs"].items() if reason not in ("written", "usable")
    }
    return min(reasons, key=lambda reason: (-reasons[reason], reason))


def tidy(model: Path) -> None:
    """Removes from the folder of a trained model what training needed: checkpoints, and what a kill left behind."""
    for path in (*checkpoints(model).values(), *model.glob("broken-checkpoint-*"), model / SAVING):
        shutil.rmtree(path, ignore_errors=True)
    (model / LOCK).unlink(missing_ok=True)
