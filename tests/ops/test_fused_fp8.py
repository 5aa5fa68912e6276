"""`add_rms_norm_fp8` and `swiglu_fp8`: the plain ops, whose results are quantized before they are written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.layouts import Layout, every_other, rows_far_apart, rows_inside_a_buffer, strided_last
from helpers.ops import on_each_device, on_each_dtype, skip_what_cannot_run
from torch import Tensor

from gram_fast import ops
from gram_fast.errors import BackendError

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_outputs", "rounded_float8")

on_each_backend = pytest.mark.parametrize("backend", ops.BACKENDS["swiglu_fp8"])
with_and_without_x = pytest.mark.parametrize("has_x", [True, False], ids=["addend", "no addend"])
EPS = 1e-6
# Each is one block, or one that is not full; as many columns as usual layers have.
SIZES = pytest.mark.parametrize(
    ("num_tokens", "width"), [(1, 1), (53, 2), (7, 97), (3, 64), (5, 1023), (4, 1024), (2, 6144)]
)

Quantized = tuple[Tensor, Tensor]


def random_numbers(num_tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens + width)
    return (3 * torch.randn((num_tokens, width), generator=generator)).to(dtype)


def norm_inputs(num_tokens: int, width: int, dtype: torch.dtype, has_x: bool = True) -> tuple[Tensor, Any, Tensor]:
    residual_TD, x_TD = random_numbers(2 * num_tokens, width, dtype).split(num_tokens)
    weight_D = (1 + 0.1 * random_numbers(1, width, torch.float32)[0]).to(dtype)
    return residual_TD, x_TD if has_x else None, weight_D


def check(found: Quantized, plain_TD: Tensor, exact_TD: Tensor) -> None:
    """Every value is within a rounding of float8 of a number that is within one of the dtype of the exact one.

    On a CPU it has the bits of the plain op's result, quantized; a GPU may sum a row in another order.
    """
    values_TD, scales_T1 = (part.cpu() for part in found)
    assert (values_TD.dtype, scales_T1.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert values_TD.is_contiguous()
    assert scales_T1.shape == (len(plain_TD), 1)
    half = 1.1 * torch.finfo(plain_TD.dtype).eps / 2 + 2.0**-20
    bound_TD = (2.0**-4 + 1.1 * half) * exact_TD.abs() + (1 + half) * 2.0**-10 * scales_T1.double()
    assert ((values_TD.double() * scales_T1.double() - exact_TD).abs() <= bound_TD).all()
    largest_T1 = exact_TD.abs().amax(dim=1, keepdim=True).clamp(min=2.0**-100)
    assert ((scales_T1 * 448 - largest_T1).abs() <= half * largest_T1).all()
    if not found[0].is_cuda:
        expected_TD, expected_T1 = ops.quantize_rows(plain_TD, backend="reference")
        assert torch.equal(values_TD.float(), expected_TD.float())
        assert torch.equal(scales_T1, expected_T1)


def check_norm(
    inputs: tuple[Tensor, Any, Tensor], backend: str, device: str, layout: Layout = Tensor.contiguous
) -> None:
    residual_TD, x_TD, weight_D = inputs
    ours, plain = (
        [None if tensor is None else layout(tensor.to(device, copy=True)) for tensor in (residual_TD, x_TD)]
        for _ in range(2)
    )
    found = ops.add_rms_norm_fp8(*ours, weight_D.to(device), EPS, backend=backend)
    plain_TD = ops.add_rms_norm(*plain, weight_D.to(device), EPS, backend=backend)
    assert torch.equal(ours[0], plain[0]), "the residual stream is that of the plain op"
    sum_TD = ours[0].cpu().double()
    exact_TD = sum_TD / (sum_TD.square().mean(dim=1, keepdim=True) + EPS).sqrt() * weight_D.double()
    check(found, plain_TD, exact_TD)


def check_swiglu(gate_up_TG: Tensor, backend: str, device: str, layout: Layout = Tensor.contiguous) -> None:
    ours = layout(gate_up_TG.to(device))
    gate_TF, up_TF = gate_up_TG.double().chunk(2, dim=1)
    plain_TF = ops.swiglu(ours, backend=backend)
    check(ops.swiglu_fp8(ours, backend=backend), plain_TF, gate_TF / (1 + (-gate_TF).exp()) * up_TF)


@on_each_device
@on_each_backend
@with_and_without_x
@on_each_dtype
@SIZES
def test_norms(num_tokens: int, width: int, dtype: torch.dtype, has_x: bool, backend: str, device: str) -> None:
    skip_what_cannot_run("add_rms_norm_fp8", backend, device, dtype)
    check_norm(norm_inputs(num_tokens, width, dtype, has_x), backend, device)


@on_each_device
@on_each_backend
@on_each_dtype
@SIZES
def test_activations(num_tokens: int, width: int, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("swiglu_fp8", backend, device, dtype)
    check_swiglu(random_numbers(num_tokens, 2 * width, dtype), backend, device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("layout", [rows_inside_a_buffer, every_other, rows_far_apart])
def test_strides(layout: Layout, backend: str, device: str) -> None:
    skip_what_cannot_run("swiglu_fp8", backend, device, torch.float16)
    width = 8 if layout is rows_far_apart else 98
    check_norm(norm_inputs(3, width, torch.float16), backend, device, layout)
    check_swiglu(random_numbers(3, width, torch.float16), backend, device, layout)


@on_each_device
@on_each_backend
def test_no_tokens(backend: str, device: str) -> None:
    skip_what_cannot_run("swiglu_fp8", backend, device)
    empty_TD = torch.empty(0, 8, device=device)
    for values_TD, scales_T1 in (
        ops.add_rms_norm_fp8(empty_TD, None, torch.ones(8, device=device), EPS, backend=backend),
        ops.swiglu_fp8(torch.empty(0, 16, device=device), backend=backend),
    ):
        assert (values_TD.shape, scales_T1.shape) == ((0, 8), (0, 1))


@on_each_device
@on_each_backend
@with_and_without_x
def test_opcheck(has_x: bool, backend: str, device: str) -> None:
    skip_what_cannot_run("swiglu_fp8", backend, device)
    residual_TD, x_TD, weight_D = norm_inputs(5, 16, torch.float32, has_x)
    arguments = (residual_TD.to(device), None if x_TD is None else x_TD.to(device), weight_D.to(device), EPS)
    torch.library.opcheck(ops.add_rms_norm_fp8, arguments, {"backend": backend})
    torch.library.opcheck(ops.swiglu_fp8, (random_numbers(5, 16, torch.float32).to(device),), {"backend": backend})


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "3 dimensions": lambda x: x[None],
    "dtype": lambda x: x.double(),
    "stride": strided_last,
    "no columns": lambda x: x[:, :0],
}


@on_each_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str, backend: str) -> None:
    skip_what_cannot_run("swiglu_fp8", backend, "cpu")
    x_TD = WRONG[wrong](random_numbers(5, 8, torch.float32))
    weight_D = torch.ones(x_TD.shape[-1], dtype=x_TD.dtype)
    with pytest.raises(ValueError, match=r"^residual_TD: expected "):
        ops.add_rms_norm_fp8(x_TD, None, weight_D, EPS, backend=backend)
    with pytest.raises(ValueError, match=r"^gate_up_TG: expected "):
        ops.swiglu_fp8(x_TD, backend=backend)


def test_other_tensors_are_named() -> None:
    residual_TD, x_TD, weight_D = norm_inputs(5, 8, torch.float32)
    with pytest.raises(ValueError, match=r"^x_TD: expected "):
        ops.add_rms_norm_fp8(residual_TD, x_TD[1:], weight_D, EPS, backend="reference")
    with pytest.raises(ValueError, match=r"^weight_D: expected "):
        ops.add_rms_norm_fp8(residual_TD, x_TD, weight_D.half(), EPS, backend="reference")
    with pytest.raises(ValueError, match=r"^gate_up_TG: expected an even width above 0, got 7"):
        ops.swiglu_fp8(residual_TD[:, 1:], backend="reference")


def test_a_row_too_wide_for_one_block_is_an_error() -> None:
    skip_what_cannot_run("swiglu_fp8", "triton", "cpu")
    with pytest.raises(ValueError, match=r"^residual_TD: expected a width of at most 65536"):
        ops.add_rms_norm_fp8(torch.ones(1, 65537), None, torch.ones(65537), EPS, backend="triton")
    with pytest.raises(ValueError, match=r"^gate_up_TG: expected a width of at most 131072"):
        ops.swiglu_fp8(torch.ones(1, 131074), backend="triton")


def test_a_wrong_backend_is_an_error() -> None:
    with pytest.raises(BackendError, match=r"'extension'.*reference, triton"):
        ops.swiglu_fp8(random_numbers(5, 8, torch.float32), backend="extension")
    with pytest.raises(BackendError, match=r"'extension'.*reference, triton"):
        ops.add_rms_norm_fp8(*norm_inputs(5, 8, torch.float32), EPS, backend="extension")
