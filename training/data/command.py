"""Command-line interface of training data: gram-fast data check."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gram_fast.errors import InputError

if TYPE_CHECKING:
    from gram_fast.training.data.check import DataReport, Finding, LengthSummary, Overlap

app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)


@app.command("check")
def check(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="JSON lines or array, CSV, parquet; or a name as for training data.")
    ],
    preset: Annotated[
        str, typer.Option(help="Judge prompt: auto (what the checkpoint records, else gram), a preset or a file.")
    ] = "auto",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Checkpoint whose tokenizer measures lengths in tokens.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Count pairs with more tokens than this; requires --model.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="EVALFILE", help="Evaluation set to check for overlap with the data.")
    ] = None,
    dataset_info: Annotated[str | None, typer.Option(help="A LLaMA-Factory dataset_info.json that names sets.")] = None,
    include_reasoning: Annotated[
        bool, typer.Option("--include-reasoning", help="Count the reasoning in chat messages as text.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count rows, lengths, labels and duplicates of a set of pairs; exit code 1 when there are bad rows."""
    from gram_fast.models.checkpoint import find_template, load_config
    from gram_fast.models.tokenizer import load_tokenizer
    from gram_fast.text.tokens import PairTokenizer
    from gram_fast.training.data.check import check_data

    if max_length is not None and model is None:
        raise InputError("--max-length: expected --model as well, in whose tokens to count")
    template = find_template(preset, load_config(model) if model and preset == "auto" else None)
    tokenizer = None if model is None else PairTokenizer(load_tokenizer(model), template)
    report = check_data(
        source,
        template=template,
        tokenizer=tokenizer,
        max_length=max_length,
        against=against,
        dataset_info=dataset_info,
        include_reasoning=include_reasoning,
    )
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        _print(report)
    if report.bad.count or (report.against and report.against.bad.count):
        raise typer.Exit(1)


def _print(report: "DataReport") -> None:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, how in _lines(report):
        table.add_row(what, escape(how))
    Console().print(table)


def _lines(report: "DataReport") -> Iterator[tuple[str, str]]:
    yield "rows", f"{report.rows}: {report.labeled} labeled, {report.unlabeled} unlabeled, {_left_out(report)}"
    yield from _examples("bad rows", report.bad)
    yield from _examples("ties", report.ties)
    if report.rationales:
        yield "with a rationale", _share(report.rationales, report.labeled)
    if report.labeled:
        yield "preferred A", _share(report.prefers_a, report.labeled) + _meaning(report)
        longer = _share(report.prefers_longer, report.labeled)
        yield "preferred is longer", f"{longer}; shorter: {_share(report.prefers_shorter, report.labeled)}"
    yield "empty responses", str(report.empty_responses)
    for what, lengths in (
        ("prompt, characters", report.prompt_characters),
        ("response, characters", report.response_characters),
        ("pair, characters", report.pair_characters),
        ("rationale, characters", report.rationale_characters),
        ("judged text, tokens", report.pair_tokens),
    ):
        if lengths:
            yield what, _lengths(lengths)
    if report.over_max_length:
        yield from _finding("over --max-length", report.over_max_length)
    yield from _finding("repeated pairs", report.repeated_pairs)
    yield from _finding("contradictions", report.contradictions)
    yield from _finding("repeated prompts", report.repeated_prompts)
    if against := report.against:
        yield "against", f"{against.source}: {against.rows} rows, {_left_out(against)}"
        yield from _examples("bad rows", against.bad)
        yield from _examples("ties", against.ties)
        yield from _finding("pairs in training data", against.pairs)
        yield from _finding("prompts in training data", against.prompts)
        yield from _finding("... but for case and white space", against.plain_prompts)


def _left_out(report: "DataReport | Overlap") -> str:
    return (f"{report.ties.count} ties, " if report.ties.count else "") + f"{report.bad.count} bad"


def _meaning(report: "DataReport") -> str:
    if report.prefers_a == report.labeled:
        return "; as all rows with chosen and rejected do, training balances the order"
    return "; rows with chosen and rejected are among them, training balances the order"


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.1%})"


def _lengths(lengths: "LengthSummary") -> str:
    return f"min {lengths.min}, median {lengths.median}, p95 {lengths.p95}, max {lengths.max}"


def _finding(what: str, finding: "Finding") -> Iterator[tuple[str, str]]:
    rest = finding.count - len(finding.examples)
    examples = [*finding.examples, *([f"{rest} more"] if rest else [])]
    yield what, f"{finding.count}" + (f": {', '.join(examples)}" if examples else "")


def _examples(what: str, finding: "Finding") -> Iterator[tuple[str, str]]:
    """Table rows of a finding, one for each example."""
    rest = finding.count - len(finding.examples)
    for example in [*finding.examples, *([f"and {rest} more"] if rest else [])]:
        yield what, example
        what = ""
