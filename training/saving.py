"""Saves of a run: whole or absent, of finite weights, tried before the first step; a full disk is one sentence."""

import errno
import itertools
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import GenerationConfig, TrainingArguments

from gram_fast.errors import InputError, NumericalError, one_line
from gram_fast.training.checkpoints import WEIGHTS, how_to_go_on

log = logging.getLogger(__name__)

SAVING = ".saving"
"""Folder in output_dir in which everything is written before it gets its name."""


@contextmanager
def staged_folder(folder: Path, writes: bool) -> Iterator[Path]:
    """Yields a folder that is renamed to `folder` at the end, or removed on an error; `writes`: by this process."""
    staged = folder.parent / SAVING / folder.name
    with cleared(staged if writes else None), writing(folder.name, folder.parent):
        yield staged
        if writes:
            sync(staged)
            replace(staged, folder)


@contextmanager
def staged_model(folder: Path, writes: bool = True) -> Iterator[Path]:
    """Yields a folder in which to write the trained model, whose files then move into `folder`, the weights last.

    A model is in `folder` if and only if its weights are: a save that is interrupted leaves none, and is made again
    when the run is resumed. `writes`: whether this process writes.
    """
    staged = folder / SAVING / "model"
    with cleared(staged if writes else None), writing("the trained model", folder):
        yield staged
        if not writes:
            return
        if not any((staged / name).is_file() for name in WEIGHTS):
            raise InputError(f"no weights were written for {folder}: expected one of {', '.join(WEIGHTS)}")
        sync(staged)
        for path in sorted(staged.iterdir(), key=lambda path: (path.name in WEIGHTS, path.name)):
            replace(path, folder / path.name)


@contextmanager
def cleared(path: Path | None) -> Iterator[None]:
    """Removes what is left of a file or folder in `SAVING` at the end, and `SAVING` where nothing else is in it."""
    try:
        yield
    finally:
        if path is not None:
            with suppress(OSError):
                if path.is_dir():
                    shutil.rmtree(path)
                path.unlink(missing_ok=True)
                path.parent.rmdir()


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Raises what writers raise on a full or broken disk as an InputError of one sentence."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else one_line(error)
        if isinstance(error, RuntimeError):
            # torch's writer of archives has no type of its own, and says positions instead of what the system said.
            if "inline_container" not in reason:
                raise
            reason = "torch could write only a part"
        raise InputError(
            f"cannot write {what} into {folder} ({reason}; {_free(folder)} free): {how_to_go_on(folder)}"
        ) from error


def sync(folder: Path) -> None:
    """Waits until the files and names in a folder are on the disk: some file systems find out here that it is full."""
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # a file system without such a call
            raise
    finally:
        os.close(descriptor)


def replace(path: Path, target: Path) -> None:
    """Renames a file or folder to `target`, which may be an older one."""
    if target.is_dir():
        shutil.rmtree(target)
    path.replace(target)
    _sync_one(target.parent)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that is whole or absent."""
    staged = path.parent / SAVING / path.name
    with cleared(staged):
        staged.parent.mkdir(exist_ok=True)
        staged.write_text(text, "utf-8")
        sync(staged.parent)
        replace(staged, path)


def check_weights(model: Any, what: str) -> None:
    """Raises NumericalError for a weight that is not finite; `what` is not saved then. One wait for the device."""
    if name := weight_not_finite(model):
        raise NumericalError(f"{what} is not saved: the weight {name!r} is not finite, expected finite numbers")


def weight_not_finite(model: Any) -> str | None:
    """Name of a weight of this process that is not finite, or None."""
    shards = ((name, _shard(weight)) for name, weight in model.named_parameters())
    # Formats of quantized weights, of one byte, have no norm.
    named = [
        (name, shard) for name, shard in shards if shard.numel() and shard.is_floating_point() and shard.itemsize > 1
    ]
    if not named:
        return None
    # The largest magnitude is NaN or infinite where any element is, and takes no memory.
    device = named[0][1].device
    largest = torch.stack([torch.linalg.vector_norm(shard, torch.inf).float().to(device) for _, shard in named])
    return next(itertools.compress((name for name, _ in named), (~largest.isfinite()).tolist()), None)


def _shard(weight: Tensor) -> Tensor:
    """The part of a weight that this process has: of FSDP2's, of ZeRO-3's, or all of it."""
    weight = getattr(weight, "ds_tensor", weight).detach()
    return weight.to_local() if hasattr(weight, "to_local") else weight


def drop_invalid_generation_config(model: Any) -> None:
    """Reduces a generation configuration that transformers refuses to save to its token ids, with a warning.

    Many checkpoints have one, such as `do_sample: false` beside a temperature. Judges do not generate: neither is that
    a reason not to train, nor are the settings worth guessing.
    """
    if not model.can_generate():
        return
    before = model.generation_config
    try:
        before.validate(strict=True)
    except ValueError:
        ids = {key: getattr(before, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        if isinstance(ids["pad_token_id"], int) and ids["pad_token_id"] < 0:
            del ids["pad_token_id"]
        model.generation_config = GenerationConfig(**ids)
        dropped = before.to_diff_dict().keys() - model.generation_config.to_diff_dict().keys()
        log.warning(
            "the checkpoint's generation_config.json is invalid: only its token ids are kept, %s left out",
            ", ".join(sorted(dropped)),
        )


def rehearse(model: Any, tokenizer: Any, arguments: TrainingArguments, folder: Path) -> None:
    """Writes into `folder` all that a save writes except the weights, removes it, and compares free space with weights.

    Raises InputError when the save that follows the training would fail.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    staged = folder / SAVING / "rehearsal"
    shutil.rmtree(staged.parent, ignore_errors=True)  # of a run that was killed
    try:
        with cleared(staged):
            staged.mkdir(parents=True)
            base.save_pretrained(staged, state_dict={})
            tokenizer.save_pretrained(staged)
            torch.save(arguments, staged / "training_args.bin")
            if base is not model:
                model.save_pretrained(staged / "adapter")
    except Exception as error:  # configurations, tokenizers and peft raise anything
        raise InputError(f"the trained model could not be saved into {folder}: {one_line(error)}") from error
    needed = _num_bytes(base.parameters())
    if arguments.save_strategy != "no":
        needed += _num_bytes(weight for weight in model.parameters() if weight.requires_grad)
    if needed > shutil.disk_usage(folder).free:
        raise InputError(
            f"output_dir {str(folder)!r}: expected at least {_gigabytes(needed)} of free disk for the weights, got "
            f"{_free(folder)}"
        )


def _num_bytes(weights: Iterator[Tensor]) -> int:
    return sum(getattr(weight, "ds_numel", weight.numel()) * weight.element_size() for weight in weights)


def _free(folder: Path) -> str:
    return _gigabytes(shutil.disk_usage(folder).free)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
