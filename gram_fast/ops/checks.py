"""What an op checks of its arguments before any launch: shapes, dtypes, devices, strides.

A tensor's name ends in a letter for each of its dimensions, or in a digit where the size is fixed: q_THE has the shape
[T, H, E], label_weight_2D has [2, D].
"""

import contextlib

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Element types of activations and weights. The position is the value of gram_fast::Dtype (csrc/common/dtype.h)."""


def expect(condition: bool, argument: str, expected: str, actual: object) -> None:
    """Raises ValueError, naming the argument, when the condition does not hold."""
    if not condition:
        raise ValueError(f"{argument}: expected {expected}, got {actual}")


class Sizes:
    """The size of every shape letter, bound by the first tensor that has it.

    sizes = Sizes(q_THE.device)
    sizes.check(DTYPES, q_THE=q_THE)
    sizes.check((q_THE.dtype,), k_SKE=k_SKE, v_SKE=v_SKE)
    sizes["T"]
    """

    def __init__(self, device: torch.device) -> None:
        """`device`: where all tensors must lie."""
        self._device = device
        self._sizes: dict[str, int] = {}

    def __getitem__(self, letter: str) -> int:
        return self._sizes[letter]

    def check(self, dtypes: tuple[torch.dtype, ...], *, any_strides: bool = False, **tensors: Tensor | None) -> None:
        """Raises ValueError unless each tensor has the shape of its name and one of the dtypes.

        Args:
            dtypes: those allowed.
            any_strides: whether the last dimension need not be contiguous.
            tensors: by name; None is passed over.
        """
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            self._bind(name, tensor.shape)
            if tensor.dtype not in dtypes:
                raise ValueError(f"{name}: expected {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
            if tensor.device != self._device:
                raise ValueError(f"{name}: expected device {self._device}, got {tensor.device}")
            if not any_strides and tensor.numel() and tensor.stride(-1) != 1:
                raise ValueError(f"{name}: expected a contiguous last dimension, got stride {tensor.stride(-1)}")

    def _bind(self, name: str, shape: torch.Size) -> None:
        letters = name.rpartition("_")[2]
        if len(letters) != len(shape):
            dimensions = "1 dimension" if len(letters) == 1 else f"{len(letters)} dimensions"
            raise ValueError(f"{name}: expected {dimensions}, got {len(shape)}")
        for letter, size in zip(letters, shape, strict=True):
            expected = int(letter) if letter.isdigit() else self._sizes.setdefault(letter, size)
            if expected != size:
                raise ValueError(f"{name}: expected shape {self._shape(letters, shape)}, got {tuple(shape)}")

    def _shape(self, letters: str, shape: torch.Size) -> tuple[int, ...]:
        """The shape that the letters ask for; a letter that is not bound yet takes any size."""
        return tuple(
            int(letter) if letter.isdigit() else self._sizes.get(letter, size)
            for letter, size in zip(letters, shape, strict=True)
        )


def check_states(name: str, q: Tensor, k_SKE: Tensor, v_SKE: Tensor) -> Sizes:
    """Raises ValueError unless queries can attend to keys and values -> the sizes of their letters.

    `name` is that of `q`, [rows, H, E], in the caller.
    """
    sizes = Sizes(q.device)
    sizes.check(DTYPES, **{name: q})  # type: ignore[arg-type]
    sizes.check((q.dtype,), k_SKE=k_SKE, v_SKE=v_SKE)
    num_heads, num_kv_heads = sizes["H"], sizes["K"]
    expect(num_kv_heads > 0 and num_heads % num_kv_heads == 0, name, f"a multiple of {num_kv_heads} heads", num_heads)
    return sizes


def stream_of(tensor: Tensor) -> int | None:
    """The current CUDA stream of the tensor's device, None on the CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else None


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's device the current one for a launch."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
