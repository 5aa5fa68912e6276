"""deterministic=True: a pair's logits have the same bits whatever else is asked, in any order, under any budget."""

import importlib
import itertools

import numpy as np
import pytest
import torch
from helpers.dense import dense_runner, save_in_shards
from helpers.ops import on_each_device
from helpers.small_models import VOCAB, plain, score, write_judge

from gram_fast.errors import BackendError, InputError, UnsupportedModelError
from gram_fast.judge import PairwiseJudge
from gram_fast.kernels.invariant_linear import invariant_linear_reference
from gram_fast.models.dense.weights import FAMILIES
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.engine import Engine

Sequences = list[list[list[int]]]


def sequences(seed: int, count: int) -> Sequences:
    """A few beginnings and many ends, some of which begin alike: nodes split where others part from them."""
    rng = np.random.default_rng(seed)
    firsts = [rng.integers(0, VOCAB, n).tolist() for n in (70, 3, 141)]
    ends = [rng.integers(0, VOCAB, n).tolist() for n in (1, 40, 150, 17, 8)]
    ends += [[*end[: len(end) // 2], 5, *end[len(end) // 2 :]] for end in ends]
    return [[firsts[a], ends[b]] for a, b in rng.permutation(list(itertools.product(range(3), range(10))))[:count]]


def logits_of(
    runner,
    asked: Sequences,
    budget: int = 1024,
    in_calls_of: int | None = None,
    token_ids: tuple[int, ...] | None = None,
) -> dict[str, bytes]:
    """Bits of the two logits, or of the log probabilities of tokens, by sequence."""
    engine, found = Engine(runner, budget), {}
    for first in range(0, len(asked), in_calls_of or len(asked)):
        part = asked[first : first + (in_calls_of or len(asked))]
        (logits,) = score(engine, [9, 2], [part], token_ids=token_ids)
        found |= {str(sequence): row.tobytes() for sequence, row in zip(part, logits, strict=True)}
    return found


def check_repeatable(runner, seed: int, count: int) -> None:
    asked = sequences(seed, count)
    alone = logits_of(runner, asked, in_calls_of=1)
    rng = np.random.default_rng(seed)
    assert logits_of(runner, asked) == alone
    for budget in (7, 64, 129, 333):
        shuffled = [asked[k] for k in rng.permutation(len(asked))]
        assert logits_of(runner, shuffled, budget) == alone
        assert logits_of(runner, shuffled, budget, in_calls_of=3) == alone


@on_each_device
@pytest.mark.parametrize("family", FAMILIES)
def test_shuffled_split_and_under_any_budget(family, device, tmp_path, one_thread):
    model = save_in_shards(tmp_path, family)
    runner = dense_runner(tmp_path, model.config, device=device, deterministic=True)
    check_repeatable(runner, 1, 12)
    asked = sequences(1, 12)
    (logits,) = score(Engine(runner, 100), [9, 2], [asked])
    expected = plain(TransformersRunner(model, (5, 7), "auto"), [9, 2], asked)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@on_each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_of_tokens(dtype, device, tmp_path, one_thread):
    model = save_in_shards(tmp_path, "qwen3")
    runner, tokens = dense_runner(tmp_path, model.config, dtype, device=device, deterministic=True), (3, 1, 8)
    asked = sequences(3, 12)
    alone = logits_of(runner, asked, in_calls_of=1, token_ids=tokens)
    assert logits_of(runner, asked, token_ids=tokens) == alone
    assert logits_of(runner, asked[::-1], 64, in_calls_of=5, token_ids=tokens) == alone


@on_each_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype, device, tmp_path, one_thread):
    model = save_in_shards(tmp_path, "qwen3")
    check_repeatable(dense_runner(tmp_path, model.config, dtype, device=device, deterministic=True), 2, 8)


def test_two_threads(tmp_path, two_threads):
    """Sizes at which torch divides products and elementwise operations among threads."""
    more = {"hidden_size": 320, "intermediate_size": 1000, "head_dim": 40, "num_attention_heads": 6}
    model = save_in_shards(tmp_path, "qwen3", **more)
    check_repeatable(dense_runner(tmp_path, model.config, deterministic=True), 3, 4)


def test_without_it_bits_do_change(tmp_path, one_thread):
    """What the option is for: the same check, on the same model, fails."""
    model = save_in_shards(tmp_path, "qwen3")
    with pytest.raises(AssertionError):
        check_repeatable(dense_runner(tmp_path, model.config), 1, 12)


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
def test_a_larger_model_on_a_gpu(dtype, tmp_path):
    more = {"hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128, "num_attention_heads": 8}
    model = save_in_shards(tmp_path, "qwen3", **more)
    check_repeatable(dense_runner(tmp_path, model.config, dtype, device="cuda", deterministic=True), 4, 12)


def test_rounds_that_keep_keys_and_values(tmp_path, one_thread):
    model = save_in_shards(tmp_path, "qwen3")
    runner = dense_runner(tmp_path, model.config, deterministic=True)
    asked = sequences(5, 9)
    alone = logits_of(runner, asked, in_calls_of=1)
    rounds = [asked[:2], asked[2:3], asked[3:]]
    for logits, part in zip(score(Engine(runner, 50), [9, 2], rounds, reusable=1), rounds, strict=True):
        assert [row.tobytes() for row in logits] == [alone[str(sequence)] for sequence in part]


def test_a_judge_gives_a_pair_the_same_bits_in_any_company(tmp_path, one_thread):
    judge = PairwiseJudge.from_pretrained(write_judge(tmp_path), deterministic=True)
    assert judge.comparer.runner.attention == "path"
    responses = ["a prompt is", "the response", "the response B", "better", "is better, which"]
    alone = {
        (i, j): judge.compare("Which?", responses[i], responses[j]).p for i, j in itertools.combinations(range(5), 2)
    }
    ranking = judge.rank("Which?", responses)
    assert {(c.i, c.j): c.p for c in ranking.comparisons} == alone
    budgeted = PairwiseJudge.from_pretrained(tmp_path, deterministic=True, max_batch_tokens=77)
    assert budgeted.rank("Which?", responses).scores == ranking.scores
    backwards = judge.rank("Which?", responses[::-1], orders="both")
    assert {(4 - c.j, 4 - c.i): 1 - c.p for c in backwards.comparisons} == pytest.approx(alone, abs=1e-15)


def test_a_window_limits_the_length_and_other_kinds_of_layers_are_refused(tmp_path, one_thread):
    folder = write_judge(tmp_path / "windows", "mistral", sliding_window=900)
    judge = PairwiseJudge.from_pretrained(folder, dtype="float32", device="cpu", deterministic=True)
    runner = judge.comparer.runner
    assert (runner.max_length, runner.max_length_reason) == (900, "its sliding window; beyond, attention is not plain")
    with pytest.raises(InputError, match=r"900 .*its sliding window; beyond, attention is not plain"):
        judge.compare("word " * 900, "Blue.", "Red.")
    folder = write_judge(tmp_path / "caps", "gemma2")
    with pytest.raises(UnsupportedModelError, match=r"runner 'dense' cannot run .* model type 'gemma2' is none of"):
        PairwiseJudge.from_pretrained(folder, dtype="float32", device="cpu", deterministic=True)


def test_what_cannot_be_had_is_refused(tmp_path, monkeypatch):
    write_judge(tmp_path)
    with pytest.raises(BackendError, match="deterministic=True needs runner 'dense'"):
        PairwiseJudge.from_pretrained("nowhere", deterministic=True, runner="transformers")
    with pytest.raises(BackendError, match="deterministic=True has attention of its own: expected attention 'auto'"):
        PairwiseJudge.from_pretrained(tmp_path, deterministic=True, attention="cascade")
    other = write_judge(tmp_path / "other", "gpt_neox")
    with pytest.raises(UnsupportedModelError, match=r"runner 'dense' cannot run .*'gpt_neox' is none of"):
        PairwiseJudge.from_pretrained(other, deterministic=True)

    def by_place(x_TD, weight_OD, bias_O):
        return invariant_linear_reference(x_TD, weight_OD, bias_O) + torch.arange(len(x_TD))[:, None]

    module = importlib.import_module("gram_fast.ops.invariant_linear")
    monkeypatch.setattr(module, "invariant_linear_reference", by_place)
    with pytest.raises(BackendError, match=r"with a weight \[.*\] in torch.float32 gives a row bits that depend"):
        PairwiseJudge.from_pretrained(tmp_path, deterministic=True, products="torch")
