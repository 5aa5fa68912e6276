"""Tree attention in C++ is right with the instructions of every processor, not with the widest of this one alone."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.attention import Inputs, Tables, assert_as_exact_as_plain, poisoned, random_inputs, tables_of_lengths
from helpers.ops import CPU, on_each_dtype
from torch import Tensor

from gram_fast import ops
from gram_fast.ops.checks import states_arguments

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")

TABLES = tables_of_lengths([150, 3, 1, 40, 2], [[], [(0, 71)], [(200, 290)], [(0, 150), (205, 206)], [(203, 277)]])


class Arguments(ctypes.Structure):
    """gram_fast::TreeAttention."""

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
        ("tiles", ctypes.c_void_p),
        ("num_tiles", ctypes.c_int64),
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


def attend(library: ctypes.CDLL, instructions: str, inputs: Inputs, tables: Tables, scale: float) -> Tensor:
    function = getattr(library, f"attend_{instructions}")
    function.restype = ctypes.c_bool
    tiles = ops.TreeTables.of(ops.Spans(*tables), "extension", inputs[0].shape[1] // inputs[1].shape[1], CPU).tiles
    assert tiles is not None
    out_THE = torch.full_like(inputs[0], float("nan"))
    arguments = Arguments(*states_arguments(*inputs, out_THE, scale), tiles.data_ptr(), len(tiles))
    if not function(ctypes.byref(arguments)):
        pytest.skip(f"this processor has no {instructions}, or not for {inputs[0].dtype}")
    return out_THE


@on_each_dtype
@pytest.mark.parametrize("instructions", ["plain", "avx2", "avx512", "amx"])
@pytest.mark.parametrize(("heads", "width"), [((2, 2), 24), ((9, 3), 64), ((10, 2), 80)])
def test_each_is_as_exact_as_plain_attention(
    heads: tuple[int, int], width: int, instructions: str, dtype: torch.dtype, library: ctypes.CDLL
) -> None:
    inputs = random_inputs(196, 290, heads, width, dtype)
    inputs = (inputs[0], *(poisoned(x, TABLES, 196) for x in inputs[1:]))
    out_THE = attend(library, instructions, inputs, TABLES, 0.2)
    inputs = (inputs[0], *(x.nan_to_num(0.0) for x in inputs[1:]))
    assert_as_exact_as_plain(out_THE, inputs, TABLES, 0.2)
