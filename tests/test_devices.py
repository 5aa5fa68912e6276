"""Devices by name: which a name stands for, and those that cannot be had."""

import numpy as np
import pytest
import torch

from gram_fast.devices import capturing, find_devices, give_memory_back
from gram_fast.errors import BackendError, InputError


@pytest.fixture
def three_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("auto", ["cuda"]),
        ("cuda", ["cuda"]),
        (torch.device("cuda:2"), ["cuda:2"]),
        ("cuda:all", ["cuda:0", "cuda:1", "cuda:2"]),
        (["cuda:all"], ["cuda:0", "cuda:1", "cuda:2"]),
        (("cuda:0", torch.device("cuda:2")), ["cuda:0", "cuda:2"]),
        ("cuda:2,cuda:0", ["cuda:2", "cuda:0"]),
        (["cuda:0", "cuda"], ["cuda:0", "cuda:1"]),
        (["cpu"], ["cpu"]),
        (["cpu", "cpu"], ["cpu", "cpu"]),
    ],
)
def test_devices_by_name(three_gpus, device, expected):
    assert list(map(str, find_devices(device))) == expected


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ([], InputError, r"device: expected at least one, got \[\]"),
        (["cuda:0", "cuda:3"], BackendError, "device 'cuda:3' is not there: torch sees 3 CUDA GPUs"),
        (["cuda:1", "cuda:0", "cuda:1"], InputError, "device: expected every GPU once, got 'cuda:1' 2 times"),
        ("cuda:all,cuda:2", InputError, "device: expected every GPU once, got 'cuda:2' 2 times"),
        (["cuda:0", "cuda:1"] * 2, InputError, "got 'cuda:0' 2 times"),
        (["cuda", "cuda:1"], InputError, "device: expected every GPU once, got 'cuda:1' 2 times"),
        (["cpu", "cuda:0"], InputError, "device: expected replicas on devices of one kind, got cpu and cuda"),
        ("cuda:0,", BackendError, "there is no device '': expected auto, cpu, cuda, cuda:N or cuda:all"),
        (
            ["cpu", None],
            InputError,
            r"device: expected a torch device, .* or a list of these, got \['cpu', None\]",
        ),
        (np.array(["cpu", "cpu"]), InputError, "or a list of these, got array"),
        (b"cpu", InputError, "or a list of these, got b'cpu'"),
        (10**30, InputError, "or a list of these, got 1000"),
        (["cpu", "meta"], BackendError, "device 'meta' is not supported"),
    ],
)
def test_devices_that_cannot_be_had_are_named(three_gpus, device, error, message):
    with pytest.raises(error, match=message) as caught:
        find_devices(device)
    assert "\n" not in str(caught.value)


def test_all_gpus_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="device 'cuda:all' is not there: torch sees 0 CUDA GPUs"):
        find_devices("cuda:all")


def test_memory_is_given_back_between_captures(monkeypatch):
    """torch gives back that of all GPUs at once, and fails where one of them captures."""
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(capturing.locked()))
    give_memory_back(torch.device("cuda", 1))
    give_memory_back(torch.device("cpu"))
    assert freed == [True]
