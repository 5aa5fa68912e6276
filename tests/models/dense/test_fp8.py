"""FP8: products of quantized models, and checkpoints whose weights are stored as FP8."""

import math

import pytest
import torch
from helpers.dense import dense_runner, save_in_shards
from helpers.small_models import LABELS, score, write_judge
from safetensors.torch import load_file, save_file
from torch import Tensor

import gram_fast
from gram_fast import PairwiseJudge, ops
from gram_fast.errors import BackendError, NumericalError, UnsupportedModelError
from gram_fast.models.dense.fp8 import (
    Fp8Activations,
    Fp8Weight,
    fp8_linear,
    fp8_linear_reference,
    fp8_problem,
    width_problem,
)
from gram_fast.models.dense.products import fp8_product
from gram_fast.models.dense.weights import read_dense_model
from gram_fast.models.digest import weights_digest
from gram_fast.scoring.engine import Engine
from gram_fast.scoring.processes import Processes

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
IDS = torch.arange(3, 70)


def random_product(
    rows: int, width: int, outputs: int, device: torch.device = CPU, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Fp8Weight, Tensor]:
    """Activations with some large columns, as models have them, a weight and a bias."""
    generator = torch.Generator(device).manual_seed(rows)
    x_TD = torch.randn((rows, width), generator=generator, device=device)
    x_TD[:, :: max(1, width // 3)] *= 30
    weight_OD = torch.randn((outputs, width), generator=generator, device=device) * width**-0.5
    weight = Fp8Weight.empty(outputs, width, device)
    weight.copy_(weight_OD)
    return x_TD.to(dtype), weight, torch.randn(outputs, generator=generator, device=device).to(dtype)


def numbers(weight: Fp8Weight) -> Tensor:
    return weight.values_OD.double() * weight.scales_O1.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_the_emulation_sums_products_of_float8_numbers(rows, dtype):
    x_TD, weight, bias_O = random_product(rows, 48, 35, dtype=dtype)
    values_TD, scales_T1 = ops.quantize_rows(x_TD, backend="reference")
    product = fp8_product(CPU, dtype)
    for bias in (bias_O, None):
        exact_TO = (values_TD.double() * scales_T1.double()) @ numbers(weight).T
        sizes_TO = (values_TD.double() * scales_T1.double()).abs() @ numbers(weight).abs().T
        exact_TO = exact_TO + (0 if bias is None else bias.double())
        out_TO = product.multiply(x_TD, product.prepare(weight), bias)
        assert out_TO.dtype == dtype
        # Sums of float32, its two factors and a bias; one rounding to the dtype.
        bound_TO = 52 * 2.0**-24 * (sizes_TO + exact_TO.abs()) + torch.finfo(dtype).eps / 2 * exact_TO.abs()
        assert ((out_TO.double() - exact_TO).abs() <= 1.01 * bound_TO).all()
        assert torch.equal(product.plain(x_TD, weight, bias), out_TO)


def test_a_product_errs_by_roundings_of_float8():
    """Each factor of a term by 2**-4 of it at most; in the mean by 2**-4 / sqrt(3), together by sqrt(2) of that."""
    x_TD, weight, _ = random_product(64, 256, 96, dtype=torch.float32)
    weight_OD = torch.randn(96, 256, generator=torch.Generator().manual_seed(5))
    weight.copy_(weight_OD)
    exact_TO = x_TD.double() @ weight_OD.double().T
    error_TO = fp8_linear_reference(x_TD, weight, None).double() - exact_TO
    bound_TO = 2 * 2.0**-4 * (x_TD.double().abs() @ weight_OD.double().abs().T)
    assert (error_TO.abs() <= 1.1 * bound_TO).all()
    assert 0.01 < error_TO.square().mean().sqrt() / exact_TO.square().mean().sqrt() <= math.sqrt(2 / 3) * 2.0**-4


def test_what_an_op_has_quantized_is_multiplied_as_it_is():
    x_TD, weight, bias_O = random_product(7, 48, 35)
    product = fp8_product(CPU, torch.bfloat16)
    expected_TO = product.multiply(x_TD, weight, bias_O)
    quantized = Fp8Activations(*ops.quantize_rows(x_TD, backend="reference"))
    assert torch.equal(product.multiply(quantized, weight, bias_O), expected_TO)
    rows_L = torch.tensor([6, 0])
    assert torch.equal(product.multiply(quantized[rows_L], weight, bias_O), expected_TO[rows_L])


def test_a_weight_is_quantized_where_it_stands():
    weight = Fp8Weight.empty(6, 32, CPU)
    parts = [torch.randn(rows, 32, generator=torch.Generator().manual_seed(rows)) for rows in (1, 2, 3)]
    for place, part in zip(weight.split([1, 2, 3]), parts, strict=True):
        place.copy_(part)
    values_OD, scales_O1 = ops.quantize_rows(torch.cat(parts), backend="reference")
    assert torch.equal(weight.values_OD.float(), values_OD.float())
    assert torch.equal(weight.scales_O1, scales_O1)


def test_a_quantized_model_holds_no_other_weights_of_products(tmp_path):
    config = save_in_shards(tmp_path, "qwen3", attention_bias=True).config
    model = read_dense_model(str(tmp_path), config, LABELS, CPU, torch.bfloat16, quantization="fp8")
    plain = read_dense_model(str(tmp_path), config, LABELS, CPU, torch.float32)
    for layer, plain_layer in zip(model.layers, plain.layers, strict=True):
        for ours, exact in zip(layer.projections, plain_layer.projections, strict=True):
            # Of the numbers in the file, not of those rounded to the model's dtype.
            values_OD, scales_O1 = ops.quantize_rows(exact.weight, backend="reference")
            assert ours.weight.values_OD.dtype == torch.float8_e4m3fn
            assert torch.equal(ours.weight.values_OD.float(), values_OD.float())
            assert torch.equal(ours.weight.scales_O1, scales_O1)
            assert ours.bias is None or torch.equal(ours.bias, exact.bias.bfloat16())
    assert model.embedding_VD.dtype == model.layers[0].post_norm_D.dtype == torch.bfloat16
    digest = weights_digest(model)
    model.layers[1].down.weight.scales_O1.mul_(2)
    assert weights_digest(model) != digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
def test_a_quantized_runner_is_that_of_its_products(family, dtype, tmp_path):
    """Passes, kept slots and the last layer say what the plain forward does; in float32 few roundings differ."""
    config = save_in_shards(tmp_path, family).config
    runner = dense_runner(tmp_path, config, dtype, quantization="fp8")
    assert runner.products == "fp8"
    asked = [[list(range(3, 3 + n)), list(range(50, 50 + n // 2))] for n in (60, 40, 2)]
    ids = [torch.tensor([9, *(token for part in sequence for token in part)]) for sequence in asked]
    plain = torch.stack([runner.plain_logits(row) for row in ids])
    exact = torch.stack([dense_runner(tmp_path, config, dtype).plain_logits(row) for row in ids])
    for budget in (70, 1000):
        (logits,) = score(Engine(runner, budget), [9], [asked])
        difference = (torch.from_numpy(logits) - plain).abs().max()
        assert difference <= (1e-4 if dtype == torch.float32 else 2 * (plain - exact).abs().max())
    assert 1e-3 < (plain - exact).abs().max() < 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_small_judge_keeps_its_verdicts(dtype):
    options = {"device": "cpu", "dtype": dtype}
    plain, ours = (
        PairwiseJudge.from_pretrained(gram_fast.SMALL_JUDGE, **options, quantization=name) for name in (None, "fp8")
    )
    prompt = "Sort from smallest to largest: 72, 15, 48, 31"
    responses = ["15, 31, 48, 72", "72, 48, 31, 15", "15, 48, 31, 72"]
    first, second = (judge.rank(prompt, responses) for judge in (plain, ours))
    assert [c.p > 0.5 for c in first.comparisons] == [c.p > 0.5 for c in second.comparisons]
    assert ours.comparer.runner.products == "fp8"


def test_a_wrong_product_is_found_when_a_judge_is_made(tmp_path, monkeypatch):
    """Every output with another factor than its own."""
    folder = write_judge(tmp_path)
    assert PairwiseJudge.from_pretrained(folder, device="cpu", quantization="fp8")

    def wrong(x, weight, bias_O):
        return right(x, Fp8Weight(weight.values_OD, weight.scales_O1.roll(1) ** 2 * 50), bias_O)

    right = fp8_linear(CPU, torch.float32)
    monkeypatch.setattr("gram_fast.models.dense.products.fp8_linear", lambda *_: wrong)
    with pytest.raises(UnsupportedModelError, match=r"where rounding to FP8, by up to 2\*\*-4 of a number, explains"):
        PairwiseJudge.from_pretrained(folder, device="cpu", quantization="fp8")


def test_weights_that_are_not_finite_are_named(tmp_path):
    write_judge(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"layers\.1\.down\.weight\.\w+' is not finite"):
        PairwiseJudge.from_pretrained(tmp_path, device="cpu", quantization="fp8")


def test_what_cannot_run_is_said_before_memory_is_taken(tmp_path, monkeypatch):
    config = save_in_shards(tmp_path, "qwen3").config
    for name, message in (("width_problem", "too narrow"), ("fp8_problem", "too old")):
        monkeypatch.setattr(f"gram_fast.models.dense.weights.{name}", lambda *_, found=message: found)
        with pytest.raises(BackendError, match=message):
            read_dense_model(str(tmp_path), config, LABELS, CPU, torch.float32, quantization="fp8")


def test_no_row_has_bits_of_its_own(tmp_path):
    config = save_in_shards(tmp_path, "qwen3").config
    with pytest.raises(BackendError, match="deterministic=True: product 'fp8' gives a row other bits in another pass"):
        dense_runner(tmp_path, config, quantization="fp8", deterministic=True)


def test_parts_of_processes_are_quantized_by_themselves(tmp_path):
    """A product over a part of the columns has factors of its own: sums over processes need no others'."""
    config = save_in_shards(tmp_path, "qwen3").config
    whole = read_dense_model(str(tmp_path), config, LABELS, CPU, torch.float32).layers[0]
    for rank in (0, 1):
        part = read_dense_model(
            str(tmp_path), config, LABELS, CPU, torch.float32, Processes(rank, 2), quantization="fp8"
        ).layers[0]
        half_OD = whole.down.weight.chunk(2, dim=1)[rank]
        values_OD, scales_O1 = ops.quantize_rows(half_OD, backend="reference")
        assert torch.equal(part.down.weight.values_OD.float(), values_OD.float())
        assert torch.equal(part.down.weight.scales_O1, scales_O1)


def test_what_a_gpu_needs_is_named(monkeypatch):
    assert fp8_problem(CPU, torch.float16) is None
    assert fp8_problem(CUDA, torch.float16) == "quantization='fp8' on CUDA needs dtype bfloat16, got float16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert "needs compute capability 8.9 or higher" in str(fp8_problem(CUDA, torch.bfloat16))
    assert "needs weights of multiples of 16, got one of [40, 32]" in str(width_problem(torch.Size([40, 32]), CUDA))
    assert width_problem(torch.Size([48, 32]), CUDA) is width_problem(torch.Size([40, 32]), CPU) is None


SHAPES = {  # inputs, outputs
    "1.7B qkv": (2048, 4096),
    "1.7B down": (6144, 2048),
    "8B keys and values": (4096, 2048),
    "8B gate and up": (4096, 24576),
    "8B down": (12288, 4096),
}


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 7, 17, 1000])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_scaled_product_is_the_emulated_one(has_bias, shape, rows):
    """Against float64 on the same float8 numbers.

    The output is rounded to bfloat16: 2**-9 of it. Hopper adds 32 products to a sum in one instruction, each cut 13
    bits below the largest, and adds the sums of 128 up in float32. A cut errs by 2**-13 of the largest at most, about
    eight times a usual product here, evenly distributed: a sum of K by sqrt(33 * 4 * K / 128) * 8 * 2**-13 / sqrt(3)
    usual products in standard deviation, 2**-10.8 of the usual sum. Six of those, rounded up to 2**-8, and twice the
    rounding.
    """
    if problem := fp8_problem(CUDA, torch.bfloat16):
        pytest.skip(problem)
    width, outputs = SHAPES[shape]
    x_TD, weight, bias_O = random_product(rows, width, outputs, CUDA)
    out_TO = fp8_linear(CUDA, torch.bfloat16)(x_TD, weight, bias_O if has_bias else None)
    values_TD, scales_T1 = ops.quantize_rows(x_TD, backend="reference")
    exact_TD = values_TD.double() * scales_T1.double()
    exact_TO = exact_TD @ numbers(weight).T
    usual_TO = exact_TD.norm(dim=1, keepdim=True) * numbers(weight).norm(dim=1)[None] / width**0.5
    exact_TO = exact_TO + (bias_O.double() if has_bias else 0)
    assert out_TO.shape == (rows, outputs)
    assert out_TO.dtype == torch.bfloat16
    assert ((out_TO.double() - exact_TO).abs() <= 2.0**-8 * (exact_TO.abs() + usual_TO)).all()


@pytest.mark.gpu
def test_no_rows_on_a_gpu():
    if problem := fp8_problem(CUDA, torch.bfloat16):
        pytest.skip(problem)
    x_TD, weight, _ = random_product(0, 64, 32, CUDA)
    assert fp8_linear(CUDA, torch.bfloat16)(x_TD, weight, None).shape == (0, 32)


@pytest.mark.gpu
def test_a_judge_on_a_gpu():
    if problem := fp8_problem(CUDA, torch.bfloat16):
        pytest.skip(problem)
    options = {"dtype": "bfloat16", "quantization": "fp8"}
    judges = [
        PairwiseJudge.from_pretrained(gram_fast.SMALL_JUDGE, device=where, **options) for where in ("cpu", "cuda")
    ]
    prompt, responses = "Sort from smallest to largest: 72, 15, 48, 31", ["15, 31, 48, 72", "72, 48, 31, 15"]
    on_cpu, on_gpu = (judge.compare(prompt, *responses) for judge in judges)
    assert (on_cpu.p > 0.5) == (on_gpu.p > 0.5)
    # Launched, captured and replayed.
    assert {judges[1].compare(prompt, *responses).p for _ in range(3)} == {on_gpu.p}
    weights = {p.weight.values_OD.dtype for layer in judges[1].comparer.runner.model.layers for p in layer.projections}
    assert weights == {torch.float8_e4m3fn}
