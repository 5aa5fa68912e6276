"""vLLM with its prefix cache, as a rival of benchmarks/scorer/run.py: one token is generated, of the two labels.

It runs in a process of its own (benchmarks/scorer/vllm_worker.py), which may have another Python than this one.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.scorer.rivals import Scored, TextPresentations
from benchmarks.timing import timed
from gram_fast.text.tokens import PairTokenizer

WORKER = Path(__file__).with_name("vllm_worker.py")
SIZES = {"cpu": (1024, 2048, 8192), "cuda": (0,)}
"""Most tokens of a pass (max_num_batched_tokens) that vLLM is tried with, by kind of device; 0 for its own default."""
SECONDS_TO_STOP = 30


@dataclass(frozen=True)
class VllmProcess:
    """vLLM with a loaded model; each run starts with an empty prefix cache."""

    questions: IO[str]
    answers: IO[str]
    tokenizer: PairTokenizer

    def score(self, presentations: TextPresentations, size: int) -> Scored:
        """Scores by log-probabilities of the two labels, whose difference is that of the logits. `size` is ignored."""
        prompts = [ids.tolist() for ids in self.tokenizer.whole_ids(presentations)]
        answer = self.ask({"prompts": prompts, "labels": list(self.tokenizer.label_ids)})
        return Scored(torch.tensor(answer["logprobs"]), answer["tokens"])

    def ask(self, line: dict[str, Any]) -> dict[str, Any]:
        """Sends a line and waits for its answer. Raises RuntimeError where the process ends instead."""
        try:
            print(json.dumps(line), file=self.questions, flush=True)
            answer = json.loads(self.answers.readline() or "null")
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise RuntimeError("vLLM's process ended; what it wrote stands above")
        return dict(answer)


@dataclass(frozen=True)
class Vllm:
    """An environment that has vLLM, and the model that it is to run there."""

    python: Path
    """Its interpreter."""
    folder: Path
    """The checkpoint."""
    tokenizer: PairTokenizer
    device: torch.device
    dtype: torch.dtype
    longest: int
    """Tokens of the longest presentation."""

    @contextmanager
    def started(self, size: int) -> Iterator[VllmProcess]:
        """Starts vLLM for passes of `size` tokens, and ends it. It takes most of a GPU: nothing else may be on it.

        Raises RuntimeError where vLLM does not start.
        """
        readable, writable = os.pipe()
        command = [str(self.python), str(WORKER), str(writable)]
        with (
            open(readable, encoding="utf-8") as answers,
            # What it prints joins what it logs: standard output is the benchmark's own.
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=2, text=True, pass_fds=[writable], env=self._environment()
            ) as process,
        ):
            os.close(writable)
            assert process.stdin is not None
            found = VllmProcess(process.stdin, answers, self.tokenizer)
            try:
                found.ask(self._options(size))
                yield found
            finally:
                self._stop(process)

    def seconds_by_size(self, presentations: TextPresentations) -> dict[int, float]:
        """Starts vLLM with each of its sizes -> seconds of the faster of two runs after a first one."""
        found = {}
        for size in SIZES[self.device.type]:
            with self.started(size) as process:
                score = partial(process.score, presentations, size)
                score()
                found[size] = min(timed(score)[0] for _ in range(2))
        return found

    def _options(self, size: int) -> dict[str, Any]:
        """Makes the arguments of vllm.LLM."""
        options: dict[str, Any] = {
            "model": str(self.folder),
            "dtype": str(self.dtype).removeprefix("torch."),
            "enable_prefix_caching": True,
            # Processed: after all but the labels are ruled out, so that the two best are the labels.
            "logprobs_mode": "processed_logprobs",
            "max_model_len": self.longest + 1,
        }
        if size:
            options["max_num_batched_tokens"] = size
        if self.device.type == "cpu":
            # A block is what the prefix cache shares. Its default, 128 tokens, found 30 % fewer of a knockout of 24
            # with texts of 64 tokens, and took 1.4 times the time.
            options |= {"enforce_eager": True, "block_size": 32}
        return options

    def _environment(self) -> dict[str, str]:
        """Makes the process's environment. On a CPU vLLM would leave one core to its scheduler, which is idle here."""
        if self.device.type != "cpu":
            return dict(os.environ)
        cores = sorted(os.sched_getaffinity(0))[: torch.get_num_threads()]
        return os.environ | {
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "OMP_NUM_THREADS": str(len(cores)),
            "VLLM_CPU_KVCACHE_SPACE": "4",
        }

    @staticmethod
    def _stop(process: "subprocess.Popen[str]") -> None:
        """Ends the process, which does so by itself at the end of its input."""
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
