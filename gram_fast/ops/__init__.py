"""The public ops, each registered with torch.library: one file an op, beside the backends it may choose from."""

from gram_fast.ops.add_rms_norm import add_rms_norm
from gram_fast.ops.backends import BACKENDS, backend_problem, resolve_backend
from gram_fast.ops.invariant_linear import invariant_linear, row_dependence
from gram_fast.ops.label_logits import label_logits
from gram_fast.ops.leaf_attention import leaf_attention, leaf_items
from gram_fast.ops.merge_states import merge_states
from gram_fast.ops.path_attention import path_attention, path_tiles
from gram_fast.ops.rotary_into_cache import rotary_into_cache
from gram_fast.ops.swiglu import swiglu
from gram_fast.ops.tree_attention import attention_tiles, tree_attention

__all__ = [
    "BACKENDS",
    "add_rms_norm",
    "attention_tiles",
    "backend_problem",
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
