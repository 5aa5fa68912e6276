"""What the kernel benchmark does without a GPU: forests, counts, masks, rivals on the CPU, tables and records."""

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from helpers.attention import plain_varlen
from helpers.ops import CPU
from rich.console import Console
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.environment import environment, output_of
from benchmarks.kernel_speed import clock as clocks
from benchmarks.kernel_speed import exactness
from benchmarks.kernel_speed import ops as kernel_ops
from benchmarks.kernel_speed import report as reports
from benchmarks.kernel_speed import rivals as rivals
from benchmarks.kernel_speed import run as speed
from benchmarks.kernel_speed import shapes as shapes
from gram_fast import ops
from gram_fast.kernels.compilation import LaunchShape
from gram_fast.kernels.tree_attention import tree_mask

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = shapes.Heads("tiny", 4, 2, 16)
SMALL = {
    "one against all": shapes.one_against_all(5, [7, 3, 9, 6]),
    "round robin": shapes.round_robin(3, [6] * 4),
    "root and leaves": shapes.root_and_leaves(9, [1, 4, 2, 3]),
    "deep": shapes.make_forest(
        "deep",
        np.arange(3, dtype=np.int32),
        [np.arange(n, dtype=np.int32) + 10 * n for n in (2, 5, 3, 4)],
        np.array([[0, 1, 2], [0, 1, 3], [0, 2, 1], [3, 1, 0]], np.int32),
    ),
}
on_each_forest = pytest.mark.parametrize("forest", SMALL.values(), ids=SMALL)


def mask_of(forest: shapes.Forest) -> Tensor:
    return tree_mask(*forest.tables, forest.num_tokens, forest.num_tokens)


def test_forests_are_those_of_the_cost_model() -> None:
    assert shapes.one_against_all(512, [512] * 64).num_tokens == 97_792
    assert shapes.round_robin(512, [512] * 16).num_tokens == 512 + 16 * 512 + 240 * 512


@on_each_forest
def test_scores_keys_and_paths_are_those_of_the_mask(forest: shapes.Forest) -> None:
    mask_TT = mask_of(forest)
    assert forest.num_scores == int(mask_TT.sum())
    assert shapes.attention_flops(forest.num_scores, HEADS) == 4 * 16 * 4 * int(mask_TT.sum())
    for token in range(forest.num_tokens):
        seen = mask_TT[token].nonzero()[:, 0]
        assert torch.equal(exactness.visible_keys(forest.subtree_ends, token), seen)
    for row, path in zip(forest.tree_pass.leaf_rows.tolist(), forest.paths, strict=True):
        assert path.tolist() == mask_TT[row].nonzero()[:, 0].tolist()
    is_read = mask_TT[forest.tree_pass.leaf_rows].any(dim=0)
    assert shapes.leaf_bytes(forest, HEADS) == 2 * 16 * (2 * 2 * int(is_read.sum()) + 2 * 4 * len(forest.paths))


def test_two_levels() -> None:
    assert {name: forest.is_two_level for name, forest in SMALL.items()} == {
        "one against all": False,
        "round robin": False,
        "root and leaves": True,
        "deep": False,
    }


@on_each_forest
@pytest.mark.parametrize("size", [1, 4, 5, 16, 64])
def test_key_blocks_are_those_of_the_mask(forest: shapes.Forest, size: int) -> None:
    length = forest.num_tokens
    blocks = -(-length // size)
    mask_TT = torch.zeros(blocks * size, blocks * size)
    mask_TT[:length, :length] = mask_of(forest)
    counts = mask_TT.view(blocks, size, blocks, size).sum(dim=(1, 3))
    partial_blocks, full_blocks = map(torch.from_numpy, shapes.key_blocks(forest.subtree_ends, size))
    assert torch.equal(full_blocks, counts == size * size)
    assert torch.equal(partial_blocks, (counts > 0) & (counts < size * size))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_mask_of_flex_attention_is_that_of_its_own_maker() -> None:
    forest = shapes.root_and_leaves(300, [5, 200, 1, 130])
    made = rivals.flex_mask(forest, CPU)
    length = forest.num_tokens
    expected = create_block_mask(made.mask_mod, None, None, length, length, "cpu")
    assert made.seq_lengths == expected.seq_lengths
    assert torch.equal(made.to_dense(), expected.to_dense())
    assert torch.equal(made.full_kv_num_blocks, expected.full_kv_num_blocks)
    problem = rivals.random_problem(forest, HEADS, CPU, torch.float32)
    q, k, v = (x.transpose(0, 1)[None] for x in (problem.q, problem.k, problem.v))
    out_1HTE = flex_attention(q, k, v, block_mask=made, scale=problem.scale, enable_gqa=True)
    exact_THE = exactness.exact_rows(problem, range(length))
    assert exactness.error_against(out_1HTE[0].transpose(0, 1), None, exact_THE) < 1e-4


def varlen_on_the_cpu(
    q_XHE: Tensor,
    k_XKE: Tensor,
    v_XKE: Tensor,
    queries: rivals.Lengths,
    keys: rivals.Lengths,
    scale: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    """What the variable-length kernels compute."""
    lengths_q, lengths_k = (lengths.offsets.diff().tolist() for lengths in (queries, keys))
    assert (max(lengths_q), max(lengths_k)) == (queries.longest, keys.longest)
    return plain_varlen(q_XHE, k_XKE, v_XKE, lengths_q, lengths_k, scale, is_causal)


ON_THE_CPU = {
    "ours": rivals.tree_attention,
    "cascade": partial(rivals.cascade, varlen=varlen_on_the_cpu),
    "no sharing": partial(rivals.unshared, varlen=varlen_on_the_cpu),
    "padded": partial(rivals.padded_sdpa, backend=SDPBackend.MATH),
    "dense mask": rivals.masked_sdpa,
}


@on_each_forest
@pytest.mark.parametrize("name", ON_THE_CPU)
def test_rivals_compute_the_same(name: str, forest: shapes.Forest) -> None:
    problem = rivals.random_problem(forest, HEADS, CPU, torch.float32)
    if name == "ours" and (why := ops.backend_problem("tree_attention", "triton", CPU, torch.float32)):
        pytest.skip(why)
    exact_THE = exactness.exact_rows(problem, range(forest.num_tokens))
    run = ON_THE_CPU[name](problem)
    out_XHE = run.flatten(run.launch())
    assert out_XHE.shape[1:] == exact_THE.shape[1:]
    assert exactness.error_against(out_XHE, run.rows, exact_THE, chunk=7) < 1e-4
    if run.rows is not None:
        assert set(run.rows.tolist()) - {-1} == set(range(forest.num_tokens))


def test_heads_are_repeated_where_grouped_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = torch.nn.functional.scaled_dot_product_attention

    def without_groups(*tensors: Tensor, enable_gqa: bool, **options: object) -> Tensor:
        if enable_gqa:
            raise RuntimeError("no kernel")
        return attend(*tensors, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", without_groups)
    problem = rivals.random_problem(SMALL["deep"], HEADS, CPU, torch.float32)
    run = rivals.padded_sdpa(problem, SDPBackend.MATH)
    exact_THE = exactness.exact_rows(problem, range(len(problem.q)))
    assert exactness.error_against(run.flatten(run.launch()), run.rows, exact_THE) < 1e-4


def test_what_counts_as_right() -> None:
    problem = rivals.random_problem(shapes.root_and_leaves(2000, [300, 200]), HEADS, CPU, torch.float32)
    tokens = exactness.sample_of(2500)
    assert len(tokens) == exactness.SAMPLE
    assert {0, 2499} <= set(tokens)
    exact = exactness.exact_rows(problem, tokens)
    halves = rivals.Problem(problem.forest, HEADS, problem.q.bfloat16(), problem.k.bfloat16(), problem.v.bfloat16())
    exact_of_halves = exactness.exact_rows(halves, tokens)
    assert exactness.is_right(exactness.row_error(exact_of_halves.bfloat16(), exact_of_halves))
    assert not exactness.is_right(exactness.row_error(exact.where(exact == exact.max(), float("nan")), exact))
    # One key too few.
    blind = rivals.Problem(problem.forest, HEADS, problem.q, problem.k.clone(), problem.v)
    blind.k[700] = 0.0
    assert not exactness.is_right(exactness.row_error(exactness.exact_rows(blind, tokens), exact))
    assert not exactness.is_right(exactness.error_against(exact, None, exact[1:]))


def test_memory_is_asked_for_before_it_is_taken() -> None:
    problem = rivals.random_problem(SMALL["deep"], HEADS, CPU, torch.float32)
    with pytest.raises(RuntimeError, match="needs 2048 GiB"):
        rivals.needs_memory(problem, 2**41)


@pytest.mark.parametrize("case", kernel_ops.op_cases(HEADS, 64, 96, 5), ids=lambda case: case.op)
def test_ops_run_and_count_their_bytes(case: kernel_ops.OpCase) -> None:
    case.prepare(CPU, torch.float32)("reference")
    case.prepare(CPU, torch.bfloat16)("reference")
    expected = {
        "merge_states": 5 * 4 * (16 * 10 + 12),
        "label_logits": 5 * 64 * 2 + 3 * 64 * 2 + 5 * 16,
        "add_rms_norm": 4 * 5 * 64 * 2 + 64 * 2,
        "rotary_into_cache": 2 * 5 * 8 * 16 * 2 + 2 * 5 * 8 * 4 + 2 * 16 * 2,
        "swiglu": 5 * 3 * 96 * 2,
        "quantize_rows": 5 * (3 * 64 + 4),
        "add_rms_norm_fp8": 5 * (7 * 64 + 4) + 64 * 2,
        "swiglu_fp8": 5 * (5 * 96 + 4),
    }
    assert case.num_bytes == expected[case.op]


def test_large_shapes_are_larger_than_a_cache() -> None:
    large = kernel_ops.op_cases(shapes.heads_of("qwen3-8b"), 4096, 12288, 16384)
    assert all(case.num_bytes > 64e6 for case in large)
    attention = {"tree_attention", "tree_attention_backward", "leaf_attention", "path_attention"}
    bound_by_products = attention | {"invariant_linear", "split_linear"}
    assert {case.op for case in large} | bound_by_products == set(ops.BACKENDS)


def test_real_responses_make_one_pass(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    row = {"prompt": "Name a city.", "responses": ["Paris.", "It is Paris, on the Seine.", "Lyon."]}
    data.write_text(json.dumps(row), "utf-8")
    forest = shapes.real_round_robin(data, 3)
    assert len(forest.paths) == 6
    assert forest.num_tokens < sum(map(len, forest.paths))
    assert "3, responses of rows.jsonl" in forest.name


ROWS = [
    {"op": "tree_attention", "name": reports.OURS, "seconds": 0.004, "tflops": 400.0, "error": 0.001},
    {"op": "tree_attention", "name": "slow", "seconds": 0.01, "tflops": 160.0, "error": 0.002},
    {"op": "tree_attention", "name": "gone", "problem": "ModuleNotFoundError: No module named 'gone'"},
    {"op": "swiglu", "name": "triton", "bytes": 10, "seconds": 1e-5, "gbytes": 1500.0},
]


def test_the_report_prints_and_keeps_everything(tmp_path: Path) -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    report = reports.Report({"ceilings": {"tflops": 800.0, "gbytes": 3000.0}}, tmp_path / "out.json", console)
    report.add("shape", ROWS)
    text = console.export_text()
    for words in ("4,000.0", "400", "50%", "2.50", "1.0e-03", "No module named 'gone'", "1,500"):
        assert words in text
    assert report.failed == []
    report.add("other", [speed.problem_row("swiglu", "triton", reports.FAILED + "boom")])
    assert report.failed == ["swiglu (triton)"]
    assert report.headlines == ["shape: ours 400 TFLOP/s, 50% of the ceiling; the best rival takes 2.50 times as long"]
    kept = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert kept == json.loads(json.dumps(report.record))
    assert [row["shape"] for row in kept["rows"]] == ["shape"] * 4 + ["other"]


class OneSecond:
    """Launches once and says that it took a second."""

    def seconds(self, launch: Callable[[], object]) -> float:
        launch()
        return 1.0


def test_attention_is_measured_and_a_rival_that_differs_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = rivals.random_problem(SMALL["deep"], HEADS, CPU, torch.float32)

    def wrong(problem: rivals.Problem) -> rivals.Prepared:
        run = ON_THE_CPU["cascade"](problem)
        return rivals.Prepared(lambda: run.launch() * 1.02, run.flatten)

    monkeypatch.setattr(speed, "tree_attention", ON_THE_CPU["cascade"])
    monkeypatch.setattr(speed, "RIVALS", {"right": ON_THE_CPU["no sharing"], "wrong": wrong, "gone": fails})
    (ours,) = speed.measure_ours(problem, OneSecond(), [])
    right, differs, gone = speed.measure_rivals(problem, OneSecond(), ["right", "wrong", "gone"])
    flops = shapes.attention_flops(problem.forest.num_scores, HEADS)
    assert ours["name"] == reports.OURS
    assert ours["tflops"] == right["tflops"] == flops / 1e12
    assert differs["problem"] == "differs from ours, row error 0.02"
    assert gone["problem"] == "out of luck and a page of details"
    monkeypatch.setattr(speed, "tree_attention", wrong)
    (failed,) = speed.measure_ours(problem, OneSecond(), [])
    assert failed["problem"] == f"{reports.FAILED}row error 0.02"


def test_other_launch_shapes_are_measured_and_one_that_cannot_run_is_a_failure() -> None:
    problem = rivals.random_problem(SMALL["deep"], HEADS, CPU, torch.float16)
    if why := ops.backend_problem("tree_attention", "triton", CPU, torch.float16):
        pytest.skip(why)
    ours, good, bad = speed.measure_ours(problem, OneSecond(), [LaunchShape(32, 16, 4, 2), LaunchShape(48, 16, 4, 2)])
    assert [row["name"] for row in (ours, good, bad)] == ["ours", "ours, 32x16x4x2", "ours, 48x16x4x2"]
    assert good["error"] < exactness.TOLERANCE
    assert bad["problem"].startswith(reports.FAILED)


def test_a_backend_that_cannot_run_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals.ops, "resolve_backend", fails)
    problem = rivals.random_problem(SMALL["deep"], HEADS, CPU, torch.float32)
    (failed,) = speed.measure_ours(problem, OneSecond(), [])
    assert failed["problem"] == f"{reports.FAILED}out of luck and a page of details"


def test_leaf_attention_is_measured() -> None:
    problem = rivals.random_problem(SMALL["round robin"], HEADS, CPU, torch.float32)
    rows = {row["name"]: row for row in speed.measure_leaves(problem, OneSecond())}
    assert set(rows) == {"extension", "triton"}
    assert rows["extension"]["gbytes"] == shapes.leaf_bytes(problem.forest, HEADS) / 1e9
    assert rows["extension"]["error"] < 1e-5


def test_ops_are_measured() -> None:
    for case in kernel_ops.op_cases(HEADS, 64, 96, 5):
        rows = speed.measure_op(case, CPU, torch.float32, OneSecond())
        assert [row["name"] for row in rows] == list(reversed(ops.BACKENDS[case.op]))
        assert rows[-1]["gbytes"] == case.num_bytes / 1e9


def test_backends_for_the_cpu_alone_are_not_measured_on_a_gpu() -> None:
    assert speed.backends_on("swiglu", CPU) == ["extension", "triton", "reference"]
    assert speed.backends_on("swiglu", torch.device("cuda")) == ["triton", "reference"]
    for op in ops.BACKENDS:
        for name in speed.backends_on(op, torch.device("cuda")):
            assert "on the CPU alone" not in (ops.backend_problem(op, name, torch.device("cuda"), torch.bfloat16) or "")


def test_no_rival_no_ratio() -> None:
    assert reports.best_rival(ROWS[:1]) is None
    assert reports.best_rival(ROWS[1:]) is None
    assert reports.best_rival([]) is None


def fails(*arguments: object) -> NoReturn:
    raise RuntimeError("out of luck\nand a page of details")


def test_what_fails_is_a_sentence() -> None:
    assert speed.guarded("op", "name", fails)["problem"] == "out of luck and a page of details"
    assert speed.guarded("op", "name", fails, reports.FAILED)["problem"].startswith(reports.FAILED)


def test_repeats_fill_a_quarter_of_a_second() -> None:
    assert [clocks.repeats_for(seconds) for seconds in (1e-6, 0.01, 3.0)] == [100, 25, 5]


def test_the_record_names_the_machine() -> None:
    record = json.loads(json.dumps(environment()))
    assert {"device", "driver", "torch", "triton", "commit", "gram_fast"} <= set(record)
    assert output_of("no-such-command") == "unknown"
    assert output_of("false") == "unknown"
