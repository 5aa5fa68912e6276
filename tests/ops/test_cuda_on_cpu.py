"""The CUDA kernels of csrc, compiled by g++ and run on the CPU (tests/cpp/cuda_on_cpu.h): right before they see a GPU.

Speed, registers and shared memory are not tested here. With GRAM_FAST_SANITIZE=ON, as `make sanitize` sets it, the
kernels are compiled with the address and undefined-behaviour sanitizers, and run once under the thread sanitizer.
"""

import hashlib
import importlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pybind11
import pytest
import torch
from helpers.exactness import assert_no_further
from helpers.layouts import Layout, columns_of_wider_rows
from helpers.ops import on_each_dtype
from torch import Tensor

from gram_fast import ops
from gram_fast.kernels.label_logits import label_logits_reference
from gram_fast.kernels.leaf_attention import leaf_attention_reference, leaf_mask
from gram_fast.kernels.merge_states import merge_states_reference

ROOT = Path(__file__).parents[2]
# From so many leaves on, label_logits.cu puts four into a block; it stands at 1024 there.
MANY_LEAVES = 16
CSRC = ROOT / "csrc"
KERNELS = sorted(CSRC.rglob("*.cu"))
HEADER = ROOT / "tests" / "cpp" / "cuda_on_cpu.h"
BUILD = ROOT / "build" / "cuda_on_cpu"
SANITIZE = os.environ.get("GRAM_FAST_SANITIZE") == "ON"
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
pytestmark = pytest.mark.usefixtures("one_thread")


def cuda_headers() -> Path | None:
    """The include folder of the CUDA toolkit whose nvcc is on the path."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    # It prints where it lies; the file on the path may be a script that calls it.
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True, check=False)
    tops = [line.split("TOP=")[1] for line in said.stderr.splitlines() if "TOP=" in line]
    include = Path(tops[0]).resolve() / "include" if tops else Path(nvcc).resolve().parent.parent / "include"
    return include if (include / "cuda_bf16.h").exists() else None


@pytest.fixture(scope="module")
def compiled() -> Callable[..., Path]:
    """Compiles and links files of csrc and tests/cpp, the .cu files as C++, once for each state of the sources."""
    headers = cuda_headers()
    if headers is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and the headers of the CUDA toolkit")
    # Not preloaded into the compiler: sanitizers.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    run = partial(subprocess.run, env=environment, check=True)
    includes = (pybind11.get_include(), sysconfig.get_paths()["include"], headers)
    always = ["-std=c++20", "-fPIC", "-fopenmp", "-fno-strict-aliasing", "-Wno-unknown-pragmas", f"-I{CSRC}"]
    always.append(f"-DGRAM_FAST_MANY_LEAVES={MANY_LEAVES}")
    always += [f"-isystem{path}" for path in includes]

    def link(name: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
        read = b"".join(path.read_bytes() for path in (*sources, *CSRC.rglob("*.h"), *CSRC.rglob("*.cuh"), HEADER))
        state = hashlib.sha256(repr([*always, *flags]).encode() + read).hexdigest()[:16]
        linked = BUILD / state / name
        if linked.exists():
            return linked
        linked.parent.mkdir(parents=True, exist_ok=True)

        def compile_one(source: Path) -> str:
            how = ["-O1", "-x", "c++", "-include", HEADER] if source.suffix == ".cu" else []
            run(["g++", *always, *flags, *how, "-c", source, "-o", f"{folder}/{source.name}.o"])
            return f"{folder}/{source.name}.o"

        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(compile_one, sources))
            # Renamed at the end: what was cut off must not look finished.
            run(["g++", "-fopenmp", *flags, *objects, "-o", f"{folder}/{name}"])
            return Path(folder, name).rename(linked)

    return link


@pytest.fixture(scope="module")
def emulated(compiled: Callable[..., Path]) -> ModuleType:
    """The extension whose CUDA functions run on the CPU."""
    # Two modules must not register the same C++ types with pybind11.
    flags = ["-shared", "-DGRAM_FAST_WITH_CUDA", "-Dgram_fast=gram_fast_on_cpu", *(SANITIZERS if SANITIZE else ())]
    loader = ExtensionFileLoader("cuda_on_cpu._C", str(compiled("_C.so", [*CSRC.rglob("*.cpp"), *KERNELS], flags)))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def on_cuda(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backend "extension" of CPU tensors goes to the CUDA kernels."""
    for name in ("label_logits", "leaf_attention", "merge_states"):
        module = importlib.import_module(f"gram_fast.ops.{name}")
        monkeypatch.setattr(module, "_C", emulated)
        monkeypatch.setattr(module, "stream_of", lambda tensor: 0)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


on_each_layout = pytest.mark.parametrize("layout", [Tensor.contiguous, columns_of_wider_rows])


@on_each_dtype
@on_each_layout
@pytest.mark.parametrize("shape", [(2, 1, 1), (7, 3, 97), (5, 2, 128)])
def test_merge_states(shape: tuple[int, int, int], layout: Layout, dtype: torch.dtype, on_cuda: None) -> None:
    out_THE, lse_TH, other_lse_TH = normal(*shape), 10 * normal(*shape[:2]), 10 * normal(*shape[1::-1]).T
    # The first row has no key on one side, the second on neither.
    lse_TH[:2] = other_lse_TH[1] = float("-inf")
    states = (out_THE, lse_TH, normal(*shape, dtype=dtype).neg(), other_lse_TH)
    exact, plain, actual = ([x.clone() for x in states] for _ in range(3))
    exact, actual = [x.double() for x in exact], [layout(x) for x in actual]
    merge_states_reference(*exact)
    merge_states_reference(*plain)
    ops.merge_states(*actual, backend="extension")
    assert torch.equal(actual[0][1], out_THE[1])
    assert (actual[1][1] == float("-inf")).all()
    others = torch.arange(len(out_THE)) != 1
    for i in (0, 1):
        assert_no_further(actual[i][others], exact[i][others], plain[i][others], 2.0)


@on_each_dtype
@on_each_layout
@pytest.mark.parametrize(("num_leaves", "width", "has_norm"), [(1, 1, True), (3, 257, True), (2, 1040, False)])
def test_label_logits(
    num_leaves: int,
    width: int,
    has_norm: bool,
    layout: Layout,
    dtype: torch.dtype,
    on_cuda: None,
) -> None:
    rows_L = torch.arange(num_leaves).flip(0) * 2
    norm_D = normal(width, dtype=dtype) if has_norm else None
    arguments = [normal(2 * num_leaves, width, dtype=dtype), rows_L, normal(2, width, dtype=dtype), norm_D, 1e-5]
    exact, plain = (
        label_logits_reference(
            *(x.to(compute) if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments)
        )
        for compute in (torch.float64, dtype)
    )
    arguments[0] = layout(arguments[0])
    assert_no_further(ops.label_logits(*arguments, backend="extension"), exact.double(), plain.float(), 2.0)


def test_label_logits_of_many_leaves(on_cuda: None) -> None:
    # Four of them share a block.
    rows_L = torch.arange(MANY_LEAVES + 2) % 5
    hidden_TD, label_weight_2D = normal(5, 24), normal(2, 24)
    actual = ops.label_logits(hidden_TD, rows_L, label_weight_2D, backend="extension")
    plain = label_logits_reference(hidden_TD, rows_L, label_weight_2D, None, 0.0)
    exact = label_logits_reference(hidden_TD.double(), rows_L, label_weight_2D.double(), None, 0.0)
    assert_no_further(actual, exact, plain, 2.0)


# Two trees: leaves inside a span and at its end, shared and kept slots, one leaf twice.
SPANS = torch.tensor([[0, 5], [5, 8], [8, 9], [9, 61]])
OFFSETS = torch.tensor([0, 0, 1, 3, 5])
RANGES = torch.tensor([[0, 4], [64, 71], [0, 2], [1, 2], [64, 67]])
ROWS = torch.tensor([60, 3, 4, 7, 8, 20, 20])
NUM_SLOTS = 75


@on_each_dtype
@on_each_layout
@pytest.mark.parametrize(("heads", "width"), [((2, 2), 24), ((3, 1), 97), ((12, 1), 64), ((4, 1), 256)])
@pytest.mark.parametrize("softmax", ["plain", "window, sinks, soft cap"])
def test_leaf_attention(
    softmax: str, heads: tuple[int, int], width: int, layout: Layout, dtype: torch.dtype, on_cuda: None
) -> None:
    tables = (SPANS, OFFSETS, RANGES, ROWS)
    sinks_H = 2 * normal(heads[0])
    options = {} if softmax == "plain" else {"window": 6, "sinks_H": sinks_H, "softcap": 2.0}
    is_read_LS = leaf_mask(*tables, NUM_SLOTS, options.get("window"))
    inputs = [normal(len(ROWS), heads[0], width, dtype=dtype)]
    inputs += [normal(NUM_SLOTS, heads[1], width, dtype=dtype).roll(shift, 0) for shift in (0, 1)]
    poisoned = [inputs[0], *(x.where(is_read_LS.any(0)[:, None, None], float("nan")) for x in inputs[1:])]
    exact = leaf_attention_reference(*(x.double() for x in inputs), *tables, width**-0.5, **options)
    plain = leaf_attention_reference(*inputs, *tables, width**-0.5, **options)
    actual = ops.leaf_attention(*(layout(x) for x in poisoned), *tables, width**-0.5, backend="extension", **options)
    assert_no_further(actual, exact, plain, 2.0)


@pytest.mark.skipif(not SANITIZE, reason="takes 40 s: run by make sanitize")
def test_no_two_threads_meet_without_a_barrier(compiled: Callable[..., Path]) -> None:
    sources = [HEADER.parent / "races.cpp", CSRC / "tables" / "leaf_items.cpp", *KERNELS]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    program = compiled("races", sources, ["-g", "-fsanitize=thread"])
    done = subprocess.run([program], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
