"""The options of a judge are written once, as fields; the command line offers the same."""

import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from gram_fast.commands.options import RowOptions, command
from gram_fast.errors import BackendError, InputError
from gram_fast.judge import PairwiseJudge
from gram_fast.models.options import Flag, JudgeOptions
from gram_fast.serving.command import ServiceOptions

# By field: what stands on the command line, and what the field is then.
GIVEN = {
    "preset": (["--preset", "short"], "short"),
    "chat_template_kwargs": (
        ["--chat-template-kwargs", '{"date_string": "26 Jul 2024"}'],
        {"date_string": "26 Jul 2024"},
    ),
    "tokenizer": (["--tokenizer", "base"], "base"),
    "device": (["--device", "cpu,cpu"], "cpu,cpu"),
    "dtype": (["--dtype", "bfloat16"], "bfloat16"),
    "runner": (["--runner", "dense"], "dense"),
    "attention": (["--attention", "cascade"], "cascade"),
    "products": (["--products", "torch"], "torch"),
    "quantization": (["--quantization", "fp8"], "fp8"),
    "max_batch_tokens": (["--max-batch-tokens", "128"], 128),
    "max_length": (["--max-length", "700"], 700),
    "deterministic": (["--deterministic"], True),
    "include_reasoning": (["--include-reasoning"], True),
    "revision": (["--revision", "v2"], "v2"),
    "trust_remote_code": (["--trust-remote-code"], True),
}


@pytest.fixture
def run():
    """Runs a command with these arguments -> the options and the own option that it got."""
    app, got = typer.Typer(pretty_exceptions_enable=False), []

    def try_it(options: RowOptions, times: int = 1) -> None:
        """Help of the command."""
        got.append((options, times))

    command(app, "try", RowOptions)(try_it)

    def call(*arguments):
        result = CliRunner().invoke(app, ["-m", "checkpoint", *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return got.pop() if result.exit_code == 0 else result

    return call


def test_flags_are_the_fields_that_have_one():
    flagged = [
        field.name for field in fields(JudgeOptions) if any(isinstance(a, Flag) for a in get_args(field.type)[1:])
    ]
    assert flagged == list(GIVEN)
    assert {field.name for field in fields(JudgeOptions)} - set(flagged) == {"tensor_parallel", "token"}


def test_fields_and_defaults_are_those_of_from_pretrained():
    parameters = inspect.signature(PairwiseJudge.from_pretrained).parameters
    named = {name: p.default for name, p in parameters.items() if name != "name_or_path"}
    assert named == {field.name: field.default for field in fields(JudgeOptions)}


def test_without_flags_the_defaults_of_the_fields_hold(run):
    options, times = run()
    assert options == RowOptions(model="checkpoint")
    assert times == 1


@pytest.mark.parametrize("name", GIVEN)
def test_a_flag_sets_its_field_alone(run, name):
    arguments, value = GIVEN[name]
    options, times = run(*arguments, "--times", "3", "--skip-bad")
    assert options == RowOptions(model="checkpoint", skip_bad=True, **{name: value})
    assert times == 3


@pytest.mark.parametrize("arguments", [["--no-deterministic"], ["--token", "x"], ["--max-length", "many"]])
def test_what_is_no_flag_is_a_usage_error(run, arguments):
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--max-length", "0"], InputError, "max_length: expected None or an integer from 1 to 16777216, got 0"),
        (["--chat-template-kwargs", "[1]"], InputError, r"^chat_template_kwargs: expected a JSON object, got '\[1\]'$"),
        (["--chat-template-kwargs", "{x"], InputError, r"^chat_template_kwargs: expected a JSON object, got '{x': Exp"),
        (["--chat-template-kwargs", '{"tokenize": 1}'], InputError, "variables of the chat template, found 'tokenize'"),
        (["--preset", "nope"], InputError, "there is no preset or template file 'nope'"),
        (["--quantization", "int4"], BackendError, "there is no quantization='int4': expected None or one of fp8"),
        (["--quantization", "fp8", "--products", "torch"], BackendError, "expected products 'auto', got 'torch'"),
        (["--quantization", "fp8", "--deterministic"], BackendError, "products with quantization='fp8' change with a"),
        (
            ["--quantization", "fp8", "--runner", "transformers"],
            BackendError,
            "quantization='fp8' needs runner 'dense'",
        ),
        (["--deterministic", "--attention", "cascade"], BackendError, "expected attention 'auto', got 'cascade'"),
    ],
)
def test_bad_options_are_named_when_they_are_made(run, arguments, error, message):
    with pytest.raises(error, match=message):
        run(*arguments)


def test_options_for_processes_in_other_folders_have_whole_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("judge", "gram", "keys"):
        (tmp_path / name).mkdir()
    options = ServiceOptions(model="judge", preset="gram", tokenizer="org/name", name="judge", api_keys="keys")
    expected = {"model": str(tmp_path / "judge"), "api_keys": str(tmp_path / "keys")}
    assert options.for_other_folders() == replace(options, **expected)
