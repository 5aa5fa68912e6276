"""FP8 products: weights with one factor for each output, activations with one for each token, torch's scaled product.

Shape letters: T packed tokens, D inputs and O outputs of a product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gram_fast import ops
from gram_fast.errors import one_line
from gram_fast.kernels.quantize_rows import FLOAT8, quantize_rows_reference

QUANTIZATIONS = ("fp8",)
"""Names of ways to quantize a model while it is read."""

# cuBLAS and CUTLASS take rows of whole 16 bytes.
_MULTIPLE = 16
# Inputs and outputs of the product that is tried.
_TRIED = 128


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
        values_OD, scales_O1 = quantize_rows_reference(weight_OD.to(self.values_OD.device))
        self.values_OD.copy_(values_OD)
        self.scales_O1.copy_(scales_O1)


@dataclass(frozen=True)
class Fp8Activations:
    """Activations [T, D] as float8 numbers times one factor a token, as an op before the product made them."""

    values_TD: Tensor
    """float8_e4m3fn"""
    scales_T1: Tensor
    """float32 [T, 1]"""

    def __getitem__(self, rows_L: Tensor) -> "Fp8Activations":
        """Those of the tokens with these numbers, int64 [L]."""
        # Bytes: not every version of torch gathers float8 on every device.
        values_LD = self.values_TD.view(torch.uint8)[rows_L].view(FLOAT8)
        return Fp8Activations(values_LD, self.scales_T1[rows_L])


Multiply = Callable[[Tensor | Fp8Activations, Fp8Weight, Tensor | None], Tensor]
"""x_TD or what an op has quantized of it, weight, bias_O or None -> [T, O]."""


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
        weight = Fp8Weight.empty(_TRIED, _TRIED, device)
        weight.copy_(torch.ones(weight.shape, dtype=dtype))
        fp8_linear(device, dtype)(torch.ones((2, _TRIED), dtype=dtype, device=device), weight, None)
    except (RuntimeError, ValueError) as error:  # NotImplementedError is a RuntimeError
        return f"{this}: torch cannot multiply FP8 numbers with a factor a row on {device}: {one_line(error)}"
    return None


def width_problem(shape: torch.Size, device: torch.device) -> str | None:
    """The reason why a weight of a shape [O, D] cannot be multiplied on a device, or None when it can."""
    if device.type == "cpu" or all(size % _MULTIPLE == 0 for size in shape):
        return None
    return f"quantization='fp8' on CUDA needs weights of multiples of {_MULTIPLE}, got one of {list(shape)}"


def fp8_linear(device: torch.device, dtype: torch.dtype) -> Multiply:
    """The product with outputs of that dtype on that device, where `fp8_problem` has none."""
    backend = ops.resolve_backend("quantize_rows", "auto", device, dtype)
    quantize, multiply = ops.bind("quantize_rows", backend), _scaled if device.type == "cuda" else _emulated

    def fp8(x_TD: Tensor | Fp8Activations, weight: Fp8Weight, bias_O: Tensor | None) -> Tensor:
        quantized = x_TD if isinstance(x_TD, Fp8Activations) else Fp8Activations(*quantize(x_TD))
        return multiply(quantized, weight, bias_O, dtype)

    return fp8


def fp8_linear_reference(x_TD: Tensor, weight: Fp8Weight, bias_O: Tensor | None) -> Tensor:
    """The product in plain PyTorch on any device: the same float8 numbers, summed in float32 and rounded once."""
    return _emulated(Fp8Activations(*quantize_rows_reference(x_TD)), weight, bias_O, x_TD.dtype)


def quantizing(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Fp8Activations]:
    """An op that gives values and scales, such as `add_rms_norm_fp8`, as one that gives what a product takes."""
    return lambda *arguments: Fp8Activations(*op(*arguments))


def emulated(weight: Fp8Weight) -> Fp8Weight:
    """The weight as the emulation wants it: converting its numbers to float32 takes longer than a small product."""
    return Fp8Weight(weight.values_OD.float(), weight.scales_O1)


def _scaled(x: Fp8Activations, weight: Fp8Weight, bias_O: Tensor | None, dtype: torch.dtype) -> Tensor:
    # Without use_fast_accum Hopper adds its 14-bit sums of 128 products up in float32.
    return torch._scaled_mm(
        x.values_TD,
        weight.values_OD.T,
        x.scales_T1,
        weight.scales_O1.T,
        bias=bias_O,
        out_dtype=dtype,
        use_fast_accum=False,
    )


def _emulated(x: Fp8Activations, weight: Fp8Weight, bias_O: Tensor | None, dtype: torch.dtype) -> Tensor:
    product_TO = x.values_TD.float() @ weight.values_OD.float().T * x.scales_T1 * weight.scales_O1.T
    return (product_TO if bias_O is None else product_TO + bias_O).to(dtype)
