#!/usr/bin/env bash
# Runs everything that needs a GPU, in under twenty minutes: builds the extension in place; runs the tests marked gpu, and
# some of them again under compute-sanitizer where it is installed; runs the kernel benchmark; and runs the benchmark from
# text to preferences on two models of random weights (up to 20 GB in TMPDIR for as long as it runs).
#
#   benchmarks/run_gpu.sh OUTDIR [DATA]
#
# Needs the package's requirements, torch among them, and nvcc, cmake, ninja, pybind11, pytest and hypothesis; fetches
# nothing. PYTHON names the interpreter (python3). DATA is what benchmarks/kernel_speed/run.py takes as --data. OUTDIR gets
# the log of every part, the tests as JUnit XML, the measurements as JSON, and a summary. A part that fails or runs out of
# time does not stop the next; the exit code is 1 when one did.
set -uo pipefail

if [[ $# -lt 1 || $# -gt 2 ]]; then
  echo "usage: benchmarks/run_gpu.sh OUTDIR [DATA]" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
data=()
if [[ $# -eq 2 ]]; then data=(--data "$(realpath "$2")"); fi
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

python=$(command -v "${PYTHON:-python3}") || { echo "no ${PYTHON:-python3}" >&2 && exit 2; }
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
# cmake and ninja of a virtual environment stand beside its python.
PATH="$(dirname "$python"):$PATH"
export PATH PYTHONPATH="$PWD" TRITON_CACHE_DIR="$cache/triton" TORCHINDUCTOR_CACHE_DIR="$cache/inductor"
unset TRITON_INTERPRET

failed=0
: >"$out/summary.txt"

# part NAME SECONDS COMMAND...: runs it under its own limit, its output in NAME.log, one line on it in the summary.
part() {
  local name=$1 limit=$2 began=$SECONDS status outcome=ok
  shift 2
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  if [[ $status -eq 124 || $status -eq 137 ]]; then
    outcome="out of time"
  elif [[ $status -ne 0 ]]; then
    outcome="failed ($status)"
  fi
  if [[ $status -ne 0 ]]; then failed=1; fi
  printf '%-14s %-12s %4d s of %3d  %s\n' "$name" "$outcome" $((SECONDS - began)) "$limit" \
    "$(grep . "$out/$name.log" | tail -n 1 | cut -c 1-120)" | tee -a "$out/summary.txt"
}

# Only files with such tests are collected: what others import may be missing here. A test is marked by pytest.mark.gpu or
# by a helper of tests/helpers that does so.
mapfile -t files < <(grep -rlE 'mark\.gpu|on_each_device' --include='test_*.py' tests)
pytest=("$python" -m pytest -m gpu -p no:cacheprovider -q --continue-on-collection-errors)
workers=()
if "$python" -c "import xdist" 2>/dev/null; then workers=(-n "$(nproc | awk '{print ($1 < 8) ? $1 : 8}')"); fi

part build 100 env GRAM_FAST_CUDA=ON "$python" setup.py build_ext --inplace
part tests 150 "${pytest[@]}" "${workers[@]}" --junitxml "$out/tests.xml" "${files[@]}"
if command -v compute-sanitizer >/dev/null; then
  # Without torch's cache every tensor is an allocation of its own: a step beyond it is seen.
  part sanitizer 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9 \
    "${pytest[@]}" -k "test_strides or test_strided_inputs" "${files[@]}"
else
  echo "sanitizer      left out: no compute-sanitizer" | tee -a "$out/summary.txt"
fi
part kernel_speed 160 "$python" -m benchmarks.kernel_speed.run "${data[@]}" --output "$out/kernel_speed.json"
# Less time of its own than the part has: it leaves out what would not end within it, and says so.
scorer=("$python" -m benchmarks.scorer.run)
part scorer-1.7b 240 "${scorer[@]}" --shape qwen3-1.7b --limit 200 --output "$out/scorer-1.7b.json"
part scorer-8b 480 "${scorer[@]}" --shape qwen3-8b --limit 420 --output "$out/scorer-8b.json"

for benchmark in kernel_speed scorer-1.7b scorer-8b; do grep -v '^{' "$out/$benchmark.log"; done
cat "$out/summary.txt"
exit "$failed"
