"""Finds torch devices and dtypes by name."""

import logging
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

import psutil
import torch
from torch import Tensor

from gram_fast.errors import BackendError, InputError, shown_value

log = logging.getLogger(__name__)

Device = str | torch.device
_DEVICES = "auto, cpu, cuda, cuda:N or cuda:all"

capturing = threading.Lock()
"""Held while a CUDA graph is captured: torch allows one capture at a time in a process."""


def find_devices(device: Device | Sequence[Device]) -> list[torch.device]:
    """Finds the devices for one or several names, one for each replica of a judge.

    Args:
        device: a torch device or its name, "auto" (CUDA where there is a GPU, else the CPU), "cuda:all" (every GPU that
            torch sees), or several of these: a list, or names with commas between them. The CPU may be named more than
            once: such replicas share its cores and gain nothing, but show on any machine what several devices do.

    Raises InputError for no device, anything else than a device, one GPU twice and CPU together with GPU; BackendError
    for a device that is not available.
    """
    if isinstance(device, str):
        device = [name.strip() for name in device.split(",")]
    named = [device] if isinstance(device, torch.device) else device
    if not isinstance(named, Sequence) or not all(isinstance(name, Device) for name in named):
        raise InputError(f"device: expected a torch device, its name or a list of these, got {shown_value(device)}")
    found = [one for name in named for one in _named(name)]
    if not found:
        raise InputError(f"device: expected at least one, got {device!r}")
    if len(found) > 1:
        found = [_with_number(one) for one in found]
        _check_replicas(found)
        log.info("devices: %s", ", ".join(map(str, found)))
    return found


def _check_replicas(devices: Sequence[torch.device]) -> None:
    # Replicas of different kinds would hold weights of different dtypes: results would depend on the replica.
    if len(kinds := sorted({one.type for one in devices})) > 1:
        raise InputError(f"device: expected replicas on devices of one kind, got {' and '.join(kinds)}")
    twice = [str(one) for one in devices if one.type == "cuda" and devices.count(one) > 1]
    if twice:
        raise InputError(f"device: expected every GPU once, got {twice[0]!r} {twice.count(twice[0])} times")


def _with_number(device: torch.device) -> torch.device:
    """Replaces "cuda" by the caller's current GPU; other threads, where replicas run, have their own current one."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _named(device: Device) -> list[torch.device]:
    """Devices for one name: several for "cuda:all"."""
    if device == "auto":
        return [torch.device("cuda" if torch.cuda.is_available() else "cpu")]
    if device == "cuda:all":
        if not torch.cuda.is_available():
            raise BackendError("device 'cuda:all' is not there: torch sees 0 CUDA GPUs")
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    try:
        found = torch.device(device)
    except RuntimeError:
        raise BackendError(f"there is no device {shown_value(device)}: expected {_DEVICES}") from None
    if found.type not in ("cpu", "cuda"):
        raise BackendError(f"device {str(found)!r} is not supported: expected {_DEVICES}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"device {str(found)!r} is not there: torch sees {torch.cuda.device_count()} CUDA GPUs")
    return [found]


def find_dtype(dtype: str | torch.dtype, device: torch.device) -> str | torch.dtype:
    """Finds the dtype to load a model in: "auto" is float32 on the CPU, the checkpoint's own ("auto") elsewhere.

    Raises InputError on a dtype other than float32, float16 and bfloat16.
    """
    if isinstance(dtype, str) and dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in (torch.float32, torch.float16, torch.bfloat16):
        raise InputError(f"dtype: expected auto, float32, float16 or bfloat16, got {shown_value(dtype)}")
    return found


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Context that makes a GPU the thread's current one, for allocations and launches that name none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def finish(device: torch.device) -> None:
    """Waits until a GPU has done what this thread launched on it, or has failed at it."""
    if device.type == "cuda":
        with suppress(RuntimeError):
            torch.cuda.current_stream(device).synchronize()


def is_lost(error: BaseException) -> bool:
    """Whether a GPU computes nothing more for this process, as after an access that it may not."""
    if not isinstance(error, torch.AcceleratorError):
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def last_used_here(*tensors: Tensor) -> None:
    """Before tensors on a GPU are dropped: keeps their memory until what this thread launched is done.

    Without it, whoever computes on the stream that they were allocated on may get the memory at once.
    """
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


def give_memory_back(device: torch.device) -> None:
    """Gives memory that torch keeps unused back to all GPUs, which it cannot while another thread captures."""
    if device.type == "cuda":
        with capturing:
            torch.cuda.empty_cache()


def free_memory(device: torch.device) -> int:
    """Free memory of the device in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on the device or on the host."""
    # Of the driver, which loads kernels and makes graphs, "CUDA error: out of memory", which is no OutOfMemoryError.
    words = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)
