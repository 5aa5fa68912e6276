"""The command `gram-fast prove`: rationales for labeled pairs, as rows that training reads."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from gram_fast.commands.chunks import chunks
from gram_fast.commands.jobs import pending_rows, read_ahead
from gram_fast.commands.options import BadRows, stderr
from gram_fast.commands.output import INPUT_DIGEST, Output, open_output
from gram_fast.commands.reasoning import EngineFlags, engine_options
from gram_fast.errors import GramFastError, InputError
from gram_fast.generating.generator import Sampling
from gram_fast.generating.options import ReasoningOptions
from gram_fast.models.options import Flag, JudgeOptions
from gram_fast.rows.source import comes_live

if TYPE_CHECKING:
    from gram_fast.text.prompts import PairTemplate
    from gram_fast.training.self_training.prover import Prover
    from gram_fast.training.self_training.rows import PairRow

# Times that a chunk of rows fills the engine: enough to keep it busy, and little is lost in an interruption.
_ROUNDS = 4
# Options of JudgeOptions, and what every output row records of all options.
_JUDGE = (
    "preset", "chat_template_kwargs", "tokenizer", "device", "dtype", "include_reasoning", "revision",
    "trust_remote_code",
)  # fmt: skip
_RECORDED = (
    "model", "preset", "chat_template_kwargs", "tokenizer", "include_reasoning", "revision", "proofs", "temperature",
    "max_new_tokens",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProveOptions(EngineFlags):
    """Options of `gram-fast prove`."""

    model: Annotated[str, typer.Option("--model", "-m", help="The prover: a folder, or a name on the hub.")]
    input: Annotated[
        str, typer.Option("--input", "-i", help="Labeled pairs: a file or name as for training, or - for stdin.")
    ]
    output: Annotated[str, typer.Option("--output", "-o", help="File for JSON lines; - for standard output.")]
    proofs: Annotated[int, typer.Option(min=1, help="Proofs that are written for each pair.")] = 4
    temperature: Annotated[float, typer.Option(help="Of drawing tokens; above 0 for more than one proof.")] = 0.75
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a proof.")] = 1024
    seed: Annotated[int, typer.Option(min=0, help="Of the proofs, and of the orders in which pairs are shown.")] = 0
    preset: Annotated[
        str, typer.Option(help="Judge prompt: auto (what the prover records, else gram), a preset or a file.")
    ] = "auto"
    chat_template_kwargs: Annotated[
        Mapping[str, Any] | None,
        Flag(dict, 'Variables of the prover\'s chat template, as JSON: {"date_string": "26 Jul 2024"}.'),
    ] = None
    tokenizer: Annotated[
        str | None, typer.Option(help="Checkpoint whose tokenizer and chat template are used in place of the prover's.")
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto"
    dataset_info: Annotated[
        str | None, typer.Option(help="A LLaMA-Factory dataset_info.json that names sets of pairs.")
    ] = None
    include_reasoning: Annotated[
        bool, typer.Option("--include-reasoning", help="Let the prover read the reasoning in chat messages.")
    ] = False
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")
    ] = False
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the output that an earlier run began.")] = False
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Pass over bad rows, name them and count them.")] = False

    def __post_init__(self) -> None:
        _ = self.judge, self.writing  # raise on wrong ones

    @property
    def judge(self) -> JudgeOptions:
        """What loads the prover. Raises errors like JudgeOptions."""
        return JudgeOptions(**{name: getattr(self, name) for name in _JUDGE})

    @property
    def writing(self) -> ReasoningOptions:
        """The engine and how it draws. Raises errors like ReasoningOptions, and InputError on equal proofs."""
        flags = {name: value for name in EngineFlags.__dataclass_fields__ if (value := getattr(self, name)) is not None}
        options = ReasoningOptions(**engine_options(flags))
        if self.proofs > 1 and self.temperature == 0:
            raise InputError(
                f"temperature: {self.proofs} proofs with 0 would be one proof {self.proofs} times: expected proofs 1, "
                "or a temperature above 0"
            )
        return options

    @property
    def sampling(self) -> Sampling:
        """How proofs are drawn."""
        return Sampling(self.max_new_tokens, self.temperature)


@dataclass
class _Counts:
    """What became of the rows of a run."""

    rows: int = 0
    rationales: int = 0
    ties: int = 0
    written: int = 0
    unusable: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        unusable = ", ".join(f"{count} {reason}" for reason, count in sorted(self.unusable.items()))
        return f"{self.written} proofs, of which unusable: {unusable or 'none'}"


def prove(options: ProveOptions) -> None:
    """Write proofs of the labels of pairs with a proving model, and keep the best of each pair as its rationale."""
    try:
        from gram_fast.training.self_training.prover import load_prover, prover_prompt
    except ModuleNotFoundError as error:
        from gram_fast.errors import BackendError

        raise BackendError(f"proving wants the extra 'train', pip install 'gram_fast[train]': {error}") from None
    bad, counts = BadRows(options.skip_bad), _Counts()
    is_live = comes_live(options.input)
    with open_output(options.output, options.input, options.resume) as output:
        template = prover_prompt(options.model, options.judge)
        read = _read(options, template, bad, counts)
        with read_ahead(pending_rows(read, output), is_live) as rows:
            already = len(output.done)
            if rows.has_ended:
                bad.check(rows.count + already)
            output.record(**_settings(options))
            prover = load_prover(options.model, options.judge, options.writing, options.sampling, options.proofs)
            output.record(prompt_digest=prover.prompt_digest)
            least = max(1, _ROUNDS * prover.generator.at_once // options.proofs)
            with tqdm(initial=already, unit="row", delay=2, disable=None) as bar:
                for chunk in chunks(rows, lambda row: 1, least, lambda: is_live and rows.is_waiting):
                    if rows.has_ended:
                        bar.total = already + rows.count
                    _prove_chunk(chunk, prover, options.seed, output, bad, counts, bar)
        bad.check(counts.rows + already)
    ties = f", {counts.ties} ties left out" if counts.ties else ""
    stderr.print(
        f"gram-fast: {counts.rows} rows written, {counts.rationales} with a rationale, {already} already there, "
        f"{len(bad.skipped)} skipped{ties}; {counts}",
        markup=False,
    )


def _read(options: ProveOptions, template: "PairTemplate", bad: BadRows, counts: _Counts) -> "Iterator[PairRow]":
    """The labeled pairs, in orders drawn by the seed: rationales must not all be of A."""
    from gram_fast.training.data.records import read_pair_records
    from gram_fast.training.reader import drawn_orders
    from gram_fast.training.self_training.rows import labeled, with_ids

    def on_tie(where: str) -> None:
        counts.ties += 1

    pairs = read_pair_records(
        options.input,
        template=template,
        dataset_info=options.dataset_info,
        skip_bad=bad,
        on_tie=on_tie,
        include_reasoning=options.include_reasoning,
    )
    own = (replace(pair, rationale=None) for pair in labeled(pairs, bad))
    return with_ids(drawn_orders(own, options.seed), bad)


def _settings(options: ProveOptions) -> dict[str, Any]:
    """What every output row records, and --resume compares, but for what is known of a loaded prover alone."""
    from gram_fast.models.checkpoint import load_config
    from gram_fast.models.digest import config_digest

    return {
        "command": "prove",
        **{name: getattr(options, name) for name in _RECORDED},
        "seed": options.seed,
        "engine": "server" if options.writing.urls else options.writing.engine,
        "config_digest": config_digest(load_config(options.model, **options.judge.hub)),
    }


def _prove_chunk(
    chunk: "Sequence[PairRow]",
    prover: "Prover",
    seed: int,
    output: Output,
    bad: BadRows,
    counts: _Counts,
    bar: Any,
) -> None:
    """Proves and writes a chunk of rows; the errors of single rows are handled once all others are written."""
    from gram_fast.training.self_training.rows import derived_seed

    errors = []
    seeds = [derived_seed(seed, row.id) for row in chunk]
    for row, proven in zip(chunk, prover.prove([row.pair for row in chunk], seeds, bar.update), strict=True):
        if isinstance(proven, GramFastError):
            errors.append(proven)
            continue
        output.write({**row.fields, **proven.recorded, INPUT_DIGEST: row.digest})
        counts.rows += 1
        counts.written += proven.written
        counts.rationales += proven.rationale is not None
        counts.unusable.update(proven.unusable)
    for error in errors:
        bad(error)
