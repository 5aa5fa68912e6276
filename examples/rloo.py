"""RLOO with a pairwise judge: the reward is the probability of being better than what the policy says greedily.

python examples/rloo.py [--steps 40]

The reference moves with the policy, as the baseline of ReMax does, so no answers have to be written before. A reward of
one half is as good as the greedy answer.
"""

import tempfile
from typing import Any

from datasets import Dataset
from policy import MAX_TOKENS, Toy, arguments, run, trl_options
from trl import RLOOConfig, RLOOTrainer

import gram_fast
from gram_fast.integrations.trl import greedy_completions, group_reward


def train(toy: Toy, steps: int, generations: int = 8, prompts: int = 9) -> list[dict[str, Any]]:
    """Trains the policy -> what TRL logged, a row for each step."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = RLOOTrainer(
            model=toy.model,
            processing_class=toy.tokenizer,
            train_dataset=Dataset.from_list(toy.rows),
            reward_funcs=[
                group_reward(gram_fast.SMALL_JUDGE, name="over_greedy", reference=greedy_completions),
                toy.right,
            ],
            args=RLOOConfig(
                reward_weights=[1.0, 0.0],
                num_generations=generations,
                max_completion_length=MAX_TOKENS,
                beta=0.0,
                **trl_options(folder, steps, rows=prompts * generations),
            ),
        )
        trainer.train()
    return [row for row in trainer.state.log_history if "reward" in row]


if __name__ == "__main__":
    run(train, arguments(__doc__, steps=40).parse_args().steps)
