"""Commands of a judge whose chat template writes today's date."""

import json

import pytest
from helpers.days import set_today
from helpers.small_models import write_judge
from typer.testing import CliRunner

from gram_fast.cli import app
from gram_fast.errors import InputError
from gram_fast.training.small_judge.tokenizer import QWEN_CHAT_TEMPLATE

DATED = '<|im_start|>system\n{{ date_string or strftime_now("%d %b %Y") }}<|im_end|>\n' + QWEN_CHAT_TEMPLATE
ROW = {"prompt": "Name a colour.", "responses": ["Blue.", "Red?"]}
FIXED = ["--chat-template-kwargs", '{"date_string": "26 Jul 2024"}']


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_judge(tmp_path_factory.mktemp("judge"))
    (folder / "chat_template.jinja").write_text(DATED)
    return folder


@pytest.fixture
def compare(folder, tmp_path):
    """Compares that many rows -> P(first better) of each."""

    def run(count, *arguments):
        source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text("".join(json.dumps({"id": k, **ROW}) + "\n" for k in range(count)))
        given = ["compare", "-m", folder, "-i", source, "-o", output, *arguments]
        result = CliRunner().invoke(app, list(map(str, given)))
        if result.exception is not None:
            raise result.exception
        return [json.loads(line)["p"] for line in output.read_text().splitlines()]

    return run


@pytest.mark.filterwarnings("ignore:the chat template writes")
def test_rows_of_another_day_are_another_run(compare, monkeypatch):
    set_today(monkeypatch, 2030, 1, 2)
    compare(1)
    set_today(monkeypatch, 2031, 12, 24)
    with pytest.raises(InputError, match=r"line 1: prompt_digest was .*, now it is .*: it is of another run"):
        compare(2, "--resume")


def test_with_a_fixed_date_the_day_does_not_matter(compare, monkeypatch):
    set_today(monkeypatch, 2030, 1, 2)
    compare(1, *FIXED)
    set_today(monkeypatch, 2031, 12, 24)
    first, second = compare(2, "--resume", *FIXED)
    assert first == pytest.approx(second, abs=1e-6)
