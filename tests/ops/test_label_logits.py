from collections.abc import Callable

import pytest
import torch
from helpers.layouts import Layout, every_other, off_its_alignment, rows_far_apart, rows_inside_a_buffer, strided_last
from helpers.ops import on_each_device, on_each_dtype, skip_what_cannot_run
from torch import Tensor

from gram_fast import ops
from gram_fast.errors import BackendError
from gram_fast.kernels.label_logits import label_logits_reference

on_each_backend = pytest.mark.parametrize("backend", ops.BACKENDS["label_logits"])
with_and_without_norm = pytest.mark.parametrize("has_norm", [True, False], ids=["norm", "no norm"])
EPS = 1e-6


Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]  # hidden [T, D], rows [L], label weight [2, D], norm weight [D]


def random_inputs(
    num_tokens: int, num_leaves: int, width: int, dtype: torch.dtype = torch.float32, has_norm: bool = True
) -> Inputs:
    generator = torch.Generator().manual_seed(num_tokens + width)
    hidden_TD = 3 * torch.randn((num_tokens, width), generator=generator)
    rows_L = torch.randint(num_tokens, (num_leaves,), generator=generator)
    label_weight_2D = torch.randn((2, width), generator=generator)
    norm_weight_D = 1 + 0.3 * torch.randn(width, generator=generator)
    norm = norm_weight_D.to(dtype) if has_norm else None
    return hidden_TD.to(dtype), rows_L, label_weight_2D.to(dtype), norm


def exact_logits(inputs: Inputs, eps: float) -> Tensor:
    hidden_TD, rows_L, label_weight_2D, norm_weight_D = inputs
    hidden_LD = hidden_TD.double()[rows_L]
    if norm_weight_D is not None:
        hidden_LD = hidden_LD / (hidden_LD.square().mean(dim=-1, keepdim=True) + eps).sqrt() * norm_weight_D.double()
    return hidden_LD @ label_weight_2D.double().T


def assert_as_exact_as_reference(actual: Tensor, inputs: Inputs, eps: float) -> None:
    """No further from float64 than twice what the float32 reference is, and four roundings of the terms of the sum."""
    assert actual.dtype == torch.float32
    assert actual.shape == (len(inputs[1]), 2)
    exact = exact_logits(inputs, eps)
    error = (label_logits_reference(*inputs, eps).double() - exact).abs()
    # Two products, a square root and a quotient touch every term: what a leaf may miss even where the reference, by
    # luck of its order of summation, does not.
    sizes = exact_logits(tuple(x if x is None or x.dtype == torch.int64 else x.abs() for x in inputs), eps)
    assert ((actual.cpu().double() - exact).abs() <= 2 * error + 4 * torch.finfo(torch.float32).eps * sizes).all()


def on(device: str, inputs: Inputs, layout: Layout = Tensor.contiguous) -> Inputs:
    hidden_TD, rows_L, label_weight_2D, norm_weight_D = inputs
    return (
        layout(hidden_TD.to(device)),
        rows_L.to(device),
        label_weight_2D.to(device),
        None if norm_weight_D is None else norm_weight_D.to(device),
    )


# (L, D); the loop over leaves is shared among threads from 32,768 elements on, blocks take several from 1024 leaves on.
SIZES = [(1, 1), (1, 4099), (7, 97), (13, 31), (3, 64), (32, 1023), (32, 1024), (101, 521), (1031, 64), (40009, 1)]


@on_each_device
@on_each_backend
@with_and_without_norm
@on_each_dtype
@pytest.mark.parametrize(("num_leaves", "width"), SIZES)
def test_awkward_sizes(
    num_leaves: int, width: int, dtype: torch.dtype, has_norm: bool, backend: str, device: str
) -> None:
    skip_what_cannot_run("label_logits", backend, device, dtype)
    inputs = random_inputs(11, num_leaves, width, dtype, has_norm)
    assert_as_exact_as_reference(ops.label_logits(*on(device, inputs), EPS, backend=backend), inputs, EPS)


@on_each_device
@on_each_backend
@with_and_without_norm
@on_each_dtype
def test_model_width(dtype: torch.dtype, has_norm: bool, backend: str, device: str) -> None:
    skip_what_cannot_run("label_logits", backend, device, dtype)
    inputs = random_inputs(5, 3, 4096, dtype, has_norm)
    assert_as_exact_as_reference(ops.label_logits(*on(device, inputs), EPS, backend=backend), inputs, EPS)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("num_tokens", [0, 5])
def test_no_leaves(num_tokens: int, backend: str, device: str) -> None:
    skip_what_cannot_run("label_logits", backend, device)
    hidden_TD, label_weight_2D = torch.ones(num_tokens, 8, device=device), torch.ones(2, 8, device=device)
    rows_L = torch.empty(0, dtype=torch.int64, device=device)
    logits = ops.label_logits(hidden_TD, rows_L, label_weight_2D, backend=backend)
    assert logits.shape == (0, 2)
    assert logits.dtype == torch.float32


@on_each_backend
def test_without_norm_is_the_default(backend: str) -> None:
    skip_what_cannot_run("label_logits", backend, "cpu")
    inputs = random_inputs(5, 3, 16, has_norm=False)
    without = ops.label_logits(*inputs[:3], backend=backend)
    assert torch.equal(without, ops.label_logits(*inputs, 123.0, backend=backend))


@on_each_backend
@pytest.mark.parametrize("eps", [0.0, 1e-5, 10.0])
def test_eps_is_the_callers(eps: float, backend: str) -> None:
    skip_what_cannot_run("label_logits", backend, "cpu")
    inputs = random_inputs(5, 3, 16)
    assert_as_exact_as_reference(ops.label_logits(*inputs, eps, backend=backend), inputs, eps)


@on_each_backend
def test_a_row_of_zeros_needs_eps_alone(backend: str) -> None:
    skip_what_cannot_run("label_logits", backend, "cpu")
    inputs = (torch.zeros(1, 7), torch.tensor([0]), torch.ones(2, 7), torch.ones(7), EPS)
    logits = ops.label_logits(*inputs, backend=backend)
    assert torch.equal(logits, torch.zeros(1, 2))


@on_each_device
@on_each_backend
def test_logits_are_for_a_then_b(backend: str, device: str) -> None:
    skip_what_cannot_run("label_logits", backend, device)
    hidden_TD, label_weight_2D = torch.eye(3, device=device), torch.tensor([[1.0, 2, 3], [4, 5, 6]], device=device)
    rows_L = torch.tensor([2, 0, 2], device=device)
    logits_L2 = ops.label_logits(hidden_TD, rows_L, label_weight_2D, backend=backend)
    assert logits_L2.tolist() == [[3, 6], [1, 4], [3, 6]]


def last_of_batch(hidden_TD: Tensor) -> Tensor:
    return torch.stack([torch.full_like(hidden_TD, float("nan")), hidden_TD])[-1]


@on_each_device
@on_each_backend
@with_and_without_norm
@on_each_dtype
@pytest.mark.parametrize("layout", [rows_inside_a_buffer, every_other, last_of_batch])
def test_strides(layout: Layout, dtype: torch.dtype, has_norm: bool, backend: str, device: str) -> None:
    skip_what_cannot_run("label_logits", backend, device, dtype)
    inputs = random_inputs(11, 7, 97, dtype, has_norm)
    assert_as_exact_as_reference(ops.label_logits(*on(device, inputs, layout), EPS, backend=backend), inputs, EPS)


@pytest.mark.large_memory
@on_each_device
@on_each_backend
def test_offsets_beyond_32_bits(backend: str, device: str) -> None:
    skip_what_cannot_run("label_logits", backend, device, torch.float16)
    inputs = random_inputs(3, 4, 8, torch.float16)
    far = (rows_far_apart(inputs[0].to(device)), *on(device, inputs)[1:])
    assert_as_exact_as_reference(ops.label_logits(*far, EPS, backend=backend), inputs, EPS)


@pytest.mark.filterwarnings("ignore:invalid value")  # NaN is among them
@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_is_read_exactly(dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("label_logits", backend, device, dtype)
    hidden_TD = torch.arange(65536).to(torch.uint16).view(dtype)[:, None].to(device)  # subnormal, inf and NaN too
    label_weight_2D = torch.ones(2, 1, dtype=dtype, device=device)
    rows_L = torch.arange(65536, device=device)
    logits = ops.label_logits(hidden_TD, rows_L, label_weight_2D, backend=backend)
    torch.testing.assert_close(logits, hidden_TD.float().expand(-1, 2), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2])
@with_and_without_norm
@on_each_dtype
@pytest.mark.parametrize("width", [1, 7, 31, 129, 1023, 2048])
def test_a_leaf_has_the_same_bits_wherever_it_stands(
    width: int, dtype: torch.dtype, has_norm: bool, threads: int, one_thread: None
) -> None:
    torch.set_num_threads(threads)  # OpenMP's too; one_thread sets them back
    hidden_TD, _, *weights = random_inputs(37, 0, width, dtype, has_norm)
    row_1 = torch.tensor([0])
    alone_T2 = torch.cat(
        [ops.label_logits(hidden_1D, row_1, *weights, EPS, backend="extension") for hidden_1D in hidden_TD.split(1)]
    )
    for num_leaves in (2, 37, 5000):  # from 32,768 elements on threads share the leaves
        rows_L = torch.randint(37, (num_leaves,), generator=torch.Generator().manual_seed(num_leaves))
        for layout in (Tensor.contiguous, rows_inside_a_buffer, off_its_alignment):
            logits_L2 = ops.label_logits(layout(hidden_TD), rows_L, *weights, EPS, backend="extension")
            assert torch.equal(logits_L2, alone_T2[rows_L])


@on_each_device
@on_each_backend
@with_and_without_norm
@on_each_dtype
def test_opcheck(dtype: torch.dtype, has_norm: bool, backend: str, device: str) -> None:
    skip_what_cannot_run("label_logits", backend, device, dtype)
    inputs = on(device, random_inputs(11, 7, 97, dtype, has_norm))
    torch.library.opcheck(ops.label_logits, (*inputs, EPS), {"backend": backend})


def good_arguments() -> dict[str, object]:
    names = ("hidden_TD", "rows_L", "label_weight_2D", "norm_weight_D")
    return dict(zip(names, random_inputs(5, 4, 8), strict=True)) | {"eps": EPS, "backend": "reference"}


WRONG: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "hidden_TD 3 dimensions": ("hidden_TD", lambda x: x[None]),
    "hidden_TD dtype": ("hidden_TD", lambda x: x.double()),
    "hidden_TD integers": ("hidden_TD", lambda x: x.int()),
    "hidden_TD stride": ("hidden_TD", strided_last),
    "hidden_TD transposed": ("hidden_TD", lambda x: x.T.contiguous().T),
    "rows_L 2 dimensions": ("rows_L", lambda x: x[None]),
    "rows_L dtype": ("rows_L", lambda x: x.int()),
    "rows_L stride": ("rows_L", strided_last),
    "rows_L negative": ("rows_L", lambda x: torch.tensor([0, -1, 4])),
    "rows_L beyond": ("rows_L", lambda x: torch.tensor([0, 5, 4])),
    "label_weight_2D whole vocabulary": ("label_weight_2D", lambda x: torch.cat([x, x])),
    "label_weight_2D width": ("label_weight_2D", lambda x: x[:, 1:].contiguous()),
    "label_weight_2D dtype": ("label_weight_2D", lambda x: x.half()),
    "label_weight_2D stride": ("label_weight_2D", strided_last),
    "label_weight_2D rows apart": ("label_weight_2D", lambda x: torch.cat([x, x])[::2]),
    "norm_weight_D 2 dimensions": ("norm_weight_D", lambda x: x[None]),
    "norm_weight_D width": ("norm_weight_D", lambda x: x[1:]),
    "norm_weight_D dtype": ("norm_weight_D", lambda x: x.bfloat16()),
    "norm_weight_D stride": ("norm_weight_D", strided_last),
}


@on_each_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str, backend: str) -> None:
    skip_what_cannot_run("label_logits", backend, "cpu")
    name, change = WRONG[wrong]
    arguments = good_arguments() | {"backend": backend}
    ops.label_logits(**arguments)
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=rf"^{name}: expected "):
        ops.label_logits(**arguments)


def test_no_token_has_no_row() -> None:
    with pytest.raises(ValueError, match=r"^rows_L: expected "):
        ops.label_logits(torch.ones(0, 4), torch.tensor([0]), torch.ones(2, 4), backend="reference")


def test_a_wrong_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"'auto'.*reference, triton, extension"):
        ops.label_logits(**good_arguments() | {"backend": "auto"})  # resolved once, by the caller, not by the op
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="TRITON_INTERPRET"):
        ops.label_logits(**good_arguments() | {"backend": "triton"})


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["rows_L", "label_weight_2D", "norm_weight_D"])
def test_wrong_devices_are_named(name: str) -> None:
    arguments = {key: x.cuda() if isinstance(x, Tensor) else x for key, x in good_arguments().items()}
    arguments[name] = arguments[name].cpu()
    with pytest.raises(ValueError, match=rf"^{name}: expected device"):
        ops.label_logits(**arguments)
