"""Backends of ops: which exist, which can run on a device, and which one "auto" stands for."""

import importlib
import importlib.util
import logging
import os
from dataclasses import dataclass
from types import ModuleType

import torch

from gram_fast.errors import BackendError
from gram_fast.extension import _C

logger = logging.getLogger(__name__)

MAX_HEAD_DIM = 256
"""Widest attention heads, in columns, that the Triton and CUDA kernels take."""


@dataclass(frozen=True)
class Backends:
    """Implementations of one op; its module declares them as BACKENDS."""

    names: tuple[str, ...]
    """In order of preference, the best last: "auto" is the last one that can run."""
    cpu_only: tuple[str, ...] = ()
    """Those that do not run on CUDA."""
    narrow: tuple[str, ...] = ("triton",)
    """Those that take heads of at most MAX_HEAD_DIM columns."""
    capability: tuple[int, int] = (8, 0)
    """Least compute capability of those but "reference" on CUDA."""


def op_module(op: str) -> ModuleType:
    """The module gram_fast.ops.<op>. By name: op modules import this one."""
    return importlib.import_module(f"gram_fast.ops.{op}")


def is_interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors, as in tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def backend_problem(
    op: str,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int | None = None,
    *,
    is_windowed: bool = False,
    is_capped: bool = False,
) -> str | None:
    """The reason why a backend of an op cannot run there, or None when it can.

    `head_dim`: width of the attention heads, where it is known. `is_windowed`, `is_capped`: whether attention has
    windows or soft caps.
    """
    backends: Backends = op_module(op).BACKENDS
    this = f"{op} backend {name!r}"
    if name not in backends.names:
        return f"there is no {this}: expected auto or one of {', '.join(backends.names)}"
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return f"{this} needs the package triton, for Linux: install gram_fast[cuda]"
    if name in backends.narrow and (head_dim or 0) > MAX_HEAD_DIM:
        return f"{this} takes heads of up to {MAX_HEAD_DIM} columns, got {head_dim}"
    if name == "triton" and device.type == "cpu":
        if not is_interpreted():
            return f"{this} needs a CUDA device: on a CPU it runs in Triton's interpreter alone (TRITON_INTERPRET=1)"
        if dtype == torch.bfloat16:
            return f"{this} in Triton's interpreter takes float32 and float16: it computes bfloat16 wrongly"
    if name == "cascade" and (problem := cascade_problem(device, is_windowed, is_capped)):
        return problem
    if device.type == "cuda" and name in backends.cpu_only:
        return f"{this} runs on the CPU alone"
    if op == "split_linear" and dtype != torch.float32:
        return f"{this} takes torch.float32, got {dtype}"
    if op == "split_linear" and name == "extension" and not _C.has_amx():
        return f"{this} needs a processor with AMX for bfloat16"
    if device.type == "cuda" and name != "reference":
        if name == "cascade" and dtype == torch.float32:
            return f"{this} on CUDA takes float16 and bfloat16, got float32"
        if name in ("cascade", "extension") and not _C.has_cuda:
            return f"{this} on CUDA needs the CUDA part of the extension: install nvcc and rebuild"
        if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < backends.capability:
            return f"{this} on CUDA needs compute capability {'.'.join(map(str, backends.capability))} or higher"
    return None


def cascade_problem(device: torch.device, is_windowed: bool, is_capped: bool) -> str | None:
    """What library kernels lack of tree attention, or None."""
    other = "triton" if device.type == "cuda" else "extension"
    if is_capped:
        return f"tree_attention backend 'cascade' caps no scores: choose {other!r}"
    if is_windowed and device.type == "cuda":
        return f"tree_attention backend 'cascade' on CUDA takes no windows: choose {other!r}"
    return None


def resolve_backend(
    op: str,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int | None = None,
    *,
    is_windowed: bool = False,
    is_capped: bool = False,
) -> str:
    """The backend that `name` stands for; arguments as `backend_problem`.

    "auto" is the last of the op's backends that can run, on a CPU never Triton's interpreter, and is logged. Raises
    BackendError when a backend given by its own name cannot run.
    """
    options = {"is_windowed": is_windowed, "is_capped": is_capped}
    if name != "auto":
        check_backend(op, name, device, dtype, head_dim, **options)
        return name
    backends: Backends = op_module(op).BACKENDS
    chosen = next(
        backend
        for backend in reversed(backends.names)
        if not (backend == "triton" and device.type == "cpu")
        and backend_problem(op, backend, device, dtype, head_dim, **options) is None
    )
    logger.info("%s backend: %s (%s, %s)", op, chosen, device, dtype)
    return chosen


def check_backend(
    op: str,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int | None = None,
    *,
    is_windowed: bool = False,
    is_capped: bool = False,
) -> None:
    """Raises BackendError when the backend cannot run there; arguments as `backend_problem`."""
    options = {"is_windowed": is_windowed, "is_capped": is_capped}
    if problem := backend_problem(op, name, device, dtype, head_dim, **options):
        raise BackendError(problem)
