"""Tree attention in C++ is right with the instructions of every processor, not with the widest of this one alone."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.attention import (
    PLAIN,
    TREE,
    Inputs,
    Softmax,
    Tables,
    assert_as_exact_as_plain,
    assert_as_exact_as_plain_gradients,
    poisoned,
    random_inputs,
    tables_of_lengths,
)
from helpers.ops import CPU, on_each_dtype
from torch import Tensor

from gram_fast import ops
from gram_fast.kernels.tree_attention import tree_mask
from gram_fast.ops.checks import states_arguments

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")

SCALE = 0.2
TABLES = tables_of_lengths([150, 3, 1, 40, 2], [[], [(0, 71)], [(200, 290)], [(0, 150), (205, 206)], [(203, 277)]])


class Arguments(ctypes.Structure):
    """gram_fast::TreeAttentionBackward."""

    _fields_ = (
        ("q", ctypes.c_void_p),
        ("q_strides", ctypes.c_int64 * 2),
        ("k", ctypes.c_void_p),
        ("k_strides", ctypes.c_int64 * 2),
        ("v", ctypes.c_void_p),
        ("v_strides", ctypes.c_int64 * 2),
        ("out", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("dtype", ctypes.c_int),
        ("shape", ctypes.c_int64 * 4),
        ("lse", ctypes.c_void_p),
        ("sinks", ctypes.c_void_p),
        ("softcap", ctypes.c_float),
        ("tiles", ctypes.c_void_p),
        ("num_tiles", ctypes.c_int64),
        ("is_windowed", ctypes.c_bool),
        ("grad_out", ctypes.c_void_p),
        ("grad_out_strides", ctypes.c_int64 * 2),
        ("grad_q", ctypes.c_void_p),
        ("grad_k", ctypes.c_void_p),
        ("grad_v", ctypes.c_void_p),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The op's source with a function for each kind of instructions."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    built = tmp_path_factory.mktemp("attention") / "attention.so"
    csrc = ROOT / "csrc" / "common"
    sources = [ROOT / "tests/cpp/attention_instructions.cpp", csrc / "parallel.cpp", csrc / "amx.cpp"]
    flags = ["-std=c++20", "-O2", "-fPIC", "-shared", "-fopenmp", f"-I{ROOT / 'csrc'}"]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(["g++", *flags, *sources, "-o", built], env=environment, check=True)
    return ctypes.CDLL(str(built))


def run(
    library: ctypes.CDLL,
    instructions: str,
    inputs: Inputs,
    tables: Tables,
    grad_THE: Tensor | None = None,
    softmax: Softmax = PLAIN,
) -> tuple[Tensor, ...]:
    """The result, and given its gradient, those of the inputs."""
    function = getattr(library, f"run_{instructions}")
    function.restype = ctypes.c_bool
    group = inputs[0].shape[1] // inputs[1].shape[1]
    tiles = ops.TreeTables.of(ops.Spans(*tables), "extension", group, CPU, window=softmax.window).tiles
    assert tiles is not None
    out_THE, lse_TH = torch.full_like(inputs[0], float("nan")), torch.empty(inputs[0].shape[:2])
    sinks = None if softmax.sinks_H is None else softmax.sinks_H.data_ptr()
    scores = lse_TH.data_ptr(), sinks, softmax.softcap or 0.0
    forward = *states_arguments(*inputs, out_THE, SCALE), *scores, tiles.data_ptr(), len(tiles), bool(softmax.window)
    if not function(ctypes.byref(Arguments(*forward))):
        pytest.skip(f"this processor has no {instructions}, or not for {inputs[0].dtype}")
    if grad_THE is None:
        return (out_THE,)
    gradients = tuple(torch.full(x.shape, float("nan"), dtype=x.dtype) for x in inputs)
    more = grad_THE.data_ptr(), grad_THE.stride()[:2], *(x.data_ptr() for x in gradients)
    assert function(ctypes.byref(Arguments(*forward, *more)))
    return out_THE, *gradients


on_each = pytest.mark.parametrize("instructions", ["plain", "avx2", "avx512", "amx"])
on_each_shape = pytest.mark.parametrize(("heads", "width"), [((2, 2), 24), ((9, 3), 64), ((10, 2), 80)])


@on_each_dtype
@on_each
@on_each_shape
def test_each_is_as_exact_as_plain_attention(
    heads: tuple[int, int], width: int, instructions: str, dtype: torch.dtype, library: ctypes.CDLL
) -> None:
    inputs = random_inputs(196, 290, heads, width, dtype)
    inputs = (inputs[0], *(poisoned(x, TABLES, 196) for x in inputs[1:]))
    (out_THE,) = run(library, instructions, inputs, TABLES)
    inputs = (inputs[0], *(x.nan_to_num(0.0) for x in inputs[1:]))
    assert_as_exact_as_plain(out_THE, inputs, TABLES, SCALE)


@on_each_dtype
@on_each
@on_each_shape
@pytest.mark.parametrize(
    "softmax",
    [
        Softmax(ops.Window(1)),
        Softmax(ops.Window(100)),
        Softmax(ops.Window(64, is_chunked=True)),
        Softmax(softcap=1.5),
        Softmax(ops.Window(73), torch.linspace(-2.0, 3.0, 10), 20.0),
    ],
    ids=["itself", "window", "chunks", "soft cap", "all"],
)
def test_windows_sinks_and_soft_caps(
    softmax: Softmax, heads: tuple[int, int], width: int, instructions: str, dtype: torch.dtype, library: ctypes.CDLL
) -> None:
    inputs = random_inputs(196, 290, heads, width, dtype)
    size, is_chunked = softmax.window or (None, False)
    is_read_S = tree_mask(*TABLES, 196, 290, size, is_chunked).any(dim=0)[:, None, None]
    poisoned = (inputs[0], *(x.where(is_read_S, float("nan")) for x in inputs[1:]))
    (out_THE,) = run(library, instructions, poisoned, TABLES, softmax=softmax)
    assert_as_exact_as_plain(out_THE, inputs, TABLES, SCALE, softmax)


@on_each_dtype
@on_each
@on_each_shape
def test_gradients_are_as_exact_as_plain_ones(
    heads: tuple[int, int], width: int, instructions: str, dtype: torch.dtype, library: ctypes.CDLL
) -> None:
    inputs = random_inputs(196, 196, heads, width, dtype)
    grad_THE = random_inputs(196, 1, heads, width, dtype, seed=1)[0]
    _, *gradients = run(library, instructions, inputs, TREE, grad_THE)
    assert_as_exact_as_plain_gradients(gradients, inputs, grad_THE, TREE, SCALE)
