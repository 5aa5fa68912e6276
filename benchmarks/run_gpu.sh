#!/usr/bin/env bash
# Runs everything that needs a GPU, for machines that have one for minutes: ends within ten minutes, with the speed of
# kernels and judges after at most 440 s.
#
#   benchmarks/run_gpu.sh OUTDIR                     all stages but those by --again alone
#   benchmarks/run_gpu.sh OUTDIR --again STAGE ...   single stages, within four minutes in all
#   benchmarks/run_gpu.sh OUTDIR --dry-run           all stages, tiny and on the CPU
#
# The stages, in benchmarks/gpu/stages.py with their limits:
#   build         the extension for sm_90, in place; beside it random judges of the sizes of Qwen3-1.7B and 8B (17 GB)
#   canary        every op at real sizes against its reference, a tiny judge; where tree attention is wrong, all ends here
#   kernels       benchmarks.kernel_speed on one forest, with the heads of Qwen3-8B, in four launch shapes
#   scorer-1.7b   benchmarks.scorer: 64 responses, from text to preferences, beside all rivals
#   scorer-8b     the same on the larger model
#   tests         every test marked gpu but those marked large_memory
#   tests-large   those, one after the other
#   factored      benchmarks.factored on the larger model: every response read by itself; by --again alone
#   sanitizer     tests of strides under compute-sanitizer; by --again alone
#
# What a stage leaves of its limit is the next one's. OUTDIR gets results.tar.gz, written anew after every stage: logs,
# measurements as JSON, and a summary with a line a stage, which is also printed. The exit code is 1 when one failed.
#
# Needs torch and the package's other requirements, nvcc, cmake, ninja, pybind11, pytest and hypothesis; fetches nothing.
# PYTHON names the interpreter (python3), COMMIT what is measured where the tree has no history. Judges and what
# compilers cache stay in build/gpu, for the next call.
set -euo pipefail
PYTHONPATH=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..") exec "${PYTHON:-python3}" -m benchmarks.gpu.run "$@"
