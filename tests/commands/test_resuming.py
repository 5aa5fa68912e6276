"""What --resume goes on with: the same judge, prompt and settings, whatever they are called."""

import json
import shutil

import pytest
import torch
from helpers.small_models import write_judge
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gram_fast.cli import app
from gram_fast.commands.output import open_output
from gram_fast.errors import GramFastError, InputError
from gram_fast.models.dense.products import find_product

ROWS = [{"id": k, "prompt": f"Name colour {k}.", "responses": ["Blue.", f"Red {k}."]} for k in range(3)]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge"))


def call_rank(folder, *arguments, model):
    given = ["rank", "-m", model, "-i", folder / "in.jsonl", "-o", folder / "out.jsonl", *arguments]
    result = CliRunner().invoke(app, list(map(str, given)))
    if isinstance(result.exception, GramFastError):
        raise result.exception
    assert result.exit_code == 0, result.exception
    return result


def write_rows(folder, rows):
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def lines(judge, tmp_path_factory):
    """Output of the whole rows."""
    folder = tmp_path_factory.mktemp("whole")
    write_rows(folder, ROWS)
    call_rank(folder, model=judge)
    return (folder / "out.jsonl").read_text().splitlines(keepends=True)


@pytest.fixture
def rank(judge, tmp_path):
    """Ranks the rows with these arguments -> the result; an error of the package is raised."""
    write_rows(tmp_path, ROWS)
    return lambda *arguments, model=judge: call_rank(tmp_path, *arguments, model=model)


@pytest.fixture
def begun(lines, tmp_path):
    """The output of a run that was ended behind its first row."""
    out = tmp_path / "out.jsonl"
    out.write_text(lines[0])
    return out


@pytest.fixture
def begun_with(rank, judge, tmp_path):
    """A copy of the checkpoint, to be changed, with which a run was begun."""
    folder = shutil.copytree(judge, tmp_path / "judge")
    rank(model=folder)
    out = tmp_path / "out.jsonl"
    out.write_text(out.read_text().splitlines(keepends=True)[0])
    return folder


def test_the_settings_are_those_that_were_found(lines):
    run = json.loads(lines[0])["run"]
    found = {
        name: run[name] for name in ("device", "dtype", "runner", "attention", "products", "deterministic", "preset")
    }
    assert found == {
        "device": "cpu",
        "dtype": "float32",
        "runner": "DenseRunner",
        "attention": "extension",
        "products": find_product("auto", torch.device("cpu"), torch.float32).name,
        "deterministic": False,
        "preset": "auto",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-batch-tokens", 64, "--max-length", 2000],
        ["--preset", "gram", "--dtype", "float32", "--attention", "extension", "--runner", "dense"],
        ["--device", "cpu,cpu"],
    ],
)
def test_another_name_for_the_same_goes_on(rank, begun, lines, arguments):
    assert "2 rows written, 1 already there" in rank("--resume", *arguments).stderr
    for line, before in zip(begun.read_text().splitlines(), lines, strict=True):
        assert json.loads(line)["order"] == json.loads(before)["order"]


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (["--preset", "short"], "prompt_digest"),
        (["--dtype", "bfloat16"], "dtype"),
        (["--attention", "reference"], "attention"),
        (["--products", "torch"], "products"),
        (["--quantization", "fp8"], "products"),
        (["--runner", "transformers"], "runner"),
        (["--deterministic"], "deterministic"),
        (["--revision", "v2"], "revision"),
        (["--seed", 1], "seed"),
        (["--orders", "ab"], "orders"),
    ],
)
def test_other_settings_are_refused(rank, begun, arguments, setting):
    before = begun.read_bytes()
    with pytest.raises(InputError, match=rf"line 1: {setting} was .*, now it is .*: it is of another run"):
        rank("--resume", *arguments)
    assert begun.read_bytes() == before


def test_another_template_under_the_same_name_is_refused(rank, tmp_path):
    template = tmp_path / "own.txt"
    template.write_text("Judge.\n{input}\nOne: {response_a}\nTwo: {response_b}\nA or B?")
    rank("--preset", template)
    template.write_text("Judge it.\n{input}\nOne: {response_a}\nTwo: {response_b}\nA or B?")
    with pytest.raises(InputError, match="line 1: prompt_digest was"):
        rank("--preset", template, "--resume")


@pytest.mark.parametrize("key", ["model.norm.weight", "model.layers.1.self_attn.k_proj.weight"])
def test_other_weights_under_the_same_name_are_refused(rank, begun_with, key):
    tensors = load_file(begun_with / "model.safetensors")
    tensors[key] += 0.001
    save_file(tensors, begun_with / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="line 1: weights_digest was"):
        rank("--resume", model=begun_with)


def test_another_configuration_under_the_same_name_is_refused(rank, begun_with):
    config = json.loads((begun_with / "config.json").read_text())
    (begun_with / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    with pytest.raises(InputError, match="line 1: config_digest was"):
        rank("--resume", model=begun_with)


def test_a_checkpoint_that_was_touched_goes_on(rank, begun_with):
    for file in begun_with.iterdir():
        file.touch()
    (begun_with / "README.md").write_text("A card.")
    assert "2 rows written" in rank("--resume", model=begun_with).stderr


def test_another_row_under_the_same_id_is_refused_before_a_model_is_loaded(rank, tmp_path, begun):
    write_rows(tmp_path, [{**ROWS[0], "responses": ["Blue!", "Red."]}, *ROWS[1:]])
    with pytest.raises(InputError, match="line 1: prompt or responses of id 0 are others now"):
        rank("--resume", model="./nothing")


@pytest.mark.parametrize("arguments", [[], ["--resume"]])
def test_the_output_is_locked_before_a_model_is_loaded(rank, tmp_path, arguments):
    with (
        open_output(str(tmp_path / "out.jsonl"), "-", resume=False),
        pytest.raises(InputError, match=r"out.jsonl is written by another run"),
    ):
        rank(*arguments, model="./nothing")


def test_a_model_that_cannot_be_loaded_leaves_no_output(rank, tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint folder"):
        rank(model="./nothing")
    assert not (tmp_path / "out.jsonl").exists()


def test_no_row_that_could_be_scored_is_no_success(rank, tmp_path):
    with pytest.raises(InputError, match=r"none of 3 rows could be scored, the first: .* line 1: prompt: the judge's"):
        rank("--skip-bad", "--max-length", 20)
    (tmp_path / "in.jsonl").write_text('{"prompt": "p"}\n')
    with pytest.raises(InputError, match=r"none of 1 rows could be scored, the first: .* line 1: expected a field"):
        rank("--skip-bad", model="./nothing")
    assert not (tmp_path / "out.jsonl").exists()
