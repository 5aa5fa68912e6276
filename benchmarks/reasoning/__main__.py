"""What do rationales, voting and self-training bring, shown small and whole?

    python -m benchmarks.reasoning [--output FOLDER] [--seeds 3] [--plot docs/reasoning.png]

On generated tasks (gram_fast.training.small_judge), whose rationales a program can check, a language model of 3 M
parameters that knows the tasks becomes a judge of 1,000 labeled pairs

- directly: by the labels alone, read from logits (`train finetune`);
- with rationales of the generator (`train reason`);
- by proving and self-training: a prover that learns from the same rationales (`train prove`) writes those of the labels
  that the judge gives to 20,000 unlabeled pairs, in two rounds (`self-train`).

Each is tested on kinds and wordings of the training, on other wordings and on other kinds, with 1, 4 and 16 votes an
order, by soft and by hard verdicts; of each rationale a program says which of its claims are true. Seeds determine the
pairs and the training of the judges; the language model is one for all. What is in the output folder is not done again.
Prints tables and, last, one JSON line.
"""

import argparse
import json
from pathlib import Path

import transformers

from benchmarks.environment import environment
from benchmarks.reasoning.inputs import LABELED, PRETRAINING, UNLABELED, make_inputs
from benchmarks.reasoning.report import plot, tables
from benchmarks.reasoning.run import ROUNDS, run
from gram_fast.training.small_judge.make import SHAPE


def main() -> None:
    """Runs all seeds and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("reasoning-benchmark"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    make_inputs(options.output, options.seeds)
    results = [result for seed in range(options.seeds) for result in run(options.output, seed)]
    print(tables(results))
    if options.plot:
        plot(results, options.plot)
    record = {
        "benchmark": "reasoning",
        "transformers": transformers.__version__,
        "shape": SHAPE,
        "pairs": {"pretraining": PRETRAINING, "labeled": LABELED, "unlabeled": UNLABELED, "rounds": ROUNDS},
        "results": results,
        "rounds": {
            seed: [
                json.loads((options.output / f"self-{seed}" / f"round-{n}" / "report.json").read_text("utf-8"))
                for n in range(1, ROUNDS + 1)
            ]
            for seed in range(options.seeds)
        },
    }
    print(json.dumps(environment() | record))


if __name__ == "__main__":
    main()
