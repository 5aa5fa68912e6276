import os
from collections.abc import Callable

import pytest
import torch
from helpers.exactness import assert_no_further
from helpers.forks import exit_code_of_fork
from helpers.layouts import Layout, every_other, inside_a_buffer, rows_far_apart, strided_last, transposed
from helpers.ops import on_each_device, on_each_dtype, skip_what_cannot_run
from torch import Tensor

from gram_fast import ops
from gram_fast.errors import BackendError
from gram_fast.kernels.merge_states import merge_states_reference

on_each_backend = pytest.mark.parametrize("backend", ops.BACKENDS["merge_states"])

States = tuple[Tensor, Tensor, Tensor, Tensor]  # out [T, H, E], lse [T, H], other_out [T, H, E], other_lse [T, H]
NO_KEYS = float("-inf")


def random_states(shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> States:
    generator = torch.Generator().manual_seed(seed)
    out_THE, other_THE = torch.randn((2, *shape), generator=generator)
    # A spread of 20 nats: in some rows one side all but vanishes.
    lse_TH, other_lse_TH = 10 * torch.randn((2, *shape[:2]), generator=generator)
    return out_THE, lse_TH, other_THE.to(dtype), other_lse_TH


def exact_merge(states: States) -> tuple[Tensor, Tensor]:
    out_THE, lse_TH, other_THE, other_lse_TH = (tensor.cpu().double() for tensor in states)
    weights = torch.stack([lse_TH, other_lse_TH]).softmax(dim=0)[..., None]
    return weights[0] * out_THE + weights[1] * other_THE, torch.stack([lse_TH, other_lse_TH]).logsumexp(dim=0)


def check(states: States, backend: str, device: str = "cpu", layout: Layout = Tensor.contiguous) -> None:
    """Merges; no further from float64 than twice what the float32 reference is, and one rounding of the result."""
    exact_out, exact_lse = exact_merge(states)
    ours, plain = ([layout(tensor.to(where, copy=True)) for tensor in states] for where in (device, "cpu"))
    ops.merge_states(*ours, backend=backend)
    merge_states_reference(*plain)
    for actual, reference, exact in zip(ours, plain, (exact_out, exact_lse), strict=False):
        if exact.numel():
            assert_no_further(actual, exact, reference, 2.0)
    for actual, given in zip(ours[2:], states[2:], strict=True):
        assert torch.equal(actual.cpu(), given.cpu()), "the second operand is only read"


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 1, 128), (7, 3, 97), (13, 1, 31), (2, 5, 24), (101, 4, 80), (0, 4, 64), (3, 0, 64), (5, 2, 0)],
)
def test_awkward_sizes(shape: tuple[int, int, int], dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("merge_states", backend, device, dtype)
    check(random_states(shape, dtype), backend, device)


# The loop is shared among threads from 32,768 elements on.
@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("shape", [(64, 4, 127), (64, 4, 128), (257, 6, 64), (1, 1, 40009), (40009, 1, 1)])
def test_sizes_around_threads(shape: tuple[int, int, int], dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("merge_states", backend, device, dtype)
    check(random_states(shape, dtype), backend, device)


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("layout", [transposed, inside_a_buffer, every_other])
@pytest.mark.parametrize("shape", [(7, 3, 31), (101, 4, 97)])
def test_strides(shape: tuple[int, int, int], layout: Layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("merge_states", backend, device, dtype)
    check(random_states(shape, dtype), backend, device, layout)


@pytest.mark.large_memory
@on_each_device
@on_each_backend
def test_offsets_beyond_32_bits(backend: str, device: str) -> None:
    skip_what_cannot_run("merge_states", backend, device, torch.float16)
    check(random_states((3, 2, 8), torch.float16), backend, device, outputs_far_apart)


def outputs_far_apart(tensor: Tensor) -> Tensor:
    """Halves only, which the second operand's outputs are here."""
    return rows_far_apart(tensor) if tensor.dtype == torch.float16 else tensor


@on_each_device
@on_each_backend
def test_a_view_leaves_its_neighbours_alone(backend: str, device: str) -> None:
    skip_what_cannot_run("merge_states", backend, device)
    out, lse, other, other_lse = (tensor.to(device) for tensor in random_states((9, 3, 8)))
    expected = out.clone(), lse.clone()
    part = slice(2, 6)
    ops.merge_states(out[part], lse[part], other[part], other_lse[part], backend=backend)
    outside = [0, 1, 6, 7, 8]
    assert torch.equal(out[outside], expected[0][outside])
    assert torch.equal(lse[outside], expected[1][outside])
    assert not torch.equal(out[part], expected[0][part])


@on_each_device
@on_each_backend
@on_each_dtype
def test_sides_without_keys(dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("merge_states", backend, device, dtype)
    states = random_states((4, 3, 17), dtype)
    out, lse, other, other_lse = (tensor.to(device, copy=True) for tensor in states)
    lse[0] = lse[2] = other_lse[1] = other_lse[2] = NO_KEYS
    expected = torch.where((lse == NO_KEYS)[..., None], other.float(), out)
    expected[2] = out[2]  # no key on either side: out stays as it is
    expected_lse = torch.maximum(lse, other_lse)
    ops.merge_states(out, lse, other, other_lse, backend=backend)
    assert torch.equal(out[:3], expected[:3])
    assert torch.equal(lse[:3], expected_lse[:3])
    assert not torch.equal(out[3], expected[3])


@on_each_device
@on_each_backend
def test_extreme_scores(backend: str, device: str) -> None:
    skip_what_cannot_run("merge_states", backend, device)
    states = random_states((5, 2, 16))
    states[1].copy_(torch.tensor([1e30, -1e30, 3e4, 88.8, -104.0])[:, None])
    states[3].copy_(torch.tensor([-1e30, 1e30, 3e4, 88.8, -104.0])[:, None])
    check(states, backend, device)


@pytest.mark.filterwarnings("ignore:invalid value")  # NaN is among them
@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_is_read_exactly(dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("merge_states", backend, device, dtype)
    other = torch.arange(65536).to(torch.uint16).view(dtype).view(64, 16, 64).to(device)  # subnormal, inf and NaN too
    out, lse = torch.zeros(other.shape, device=device), torch.full(other.shape[:2], NO_KEYS, device=device)
    ops.merge_states(out, lse, other, torch.zeros_like(lse), backend=backend)
    torch.testing.assert_close(out, other.float(), rtol=0, atol=0, equal_nan=True)
    assert not lse.any()


@on_each_device
@on_each_backend
def test_merging_in_parts_is_attention_over_all_keys(backend: str, device: str) -> None:
    skip_what_cannot_run("merge_states", backend, device)
    generator = torch.Generator().manual_seed(1)
    scores = 3 * torch.randn((5, 2, 40), generator=generator, dtype=torch.float64)
    values = torch.randn((40, 24), generator=generator, dtype=torch.float64)
    out, lse = torch.zeros(5, 2, 24, device=device), torch.full((5, 2), NO_KEYS, device=device)
    for keys in (slice(0, 1), slice(1, 14), slice(14, 40)):
        part = scores[..., keys].softmax(dim=-1) @ values[keys]
        part_lse = scores[..., keys].logsumexp(dim=-1)
        ops.merge_states(out, lse, part.float().to(device), part_lse.float().to(device), backend=backend)
    # Three roundings of inputs and three merges, each some units in the last place of numbers below 8.
    expected = scores.softmax(dim=-1) @ values
    torch.testing.assert_close(out.cpu().double(), expected, rtol=0, atol=16 * torch.finfo(torch.float32).eps)
    expected_lse = scores.logsumexp(dim=-1)
    torch.testing.assert_close(lse.cpu().double(), expected_lse, rtol=0, atol=32 * torch.finfo(torch.float32).eps)


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("layout", [Tensor.contiguous, transposed])
def test_opcheck(layout: Layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("merge_states", backend, device, dtype)
    states = tuple(layout(x.to(device)) for x in random_states((5, 3, 16), dtype))
    torch.library.opcheck(ops.merge_states, states, {"backend": backend})


WRONG: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "out_THE 2 dimensions": (0, lambda x: x[0]),
    "out_THE float64": (0, lambda x: x.double()),
    "out_THE half": (0, lambda x: x.half()),
    "out_THE stride": (0, strided_last),
    "lse_TH shape": (1, lambda x: x[1:]),
    "lse_TH heads": (1, lambda x: x.T.contiguous()),
    "lse_TH 3 dimensions": (1, lambda x: x[..., None]),
    "lse_TH dtype": (1, lambda x: x.half()),
    "other_out_THE shape": (2, lambda x: x[..., 1:]),
    "other_out_THE one row": (2, lambda x: x[:1]),
    "other_out_THE dtype": (2, lambda x: x.double()),
    "other_out_THE integers": (2, lambda x: x.short()),
    "other_out_THE stride": (2, strided_last),
    "other_lse_TH shape": (3, lambda x: x[:, :1]),
    "other_lse_TH dtype": (3, lambda x: x.double()),
}


@on_each_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str, backend: str) -> None:
    position, change = WRONG[wrong]
    states = list(random_states((5, 3, 16)))
    states[position] = change(states[position])
    untouched = states[0].clone()
    with pytest.raises(ValueError, match=rf"^{wrong.split()[0]}: expected "):
        ops.merge_states(*states, backend=backend)
    assert torch.equal(states[0], untouched)


def test_a_wrong_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    states = random_states((5, 3, 16))
    with pytest.raises(BackendError, match=r"'auto'.*reference, triton, extension"):
        ops.merge_states(*states, backend="auto")  # resolved once, by the caller, not by the op
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="TRITON_INTERPRET"):
        ops.merge_states(*states, backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("position", [1, 2, 3])
def test_wrong_devices_are_named(position: int) -> None:
    states = [tensor.cuda() for tensor in random_states((5, 3, 16))]
    states[position] = states[position].cpu()
    name = ("out_THE", "lse_TH", "other_out_THE", "other_lse_TH")[position]
    with pytest.raises(ValueError, match=rf"^{name}: expected "):
        ops.merge_states(*states, backend="reference")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_merge_after_its_parent() -> None:
    # Large enough for threads: their pool does not survive a fork, and asking for it would hang.
    states = random_states((128, 8, 64))
    expected = [tensor.clone() for tensor in states]
    ops.merge_states(*expected, backend="extension")
    shared = [tensor.share_memory_() for tensor in states]
    assert exit_code_of_fork(lambda: ops.merge_states(*shared, backend="extension")) == 0
    assert torch.equal(shared[0], expected[0])
    assert torch.equal(shared[1], expected[1])
