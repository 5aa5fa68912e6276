"""The public ops, each registered with torch.library: a file for each, beside the backends that it may choose from.

Every op module has the op of its name, which checks its arguments, and `implementation(backend)`, the function that the
op calls after its checks: a caller that checked once what it asks for in every layer binds that (`bind`).
"""

import importlib
from collections.abc import Callable
from typing import Any

from gram_fast.ops.add_rms_norm import add_rms_norm
from gram_fast.ops.backends import BACKENDS, backend_problem, resolve_backend
from gram_fast.ops.invariant_linear import invariant_linear, row_dependence
from gram_fast.ops.label_logits import label_logits
from gram_fast.ops.leaf_attention import leaf_attention, leaf_items
from gram_fast.ops.merge_states import merge_states
from gram_fast.ops.path_attention import path_attention, path_tiles
from gram_fast.ops.rotary_into_cache import rotary_into_cache
from gram_fast.ops.swiglu import swiglu
from gram_fast.ops.tables import LeafTables, PathTables, Spans, TreeTables
from gram_fast.ops.tree_attention import attention_tiles, tree_attention

__all__ = [
    "BACKENDS",
    "LeafTables",
    "PathTables",
    "Spans",
    "TreeTables",
    "add_rms_norm",
    "attention_tiles",
    "backend_problem",
    "bind",
    "invariant_linear",
    "label_logits",
    "leaf_attention",
    "leaf_items",
    "merge_states",
    "path_attention",
    "path_tiles",
    "resolve_backend",
    "rotary_into_cache",
    "row_dependence",
    "swiglu",
    "tree_attention",
]


def bind(op: str, backend: str) -> Callable[..., Any]:
    """The function behind an op on that backend, without checks and dispatch: its arguments are trusted.

    `backend` is one that `resolve_backend` gave. Attention takes a tables object in place of the op's table arguments.
    """
    function: Callable[..., Any] = importlib.import_module(f"gram_fast.ops.{op}").implementation(backend)
    return function
