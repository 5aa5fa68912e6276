"""A judge inside somebody's process: what is set around a call changes no bit of it, and is left as it was."""

import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_models import tiny_judge, tiny_model, tiny_tokenizer, write_judge

from gram_fast.errors import InputError, UnsupportedModelError
from gram_fast.judge import PairwiseJudge

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT, RESPONSES = "Name a colour of the sky.", ["Blue.", "It is blue, mostly.", "Green?"]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    yield
    torch.set_default_device(None)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def warnings_as_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "a context of meta tensors": lambda: torch.device("meta"),
    "meta as default device": lambda: default_device("meta"),
    "bfloat16 as default": lambda: default_dtype(torch.bfloat16),
    "float64 as default": lambda: default_dtype(torch.float64),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "anomaly detection": torch.autograd.detect_anomaly,
    "deterministic algorithms": deterministic_algorithms,
    "floating-point errors": lambda: np.errstate(all="raise"),
    "warnings as errors": warnings_as_errors,
}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {"products": "torch"},
    "packed": {},
    "deterministic": {"deterministic": True, "products": "torch"},
    "fp8": {"quantization": "fp8"},
    "transformers": {"runner": "transformers"},
}


def state() -> tuple[object, ...]:
    """What a call could leave changed."""
    cudnn = torch.backends.cudnn
    return (
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, torch.backends.cuda.matmul.fp32_precision),
        np.geterr(),
    )


def ask(judge: PairwiseJudge) -> object:
    return judge.rank(PROMPT, RESPONSES).comparisons


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def judges(checkpoint) -> dict[str, PairwiseJudge]:
    judges = {kind: PairwiseJudge.from_pretrained(checkpoint, **options) for kind, options in KINDS.items()}
    judges["a caller's model"] = tiny_judge()
    for judge in judges.values():
        ask(judge)  # the instruction is kept from here on, and other passes have other bits
    return judges


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_a_call_has_the_same_bits(judges, surrounding):
    for kind, judge in judges.items():
        expected = ask(judge)
        with SURROUNDINGS[surrounding]():
            before = state()
            assert ask(judge) == expected, kind
            assert state() == before, kind
        assert ask(judge) == expected, kind


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("kind", KINDS)
def test_a_judge_that_is_loaded_amid_all_of_them_is_the_same(checkpoint, judges, kind):
    with ExitStack() as stack:
        for name, surrounding in SURROUNDINGS.items():
            if name != "warnings as errors":  # transformers' own
                stack.enter_context(surrounding())
        before = state()
        judge = PairwiseJudge.from_pretrained(checkpoint, **KINDS[kind])
        assert state() == before
    ask(judge)
    assert ask(judge) == ask(judges[kind])


def test_a_judge_in_a_thread_knows_nothing_of_autocast_in_another(judges):
    judge, is_over = judges["dense"], threading.Event()
    expected = ask(judge)

    def policy() -> None:
        weight = torch.randn(64, 64)
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.device("meta"):
            while not is_over.is_set():
                assert (weight @ weight).dtype == torch.bfloat16

    with ThreadPoolExecutor(2) as threads:
        training = threads.submit(policy)
        try:
            assert threads.submit(ask, judge).result() == expected
        finally:
            is_over.set()
        training.result()


def test_a_judge_is_loaded_where_torch_is_told_to_round_products(checkpoint):
    """Where the processor has no such products, nothing is rounded."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        PairwiseJudge.from_pretrained(checkpoint)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


TOKENIZER = tiny_tokenizer()


def caller_model(**more: Any) -> Any:
    model = tiny_model("qwen3", vocab_size=len(TOKENIZER), max_position_embeddings=4096, **more)
    return model.requires_grad_(True).train()


def judge_of(model: Any) -> PairwiseJudge:
    return PairwiseJudge.from_model(model, TOKENIZER, max_batch_tokens=64)


def test_a_callers_model_is_left_as_it_was_found():
    model = caller_model(attention_dropout=0.5)
    model.gradient_checkpointing_enable()
    model.model.layers[1].mlp.eval()  # one part is frozen
    seen, kept = [], []
    model.model.layers[0].register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    # Some models keep such tensors for later forwards.
    model.model.rotary_emb.register_forward_hook(lambda module, given, out: kept.append(out[0]))

    def found() -> object:
        parts = [(m.training, getattr(m, "gradient_checkpointing", None)) for m in model.modules()]
        of_weights = [(p.requires_grad, p.grad, p._version) for p in model.parameters()]
        return parts, of_weights, model.config._attn_implementation, state()

    before = found()
    with torch.inference_mode():
        judge = judge_of(model)
        answers = ask(judge)
    assert found() == before
    assert set(seen) == {False}
    assert ask(judge_of(model.eval())) == answers  # there was no dropout

    assert not any(cosines.is_inference() for cosines in kept)
    loss = model.train()(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss
    (loss * kept[0].mean()).backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_an_interruption_inside_a_callers_model_leaves_it_as_it_was_found():
    model = caller_model()
    judge = judge_of(model)
    expected, attention = ask(judge), model.config._attn_implementation

    def interrupt(*_: object) -> None:
        hook.remove()
        raise KeyboardInterrupt

    hook = model.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask(judge)
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == attention
    assert ask(judge) == expected


def test_a_model_that_was_trained_or_got_another_adapter_meanwhile_gives_new_answers():
    peft = pytest.importorskip("peft")
    model = caller_model()
    judge = judge_of(model)
    answers = [ask(judge)]
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    answers.append(ask(judge))
    assert answers[1] == ask(judge_of(model))
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["q_proj", "down_proj"])
    adapted = peft.get_peft_model(model, config)
    answers.append(ask(judge))
    assert answers[2] == ask(judge_of(adapted))
    with adapted.disable_adapter():
        assert ask(judge) == answers[1]
    assert adapted.active_adapter == "default"
    assert len(set(answers)) == 3


def test_wrappers_and_divided_weights_are_refused_in_a_sentence():
    peft = pytest.importorskip("peft")
    model = caller_model()
    for wrapped, kind in ((torch.nn.DataParallel(model), "DataParallel"), (7, "int")):
        with pytest.raises(InputError, match=f"^model: expected a transformers model, got {kind}; give what a wrapper"):
            judge_of(wrapped)
    with pytest.raises(UnsupportedModelError, match=r"its weight model\.embed_tokens\.weight is divided .* not loaded"):
        judge_of(caller_model().to("meta"))
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(UnsupportedModelError, match=r"^PeftModelForCausalLM puts learned prompts before a text"):
        judge_of(peft.get_peft_model(caller_model(), prompts))
    head = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"])
    with pytest.raises(UnsupportedModelError, match="has an adapter on its output embedding: expected it to be merged"):
        judge_of(peft.get_peft_model(caller_model(), head))


def test_a_compiled_model_runs_as_what_it_was_and_compiled_layers_are_refused():
    model = caller_model()
    expected = ask(judge_of(model))
    assert ask(judge_of(torch.compile(model, backend="eager"))) == expected
    model.model.layers[1].compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"^Qwen3ForCausalLM: its model\.layers\.1 is compiled"):
        judge_of(model)


def test_a_call_from_within_a_call_is_an_error():
    model = caller_model()
    judge = judge_of(model)
    expected = ask(judge)
    hook = model.model.layers[0].register_forward_hook(lambda *_: ask(judge))
    with pytest.raises(InputError, match=r"^the judge is in the middle of a call: expected its end"):
        ask(judge)
    hook.remove()
    assert ask(judge) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["dense", "transformers"])
def test_calls_on_streams_of_the_callers_follow_each_other(checkpoint, kind):
    judge = PairwiseJudge.from_pretrained(checkpoint, device="cuda", dtype="float32", **KINDS[kind])
    ask(judge)
    expected = ask(judge)
    for _ in range(3):
        with torch.cuda.stream(torch.cuda.Stream()), torch.autocast("cuda", torch.bfloat16):
            assert ask(judge) == expected
            longer = judge.rank(PROMPT * 50, RESPONSES)  # the store grows, on a stream that did not make it
    assert longer.scores == pytest.approx(judge.rank(PROMPT * 50, RESPONSES).scores, abs=1e-5)
