from collections.abc import Callable

import pytest
import torch
from helpers.exactness import assert_as_exact_as_float32
from helpers.layouts import Layout, every_other, rows_far_apart, rows_inside_a_buffer, strided_last
from helpers.ops import on_each_device, on_each_dtype, skip_what_cannot_run
from torch import Tensor

from gram_fast import ops
from gram_fast.errors import BackendError

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_outputs")

on_each_backend = pytest.mark.parametrize("backend", ops.BACKENDS["swiglu"])


def random_input(num_tokens: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens + width)
    return (3 * torch.randn((num_tokens, 2 * width), generator=generator)).to(dtype)


def plain_swiglu(gate_up_TG: Tensor, dtype: torch.dtype) -> Tensor:
    gate_TF, up_TF = gate_up_TG.to(dtype).chunk(2, dim=-1)
    return gate_TF / (1 + (-gate_TF).exp()) * up_TF


def check(gate_up_TG: Tensor, backend: str, device: str = "cpu", layout: Layout = Tensor.contiguous) -> None:
    """No further from float64 than twice what plain float32 is, some roundings of float32 and one of the dtype.

    Of float32: four, and those of the exponential's argument, which become the result's.
    """
    dtype = gate_up_TG.dtype
    ours = layout(gate_up_TG.to(device, copy=True))
    out_TF = ops.swiglu(ours, backend=backend)
    assert torch.equal(ours.cpu(), gate_up_TG), "the input is only read"
    assert out_TF.dtype == dtype
    assert out_TF.is_contiguous()
    exact_TF = plain_swiglu(gate_up_TG, torch.float64)
    roundings_TF = 4 + gate_up_TG.double().abs().chunk(2, dim=-1)[0]
    plain_TF = plain_swiglu(gate_up_TG, torch.float32)
    assert_as_exact_as_float32(out_TF, exact_TF, plain_TF, slack=roundings_TF * exact_TF.abs())


# A block has at most 1024 columns.
@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize(
    ("num_tokens", "width"), [(1, 1), (53, 2), (13, 31), (7, 97), (3, 1023), (3, 1024), (3, 1025), (2, 9728)]
)
def test_awkward_sizes(num_tokens: int, width: int, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("swiglu", backend, device, dtype)
    check(random_input(num_tokens, width, dtype), backend, device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_nothing(shape: tuple[int, int], backend: str, device: str) -> None:
    skip_what_cannot_run("swiglu", backend, device)
    gate_up_TG = torch.empty(shape, device=device)
    assert ops.swiglu(gate_up_TG, backend=backend).shape == (shape[0], shape[1] // 2)


@pytest.mark.filterwarnings("ignore:overflow")  # the exponential of 89 is inf, and a quotient by it 0
@on_each_device
@on_each_backend
@on_each_dtype
def test_extreme_gates(dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("swiglu", backend, device, dtype)
    gates = torch.tensor([0.0, 1e-7, 1e-3, 1.0, 17.0, 87.0, 88.0, 89.0, 104.0, 1e3, 6e4])
    gate_T1 = torch.cat([gates, -gates])[:, None].to(dtype)
    check(torch.cat([gate_T1, torch.ones_like(gate_T1)], dim=1), backend, device)


@on_each_device
@on_each_backend
def test_the_gate_comes_first(backend: str, device: str) -> None:
    skip_what_cannot_run("swiglu", backend, device)
    gate_up_TG = torch.tensor([[0.0, 40.0, 5.0, 7.0]], device=device)  # silu(40) is 40 to the last bit
    assert ops.swiglu(gate_up_TG, backend=backend).tolist() == [[0.0, 280.0]]


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("layout", [rows_inside_a_buffer, every_other])
def test_strides(layout: Layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("swiglu", backend, device, dtype)
    check(random_input(7, 97, dtype), backend, device, layout)


@pytest.mark.large_memory
@on_each_device
@on_each_backend
def test_offsets_beyond_32_bits(backend: str, device: str) -> None:
    skip_what_cannot_run("swiglu", backend, device, torch.float16)
    check(random_input(3, 8, torch.float16), backend, device, rows_far_apart)


# Backends of which an element's bits do not depend on its place: torch's CPU silu is none of them.
on_each_invariant_backend = pytest.mark.parametrize("backend", ops.BACKENDS["swiglu"][1:])


@pytest.mark.filterwarnings("ignore:overflow")  # of exponentials, as above
@on_each_device
@on_each_invariant_backend
@on_each_dtype
@pytest.mark.parametrize("layout", [Tensor.contiguous, rows_inside_a_buffer, every_other])
def test_an_element_has_the_same_bits_in_every_place(
    layout: Layout, dtype: torch.dtype, backend: str, device: str
) -> None:
    """The same gates and factors in rows of every width up to 70 and one more place on in each, and one by one."""
    skip_what_cannot_run("swiglu", backend, device, dtype)
    pairs_2N = 6 * torch.randn((2, 70), generator=torch.Generator().manual_seed(0))
    pairs_2N[0, ::7] *= 15  # exponentials of every size, and none
    pairs_2N = pairs_2N.to(device, dtype)
    alone_N = ops.swiglu(pairs_2N.T.contiguous(), backend=backend)[:, 0]
    for width in range(1, 71):
        rotated_2TN = torch.stack([pairs_2N.roll(places, 1) for places in range(3)], dim=1)[:, :, :width]
        rows_TG = torch.cat([rotated_2TN[0], rotated_2TN[1]], dim=1)
        expected_TF = torch.stack([alone_N.roll(places) for places in range(3)])[:, :width]
        assert torch.equal(ops.swiglu(layout(rows_TG), backend=backend), expected_TF)


@pytest.mark.parametrize("threads", [1, 2])
@on_each_dtype
def test_rows_have_the_same_bits_on_any_number_of_threads(dtype: torch.dtype, threads: int, one_thread: None) -> None:
    gate_up_TG = random_input(61, 1031, dtype)  # over 32,768 elements: threads share the rows
    alone_TF = torch.cat([ops.swiglu(row_1G, backend="extension") for row_1G in gate_up_TG.split(1)])
    torch.set_num_threads(threads)  # OpenMP's too; one_thread sets them back
    order_T = torch.randperm(61, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ops.swiglu(gate_up_TG[order_T], backend="extension"), alone_TF[order_T])


def test_numbers_that_are_none() -> None:
    gate_up_TG = torch.tensor([[float("inf"), -float("inf"), float("nan"), 1.0, 1.0, 1.0]])
    out = ops.swiglu(gate_up_TG, backend="extension")
    torch.testing.assert_close(out, torch.tensor([[float("inf"), float("nan"), float("nan")]]), equal_nan=True)


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("layout", [Tensor.contiguous, every_other])
def test_opcheck(layout: Layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("swiglu", backend, device, dtype)
    torch.library.opcheck(ops.swiglu, (layout(random_input(5, 16, dtype).to(device)),), {"backend": backend})


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "3 dimensions": lambda x: x[None],
    "dtype": lambda x: x.double(),
    "integers": lambda x: x.int(),
    "stride": strided_last,
    "odd width": lambda x: x[:, 1:],
}


@on_each_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str, backend: str) -> None:
    skip_what_cannot_run("swiglu", backend, "cpu")
    with pytest.raises(ValueError, match=r"^gate_up_TG: expected "):
        ops.swiglu(WRONG[wrong](random_input(5, 8)), backend=backend)


def test_a_wrong_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"'cascade'.*reference, triton, extension"):
        ops.swiglu(random_input(5, 8), backend="cascade")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="TRITON_INTERPRET"):
        ops.swiglu(random_input(5, 8), backend="triton")


def test_the_extension_is_chosen_on_the_cpu_and_runs_nowhere_else() -> None:
    assert ops.resolve_backend("swiglu", "auto", torch.device("cpu"), torch.bfloat16) == "extension"
    problem = ops.backend_problem("swiglu", "extension", torch.device("cuda"), torch.bfloat16)
    assert problem is not None
    assert "CPU alone" in problem
