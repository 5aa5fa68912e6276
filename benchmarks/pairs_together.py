"""How much does training save where pairs of one prompt share a batch, and their beginnings are computed once?

    python -m benchmarks.pairs_together --model DIR --data FILE [--stage finetune] [--pairs 1 2 4 8 16] [--timed 8 ...]

Counts the tokens of one epoch in batches of 16 pairs, or of as many as come together, against those of plain batches.
For every number in `--timed`, one step without the optimizer, of one batch of as many pairs of a prompt, is computed
plainly and as a tree, each in a process of its own, from weights in bfloat16: CPU seconds, and the growth of the peak
memory. Ends with one line of JSON.
"""

import argparse
import json
import resource
import time
from multiprocessing import get_context
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks.environment import environment
from gram_fast.models.tokenizer import load_tokenizer
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training import objectives
from gram_fast.training.data import sequences
from gram_fast.training.data.records import read_pair_records
from gram_fast.training.data.sequences import TokenizedPair, collate
from gram_fast.training.packed_attention import PACKED_ATTENTION
from gram_fast.training.sampler import PromptSampler

_BATCH = 16


def main() -> None:
    """Counts and times, prints each as it is known, and ends with the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--stage", choices=("pretrain", "finetune", "scalar"), default="finetune")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--timed", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    template = PairTemplate.load("gram")
    chat = load_tokenizer(arguments.model)
    tokenizer = PairTokenizer(chat, template)
    encode = {
        "pretrain": lambda: sequences.pretrain_encoder(tokenizer, chat),
        "finetune": lambda: sequences.finetune_encoder(tokenizer),
        "scalar": lambda: sequences.scalar_encoder(tokenizer, chat),
    }[arguments.stage]()
    records = read_pair_records(arguments.data, template=template)
    pairs = list(sequences.tokenize_pairs(records, encode, 2048, lambda *_: None))
    plain = sum(len(pair.input_ids) for pair in pairs)
    record: dict[str, Any] = {
        **environment(),
        "stage": arguments.stage,
        "pairs": len(pairs),
        "prompts": len({pair.prompt for pair in pairs}),
        "plain_tokens": plain,
    }
    print(f"{record['pairs']} pairs of {record['prompts']} prompts, {plain} tokens", flush=True)
    record["shared_tokens"] = {}
    for together in arguments.pairs:
        record["shared_tokens"][together] = tokens = count_tokens(pairs, together, max(_BATCH, together))
        print(f"up to {together} together: {tokens} tokens, {tokens / plain:.3f}", flush=True)
    record["steps"] = [
        {
            "pairs": together,
            "shares": shares,
            **timed(arguments.model, arguments.stage, batch_of(pairs, together), shares),
        }
        for together in arguments.timed
        for shares in (False, True)
    ]
    print(json.dumps(record))


def count_tokens(pairs: list[TokenizedPair], together: int, size: int) -> int:
    """Tokens that an epoch computes."""
    order = list(PromptSampler([pair.prompt for pair in pairs], together, size, 0, lambda: 0))
    batches = ([pairs[row] for row in order[first : first + size]] for first in range(0, len(order), size))
    return sum(collate(batch, shares=True)["input_ids"].numel() for batch in batches)


def batch_of(pairs: list[TokenizedPair], count: int) -> list[TokenizedPair]:
    """The first batch of an epoch."""
    order = list(PromptSampler([pair.prompt for pair in pairs], count, count, 0, lambda: 0))
    return [pairs[row] for row in order[:count]]


def timed(model: str, stage: str, batch: list[TokenizedPair], shares: bool) -> dict[str, float]:
    """One step in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        result = pool.apply(step, (model, stage, batch, shares))
    print(f"{len(batch)} pairs, {'as a tree' if shares else 'plain'}: {result}", flush=True)
    return result


def step(name: str, stage: str, batch: list[TokenizedPair], shares: bool) -> dict[str, float]:
    """Forward and backward: tokens, CPU seconds, and by how many MiB the peak memory of the process grows."""
    kind = AutoModelForSequenceClassification if stage == "scalar" else AutoModelForCausalLM
    more = {"num_labels": 1} if stage == "scalar" else {}
    model = kind.from_pretrained(name, dtype=torch.bfloat16, **more)
    model.set_attn_implementation(PACKED_ATTENTION)
    loss = {
        "pretrain": lambda: objectives.language_modelling(model),
        "finetune": lambda: objectives.label_preference(model, (0, 1), 0.1),
        "scalar": lambda: objectives.bradley_terry_loss(model),
    }[stage]()
    objectives.set_objective(model, loss)
    # Once for a few tokens, so that what is set up the first time, gradients among it, is not counted.
    few = TokenizedPair.labelled_at_the_ends([batch[0].input_ids[:4]] * 2, (0, 1))
    model(**collate([few]))["loss"].backward()
    inputs = collate(batch, shares=shares)
    before, started = peak_mib(), time.process_time()
    model(**inputs)["loss"].backward()
    seconds = time.process_time() - started
    return {"tokens": inputs["input_ids"].numel(), "cpu_seconds": round(seconds, 2), "mib": round(peak_mib() - before)}


def peak_mib() -> float:
    """Most memory that the process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
