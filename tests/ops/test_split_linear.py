from collections.abc import Callable

import pytest
import torch
from helpers.exactness import assert_as_exact_as_float32
from helpers.layouts import Layout, every_other, off_its_alignment, rows_inside_a_buffer, strided_last
from helpers.ops import CPU, skip_what_cannot_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gram_fast import ops
from gram_fast.errors import BackendError
from gram_fast.extension import _C
from gram_fast.kernels.split_linear import split, split_linear_reference

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_outputs")

on_each_backend = pytest.mark.parametrize("backend", ops.BACKENDS["split_linear"])

Inputs = tuple[Tensor, Tensor, Tensor | None]  # x [T, D], weight [O, D], bias [O]


def random_inputs(num_tokens: int, width: int, out_width: int, has_bias: bool = True) -> Inputs:
    generator = torch.Generator().manual_seed(num_tokens + width + out_width)
    x_TD = 3 * torch.randn((num_tokens, width), generator=generator)
    weight_OD = torch.randn((out_width, width), generator=generator)
    return x_TD, weight_OD, torch.randn(out_width, generator=generator) if has_bias else None


def doubled(inputs: Inputs) -> Inputs:
    x_TD, weight_OD, bias_O = inputs
    return x_TD.double(), weight_OD.double(), None if bias_O is None else bias_O.double()


def sizes_of(inputs: Inputs) -> Tensor:
    """Sums of the sizes of all that is added up, float64 [T, O]."""
    return torch.nn.functional.linear(*(None if x is None else x.abs() for x in doubled(inputs)))


def check(inputs: Inputs, backend: str, layout: Layout | None = None) -> None:
    """No further from the three products in float64 than they are in float32, in whatever order it sums.

    The errors of a sum of D products add up like steps of a random walk.
    """
    x_TD, weight_OD, bias_O = inputs
    out_TO = ops.split_linear(layout(x_TD) if layout else x_TD, weight_OD, bias_O, backend=backend)
    assert out_TO.is_contiguous()
    slack = (2 + (3 * x_TD.shape[1]) ** 0.5 / 2) * sizes_of(inputs)
    assert_as_exact_as_float32(out_TO, split_linear_reference(*doubled(inputs)), split_linear_reference(*inputs), slack)


# (T, D, O): a block has 32 tokens and 32 weight rows, a step 32 columns, a chunk 64 steps, a panel 8 blocks.
SIZES = [
    (1, 1, 1),
    (1, 17, 35),
    (2, 64, 64),
    (97, 17, 35),
    (33, 96, 3),
    (48, 64, 129),
    (131, 65, 67),
    (257, 33, 300),
    (40, 2100, 40),
    (20, 9000, 70),
]


@on_each_backend
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("num_tokens", "width", "out_width"), SIZES)
def test_awkward_sizes(num_tokens: int, width: int, out_width: int, has_bias: bool, backend: str) -> None:
    skip_what_cannot_run("split_linear", backend, "cpu")
    check(random_inputs(num_tokens, width, out_width, has_bias), backend)


@on_each_backend
def test_with_two_threads(backend: str, two_threads: None) -> None:
    skip_what_cannot_run("split_linear", backend, "cpu")
    check(random_inputs(300, 200, 40), backend)
    check(random_inputs(40, 1000, 1000), backend)


@on_each_backend
@pytest.mark.parametrize(("num_tokens", "width", "out_width"), [(0, 5, 3), (3, 5, 0), (3, 0, 2)])
def test_nothing(num_tokens: int, width: int, out_width: int, backend: str) -> None:
    skip_what_cannot_run("split_linear", backend, "cpu")
    x_TD, weight_OD, bias_O = random_inputs(num_tokens, width, out_width)
    out_TO = ops.split_linear(x_TD, weight_OD, bias_O, backend=backend)
    assert torch.equal(out_TO, bias_O.expand(num_tokens, out_width))


@on_each_backend
@pytest.mark.parametrize("layout", [rows_inside_a_buffer, every_other, off_its_alignment])
def test_strides(layout: Layout, backend: str) -> None:
    skip_what_cannot_run("split_linear", backend, "cpu")
    check(random_inputs(19, 97, 35), backend, layout)


@given(x=st.floats(width=32, min_value=2.0**-100, max_value=2.0**100), y=st.floats(2.0**-10, 2.0**10, width=32))
def test_the_error_of_a_product_is_below_its_bound(x: float, y: float) -> None:
    """Each number loses up to 2**-16 of itself, and low by low, which is left out, is as small."""
    a, b = torch.tensor([[x]], dtype=torch.float64), torch.tensor([[y]], dtype=torch.float64)
    error = (split_linear_reference(a, b, None) - a * b).abs() / (a * b)
    assert error.item() <= 3.01 * 2.0**-16


def test_a_split_number_is_nearly_the_sum_of_its_parts() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    high, low = split(x)
    assert torch.equal(high.bfloat16().float(), high)
    assert torch.equal(low.bfloat16().float(), low)
    assert ((x.double() - high.double() - low.double()).abs() <= 2.0**-16 * x.abs()).all()


def expect_rows_alone_to_count(picks: list[int], width: int, out_width: int) -> None:
    x_TD, weight_OD, bias_O = random_inputs(41, width, out_width)

    def run(x: Tensor) -> Tensor:
        return ops.split_linear(x, weight_OD, bias_O, backend="extension")

    alone_TO = torch.cat([run(x_1D) for x_1D in x_TD.split(1)])
    assert torch.equal(run(x_TD[picks]), alone_TO[picks])
    others_TD = torch.full_like(x_TD[:19], 1e3)
    assert torch.equal(run(torch.cat([others_TD, x_TD[picks], others_TD]))[19:-19], alone_TO[picks])


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    picks=st.lists(st.integers(0, 40), min_size=1, max_size=300),
    width=st.integers(1, 300),
    out_width=st.integers(1, 200),
)
def test_a_row_has_the_same_bits_wherever_it_stands(picks: list[int], width: int, out_width: int) -> None:
    skip_what_cannot_run("split_linear", "extension", "cpu")
    expect_rows_alone_to_count(picks, width, out_width)


def test_a_row_has_the_same_bits_with_two_threads(two_threads: None) -> None:
    skip_what_cannot_run("split_linear", "extension", "cpu")
    for num_tokens in (1, 127, 300):
        picks = torch.randint(41, (num_tokens,), generator=torch.Generator().manual_seed(1)).tolist()
        expect_rows_alone_to_count(picks, 384, 1000)


@on_each_backend
@pytest.mark.parametrize("layout", [Tensor.contiguous, every_other])
def test_opcheck(layout: Layout, backend: str) -> None:
    skip_what_cannot_run("split_linear", backend, "cpu")
    x_TD, weight_OD, bias_O = random_inputs(5, 16, 7)
    torch.library.opcheck(ops.split_linear, (layout(x_TD), weight_OD, bias_O), {"backend": backend})


WRONG: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "x_TD 3 dimensions": (0, lambda x: x[None]),
    "x_TD dtype": (0, lambda x: x.bfloat16()),
    "x_TD stride": (0, strided_last),
    "weight_OD width": (1, lambda x: x[:, 1:].contiguous()),
    "weight_OD dtype": (1, lambda x: x.half()),
    "weight_OD rows apart": (1, lambda x: torch.cat([x, x])[::2]),
    "bias_O width": (2, lambda x: x[1:]),
    "bias_O dtype": (2, lambda x: x.bfloat16()),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str) -> None:
    place, change = WRONG[wrong]
    arguments = list(random_inputs(5, 8, 3))
    arguments[place] = change(arguments[place])
    with pytest.raises(ValueError, match=rf"^{wrong.split()[0]}: expected "):
        ops.split_linear(*arguments, backend="reference")


def test_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gram_fast.ops.backends._C", type("Without", (), {"has_amx": lambda: False}))
    with pytest.raises(BackendError, match="needs a processor with AMX"):
        ops.split_linear(*random_inputs(5, 8, 3), backend="extension")
    assert ops.resolve_backend("split_linear", "auto", CPU, torch.float32) == "reference"
    assert "takes torch.float32" in ops.backend_problem("split_linear", "extension", CPU, torch.bfloat16)
    assert isinstance(_C.has_amx(), bool)
