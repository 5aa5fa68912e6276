"""Trains a judge on pairs of one's own, in both stages, and compares it with the one that it started from.

python examples/train_a_judge.py [PAIRS.jsonl] [--model CHECKPOINT] [--output my-judge]

The example's pairs differ in style alone: in the chosen response, the answer comes first. A fifth of the pairs is kept
for the comparison. The same by commands, where judge.yaml has the keys of `KEYS` and names of model, data and output:

    gram-fast data check PAIRS.jsonl --model CHECKPOINT
    gram-fast train pretrain judge.yaml
    gram-fast train finetune judge.yaml
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gram_fast
from gram_fast.models.checkpoint import find_template, load_config
from gram_fast.training.config import RunConfig, Stage
from gram_fast.training.data.check import check_data
from gram_fast.training.train import train

PAIRS = Path(__file__).with_name("pairs.jsonl")
KEYS = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "warmup_ratio": 0.1, "save_strategy": "no"}


def main(pairs: Path, model: str, output: Path) -> None:
    """Checks and divides the pairs, runs both stages, and prints what the judge says before and after."""
    template = find_template("auto", load_config(model))
    report = check_data(str(pairs), template=template)
    print(f"{report.rows} pairs, {report.bad.count} bad, {report.contradictions.count} contradictions;", end=" ")
    print(f"in {report.prefers_longer} the longer response is better, in {report.prefers_shorter} the shorter one")

    rows = [json.loads(line) for line in pairs.read_text("utf-8").splitlines()]
    kept, trained = rows[::5], [row for number, row in enumerate(rows) if number % 5]
    output.mkdir(parents=True)
    data = output / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in trained), "utf-8")
    # Stage 1 needs no labels: any pairs of responses will do, and more of them than stage 2 has.
    pretrained = stage("pretrain", model, data, output / "pretrained", num_train_epochs=1)
    finetuned = stage("finetune", pretrained, data, output / "judge", num_train_epochs=3)
    print("before:", told(model, kept))
    print("after: ", told(finetuned, kept))


def stage(name: Stage, start: str, data: Path, output: Path, **keys: Any) -> str:
    """Runs one stage of the training -> the folder of the model."""
    values = {"model_name_or_path": start, "train_data": str(data), "output_dir": str(output), **KEYS, **keys}
    return str(train(name, *RunConfig.parse(values, "train_a_judge.py")))


def told(model: str, rows: list[dict[str, str]]) -> str:
    """What a judge makes of labeled pairs."""
    judge = gram_fast.PairwiseJudge.from_pretrained(model)
    found = judge.compare_many([row["prompt"] for row in rows], [(row["chosen"], row["rejected"]) for row in rows])
    right = sum(c.p > 0.5 for c in found)
    same = sum(((c.p_ab or 0) > 0.5) == ((c.p_ba or 0) > 0.5) for c in found)
    return f"{right} of {len(rows)} right, the same winner in both orders in {same}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, nargs="?", default=PAIRS)
    parser.add_argument("--model", default=gram_fast.SMALL_JUDGE)
    parser.add_argument("--output", type=Path, default=Path("my-judge"), help="a new folder")
    options = parser.parse_args()
    main(options.pairs, options.model, options.output)
