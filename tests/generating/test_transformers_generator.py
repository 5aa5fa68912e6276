"""Answers of a transformers model: as `generate` writes them, the same in any company, its distribution, its stops."""

import gc
import threading
import warnings
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_models import KINDS, tiny_model
from helpers.small_tokenizers import tokenizer
from scipy import stats

from gram_fast import InputError
from gram_fast.errors import NumericalError
from gram_fast.generating import transformers_generator
from gram_fast.generating.generator import Generation, GenerationRequest, Sampling
from gram_fast.generating.transformers_generator import TransformersGenerator
from gram_fast.scoring.stops import StoppedError, stopped_by

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = tokenizer("qwen")
VOCAB = len(TOKENIZER)
LENGTHS = [9, 3, 17, 3, 12]


def model(name: str = "qwen3", seed: int = 0, **generation: Any) -> Any:
    made = tiny_model(name, seed, vocab_size=VOCAB)
    made.generation_config.update(**generation)
    return made


def request(seed: int, length: int = 9, n: int = 1) -> GenerationRequest:
    ids = np.random.default_rng(seed).integers(0, 200, length).astype(np.int32)
    return GenerationRequest("", ids, n, seed)


def write(generator: TransformersGenerator, requests: list[GenerationRequest], sampling: Sampling) -> list[Any]:
    """Answers in the order of their requests, each of which is answered once."""
    found = list(generator.generate(requests, sampling))
    assert sorted(number for number, _ in found) == list(range(len(requests)))
    return [dict(found)[number] for number in range(len(requests))]


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama", "mistral", "gpt_neox", *KINDS])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_answers_are_those_of_generate(name: str, penalty: float) -> None:
    # Some token that greedy answers have: an answer ends there.
    made = model(name, repetition_penalty=penalty)
    requests = [request(seed, length) for seed, length in enumerate(LENGTHS)]
    plain = [torch.from_numpy(each.ids).long()[None] for each in requests]
    end = made.generate(plain[0], max_new_tokens=4, do_sample=False, eos_token_id=None)[0, -1].item()
    made.generation_config.eos_token_id = [end, VOCAB - 1, TOKENIZER.eos_token_id]
    expected = [
        made.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)[0, ids.shape[1] :] for ids in plain
    ]
    found = write(TransformersGenerator(made, TOKENIZER), requests, Sampling(24))
    ends = set(made.generation_config.eos_token_id)
    assert any(len(ids) < 24 for ids in expected)
    for (answer,), ids in zip(found, expected, strict=True):
        written = ids.tolist()
        is_cut = written[-1] not in ends
        assert answer == Generation(TOKENIZER.decode(written if is_cut else written[:-1]), len(written), is_cut)


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_sampled_answers_do_not_depend_on_company(budget: int) -> None:
    made = model(temperature=0.9, top_p=0.95, top_k=40, do_sample=True, repetition_penalty=1.1)
    requests = [request(seed, length, n=3) for seed, length in enumerate(LENGTHS)]
    generator = TransformersGenerator(made, TOKENIZER, max_batch_tokens=budget)
    alone = [write(generator, [each], Sampling(12))[0] for each in requests]
    assert write(generator, requests, Sampling(12)) == alone
    assert write(generator, requests[::-1], Sampling(12)) == alone[::-1]
    assert len({answer.text for answers in alone for answer in answers}) == 3 * len(requests)
    # The first answers to a request are those of a request for fewer.
    assert write(generator, [request(2, LENGTHS[2], n=2)], Sampling(12)) == [alone[2][:2]]


def test_samples_have_the_distribution_of_the_softmax() -> None:
    made = model()
    each, temperature, n = request(5, n=4000), 1.5, 4000
    logits = made(torch.from_numpy(each.ids).long()[None]).logits[0, -1].double() / temperature
    logits = logits.masked_fill(logits < logits.topk(20).values[-1], -torch.inf)
    made.generation_config.top_k = 20
    # The token that answers consist of, by its text.
    (answers,) = write(TransformersGenerator(made, TOKENIZER), [each], Sampling(1, temperature=temperature))
    counts = Counter(answer.text for answer in answers)
    expected: Counter[str] = Counter()
    for token in logits.topk(20).indices.tolist():
        text = "" if token == TOKENIZER.eos_token_id else TOKENIZER.decode([token])
        expected[text] += n * logits.softmax(-1)[token].item()
    assert set(counts) <= set(expected)
    observed = [counts[text] for text in expected]
    # The seed is fixed: it passes always, or never.
    assert stats.chisquare(observed, list(expected.values())).pvalue > 0.01


def test_answers_of_a_request_and_of_neighbouring_seeds_are_independent() -> None:
    made = model()
    each = request(5)
    requests = [GenerationRequest("", each.ids, 2, seed) for seed in range(1500)]
    found = write(TransformersGenerator(made, TOKENIZER), requests, Sampling(1, temperature=1.0))
    of_text: Counter[str] = Counter()
    for token, p in enumerate(made(torch.from_numpy(each.ids).long()[None]).logits[0, -1].softmax(-1).tolist()):
        of_text["" if token == TOKENIZER.eos_token_id else TOKENIZER.decode([token])] += p
    same = sum(p * p for p in of_text.values())
    pairs = [(a.text, b.text) for a, b in found]
    pairs_of_seeds = [(one[0].text, other[1].text) for one, other in pairwise(found)]
    for drawn in (pairs, pairs_of_seeds):
        # Two independent draws are equal with the probability `same`.
        rate, spread = np.mean([a == b for a, b in drawn]), (same * (1 - same) / len(drawn)) ** 0.5
        assert abs(rate - same) < 4 * spread


@pytest.mark.parametrize(
    ("stated", "asked", "is_greedy"),
    [
        ({}, None, True),
        ({"temperature": 0.7}, None, True),
        ({"do_sample": True}, None, False),
        ({"do_sample": True}, 0, True),
        ({}, 1.0, False),
    ],
)
def test_the_temperature_is_that_of_the_checkpoint_unless_another_is_asked_for(
    stated: dict[str, Any], asked: float | None, is_greedy: bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' about a temperature that is not used
        made = model(**stated)
    before = made.generation_config.to_dict()
    (answers,) = write(TransformersGenerator(made, TOKENIZER), [request(1, n=8)], Sampling(6, temperature=asked))
    assert (len({answer.text for answer in answers}) == 1) == is_greedy
    assert made.generation_config.to_dict() == before


def test_probabilities_are_those_of_the_model_and_texts_join() -> None:
    made = model(do_sample=True, temperature=3.0, repetition_penalty=1.5)
    each = request(3, n=4)
    (answers,) = write(TransformersGenerator(made, TOKENIZER), [each], Sampling(10, top_logprobs=3))
    plain = write(TransformersGenerator(made, TOKENIZER), [each], Sampling(10))[0]
    assert [answer.text for answer in answers] == [answer.text for answer in plain]
    for answer in answers:
        assert answer.tokens is not None
        assert "".join(token.text for token in answer.tokens) == answer.text
        assert len(answer.tokens) == answer.num_tokens - (not answer.is_cut)
    logprobs = made(torch.from_numpy(each.ids).long()[None]).logits[0, -1].log_softmax(-1)
    values, ids = logprobs.topk(3)
    for answer in answers:
        first = answer.tokens[0]
        for value, token in zip(values.tolist(), ids.tolist(), strict=True):
            assert first.logprobs[TOKENIZER.decode([token])] >= value - 1e-5
        assert len(first.logprobs) in (3, 4)


def test_every_ending_token_ends_and_tags_stay() -> None:
    made = model()
    think, end = TOKENIZER.convert_tokens_to_ids("<think>"), TOKENIZER.convert_tokens_to_ids("<|im_start|>")
    made.generation_config.eos_token_id = [end]

    def written(first: int, then: int) -> Generation:
        forced = iter([first, then])

        def hook(module: Any, arguments: Any, output: Any) -> Any:
            output.logits[..., next(forced)] = 1e4
            return output

        handle = made.register_forward_hook(hook)
        try:
            return write(TransformersGenerator(made, TOKENIZER), [request(0)], Sampling(2))[0][0]
        finally:
            handle.remove()

    assert written(think, end) == Generation("<think>", 2, False)
    assert written(think, TOKENIZER.eos_token_id) == Generation("<think>", 2, False)
    # Special, but not what ends it here.
    assert written(TOKENIZER.convert_tokens_to_ids("<|endoftext|>"), end) == Generation("<|endoftext|>", 2, False)
    assert written(think, think) == Generation("<think><think>", 2, True)


def test_the_callers_model_is_left_as_it_was_found() -> None:
    made = model(do_sample=True).requires_grad_(True)
    made.train()
    made.gradient_checkpointing_enable()
    made.model.layers[0].eval()
    before = [module.training for module in made.modules()]
    attention, cached = made.config._attn_implementation, made.config.use_cache
    state = torch.get_rng_state()
    generator = TransformersGenerator(made, TOKENIZER, max_batch_tokens=20)
    seen = 0
    with torch.autocast("cpu", torch.bfloat16):
        for _, answers in generator.generate([request(k, n=2) for k in range(3)], Sampling(5)):
            seen += len(answers)
            assert [module.training for module in made.modules()] == before
            assert torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu")
    assert seen == 6
    assert (made.config._attn_implementation, made.config.use_cache) == (attention, cached)
    assert all(weight.grad is None and weight.requires_grad for weight in made.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_autocast_and_grad_mode_change_nothing() -> None:
    made = model(attention_dropout=0.5)
    for layer in made.model.layers:
        layer.self_attn.attention_dropout = 0.5
    generator = TransformersGenerator(made, TOKENIZER)
    expected = write(generator, [request(1)], Sampling(12))
    made.train()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert write(generator, [request(1)], Sampling(12)) == expected


def test_adapters_of_a_wrapped_model_are_at_work() -> None:
    peft = pytest.importorskip("peft")
    plain = write(TransformersGenerator(model(), TOKENIZER), [request(1)], Sampling(12))
    config = peft.LoraConfig(target_modules=["q_proj"], lora_alpha=64, init_lora_weights=False, lora_dropout=0.5)
    adapted = peft.get_peft_model(model(), config).train()
    found = write(TransformersGenerator(torch.compile(adapted), TOKENIZER), [request(1)], Sampling(12))
    assert adapted.training
    merged = adapted.merge_and_unload()
    assert found == write(TransformersGenerator(merged, TOKENIZER), [request(1)], Sampling(12)) != plain


def test_a_call_stops_between_two_tokens() -> None:
    made, stop, steps = model(), threading.Event(), []

    def hook(*_: Any) -> None:
        steps.append(None)
        if len(steps) == 3:
            stop.set()

    made.register_forward_hook(hook)
    generator = TransformersGenerator(made, TOKENIZER)
    with pytest.raises(StoppedError):
        stopped_by(stop).run(write, generator, [request(0)], Sampling(50, temperature=0))
    assert len(steps) == 3


def test_nothing_is_written_before_it_is_asked_for_nor_after_the_iterator_is_closed() -> None:
    made, steps = model(do_sample=True), []
    made.register_forward_hook(lambda *_: steps.append(None))
    found = TransformersGenerator(made, TOKENIZER, max_batch_tokens=1).generate(
        [request(k) for k in range(4)], Sampling(3)
    )
    assert not steps
    next(found)
    assert 0 < len(steps) <= 3
    found.close()
    gc.collect()
    assert len(steps) <= 3


def test_batches_are_halved_when_memory_runs_out_and_nothing_is_lost() -> None:
    made = model(do_sample=True)
    requests = [request(seed, length, n=3) for seed, length in enumerate(LENGTHS)]
    expected = write(TransformersGenerator(made, TOKENIZER), requests, Sampling(8))

    def hook(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        rows = len(options["input_ids"])
        if rows > 4 and options["past_key_values"].get_seq_length() > LENGTHS[2] + 3:
            raise torch.OutOfMemoryError("out of memory")

    made.register_forward_pre_hook(hook, with_kwargs=True)
    generator = TransformersGenerator(made, TOKENIZER, max_batch_tokens=10_000)
    with pytest.warns(UserWarning, match="out of memory: batches of .* tokens are halved"):
        assert write(generator, requests, Sampling(8)) == expected
    assert generator.max_batch_tokens <= 15 * (LENGTHS[2] + 8) // 2


def test_out_of_memory_with_one_answer_and_other_errors_are_raised() -> None:
    made = model()
    errors: list[Exception] = [torch.OutOfMemoryError("out of memory"), RuntimeError("a bug")]

    def hook(*_: Any) -> None:
        raise errors.pop(0)

    made.register_forward_pre_hook(hook)
    generator = TransformersGenerator(made, TOKENIZER)
    with pytest.raises(torch.OutOfMemoryError):
        write(generator, [request(0)], Sampling(4))
    with pytest.raises(RuntimeError, match="a bug"):
        write(generator, [request(0, n=2)], Sampling(4))


def test_prompts_are_read_once_and_no_batch_is_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made, shapes = model(do_sample=True), []
    made.register_forward_pre_hook(
        lambda module, arguments, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    requests = [request(1, 9, n=5), request(2, 7, n=2)]
    write(TransformersGenerator(made, TOKENIZER), requests, Sampling(3))
    assert shapes[0] == (2, 9)
    assert shapes[1][1] == 1
    shapes.clear()
    write(TransformersGenerator(made, TOKENIZER, max_batch_tokens=4 * 12), requests, Sampling(3))
    assert max(rows for rows, width in shapes if width == 1) == 4
    shapes.clear()
    monkeypatch.setattr(transformers_generator, "_MOST_ROWS", 2)
    write(TransformersGenerator(made, TOKENIZER), requests, Sampling(3))
    assert max(rows for rows, width in shapes if width == 1) == 2


def test_what_cannot_be_answered_is_its_own_error() -> None:
    generator = TransformersGenerator(model(), TOKENIZER)
    requests = [GenerationRequest("text", None, 1, 0), request(1), request(2, 512), request(3, 509)]
    no_ids, (plain,), too_long, (short,) = write(generator, requests, Sampling(6))
    assert isinstance(no_ids, InputError)
    assert "expected the token ids" in str(no_ids)
    assert isinstance(too_long, InputError)
    assert str(too_long) == "a prompt of 512 tokens: expected fewer than the 512 positions of the model"
    assert plain.num_tokens == 6
    assert (short.num_tokens, short.is_cut) == (3, True)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    made = model()
    made.lm_head.weight.data[3] = torch.nan
    with pytest.raises(NumericalError, match="logits are NaN"):
        write(TransformersGenerator(made, TOKENIZER), [request(0)], Sampling(4))


@pytest.mark.parametrize("wrong", [0, 1.5, "many", True])
def test_a_wrong_limit_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="max_batch_tokens: expected an integer of at least 1"):
        TransformersGenerator(model(), TOKENIZER, max_batch_tokens=wrong)


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="expected a transformers model"):
        TransformersGenerator(torch.nn.Linear(2, 2), TOKENIZER)


def test_threads_may_share_a_generator() -> None:
    generator = TransformersGenerator(model(do_sample=True), TOKENIZER)
    expected = [write(generator, [request(k, n=2)], Sampling(8)) for k in range(4)]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda k=k: found.update({k: write(generator, [request(k, n=2)], Sampling(8))}))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[k] for k in range(4)] == expected


def test_continuous_batching_writes_what_batches_do() -> None:
    made = model()
    made.train()
    attention = made.config._attn_implementation
    requests = [request(seed, length, n=2) for seed, length in enumerate(LENGTHS)]
    requests.append(request(9, 512))
    *expected, _ = write(TransformersGenerator(made, TOKENIZER), requests, Sampling(12))
    generator = TransformersGenerator(made, TOKENIZER, continuous=True, max_batch_tokens=4096)
    *found, error = write(generator, requests, Sampling(12))
    assert isinstance(error, InputError)
    assert found == expected
    with pytest.raises(InputError, match="top_logprobs: continuous batching has no probabilities of other tokens"):
        write(generator, requests, Sampling(12, top_logprobs=1))
    sampled = write(generator, requests[:2], Sampling(12, temperature=1.0))
    assert len({answer.text for answers in sampled for answer in answers}) == 4
    # Closed early, it ends too.
    found = generator.generate(requests, Sampling(500))
    next(found)
    found.close()
    assert made.training
    assert made.config._attn_implementation == attention
    assert not [thread for thread in threading.enumerate() if "_run_generation_loop" in thread.name]


@pytest.mark.parametrize("continuous", [False, True])
def test_of_no_requests_there_are_no_answers(continuous: bool) -> None:
    assert list(TransformersGenerator(model(), TOKENIZER, continuous=continuous).generate([], Sampling(4))) == []
