"""The public ops, each registered with torch.library, and the one place that chooses and checks backends.

Shape letters: T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width, N spans,
R key ranges, D model width, L leaves.
"""

import contextlib
import logging

import torch
from torch import Tensor

from gram_fast.cascade import cascade_attention
from gram_fast.errors import BackendError
from gram_fast.extension import _C
from gram_fast.kernels.tree_attention import tree_attention_reference

logger = logging.getLogger(__name__)

# Position = value of gram_fast::Dtype (csrc/dtype.h).
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ATTENTION_BACKENDS = ("reference", "cascade")


def attention_backend_problem(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run there, or None when it can."""
    if name not in ATTENTION_BACKENDS:
        return f"there is no attention backend {name!r}: expected auto or one of {', '.join(ATTENTION_BACKENDS)}"
    if name == "cascade" and device.type == "cuda":
        if dtype == torch.float32:
            return "attention backend 'cascade' on CUDA takes float16 and bfloat16, got float32"
        if not _C.has_cuda:
            return "attention backend 'cascade' on CUDA needs the CUDA part of the extension: install nvcc and rebuild"
        if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
            return "attention backend 'cascade' on CUDA needs compute capability 8.0 or higher"
    return None


def resolve_attention_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that `name` stands for. "auto" takes the last of ATTENTION_BACKENDS that can run, and logs it.

    Raises BackendError when a backend asked for by name cannot run.
    """
    if name != "auto":
        if problem := attention_backend_problem(name, device, dtype):
            raise BackendError(problem)
        return name
    chosen = next(b for b in reversed(ATTENTION_BACKENDS) if attention_backend_problem(b, device, dtype) is None)
    logger.info("attention backend: %s (%s, %s)", chosen, device, dtype)
    return chosen


def _expect(condition: bool, argument: str, expected: str, actual: object) -> None:
    if not condition:
        raise ValueError(f"{argument}: expected {expected}, got {actual}")


def _expect_like(
    tensor: Tensor, argument: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    _expect(tuple(tensor.shape) == shape, argument, f"shape {shape}", tuple(tensor.shape))
    _expect(tensor.dtype in dtypes, argument, " or ".join(map(str, dtypes)), tensor.dtype)
    _expect(tensor.device == device, argument, f"device {device}", tensor.device)
    _expect(
        tensor.numel() == 0 or tensor.stride(-1) == 1,
        argument,
        "a contiguous last dimension",
        f"stride {tensor.stride(-1)}",
    )


def _stream(tensor: Tensor) -> int | None:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else None


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@torch.library.custom_op("gram_fast::merge_states", mutates_args=("out_THE", "lse_TH"))
def merge_states(out_THE: Tensor, lse_TH: Tensor, other_out_THE: Tensor, other_lse_TH: Tensor) -> None:
    """Merges attention results over two disjoint key sets, in place, by log-sum-exp (arXiv 1805.02867).

    Args:
        out_THE: float32 [T, H, E], result over the first key set; becomes the result over both.
        lse_TH: float32 [T, H], natural log-sum-exp of its scores, -inf where there was no key; becomes that of both.
        other_out_THE: [T, H, E], float32, float16 or bfloat16.
        other_lse_TH: float32 [T, H].

    Any strides with a contiguous E. Raises ValueError on a wrong shape, dtype, stride or device.
    """
    _expect(out_THE.dim() == 3, "out_THE", "3 dimensions", out_THE.dim())
    shape, device = tuple(out_THE.shape), out_THE.device
    _expect_like(out_THE, "out_THE", shape, (torch.float32,), device)
    _expect_like(other_out_THE, "other_out_THE", shape, _DTYPES, device)
    for argument, lse in (("lse_TH", lse_TH), ("other_lse_TH", other_lse_TH)):
        _expect(tuple(lse.shape) == shape[:2], argument, f"shape {shape[:2]}", tuple(lse.shape))
        _expect(
            lse.dtype == torch.float32 and lse.device == device,
            argument,
            f"float32 on {device}",
            f"{lse.dtype} on {lse.device}",
        )
    with _on(out_THE):
        _C.merge_states(
            out_THE.data_ptr(),
            out_THE.stride()[:2],
            lse_TH.data_ptr(),
            lse_TH.stride(),
            other_out_THE.data_ptr(),
            other_out_THE.stride()[:2],
            other_lse_TH.data_ptr(),
            other_lse_TH.stride(),
            _DTYPES.index(other_out_THE.dtype),
            shape,
            _stream(out_THE),
        )


@merge_states.register_fake
def _(out_THE: Tensor, lse_TH: Tensor, other_out_THE: Tensor, other_lse_TH: Tensor) -> None:
    pass


@torch.library.custom_op("gram_fast::label_logits", mutates_args=())
def label_logits(
    hidden_TD: Tensor,
    rows_L: Tensor,
    label_weight_2D: Tensor,
    norm_weight_D: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Logits of the two label tokens -> float32 [L, 2], computed in float32.

    Args:
        hidden_TD: hidden states [T, D], float32, float16 or bfloat16, D contiguous.
        rows_L: int64 [L], the row of each leaf's last token, 0 <= row < T.
        label_weight_2D: the rows of the output embedding for "A" and "B", dtype as hidden_TD, contiguous.
        norm_weight_D: weight of the final RMSNorm, dtype as hidden_TD, or None when hidden states are normalised.
        eps: epsilon of that norm.

    Raises ValueError on a wrong shape, dtype, stride or device, and on the CPU on a row out of range (on CUDA the rows
    are not read back: the plan that makes them is trusted).
    """
    _expect(hidden_TD.dim() == 2, "hidden_TD", "2 dimensions", hidden_TD.dim())
    (num_tokens, width), device, dtype = hidden_TD.shape, hidden_TD.device, hidden_TD.dtype
    _expect_like(hidden_TD, "hidden_TD", (num_tokens, width), _DTYPES, device)
    _expect(rows_L.dim() == 1, "rows_L", "1 dimension", rows_L.dim())
    _expect_like(rows_L, "rows_L", (len(rows_L),), (torch.int64,), device)
    _expect_like(label_weight_2D, "label_weight_2D", (2, width), (dtype,), device)
    _expect(label_weight_2D.is_contiguous(), "label_weight_2D", "a contiguous tensor", label_weight_2D.stride())
    if norm_weight_D is not None:
        _expect_like(norm_weight_D, "norm_weight_D", (width,), (dtype,), device)
    if not rows_L.is_cuda and len(rows_L):
        low, high = int(rows_L.min()), int(rows_L.max())
        _expect(low >= 0 and high < num_tokens, "rows_L", f"rows from 0 to {num_tokens - 1}", f"{low} to {high}")
    logits_L2 = torch.empty((len(rows_L), 2), dtype=torch.float32, device=device)
    with _on(hidden_TD):
        _C.label_logits(
            hidden_TD.data_ptr(),
            hidden_TD.stride(0),
            rows_L.data_ptr(),
            label_weight_2D.data_ptr(),
            0 if norm_weight_D is None else norm_weight_D.data_ptr(),
            eps,
            logits_L2.data_ptr(),
            _DTYPES.index(dtype),
            (len(rows_L), width),
            _stream(hidden_TD),
        )
    return logits_L2


@label_logits.register_fake
def _(
    hidden_TD: Tensor,
    rows_L: Tensor,
    label_weight_2D: Tensor,
    norm_weight_D: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    return hidden_TD.new_empty((rows_L.shape[0], 2), dtype=torch.float32)


@torch.library.custom_op("gram_fast::tree_attention", mutates_args=())
def tree_attention(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    scale: float,
    backend: str,
) -> Tensor:
    """Attention of T packed tokens over a forest -> [T, H, E], contiguous, dtype as q_THE.

    The tokens of a span read each other causally (slots [start, end)) and the slots of the span's ranges without a
    mask; softmax over both together.

    Args:
        q_THE: queries [T, H, E], float32, float16 or bfloat16.
        k_SKE, v_SKE: keys and values [S, K, E], S >= T; slots [0, T) belong to the packed tokens. H is a multiple of K.
        spans_N2: int64 [N, 2] on the CPU: start, end; they cover [0, T) in order.
        range_offsets: int64 [N + 1] on the CPU: rows of `ranges_R2` that each span reads.
        ranges_R2: int64 [R, 2] on the CPU: slots [start, end), 0 <= start < end <= S. Ranges of one span are disjoint.
        scale: factor on the scores, above 0, usually E ** -0.5.
        backend: one of ATTENTION_BACKENDS (see resolve_attention_backend for "auto").

    Raises ValueError on a wrong shape, dtype, stride, device or an index out of range, BackendError on a backend that
    cannot run.
    """
    _check_tree_attention(q_THE, k_SKE, v_SKE, spans_N2, range_offsets, ranges_R2)
    _expect(scale > 0, "scale", "a positive number", scale)
    if problem := attention_backend_problem(backend, q_THE.device, q_THE.dtype):
        raise BackendError(problem)
    if q_THE.shape[0] == 0:
        return q_THE.new_empty(q_THE.shape)
    if backend == "reference":
        out_THE = tree_attention_reference(q_THE, k_SKE, v_SKE, spans_N2, range_offsets, ranges_R2, scale)
    else:
        out_THE = cascade_attention(q_THE, k_SKE, v_SKE, spans_N2, range_offsets, ranges_R2, scale, merge_states)
    return out_THE.contiguous()


@tree_attention.register_fake
def _(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    scale: float,
    backend: str,
) -> Tensor:
    return q_THE.new_empty(q_THE.shape)


def _check_tree_attention(
    q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, spans_N2: Tensor, range_offsets: Tensor, ranges_R2: Tensor
) -> None:
    _expect(q_THE.dim() == 3, "q_THE", "3 dimensions", q_THE.dim())
    _expect(k_SKE.dim() == 3, "k_SKE", "3 dimensions", k_SKE.dim())
    (num_tokens, num_heads, width), device = q_THE.shape, q_THE.device
    num_slots, num_kv_heads = k_SKE.shape[:2]
    _expect_like(q_THE, "q_THE", tuple(q_THE.shape), _DTYPES, device)
    _expect_like(k_SKE, "k_SKE", (num_slots, num_kv_heads, width), (q_THE.dtype,), device)
    _expect_like(v_SKE, "v_SKE", tuple(k_SKE.shape), (q_THE.dtype,), device)
    _expect(num_slots >= num_tokens, "k_SKE", f"at least T = {num_tokens} slots", num_slots)
    _expect(
        num_kv_heads > 0 and num_heads % num_kv_heads == 0, "q_THE", f"a multiple of {num_kv_heads} heads", num_heads
    )
    cpu = torch.device("cpu")
    _expect(spans_N2.dim() == 2, "spans_N2", "2 dimensions", spans_N2.dim())
    _expect(ranges_R2.dim() == 2, "ranges_R2", "2 dimensions", ranges_R2.dim())
    num_spans, num_ranges = len(spans_N2), len(ranges_R2)
    _expect_like(spans_N2, "spans_N2", (num_spans, 2), (torch.int64,), cpu)
    _expect_like(range_offsets, "range_offsets", (num_spans + 1,), (torch.int64,), cpu)
    _expect_like(ranges_R2, "ranges_R2", (num_ranges, 2), (torch.int64,), cpu)
    # NumPy on these few integers: a tenth of the time of the same tensor operations.
    spans, offsets, ranges = spans_N2.numpy(), range_offsets.numpy(), ranges_R2.numpy()
    starts, ends = spans[:, 0], spans[:, 1]
    covers = num_tokens == (ends[-1] if num_spans else 0) and (not num_spans or starts[0] == 0)
    _expect(
        bool(covers and (starts < ends).all() and (starts[1:] == ends[:-1]).all()),
        "spans_N2",
        f"spans that cover 0 to {num_tokens} in order",
        spans.tolist(),
    )
    _expect(
        bool(offsets[0] == 0 and offsets[-1] == num_ranges and (offsets[1:] >= offsets[:-1]).all()),
        "range_offsets",
        f"a rise from 0 to {num_ranges}",
        offsets.tolist(),
    )
    _expect(
        bool((ranges[:, 0] >= 0).all() and (ranges[:, 0] < ranges[:, 1]).all() and (ranges[:, 1] <= num_slots).all()),
        "ranges_R2",
        f"0 <= start < end <= {num_slots}",
        ranges.tolist(),
    )
