"""Commands with a judge that reasons, in this process, on a tiny checkpoint."""

import json

import pytest
from helpers.small_models import write_judge
from typer.testing import CliRunner

from gram_fast.cli import app
from gram_fast.commands.options import RowOptions
from gram_fast.errors import BackendError, InputError
from gram_fast.reasoning_judge import ReasoningJudge

ROWS = [
    {"id": "a", "prompt": "Name a colour.", "responses": ["Blue.", "Red?", "A colour, no less."]},
    {"id": "b", "prompt": "What is 2 + 2?", "responses": ["4", "5"]},
]
FLAGS = ("--preset", "gram-r2", "--votes", "2", "--temperature", "1", "--max-new-tokens", "12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge"))


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


def test_rows_have_the_rationales_and_the_scores_of_the_judge_in_python(call, folder):
    rows = call("rank", *FLAGS)
    judge = ReasoningJudge.from_pretrained(
        folder, preset="gram-r2", votes=2, temperature=1.0, max_new_tokens=12, device="cpu"
    )
    for row, given in zip(rows, ROWS, strict=True):
        ranking = judge.rank(given["prompt"], given["responses"])
        assert row["scores"] == pytest.approx(list(ranking.scores), abs=1e-6)
        for written, pair in zip(row["comparisons"], ranking.comparisons, strict=True):
            votes = [vote.rationale for vote in pair.reasoning.votes]
            assert [vote["rationale"] for vote in written["reasoning"]["votes"]] == votes
            assert len(votes) == 4
    run = rows[0]["run"]
    assert (run["votes"], run["verdict"], run["temperature"], run["engine"], run["vote_seed"]) == (
        2,
        "soft",
        1.0,
        "transformers",
        0,
    )
    assert (run["runner"], run["max_new_tokens"]) == ("TransformersRunner", 12)
    assert rows[0]["stats"]["votes"] == 2 * 2 * (3 + 1)


def test_resume_goes_on_with_the_same_votes_alone(call, tmp_path):
    whole = call("compare", *FLAGS, "--skip-bad")
    output = tmp_path / "out.jsonl"
    assert len(whole) == 1  # the row of three responses is bad
    with pytest.raises(InputError, match="votes was 2, now it is 3"):
        call("compare", *FLAGS[:2], "--votes", "3", *FLAGS[4:], "--skip-bad", "--resume")
    assert call("compare", *FLAGS, "--skip-bad", "--resume") == whole
    assert output.read_text().count("\n") == 1


def test_resume_does_not_go_on_with_the_rows_of_a_judge_that_reasons_by_another(call, tmp_path):
    """Where the chat template knows no thinking, the preset gram has one prompt for both."""
    folder = write_judge(tmp_path / "judge")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}\nAnswer:\n")
    call("rank", "-m", folder, "--preset", "gram", "--verdict", "hard", "--max-new-tokens", "4")
    output = tmp_path / "out.jsonl"
    output.write_text(output.read_text().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match=r"line 1: .* was .*, now there is none: it is of another run"):
        call("rank", "-m", folder, "--preset", "gram", "--runner", "transformers", "--resume")


def test_rows_record_the_configuration_of_a_checkpoint_that_is_here(folder):
    given = {"model": str(folder), "preset": "gram-r2", "no_second_step": True}
    assert "config_digest" in RowOptions(engine="vllm", **given).recorded
    assert "config_digest" not in RowOptions(engine="http://there", **given).recorded


def test_a_preset_that_reasons_makes_the_judge_one_that_does(call):
    rows = call("rank", "--preset", "gram-r2", "--max-new-tokens", "4", "--temperature", "1")
    assert {len(pair["reasoning"]["votes"]) for row in rows for pair in row["comparisons"]} == {2}


def test_rows_of_other_judges_have_no_word_of_reasoning(call):
    rows = call("rank", "--preset", "gram")
    assert "reasoning" not in json.dumps(rows).replace("include_reasoning", "")


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (("--votes", "2", "--temperature", "0"), InputError, "2 votes with 0 would be one vote 2 times"),
        (
            ("--votes", "2", "--temperature", "1", "--preset", "gram"),
            InputError,
            "preset gram: it has no answer_prefix",
        ),
        (
            ("--votes", "2", "--preset", "gram-r2"),
            InputError,
            "the checkpoint's generation configuration takes the most",
        ),
        (("--engine", "sglang"), BackendError, "there is no engine 'sglang'"),
        (("--engine", "vllm", "--preset", "gram-r2"), BackendError, "vllm"),
        (
            ("--votes", "1", "--runner", "dense", "--preset", "gram-r2"),
            BackendError,
            "runner='dense' is of runner 'dense'",
        ),
        (("--votes", "1", "--no-second-step", "--preset", "gram-r2"), InputError, "second_step=False spares a model"),
        (
            ("--votes", "1", "--max-new-tokens", "4095", "--preset", "gram-r2"),
            InputError,
            "max_new_tokens: expected fewer",
        ),
    ],
)
def test_bad_flags_are_one_sentence(call, flags, error, message):
    with pytest.raises(error, match=message):
        call("rank", *flags)


def test_a_key_in_the_environment_asks_for_nothing(call, monkeypatch):
    monkeypatch.setenv("GRAM_FAST_ENGINE_API_KEY", "secret")
    rows = call("rank", "--preset", "gram")
    assert "secret" not in json.dumps(rows)
    assert "votes" not in rows[0]["run"]


def test_a_pairwise_judge_says_which_judge_reasons(folder):
    from gram_fast.judge import PairwiseJudge

    with pytest.raises(InputError, match=r"preset gram-r2: the judge writes a rationale .* gram_fast.ReasoningJudge"):
        PairwiseJudge.from_pretrained(folder, preset="gram-r2")
