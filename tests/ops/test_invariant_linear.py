from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.exactness import assert_as_exact_as_float32
from helpers.layouts import Layout, every_other, off_its_alignment, rows_inside_a_buffer, strided_last
from helpers.ops import DTYPES, on_each_device, on_each_dtype, skip_what_cannot_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gram_fast import ops
from gram_fast.errors import BackendError

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_outputs")

on_each_backend = pytest.mark.parametrize("backend", ops.BACKENDS["invariant_linear"])
with_and_without_bias = pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])

Inputs = tuple[Tensor, Tensor, Tensor | None]  # x [T, D], weight [O, D], bias [O]


@pytest.fixture
def dots_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of Triton's interpreter summed in order: of NumPy's, from OpenBLAS, a row's bits depend on its place."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")

    def create_dot(self: Any, a: Any, b: Any, acc: Any, *rest: Any) -> Any:
        total = acc.data.copy()
        for column, row in zip(a.data.T.astype(total.dtype), b.data.astype(total.dtype), strict=True):
            total += column[:, None] * row
        return interpreter.TensorHandle(total, acc.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def random_inputs(
    num_tokens: int, width: int, out_width: int, dtype: torch.dtype = torch.float32, has_bias: bool = True
) -> Inputs:
    generator = torch.Generator().manual_seed(num_tokens + width + out_width)
    x_TD = 3 * torch.randn((num_tokens, width), generator=generator)
    weight_OD = torch.randn((out_width, width), generator=generator)
    bias_O = torch.randn(out_width, generator=generator).to(dtype) if has_bias else None
    return x_TD.to(dtype), weight_OD.to(dtype), bias_O


def on(device: str, inputs: Inputs) -> Inputs:
    x_TD, weight_OD, bias_O = inputs
    return x_TD.to(device), weight_OD.to(device), None if bias_O is None else bias_O.to(device)


def plain_linear(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    x_TD, weight_OD, bias_O = inputs
    return torch.nn.functional.linear(x_TD.to(dtype), weight_OD.to(dtype), None if bias_O is None else bias_O.to(dtype))


def check(inputs: Inputs, backend: str, device: str = "cpu", layout: Layout | None = None) -> None:
    """No further from float64 than float32 may be, in whatever order it sums, and one rounding of the dtype.

    The errors of a sum of D products add up like steps of a random walk. Four more units are for the products
    themselves, where each is three of tf32.
    """
    dtype, width = inputs[0].dtype, inputs[0].shape[1]
    x_TD, weight_OD, bias_O = on(device, inputs)
    x_TD = layout(x_TD) if layout else x_TD
    out_TO = ops.invariant_linear(x_TD, weight_OD, bias_O, backend=backend)
    assert torch.equal(x_TD.cpu(), inputs[0]), "the input is only read"
    assert out_TO.dtype == dtype
    assert out_TO.is_contiguous()
    exact_TO = plain_linear(inputs, torch.float64)
    sizes_TO = plain_linear(tuple(None if x is None else x.abs() for x in inputs), torch.float64)
    plain_TO = plain_linear(inputs, torch.float32)
    assert_as_exact_as_float32(out_TO, exact_TO, plain_TO, slack=(4 + width**0.5 / 2) * sizes_TO)


# (T, D, O): a tile has at most 128 x 256 x 64, a block of the reference 128 rows.
SIZES = [(1, 1, 1), (1, 17, 35), (2, 64, 64), (97, 17, 35), (127, 96, 3), (128, 64, 129), (131, 65, 67), (257, 33, 70)]


@on_each_device
@on_each_backend
@with_and_without_bias
@on_each_dtype
@pytest.mark.parametrize(("num_tokens", "width", "out_width"), SIZES)
def test_awkward_sizes(
    num_tokens: int, width: int, out_width: int, dtype: torch.dtype, has_bias: bool, backend: str, device: str
) -> None:
    skip_what_cannot_run("invariant_linear", backend, device, dtype)
    check(random_inputs(num_tokens, width, out_width, dtype, has_bias), backend, device)


# The narrower and the wider tile of half types, several tiles of each.
@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("out_width", [521, 4099])
def test_wide_weights(out_width: int, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("invariant_linear", backend, device, dtype)
    check(random_inputs(3, 40, out_width, dtype), backend, device)


@on_each_device
@on_each_backend
def test_more_rows_of_tiles_than_a_group_has(backend: str, device: str) -> None:
    skip_what_cannot_run("invariant_linear", backend, device)
    check(random_inputs(11 * 64 + 5, 8, 70), backend, device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize(("num_tokens", "width", "out_width"), [(0, 5, 3), (3, 5, 0), (3, 0, 2)])
def test_nothing(num_tokens: int, width: int, out_width: int, backend: str, device: str) -> None:
    skip_what_cannot_run("invariant_linear", backend, device)
    x_TD, weight_OD, bias_O = on(device, random_inputs(num_tokens, width, out_width))
    out_TO = ops.invariant_linear(x_TD, weight_OD, bias_O, backend=backend)
    assert out_TO.shape == (num_tokens, out_width)
    if not width:
        assert torch.equal(out_TO, bias_O.expand(num_tokens, out_width))


LAYOUTS = [rows_inside_a_buffer, every_other, off_its_alignment]


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout: Layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("invariant_linear", backend, device, dtype)
    inputs = random_inputs(7, 97, 35, dtype)
    check(inputs, backend, device, layout)
    x_TD, weight_OD, bias_O = on(device, inputs)
    plain, elsewhere = (ops.invariant_linear(x, weight_OD, bias_O, backend=backend) for x in (x_TD, layout(x_TD)))
    assert torch.equal(plain, elsewhere)


def expect_rows_alone_to_count(
    picks: list[int], width: int, out_width: int, dtype: torch.dtype, backend: str, device: str, has_bias: bool = True
) -> None:
    """Rows picked in any order and number have the bits that each has alone, beside any others."""
    x_TD, weight_OD, bias_O = on(device, random_inputs(41, width, out_width, dtype, has_bias))
    alone_TO = torch.cat([ops.invariant_linear(x_1D, weight_OD, bias_O, backend=backend) for x_1D in x_TD.split(1)])
    picked_TO = ops.invariant_linear(x_TD[picks], weight_OD, bias_O, backend=backend)
    assert torch.equal(picked_TO, alone_TO[picks])
    others_TD = torch.full_like(x_TD[:19], 1e3)
    among_TO = ops.invariant_linear(torch.cat([others_TD, x_TD[picks], others_TD]), weight_OD, bias_O, backend=backend)
    assert torch.equal(among_TO[19:-19], alone_TO[picks])


picks_of_rows = st.lists(st.integers(0, 40), min_size=1, max_size=300)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(picks=picks_of_rows, width=st.integers(1, 300), out_width=st.integers(16, 200), has_bias=st.booleans())
@on_each_dtype
def test_a_row_has_the_same_bits_wherever_it_stands(
    dtype: torch.dtype, picks: list[int], width: int, out_width: int, has_bias: bool
) -> None:
    expect_rows_alone_to_count(picks, width, out_width, dtype, "reference", "cpu", has_bias)


@on_each_dtype
@pytest.mark.parametrize(("width", "out_width"), [(17, 35), (384, 256)])
def test_a_row_has_the_same_bits_with_two_threads(
    width: int, out_width: int, dtype: torch.dtype, two_threads: None
) -> None:
    generator = torch.Generator().manual_seed(width)
    for num_tokens in (1, 127, 300):
        picks = torch.randint(41, (num_tokens,), generator=generator).tolist()
        expect_rows_alone_to_count(picks, width, out_width, dtype, "reference", "cpu")


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(("width", "out_width"), [(17, 35), (64, 3), (130, 70)])
def test_a_row_has_the_same_bits_in_any_tile(
    width: int, out_width: int, dtype: torch.dtype, dots_in_order: None
) -> None:
    skip_what_cannot_run("invariant_linear", "triton", "cpu", dtype)
    picks = torch.randint(41, (150,), generator=torch.Generator().manual_seed(width)).tolist()
    for num_tokens in (1, 47, 150):
        expect_rows_alone_to_count(picks[:num_tokens], width, out_width, dtype, "triton", "cpu")


@pytest.mark.gpu
@on_each_dtype
@pytest.mark.parametrize(("width", "out_width"), [(17, 35), (1024, 3072), (3072, 1024), (2048, 6144), (4096, 4096)])
def test_a_row_has_the_same_bits_on_a_gpu(width: int, out_width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    for num_tokens in (1, 16, 127, 128, 1021, 4096):
        picks = torch.randint(41, (num_tokens,), generator=generator).tolist()
        expect_rows_alone_to_count(picks, width, out_width, dtype, "triton", "cuda")


@on_each_device
@on_each_backend
@with_and_without_bias
@on_each_dtype
def test_no_row_depends_on_others_here(
    has_bias: bool, dtype: torch.dtype, backend: str, device: str, dots_in_order: None
) -> None:
    skip_what_cannot_run("invariant_linear", backend, device, dtype)
    if (backend, device) == ("reference", "cuda"):
        pytest.skip("cuBLAS promises nothing")
    _, weight_OD, bias_O = on(device, random_inputs(0, 70, 35, dtype, has_bias))
    assert ops.row_dependence(weight_OD, bias_O, lambda *a: ops.invariant_linear(*a, backend=backend)) is None


Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def plus(term: Callable[[Tensor], Tensor | float]) -> Linear:
    """A linear layer that adds something. Sums of float64 come out the same after rounding, whatever their order."""
    return lambda x, weight, bias: (x.double() @ weight.double().T + bias).float() + term(x)


DEPENDENCES: dict[str, Linear] = {
    "its place": plus(lambda x: (torch.arange(len(x)) % 8 == 7)[:, None]),
    "the other rows": plus(lambda x: x.amax()),
    "the number of rows: alone": plus(lambda x: len(x) == 1),
    "the number of rows: among": plus(lambda x: len(x) > 128),
}


@pytest.mark.parametrize("words", DEPENDENCES)
def test_a_dependence_is_found(words: str) -> None:
    _, weight_OD, bias_O = random_inputs(0, 8, 3)
    assert (ops.row_dependence(weight_OD, bias_O, DEPENDENCES[words]) or "nothing").startswith(words)
    assert ops.row_dependence(weight_OD, bias_O, plus(lambda x: 1.0)) is None


@on_each_device
@on_each_backend
@with_and_without_bias
@on_each_dtype
@pytest.mark.parametrize("layout", [Tensor.contiguous, every_other])
def test_opcheck(layout: Layout, dtype: torch.dtype, has_bias: bool, backend: str, device: str) -> None:
    skip_what_cannot_run("invariant_linear", backend, device, dtype)
    x_TD, weight_OD, bias_O = on(device, random_inputs(5, 16, 7, dtype, has_bias))
    torch.library.opcheck(ops.invariant_linear, (layout(x_TD), weight_OD, bias_O), {"backend": backend})


WRONG: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "x_TD 3 dimensions": (0, lambda x: x[None]),
    "x_TD dtype": (0, lambda x: x.double()),
    "x_TD stride": (0, strided_last),
    "weight_OD 1 dimension": (1, lambda x: x[0]),
    "weight_OD width": (1, lambda x: x[:, 1:].contiguous()),
    "weight_OD dtype": (1, lambda x: x.half()),
    "weight_OD transposed": (1, lambda x: x.T.contiguous().T),
    "weight_OD rows apart": (1, lambda x: torch.cat([x, x])[::2]),
    "bias_O 2 dimensions": (2, lambda x: x[None]),
    "bias_O width": (2, lambda x: x[1:]),
    "bias_O dtype": (2, lambda x: x.bfloat16()),
    "bias_O stride": (2, strided_last),
}


@on_each_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str, backend: str) -> None:
    skip_what_cannot_run("invariant_linear", backend, "cpu")
    place, change = WRONG[wrong]
    arguments = list(random_inputs(5, 8, 3))
    arguments[place] = change(arguments[place])
    with pytest.raises(ValueError, match=rf"^{wrong.split()[0]}: expected "):
        ops.invariant_linear(*arguments, backend=backend)


@pytest.mark.gpu
@pytest.mark.parametrize("place", [1, 2])
def test_wrong_devices_are_named(place: int) -> None:
    arguments = list(on("cuda", random_inputs(5, 8, 3)))
    arguments[place] = arguments[place].cpu()
    with pytest.raises(ValueError, match=rf"^{('weight_OD', 'bias_O')[place - 1]}: expected device"):
        ops.invariant_linear(*arguments, backend="reference")


def test_a_wrong_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"'extension'.*reference, triton"):
        ops.invariant_linear(*random_inputs(5, 8, 3), backend="extension")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="TRITON_INTERPRET"):
        ops.invariant_linear(*random_inputs(5, 8, 3), backend="triton")
