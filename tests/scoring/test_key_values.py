"""Keys and values by slot: what a layer reads back, what copies move, what growing keeps and holds."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gram_fast.scoring import key_values
from gram_fast.scoring.key_values import KeyValueStore

pytestmark = pytest.mark.usefixtures("one_thread")


def filled(device: str = "cpu", layers: int = 6, of_slot: tuple[int, int] = (2, 4), slots: int = 30) -> KeyValueStore:
    """A store whose every number is another one, but for rounding."""
    store = KeyValueStore()
    store.reserve(slots)
    like = torch.empty(0, dtype=torch.bfloat16, device=device)
    for number, buffer in enumerate(every_buffer(store, layers, of_slot, like)):
        buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(number)))
    return store


def every_buffer(store: KeyValueStore, layers: int, of_slot: tuple[int, int], like: torch.Tensor) -> list[torch.Tensor]:
    return [buffer for pair in store.buffers(range(layers), of_slot, like) for buffer in pair]


@st.composite
def copies(draw: st.DrawFn) -> np.ndarray:
    """Runs that are read from slots [0, 16) and written, apart from each other, to slots [16, 30)."""
    rows, slot = [], 16
    while slot < 30 and (length := draw(st.integers(0, 30 - slot))):
        rows.append((draw(st.integers(0, 16 - length)), slot, length))
        slot += length + draw(st.integers(0, 2))
    return np.array(draw(st.permutations(rows)), np.int64).reshape(-1, 3)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("layers", [1, 4, 6])
@pytest.mark.parametrize("of_slot", [(2, 4), (1, 3), (3, 64)])
def test_copies_go_to_their_slots_in_all_layers(layers, of_slot, device):
    like = torch.empty(0, dtype=torch.bfloat16, device=device)

    @given(copies())
    def check(rows):
        store = filled(device, layers, of_slot)
        expected = [buffer.clone() for buffer in every_buffer(store, layers, of_slot, like)]
        for start, slot, length in rows.tolist():
            for buffer in expected:
                buffer[slot : slot + length] = buffer[start : start + length].clone()
        store.copy(rows)
        for buffer, wanted in zip(every_buffer(store, layers, of_slot, like), expected, strict=True):
            assert torch.equal(buffer, wanted)

    check()


@given(rows=copies(), heads=st.integers(1, 3), width=st.sampled_from([1, 3, 4, 5, 64]))
def test_looked_up_rows_and_runs_are_the_same_copy(rows, heads, width):
    """What a GPU does and what a CPU does."""
    by_row = torch.randn(3, 2, 30, heads, width, dtype=torch.bfloat16)
    by_run = by_row.clone()
    key_values._copy_rows(by_row, key_values._rows(rows))
    key_values._copy_runs(by_run, rows)
    assert torch.equal(by_row, by_run)


def test_layers_of_other_shapes_and_few_of_the_layers():
    store = KeyValueStore()
    store.reserve(5)
    shapes = {7: (2, 4), 0: (1, 8), 3: (2, 4)}
    written = {layer: torch.randn(2, 4, *shape) for layer, shape in shapes.items()}
    for layer, (key, value) in written.items():
        store.write(layer, key, value)
    store.copy(np.array([[1, 4, 1]]))
    store.reserve(9)
    for layer, (key, value) in written.items():
        ((k_SKE, v_SKE),) = store.buffers([layer], shapes[layer], key)
        for buffer, part in ((k_SKE, key), (v_SKE, value)):
            assert buffer.shape == (9, *shapes[layer])
            assert buffer.is_contiguous()
            assert torch.equal(buffer[:4], part)
            assert torch.equal(buffer[4], part[1])


@pytest.mark.usefixtures("poisoned_outputs")
def test_slots_nobody_wrote_hold_zeros():
    store, like = KeyValueStore(), torch.empty(0)
    store.reserve(3)
    for buffer in every_buffer(store, 6, (2, 4), like):
        assert not buffer.any()
        buffer.fill_(1)
    store.reserve(8)
    for buffer in every_buffer(store, 6, (2, 4), like):
        assert buffer[:3].all()
        assert not buffer[3:].any()
    store.release()
    store.reserve(3)
    assert not any(buffer.any() for buffer in every_buffer(store, 6, (2, 4), like))


def test_growing_holds_one_block_twice(monkeypatch):
    store = filled(layers=12)
    old = [weakref.ref(block) for _, block in store._blocks]
    assert len(old) == 3
    alive, grown = [], key_values._grown

    def watched(*given):
        gc.collect()
        alive.append(sum(block() is not None for block in old))
        return grown(*given)

    monkeypatch.setattr(key_values, "_grown", watched)
    store.reserve(40)
    assert alive == [3, 2, 1]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_memory_that_growing_and_copying_take_on_a_gpu(device):
    layers, of_slot, like = 12, (2, 64), torch.empty(0, dtype=torch.bfloat16, device=device)
    store = KeyValueStore()
    store.reserve(4096)
    every_buffer(store, layers, of_slot, like)
    of_block = 4 * 2 * 2 * 64 * 2  # bytes of a slot
    allocators = 2**21  # what torch may leave of a larger piece of memory
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    store.copy(np.array([[0, 2048 + 2 * n, 1] for n in range(1000)]))
    assert torch.cuda.max_memory_allocated() - before < 1000 * of_block + allocators
    torch.cuda.reset_peak_memory_stats()
    store.reserve(8192)
    # Two blocks have grown, and the third is there twice.
    assert torch.cuda.max_memory_allocated() - before < (2 * 4096 + 8192) * of_block + allocators


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_copy_on_a_gpu_waits_for_nothing(device):
    store, rows = filled(device), np.array([[n, 16 + n, 1] for n in range(14)])
    store.copy(rows)
    torch.cuda.set_sync_debug_mode("error")
    try:
        store.copy(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
