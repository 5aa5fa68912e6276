"""Streams of pairs: every pair once a pass, and a position from which any loader goes on."""

from itertools import islice

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from gram_fast.training.data import stream
from gram_fast.training.data.stream import PairStream

COUNT = 10


def rows(number):
    return ({"number": n} for n in range(COUNT))


def numbers(pairs, count):
    return [int(pair["number"]) for pair in islice(pairs, count)]


@pytest.mark.parametrize("buffer", [3, 100])
def test_every_pass_has_every_pair_once_in_an_order_of_its_own(buffer, monkeypatch):
    monkeypatch.setattr(stream, "_SHUFFLE_BUFFER", buffer)
    seen = numbers(PairStream(rows, seed=1), 4 * COUNT)
    passes = [seen[k : k + COUNT] for k in range(0, len(seen), COUNT)]
    assert all(sorted(some) == list(range(COUNT)) for some in passes)
    assert len(set(map(tuple, passes))) == 4
    assert numbers(PairStream(rows, seed=1), 4 * COUNT) == seen
    assert numbers(PairStream(rows, seed=2), 4 * COUNT) != seen


def test_a_pass_is_read_when_it_is_reached_and_knows_its_number():
    asked = []
    pairs = iter(PairStream(lambda number: asked.append(number) or rows(number), seed=0))
    numbers(pairs, COUNT)
    assert asked == [0]
    numbers(pairs, COUNT + 1)
    assert asked == [0, 1, 2]


def test_without_pairs_it_ends():
    assert list(PairStream(lambda number: iter(()), seed=0)) == []


def loader(process, processes, workers):
    plain = DataLoader(PairStream(rows, seed=0), batch_size=3, collate_fn=lambda pairs: numbers(pairs, 3),
                       num_workers=workers)  # fmt: skip
    return prepare_data_loader(
        plain, torch.device("cpu"), num_processes=processes, process_index=process, dispatch_batches=False
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_processes_share_it_and_go_on_in_any_pass(processes, workers):
    """What a Trainer does to resume: it skips the batches of the steps that were made."""
    batches = [list(islice(loader(process, processes, workers), 12)) for process in range(processes)]
    together = [n for step in zip(*batches, strict=True) for batch in step for n in batch]
    assert together == numbers(PairStream(rows, seed=0), 36 * processes)
    for process in range(processes):
        rest = skip_first_batches(loader(process, processes, workers), 7)
        assert list(islice(rest, 5)) == batches[process][7:]
