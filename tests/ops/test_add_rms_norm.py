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

on_each_backend = pytest.mark.parametrize("backend", ops.BACKENDS["add_rms_norm"])
with_and_without_x = pytest.mark.parametrize("has_x", [True, False], ids=["addend", "no addend"])
EPS = 1e-6

Inputs = tuple[Tensor, Tensor | None, Tensor]  # residual [T, D], x [T, D], weight [D]


def random_inputs(num_tokens: int, width: int, dtype: torch.dtype = torch.float32, has_x: bool = True) -> Inputs:
    generator = torch.Generator().manual_seed(num_tokens + width)
    residual_TD, x_TD = 3 * torch.randn((2, num_tokens, width), generator=generator)
    weight_D = 1 + 0.3 * torch.randn(width, generator=generator)
    return residual_TD.to(dtype), x_TD.to(dtype) if has_x else None, weight_D.to(dtype)


def plain_norm(sum_TD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    sum_TD = sum_TD.to(dtype)
    return sum_TD / (sum_TD.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight_D.to(dtype)


def check(
    inputs: Inputs,
    backend: str,
    device: str = "cpu",
    eps: float = EPS,
    layout: Layout = Tensor.contiguous,
) -> None:
    """The sum is that of float32, bit for bit.

    The norm is no further from float64 than twice what plain float32 is, and four roundings of float32 and one of the
    dtype.
    """
    residual_TD, x_TD, weight_D = inputs
    dtype = residual_TD.dtype
    ours = [None if tensor is None else layout(tensor.to(device, copy=True)) for tensor in (residual_TD, x_TD)]
    normed_TD = ops.add_rms_norm(*ours, weight_D.to(device), eps, backend=backend)
    sum_TD = residual_TD if x_TD is None else (residual_TD.float() + x_TD.float()).to(dtype)
    assert torch.equal(ours[0].cpu(), sum_TD)
    if x_TD is not None:
        assert torch.equal(ours[1].cpu(), x_TD), "the addend is only read"
    assert normed_TD.dtype == dtype
    assert normed_TD.is_contiguous()
    exact_TD = plain_norm(sum_TD, weight_D, eps, torch.float64)
    plain_TD = plain_norm(sum_TD, weight_D, eps, torch.float32)
    assert_as_exact_as_float32(normed_TD, exact_TD, plain_TD, slack=4 * exact_TD.abs())


@on_each_device
@on_each_backend
@with_and_without_x
@on_each_dtype
@pytest.mark.parametrize(
    ("num_tokens", "width"), [(1, 1), (53, 2), (13, 31), (7, 97), (3, 64), (5, 1023), (4, 1024), (2, 5120), (1, 10007)]
)
def test_awkward_sizes(num_tokens: int, width: int, dtype: torch.dtype, has_x: bool, backend: str, device: str) -> None:
    skip_what_cannot_run("add_rms_norm", backend, device, dtype)
    check(random_inputs(num_tokens, width, dtype, has_x), backend, device)


@on_each_device
@on_each_backend
@with_and_without_x
def test_no_tokens(has_x: bool, backend: str, device: str) -> None:
    skip_what_cannot_run("add_rms_norm", backend, device)
    inputs = (None if tensor is None else tensor.to(device) for tensor in random_inputs(0, 8, has_x=has_x))
    assert ops.add_rms_norm(*inputs, EPS, backend=backend).shape == (0, 8)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("eps", [0.0, 1e-5, 10.0])
def test_eps_is_the_callers(eps: float, backend: str, device: str) -> None:
    skip_what_cannot_run("add_rms_norm", backend, device)
    check(random_inputs(5, 16), backend, device, eps)


@on_each_device
@on_each_backend
@on_each_dtype
def test_a_row_of_zeros_needs_eps_alone(dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("add_rms_norm", backend, device, dtype)
    residual_TD = torch.tensor([[1.0, -2.0, 3.0]], dtype=dtype, device=device)
    weight_D = torch.ones(3, dtype=dtype, device=device)
    normed_TD = ops.add_rms_norm(residual_TD, -residual_TD, weight_D, EPS, backend=backend)
    assert not residual_TD.any()
    assert not normed_TD.any()


@on_each_device
@on_each_backend
@with_and_without_x
@on_each_dtype
@pytest.mark.parametrize("layout", [rows_inside_a_buffer, every_other])
def test_strides(layout: Layout, dtype: torch.dtype, has_x: bool, backend: str, device: str) -> None:
    skip_what_cannot_run("add_rms_norm", backend, device, dtype)
    check(random_inputs(7, 97, dtype, has_x), backend, device, layout=layout)


@on_each_device
@on_each_backend
def test_what_surrounds_the_rows_is_left_alone(backend: str, device: str) -> None:
    skip_what_cannot_run("add_rms_norm", backend, device)
    residual_TD, x_TD, weight_D = (tensor.to(device) for tensor in random_inputs(9, 11))
    buffer = torch.arange(13.0 * 16, device=device).reshape(13, 16)
    expected = buffer.clone()
    buffer[2:11, 3:14] = residual_TD
    expected[2:11, 3:14] = residual_TD + x_TD
    ops.add_rms_norm(buffer[2:11, 3:14], x_TD, weight_D, EPS, backend=backend)
    assert torch.equal(buffer, expected)


@pytest.mark.large_memory
@on_each_device
@on_each_backend
def test_offsets_beyond_32_bits(backend: str, device: str) -> None:
    skip_what_cannot_run("add_rms_norm", backend, device, torch.float16)
    check(random_inputs(3, 8, torch.float16), backend, device, layout=rows_far_apart)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("threads", [1, 2])
@on_each_dtype
@pytest.mark.parametrize("width", [1, 7, 31, 64, 129, 1023, 2048])
def test_a_row_has_the_same_bits_wherever_it_stands(
    width: int, dtype: torch.dtype, threads: int, backend: str, device: str
) -> None:
    """On the CPU torch sums the squares of one row alone in another order from 32,768 columns on, with two threads."""
    skip_what_cannot_run("add_rms_norm", backend, device, dtype)
    if threads > 1 and (backend == "triton" or device == "cuda"):
        pytest.skip("no thread of the CPU's takes part")
    torch.set_num_threads(threads)  # one_thread sets them back
    residual_TD, x_TD, weight_D = (tensor.to(device) for tensor in random_inputs(37, width, dtype))

    def norms(residual_TD: Tensor, x_TD: Tensor) -> Tensor:
        return ops.add_rms_norm(residual_TD.clone(), x_TD, weight_D, EPS, backend=backend)

    alone_TD = torch.cat([norms(*rows) for rows in zip(residual_TD.split(1), x_TD.split(1), strict=True)])
    # More than 32,768 elements are shared among threads; in the interpreter a row takes a millisecond.
    for num_tokens in (2, 19) if backend == "triton" else (2, 19, 700):
        picks_T = torch.randint(37, (num_tokens,), generator=torch.Generator().manual_seed(num_tokens))
        for layout in (Tensor.contiguous, rows_inside_a_buffer):
            assert torch.equal(norms(layout(residual_TD[picks_T]), layout(x_TD[picks_T])), alone_TD[picks_T])


@on_each_device
@on_each_backend
@with_and_without_x
@on_each_dtype
@pytest.mark.parametrize("layout", [Tensor.contiguous, every_other])
def test_opcheck(layout: Layout, dtype: torch.dtype, has_x: bool, backend: str, device: str) -> None:
    skip_what_cannot_run("add_rms_norm", backend, device, dtype)
    residual_TD, x_TD, weight_D = (None if x is None else x.to(device) for x in random_inputs(5, 16, dtype, has_x))
    arguments = (layout(residual_TD), None if x_TD is None else layout(x_TD), weight_D, EPS)
    torch.library.opcheck(ops.add_rms_norm, arguments, {"backend": backend})


def good_arguments() -> dict[str, object]:
    names = ("residual_TD", "x_TD", "weight_D")
    return dict(zip(names, random_inputs(5, 8), strict=True)) | {"eps": EPS, "backend": "reference"}


WRONG: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "residual_TD 3 dimensions": ("residual_TD", lambda x: x[None]),
    "residual_TD dtype": ("residual_TD", lambda x: x.double()),
    "residual_TD stride": ("residual_TD", strided_last),
    "x_TD rows": ("x_TD", lambda x: x[1:]),
    "x_TD one row": ("x_TD", lambda x: x[0]),
    "x_TD dtype": ("x_TD", lambda x: x.half()),
    "x_TD stride": ("x_TD", strided_last),
    "weight_D 2 dimensions": ("weight_D", lambda x: x[None]),
    "weight_D width": ("weight_D", lambda x: x[1:]),
    "weight_D dtype": ("weight_D", lambda x: x.bfloat16()),
    "weight_D stride": ("weight_D", strided_last),
}


@on_each_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str, backend: str) -> None:
    skip_what_cannot_run("add_rms_norm", backend, "cpu")
    name, change = WRONG[wrong]
    arguments = good_arguments() | {"backend": backend}
    arguments[name] = change(arguments[name])
    untouched = arguments["residual_TD"].clone()
    with pytest.raises(ValueError, match=rf"^{name}: expected "):
        ops.add_rms_norm(**arguments)
    assert torch.equal(arguments["residual_TD"], untouched)


def test_a_row_too_wide_for_one_block_is_an_error() -> None:
    skip_what_cannot_run("add_rms_norm", "triton", "cpu")
    with pytest.raises(ValueError, match=r"^residual_TD: expected a width of at most 65536"):
        ops.add_rms_norm(torch.ones(1, 65537), None, torch.ones(65537), EPS, backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["x_TD", "weight_D"])
def test_wrong_devices_are_named(name: str) -> None:
    arguments = {key: x.cuda() if isinstance(x, Tensor) else x for key, x in good_arguments().items()}
    arguments[name] = arguments[name].cpu()
    with pytest.raises(ValueError, match=rf"^{name}: expected device"):
        ops.add_rms_norm(**arguments)


def test_a_wrong_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"'cascade'.*reference, triton, extension"):
        ops.add_rms_norm(**good_arguments() | {"backend": "cascade"})
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="TRITON_INTERPRET"):
        ops.add_rms_norm(**good_arguments() | {"backend": "triton"})


def test_the_extension_is_chosen_on_the_cpu_and_runs_nowhere_else() -> None:
    assert ops.resolve_backend("add_rms_norm", "auto", torch.device("cpu"), torch.bfloat16) == "extension"
    problem = ops.backend_problem("add_rms_norm", "extension", torch.device("cuda"), torch.bfloat16)
    assert problem is not None
    assert "CPU alone" in problem
