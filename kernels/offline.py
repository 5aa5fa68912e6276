"""Compiles all kernels without a GPU and reports the registers and shared memory that each uses.

    python -m gram_fast.kernels.offline [--write docs/performance.md]

Prints a markdown table, or puts it between the two markers of a page. Exits with 1 when a kernel does not fit its chip,
spills, or waits for each of its asynchronous products. Triton kernels are compiled as for contiguous tensors, with
addresses and strides that are multiples of 16: without them loads are narrow and nothing is prefetched.
"""

import argparse
import functools
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from gram_fast.kernels.compilation import Compilation

SHARED_LIMITS = {80: 163, 90: 227, 100: 227}
"""KiB of shared memory of one block at most, by compute capability times ten."""
MARKERS = (
    "<!-- compiled kernels: begin; made by python -m gram_fast.kernels.offline --write docs/performance.md -->",
    "<!-- compiled kernels: end -->",
)

# PTX instructions of each generation's matrix units, newest first.
_MATRIX_UNITS = {"tcgen05.mma": "tcgen05", "wgmma.mma_async": "wgmma", "mma.sync": "mma"}
_MAX_REGISTERS = 255
_MAX_TENSOR_COLUMNS = 512


@dataclass(frozen=True)
class Usage:
    """Resources that one kernel uses on one architecture."""

    kernel: str
    capability: int
    registers: int
    """Per thread."""
    stack: int
    """Bytes per thread. These kernels have no arrays on it: it holds spilled registers."""
    shared: int
    """Bytes per block."""
    matrix_unit: str = ""
    tensor_columns: int = 0
    """Columns of tensor memory (sm_100)."""
    may_spill: bool = False
    waits: int = 0
    """Waits for asynchronous products in the machine code (sm_90)."""
    written_waits: int = 0
    """Waits that Triton wrote: one for each product of blocks, which takes several instructions."""
    warnings: tuple[str, ...] = ()
    """Warnings of ptxas about such products (C75xx)."""

    @property
    def cell(self) -> str:
        """Text of the table's cell."""
        parts = [str(self.registers), f"{self.shared / 1024:.1f} KiB".replace(".0 ", " ")]
        parts += [self.matrix_unit] if self.matrix_unit else []
        parts += [f"{self.waits} waits"] if self.waits else []
        return " · ".join([*parts, f"{self.stack} B spilled"] if self.stack else parts)

    @property
    def problems(self) -> list[str]:
        """One message for each limit that is exceeded."""
        found = []
        limit = SHARED_LIMITS[self.capability]
        if self.shared > limit * 1024:
            found.append(f"{self.shared / 1024:.1f} KiB of shared memory, sm_{self.capability} has {limit}")
        if self.registers > _MAX_REGISTERS:
            found.append(f"{self.registers} registers a thread, there are {_MAX_REGISTERS}")
        if self.stack and not self.may_spill:
            found.append(f"{self.stack} bytes a thread are spilled")
        if self.tensor_columns > _MAX_TENSOR_COLUMNS:
            found.append(f"{self.tensor_columns} columns of tensor memory, there are {_MAX_TENSOR_COLUMNS}")
        if self.waits > self.written_waits:
            found.append(f"{self.waits} waits for asynchronous products, {self.written_waits} were written")
        found += self.warnings
        return [f"{self.kernel} on sm_{self.capability}: {problem}" for problem in found]


@functools.cache
def all_compilations() -> tuple[Compilation, ...]:
    """The compilations() of all modules of this package whose names end in _triton, in order of name."""
    names = sorted(
        module.name for module in pkgutil.iter_modules(importlib.import_module("gram_fast.kernels").__path__)
    )
    modules = [importlib.import_module(f"gram_fast.kernels.{name}") for name in names if name.endswith("_triton")]
    return tuple(compilation for module in modules for compilation in module.compilations())


def check_distinct(compilations: Sequence[Compilation]) -> None:
    """Raises ValueError when two compilations for one architecture share a name or are the same launch."""
    seen: dict[tuple[int, str], str] = {}
    for c in compilations:
        launch = repr((c.kernel, sorted(c.signature.items()), sorted(c.constants.items()), c.num_warps, c.num_stages))
        for key in ((capability, what) for capability in c.capabilities for what in (c.name, launch)):
            if key in seen:
                raise ValueError(f"{c.name}: expected a launch and a name of its own, got those of {seen[key]}")
            seen[key] = c.name


def compiled(compilation: Compilation, capability: int) -> Any:
    """Triton's compiled kernel for a compute capability, times ten; `asm` has its "ptx" and its "cubin"."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = compilation.kernel
    divisible = [
        name for name, kind in compilation.signature.items() if (kind[0] == "*" and kind != "*i32") or "stride" in name
    ]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    return triton.compile(
        ASTSource(kernel, compilation.signature, compilation.constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": compilation.num_warps, "num_stages": compilation.num_stages},
    )


def compile_for(number: int, capability: int) -> Usage:
    """Compiles `all_compilations()[number]` for a compute capability, times ten."""
    compilation = all_compilations()[number]
    kernel = compiled(compilation, capability)
    ptx = kernel.asm["ptx"]
    unit = next((unit for instruction, unit in _MATRIX_UNITS.items() if instruction in ptx), "")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        (usage,) = resource_usage(Path(file.name))
        waits = machine_code(Path(file.name)).count("WARPGROUP.DEPBAR") if unit == "wgmma" else 0
    return Usage(
        compilation.name,
        capability,
        usage.registers,
        usage.stack,
        kernel.metadata.shared,
        unit,
        getattr(kernel.metadata, "tmem_size", None) or 0,
        compilation.may_spill,
        waits,
        written_waits=ptx.count("wgmma.wait_group"),
        warnings=assembler_warnings(ptx) if unit == "wgmma" else (),
    )


def machine_code(binary: Path) -> str:
    """Disassembled code of a cubin."""
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, "--dump-sass", str(binary)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def assembler_warnings(ptx: str) -> tuple[str, ...]:
    """What ptxas says of asynchronous products on sm_90a that it cannot keep so. Triton drops its output."""
    from triton import knobs

    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [knobs.nvidia.ptxas.path, "--gpu-name=sm_90a", file.name, "-o", os.devnull]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return tuple(re.findall(r"C75\d\d.*", said))


def resource_usage(binary: Path) -> list[Usage]:
    """Resources of every kernel in a cubin or shared library, read by the cuobjdump that comes with triton."""
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)]
    return parse_resource_usage(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parse_resource_usage(text: str) -> list[Usage]:
    """Kernels of a cuobjdump report, with mangled names. A cubin names no architecture: the capability is 0."""
    found = []
    capability, function = 0, ""
    for line in text.splitlines():
        if match := re.match(r"arch = sm_(\d+)", line):
            capability = int(match[1])
        elif match := re.match(r"\s*Function (\S+):", line):
            function = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            found.append(Usage(function, capability, registers, stack + local, shared))
    return found


def extension_usage() -> list[Usage]:
    """Resources of the extension's CUDA kernels, with C++ names; shared memory without that added by the launch."""
    from gram_fast.extension import _C

    if not _C.has_cuda or not _C.__file__:
        return []
    found = resource_usage(Path(_C.__file__))
    plain = {usage.kernel: usage.kernel for usage in found}
    if demangler := shutil.which("c++filt"):
        done = subprocess.run([demangler, *plain], check=True, capture_output=True, text=True)
        plain = dict(zip(plain, done.stdout.splitlines(), strict=True))
    return sorted(
        (replace(usage, kernel=short_name(usage.kernel, plain[usage.kernel])) for usage in found),
        key=lambda usage: usage.kernel,
    )


def short_name(mangled: str, plain: str) -> str:
    """A CUDA kernel's source file, name and template arguments, without namespaces and parameters."""
    file = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_", mangled)
    function = re.search(r"(\w+(?:<.*>)?)\([^()]*\)$", plain.replace("(anonymous namespace)::", ""))
    name = function[1] if function else plain
    return f"{file[1]}.cu {name}" if file else name


def compile_all() -> list[Usage]:
    """Compiles every Triton kernel for each of its architectures, two at a time."""
    compilations = all_compilations()
    check_distinct(compilations)
    tasks = [(number, capability) for number, c in enumerate(compilations) for capability in c.capabilities]
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), get_context("spawn")) as pool:
        return list(pool.map(compile_for, *zip(*tasks, strict=True)))


def table(usages: Sequence[Usage], launches: dict[str, str]) -> str:
    """A markdown table with a row for each kernel and a column for each architecture.

    `launches`: warps and stages by kernel name.
    """
    cells = {(usage.kernel, usage.capability): usage.cell for usage in usages}
    names = list(dict.fromkeys(usage.kernel for usage in usages))
    lines = ["| kernel | warps, stages | " + " | ".join(f"sm_{c}" for c in SHARED_LIMITS) + " |"]
    lines.append("|---" * (2 + len(SHARED_LIMITS)) + "|")
    for name in names:
        of_name = [cells.get((name, capability), "") for capability in SHARED_LIMITS]
        lines.append(f"| {name} | {launches.get(name, '')} | " + " | ".join(of_name) + " |")
    return "\n".join(lines)


def replace_between_markers(page: str, text: str) -> str:
    """Replaces the text between the two markers of a page. Raises ValueError unless it has both, in order."""
    begin, end = MARKERS
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"expected the lines {begin!r} and {end!r}, in this order")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="put the table into this page instead of printing it"
    )
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 makes interpreted kernels, which do not compile: unset it")
    usages = [*compile_all(), *extension_usage()]
    made = table(usages, {c.name: f"{c.num_warps}, {c.num_stages}" for c in all_compilations()})
    if arguments.write:
        arguments.write.write_text(replace_between_markers(arguments.write.read_text("utf-8"), made), "utf-8")
    else:
        print(made)
    problems = [problem for usage in usages for problem in usage.problems]
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
