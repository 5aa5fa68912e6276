"""The command for verifiers, in this process."""

import json

import pytest
from helpers.verifiers import write_verifier
from typer.testing import CliRunner

from gram_fast.cli import app
from gram_fast.errors import InputError
from gram_fast.text.prompts import PairTemplate

ROWS = [
    {"id": "one", "prompt": "Name a colour.", "responses": ["Blue."]},
    {"id": "three", "prompt": "Name a colour.", "responses": ["Blue.", "Red?", "Blue."]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_verifier(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def call(folder, tmp_path):
    """Runs a command on the rows -> its output rows."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def run(command, *arguments):
        given = [command, "-m", folder, "-i", source, "-o", output, *arguments]
        result = CliRunner().invoke(app, list(map(str, given)))
        if result.exception is not None:
            raise result.exception
        return [json.loads(line) for line in output.read_text().splitlines()]

    return run


def test_one_response_is_enough(call):
    one, three = call("verify", "--preset", "verifier")
    assert (one["id"], three["id"]) == ("one", "three")
    assert one["run"]["command"] == "verify"
    assert three["p"] == pytest.approx([one["p"][0], three["p"][1], one["p"][0]], abs=1e-6)
    assert three["p"][1] != pytest.approx(one["p"][0], abs=1e-6)


def test_the_wrong_kind_of_judge_is_refused_even_when_bad_rows_are_skipped(call, folder):
    with pytest.raises(InputError, match=r"^this judge's prompt shows one response: it can verify"):
        call("rank", "--preset", "verifier", "--skip-bad")
    with pytest.raises(InputError, match=r"^this judge's prompt shows a pair of responses"):
        call("verify", "--preset", "gram", "--skip-bad")


@pytest.mark.parametrize(
    ("before", "after", "setting"),
    [("labels = ['Yes', 'No']", "labels = ['No', 'Yes']", "label_ids"), ("", "answer_prefix = '[['", "prompt_digest")],
)
def test_other_settings_in_the_same_preset_file_are_another_run(call, tmp_path, before, after, setting):
    preset, text = tmp_path / "mine.txt", PairTemplate.load("verifier").text
    preset.write_text(f"+++\n{before}\n+++\n{text}")
    call("verify", "--preset", preset)
    preset.write_text(f"+++\n{after}\n+++\n{text}")
    with pytest.raises(InputError, match=f"{setting} was .*, now it is .*: it is of another run"):
        call("verify", "--preset", preset, "--resume")
