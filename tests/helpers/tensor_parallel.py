"""One process of two: judges with a model that is divided among them, and writes what it found.

python tensor_parallel.py FOLDER..., launched by torch.distributed.run. Every folder has a checkpoint; process
r writes FOLDER/answers-r.json.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed

from gram_fast.judge import PairwiseJudge
from gram_fast.models.named_weights import named_weights

PROMPT = "Which?"
RESPONSES = ["a prompt is", "the response", "the response B", "better", "is better, which"]


def load(folder: str | Path, **options: bool) -> PairwiseJudge:
    """The judge of a folder, quantized where its name ends in "fp8"."""
    quantization = "fp8" if str(folder).endswith("fp8") else None
    return PairwiseJudge.from_pretrained(
        folder, max_batch_tokens=100, device="cpu", quantization=quantization, **options
    )


def answers(judge: PairwiseJudge) -> dict[str, object]:
    """What a judge says, and how large its part of the model is."""
    ranking = judge.rank(PROMPT, RESPONSES, strategy="knockout", seed=3)
    return {
        "order": ranking.order,
        "p": [comparison.p for comparison in ranking.comparisons],
        "budget": judge.comparer.tokens_at_once,
        "numbers": sum(
            weight.numel() for name, weight in named_weights(judge.comparer.runner.model) if name.startswith("layers.")
        ),
        "qkv": list(judge.comparer.runner.model.layers[0].qkv[0].weight.shape),
        "products": judge.comparer.runner.products,
    }


def main(folders: list[str]) -> None:
    """Writes the answers of this process."""
    torch.set_num_threads(1)
    for folder in folders:
        judge = load(folder, tensor_parallel=True)
        rank = distributed.get_rank()
        (Path(folder) / f"answers-{rank}.json").write_text(json.dumps(answers(judge)), "utf-8")
    distributed.barrier()
    # Leave as the interpreter stands: see sharded.py.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
