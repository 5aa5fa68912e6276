"""The judge of a process: loaded once, late, by whoever comes first, and never copied."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from helpers.comparers import LengthComparer
from helpers.forks import exit_code_of_fork, held
from helpers.small_models import write_judge

from gram_fast import InputError, PairwiseJudge
from gram_fast.integrations import lazy
from gram_fast.integrations.lazy import LazyJudge, rank_device


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge"))


def test_a_judge_in_memory_is_itself():
    judge = PairwiseJudge(LengthComparer())
    assert LazyJudge(judge).get() is judge


def test_a_name_is_loaded_once_whoever_asks(folder, monkeypatch):
    loads = []
    load = PairwiseJudge.from_pretrained
    monkeypatch.setattr(PairwiseJudge, "from_pretrained", lambda *a, **k: loads.append(a) or load(*a, **k))
    lazy = LazyJudge(folder, max_length=999)
    assert not loads
    with ThreadPoolExecutor(8) as pool:
        judges = set(pool.map(lambda n: (lazy if n % 2 else LazyJudge(str(folder), max_length=999)).get(), range(16)))
    assert len(judges) == len(loads) == 1
    assert LazyJudge(folder, max_length=998).get() not in judges


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_was_forked_while_a_judge_was_loading_loads_its_own(folder):
    with held(lazy._lock):
        assert exit_code_of_fork(LazyJudge(folder, max_length=997).get) == 0


def test_copies_are_names(folder):
    lazy = LazyJudge(folder)
    judge = lazy.get()
    copy = deepcopy(lazy)
    assert copy.get() is judge
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).get().max_length)"
    run = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(lazy), capture_output=True, timeout=120)
    assert run.stdout.split() == [str(judge.max_length).encode()], run.stderr


def test_a_failed_load_is_tried_again(tmp_path):
    lazy = LazyJudge(tmp_path / "late")
    with pytest.raises(InputError):
        lazy.get()
    write_judge(tmp_path / "late")
    assert isinstance(lazy.get(), PairwiseJudge)


def test_what_is_no_judge_and_options_that_go_nowhere_are_refused():
    with pytest.raises(InputError, match=r"judge: expected a PairwiseJudge, a folder or a name, got int"):
        LazyJudge(3)
    with pytest.raises(InputError, match="expected no options beside a judge in memory, got dtype"):
        LazyJudge(PairwiseJudge(LengthComparer()), dtype="float32")


def test_a_build_for_gpus_that_sees_none_warns(monkeypatch, caplog):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert rank_device() == "auto"
    assert "sees no GPU" in caplog.text


@pytest.mark.parametrize(
    ("local_rank", "gpus", "device"), [("1", 4, "cuda:1"), ("1", 1, "auto"), ("", 4, "auto"), ("0", 0, "auto")]
)
def test_the_device_of_a_rank(monkeypatch, local_rank, gpus, device):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert rank_device() == device
