"""The command line: gram-fast compare | rank | best-of-n | verify | serve | eval | train | data | doctor | ...

and of judges that reason: gram-fast prove | self-train.
"""

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import disable_progress_bars
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import gram_fast
from gram_fast.commands.jobs import (
    Job,
    JobRow,
    OneJudge,
    Scorer,
    parse_columns,
    pending_rows,
    read_ahead,
    read_job_rows,
    score_rows,
)
from gram_fast.commands.options import BadRows, ReadingMode, RowOptions, changed_mode, command, stderr
from gram_fast.commands.output import Output, open_output
from gram_fast.commands.writers import brief_rows, tables, whole_rows
from gram_fast.comparing.comparer import Comparer
from gram_fast.comparing.modes import check_mode, in_mode
from gram_fast.comparing.orders import check_orders
from gram_fast.errors import GramFastError, InputError, InterruptedRunError
from gram_fast.evaluation.command import app as evaluation_app
from gram_fast.models.options import JudgeOptions
from gram_fast.ranking.packed import DUEL, compare_groups, rank_groups, select, verify_groups
from gram_fast.ranking.play import check_seed
from gram_fast.ranking.rejudging import check_rejudge, second_stage
from gram_fast.ranking.scores import SCORE_NAMES, find_scores
from gram_fast.ranking.tournament import EACH_ALONE, STRATEGIES, STRATEGY_NAMES, find_strategy, warn_of_all_pairs
from gram_fast.results import Comparison, Ranking, Selection, Verification
from gram_fast.rows.source import comes_live
from gram_fast.serving.command import ServeOptions, serve_judge
from gram_fast.text.group import Names
from gram_fast.training.command import app as training_app
from gram_fast.training.data.command import app as data_app
from gram_fast.training.self_training.command import self_train
from gram_fast.training.self_training.prove_command import ProveOptions, prove

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(evaluation_app, name="eval")
app.add_typer(training_app, name="train")
app.add_typer(data_app, name="data")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"gram_fast {gram_fast.__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Score and rank responses with a generative pairwise judge, train and evaluate one."""


_BROKEN_PIPE = 128 + signal.SIGPIPE
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Orders = Annotated[str, typer.Option(help="Which of a pair stands in slot A: ab, ba or both.")]


@dataclass(frozen=True, kw_only=True)
class JobOptions(RowOptions):
    """Options of the commands that score rows: compare, rank, best-of-n, verify."""

    input: Annotated[
        str,
        typer.Option("--input", "-i", help="JSON lines or array, CSV, parquet, a data set, or - for standard input."),
    ] = "-"
    columns: Annotated[
        str | None, typer.Option(help="Fields with other names, as in id=key,prompt=q or responses=a+b.")
    ] = None
    output: Annotated[
        str, typer.Option("--output", "-o", help="File for JSON lines; - for standard output, tables on a terminal.")
    ] = "-"
    brief: Annotated[bool, typer.Option("--brief", help="Write id and result alone, as JSON lines.")] = False
    ray: Annotated[bool, typer.Option("--ray", help="Score on a Ray cluster: RAY_ADDRESS, or the one here.")] = False
    judges: Annotated[
        int | None, typer.Option(help="Judges of --ray; default: one a GPU, or one a machine without.")
    ] = None

    def run(self, job: Job, **settings: Any) -> None:
        """Scores the rows, writes the results and prints a summary on standard error.

        `settings`: the command's own; recorded in every row with the judge's, and checked by --resume.
        """
        if self.brief and self.resume:
            raise InputError("--brief: expected no --resume, which compares what brief rows leave out")
        if self.judges is not None and not (self.ray and self.judges >= 1):
            raise InputError(f"--judges {self.judges}: expected at least 1, beside --ray, which starts them")
        bad = BadRows(self.skip_bad)
        columns = {} if self.columns is None else parse_columns(self.columns)
        is_live = comes_live(self.input)
        shows_tables = self.output == "-" and not self.brief and sys.stdout is not None and sys.stdout.isatty()
        with open_output(self.output, self.input, self.resume) as output:
            read = read_job_rows(self.input, job, bad, columns, self.include_reasoning)
            with read_ahead(pending_rows(read, output), is_live) as rows:
                already = len(output.done)
                if rows.has_ended:
                    bad.check(rows.count + already)
                output.record(**settings, **self.recorded)
                write = brief_rows(output) if self.brief else whole_rows(output)
                write = tables(job.places) if shows_tables else write
                with self.scorer(job, output) as scorer:
                    written = score_rows(
                        rows, job, scorer, write, bad, already=already, is_live=is_live, bar_is_hidden=shows_tables
                    )
            bad.check(written + already)
        stderr.print(f"gram-fast: {written} rows written, {already} already there, {len(bad.skipped)} skipped")

    @contextmanager
    def scorer(self, job: Job, output: Output) -> Iterator[Scorer]:
        """What scores the rows: a judge here, or judges on a Ray cluster."""
        if not self.ray:
            comparer = self.load(output, job.strategy.verifies).comparer
            job.check_judge(comparer)
            yield OneJudge(job, comparer)
            return
        from gram_fast.commands.ray_judges import ray_judges

        with ray_judges(self, job, self.judges) as judges:
            output.record(**judges.recorded)
            output.check_settings()
            yield judges


Rejudge = Annotated[
    int | None, typer.Option(help="With --mode factored: judge the best K of them again in full.", metavar="K")
]


@command(app, "compare", JobOptions)
def compare(options: JobOptions, orders: Orders = "both", mode: ReadingMode = "full") -> None:
    """Compare the two responses of every row: P(first better than second)."""
    check_orders(orders)
    check_mode(mode)

    def score(rows: Sequence[JobRow], comparer: Comparer) -> Sequence[Comparison]:
        return compare_groups([row.group for row in rows], in_mode(comparer, mode), orders)  # type: ignore[arg-type]

    job = Job(DUEL, score, num_responses=2, names=Names(candidate="ab".__getitem__), modes=(mode,))
    options.run(job, command="compare", orders=orders, **changed_mode(mode))


RankStrategy = Annotated[
    str | None, typer.Option("--strategy", help=", ".join(STRATEGY_NAMES) + "; default: round_robin.")
]
BestStrategy = Annotated[str, typer.Option("--strategy", help=", ".join(STRATEGIES) + ".")]
Scores = Annotated[str, typer.Option(help="auto, " + ", ".join(SCORE_NAMES) + ".")]
Seed = Annotated[int, typer.Option(help="Draws brackets, and who meets whom of opponents.")]
K = Annotated[
    int | None, typer.Option("-k", help="Places that top_k decides, opponents of each response, or knockouts.")
]


TopK = Annotated[int | None, typer.Option("--top-k", help="Decide the best K in order: --strategy top_k -k K.")]


@command(app, "rank", JobOptions)
def rank(
    options: JobOptions,
    strategy: RankStrategy = None,
    orders: Orders = "both",
    scores: Scores = "auto",
    seed: Seed = 0,
    k: K = None,
    top_k: TopK = None,
    mode: ReadingMode = "full",
    rejudge: Rejudge = None,
) -> None:
    """Rank the responses of every row."""
    if top_k is not None:
        if strategy not in (None, "top_k") or k is not None:
            raise InputError("--top-k: expected neither another --strategy nor -k beside it")
        strategy, k = "top_k", top_k
    strategy = strategy or "round_robin"
    rank_rows, settings = _tournament(strategy, orders, scores, seed, k, mode, rejudge)
    places = k if strategy == "top_k" else None
    job = Job(find_strategy(strategy, k), rank_rows, places=places, modes=_modes(mode, rejudge))
    options.run(job, command="rank", **settings)


@command(app, "best-of-n", JobOptions)
def best_of_n(
    options: JobOptions,
    strategy: BestStrategy = "knockout",
    orders: Orders = "both",
    scores: Scores = "auto",
    seed: Seed = 0,
    mode: ReadingMode = "full",
    rejudge: Rejudge = None,
) -> None:
    """Choose the best response of every row."""
    rank_rows, settings = _tournament(strategy, orders, scores, seed, None, mode, rejudge)

    def score(rows: Sequence[JobRow], comparer: Comparer) -> Sequence[Selection]:
        rankings = rank_rows(rows, comparer)
        return [select(ranking, row.responses) for row, ranking in zip(rows, rankings, strict=True)]

    options.run(Job(find_strategy(strategy), score, modes=_modes(mode, rejudge)), command="best-of-n", **settings)


@command(app, "verify", JobOptions)
def verify(options: JobOptions) -> None:
    """Verify the responses of every row one by one: P(right). Takes a verifier's --preset."""

    def score(rows: Sequence[JobRow], comparer: Comparer) -> Sequence[Verification]:
        return verify_groups([row.group for row in rows], comparer)

    options.run(Job(EACH_ALONE, score), command="verify")


def _tournament(
    strategy: str, orders: str, scores: str, seed: int, k: int | None, mode: str, rejudge: int | None
) -> tuple[Callable[[Sequence[JobRow], Comparer], Sequence[Ranking]], dict[str, Any]]:
    """Checks the settings of a tournament before a model is loaded -> what ranks rows, and the settings by name."""
    found, score = find_strategy(strategy, k), find_scores(scores, strategy)
    check_orders(orders)
    check_seed(seed)
    check_mode(mode)
    check_rejudge(mode, rejudge)

    def rank_rows(rows: Sequence[JobRow], comparer: Comparer) -> Sequence[Ranking]:
        # Of the largest alone: a warning that names the same number is not repeated for the next chunk.
        if mode == "full":
            warn_of_all_pairs(strategy, [max(len(row.group.texts) for row in rows)])
        groups, second = [row.group for row in rows], second_stage(comparer, mode, rejudge)
        return rank_groups(groups, in_mode(comparer, mode), found, score, orders, seed, second)  # type: ignore[arg-type]

    settings = {"strategy": strategy, "orders": orders, "scores": scores, "seed": seed, **changed_mode(mode)}
    more = {"k": k, "rejudge": rejudge}
    return rank_rows, settings | {name: value for name, value in more.items() if value is not None}


def _modes(mode: str, rejudge: int | None) -> tuple[str, ...]:
    """Those in which a tournament, and its second stage, read pairs."""
    return (mode,) if rejudge is None else (mode, "full")


@command(app, "serve", ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve the judge over HTTP, to loops and rerankers that live elsewhere."""
    serve_judge(options)


command(app, "prove", ProveOptions)(prove)
app.command("self-train")(self_train)


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(JudgeOptions):
    """Options of doctor; the checkpoint is optional."""

    model: Annotated[str | None, typer.Option("--model", "-m", help="Checkpoint to try as well.")] = None


@command(app, "doctor", DoctorOptions)
def diagnose(options: DoctorOptions) -> None:
    """Say what is installed and can run; with a checkpoint, test template, labels and engine on a known answer."""
    from gram_fast.commands import doctor
    from gram_fast.comparing.loading import load_comparer, load_template

    _print_table(doctor.installation())
    if options.model is not None:
        reasons = load_template(options.model, options).reasons
        _print_table(doctor.checkpoint(load_comparer(options.model, options, reasons=reasons)))


def _print_table(rows: Iterable[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", width=28)
    table.add_column(overflow="fold")
    for what, how in rows:
        table.add_row(what, escape(how))
    Console().print(table)


def main() -> None:
    """Entry point: runs the command line and exits.

    An error of the package or a full disk is one sentence, with exit code 2; a reader of the output that is gone is
    silence and 141, as if SIGPIPE had ended the process.
    """
    logging.basicConfig(format="gram-fast: %(message)s")
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *_, **__: str(message)
    hub_logging.disable_propagation()  # it prints what it logs itself
    if not sys.stderr.isatty():
        disable_progress_bars()  # transformers' too, which reads this when it is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # OpenMP reads it when torch is imported
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where what it raises is caught
    except GramFastError as error:
        _exit(130 if isinstance(error, InterruptedRunError) else 2, str(error))
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # which click and rich turn into code 1
            _exit(_BROKEN_PIPE)
        if error.code == 130:  # typer turns an interruption into this code without a message
            _exit(130, "interrupted; rows written to a file so far are whole, --resume goes on")
        raise
    except BrokenPipeError:
        _exit(_BROKEN_PIPE)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _exit(2, f"cannot write {error.filename or 'standard output'}: {error.strerror}")


def _exit(code: int, message: str = "") -> NoReturn:
    if message:
        stderr.print(f"gram-fast: {message}", markup=False)
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:  # what is left cannot be written, and Python would try and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
