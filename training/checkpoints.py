"""Checkpoints of a run: which of them are whole, and which one a resumed run goes on from."""

import itertools
import json
import logging
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from gram_fast.errors import InputError, one_line

log = logging.getLogger(__name__)

WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
"""Names of the file without which a folder holds no model."""

_STATE = "trainer_state.json"
# What Trainer resumes from, as (plain or peft, FSDP) names; a name is a file, a folder, or the beginning of either.
_PLAIN = {"weights": (*WEIGHTS, "adapter_model.safetensors"), "optimizer": ("optimizer.pt",)}
_FSDP = {"weights": ("pytorch_model_fsdp",), "optimizer": ("optimizer.bin", "optimizer_")}
_FSDP_FILES = ("pytorch_model_fsdp.bin", "optimizer.bin")
# DeepSpeed's file with the name of the folder that holds weights, optimizer and scheduler.
_DEEPSPEED = "latest"


def checkpoints(folder: Path) -> dict[int, Path]:
    """Returns the checkpoint folders of a run by their step, whole or not."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    found = (path for path in folder.glob(f"{prefix}*") if path.is_dir())
    return {int(step): path for path in found if (step := path.name.removeprefix(prefix)).isdecimal()}


def how_to_go_on(folder: Path) -> str:
    """Says whether and how the run in `folder` is resumed, and from which checkpoint."""
    found = checkpoints(folder)
    if found and not any(found[max(found)].glob("rng_state*")):
        return f"it cannot be resumed, as save_only_model left the optimizer out of {found[max(found)].name}"
    where = f"from {found[max(found)].name}" if found else "from its beginning, there being no checkpoint yet"
    return f"resume_from_checkpoint=true goes on {where}"


def find_whole(folder: Path, arguments: TrainingArguments) -> Path | None:
    """Returns the newest whole checkpoint of a run, or None where there is no checkpoint at all.

    Newer ones that are not whole are named in a warning and renamed to broken-checkpoint-N: their steps are trained and
    written again, and transformers would count them among the newest that are kept. Raises InputError where there are
    checkpoints and none is whole.
    """
    broken: list[tuple[Path, str]] = []
    for _, checkpoint in sorted(checkpoints(folder).items(), reverse=True):
        reason = problem(checkpoint, arguments)
        if reason is None:
            for path, why in broken:
                log.warning("%s is not whole (%s): the run goes on from %s", path.name, why, checkpoint.name)
                _set_aside(path)
            return checkpoint
        broken.append((checkpoint, reason))
    if broken:
        reasons = ", ".join(f"{path.name} ({reason})" for path, reason in broken)
        raise InputError(f"output_dir {str(folder)!r} has no whole checkpoint to go on from: {reasons}")
    return None


def problem(checkpoint: Path, arguments: TrainingArguments) -> str | None:
    """Says what keeps a run from being resumed exactly from a checkpoint; None where it is whole.

    A whole one has weights, optimizer, scheduler, the random state of every process (of this machine) and the trainer's
    state, and every file opens: JSON parses, and tensors are as long as their headers say. Tensors are not read.
    """
    if not checkpoint.is_dir():
        return "there is no such folder"
    return next(itertools.chain(_missing(checkpoint, arguments), _cut(checkpoint)), None)


def _missing(checkpoint: Path, arguments: TrainingArguments) -> Iterator[str]:
    names = {path.name for path in checkpoint.iterdir()}
    if not names:
        yield "it is empty"
    if _DEEPSPEED in names:
        tag = checkpoint / (checkpoint / _DEEPSPEED).read_text("utf-8", "replace").strip()
        if not any(tag.glob("*_states.pt")):
            yield f"it has no {tag.name}/*_states.pt"
    else:
        parts = _FSDP if any(name.startswith(_FSDP["weights"] + _FSDP["optimizer"]) for name in names) else _PLAIN
        for part, beginnings in parts.items():
            if not any(name.startswith(beginnings) for name in names):
                yield f"it has no {part}, expected {' or '.join(beginnings)}"
        if "scheduler.pt" not in names:
            yield "it has no scheduler.pt"
        if arguments.fp16 and "scaler.pt" not in names:
            yield "it has no scaler.pt"
    # Machines without a common disk hold the files of their own processes.
    count = min(arguments.world_size, int(os.environ.get("LOCAL_WORLD_SIZE", arguments.world_size)))
    wanted = [f"rng_state_{k}.pth" for k in range(count)] if arguments.world_size > 1 else ["rng_state.pth"]
    for name in (*wanted, _STATE):
        if name not in names:
            yield f"it has no {name}"


def _cut(checkpoint: Path) -> Iterator[str]:
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix in (".pt", ".pth") or path.name in _FSDP_FILES:
                # The directory of an archive is its end.
                with zipfile.ZipFile(path) as archive:
                    archive.infolist()
            elif path.suffix == ".json":
                _check_json(path)
        except Exception as error:  # of a broken file, any
            yield f"{path.relative_to(checkpoint)} is cut or broken: {one_line(error)}"


def _check_json(path: Path) -> None:
    value = json.loads(path.read_text("utf-8"))
    if path.name == _STATE and not (isinstance(value, dict) and isinstance(value.get("global_step"), int)):
        raise ValueError("expected an object with global_step")
    if path.name == SAFE_WEIGHTS_INDEX_NAME:
        if not (isinstance(value, dict) and isinstance(value.get("weight_map"), dict)):
            raise ValueError("expected an object with weight_map")
        for name in sorted(set(value["weight_map"].values())):
            if not (path.parent / name).is_file():
                raise ValueError(f"it names {name}, which is not there")


def _set_aside(path: Path) -> None:
    names = (f"broken-{path.name}" + (f"-{number}" if number else "") for number in itertools.count())
    path.rename(next(target for name in names if not (target := path.with_name(name)).exists()))
