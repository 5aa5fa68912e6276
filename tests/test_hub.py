"""Names on the hub: what is nowhere is one sentence at once, what the cache holds is loaded without a connection."""

import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetInfo, config
from datasets.arrow_writer import ArrowWriter
from helpers.small_models import write_judge
from huggingface_hub import constants
from huggingface_hub.utils import _http

import gram_fast
from gram_fast import hub
from gram_fast.errors import InputError
from gram_fast.hub import hub_problem
from gram_fast.judge import PairwiseJudge
from gram_fast.models.files import find_source
from gram_fast.rows.bad_rows import raise_bad_row
from gram_fast.rows.source import read_rows


@pytest.fixture
def hub_at(monkeypatch, tmp_path):
    """Moves the hub to an address, with an empty cache; waiting to try again is an error."""

    def no_sleep(seconds):
        raise AssertionError(f"slept {seconds} seconds to try again")

    def move(address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/{revision}/{filename}")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_http.time, "sleep", no_sleep)
    return move


@pytest.fixture
def nobody(hub_at):
    """The hub is where nobody listens."""
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.server_close()
    hub_at(f"http://127.0.0.1:{server.server_port}")


class Empty(BaseHTTPRequestHandler):
    """A hub without models, which serves paths of files alone."""

    def do_HEAD(self):
        if self.path == "/":
            return  # no answer at all
        self.send_response(404 if "nothing" in self.path else 200)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def empty(hub_at):
    """The hub answers, and has nothing."""
    with HTTPServer(("127.0.0.1", 0), Empty) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        hub_at(f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()
        thread.join()


def test_without_a_connection_a_name_is_an_error_at_once(nobody):
    said = (
        r"cannot load 'org/nothing': there is no such folder, and the Hugging Face hub cannot be reached \(http://127"
    )
    with pytest.raises(InputError, match=rf"^{said}.* Connection refused\)$"):
        PairwiseJudge.from_pretrained("org/nothing")
    with pytest.raises(InputError, match=r"^cannot load 'no/such/folder': there is no such folder, and names on the"):
        find_source("no/such/folder")
    with pytest.raises(InputError, match=r"^cannot read org/nothing:train as a data set.*the hub cannot be"):
        list(read_rows("org/nothing", raise_bad_row))


def test_a_name_that_the_hub_does_not_know_is_one_sentence(empty):
    assert hub_problem("org/nothing") is None
    with pytest.raises(InputError) as caught:
        find_source("org/nothing")
    assert str(caught.value) == (
        "cannot load 'org/nothing': there is no such folder, nor a model on the Hugging Face hub that you may read"
    )


def test_a_failure_holds_for_seconds_and_an_answer_for_a_minute(nobody, monkeypatch):
    asked = []
    answers = iter(["a moment's failure", None, "lost"])
    monkeypatch.setattr(hub, "_problem", lambda url: asked.append(url) or next(answers))
    for seconds, expected in ((100, "a moment's"), (104, "a moment's"), (105, None), (164, None), (165, "lost")):
        monkeypatch.setattr(hub, "time", SimpleNamespace(monotonic=lambda at=seconds: at))
        problem = hub_problem("org/judge")
        assert problem is None if expected is None else expected in problem
    assert asked == [f"{constants.ENDPOINT}/org/judge/main/config.json"] * 3
    assert hub_problem("no/such/name") is None


def test_what_is_in_the_cache_is_loaded_without_a_connection(nobody, tmp_path, caplog, monkeypatch):
    folder, commit = tmp_path / "cache" / "models--org--judge", "0" * 40
    write_judge(tmp_path / "judge")
    shutil.copytree(tmp_path / "judge", folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    judge = PairwiseJudge.from_pretrained("org/judge")
    alone = PairwiseJudge.from_pretrained(tmp_path / "judge")
    assert judge.compare("Which?", "a", "b").p == alone.compare("Which?", "a", "b").p
    (warning,) = (record.getMessage() for record in caplog.records if "cache" in record.getMessage())
    assert warning.startswith(f"org/judge is loaded from the cache, commit {commit}, which may be an old one: the Hugg")
    assert warning.endswith("Connection refused)")
    caplog.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    find_source("org/judge")
    assert not caplog.records, "who sets HF_HUB_OFFLINE has asked for the cache"


@pytest.mark.parametrize("is_set", [False, True])
def test_a_data_set_in_the_cache_is_read_without_a_connection(nobody, tmp_path, monkeypatch, is_set):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "c", "rejected": "d"}]
    folder = tmp_path / "datasets" / "org___pairs" / "default" / "0.0.0" / "0123"
    folder.mkdir(parents=True)
    table = Dataset.from_list(rows)
    with ArrowWriter(path=str(folder / "pairs-train.arrow")) as writer:
        writer.write_table(table.data.table)
        writer.finalize()
    splits = {"train": {"name": "train", "num_examples": 2, "dataset_name": "pairs"}}
    DatasetInfo(
        features=table.features, splits=splits, config_name="default", dataset_name="pairs", version="0.0.0"
    ).write_to_directory(str(folder))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_set)
    assert [row for _, row in read_rows("org/pairs", raise_bad_row)] == rows
    with pytest.raises(InputError, match=r"the hub cannot be reached \(.*, after 0 rows: .*[Ss]plit"):
        list(read_rows("org/pairs:test", raise_bad_row))
    assert not config.HF_HUB_OFFLINE


def test_small_is_the_judge_that_ships_with_the_package_unless_there_is_a_folder(tmp_path, monkeypatch, nobody):
    monkeypatch.chdir(tmp_path)
    assert find_source("small").name == gram_fast.SMALL_JUDGE
    write_judge(tmp_path / "small")
    assert find_source("small").name == "small"
