"""Products of the dense runner: weights keep their numbers, every product says the same."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.dense import dense_runner, save_in_shards
from helpers.small_models import score, write_judge

from gram_fast import PairwiseJudge, ops
from gram_fast.errors import BackendError
from gram_fast.kernels.split_linear import split_linear_reference
from gram_fast.models.dense.products import PRODUCTS, find_product, product_problem, unpacked
from gram_fast.models.digest import weights_digest
from gram_fast.scoring.engine import Engine
from gram_fast.scoring.processes import Processes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
on_each_product = pytest.mark.parametrize("name", PRODUCTS)


def skip_what_cannot_run(name: str, dtype: torch.dtype = torch.float32) -> None:
    if problem := product_problem(name, CPU, dtype):
        pytest.skip(problem)


@on_each_product
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 12), (96, 40), (130, 257)])
def test_a_prepared_weight_keeps_its_numbers(rows, columns, dtype, name):
    skip_what_cannot_run(name, dtype)
    weight_OD = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    prepare = find_product(name, CPU, dtype).prepare
    assert torch.equal(unpacked(prepare(weight_OD)), weight_OD)
    assert torch.equal(unpacked(prepare(prepare(weight_OD))), weight_OD)


@on_each_product
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 5, 16, 130])
def test_both_functions_multiply(rows, dtype, name, two_threads):
    skip_what_cannot_run(name, dtype)
    generator = torch.Generator().manual_seed(rows)
    sizes = ((rows, 48), (35, 48), (35,))
    x_TD, weight_OD, bias_O = (torch.randn(*size, generator=generator).to(dtype) for size in sizes)
    sizes_TO = x_TD.double().abs() @ weight_OD.double().abs().T + bias_O.double().abs()
    # What three products of bfloat16, or those and the sums of float32, lose.
    bound_TO = (3 * 2.0**-16 if name == "split" else 48 * 2.0**-24) * sizes_TO
    product = find_product(name, CPU, dtype)
    for multiply in (product.multiply, product.multiply_rows):
        for bias in (bias_O, torch.zeros(35, dtype=dtype)):
            exact_TO = torch.nn.functional.linear(x_TD.double(), weight_OD.double(), bias.double())
            out_TO = multiply(x_TD, product.prepare(weight_OD), bias if bias.any() else None)
            assert out_TO.dtype == dtype
            # One rounding of the output, and one of the product before a bias is added.
            roundings_TO = torch.finfo(dtype).eps / 2 * (2 * exact_TO.abs() + bias.double().abs())
            assert ((out_TO.double() - exact_TO).abs() <= 1.01 * (bound_TO + roundings_TO)).all()


@pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 12), (130, 257)])
def test_a_product_is_added_in_place_and_rounded_once(rows, columns, dtype, device, two_threads):
    generator = torch.Generator().manual_seed(rows)
    sizes = ((rows, columns), (rows, 48), (columns, 48))
    residual_TO, x_TD, weight_OD = (torch.randn(*size, generator=generator).to(device, dtype) for size in sizes)
    exact_TO = residual_TO.double() + x_TD.double() @ weight_OD.double().T
    sizes_TO = residual_TO.double().abs() + x_TD.double().abs() @ weight_OD.double().abs().T
    found = find_product("torch", device, dtype).add(residual_TO, x_TD, weight_OD)
    assert found is residual_TO
    roundings_TO = torch.finfo(dtype).eps / 2 * exact_TO.abs()
    assert ((residual_TO.double() - exact_TO).abs() <= 1.01 * (49 * 2.0**-24 * sizes_TO + roundings_TO)).all()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("more", [{}, {"attention_bias": True, "mlp_bias": True}])
def test_who_adds_to_the_residual_stream(more, processes, tmp_path, one_thread, monkeypatch):
    """The product, where it has no bias and no other process holds a part of it; the norm otherwise."""
    config = save_in_shards(tmp_path, "llama", **more).config
    runner, ids = dense_runner(tmp_path, config, products="torch"), torch.arange(3, 40)
    exact = runner.plain_logits(ids)
    monkeypatch.setattr(runner.model, "processes", Processes(0, processes))
    for method in ("sum", "agreed", "least"):
        monkeypatch.setattr(Processes, method, lambda _, part: part)
    product = find_product("torch", CPU, torch.float32)
    operations = runner._operations_on(product.multiply, {}, product.add)
    addends = []

    def norm(residual_TD, x_TD, weight_D, eps):
        addends.append(x_TD)
        return operations.norm(residual_TD, x_TD, weight_D, eps)

    monkeypatch.setattr(runner, "_operations", dataclasses.replace(operations, norm=norm))
    (logits,) = score(Engine(runner, 70), [3], [[[ids[1:].tolist()]]])
    np.testing.assert_allclose(logits[0], exact, rtol=0, atol=1e-4)
    num_added = sum(addend is not None for addend in addends)
    assert num_added == (0 if processes == 1 and not more else len(addends) - 1)


@on_each_product
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_each_other(dtype, name, two_threads):
    skip_what_cannot_run(name, dtype)
    product = find_product(name, CPU, dtype)
    weight = product.prepare(torch.randn(96, 70, generator=torch.Generator().manual_seed(1)).to(dtype))
    assert ops.row_dependence(weight, None, product.multiply_rows) is None


@pytest.mark.parametrize("deterministic", [False, True])
@on_each_product
def test_a_runner_says_the_same_with_every_product(name, deterministic, tmp_path, one_thread):
    """In float32 within 1e-4 of the plain forward; with "split" as near as its three products in plain torch are."""
    skip_what_cannot_run(name)
    config = save_in_shards(tmp_path, "qwen3", attention_bias=True).config
    plain_runner = dense_runner(tmp_path, config, products="torch")
    asked = [[list(range(3, 3 + n)), list(range(50, 50 + n // 2))] for n in (60, 40, 2)]
    ids = [torch.tensor([9, *(token for part in sequence for token in part)]) for sequence in asked]
    exact = torch.stack([plain_runner.plain_logits(row) for row in ids])
    runner = dense_runner(tmp_path, config, products=name, deterministic=deterministic)
    assert runner.products == name
    (logits,) = score(Engine(runner, 70), [9], [asked])
    difference = (torch.from_numpy(logits) - exact).abs().max()
    if name != "split":
        assert difference <= 1e-4
        return
    plain_runner._operations_on = lambda _, backends: type(plain_runner)._operations_on(
        plain_runner, split_linear_reference, backends
    )
    of_reference = torch.stack([plain_runner.plain_logits(row) for row in ids])
    assert difference <= 4 * (of_reference - exact).abs().max()


def test_packed_weights_replace_the_plain_ones(tmp_path):
    skip_what_cannot_run("onednn")
    config = save_in_shards(tmp_path, "qwen2").config
    plain, packed = (dense_runner(tmp_path, config, products=name) for name in ("torch", "onednn"))
    weights = [projection.weight for layer in packed.model.layers for projection in layer.projections]
    assert weights
    assert all(weight.is_mkldnn for weight in weights)
    assert weights_digest(packed.model) == weights_digest(plain.model)
    ids = torch.arange(3, 40)
    assert torch.equal(packed.plain_logits(ids), plain.plain_logits(ids))


def test_which_product_is_chosen(caplog):
    caplog.set_level("INFO")
    assert find_product("auto", CUDA, torch.bfloat16).name == "torch"
    assert "matrix products: torch (cuda, torch.bfloat16)" in caplog.text
    chosen = find_product("auto", CPU, torch.float32)
    assert chosen.name == ("onednn" if product_problem("onednn", CPU, torch.float32) is None else "torch")


def test_what_cannot_run_is_named(tmp_path, monkeypatch):
    assert "runs on the CPU alone" in product_problem("onednn", CUDA, torch.float32)
    assert "takes torch.float32" in product_problem("split", CPU, torch.bfloat16)
    with pytest.raises(BackendError, match="there is no product 'mkl': expected auto or one of split, torch, onednn"):
        PairwiseJudge.from_pretrained("nowhere", products="mkl")
    with pytest.raises(BackendError, match="products='torch' needs runner 'dense', got 'transformers'"):
        PairwiseJudge.from_pretrained("nowhere", products="torch", runner="transformers")
    monkeypatch.setattr("gram_fast.ops.backends._C", type("Without", (), {"has_amx": lambda: False}))
    with pytest.raises(BackendError, match="needs a processor with AMX"):
        PairwiseJudge.from_pretrained(write_judge(tmp_path), device="cpu", products="split")


def test_a_judge_with_a_product_by_name(tmp_path):
    folder = write_judge(tmp_path)
    judges = [PairwiseJudge.from_pretrained(folder, device="cpu", products=name) for name in ("auto", "torch")]
    first, second = (judge.rank("Name a colour.", ["Blue.", "It is blue, mostly.", "Green?"]) for judge in judges)
    assert [c.p for c in first.comparisons] == pytest.approx([c.p for c in second.comparisons], abs=1e-5)
