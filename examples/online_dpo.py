"""OnlineDPO with a pairwise judge: of two completions of a prompt, the one that the judge finds better is chosen.

python examples/online_dpo.py [--steps 60]
"""

import tempfile
from typing import Any

from datasets import Dataset
from policy import MAX_TOKENS, Toy, arguments, run, trl_options
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

import gram_fast
from gram_fast.integrations.trl import group_reward


def train(toy: Toy, steps: int, prompts: int = 27) -> list[dict[str, Any]]:
    """Trains the policy -> what TRL logged, a row for each step."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = OnlineDPOTrainer(
            model=toy.model,
            processing_class=toy.tokenizer,
            train_dataset=Dataset.from_list(toy.rows),
            reward_funcs=group_reward(gram_fast.SMALL_JUDGE),
            args=OnlineDPOConfig(max_new_tokens=MAX_TOKENS, **trl_options(folder, steps, rows=prompts)),
        )
        trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


if __name__ == "__main__":
    run(train, arguments(__doc__, steps=60).parse_args().steps)
