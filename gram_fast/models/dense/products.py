"""Matrix products of the dense runner: which function multiplies, and in which layout it wants the weights.

Shape letters: T packed tokens, D inputs and O outputs of a product.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from gram_fast import ops
from gram_fast.errors import BackendError
from gram_fast.kernels.invariant_linear import in_blocks
from gram_fast.models.dense.fp8 import Fp8Weight, emulated, fp8_linear, fp8_linear_reference
from gram_fast.ops.invariant_linear import in_one_layout

logger = logging.getLogger(__name__)

PRODUCTS = ("split", "torch", "onednn")
"""Names of products; "auto" is the last one that can run. By name alone: "split", which is less exact than float32."""

Weight = Tensor | Fp8Weight
"""A weight [O, D] of a product, in the layout that the product wants."""
Multiply = Callable[[Any, Any, Tensor | None], Tensor]
"""x_TD, or what `Operations.norm` and `activate` make for this product in its place, a prepared Weight, bias_O or None
-> [T, O]."""
Add = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(residual_TO, x_TD, a prepared weight) -> the residual, to which the product was added in place."""

# Below so many rows torch's product reads a weight faster than `split_linear` packs it.
_FEW_ROWS = 16


@dataclass(frozen=True)
class Product:
    """One way to multiply rows by a weight."""

    name: str
    multiply: Multiply
    multiply_rows: Multiply | None
    """The same, but the bits of a row depend on that row alone: where `ops.row_dependence` finds nothing."""
    prepare: Callable[[Any], Any] = lambda weight_OD: weight_OD
    """Brings a weight [O, D] into the layout that `multiply` wants; its numbers stay, and `unpacked` is the inverse."""
    plain: Multiply = lambda x_TD, weight, bias_O: linear(x_TD, unpacked(weight), bias_O)
    """The product in plain PyTorch, which `multiply` is compared with when a judge is made."""
    add: Add | None = None
    """Adds a product as `multiply` makes it, without a bias, and rounds the sum once; None where the library does not
    add as it multiplies."""


def product_problem(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why a product cannot run there, or None when it can."""
    this = f"product {name!r}"
    if name not in PRODUCTS:
        return f"there is no {this}: expected auto or one of {', '.join(PRODUCTS)}"
    if name == "torch":
        return None
    if device.type != "cpu":
        return f"{this} runs on the CPU alone"
    if name == "split":
        return ops.backend_problem("split_linear", "extension", device, dtype)
    return None if _onednn_takes(dtype) else f"{this} does not take {dtype} on this processor"


def find_product(name: str, device: torch.device, dtype: torch.dtype) -> Product:
    """The product that `name`, "auto" or one of PRODUCTS, stands for; the choice of "auto" is logged.

    Raises BackendError when a product given by its own name cannot run.
    """
    if name == "auto":
        name = next(other for other in reversed(PRODUCTS) if product_problem(other, device, dtype) is None)
        logger.info("matrix products: %s (%s, %s)", name, device, dtype)
    elif problem := product_problem(name, device, dtype):
        raise BackendError(problem)
    if name == "onednn":
        return Product(name, _onednn, _onednn_in_blocks, _packed)
    if name == "split":
        split_linear = ops.bind("split_linear", "extension")
        return Product(name, lambda *of: (linear if len(of[0]) < _FEW_ROWS else split_linear)(*of), split_linear)
    backend = ops.resolve_backend("invariant_linear", "auto", device, dtype)
    return Product(name, linear, ops.bind("invariant_linear", backend), add=_add)


def fp8_product(device: torch.device, dtype: torch.dtype) -> Product:
    """The product of a model that was quantized while it was read, emulated on a CPU.

    There is none for single rows: on a GPU the library chooses its code by their number.
    """
    prepare = emulated if device.type == "cpu" else (lambda weight: weight)
    return Product("fp8", fp8_linear(device, dtype), None, prepare, plain=fp8_linear_reference)


def unpacked(weight: Tensor) -> Tensor:
    """A prepared weight as a plain tensor [O, D]."""
    return weight.to_dense() if weight.is_mkldnn else weight


def _add(residual_TO: Tensor, x_TD: Tensor, weight_OD: Tensor) -> Tensor:
    return residual_TO.addmm_(x_TD, weight_OD.T)


def _onednn_takes(dtype: torch.dtype) -> bool:
    if not torch._C._has_mkldnn:
        return False
    of_onednn = torch.ops.mkldnn
    takes = {torch.bfloat16: of_onednn._is_mkldnn_bf16_supported, torch.float16: of_onednn._is_mkldnn_fp16_supported}
    return bool(takes[dtype]()) if dtype in takes else True


def _packed(weight_OD: Tensor) -> Tensor:
    """The weight in oneDNN's blocks. Rows are a hint alone: others are multiplied as fast."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(unpacked(weight_OD), 256)
    return packed


def _onednn(x_TD: Tensor, packed: Tensor, bias_O: Tensor | None) -> Tensor:
    product_TO: Tensor = torch.ops.mkldnn._linear_pointwise(x_TD, packed, bias_O, "none", [], "")
    return product_TO


def _onednn_in_blocks(x_TD: Tensor, packed: Tensor, bias_O: Tensor | None) -> Tensor:
    return in_blocks(in_one_layout(x_TD), packed.shape[0], lambda x_BD: _onednn(x_BD, packed, bias_O))
