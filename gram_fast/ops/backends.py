"""The backends of every op, and the one place that says which can run where."""

import importlib.util
import logging
import os

import torch

from gram_fast.errors import BackendError
from gram_fast.extension import _C

logger = logging.getLogger(__name__)

BACKENDS = {
    "tree_attention": ("reference", "cascade", "triton"),
    "leaf_attention": ("reference", "extension", "triton"),
    "path_attention": ("reference", "triton"),
    "merge_states": ("reference", "triton", "extension"),
    "label_logits": ("reference", "triton", "extension"),
    "add_rms_norm": ("reference", "triton"),
    "rotary_into_cache": ("reference", "triton"),
    "swiglu": ("reference", "triton", "extension"),
    "invariant_linear": ("reference", "triton"),
}
"""By op, its backends. "auto" takes the last one that can run; on a CPU never Triton's interpreter."""


MAX_HEAD_DIM = 256
"""The widest heads of the Triton attention kernels."""


def is_interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def backend_problem(
    op: str, name: str, device: torch.device, dtype: torch.dtype, head_dim: int | None = None
) -> str | None:
    """Why this backend of an op cannot run there, for heads of that width where it is known, or None when it can."""
    names = BACKENDS[op]
    this = f"{op} backend {name!r}"
    if name not in names:
        return f"there is no {this}: expected auto or one of {', '.join(names)}"
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return f"{this} needs the package triton, which is for Linux"
    if name == "triton" and (head_dim or 0) > MAX_HEAD_DIM:
        return f"{this} takes heads of up to {MAX_HEAD_DIM} columns, got {head_dim}"
    if name == "triton" and device.type == "cpu":
        if not is_interpreted():
            return f"{this} needs a CUDA device: on a CPU it runs in Triton's interpreter alone (TRITON_INTERPRET=1)"
        if dtype == torch.bfloat16:
            return f"{this} in Triton's interpreter takes float32 and float16: it computes bfloat16 wrongly"
    if device.type == "cuda" and (op, name) == ("swiglu", "extension"):
        return f"{this} runs on the CPU alone: on CUDA there is triton"
    if device.type == "cuda" and name != "reference":
        if name == "cascade" and dtype == torch.float32:
            return f"{this} on CUDA takes float16 and bfloat16, got float32"
        if name in ("cascade", "extension") and not _C.has_cuda:
            return f"{this} on CUDA needs the CUDA part of the extension: install nvcc and rebuild"
        if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
            return f"{this} on CUDA needs compute capability 8.0 or higher"
    return None


def resolve_backend(op: str, name: str, device: torch.device, dtype: torch.dtype, head_dim: int | None = None) -> str:
    """The backend that `name` stands for. "auto" takes the last of BACKENDS[op] that can run, and logs it.

    Raises BackendError when a backend asked for by name cannot run.
    """
    if name != "auto":
        check_backend(op, name, device, dtype, head_dim)
        return name
    chosen = next(
        backend
        for backend in reversed(BACKENDS[op])
        if not (backend == "triton" and device.type == "cpu")
        and backend_problem(op, backend, device, dtype, head_dim) is None
    )
    logger.info("%s backend: %s (%s, %s)", op, chosen, device, dtype)
    return chosen


def check_backend(op: str, name: str, device: torch.device, dtype: torch.dtype, head_dim: int | None = None) -> None:
    """Raises BackendError when this backend cannot run there."""
    if problem := backend_problem(op, name, device, dtype, head_dim):
        raise BackendError(problem)
