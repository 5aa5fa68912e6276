"""Command-line interface of the benchmarks: gram-fast eval rewardbench | judgebench | rmbench | score."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from gram_fast.commands.options import BadRows, ReadingMode, RowOptions, changed_mode, command, stderr
from gram_fast.commands.output import open_output
from gram_fast.comparing.modes import check_mode
from gram_fast.errors import InputError
from gram_fast.evaluation import BENCHMARKS
from gram_fast.evaluation.rows import Benchmark, read_benchmark_pairs, read_results, split_items
from gram_fast.evaluation.summary import Summary, render, summarize
from gram_fast.text.digest import digest

_RESULTS = "results.jsonl"

_TITLES = [benchmark.TITLE for benchmark in BENCHMARKS.values()]

app = typer.Typer(help=f"Score a judge on {', '.join(_TITLES[:-1])} and {_TITLES[-1]}.", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class EvalOptions(RowOptions):
    """Options of every command that scores a judge on a benchmark."""

    data: Annotated[str, typer.Option("--data", "-d", help="The benchmark's pairs: JSON lines or array, CSV, parquet.")]
    out: Annotated[str | None, typer.Option("--out", "-o", help="Output folder; default: the benchmark's name.")] = None
    mode: ReadingMode = "full"

    def evaluate(self, benchmark: Benchmark) -> None:
        """Scores the data, prints the summary, and writes result file, summary and leaderboard files."""
        from gram_fast.evaluation.run import score_pairs

        check_mode(self.mode)
        bad = BadRows(self.skip_bad)
        pairs = read_benchmark_pairs(benchmark, self.data, bad, self.include_reasoning)
        folder = _folder(self.out or benchmark.NAME)
        results_path = str(folder / _RESULTS)
        with open_output(results_path, self.data, self.resume, key="pair_number") as output:
            data = digest([pair.texts.fields for pair in pairs])
            output.record(command=f"eval {benchmark.NAME}", **self.recorded, **changed_mode(self.mode), data=data)
            written = score_pairs(self.load(output), pairs, output, bad, self.mode)  # type: ignore[arg-type]
            if not written and not output.done:
                raise InputError(f"{self.data}: none of its {len(pairs)} pairs could be scored")
            results = read_results(benchmark, results_path)
            summary = summarize(benchmark, results, bad.skipped)
            whole, _ = split_items(benchmark, results)
            files = {"summary.json": _dump(summary), **benchmark.leaderboard_files(whole, self.model)}
            for name, text in files.items():
                _write(folder / name, text)
        typer.echo(render(summary))
        stderr.print(
            f"gram-fast: {written} pairs written to {folder}, {len(output.done)} already there, "
            f"{len(bad.skipped)} skipped"
        )


def _folder(path: str) -> Path:
    """Creates the output folder. Raises InputError on failure, and for a folder with files but no result file."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = os.listdir(folder)
    except OSError as error:
        raise InputError(f"--out {path}: expected a folder, or a place for one: {error.strerror}") from None
    if names and _RESULTS not in names:
        raise InputError(f"--out {path}: expected an empty folder or one with {_RESULTS}, found {min(names)}")
    return folder


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8", "backslashreplace")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _dump(summary: Summary) -> str:
    return json.dumps(asdict(summary), indent=2) + "\n"


def _add_command(benchmark: Benchmark) -> None:
    """Registers the command that scores a judge on this benchmark."""

    def evaluate(options: EvalOptions) -> None:
        options.evaluate(benchmark)

    evaluate.__doc__ = f"Score a judge on {benchmark.TITLE}."
    command(app, benchmark.NAME, EvalOptions)(evaluate)


for _benchmark in BENCHMARKS.values():
    _add_command(_benchmark)


@app.command("score")
def score(
    benchmark: Annotated[str, typer.Argument(help=", ".join(BENCHMARKS) + ".")],
    file: Annotated[str, typer.Argument(help="Result file: of these commands, or of GRAM's scripts.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Summarize a result file."""
    if benchmark not in BENCHMARKS:
        raise InputError(f"there is no benchmark {benchmark!r}: expected one of {', '.join(BENCHMARKS)}")
    module = BENCHMARKS[benchmark]
    summary = summarize(module, read_results(module, file))
    typer.echo(_dump(summary) if as_json else render(summary))
