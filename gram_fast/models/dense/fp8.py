"""FP8 products: weights with one factor for each output, activations with one for each token, torch's scaled product.

Shape letters: T packed tokens, D inputs and O outputs of a product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gram_fast import ops
from gram_fast.errors import one_line
from gram_fast.kernels.quantize_rows import FLOAT8, quantize_rows_reference
from gram_fast.ops.quantize_rows import QuantizeRows

QUANTIZATIONS = ("fp8",)
"""Names of ways to quantize a model while it is read."""

# cuBLAS and CUTLASS take rows of whole 16 bytes.
_MULTIPLE = 16


@dataclass(frozen=True)
class Fp8Weight:
    """A weight [O, D] as float8 numbers times one factor a row, which is a factor of one column of the product."""

    values_OD: Tensor
    """float8_e4m3fn; for the emulation on a CPU the same numbers in float32."""
    scales_O1: Tensor
    """float32 [O, 1]"""

    @classmethod
    def empty(cls, outputs: int, inputs: int, device: torch.device) -> "Fp8Weight":
        """A weight with uninitialised numbers."""
        values_OD = torch.empty((outputs, inputs), dtype=FLOAT8, device=device)
        return cls(values_OD, torch.empty((outputs, 1), dtype=torch.float32, device=device))

    @property
    def shape(self) -> torch.Size:
        """[O, D]"""
        return self.values_OD.shape

    def split(self, sizes: Sequence[int]) -> list["Fp8Weight"]:
        """Views of so many rows each."""
        parts = zip(self.values_OD.split(sizes), self.scales_O1.split(sizes), strict=True)  # type: ignore[no-untyped-call]
        return [Fp8Weight(*part) for part in parts]

    def copy_(self, weight_OD: Tensor) -> None:
        """Quantizes a weight, on any device and of any floating-point dtype, into this one's place."""
        weight_OD = weight_OD.to(self.values_OD.device)
        backend = ops.resolve_backend("quantize_rows", "auto", weight_OD.device, weight_OD.dtype)
        values_OD, scales_O1 = ops.quantize_rows(weight_OD, backend=backend)
        self.values_OD.copy_(values_OD)
        self.scales_O1.copy_(scales_O1)


Multiply = Callable[[Tensor, Fp8Weight, Tensor | None], Tensor]
"""x_TD, weight, bias_O or None -> [T, O] in x_TD's dtype."""


def fp8_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why FP8 products cannot run there, or None when they can. On a CPU they are emulated."""
    this = "quantization='fp8'"
    if device.type == "cpu":
        return None
    if dtype != torch.bfloat16:
        return f"{this} on CUDA needs dtype bfloat16, got {str(dtype).removeprefix('torch.')}"
    if problem := ops.backend_problem("quantize_rows", "triton", device, dtype):
        return f"{this}: {problem}"
    if not torch.cuda.is_available():
        return None
    try:
        # Which GPUs torch has this product for changes from version to version.
        weight = Fp8Weight.empty(_MULTIPLE, _MULTIPLE, device)
        weight.copy_(torch.ones(weight.shape, dtype=dtype))
        fp8_linear(device, dtype)(torch.ones((2, _MULTIPLE), dtype=dtype, device=device), weight, None)
    except (RuntimeError, ValueError) as error:  # NotImplementedError is a RuntimeError
        return f"{this}: torch cannot multiply FP8 numbers with a factor a row on {device}: {one_line(error)}"
    return None


def width_problem(weight: Fp8Weight) -> str | None:
    """The reason why a weight of this shape cannot be multiplied on its device, or None when it can."""
    if weight.values_OD.device.type == "cpu" or all(size % _MULTIPLE == 0 for size in weight.shape):
        return None
    return f"quantization='fp8' on CUDA needs weights of multiples of {_MULTIPLE}, got one of {list(weight.shape)}"


def fp8_linear(device: torch.device, dtype: torch.dtype) -> Multiply:
    """The product for activations of that dtype on that device, where `fp8_problem` has none."""
    backend = ops.resolve_backend("quantize_rows", "auto", device, dtype)
    return partial(_scaled if device.type == "cuda" else _emulated, ops.bind("quantize_rows", backend))


def fp8_linear_reference(x_TD: Tensor, weight: Fp8Weight, bias_O: Tensor | None) -> Tensor:
    """The product in plain PyTorch on any device: the same float8 numbers, summed in float32 and rounded once."""
    return _emulated(quantize_rows_reference, x_TD, weight, bias_O)


def emulated(weight: Fp8Weight) -> Fp8Weight:
    """The weight as the emulation wants it: converting its numbers to float32 takes longer than a small product."""
    return Fp8Weight(weight.values_OD.float(), weight.scales_O1)


def _scaled(quantize: QuantizeRows, x_TD: Tensor, weight: Fp8Weight, bias_O: Tensor | None) -> Tensor:
    values_TD, scales_T1 = quantize(x_TD)
    # Without use_fast_accum Hopper adds its 14-bit sums of 128 products up in float32.
    return torch._scaled_mm(
        values_TD,
        weight.values_OD.T,
        scales_T1,
        weight.scales_O1.T,
        bias=bias_O,
        out_dtype=x_TD.dtype,
        use_fast_accum=False,
    )


def _emulated(quantize: QuantizeRows, x_TD: Tensor, weight: Fp8Weight, bias_O: Tensor | None) -> Tensor:
    values_TD, scales_T1 = quantize(x_TD)
    product_TO = values_TD.float() @ weight.values_OD.float().T * scales_T1 * weight.scales_O1.T
    return (product_TO if bias_O is None else product_TO + bias_O).to(x_TD.dtype)
