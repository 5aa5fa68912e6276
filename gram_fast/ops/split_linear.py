"""`split_linear`: a float32 linear layer by products of bfloat16, which some processors have at many times the rate.

Shape letters: T packed tokens, D width of the input, O width of the output.
"""

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.split_linear import split_linear_reference
from gram_fast.ops.backends import Backends, check_backend
from gram_fast.ops.checks import Sizes, expect
from gram_fast.ops.invariant_linear import Linear

BACKENDS = Backends(("reference", "extension"), cpu_only=("extension",))


def implementation(backend: str) -> Linear:
    """The function that runs `split_linear` on a backend. It trusts its arguments."""
    return split_linear_reference if backend == "reference" else _split_linear_extension


def _split_linear_extension(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
    num_tokens, width = x_TD.shape
    out_TO = x_TD.new_empty((num_tokens, len(weight_OD)))
    _C.split_linear(
        x_TD.data_ptr(),
        x_TD.stride(0),
        weight_OD.data_ptr(),
        0 if bias_O is None else bias_O.data_ptr(),
        out_TO.data_ptr(),
        (num_tokens, width, len(weight_OD)),
    )
    return out_TO


@torch.library.custom_op("gram_fast::split_linear", mutates_args=())
def split_linear(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None, *, backend: str) -> Tensor:
    """Computes x @ weight.T + bias -> float32 [T, O], contiguous, from three products of bfloat16.

    Every number of x and weight is taken as high + low, both rounded to bfloat16, which keeps at least 16 of its 24
    bits; low * low is left out. The error of a product is at most about 3 * 2**-16 of it, next to the rounding of sums
    in float32. With "extension" the bits of a row depend on that row alone.

    Args:
        x_TD: float32 [T, D], any row stride with a contiguous D.
        weight_OD: float32 [O, D], contiguous.
        bias_O: float32 [O], or None.
        backend: one of BACKENDS["split_linear"]; "extension" needs a processor with AMX.

    Numbers of at least 2**128 - 2**119 in size, which round to infinity in bfloat16, give NaN; of those below 2**-108
    the low parts may be lost. Raises ValueError on a wrong shape, dtype, stride or device, BackendError on a backend
    that cannot run.
    """
    sizes = Sizes(x_TD.device)
    sizes.check((torch.float32,), x_TD=x_TD, weight_OD=weight_OD, bias_O=bias_O)
    expect(weight_OD.is_contiguous(), "weight_OD", "a contiguous tensor", weight_OD.stride())
    check_backend("split_linear", backend, x_TD.device, x_TD.dtype)
    return implementation(backend)(x_TD, weight_OD, bias_O)


@split_linear.register_fake
def _(x_TD: Tensor, weight_OD: Tensor, *_: object, **__: object) -> Tensor:
    return x_TD.new_empty((x_TD.shape[0], weight_OD.shape[0]))
