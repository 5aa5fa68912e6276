"""The judge as a contender of benchmarks/scorer/run.py."""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.parts import forward_stats
from benchmarks.scorer.cases import Answer
from benchmarks.scorer.rivals import TextPair
from benchmarks.scorer.shapes import Workload
from gram_fast import PairwiseJudge
from gram_fast.models.dense.fp8 import fp8_problem
from gram_fast.models.dense.products import product_problem

DENSE, DETERMINISTIC, TRANSFORMERS = "ours, dense", "ours, deterministic", "ours, transformers"
SPLIT, FP8 = "ours, split", "ours, fp8"


def ours_on(device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Lists our contenders there -> options of the judge, by name."""
    can_split = product_problem("split", device, dtype) is None
    has_fp8 = device.type == "cuda" and fp8_problem(device, dtype) is None  # on a CPU it is emulated
    return {
        DENSE: {"runner": "dense"},
        **({FP8: {"runner": "dense", "quantization": "fp8"}} if has_fp8 else {}),
        DETERMINISTIC: {"runner": "dense", "deterministic": True},
        **({SPLIT: {"runner": "dense", "products": "split"}} if can_split else {}),
        TRANSFORMERS: {"runner": "transformers"},
    }


def play(judge: PairwiseJudge, workload: Workload, pairs: Sequence[TextPair], size: int) -> Answer:
    """Runs the judge on a workload. It chooses `pairs` and `size`, the tokens of a pass, itself."""
    prompts, groups = workload.prompts, workload.groups
    if workload.strategy == "rewards":
        references, candidates = [group[0] for group in groups], [group[1:] for group in groups]
        rewards = judge.rewards(prompts, candidates, references)
        found = {
            (prompt, reference, response): 1.0 - reward
            for prompt, reference, texts, values in zip(prompts, references, candidates, rewards, strict=True)
            for response, reward in zip(texts, values, strict=True)
        }
        stats = forward_stats(rewards.stats)
        return Answer(found, stats.tokens_computed, stats)
    if workload.strategy == "unshared":
        compared = judge.compare_many(prompts, groups, workload.orders)
        found = {(prompt, a, b): c.p for prompt, (a, b), c in zip(prompts, groups, compared, strict=True)}
        stats = forward_stats(compared[0].stats)
        return Answer(found, stats.tokens_computed, stats)
    (prompt,), (responses,) = prompts, groups
    ranking = judge.rank(prompt, responses, workload.strategy, workload.orders)
    found = {(prompt, responses[c.i], responses[c.j]): c.p for c in ranking.comparisons}
    stats = forward_stats(ranking.stats)
    return Answer(found, stats.tokens_computed, stats)
