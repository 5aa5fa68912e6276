"""How fast is a judge whose layers have windows, sinks, experts or a recurrent state, against its plain forward?

    python -m benchmarks.layer_kinds [--kinds NAME ...] [--prompt 256] [--response 128] [--n 4] [--repeats 3]

Models of about the same size with random weights, in float32 on a CPU and bfloat16 on a GPU, read all ordered pairs of
n responses of random tokens behind one prompt:

- tree: the transformers runner, every distinct token once;
- one by one: the model's own plain forward, as transformers chooses it, logits of the last token alone;
- batches: the same of four sequences at once.

The largest difference of a logit is in the row. Each repeat runs all ways in turn; times are medians. Prints a table
and one line of JSON.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.environment import environment
from benchmarks.timing import timed
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.engine import Engine
from gram_fast.text.encoded import EncodedRound

LABELS = (33, 34)
BATCH = 4
_SHAPE: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1152,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
_EXPERTS = {"num_experts_per_tok": 2, "intermediate_size": 576, "num_local_experts": 8}
_HYBRID = ["linear_attention"] * 3 + ["full_attention"]
KINDS: dict[str, Callable[[], Any]] = {
    "full (Qwen3)": lambda: transformers.Qwen3Config(**_SHAPE),
    "windows of 256, 5 of 6 layers (Gemma 3)": lambda: transformers.Gemma3TextConfig(**_SHAPE, sliding_window=256),
    "windows of 128, sinks, experts (gpt-oss)": lambda: transformers.GptOssConfig(
        **{**_SHAPE, **_EXPERTS}, sliding_window=128, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    ),
    "experts (Mixtral)": lambda: transformers.MixtralConfig(**{**_SHAPE, **_EXPERTS}, sliding_window=None),
    "gated delta nets, 3 of 4 layers (Qwen3.5)": lambda: transformers.Qwen3_5TextConfig(
        **_SHAPE, layer_types=_HYBRID * 2, linear_num_value_heads=6, linear_num_key_heads=3,
        linear_key_head_dim=64, linear_value_head_dim=64,
    ),
    "Mamba-2, 3 of 4 layers (Granite 4)": lambda: transformers.GraniteMoeHybridConfig(
        **{**_SHAPE, "num_local_experts": 0, "shared_intermediate_size": 1152},
        layer_types=(["mamba"] * 3 + ["attention"]) * 2, mamba_n_heads=12, mamba_d_head=64, mamba_d_state=64,
    ),
}  # fmt: skip

Way = Callable[[], np.ndarray]


def made(kind: str) -> Any:
    """A model of the kind with random weights, the same in every run, on the GPU where there is one."""
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(KINDS[kind]())
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return model.to(device, dtype).eval().requires_grad_(False)


def tree(engine: Engine, segments: Sequence[np.ndarray], pairs: np.ndarray) -> tuple[np.ndarray, int]:
    """Label logits, float32 [P, 2], of pairs of responses behind the prompt, segment 0, and tokens computed."""
    sequences = np.column_stack([np.zeros(len(pairs), np.int32), pairs + 1]).astype(np.int32)
    with engine.request(np.empty(0, np.int32)) as request:
        request.add(EncodedRound(list(segments), sequences, reusable=2))
        logits = request.score(more_rounds=False)
        return logits, request.stats(0.0).tokens_computed


@torch.inference_mode()
def plain(model: Any, ids_PT: torch.Tensor, size: int) -> np.ndarray:
    """The same by plain forwards of `size` whole sequences."""
    parts = [
        model(input_ids=some.to(model.device), use_cache=False, logits_to_keep=1).logits[:, -1, list(LABELS)]
        for some in torch.split(ids_PT, size)
    ]
    return torch.cat(parts).float().cpu().numpy()


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times all ways on one kind of model -> its row."""
    model, rng = made(kind), np.random.default_rng(0)
    lengths = [options.prompt] + [options.response] * options.n
    segments = [rng.integers(100, 8192, length).astype(np.int32) for length in lengths]
    pairs = np.array(list(permutations(range(options.n), 2)))
    ids_PT = torch.from_numpy(np.stack([np.concatenate([segments[0], *(segments[k + 1] for k in p)]) for p in pairs]))
    engine = Engine(TransformersRunner(model, LABELS, "auto"))
    _, tokens_computed = tree(engine, segments, pairs)  # warms up, too
    ways: dict[str, Way] = {
        "tree": lambda: tree(engine, segments, pairs)[0],
        **{f"batches of {size}": partial(plain, model, ids_PT.long(), size) for size in (1, BATCH)},
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    logits: dict[str, np.ndarray] = {}
    for _ in range(options.repeats):
        for name, way in ways.items():
            spent, logits[name] = timed(way)
            seconds[name].append(spent)
    medians = {name: statistics.median(of_way) for name, of_way in seconds.items()}
    exact = logits["batches of 1"]
    return {
        "kind": kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": int(ids_PT.numel()),
        "tokens_computed": tokens_computed,
        "seconds": medians,
        "times_tree": min(value for name, value in medians.items() if name != "tree") / medians["tree"],
        "largest_difference": float(np.abs(logits["tree"] - exact).max()),
        "largest_logit": float(np.abs(exact).max()),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Renders the rows as Markdown."""
    lines = [
        "| layers | tokens | computed | tree, s | one by one, s | batches, s | times | difference |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        seconds = row["seconds"]
        times = " | ".join(f"{seconds[way]:.2f}" for way in ("tree", "batches of 1", f"batches of {BATCH}"))
        lines.append(
            f"| {row['kind']} | {row['tokens']:,} | {row['tokens_computed']:,} | {times} | {row['times_tree']:.1f} | "
            f"{row['largest_difference']:.0e} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures the kinds that the command line names, and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    for name, default in (("prompt", 256), ("response", 128), ("n", 4), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rows = [measure(kind, options) for kind in options.kinds]
    print(table(rows))
    record = {"benchmark": "layer_kinds", "settings": vars(options), "threads": torch.get_num_threads()}
    print(json.dumps(environment() | record | {"transformers": transformers.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
