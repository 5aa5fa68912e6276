"""Judges in bfloat16, heads of 128 columns: no further from float32 than transformers' plain forward, end to end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.dense import dense_runner
from helpers.ops import on_each_device, skip_what_cannot_run
from helpers.small_models import LABELS, VOCAB, plain, score, tiny_model, tiny_tokenizer
from numpy.typing import NDArray
from scipy.special import logit
from transformers import AutoModelForCausalLM

from gram_fast.judge import PairwiseJudge
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.engine import Engine
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer

SIZES = {
    "cpu": {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2},
    "cuda": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 6},
}
WORDS = "".join(PairTemplate.load("gram").literals).split()


def save_wide_model(folder: Path, heads: tuple[int, int], device: str, **more: Any) -> Any:
    """The checkpoint of a random model in bfloat16 with weights so large that attention matters -> configuration."""
    shape = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": 128}
    std = 1.4 * more["hidden_size"] ** -0.5
    with torch.device(device):  # a GPU draws numbers faster
        model = tiny_model("qwen3", **shape, initializer_range=std, max_position_embeddings=4096, **more)
    model.bfloat16().save_pretrained(folder)
    return model.config


class Plain:
    """The plain forward of a checkpoint in bfloat16, and in float32 with the same weights."""

    def __init__(self, folder: Path, device: str, labels: tuple[int, int]) -> None:
        # Loaded in a dtype, not brought into it: that would round the frequencies of the rotary embedding too.
        self.rounded, self.exact = (
            TransformersRunner(
                AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device), labels, "auto"
            )
            for dtype in (torch.bfloat16, torch.float32)
        )
        self._known: dict[bytes, tuple[float, float]] = {}

    def margins(self, ids: NDArray[np.int32]) -> tuple[float, float]:
        """First logit less second: exact and rounded. Asked for again, it is not computed again."""
        key = ids.tobytes()
        if key not in self._known:
            logits = [runner.plain_logits(torch.from_numpy(ids).long()) for runner in (self.exact, self.rounded)]
            self._known[key] = tuple(float(first - second) for first, second in logits)
        return self._known[key]


def assert_no_further(ours: NDArray[Any], rounded: NDArray[Any], exact: NDArray[Any]) -> None:
    """Of some dozens of rounding errors the mean is luck within a factor of 1.5, the largest within one of 2."""
    error, plain_error = np.abs(ours - exact), np.abs(rounded - exact)
    assert plain_error.mean() < 0.1 * exact.std()  # else wrong answers would hide in the noise
    assert error.mean() <= 1.5 * plain_error.mean()
    assert error.max() <= 2 * plain_error.max()


@pytest.fixture(scope="module")
def plain_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Plain]]:
    """Makes the folder of a judge with so many heads, and its plain forward on a device, once for each."""
    made: dict[tuple[Any, str], tuple[Path, Plain]] = {}

    def make(heads: tuple[int, int], device: str) -> tuple[Path, Plain]:
        if (heads, device) not in made:
            folder, tokenizer = tmp_path_factory.mktemp("wide"), tiny_tokenizer()
            save_wide_model(folder, heads, device, vocab_size=len(tokenizer), **SIZES[device])
            tokenizer.save_pretrained(folder)
            labels = PairTokenizer(tokenizer, PairTemplate.load("gram")).label_ids
            made[heads, device] = folder, Plain(folder, device, labels)
        return made[heads, device]

    return make


@on_each_device
@pytest.mark.parametrize(
    ("runner", "attention"),
    [("dense", "auto"), ("dense", "cascade"), ("transformers", "auto"), ("transformers", "cascade")],
)
@pytest.mark.parametrize("heads", [(4, 2), (8, 2)], ids=["groups of 2", "groups of 4"])
def test_a_knockout_in_several_passes(
    heads: tuple[int, int], runner: str, attention: str, device: str, plain_of: Callable[..., tuple[Path, Plain]]
) -> None:
    if attention != "auto":
        skip_what_cannot_run("tree_attention", attention, device, torch.bfloat16)
    folder, plain_forward = plain_of(heads, device)
    count, longest, budget = (48, 200, 2500) if device == "cuda" else (16, 20, 200)
    rng = np.random.default_rng(1)
    prompt, *responses = (" ".join(rng.choice(WORDS, rng.integers(longest // 4, longest))) for _ in range(count + 1))
    how: dict[str, Any] = {"runner": runner, "attention": attention, "device": device, "dtype": "bfloat16"}
    judge = PairwiseJudge.from_pretrained(folder, max_batch_tokens=budget, **how)
    comparer: Any = judge.comparer
    ranking = judge.rank(prompt, responses, "knockout", "both")
    assert ranking.stats.passes >= 6
    assert comparer.engine.num_slots > budget  # some are kept
    shown = [pair for c in ranking.comparisons for pair in ((c.i, c.j), (c.j, c.i))]
    ours = np.array([[logit(c.p_ab), -logit(c.p_ba)] for c in ranking.comparisons]).ravel()
    whole = comparer.tokenizer.whole_ids([(prompt, responses[a], responses[b]) for a, b in shown])
    exact, rounded = np.array([plain_forward.margins(ids) for ids in whole]).T
    assert_no_further(ours, rounded, exact)


@pytest.fixture(scope="module")
def as_large_as_8b(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Plain]:
    """Two layers of the shape of Qwen3-8B: folder, configuration and plain forward."""
    folder = tmp_path_factory.mktemp("large")
    more = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 2, "vocab_size": VOCAB}
    config = save_wide_model(folder, (32, 8), "cuda", **more)
    return folder, config, Plain(folder, "cuda", LABELS)


@pytest.mark.large_memory
@pytest.mark.parametrize("runner", [pytest.param(name, marks=pytest.mark.gpu) for name in ("dense", "auto", "cascade")])
def test_full_passes_at_the_shape_of_8b(runner: str, as_large_as_8b: tuple[Path, Any, Plain]) -> None:
    """Of 16,384 tokens; "auto" and "cascade" are attention of the transformers runner."""
    folder, config, plain_forward = as_large_as_8b
    tested: Any = (
        dense_runner(folder, config, torch.bfloat16, device="cuda")
        if runner == "dense"
        else TransformersRunner(plain_forward.rounded.model, LABELS, runner)
    )
    rng = np.random.default_rng(2)
    prompt, *responses = (rng.integers(0, VOCAB, n).tolist() for n in (1501, *rng.integers(150, 700, 40) * 2 + 1))
    sequences = [[prompt, response, [number]] for number, response in enumerate(responses)]
    (logits,) = score(Engine(tested, 16384), [1, 2, 3], [sequences])
    exact, rounded = (plain(of, [1, 2, 3], sequences) for of in (plain_forward.exact, plain_forward.rounded))
    assert_no_further(logits, rounded, exact)
