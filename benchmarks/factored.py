"""What does a round robin cost where each response is read by itself, against exact sharing and padded batches?

    python -m benchmarks.factored [--shape small | --model FOLDER] [--n 8 16 32 64] [--responses 64 200 512]

A judge with random weights, in float32 on a CPU and bfloat16 on a GPU, compares n responses of random tokens with each
other in both orders, behind one prompt. Lengths of responses are drawn from half to one and a half times the number.

- factored: the dense runner; every response is read twice, as A and as B, and every comparison its tail;
- exact: the same runner; B is read after A, what pairs share is computed once;
- padded: transformers' plain forward of batches of pairs sorted by length, the last token's label logits.

Exact and padded read whole rows of the matrix (one response as A, all others as B) while they compute at most
`--most-tokens`, and the time is that of these rows times all tokens over theirs: "share timed" says how many. Each
repeat runs all ways in turn; times are medians. The record also has the growth of the process's peak while a way runs
for the first time, which is less where freed memory is used again. What the factored way reads is compared with plain
forwards that have a dense mask. Prints a table and one line of JSON; `--plot` draws how the times grow.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.environment import environment
from benchmarks.memory import peak_growth
from benchmarks.random_judge import SHAPES, random_model
from benchmarks.timing import timed
from gram_fast.models.dense.runner import DenseRunner
from gram_fast.models.dense.weights import read_dense_model
from gram_fast.scoring.engine import Engine
from gram_fast.text.encoded import EncodedRound

LABELS = (33, 34)
WAYS = ("factored", "exact", "padded")
# Pairs of a padded batch on a CPU, and on a GPU.
_BATCH = {"cpu": 4, "cuda": 16}
# Pairs whose logits are compared with those of a dense mask.
_CHECKED = 4


@dataclass(frozen=True)
class Task:
    """Texts of one round robin, as token ids."""

    prompt: np.ndarray
    responses: list[np.ndarray]
    tail: np.ndarray

    @classmethod
    def drawn(cls, n: int, length: int, prompt: int, tail: int, vocab: int) -> "Task":
        """Draws random tokens, the same in every run."""
        rng = np.random.default_rng(0)

        def some(count: int) -> np.ndarray:
            return rng.integers(100, vocab, count).astype(np.int32)

        lengths = rng.integers(length // 2, length * 3 // 2 + 1, n)
        return cls(some(prompt), [some(int(count)) for count in lengths], some(tail))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each response, int64 [n]."""
        return np.array([len(ids) for ids in self.responses])

    def pairs(self, rows: int) -> np.ndarray:
        """Pairs (A, B) of the first rows of the matrix, int32 [P, 2]."""
        return np.array([(a, b) for a in range(rows) for b in range(len(self.responses)) if a != b], np.int32)

    def exact_tokens(self) -> Any:
        """Tokens that exact sharing computes for each row of the matrix, without the prompt, int64 [n]."""
        n = len(self.responses)
        return np.full(n, self.lengths.sum() + (n - 1) * len(self.tail))

    def padded_tokens(self) -> Any:
        """Tokens of all pairs of each row, padding not counted, int64 [n]."""
        others = len(self.responses) - 1
        return self.exact_tokens() + (others - 1) * self.lengths + others * len(self.prompt)


def rows_within(tokens: Any, most: int) -> int:
    """Rows of the matrix with at most so many tokens, one at least."""
    return max(1, int(np.searchsorted(np.cumsum(tokens), most, side="right")))


def shared(engine: Engine, task: Task, pairs: np.ndarray, is_factored: bool) -> tuple[np.ndarray, int]:
    """Label logits, float32 [P, 2], of pairs by a token tree, and tokens computed."""
    count, zeros = len(task.responses), np.zeros((len(pairs), 1), np.int32)
    tails = np.full((len(pairs), 1), count + 1, np.int32)
    sequences = np.hstack([zeros, pairs + 1, tails])
    with engine.request(np.empty(0, np.int32), is_factored=is_factored) as request:
        request.add(EncodedRound([task.prompt, *task.responses, task.tail], sequences, 2, is_factored))
        logits = request.score(more_rounds=False)
        return logits, request.stats(0.0).tokens_computed


@torch.inference_mode()
def padded(model: Any, task: Task, pairs: np.ndarray) -> np.ndarray:
    """The same by plain forwards of batches, sorted by length, which are padded on the left."""
    rows = [np.concatenate([task.prompt, task.responses[a], task.responses[b], task.tail]) for a, b in pairs]
    order = np.argsort([len(row) for row in rows], kind="stable")
    logits = np.empty((len(rows), 2), np.float32)
    for start in range(0, len(rows), size := _BATCH[model.device.type]):
        some = order[start : start + size]
        longest = max(len(rows[k]) for k in some)
        ids, mask = torch.zeros((len(some), longest), dtype=torch.int64), torch.zeros((len(some), longest))
        for line, k in enumerate(some):
            ids[line, longest - len(rows[k]) :] = torch.from_numpy(rows[k])
            mask[line, longest - len(rows[k]) :] = 1
        out = model(
            input_ids=ids.to(model.device),
            attention_mask=mask.long().to(model.device),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0).long().to(model.device),
            use_cache=False,
            logits_to_keep=1,
        )
        logits[some] = out.logits[:, -1, list(LABELS)].float().cpu().numpy()
    return logits


@torch.inference_mode()
def plain_factored(model: Any, task: Task, pairs: np.ndarray) -> np.ndarray:
    """What the factored way reads, by plain forwards with a dense mask."""
    found = []
    for a, b in pairs:
        parts = [task.prompt, task.responses[a], task.responses[b], task.tail]
        start, middle, end = np.cumsum([len(part) for part in parts[:3]]).tolist()
        ids = torch.from_numpy(np.concatenate(parts)).long().to(model.device)
        is_read = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        is_read[middle:end, start:middle] = False
        positions = torch.arange(len(ids))
        positions[middle:end] -= middle - start
        positions[end:] -= end - start - max(middle - start, end - middle)
        mask = torch.zeros(is_read.shape, dtype=model.dtype).masked_fill(~is_read, torch.finfo(model.dtype).min)
        out = model(
            input_ids=ids[None],
            attention_mask=mask[None, None].to(model.device),
            position_ids=positions[None].to(model.device),
            use_cache=False,
            logits_to_keep=1,
        )
        found.append(out.logits[0, -1, list(LABELS)].float().cpu().numpy())
    return np.array(found)


def measure(model: Any, dense: DenseRunner, n: int, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Times all ways on one round robin -> its row."""
    task = Task.drawn(n, length, options.prompt, options.tail, model.config.vocab_size)
    of_rows = {"exact": task.exact_tokens(), "padded": task.padded_tokens()}
    rows = {name: rows_within(tokens, options.most_tokens) for name, tokens in of_rows.items()}
    share = {name: float(tokens[: rows[name]].sum() / tokens.sum()) for name, tokens in of_rows.items()}
    factored, exact = Engine(dense), Engine(dense)
    ways: dict[str, Callable[[], Any]] = {
        "factored": partial(shared, factored, task, task.pairs(n), True),
        "exact": partial(shared, exact, task, task.pairs(rows["exact"]), False),
        "padded": partial(padded, model, task, task.pairs(rows["padded"])),
    }
    memory = {name: peak_growth(way) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens = 0
    for _ in range(options.repeats):
        for name, way in ways.items():
            spent, found = timed(way)
            seconds[name].append(spent / share.get(name, 1.0))
            if name == "factored":
                tokens = found[1]
    medians = {name: statistics.median(of_way) for name, of_way in seconds.items()}
    checked = task.pairs(n)[:: max(1, n * (n - 1) // _CHECKED)]
    expected, ours = plain_factored(model, task, checked), shared(factored, task, checked, True)[0]
    return {
        "n": n,
        "response": length,
        "comparisons": n * (n - 1),
        "tokens": {
            "factored": tokens,
            **{name: int(tokens.sum()) + len(task.prompt) * (name == "exact") for name, tokens in of_rows.items()},
        },
        "seconds": medians,
        "times_factored": {name: value / medians["factored"] for name, value in medians.items()},
        "share_timed": share,
        "peak_growth_bytes": memory,
        "largest_difference": float(np.abs(ours - expected).max()),
        "largest_logit": float(np.abs(expected).max()),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Renders the rows as Markdown."""
    lines = [
        "| n | tokens a response | comparisons | factored: tokens | s | exact: tokens | s | times | padded: s "
        "| times |",
        "|---:" * 10 + "|",
    ]
    for row in rows:
        seconds, times, tokens = row["seconds"], row["times_factored"], row["tokens"]
        lines.append(
            f"| {row['n']} | {row['response']} | {row['comparisons']:,} | {tokens['factored']:,} "
            f"| {seconds['factored']:.2f} | {tokens['exact']:,} "
            f"| {seconds['exact']:.2f} | {times['exact']:.1f} | {seconds['padded']:.1f} | {times['padded']:.1f} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the seconds of each way over n, a panel a length of responses, into an image file."""
    from matplotlib.figure import Figure

    lengths = list(dict.fromkeys(row["response"] for row in rows))
    figure = Figure(figsize=(4 * len(lengths), 3.6), layout="constrained")
    for axes, length in zip(figure.subplots(1, len(lengths), squeeze=False)[0], lengths, strict=True):
        some = [row for row in rows if row["response"] == length]
        for name in WAYS:
            axes.plot([row["n"] for row in some], [row["seconds"][name] for row in some], marker=".", label=name)
        axes.set(xscale="log", yscale="log", xlabel="candidates", title=f"responses of {length} tokens")
        axes.set_xticks([row["n"] for row in some], [str(row["n"]) for row in some], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("seconds of a round robin")
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


def parser() -> argparse.ArgumentParser:
    """Makes what reads the command line."""
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    found.add_argument("--shape", choices=SHAPES, default="small")
    found.add_argument(
        "--model", type=Path, help="a checkpoint that benchmarks.random_judge wrote, in place of --shape"
    )
    found.add_argument("--n", type=int, nargs="+", default=[8, 16, 32, 64])
    found.add_argument("--responses", type=int, nargs="+", default=[64, 200, 512], help="tokens")
    found.add_argument("--prompt", type=int, default=256, help="tokens before the responses, the head included")
    found.add_argument("--tail", type=int, default=16, help="tokens behind them")
    found.add_argument("--most-tokens", type=int, default=100_000)
    found.add_argument("--repeats", type=int, default=3)
    found.add_argument("--plot", type=Path, help="image file of how the times grow")
    found.add_argument("--output", type=Path, help="file for the JSON line")
    return found


def main() -> None:
    """Measures what the command line asks for."""
    options = parser().parse_args()
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as made:
        folder = options.model or Path(made)
        if options.model is None:
            random_model(SHAPES[options.shape], device, dtype).save_pretrained(folder)
        with device:
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
        model = model.to(device)
        dense = DenseRunner(read_dense_model(str(folder), model.config, LABELS, device, dtype), model.config, "auto")
    rows = []
    for length in options.responses:
        for n in options.n:
            rows.append(measure(model, dense, n, length, options))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if options.plot:
        plot(rows, options.plot)
    settings = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    record = {"benchmark": "factored", "settings": settings, "threads": torch.get_num_threads(), "rows": rows}
    line = json.dumps(environment() | record)
    print(line)
    if options.output:
        options.output.write_text(line + "\n", "utf-8")


if __name__ == "__main__":
    main()
