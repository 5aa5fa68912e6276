"""Types of the C++ extension (csrc/bindings.cpp, csrc/bindings_ops.cpp)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

has_cuda: bool
table_layout: dict[str, int]

class KeptSlots:
    """Where keys, values and states lie once a plan has run: for TokenTree.keep."""

    @property
    def used(self) -> int: ...

class TokenTree:
    def __init__(self, head_ids: ArrayLike) -> None: ...
    def add_segment(self, ids: ArrayLike) -> int: ...
    def add_sequences(self, segments: ArrayLike, reusable: int) -> NDArray[np.int32]: ...
    def add_verdicts(self, segments: ArrayLike) -> NDArray[np.int32]: ...
    def clear(self, *, cache_limit: int = 0) -> None: ...
    def count_tokens(self, leaves: ArrayLike) -> int: ...
    def forget_slots(self) -> None: ...
    def keep(self, kept: KeptSlots) -> None: ...
    def leaf_lengths(self, leaves: ArrayLike) -> NDArray[np.int64]: ...
    def leaves_of_pass(self, leaves: ArrayLike, *, budget: int) -> NDArray[np.int64]: ...
    def plan(
        self,
        leaves: ArrayLike,
        *,
        budget: int,
        keep_limit: int,
        more_rounds: bool,
        cache_limit: int = 0,
        state_cost: int = 0,
    ) -> tuple[list[dict[str, NDArray[np.int64]]], int, int, KeptSlots]: ...
    def verdicts_of_plan(self, leaves: ArrayLike, *, slots: int, tokens: int) -> NDArray[np.int64]: ...
    @property
    def num_tokens(self) -> int: ...

def attention_blocks(spans: ArrayLike, range_offsets: ArrayLike, ranges: ArrayLike) -> NDArray[np.int64]: ...
def attention_tiles(
    spans: ArrayLike,
    range_offsets: ArrayLike,
    ranges: ArrayLike,
    tile_tokens: int,
    min_tiles: int = 0,
    window: int | None = None,
    is_chunked: bool = False,
) -> NDArray[np.int32]: ...
def check_leaf_rows(leaf_rows: ArrayLike, num_tokens: int) -> None: ...
def check_spans(
    spans: ArrayLike, range_offsets: ArrayLike, ranges: ArrayLike, num_slots: int, num_tokens: int
) -> None: ...
def leaf_items(
    spans: ArrayLike,
    range_offsets: ArrayLike,
    ranges: ArrayLike,
    leaf_rows: ArrayLike,
    min_items: int = 0,
    window: int | None = None,
    is_chunked: bool = False,
) -> NDArray[np.int32]: ...
def merge_states(
    out: int,
    out_strides: Sequence[int],
    lse: int,
    lse_strides: Sequence[int],
    other_out: int,
    other_out_strides: Sequence[int],
    other_lse: int,
    other_lse_strides: Sequence[int],
    other_dtype: int,
    shape: Sequence[int],
    stream: int | None,
) -> None: ...
def label_logits(
    hidden: int,
    hidden_stride: int,
    rows: int,
    label_weight: int,
    norm_weight: int,
    eps: float,
    logits: int,
    dtype: int,
    shape: Sequence[int],
    stream: int | None,
) -> None: ...
def add_rms_norm(
    residual: int,
    residual_stride: int,
    x: int,
    x_stride: int,
    weight: int,
    eps: float,
    out: int,
    dtype: int,
    shape: Sequence[int],
) -> None: ...
def rotary_into_cache(
    qkv: int,
    qkv_strides: Sequence[int],
    cos: int,
    cos_stride: int,
    sin: int,
    sin_stride: int,
    k: int,
    k_strides: Sequence[int],
    v: int,
    v_strides: Sequence[int],
    q_norm: int,
    k_norm: int,
    eps: float,
    dtype: int,
    shape: Sequence[int],
) -> None: ...
def swiglu(gate_up: int, gate_up_stride: int, out: int, dtype: int, shape: Sequence[int]) -> None: ...
def has_amx() -> bool: ...
def split_linear(x: int, x_stride: int, weight: int, bias: int, out: int, shape: Sequence[int]) -> None: ...
def leaf_attention(
    q: int,
    q_strides: Sequence[int],
    k: int,
    k_strides: Sequence[int],
    v: int,
    v_strides: Sequence[int],
    items: int,
    num_items: int,
    partial_out: int,
    partial_lse: int,
    out: int,
    scale: float,
    dtype: int,
    shape: Sequence[int],
    stream: int | None,
    sinks: int | None = None,
    softcap: float | None = None,
) -> None: ...
def tree_attention(
    q: int,
    q_strides: Sequence[int],
    k: int,
    k_strides: Sequence[int],
    v: int,
    v_strides: Sequence[int],
    out: int,
    scale: float,
    dtype: int,
    shape: Sequence[int],
    tiles: int,
    num_tiles: int,
    lse: int | None = None,
    is_windowed: bool = False,
    sinks: int | None = None,
    softcap: float | None = None,
) -> None: ...
def tree_attention_backward(
    q: int,
    q_strides: Sequence[int],
    k: int,
    k_strides: Sequence[int],
    v: int,
    v_strides: Sequence[int],
    out: int,
    scale: float,
    dtype: int,
    shape: Sequence[int],
    tiles: int,
    num_tiles: int,
    lse: int,
    grad_out: int,
    grad_out_strides: Sequence[int],
    grad_q: int,
    grad_k: int,
    grad_v: int,
) -> None: ...
def path_attention(
    q: int,
    q_strides: Sequence[int],
    k: int,
    k_strides: Sequence[int],
    v: int,
    v_strides: Sequence[int],
    out: int,
    scale: float,
    dtype: int,
    shape: Sequence[int],
    tiles: int,
    num_tiles: int,
    slots: int,
    tile_tokens: int,
) -> None: ...
