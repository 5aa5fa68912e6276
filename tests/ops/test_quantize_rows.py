from collections.abc import Callable

import pytest
import torch
from helpers.layouts import Layout, every_other, rows_far_apart, rows_inside_a_buffer, strided_last
from helpers.ops import on_each_device, on_each_dtype, skip_what_cannot_run
from torch import Tensor

from gram_fast import ops
from gram_fast.errors import BackendError

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_outputs", "rounded_float8")

on_each_backend = pytest.mark.parametrize("backend", ops.BACKENDS["quantize_rows"])


def random_input(num_rows: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(num_rows + width)
    sizes_T1 = torch.logspace(-3, 3, num_rows)[:, None]
    return (sizes_T1 * torch.randn((num_rows, width), generator=generator)).to(dtype)


def float8(exact: Tensor) -> Tensor:
    """The nearest numbers of float8_e4m3fn, ties to even, in float64: multiples of 2**-3 of a power of two."""
    exponents = exact.abs().clamp(min=2.0**-6).log2().floor()
    steps = torch.exp2(exponents - 3)
    return (exact / steps).round() * steps


def check(x_TD: Tensor, backend: str, device: str = "cpu", layout: Layout = Tensor.contiguous) -> None:
    """Values are the numbers of float8 that are nearest to what float32 gives, factors what it gives: bit for bit."""
    ours = layout(x_TD.to(device, copy=True))
    values_TD, scales_T1 = ops.quantize_rows(ours, backend=backend)
    assert torch.equal(ours.cpu(), x_TD), "the input is only read"
    assert (values_TD.dtype, scales_T1.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert (values_TD.shape, scales_T1.shape) == (x_TD.shape, (len(x_TD), 1))
    assert values_TD.is_contiguous()
    assert scales_T1.is_contiguous()
    largest_T1 = x_TD.float().abs().amax(dim=1, keepdim=True).clamp(min=2.0**-100)
    assert torch.equal(scales_T1.cpu(), (largest_T1.double() / 448).float())
    expected_TD = float8((x_TD.float() * (448 / largest_T1.double()).float()).double())
    assert torch.equal(values_TD.cpu().double(), expected_TD)


# One block takes a row.
@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize(
    ("num_rows", "width"), [(1, 1), (53, 2), (13, 31), (7, 97), (3, 64), (5, 1023), (4, 1024), (2, 12288), (1, 10007)]
)
def test_awkward_sizes(num_rows: int, width: int, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("quantize_rows", backend, device, dtype)
    check(random_input(num_rows, width, dtype), backend, device)


@on_each_device
@on_each_backend
def test_a_factor_that_torch_divides_another_way(backend: str, device: str) -> None:
    """448 / 3 by its reciprocal is a unit in the last place larger, and 1.125 times that no tie any more."""
    skip_what_cannot_run("quantize_rows", backend, device)
    check(torch.tensor([[3.0, 1.125]]), backend, device)


@on_each_device
@on_each_backend
def test_ties_carries_and_small_numbers(backend: str, device: str) -> None:
    """Every number of float8, and what lies half way between two of them, on a row whose factor is 1."""
    skip_what_cannot_run("quantize_rows", backend, device)
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    between = (numbers[1:] + numbers[:-1]) / 2
    check(torch.cat([numbers, -numbers, between, -between])[None], backend, device)


@on_each_device
@on_each_backend
@on_each_dtype
def test_a_value_is_within_one_rounding(dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("quantize_rows", backend, device, dtype)
    x_TD = random_input(19, 512, dtype)
    values_TD, scales_T1 = ops.quantize_rows(x_TD.to(device), backend=backend)
    back_TD = (values_TD.double() * scales_T1.double()).cpu()
    # Of float8, with three roundings of float32: two quotients and a product.
    bound_TD = 2.0**-4 * x_TD.double().abs() + 2.0**-10 * scales_T1.cpu().double()
    assert ((back_TD - x_TD.double()).abs() <= (1 + 3 * 2.0**-24) * bound_TD).all()


@on_each_device
@on_each_backend
@pytest.mark.parametrize("size", [0.0, 1e-45, 2.0**-101, 2.0**-100, 3e38])
def test_sizes_of_rows(size: float, backend: str, device: str) -> None:
    skip_what_cannot_run("quantize_rows", backend, device)
    check(size * torch.tensor([[1.0, -0.5, 0.3], [0.0, 0.0, 1.0]]), backend, device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value")  # infinity times zero
def test_what_is_no_number_stays_none(bad: float, backend: str, device: str) -> None:
    """So that it reaches the logits; in the row alone."""
    skip_what_cannot_run("quantize_rows", backend, device)
    x_TD = torch.tensor([[1.0, bad, 3.0], [1.0, 2.0, 3.0]], device=device)
    values_TD, scales_T1 = ops.quantize_rows(x_TD, backend=backend)
    products_TD = (values_TD.float() * scales_T1).cpu()
    assert products_TD[0].isnan().any()
    assert products_TD[1].isfinite().all()


@on_each_device
@on_each_backend
def test_no_rows(backend: str, device: str) -> None:
    skip_what_cannot_run("quantize_rows", backend, device)
    values_TD, scales_T1 = ops.quantize_rows(torch.empty(0, 8, device=device), backend=backend)
    assert (values_TD.shape, scales_T1.shape) == ((0, 8), (0, 1))


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("layout", [rows_inside_a_buffer, every_other])
def test_strides(layout: Layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("quantize_rows", backend, device, dtype)
    check(random_input(7, 97, dtype), backend, device, layout)


@pytest.mark.large_memory
@on_each_device
@on_each_backend
def test_offsets_beyond_32_bits(backend: str, device: str) -> None:
    skip_what_cannot_run("quantize_rows", backend, device, torch.float16)
    check(random_input(3, 8, torch.float16), backend, device, rows_far_apart)


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("layout", [Tensor.contiguous, every_other])
def test_opcheck(layout: Layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("quantize_rows", backend, device, dtype)
    torch.library.opcheck(ops.quantize_rows, (layout(random_input(5, 16, dtype).to(device)),), {"backend": backend})


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "3 dimensions": lambda x: x[None],
    "dtype": lambda x: x.double(),
    "integers": lambda x: x.int(),
    "stride": strided_last,
    "no columns": lambda x: x[:, :0],
}


@on_each_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str, backend: str) -> None:
    skip_what_cannot_run("quantize_rows", backend, "cpu")
    with pytest.raises(ValueError, match=r"^x_TD: expected "):
        ops.quantize_rows(WRONG[wrong](random_input(5, 8)), backend=backend)


def test_a_row_too_wide_for_one_block_is_an_error() -> None:
    skip_what_cannot_run("quantize_rows", "triton", "cpu")
    with pytest.raises(ValueError, match=r"^x_TD: expected a width of at most 65536"):
        ops.quantize_rows(torch.ones(1, 65537), backend="triton")


def test_where_the_backends_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert ops.resolve_backend("quantize_rows", "auto", cpu, torch.bfloat16) == "reference"
    with pytest.raises(BackendError, match=r"'cascade'.*reference, triton"):
        ops.quantize_rows(random_input(5, 8), backend="cascade")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, runs in (((8, 6), False), ((8, 9), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        problem = ops.backend_problem("quantize_rows", "triton", cuda, torch.bfloat16)
        assert (problem is None) == runs
        assert runs or "needs compute capability 8.9 or higher" in str(problem)
