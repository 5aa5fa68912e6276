"""Checks of tensor arguments before a launch: shapes, dtypes, devices, strides.

The name of a tensor ends in one letter per dimension, or a digit where the size is fixed: q_THE has the shape [T, H,
E], label_weight_2D has [2, D].
"""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of activations and weights; the position is the value of gram_fast::Dtype (csrc/common/dtype.h)."""

StatesArguments = tuple[
    int, Sequence[int], int, Sequence[int], int, Sequence[int], int, float, int, tuple[int, int, int, int]
]
"""Addresses and strides of queries, keys and values, address of the result, scale, dtype, and T, H, K, E."""


def expect(condition: bool, argument: str, expected: str, actual: object) -> None:
    """Raises ValueError, with the argument's name, unless the condition holds."""
    if not condition:
        raise ValueError(f"{argument}: expected {expected}, got {actual}")


class Sizes:
    """Sizes of shape letters: the first tensor with a letter sets its size, and all later ones must agree.

    sizes = Sizes(q_THE.device)
    sizes.check(DTYPES, q_THE=q_THE)
    sizes.check((q_THE.dtype,), k_SKE=k_SKE, v_SKE=v_SKE)
    sizes["T"]
    """

    def __init__(self, device: torch.device) -> None:
        """`device`: the one that all tensors must be on."""
        self._device = device
        self._sizes: dict[str, int] = {}

    def __getitem__(self, letter: str) -> int:
        return self._sizes[letter]

    def check(self, dtypes: tuple[torch.dtype, ...], *, any_strides: bool = False, **tensors: Tensor | None) -> None:
        """Raises ValueError unless each tensor has the shape of its name and one of the dtypes.

        Args:
            dtypes: allowed dtypes.
            any_strides: allows a last dimension that is not contiguous.
            tensors: tensors by name; None is skipped.
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
        """The shape that the letters require; a letter without a size takes that of `shape`."""
        return tuple(
            int(letter) if letter.isdigit() else self._sizes.get(letter, size)
            for letter, size in zip(letters, shape, strict=True)
        )


def check_states(name: str, q: Tensor, k_SKE: Tensor, v_SKE: Tensor) -> Sizes:
    """Checks that queries can attend to keys and values, and returns the sizes of their letters.

    `q`: queries [rows, H, E], called `name` in error messages. Raises ValueError.
    """
    sizes = Sizes(q.device)
    sizes.check(DTYPES, **{name: q})  # type: ignore[arg-type]
    sizes.check((q.dtype,), k_SKE=k_SKE, v_SKE=v_SKE)
    num_heads, num_kv_heads = sizes["H"], sizes["K"]
    expect(num_kv_heads > 0 and num_heads % num_kv_heads == 0, name, f"a multiple of {num_kv_heads} heads", num_heads)
    return sizes


def check_scores(sizes: Sizes, dtype: torch.dtype, sinks_H: Tensor | None, softcap: float | None) -> None:
    """Checks what changes the scores of attention. Raises ValueError.

    `sizes`: of the states, whose dtype is `dtype`; `sinks_H` has that or float32.
    """
    sizes.check(tuple(dict.fromkeys((torch.float32, dtype))), sinks_H=sinks_H)
    is_number = softcap is None or 0 < softcap <= torch.finfo(torch.float32).max
    expect(is_number, "softcap", "a positive, finite number", softcap)


def as_float32(sinks_H: Tensor | None) -> Tensor | None:
    """Sinks as the extension takes them. The caller keeps the result until it has run."""
    return None if sinks_H is None else sinks_H.float()


def states_arguments(q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, out_THE: Tensor, scale: float) -> StatesArguments:
    """The first arguments of attention in the extension, which takes tensors by their addresses."""
    (num_tokens, num_heads, width), num_kv_heads = q_THE.shape, k_SKE.shape[1]
    return (
        q_THE.data_ptr(),
        q_THE.stride()[:2],
        k_SKE.data_ptr(),
        k_SKE.stride()[:2],
        v_SKE.data_ptr(),
        v_SKE.stride()[:2],
        out_THE.data_ptr(),
        scale,
        DTYPES.index(q_THE.dtype),
        (num_tokens, num_heads, num_kv_heads, width),
    )


def stream_of(tensor: Tensor) -> int | None:
    """The current CUDA stream of the tensor's device as an address, or None on the CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else None


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's GPU the current one, for a launch."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
