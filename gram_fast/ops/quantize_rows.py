"""`quantize_rows`: rows as numbers of float8_e4m3fn times one factor a row.

Shape letters: T rows, D their width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gram_fast.kernels.quantize_rows import FLOAT8, quantize_rows_reference
from gram_fast.ops.backends import Backends, check_backend
from gram_fast.ops.checks import DTYPES, Sizes, expect, on_device_of

# Older GPUs have no conversion to float8.
BACKENDS = Backends(("reference", "triton"), capability=(8, 9))

QuantizeRows = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x_TD -> values float8_e4m3fn [T, D], scales float32 [T, 1]."""


def implementation(backend: str) -> QuantizeRows:
    """The function that runs `quantize_rows` on a backend. It trusts its arguments."""
    if backend == "reference":
        return quantize_rows_reference
    from gram_fast.kernels.quantize_rows_triton import quantize_rows_triton

    return quantize_rows_triton


@torch.library.custom_op("gram_fast::quantize_rows", mutates_args=())
def quantize_rows(x_TD: Tensor, *, backend: str) -> tuple[Tensor, Tensor]:
    """Takes each row as float8 numbers times one factor -> values float8_e4m3fn [T, D], scales float32 [T, 1].

    The factor is the row's largest absolute number / 448, so that this number becomes the format's largest; in a row
    with no number of at least 2**-100 it is 2**-100 / 448. A value is x * (448 / largest), computed in float32 and
    rounded to the nearest, ties to even: within 2**-4 of it, or within 2**-10 where it is below 2**-6. A NaN or an
    infinity becomes NaN. The bits of a row depend on its values alone.

    Args:
        x_TD: [T, D] of at least one column, float32, float16 or bfloat16, any row stride with a contiguous D.
        backend: one of BACKENDS["quantize_rows"]; "triton" needs compute capability 8.9.

    Raises ValueError on a wrong shape, dtype or stride, BackendError on a backend that cannot run.
    """
    sizes = Sizes(x_TD.device)
    sizes.check(DTYPES, x_TD=x_TD)
    expect(sizes["D"] > 0, "x_TD", "at least one column", 0)
    check_backend("quantize_rows", backend, x_TD.device, x_TD.dtype)
    if backend == "triton":
        from gram_fast.kernels.add_rms_norm_triton import MAX_WIDTH

        expect(sizes["D"] <= MAX_WIDTH, "x_TD", f"a width of at most {MAX_WIDTH} for backend 'triton'", sizes["D"])
    with on_device_of(x_TD):
        return implementation(backend)(x_TD)


@quantize_rows.register_fake
def _(x_TD: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    return x_TD.new_empty(x_TD.shape, dtype=FLOAT8), x_TD.new_empty((len(x_TD), 1), dtype=torch.float32)
