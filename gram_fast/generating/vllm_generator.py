"""VllmGenerator: answers of a checkpoint that vLLM runs in this process."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from gram_fast.errors import BackendError, InputError, one_line
from gram_fast.generating.generator import Generated, Generation, GenerationRequest, Sampling
from gram_fast.generating.token_texts import decode, tokens_of
from gram_fast.scoring.stops import StoppedError, stop_of_call


class VllmGenerator:
    """Has vLLM write the answers, with its cache of prefixes: what prompts begin with is read once.

    Requests have token ids. An answer has a seed of its own, but vLLM computes in batches whose shapes depend on what
    else is asked: the same seed gives the same answer only as far as rounding does not turn a token about. Calls of
    several threads share its batches.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        trust_remote_code: bool = False,
    ) -> None:
        """Loads the checkpoint; the arguments are vLLM's.

        Raises BackendError where vLLM is not installed or cannot load it.
        """
        try:
            import vllm  # type: ignore[import-not-found,unused-ignore]
            from vllm.exceptions import VLLMClientError  # type: ignore[import-not-found,unused-ignore]
            from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise BackendError(
                f"vLLM cannot be imported: expected it to be installed, as by `pip install vllm`: {one_line(error)}"
            ) from None
        try:
            llm = vllm.LLM(
                name,
                revision=revision,
                dtype=dtype,
                max_model_len=max_model_len,
                gpu_memory_utilization=gpu_memory_utilization,
                trust_remote_code=trust_remote_code,
                enable_prefix_caching=True,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise BackendError(f"vLLM cannot load {name}: {one_line(error)}") from error
        self._name, self._llm, self._engine = name, llm, llm.llm_engine
        self._tokenizer = llm.get_tokenizer()
        self._final_only, self._refusals = RequestOutputKind.FINAL_ONLY, (ValueError, VLLMClientError)
        stated = llm.model_config.try_get_generation_config()
        self.is_sampled = bool(stated.get("do_sample"))
        """Whether the checkpoint's generation configuration draws tokens, rather than take the most likely."""
        self._lock, self._calls = threading.Lock(), itertools.count()
        self._finished: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The engine and its model."""
        return f"vLLM, {self._name}"

    @property
    def at_once(self) -> int:
        """Answers that it writes side by side."""
        return int(self._engine.vllm_config.scheduler_config.max_num_seqs)

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Iterator[Generated]:
        """Yields answers as `TextGenerator` says. `num_tokens` counts the ending token too.

        A request that vLLM refuses, such as one that is too long, has an error.
        """
        is_stopped = stop_of_call()
        call = next(self._calls)
        waiting: dict[str, int] = {}
        try:
            for number, request in enumerate(requests):
                key = f"{call}-{number}"
                if (error := self._add(key, request, sampling)) is not None:
                    yield number, error
                else:
                    waiting[key] = number
            while waiting:
                if is_stopped():
                    raise StoppedError("the call was stopped between two tokens")
                for key, output in self._step(waiting).items():
                    number = waiting.pop(key)
                    answers = [
                        self._generation(answer, sampling)
                        for answer in sorted(output.outputs, key=lambda each: each.index)
                    ]
                    # Greedy answers are asked for once: all are the same, and vLLM refuses several.
                    yield number, answers * (requests[number].n // len(answers))
        finally:
            with self._lock:
                self._engine.abort_request(list(waiting))
                for key in waiting:
                    self._finished.pop(key, None)

    def _add(self, key: str, request: GenerationRequest, sampling: Sampling) -> InputError | None:
        """Adds a request to vLLM's queue -> why it is refused, if it is."""
        if request.ids is None:
            return InputError(f"a request to {self.name}: expected the token ids of its prompt, got its text alone")
        prompt = {"prompt_token_ids": request.ids.tolist()}
        with self._lock:
            try:
                self._engine.add_request(key, prompt, self._parameters(request, sampling))
            except self._refusals as error:
                return InputError(f"a prompt of {len(request.ids)} tokens: refused by vLLM: {one_line(error)}")
        return None

    def _parameters(self, request: GenerationRequest, sampling: Sampling) -> Any:
        """vLLM's SamplingParams: what the checkpoint's generation configuration says, and what the call asks."""
        parameters = self._llm.get_default_sampling_params().clone()
        if sampling.temperature is not None:
            parameters.temperature = sampling.temperature
        elif not self.is_sampled:
            parameters.temperature = 0.0
        is_greedy = parameters.temperature == 0
        if is_greedy:
            parameters.top_p, parameters.top_k, parameters.min_p = 1.0, 0, 0.0
        parameters.n = 1 if is_greedy else request.n
        parameters.seed, parameters.max_tokens = request.seed, sampling.max_new_tokens
        parameters.logprobs = sampling.top_logprobs or None
        parameters.detokenize = False
        # Else a request of several answers comes step by step, with some of them.
        parameters.output_kind = self._final_only
        return parameters

    def _step(self, waiting: dict[str, int]) -> dict[str, Any]:
        """Has vLLM take a step, unless another call's step has finished some of these requests -> those finished."""
        with self._lock:
            if not any(key in self._finished for key in waiting):
                for output in self._engine.step():
                    if output.finished:
                        self._finished[output.request_id] = output
            return {key: self._finished.pop(key) for key in list(waiting) if key in self._finished}

    def _generation(self, answer: Any, sampling: Sampling) -> Generation:
        is_cut = answer.finish_reason == "length"
        ids = list(answer.token_ids)
        own = ids if is_cut else ids[:-1]
        if not sampling.top_logprobs:
            return Generation(decode(self._tokenizer, own), len(ids), is_cut)
        likely = [{token: each.logprob for token, each in place.items()} for place in answer.logprobs]
        tokens = tokens_of(self._tokenizer, own, likely[: len(own)])
        return Generation("".join(token.text for token in tokens), len(ids), is_cut, tokens)
