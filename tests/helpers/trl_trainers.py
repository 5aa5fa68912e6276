"""Tiny trainers of TRL for tests: a random policy, and prompts of which one stands twice in the data."""

from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from helpers.small_models import tiny_model, tiny_tokenizer

PROMPTS = ["one", "two of another length", "one"]


def tiny_trainer(kind: str, folder: Any, rewards: list[Any], *, chat: bool = False, **options: Any) -> Any:
    """A trainer of that kind ("grpo", "rloo", "sdpo" or "dpo") that makes one step, on all prompts at once."""
    rows = [
        {"prompt": [{"role": "user", "content": prompt}] if chat else prompt, "reference": f"not {prompt}"}
        for prompt in PROMPTS
    ]
    tokenizer = tiny_tokenizer()
    # Dropout shows where a policy that is being trained speaks.
    model = tiny_model("qwen3", vocab_size=len(tokenizer), attention_dropout=0.5).requires_grad_(True)
    common = {
        "output_dir": str(folder),
        "max_steps": 1,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    if kind == "dpo":
        args = OnlineDPOConfig(**{**common, "per_device_train_batch_size": 3, "max_new_tokens": 6, **options})
        trainer = OnlineDPOTrainer
    else:
        config, trainer = {
            "grpo": (GRPOConfig, GRPOTrainer),
            "rloo": (RLOOConfig, RLOOTrainer),
            "sdpo": (SDPOConfig, SDPOTrainer),
        }[kind]
        blocks = {"per_device_train_batch_size": 12, "num_generations": 4, "max_completion_length": 6, "beta": 0.0}
        if kind == "sdpo":
            blocks["teacher_model_kind"] = "live"  # a copy would be loaded from the model's folder, which it has not
        args = config(**{**common, **blocks, **options})
    data = Dataset.from_list(rows)
    evaluated = {} if kind == "dpo" else {"eval_dataset": data}
    return trainer(
        model=model, args=args, reward_funcs=rewards, train_dataset=data, processing_class=tokenizer, **evaluated
    )
