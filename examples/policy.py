"""What the examples of RL share: a tiny policy that is made on the spot, its tasks, and options of TRL.

It answers small tasks, right in about a third of cases. The tasks are of kinds that the small judge knows, and each
can check an answer without a judge.
"""

import argparse
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import gram_fast
from gram_fast.training.small_judge.choice_kinds import first_or_last
from gram_fast.training.small_judge.format_kinds import wrap, wrap_name
from gram_fast.training.small_judge.task import Task
from gram_fast.training.small_judge.tasks import distinct_tasks
from gram_fast.training.small_judge.tokenizer import make_qwen_tokenizer

MAX_TOKENS = 12  # more than any answer has


@dataclass(frozen=True)
class Toy:
    """A policy, its tokenizer and its tasks."""

    model: Qwen3ForCausalLM
    tokenizer: PreTrainedTokenizerFast
    tasks: list[Task]

    @property
    def rows(self) -> list[dict[str, str]]:
        """The data set: prompts, each with a fixed reference, which is a wrong answer."""
        return [{"prompt": task.prompt, "reference": task.wrong[0]} for task in self.tasks]

    def right(self, prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        """A reward function: 1 for a completion that the task's own check finds right, else 0."""
        is_right = {task.prompt: task.is_right for task in self.tasks}
        return [float(is_right[prompt](text)) for prompt, text in zip(prompts, completions, strict=True)]

    def measure(self, judge: gram_fast.PairwiseJudge, samples: int = 16) -> tuple[float, float]:
        """Samples completions -> the share that is right, and the mean P(better than the fixed reference)."""
        prompts = [row["prompt"] for row in self.rows for _ in range(samples)]
        inputs = self.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt").to(self.model.device)
        tokens = self.model.eval().generate(**inputs, do_sample=True, max_new_tokens=MAX_TOKENS)
        texts = self.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        groups = [texts[start : start + samples] for start in range(0, len(texts), samples)]
        references = [row["reference"] for row in self.rows]
        rewards = judge.rewards(prompts[::samples], groups, references, on_error="none")
        found = [reward for group in rewards for reward in group if reward is not None]
        return sum(self.right(prompts, texts)) / len(texts), sum(found) / len(found)


def make_toy(count: int = 9, steps: int = 250, seed: int = 0) -> Toy:
    """Makes `count` tasks of each of three kinds, and a policy that has seen their answers in `steps` batches of 32."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tasks = distinct_tasks((wrap, wrap_name, first_or_last), seed, count)
    # One right answer of each and two or three wrong ones, without the phrases around them.
    answers = [[task.right[0], *task.wrong[:: len(task.right)]] for task in tasks]
    texts = [task.prompt for task in tasks] + [text for some in answers for text in some]
    tokenizer = make_qwen_tokenizer(texts, vocab_size=420)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=16,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        pairs = [(tasks[place].prompt, rng.choice(answers[place])) for place in rng.choices(range(len(tasks)), k=32)]
        torch.autograd.backward(_loss(model, tokenizer, pairs))
        optimizer.step()
        optimizer.zero_grad()
    return Toy(model, tokenizer, tasks)


def trl_options(folder: str, steps: int, rows: int) -> dict[str, Any]:
    """Options that the trainers have in common; `rows` is the number of rows of a step, in all processes together."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": rows // int(os.environ.get("WORLD_SIZE", "1")),
        "learning_rate": 7e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
    }


def arguments(description: str | None, steps: int) -> argparse.ArgumentParser:
    """Arguments that the examples have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps)
    return parser


def run(train: Callable[[Toy, int], list[dict[str, Any]]], steps: int) -> list[dict[str, Any]]:
    """Makes a policy, trains it, and prints what it is worth before and after, once -> what was logged."""
    toy, judge = make_toy(), gram_fast.PairwiseJudge.from_pretrained(gram_fast.SMALL_JUDGE)
    before = toy.measure(judge)
    logged = train(toy, steps)
    for when, (right, over_reference) in (("before", before), ("after", toy.measure(judge))):
        if os.environ.get("RANK", "0") == "0":
            print(f"{when}: {right:.2f} right, {over_reference:.2f} better than the reference")
    return logged


def _loss(model: Any, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """Cross entropy of the answers in pairs of a prompt and an answer."""
    ids, labels = [], []
    for prompt, answer in pairs:
        read, written = tokenizer([prompt, answer + tokenizer.eos_token])["input_ids"]
        ids.append(read + written)
        labels.append([-100] * len(read) + written)
    inputs = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
    width = inputs["input_ids"].shape[1]
    padded = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
    loss: torch.Tensor = model(**inputs, labels=padded).loss
    return loss
