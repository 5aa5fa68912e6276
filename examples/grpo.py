"""GRPO with a pairwise judge: the reward is the win rate in the group, and a fixed reference shows the progress.

python examples/grpo.py [--steps 40] [--picture grpo.png]
torchrun --nproc-per-node 2 examples/grpo.py    # the same over two processes, with a group that straddles them

A win rate is relative to the group: its mean does not say whether the policy learns. Two rewards of weight 0 do, the
probability of being better than a fixed reference, and the share of right answers, which needs no judge.
"""

import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from policy import MAX_TOKENS, Toy, arguments, run, trl_options
from trl import GRPOConfig, GRPOTrainer

import gram_fast
from gram_fast.integrations.trl import group_reward


def train(toy: Toy, steps: int, generations: int = 8, prompts: int = 9) -> list[dict[str, Any]]:
    """Trains the policy -> what TRL logged, a row for each step."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=toy.model,
            processing_class=toy.tokenizer,
            train_dataset=Dataset.from_list(toy.rows),
            reward_funcs=[
                group_reward(gram_fast.SMALL_JUDGE, name="win_rate"),
                group_reward(gram_fast.SMALL_JUDGE, name="over_reference", reference="reference"),
                toy.right,
            ],
            args=GRPOConfig(
                reward_weights=[1.0, 0.0, 0.0],
                num_generations=generations,
                max_completion_length=MAX_TOKENS,
                **trl_options(folder, steps, rows=prompts * generations),
            ),
        )
        trainer.train()
    return [row for row in trainer.state.log_history if "reward" in row]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the three rewards over the steps."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for name, label in (
        ("over_reference", "P(better than a fixed wrong answer), by the judge"),
        ("win_rate", "win rate in the group, the reward of the training"),
        ("right", "share of right answers, without the judge"),
    ):
        axes.plot([row[f"rewards/{name}/mean"] for row in rows], label=label)
    axes.set(xlabel="step", ylabel="mean of the step", ylim=(0, 1))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = arguments(__doc__, steps=40)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    logged = run(train, options.steps)
    if options.picture:
        draw(logged, options.picture)
