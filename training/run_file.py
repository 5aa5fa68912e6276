"""The file run.json of a run: its settings, with which alone it is resumed, and how many pairs it learns from."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from gram_fast.errors import InputError, one_line
from gram_fast.text.prompts import PairTemplate
from gram_fast.training.checkpoints import WEIGHTS, find_whole, problem
from gram_fast.training.config import RunConfig, Stage
from gram_fast.training.output_folder import LOCK
from gram_fast.training.saving import SAVING, write_whole, writing

_RUN_FILE = "run.json"
# Key in it of the variables that the chat template was given, with the date that was fixed.
_DATED = "dated_chat_template_kwargs"
# Key of what became of the pairs of its data sets, as DataReader counts them.
_COUNTS = "counts"
# Parts of the names of TrainingArguments that may differ when a run is resumed: output, logging, saving, reading ahead.
_FREE = (
    "dir",
    "log",
    "report",
    "save",
    "push",
    "hub",
    "resume",
    "tqdm",
    "run_name",
    "local_rank",
    "workers",
    "pin_memory",
    "prefetch",
    "multiprocessing",
    "ddp",
)


def checkpoint_to_resume(stage: Stage, config: RunConfig, arguments: TrainingArguments) -> str | None:
    """Finds the checkpoint to resume from: the one named, else the last whole one of an interrupted run, or None.

    Raises InputError when the output folder is not empty and does not hold an unfinished run of the same configuration,
    or when resuming was not requested.
    """
    folder, asked = Path(config.output_dir), arguments.resume_from_checkpoint
    named = isinstance(asked, str) and asked not in ("true", "auto")
    if named and (reason := problem(Path(asked), arguments)):
        raise InputError(f"resume_from_checkpoint: {asked!r} is no whole checkpoint of a run: {reason}")
    if all(path.name in (LOCK, SAVING) for path in folder.iterdir()):
        return asked if named else None
    if not asked:
        raise InputError(
            f"output_dir {config.output_dir!r} is not empty: go on with resume_from_checkpoint=true, or name another"
        )
    if not (folder / _RUN_FILE).is_file():
        raise InputError(f"output_dir {config.output_dir!r} holds no training run to go on with")
    _check_same(_read_run_file(folder / _RUN_FILE), _run_record(stage, config, arguments), config.output_dir)
    if any((folder / name).exists() for name in WEIGHTS):
        raise InputError(f"output_dir {config.output_dir!r} holds a run that is finished")
    if named:
        return str(asked)
    checkpoint = find_whole(folder, arguments)
    return None if checkpoint is None else str(checkpoint)


def dated_before(checkpoint: str | None) -> dict[str, Any]:
    """Variables of the chat template in the run of a checkpoint: resumed, it goes on with the date of its beginning."""
    run_file = Path(checkpoint or "").parent / _RUN_FILE
    if checkpoint is None or not run_file.is_file():
        return {}
    return dict(_read_run_file(run_file).get(_DATED, {}))


def write_run_file(
    stage: Stage,
    config: RunConfig,
    arguments: TrainingArguments,
    template: PairTemplate,
    counts: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes the settings of a run that begins or goes on, and `DataReader.counts`; by the main process."""
    if arguments.process_index == 0:
        record = {**_run_record(stage, config, arguments), _DATED: template.chat_template_kwargs, _COUNTS: counts}
        folder = Path(config.output_dir)
        with writing(_RUN_FILE, folder):
            write_whole(folder / _RUN_FILE, json.dumps(record, indent=2) + "\n")


def trained_pairs(folder: Path) -> dict[str, Any]:
    """What `DataReader.counts` has of the training data of the run in a folder, which was in memory."""
    return dict(_read_run_file(folder / _RUN_FILE)[_COUNTS]["train_data"])


def _read_run_file(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the settings of the run in {path}: {one_line(error)}") from None
    if not isinstance(record, dict):
        raise InputError(f"cannot read the settings of the run in {path}: expected an object, got {record!r:.80}")
    return record


def _check_same(before: dict[str, Any], now: dict[str, Any], folder: str) -> None:
    for key, value in now.items():
        if key not in before:
            raise InputError(
                f"output_dir {folder!r} holds a run of another version of gram_fast or transformers, which had no key "
                f"{key!r}: expected that version to go on with it"
            )
        if before[key] != value:
            raise InputError(f"{key} was {before[key]!r}, now it is {value!r}: expected the run that is resumed")


def _run_record(stage: Stage, config: RunConfig, arguments: TrainingArguments) -> dict[str, Any]:
    """The settings that must be equal for a run to be resumed, as JSON values."""
    theirs = {key: value for key, value in arguments.to_dict().items() if not any(word in key for word in _FREE)}
    own = {"stage": stage, **asdict(config), "num_processes": arguments.world_size, **theirs}
    own["output_dir"] = str(Path(config.output_dir).resolve())
    return dict(json.loads(json.dumps(own, default=str)))
