"""Runs trials one after the other within a time limit, and appends a record of each that is finished."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from tqdm import tqdm

from benchmarks.environment import environment
from benchmarks.real_judge.inputs import Inputs
from benchmarks.real_judge.measures import compare_modes, measure
from benchmarks.real_judge.scoring import Generative, Scalar, result
from benchmarks.real_judge.speed import Speeds, Work, flops_a_token, keys_of, peak_of, tests_of, work_of
from benchmarks.real_judge.trials import Plan, Trial, choose, stage_1_of
from benchmarks.two_modes import agreement
from gram_fast.comparing.modes import Mode
from gram_fast.evaluation.rows import Result
from gram_fast.training.checkpoints import checkpoints
from gram_fast.training.config import Stage

_TO_STOP = 60.0
"""Seconds that a training run gets to stop after an interruption."""
_BETWEEN_CHECKPOINTS = 300.0
_LIBRARIES = ("transformers", "accelerate", "peft", "liger_kernel")
"""Those that train, beside torch: their versions are in the records."""


class OutOfTimeError(Exception):
    """The time limit came before the end; what was done is kept."""


class TrialError(Exception):
    """A training run failed, and so would those of the same stage."""


@dataclass(frozen=True)
class Trained:
    """What a training run measured."""

    tokens: int
    seconds: float
    """Of its steps."""
    start: float
    """Seconds before and after them."""
    loss: float
    """Mean over the run."""


@dataclass(frozen=True)
class Tested:
    """What a judge said."""

    full: dict[str, list[Result]]
    """Of each test set, in mode full."""
    factored: dict[str, list[Result]]
    """The same in mode factored; empty for judges of mode full alone."""
    orders: list[list[list[int]]]
    """Of each group, those of `two_modes.orders`."""

    def in_both_modes(self) -> dict[str, Any]:
        """Measures mode factored, and where the modes differ."""
        return {
            "tests": {name: measure(results) for name, results in self.factored.items()},
            "agreement": {name: compare_modes(full, self.factored[name]) for name, full in self.full.items()},
            "groups": {"count": len(self.orders), **agreement(self.orders)},
        }


class Runner:
    """Runs trials in a folder: `records.jsonl`, `speeds.json`, and a folder of each trial."""

    def __init__(self, folder: Path, inputs: Inputs, plan: Plan, seconds: float) -> None:
        """The time limit begins now."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._inputs, self._plan, self._trials = folder, inputs, plan, plan.trials
        self._ends = time.monotonic() + seconds
        self._speeds = Speeds(folder / "speeds.json")
        self.records = read_records(folder)
        versions = {name: version(name) for name in _LIBRARIES if find_spec(name)}
        self._environment = {**environment(), **versions, "threads": torch.get_num_threads()}

    @property
    def done(self) -> set[Trial]:
        """The trials that have a record."""
        return {trial_of(record) for record in self.records}

    @property
    def left(self) -> float:
        """Seconds to the limit."""
        return self._ends - time.monotonic()

    def run(self) -> None:
        """Runs trials until none is left that fits."""
        try:
            while (trial := choose(self._trials, self.done, self.seconds, self.left)) is not None:
                try:
                    if trial.stage and not self._speeds.knows_training:
                        self._probe(trial.stage)
                        continue
                    about = f"about {self.seconds(trial) / 60:.1f} of {self.left / 60:.1f} minutes left"
                    _say(f"{_shown(trial)}: {about}")
                    self._run(trial)
                except TrialError as error:
                    _say(f"{_shown(trial)} is left out: {error}")
                    self._trials = [other for other in self._trials if other.stage != trial.stage]
            _say(f"nothing more fits into {self.left / 60:.1f} minutes" if self.left > 0 else "the time is over")
        except OutOfTimeError as reason:
            _say(f"stopped at the limit: {reason}")

    def seconds(self, trial: Trial) -> float:
        """Estimates what a trial takes from where it is."""
        folder = self._folder / trial.name
        training = 0.0
        if trial.stage and not _is_trained(folder):
            work = work_of(trial, self._plan, self._inputs)
            training = self._speeds.training(trial.stage, work.tokens * (1 - _steps_done(folder) / work.steps))
        return training + self._speeds.tests(trial)

    def _run(self, trial: Trial) -> None:
        folder = self._folder / trial.name
        trained, tested, took = None, Tested({}, {}, []), None
        if trial.stage:
            trained = self._train(trial, trial.stage, folder)
        if trial.is_tested:
            began = time.monotonic()
            tested = self._test(trial, folder if trial.stage else self._inputs.base, folder)
            took = time.monotonic() - began
        start = stage_1_of(trial, self.done) if trial.method == "two stages" else None
        record = {
            **asdict(trial),
            "unlabeled": start.pairs if start else 0,
            "training": trained,
            "test_seconds": took,
            "tests": {name: measure(results) for name, results in tested.full.items()},
            "factored": tested.in_both_modes() if trial.both_modes else None,
            "inputs": self._inputs.described,
            "keys": keys_of(trial.stage, self._plan) if trial.stage else None,
            "judge": self._plan.judge,
            **self._environment,
        }
        with (self._folder / "records.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.records.append(record)
        _say(f"{_shown(trial)}: {_told(record)}")

    def _train(self, trial: Trial, stage: Stage, folder: Path) -> dict[str, Any]:
        """Trains a trial, or goes on from its checkpoint -> what it measured."""
        if not _is_trained(folder):
            first, work = _steps_done(folder), work_of(trial, self._plan, self._inputs)
            start = stage_1_of(trial, self.done)
            base = self._folder / start.name if trial.method == "two stages" and start else self._inputs.base
            step = (self._speeds.training(stage, work.tokens) or _BETWEEN_CHECKPOINTS) / work.steps
            trained = self._command(
                stage, folder, replace(work, tokens=work.tokens * (work.steps - first) // work.steps),
                {
                    "model_name_or_path": str(base), "max_samples": trial.pairs, "seed": trial.seed,
                    "label_smoothing": trial.smoothing, "num_train_epochs": trial.epochs, "save_strategy": "steps",
                    "save_steps": max(1, round(_BETWEEN_CHECKPOINTS / step)),
                    **({"mode": "both"} if trial.both_modes else {}),
                },
            )  # fmt: skip
            speed = trained.tokens / trained.seconds
            if speed:  # none where all steps had been done before, and only the model was missing
                self._speeds.keep(stage, tokens_a_second=speed, start=trained.start)
            peak = peak_of(self._environment["device"])
            flops = flops_a_token(stage, self._inputs.config, self._inputs.lengths(stage)[: trial.pairs])
            share = speed * flops / peak if peak and "lora" not in self._plan.keys else None
            told = {**asdict(trained), "steps": work.steps, "tokens_a_second": speed, "share_of_peak": share}
            (folder / "trained.json").write_text(json.dumps(told), "utf-8")
        return dict(json.loads((folder / "trained.json").read_text("utf-8")))

    def _probe(self, stage: Stage) -> None:
        """Measures the speed of training in a few steps of a stage, which are thrown away."""
        folder, keys = self._folder / f"probe-{stage}", keys_of(stage, self._plan)
        steps = self._plan.probe_steps
        pairs = min(steps * keys["per_device_train_batch_size"], len(self._inputs.lengths(stage)))
        _say(f"speed of {stage}: {steps} steps")
        shutil.rmtree(folder, ignore_errors=True)
        work = Work(int(self._inputs.lengths(stage)[:pairs].sum()), steps)
        trained = self._command(
            stage, folder, work,
            {
                "model_name_or_path": str(self._inputs.base), "max_samples": pairs, "num_train_epochs": 1,
                "save_strategy": "no",
            },
        )  # fmt: skip
        self._speeds.keep(stage, tokens_a_second=trained.tokens / trained.seconds, start=trained.start)
        shutil.rmtree(folder)

    def _command(self, stage: Stage, folder: Path, work: Work, values: dict[str, Any]) -> Trained:
        """Runs `gram-fast train` with these keys; `work` is what is left of it. Raises OutOfTimeError at the limit."""
        resumes = bool(checkpoints(folder)) if folder.exists() else False
        if not resumes:
            shutil.rmtree(folder, ignore_errors=True)
        config, log = (folder.parent / f"{folder.name}.{ending}" for ending in ("yaml", "log"))
        keys = {
            "output_dir": str(folder), "train_data": str(self._inputs.data(stage)),
            "preset": self._inputs.described["preset"], **keys_of(stage, self._plan), **values,
        }  # fmt: skip
        config.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()), "utf-8")
        command = ["train", stage, str(config), *(["resume_from_checkpoint=true"] if resumes else [])]
        began = time.monotonic()
        logged = summary_of(launch(command, log, self.left))
        seconds = logged["train_runtime"]
        return Trained(work.tokens, seconds, time.monotonic() - began - seconds, logged["train_loss"])

    def _test(self, trial: Trial, model: Path, folder: Path) -> "Tested":
        """Scores all test sets that are not scored yet, those of both modes in each, and ranks the groups in both."""
        folder.mkdir(exist_ok=True)
        names = list(self._inputs.described["tests"])
        modes: tuple[Mode, ...] = get_args(Mode) if trial.both_modes else ("full",)
        files = {(mode, name): folder / _scores_of(name, mode) for mode in modes for name in names}
        missing = [test for test, path in files.items() if not path.exists()]
        ranked, groups = folder / "orders.jsonl", self._inputs.groups() if trial.both_modes else []
        if missing or len(read_orders(ranked)) < len(groups):
            began = time.monotonic()
            options = {**self._plan.judge, "preset": self._inputs.described["preset"]}
            judge = Scalar(model, options) if trial.method == "scalar head" else Generative(model, options)
            for mode, name in missing:
                self._score(judge, name, mode, files[mode, name])
            if isinstance(judge, Generative):
                self._rank(judge, groups, ranked)
            if missing == list(files):
                self._speeds.keep(tests_of(trial), seconds=time.monotonic() - began)
        scores = {test: read_scores(path, self._inputs.test(test[1])) for test, path in files.items()}
        return Tested(
            full={name: scores["full", name] for name in names},
            factored={name: scores["factored", name] for name in names if trial.both_modes},
            orders=read_orders(ranked),
        )

    def _score(self, judge: Generative | Scalar, name: str, mode: Mode, path: Path) -> None:
        """Scores a test set and keeps the scores. Raises OutOfTimeError at the limit."""
        rows, results = self._inputs.test(name), []
        with tqdm(total=len(rows), desc=f"{name} ({mode})", unit=" pairs", disable=None) as bar:
            for some in judge.score(rows, mode) if isinstance(judge, Generative) else judge.score(rows):
                results += some
                bar.update(len(some))
                self._check_limit(path)
        scores = [(scored.score_chosen, scored.by_slot) for scored in results]
        path.write_text(json.dumps(scores), "utf-8")

    def _rank(self, judge: Generative, groups: Sequence[dict[str, Any]], path: Path) -> None:
        """Ranks the groups that are not ranked yet and keeps the orders of each. Raises OutOfTimeError at the limit."""
        for group in tqdm(groups[len(read_orders(path)) :], desc="groups", unit=" groups", disable=None):
            found = judge.orders(group)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            self._check_limit(path)

    def _check_limit(self, path: Path) -> None:
        if self.left < 0:
            raise OutOfTimeError(f"{path.parent.name} goes on with {path.stem}")


def launch(arguments: Sequence[str], log: Path, seconds: float) -> str:
    """Runs a command of `gram-fast`, with its progress on the screen -> what it printed, which is kept in `log`.

    Raises OutOfTimeError where it takes longer: it is interrupted then, as by Ctrl-C.
    """
    command = [sys.executable, "-m", "gram_fast.cli", *arguments]
    # Lengths of batches keep changing, and for each oneDNN keeps a compiled product.
    surroundings = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", **os.environ}
    with log.open("w", encoding="utf-8") as file, subprocess.Popen(command, stdout=file, env=surroundings) as process:
        try:
            process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
            raise OutOfTimeError(f"{log.name.removesuffix('.log')} goes on from its last checkpoint") from None
    if process.returncode:
        raise TrialError(f"{' '.join(command)} failed with exit code {process.returncode}, as it says above")
    return log.read_text("utf-8")


def trial_of(record: dict[str, Any]) -> Trial:
    """Reads which trial a record is of."""
    return Trial(**{field.name: record[field.name] for field in fields(Trial)})


def read_scores(path: Path, rows: Sequence[dict[str, Any]]) -> list[Result]:
    """Reads what a judge said of the pairs of a test set."""
    return [
        result(row, p, by_slot) for row, (p, by_slot) in zip(rows, json.loads(path.read_text("utf-8")), strict=True)
    ]


def read_orders(path: Path) -> list[list[list[int]]]:
    """Reads the orders of the groups that are ranked."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Reads the records of a folder; a line that was cut is left out."""
    path = folder / "records.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
    # A record without these is of the time when every trial had one epoch and mode full.
    first = {"epochs": 1, "both_modes": False, "factored": None}
    return [{**first, **json.loads(line)} for line in lines if line.endswith("\n")]


def summary_of(log: str) -> dict[str, float]:
    """Finds the numbers that transformers prints at the end of a training run."""
    lines = [line[line.index("{") :] for line in log.splitlines() if "'train_runtime'" in line]
    return {key: float(value) for key, value in ast.literal_eval(lines[-1].strip()).items()}


def _is_trained(folder: Path) -> bool:
    return (folder / "trained.json").exists()


def _steps_done(folder: Path) -> int:
    return max(checkpoints(folder), default=0) if folder.exists() else 0


def _shown(trial: Trial) -> str:
    pairs = f" with {trial.pairs:,} pairs" if trial.pairs else ""
    modes = " in both modes" if trial.both_modes else ""
    return f"{trial.method}{pairs}{'' if trial.smoothing else ', no smoothing'}{modes}"


def _scores_of(name: str, mode: Mode) -> str:
    return f"scores-{name}.json" if mode == "full" else f"scores-{name}-{mode}.json"


def _told(record: dict[str, Any]) -> str:
    training = record["training"]
    told = [f"{training['tokens_a_second']:.0f} tokens a second"] if training else []
    return ", ".join(told + [f"{name} {values['accuracy']:.3f}" for name, values in record["tests"].items()])


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)
