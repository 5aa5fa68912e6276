"""What every op checks of its arguments before any launch, and how it hands tensors to the extension."""

import contextlib

import torch
from torch import Tensor

# Position = value of gram_fast::Dtype (csrc/common/dtype.h).
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def expect(condition: bool, argument: str, expected: str, actual: object) -> None:
    """Raises ValueError, naming the argument, when the condition does not hold."""
    if not condition:
        raise ValueError(f"{argument}: expected {expected}, got {actual}")


def expect_like(
    tensor: Tensor, argument: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    """Raises ValueError unless shape, dtype and device are these and the last dimension is contiguous."""
    expect(tuple(tensor.shape) == shape, argument, f"shape {shape}", tuple(tensor.shape))
    expect(tensor.dtype in dtypes, argument, " or ".join(map(str, dtypes)), tensor.dtype)
    expect(tensor.device == device, argument, f"device {device}", tensor.device)
    expect(
        tensor.numel() == 0 or tensor.stride(-1) == 1,
        argument,
        "a contiguous last dimension",
        f"stride {tensor.stride(-1)}",
    )


def expect_states(name: str, q: Tensor, k_SKE: Tensor, v_SKE: Tensor) -> None:
    """Raises ValueError unless `q`, [rows, H, E] and called `name`, can attend to keys and values [S, K, E]."""
    expect(q.dim() == 3, name, "3 dimensions", q.dim())
    expect(k_SKE.dim() == 3, "k_SKE", "3 dimensions", k_SKE.dim())
    (num_heads, width), (num_slots, num_kv_heads) = q.shape[1:], k_SKE.shape[:2]
    expect_like(q, name, tuple(q.shape), DTYPES, q.device)
    expect_like(k_SKE, "k_SKE", (num_slots, num_kv_heads, width), (q.dtype,), q.device)
    expect_like(v_SKE, "v_SKE", tuple(k_SKE.shape), (q.dtype,), q.device)
    expect(num_kv_heads > 0 and num_heads % num_kv_heads == 0, name, f"a multiple of {num_kv_heads} heads", num_heads)


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`, by a copy that neither the host nor the stream before it waits for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def stream_of(tensor: Tensor) -> int | None:
    """The current CUDA stream of the tensor's device, None on the CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else None


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's device the current one for a launch."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
