"""A run of self-training: its folder, its data, its rounds, and the report over all of them."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainingArguments

from gram_fast.commands.options import BadRows
from gram_fast.errors import InputError
from gram_fast.models.checkpoint import find_template, load_config
from gram_fast.models.supported import plain_attention_span
from gram_fast.models.tokenizer import load_tokenizer
from gram_fast.training.config import RunConfig
from gram_fast.training.data.records import PairRecord, read_pair_records
from gram_fast.training.output_folder import LOCK, locked
from gram_fast.training.reader import drawn_orders, swapped
from gram_fast.training.reasoning import check_ending
from gram_fast.training.self_training.config import SelfTrainConfig
from gram_fast.training.self_training.files import PART, read_json, write_bytes, write_json, write_lines
from gram_fast.training.self_training.prover import check_room
from gram_fast.training.self_training.report import Report, draw_report
from gram_fast.training.self_training.rounds import BATCH, HELD_OUT, Round, round_folder
from gram_fast.training.self_training.rows import PairRow, derived_seed, labeled
from gram_fast.training.train import check_arguments

log = logging.getLogger(__name__)

RECORD = "self-train.json"
PICTURE = "report.png"
# Says, until the record takes its place, that the files of these names are a run's own.
_BEGUN = RECORD + PART
_EARLY = ((HELD_OUT,), (HELD_OUT + PART,), (_BEGUN,), (LOCK,))


def run_rounds(config: SelfTrainConfig, source: str) -> tuple[list[Report], bool]:
    """Runs what is left of all rounds -> the reports of rounds 0, 1, ..., and whether all had been done before.

    Killed at any moment, it goes on when it is called again, and ends with the same files. `source`: what messages call
    the configuration. Raises InputError where the folder has something else, data cannot be used or nothing is left to
    train on, and errors of loading, of the engine and of training.
    """
    folder = Path(config.output_dir).expanduser()
    training, arguments = config.training(str(folder), ["data"], source)
    check_processes(arguments, source)
    with locked(folder, arguments):
        check_folder(config, folder)
        was_done = (folder / PICTURE).exists()
        if not (folder / RECORD).exists():
            check_checkpoints(config, training, source)
            (folder / _BEGUN).touch()
            prepare(config, folder)
            write_json(folder / RECORD, config.recorded)
        reports = [Round(config, folder, number, source).run() for number in range(config.rounds + 1)]
        if not was_done:
            write_bytes(folder / PICTURE, draw_report(reports))
    return reports, was_done


def check_folder(config: SelfTrainConfig, folder: Path) -> None:
    """Raises InputError where a folder has the run of another configuration, or something else.

    What a run left there that did not get as far as its record, and nobody else, is removed.
    """
    if (folder / RECORD).exists():
        before = read_json(folder / RECORD)
        for key, value in config.recorded.items():
            if before.get(key) != value:
                raise InputError(
                    f"{key} was {before.get(key)!r} in output_dir {str(folder)!r}, now it is {value!r}: expected the "
                    "configuration that the run there began with, or another folder"
                )
        return
    paths = [path for path in folder.rglob("*") if not path.is_dir()]
    for path in paths:
        parts = path.relative_to(folder).parts
        is_batch = parts[0].startswith("round-") and parts[1:] in ((BATCH,), (BATCH + PART,))
        is_own = is_batch or parts in _EARLY if (folder / _BEGUN).exists() else parts == (LOCK,)
        if not is_own:
            raise InputError(
                f"output_dir {str(folder)!r} holds {path.relative_to(folder)} and no run of self-training: expected a "
                "new or empty folder"
            )
    for path in paths:
        if path.name not in (LOCK, _BEGUN):
            path.unlink()


def check_processes(arguments: TrainingArguments, source: str) -> None:
    """Raises InputError on several processes, and on arguments of training that it would refuse after hours of work."""
    if arguments.world_size > 1:
        raise InputError(
            f"{arguments.world_size} processes: expected one, as each would write the files of a run: start "
            "gram-fast self-train without accelerate launch"
        )
    try:
        check_arguments("reason", arguments)
    except InputError as error:
        raise InputError(f"{source}: train: {error}") from None


def check_checkpoints(config: SelfTrainConfig, training: RunConfig, source: str) -> None:
    """Finds out before hours of work what the configurations of the checkpoints tell. `training`: of any round.

    Raises InputError on a checkpoint that is not there, a prompt without a place for a verdict behind a rationale,
    proofs or training sequences that are too long, and answers that would not end; UnsupportedModelError as
    `plain_attention_span` and `load_tokenizer`.
    """
    hub = config.judge_options.hub
    names = {"judge": config.judge, "prover": config.prover, "base": config.base or config.judge}
    checkpoints = {key: load_config(name, **hub) for key, name in names.items()}
    for key, checkpoint in checkpoints.items():
        template = find_template(config.preset, checkpoint)
        if template.is_verifier or not template.answer_prefix.strip():
            raise InputError(
                f"{key}: preset {template.preset or 'of its own'} has no answer_prefix, which stands between a "
                "rationale and its verdict on a pair: expected a judge that reasons, or a preset such as gram-r2"
            )
    try:
        check_room(checkpoints["prover"], config.prove.max_new_tokens)
    except InputError as error:
        raise InputError(f"prove: {error}") from None
    limit, reason = plain_attention_span(checkpoints["base"].get_text_config(decoder=True))
    if training.cutoff_len > limit:
        raise InputError(f"{source}: train: cutoff_len: expected at most {limit} ({reason}), got {training.cutoff_len}")
    base, hub = training.model_name_or_path, {**hub, "revision": training.revision}
    template = find_template(training.preset, checkpoints["base"], training.chat_template_kwargs)
    check_ending(base, checkpoints["base"], template, load_tokenizer(base, training.tokenizer, **hub), **hub)


def prepare(config: SelfTrainConfig, folder: Path) -> None:
    """Writes the batches of all rounds and the held-out pairs.

    Raises InputError where there are fewer pairs than the rounds take, on bad rows without `skip_bad`, and on what
    training would not read of seed_data.
    """
    bad, ties = BadRows(config.skip_bad), Counter[str]()
    seeds = _read(config, config.seed_data, bad, ties)
    for pair in tqdm(seeds, desc="seed data", unit="pair", delay=2, disable=None):
        if pair.preferred is None:
            raise InputError(f"{pair.where}: expected a labeled pair in seed_data, this one has no label")
    pairs = _drawn(_read(config, config.unlabeled_data, bad, ties), config)
    for number in range(1, config.rounds + 1):
        round_folder(folder, number).mkdir(exist_ok=True)
        count = _write_pairs(
            round_folder(folder, number) / BATCH, islice(pairs, config.pairs_per_round), f"batch {number}"
        )
        if count < config.pairs_per_round:
            raise InputError(
                f"unlabeled_data: expected {config.rounds * config.pairs_per_round} pairs or more, for {config.rounds} "
                f"rounds of {config.pairs_per_round}, found {(number - 1) * config.pairs_per_round + count}"
            )
    held_out = (replace(pair, rationale=None) for pair in labeled(_read(config, config.eval_data, bad, ties), bad))
    rows = (PairRow(number, pair) for number, pair in enumerate(drawn_orders(held_out, config.seed), start=1))
    if not _write_pairs(folder / HELD_OUT, rows, "held-out pairs"):
        raise InputError(f"eval_data: no labeled pair in {', '.join(config.eval_data)}")
    if bad.skipped:
        log.warning("unlabeled_data, eval_data and seed_data: %d bad rows left out", len(bad.skipped))
    for names, count in ties.items():
        log.warning("%s: %d ties left out", names, count)


def _write_pairs(path: Path, rows: Iterable[PairRow], name: str) -> int:
    """Writes pairs -> how many."""
    count = 0

    def values() -> Iterator[dict[str, Any]]:
        nonlocal count
        for row in tqdm(rows, desc=name, unit="pair", delay=2, disable=None):
            count += 1
            yield row.fields

    write_lines(path, values())
    return count


def _read(config: SelfTrainConfig, names: list[str], bad: BadRows, ties: Counter[str]) -> Iterator[PairRecord]:
    """Reads pairs. `ties` counts those that are left out, by `names`; a reader may stop before the end."""
    template = find_template(config.preset, load_config(config.judge, trust_remote_code=config.trust_remote_code))
    for name in names:
        yield from read_pair_records(
            name,
            template=template,
            dataset_info=config.dataset_info,
            skip_bad=bad,
            on_tie=lambda _: ties.update([", ".join(names)]),
            include_reasoning=config.include_reasoning,
        )


def _drawn(pairs: Iterator[PairRecord], config: SelfTrainConfig) -> Iterator[PairRow]:
    """Pairs under their numbers, each in an order drawn for it: in many data sets the better response is the first."""
    for number, pair in enumerate(pairs, start=1):
        pair = replace(pair, rationale=None)
        if derived_seed(config.seed, "order", number) % 2:
            pair = swapped(pair)
        yield PairRow(number, pair)
