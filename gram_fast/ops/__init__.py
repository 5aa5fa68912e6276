"""Public ops, one module each: checks of the arguments, registration with torch.library, and the choice of a backend.

The module of an op declares its BACKENDS and has two functions: the op, which checks its arguments on every call, and
`implementation(backend)`, what the op calls after its checks. A caller that has checked the arguments once for many
calls uses the latter (`bind`).
"""

from collections.abc import Callable
from typing import Any

from gram_fast.ops.add_rms_norm import add_rms_norm as add_rms_norm
from gram_fast.ops.add_rms_norm_fp8 import add_rms_norm_fp8 as add_rms_norm_fp8
from gram_fast.ops.backends import backend_problem as backend_problem
from gram_fast.ops.backends import op_module
from gram_fast.ops.backends import resolve_backend as resolve_backend
from gram_fast.ops.invariant_linear import invariant_linear as invariant_linear
from gram_fast.ops.invariant_linear import row_dependence as row_dependence
from gram_fast.ops.label_logits import label_logits as label_logits
from gram_fast.ops.leaf_attention import leaf_attention as leaf_attention
from gram_fast.ops.merge_states import merge_states as merge_states
from gram_fast.ops.path_attention import path_attention as path_attention
from gram_fast.ops.quantize_rows import quantize_rows as quantize_rows
from gram_fast.ops.rotary_into_cache import rotary_into_cache as rotary_into_cache
from gram_fast.ops.split_linear import split_linear as split_linear
from gram_fast.ops.swiglu import swiglu as swiglu
from gram_fast.ops.swiglu_fp8 import swiglu_fp8 as swiglu_fp8
from gram_fast.ops.tables import LeafTables as LeafTables
from gram_fast.ops.tables import PathTables as PathTables
from gram_fast.ops.tables import Spans as Spans
from gram_fast.ops.tables import TreeTables as TreeTables
from gram_fast.ops.tables import Window as Window
from gram_fast.ops.tree_attention import tree_attention as tree_attention
from gram_fast.ops.tree_attention_backward import tree_attention_backward as tree_attention_backward

_OPS = (
    "tree_attention",
    "tree_attention_backward",
    "leaf_attention",
    "path_attention",
    "merge_states",
    "label_logits",
    "add_rms_norm",
    "rotary_into_cache",
    "swiglu",
    "invariant_linear",
    "split_linear",
    "quantize_rows",
    "add_rms_norm_fp8",
    "swiglu_fp8",
)

BACKENDS: dict[str, tuple[str, ...]] = {op: op_module(op).BACKENDS.names for op in _OPS}
"""Backends of every op, by its name. "auto" is the last one that can run; on a CPU never Triton's interpreter."""


def bind(op: str, backend: str) -> Callable[..., Any]:
    """The function behind an op, without its checks and without dispatch by torch.library: arguments are trusted.

    `backend`: from `resolve_backend`. An attention op takes a tables object in place of its table arguments; `of` of
    its class checks and makes one for all layers of a pass. On a machine with several GPUs the caller makes the device
    of the tensors the current one.
    """
    function: Callable[..., Any] = op_module(op).implementation(backend)
    return function
