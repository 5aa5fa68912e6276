"""`invariant_linear`: a linear layer where the bits of a row depend on that row alone, and a test of that property.

Shape letters: T packed tokens, D width of the input, O width of the output.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gram_fast.kernels.invariant_linear import BLOCK_ROWS, invariant_linear_reference
from gram_fast.ops.backends import Backends, check_backend
from gram_fast.ops.checks import DTYPES, Sizes, expect, on_device_of

BACKENDS = Backends(("reference", "triton"))

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_TD, weight_OD, bias_O or None) -> product [T, O]."""


def implementation(backend: str) -> Linear:
    """The function that runs `invariant_linear` on a backend. It trusts its arguments."""
    if backend == "reference":
        linear = invariant_linear_reference
    else:
        from gram_fast.kernels.invariant_linear_triton import invariant_linear_triton as linear

    return lambda x_TD, weight_OD, bias_O: linear(in_one_layout(x_TD), weight_OD, bias_O)


def in_one_layout(x_TD: Tensor) -> Tensor:
    """Copies the rows unless they are contiguous and start at a multiple of 64 bytes.

    Libraries and compilers choose code by both; MKL gives the same bits for the same call with that alignment only.
    """
    if x_TD.is_contiguous() and x_TD.data_ptr() % 64 == 0:
        return x_TD
    return x_TD.clone(memory_format=torch.contiguous_format)


@torch.library.custom_op("gram_fast::invariant_linear", mutates_args=())
def invariant_linear(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None, *, backend: str) -> Tensor:
    """Computes x @ weight.T + bias -> [T, O], contiguous, dtype as x_TD.

    The bits of a row do not depend on the number of rows, its place among them or the other rows. 16-bit types are
    summed in float32 and rounded once.

    Args:
        x_TD: [T, D], float32, float16 or bfloat16, any row stride with a contiguous D.
        weight_OD: [O, D], dtype as x_TD, contiguous.
        bias_O: [O], dtype as x_TD, or None.
        backend: one of BACKENDS["invariant_linear"]. With "reference" the property depends on the platform's library:
            `row_dependence` tests it.

    Raises ValueError on a wrong shape, dtype, stride or device, BackendError on a backend that cannot run.
    """
    sizes = Sizes(x_TD.device)
    sizes.check(DTYPES, x_TD=x_TD)
    sizes.check((x_TD.dtype,), weight_OD=weight_OD, bias_O=bias_O)
    expect(weight_OD.is_contiguous(), "weight_OD", "a contiguous tensor", weight_OD.stride())
    check_backend("invariant_linear", backend, x_TD.device, x_TD.dtype)
    with on_device_of(x_TD):
        return implementation(backend)(x_TD, weight_OD, bias_O)


@invariant_linear.register_fake
def _(x_TD: Tensor, weight_OD: Tensor, *_: object, **__: object) -> Tensor:
    return x_TD.new_empty((x_TD.shape[0], weight_OD.shape[0]))


def row_dependence(weight_OD: Tensor, bias_O: Tensor | None, linear: Linear) -> str | None:
    """Tests whether the bits of a row of `linear(x_TD, weight_OD, bias_O)` depend on anything but the row.

    `weight_OD`: in any layout that `linear` takes.

    Returns what they depend on, as the end of a sentence, or None. Computes seven products of at most BLOCK_ROWS random
    rows and one of more, with a fixed seed: fast enough for every shape of a judge's weights at load time. Raises what
    `linear` raises.
    """
    generator = torch.Generator().manual_seed(0)
    x_TD, others_TD = (
        torch.randn((BLOCK_ROWS, weight_OD.shape[1]), generator=generator).to(weight_OD) for _ in range(2)
    )
    expected_TO = linear(x_TD, weight_OD, bias_O)
    for places in (1, 37):
        if not torch.equal(linear(x_TD.roll(places, 0), weight_OD, bias_O), expected_TO.roll(places, 0)):
            return f"its place: {places} further on it has other bits"
    for row in (0, 77):
        replaced_TD = others_TD.clone()
        replaced_TD[row] = x_TD[row]
        if not torch.equal(linear(replaced_TD, weight_OD, bias_O)[row], expected_TO[row]):
            return "the other rows: with others beside it it has other bits"
        if not torch.equal(linear(x_TD[row : row + 1], weight_OD, bias_O)[0], expected_TO[row]):
            return f"the number of rows: alone it has other bits than among {len(x_TD)}"
    longer_TD = torch.cat([others_TD[:37], x_TD])
    if not torch.equal(linear(longer_TD, weight_OD, bias_O)[37:], expected_TO):
        return f"the number of rows: among {len(longer_TD)} it has other bits than among {len(x_TD)}"
    return None
