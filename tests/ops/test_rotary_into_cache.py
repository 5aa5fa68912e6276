from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.exactness import assert_as_exact_as_float32
from helpers.layouts import Layout, every_other, inside_a_buffer, rows_far_apart, strided_last, transposed
from helpers.ops import on_each_device, on_each_dtype, skip_what_cannot_run
from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from gram_fast import ops
from gram_fast.errors import BackendError

pytestmark = pytest.mark.usefixtures("one_thread")

on_each_backend = pytest.mark.parametrize("backend", ops.BACKENDS["rotary_into_cache"])
EPS = 1e-6
NAMES = ("qkv_TCE", "cos_TF", "sin_TF", "k_SKE", "v_SKE", "q_norm_E", "k_norm_E", "eps", "num_heads")

Arguments = dict[str, Any]  # by name, in the order of the op


def run(arguments: Arguments, backend: str) -> None:
    ops.rotary_into_cache(**arguments, backend=backend)


def copy_to(device: str, arguments: Arguments) -> Arguments:
    return {name: x.to(device, copy=True) if isinstance(x, Tensor) else x for name, x in arguments.items()}


def random_arguments(
    num_tokens: int,
    heads: tuple[int, int] = (4, 2),
    width: int = 16,
    dtype: torch.dtype = torch.float32,
    *,
    has_norms: tuple[bool, bool] = (True, True),
    spare_slots: int = 3,
) -> Arguments:
    """`heads`: of queries, of keys. Slots hold NaN."""
    num_heads, num_kv_heads = heads
    generator = torch.Generator().manual_seed(num_tokens + width)
    qkv_TCE = 3 * torch.randn((num_tokens, num_heads + 2 * num_kv_heads, width), generator=generator)
    angles_TF = 100 * torch.randn((num_tokens, width // 2), generator=generator)
    norms_2E = 1 + 0.3 * torch.randn((2, width), generator=generator)
    slots = torch.full((2, num_tokens + spare_slots, num_kv_heads, width), float("nan"), dtype=dtype)
    norms = [norm_E.to(dtype) if has_norm else None for norm_E, has_norm in zip(norms_2E, has_norms, strict=True)]
    values = (qkv_TCE.to(dtype), angles_TF.cos(), angles_TF.sin(), *slots, *norms, EPS, num_heads)
    return dict(zip(NAMES, values, strict=True))


def plain_rotation(x_THE: Tensor, norm_E: Tensor | None, given: Arguments, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A turn of complex numbers, and the size of its terms."""
    x_THE, cos_TF, sin_TF = (tensor.to(dtype) for tensor in (x_THE, given["cos_TF"], given["sin_TF"]))
    if norm_E is not None:
        x_THE = x_THE / (x_THE.square().mean(dim=-1, keepdim=True) + given["eps"]).sqrt() * norm_E.to(dtype)
    half = x_THE.shape[-1] // 2
    turned_THF = torch.complex(x_THE[..., :half], x_THE[..., half:]) * torch.complex(cos_TF, sin_TF)[:, None]
    sizes_THF = x_THE[..., :half].abs() + x_THE[..., half:].abs()
    return torch.cat([turned_THF.real, turned_THF.imag], dim=-1), torch.cat([sizes_THF, sizes_THF], dim=-1)


def check_rotation(actual: Tensor, x_THE: Tensor, norm_E: Tensor | None, given: Arguments) -> None:
    """No further from float64 than twice what plain float32 is, four roundings of float32 and one of the dtype."""
    assert actual.dtype == x_THE.dtype
    exact, sizes = plain_rotation(x_THE, norm_E, given, torch.float64)
    plain, _ = plain_rotation(x_THE, norm_E, given, torch.float32)
    assert_as_exact_as_float32(actual, exact, plain, slack=4 * sizes)


def check(
    given: Arguments,
    backend: str,
    device: str = "cpu",
    qkv_layout: Layout = Tensor.contiguous,
    cache_layout: Layout = Tensor.contiguous,
) -> None:
    ours = copy_to(device, given)
    layouts = {"qkv_TCE": qkv_layout, "k_SKE": cache_layout, "v_SKE": cache_layout}
    ours |= {name: layout(ours[name]) for name, layout in layouts.items()}
    run(ours, backend)
    (num_tokens, _, _), num_kv_heads = given["qkv_TCE"].shape, given["k_SKE"].shape[1]
    q_THE, k_TKE, v_TKE = given["qkv_TCE"].split([given["num_heads"], num_kv_heads, num_kv_heads], dim=1)
    check_rotation(ours["qkv_TCE"][:, : given["num_heads"]], q_THE, given["q_norm_E"], given)
    if num_kv_heads:
        check_rotation(ours["k_SKE"][:num_tokens], k_TKE, given["k_norm_E"], given)
        assert torch.equal(ours["v_SKE"][:num_tokens].cpu(), v_TKE)
    for name, before in given.items():
        after = ours[name]
        if name == "qkv_TCE":
            assert torch.equal(after[:, given["num_heads"] :].cpu(), before[:, given["num_heads"] :]), (
                "keys and values stay"
            )
        elif name in ("k_SKE", "v_SKE"):
            assert after[num_tokens:].isnan().all(), "slots behind the tokens stay"
        elif isinstance(before, Tensor):
            assert torch.equal(after.cpu(), before), f"{name} is only read"


HEADS = [(4, 2), (7, 1), (0, 3), (5, 0)]
# (T, heads, E)
SIZES = [(1, (1, 1), 2), (13, (7, 1), 6), (3, (4, 2), 64), (2, (0, 3), 80), (3, (5, 0), 96), (2, (32, 8), 128)]
SIZES += [(1, (4, 2), 256), (2, (2, 1), 2062)]


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize(("num_tokens", "heads", "width"), SIZES)
def test_awkward_sizes(
    num_tokens: int, heads: tuple[int, int], width: int, dtype: torch.dtype, backend: str, device: str
) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device, dtype)
    check(random_arguments(num_tokens, heads, width, dtype), backend, device)


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("has_norms", [(False, False), (True, False), (False, True)])
def test_norms_are_each_optional(
    has_norms: tuple[bool, bool], heads: tuple[int, int], dtype: torch.dtype, backend: str, device: str
) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device, dtype)
    check(random_arguments(5, heads, 24, dtype, has_norms=has_norms), backend, device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("heads", HEADS)
def test_no_tokens(heads: tuple[int, int], backend: str, device: str) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device)
    check(random_arguments(0, heads), backend, device)


@on_each_device
@on_each_backend
def test_no_heads(backend: str, device: str) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device)
    check(random_arguments(3, (0, 0)), backend, device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize(("heads", "spare_slots"), [((4, 2), 0), ((5, 0), -3)], ids=["no spare", "none without keys"])
def test_as_many_slots_as_needed(heads: tuple[int, int], spare_slots: int, backend: str, device: str) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device)
    check(random_arguments(3, heads, spare_slots=spare_slots), backend, device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("eps", [0.0, 1e-5, 10.0])
def test_eps_is_the_callers(eps: float, backend: str, device: str) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device)
    check(random_arguments(3) | {"eps": eps}, backend, device)


@pytest.mark.filterwarnings("ignore:invalid value")  # inf * 0, in numbers that are not stored
@on_each_device
@on_each_backend
@on_each_dtype
def test_values_are_copied_whatever_they_are(dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device, dtype)
    given = copy_to(device, random_arguments(2, (0, 1), 4, dtype))
    values = torch.tensor([[0.0, -0.0, float("inf"), float("nan")], [-float("inf"), 65504.0, 6e-8, -6e-8]])
    given["qkv_TCE"][:, 1] = values.to(device)
    run(given, backend)
    expected = given["qkv_TCE"][:, 1]
    torch.testing.assert_close(given["v_SKE"][:2, 0], expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(given["v_SKE"][:2, 0].signbit(), expected.signbit())
    assert not given["k_SKE"][:2].isnan().any()


@on_each_device
@on_each_backend
def test_the_rotation_is_that_of_transformers(backend: str, device: str) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device)
    given = random_arguments(5, (3, 2), 8, has_norms=(False, False))
    cos_1TE, sin_1TE = (torch.cat([half, half], dim=-1)[None] for half in (given["cos_TF"], given["sin_TF"]))
    q_1HTE, k_1KTE = (given["qkv_TCE"][None, :, heads].transpose(1, 2) for heads in (slice(0, 3), slice(3, 5)))
    q_1HTE, k_1KTE = apply_rotary_pos_emb(q_1HTE, k_1KTE, cos_1TE, sin_1TE)
    ours = copy_to(device, given)
    run(ours, backend)
    # Two products and a sum of numbers below 16.
    atol = 16 * 2 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(ours["qkv_TCE"][:, :3].cpu(), q_1HTE[0].transpose(0, 1), rtol=0, atol=atol)
    torch.testing.assert_close(ours["k_SKE"][:5].cpu(), k_1KTE[0].transpose(0, 1), rtol=0, atol=atol)


LAYOUTS = [transposed, inside_a_buffer, every_other]


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("qkv_layout", LAYOUTS)
@pytest.mark.parametrize("cache_layout", LAYOUTS)
def test_strides(cache_layout: Layout, qkv_layout: Layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device, dtype)
    check(random_arguments(5, (3, 2), 26, dtype), backend, device, qkv_layout, cache_layout)


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize(("heads", "width"), [((1, 1), 2), ((7, 1), 26), ((4, 2), 64), ((3, 3), 130)])
def test_a_token_has_the_same_bits_wherever_it_stands(
    heads: tuple[int, int], width: int, dtype: torch.dtype, backend: str, device: str
) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device, dtype)
    given = copy_to(device, random_arguments(23, heads, width, dtype))

    def outputs(picks: Tensor, layout: Layout) -> Tensor:
        ours = given | {name: given[name][picks] for name in ("qkv_TCE", "cos_TF", "sin_TF")}
        ours |= {name: given[name][:1].repeat(len(picks), 1, 1) for name in ("k_SKE", "v_SKE")}
        ours["qkv_TCE"] = layout(ours["qkv_TCE"])
        run(ours, backend)
        return torch.cat([ours["qkv_TCE"][:, : heads[0]], ours["k_SKE"], ours["v_SKE"]], dim=1)

    alone = torch.cat([outputs(torch.tensor([token]), Tensor.contiguous) for token in range(23)])
    for threads, num_tokens in ((1, 2), (1, 19)) if backend == "triton" else ((1, 19), (2, 2), (2, 500)):
        torch.set_num_threads(threads)  # which share 32,768 elements and more; one_thread sets them back
        picks = torch.randint(23, (num_tokens,), generator=torch.Generator().manual_seed(num_tokens))
        assert all(torch.equal(outputs(picks, layout), alone[picks]) for layout in (Tensor.contiguous, *LAYOUTS[:2]))


@on_each_device
@on_each_backend
def test_what_surrounds_the_views_is_left_alone(backend: str, device: str) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device)
    given = copy_to(device, random_arguments(5, (3, 2), 6))
    expected = copy_to(device, given)
    run(expected, "reference")
    projection = torch.arange(9.0 * 50, device=device).reshape(9, 50)
    cache = torch.arange(2 * 9.0 * 4 * 10, device=device).reshape(2, 9, 4, 10)
    expected_projection, expected_cache = projection.clone(), cache.clone()

    def views(projection: Tensor, cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return projection[2:7, 5:47].unflatten(1, (7, 6)), cache[0, 1:, 1:3, 2:8], cache[1, 1:, 1:3, 2:8]

    qkv_TCE, k_SKE, v_SKE = views(projection, cache)
    qkv_TCE.copy_(given["qkv_TCE"])
    run(given | {"qkv_TCE": qkv_TCE, "k_SKE": k_SKE, "v_SKE": v_SKE}, backend)
    qkv_TCE, k_SKE, v_SKE = views(expected_projection, expected_cache)
    qkv_TCE.copy_(expected["qkv_TCE"])
    k_SKE[:5], v_SKE[:5] = expected["k_SKE"][:5], expected["v_SKE"][:5]
    atol = 16 * 4 * torch.finfo(torch.float32).eps  # what backends may differ by, in numbers below 16
    torch.testing.assert_close(projection, expected_projection, rtol=0, atol=atol)
    torch.testing.assert_close(cache, expected_cache, rtol=0, atol=atol)


@on_each_device
@on_each_backend
def test_cos_and_sin_in_one_table(backend: str, device: str) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device)
    given = random_arguments(5)
    cos_TF, sin_TF = torch.cat([given["cos_TF"], given["sin_TF"]], dim=-1).chunk(2, dim=-1)
    assert not cos_TF.is_contiguous()
    check(given | {"cos_TF": cos_TF, "sin_TF": sin_TF}, backend, device)


@pytest.mark.large_memory
@on_each_device
@on_each_backend
@pytest.mark.parametrize("which", ["projection", "cache"])
def test_offsets_beyond_32_bits(which: str, backend: str, device: str) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device, torch.float16)
    layouts = (rows_far_apart, Tensor.contiguous) if which == "projection" else (Tensor.contiguous, rows_far_apart)
    check(random_arguments(3, spare_slots=0, dtype=torch.float16), backend, device, *layouts)


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("has_norms", [(True, True), (False, False)])
@pytest.mark.parametrize("heads", [(4, 2), (0, 2), (4, 0)])
def test_opcheck(
    heads: tuple[int, int], has_norms: tuple[bool, bool], dtype: torch.dtype, backend: str, device: str
) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, device, dtype)
    given = copy_to(device, random_arguments(5, heads, dtype=dtype, has_norms=has_norms, spare_slots=0))
    # opcheck compares what was written, and NaN is not equal to itself: every slot is written.
    torch.library.opcheck(ops.rotary_into_cache, tuple(given.values()), {"backend": backend})


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "qkv_TCE 2 dimensions": lambda x: x[0],
    "qkv_TCE dtype": lambda x: x.double(),
    "qkv_TCE integers": lambda x: x.int(),
    "qkv_TCE stride": strided_last,
    "qkv_TCE odd width": lambda x: x[..., 1:],
    "qkv_TCE heads": lambda x: x[:, 1:],
    "cos_TF tokens": lambda x: x[1:],
    "cos_TF whole heads": lambda x: torch.cat([x, x], dim=-1),
    "cos_TF dtype": lambda x: x.half(),
    "cos_TF stride": strided_last,
    "sin_TF 3 dimensions": lambda x: x[None],
    "sin_TF dtype": lambda x: x.double(),
    "sin_TF stride": strided_last,
    "k_SKE 2 dimensions": lambda x: x[:, 0],
    "k_SKE dtype": lambda x: x.half(),
    "k_SKE width": lambda x: x[..., 2:],
    "k_SKE stride": strided_last,
    "v_SKE slots": lambda x: x[1:],
    "v_SKE heads": lambda x: x[:, 1:],
    "v_SKE dtype": lambda x: x.bfloat16(),
    "v_SKE stride": strided_last,
    "q_norm_E 2 dimensions": lambda x: x[None],
    "q_norm_E width": lambda x: x[1:],
    "q_norm_E dtype": lambda x: x.half(),
    "k_norm_E width": lambda x: x[:-1],
    "k_norm_E dtype": lambda x: x.double(),
    "k_norm_E stride": strided_last,
    "num_heads negative": lambda x: -x,
}


@on_each_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str, backend: str) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, "cpu")
    name, given = wrong.split()[0], random_arguments(5)
    given[name] = WRONG[wrong](given[name])
    untouched = copy_to("cpu", given)
    with pytest.raises(ValueError, match=rf"^{name}: expected "):
        run(given, backend)
    torch.testing.assert_close(given, untouched, rtol=0, atol=0, equal_nan=True)


@on_each_backend
def test_fewer_slots_than_tokens(backend: str) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, "cpu")
    with pytest.raises(ValueError, match=r"^k_SKE: expected at least T = 5 slots, got 4"):
        run(random_arguments(5, spare_slots=-1), backend)


@on_each_backend
@pytest.mark.parametrize("num_heads", [3, 5])
def test_more_or_fewer_heads_than_the_projection_has(num_heads: int, backend: str) -> None:
    skip_what_cannot_run("rotary_into_cache", backend, "cpu")
    with pytest.raises(ValueError, match=rf"^qkv_TCE: expected {num_heads} \+ 2 \* 2 heads, got 8"):
        run(random_arguments(5) | {"num_heads": num_heads}, backend)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cos_TF", "sin_TF", "k_SKE", "v_SKE", "q_norm_E", "k_norm_E"])
def test_wrong_devices_are_named(name: str) -> None:
    given = copy_to("cuda", random_arguments(5))
    with pytest.raises(ValueError, match=rf"^{name}: expected device"):
        run(given | {name: given[name].cpu()}, "reference")


def test_a_wrong_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"'cascade'.*reference, triton, extension"):
        run(random_arguments(5), "cascade")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="TRITON_INTERPRET"):
        run(random_arguments(5), "triton")


def test_the_extension_is_chosen_on_the_cpu_and_runs_nowhere_else() -> None:
    assert ops.resolve_backend("rotary_into_cache", "auto", torch.device("cpu"), torch.float16, 264) == "extension"
    problem = ops.backend_problem("rotary_into_cache", "extension", torch.device("cuda"), torch.float16)
    assert problem is not None
    assert "CPU alone" in problem
