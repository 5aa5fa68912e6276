import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gram_fast.kernels import offline
from gram_fast.kernels.compilation import Compilation
from gram_fast.kernels.offline import Usage

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
REPORT = """
Fatbin elf code:
================
arch = sm_80
host = linux

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN9gram_fast12merge_kernelIfEEvNS_11MergeStatesE:
  REG:32 STACK:8 SHARED:96 LOCAL:4 CONSTANT[0]:432 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_100

Resource usage:
 Function second:
  REG:255 STACK:0 SHARED:1120 LOCAL:0 CONSTANT[0]:976 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_every_kernel_fits_every_chip_and_the_page_names_it() -> None:
    """Two processes compile all of them: about a minute when triton's cache is cold."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "gram_fast.kernels.offline"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    cells = {
        (row[0], capability) for row in rows for capability, cell in zip((80, 90, 100), row[2:], strict=True) if cell
    }
    compilations = offline.all_compilations()
    assert cells >= {
        (compilation.name, capability) for compilation in compilations for capability in compilation.capabilities
    }
    named = {line.split("|")[1].strip() for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")}
    missing = [row[0] for row in rows if row[0] not in named]
    assert not missing, f"run python -m gram_fast.kernels.offline --write {PAGE.name}: {missing}"
    in_half = tuple(f"{op} {kind}" for op in ("tree_attention", "invariant_linear") for kind in ("bf16", "fp16"))
    on_hopper = {row[0]: row[3] for row in rows if row[0].startswith(in_half)}
    units = {cell.split(" · ")[2] for cell in on_hopper.values() if cell}
    assert units == {"wgmma"}, "matrix units of an older generation"
    assert all(cell.split(" · ")[3].endswith("waits") for cell in on_hopper.values() if cell)


def test_the_report_of_cuobjdump() -> None:
    assert offline.parse_resource_usage(REPORT) == [
        Usage("_ZN9gram_fast12merge_kernelIfEEvNS_11MergeStatesE", 80, 32, 12, 96),
        Usage("second", 100, 255, 0, 1120),
    ]


FITS = Usage("swiglu", 90, 255, 0, 227 * 1024, "wgmma", 512)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"registers": 256}, "256 registers"),
        ({"stack": 8}, "8 bytes a thread are spilled"),
        ({"shared": 227 * 1024 + 1}, "sm_90 has 227"),
        ({"capability": 80}, "sm_80 has 163"),
        ({"tensor_columns": 513}, "513 columns"),
        ({"waits": 36, "written_waits": 6}, "36 waits for asynchronous products, 6 were written"),
        ({"warnings": ("C7515) Potential Performance Loss",)}, "C7515"),
    ],
)
def test_what_does_not_fit_is_said(change: dict[str, int], words: str) -> None:
    assert not FITS.problems
    (problem,) = replace(FITS, **change).problems
    assert bool(replace(FITS, **change, may_spill=True).problems) == ("stack" not in change)
    assert problem.startswith("swiglu on sm_")
    assert words in problem


@pytest.mark.parametrize(
    ("mangled", "plain", "name"),
    [
        (
            "_ZN9gram_fast48_GLOBAL__N__3e9bb9d5_15_merge_states_cu_f615830812merge_kernelIfEEvNS_11MergeStatesE",
            "void gram_fast::(anonymous namespace)::merge_kernel<float>(gram_fast::MergeStates)",
            "merge_states.cu merge_kernel<float>",
        ),
        ("_Z1", "void gram_fast::leaf<__half, (int)4>(float*, int)", "leaf<__half, (int)4>"),
        ("_ZN9gram_fast5plainEv", "gram_fast::plain()", "plain"),
        ("_ZN9gram_fast5plainEv", "_ZN9gram_fast5plainEv", "_ZN9gram_fast5plainEv"),
    ],
)
def test_short_names(mangled: str, plain: str, name: str) -> None:
    assert offline.short_name(mangled, plain) == name


def test_the_table() -> None:
    usages = [Usage("b", 80, 30, 0, 1536), Usage("b", 90, 32, 16, 2048, "wgmma"), Usage("a", 100, 40, 0, 0)]
    assert offline.table(usages, {"b": "4, 3"}).splitlines()[2:] == [
        "| b | 4, 3 | 30 · 1.5 KiB | 32 · 2 KiB · wgmma · 16 B spilled |  |",
        "| a |  |  |  | 40 · 0 KiB |",
    ]


def test_the_page_keeps_what_is_not_between_the_markers() -> None:
    begin, end = offline.MARKERS
    page = f"before\n{begin}\nold\n{end}\nafter"
    made = offline.replace_between_markers(page, "new")
    assert made == f"before\n{begin}\n\nnew\n\n{end}\nafter"
    assert offline.replace_between_markers(made, "new") == made
    with pytest.raises(ValueError, match="in this order"):
        offline.replace_between_markers(f"{end}{begin}", "new")


# In a process of its own, since the tests interpret kernels. ptxas waits where a wait is missing, and says so.
WITHOUT_WAITS = """
import re
from gram_fast.kernels import offline
on_hopper = (c for c in offline.all_compilations() if 90 in c.capabilities)
kernel = next(c for c in on_hopper if c.name.startswith("tree_attention bf16"))
ptx = offline.compiled(kernel, 90).asm["ptx"]
assert not offline.assembler_warnings(ptx)
print(*offline.assembler_warnings(re.sub(r"wgmma.wait_group.*", "", ptx)))
"""


def test_products_that_are_waited_for_one_by_one_are_seen() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", WITHOUT_WAITS]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert re.match(r"C75\d\d\) warpgroup.wait is injected", said)


def test_the_same_launch_twice_is_an_error() -> None:
    first = Compilation("first", "kernel", {"x": "*fp32"}, {"N": 2}, 4, 1)
    offline.check_distinct([first, replace(first, name="second", num_warps=8)])
    offline.check_distinct([replace(first, capabilities=(80,)), replace(first, num_warps=8, capabilities=(90,))])
    with pytest.raises(ValueError, match=r"^second: .*first"):
        offline.check_distinct([first, replace(first, name="second")])
    with pytest.raises(ValueError, match=r"^first: "):
        offline.check_distinct([first, replace(first, num_warps=8)])


def test_interpreted_kernels_do_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys, "argv", ["offline"])
    with pytest.raises(SystemExit, match="unset it"):
        offline.main()
