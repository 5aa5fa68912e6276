"""One process of two: trains with TRL on groups of which some straddle the processes, and writes what it saw.

python trl_ranks.py FOLDER, launched by torch.distributed.run.
"""

import json
import os
import sys
from pathlib import Path

import grpo
import policy
import rloo
from torch import distributed

from gram_fast import GramFastError, NumericalError, PairwiseJudge
from gram_fast.integrations.trl import group_reward
from helpers.comparers import LengthComparer
from helpers.rewarded import Recorded, asked, length_judge
from helpers.trl_trainers import tiny_trainer


class RecordedCoroutine(Recorded):
    async def __call__(self, prompts, completions, **columns):
        self.calls.append((prompts, completions, await self.reward(prompts, completions, **columns)))
        return self.calls[-1][-1]


class Failing(LengthComparer):
    def open(self, *arguments, **options):
        if distributed.get_rank() == 1:
            raise NumericalError("no number")
        return super().open(*arguments, **options)


def reference(prompts, trainer):
    if distributed.get_rank() == 1:
        raise ValueError("nobody answers")
    return prompts


def failure_of(reward, trainer) -> str:
    """What a reward function raises for parts of blocks."""
    try:
        reward(["p"] * 3, ["a", "b", "c"], log_metric=trainer._log_metric)
    except (GramFastError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(folder: Path) -> None:
    judges = [length_judge() for _ in range(3)]
    rewards = [
        Recorded(group_reward(judges[0], name="first")),
        # Two that exchange rows and rewards at the same time.
        RecordedCoroutine(group_reward(judges[1], name="second", asynchronous=True)),
        RecordedCoroutine(group_reward(judges[2], name="third", asynchronous=True, reference="reference")),
    ]
    blocks = {"per_device_train_batch_size": 3, "num_generations": 2}
    evaluation = {"per_device_eval_batch_size": 2, "num_generations_eval": 4}
    trainer = tiny_trainer("grpo", folder, rewards, **blocks, **evaluation)
    trainer.train()
    trainer.evaluate()
    trainer.model.train()
    failures = [
        failure_of(reward, trainer)
        for reward in (group_reward(PairwiseJudge(Failing())), group_reward(length_judge(), reference=reference))
    ]
    # Whole blocks in one process alone: the first has p p, and the second q q p. A reward that has not been called.
    prompts, completions = [(["p", "p"], ["a", "bb"]), (["q", "q", "p"], ["ccc", "d", "ee"])][distributed.get_rank()]
    unequal = group_reward(length_judge())(prompts, completions, log_metric=trainer._log_metric)
    toy = policy.make_toy(count=1, steps=2)
    examples = [example.train(toy, steps=1, generations=4, prompts=3)[0] for example in (grpo, rloo)]
    found = {
        "calls": [reward.calls for reward in rewards],
        "asked": [[(prompt, sorted(texts)) for prompt, texts in asked(judge)] for judge in judges],
        "failures": failures,
        "unequal": unequal,
        "examples": [{name: row[name] for name in row if name.startswith("rewards/")} for row in examples],
    }
    (folder / f"{distributed.get_rank()}.json").write_text(json.dumps(found), "utf-8")
    distributed.barrier()
    os._exit(0)  # as in sharded.py


if __name__ == "__main__":
    main(Path(sys.argv[1]))
