"""TransformersGenerator: answers of a causal language model of transformers in this process."""

import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

from gram_fast.devices import free_memory, give_memory_back, is_out_of_memory
from gram_fast.errors import GramFastError, InputError, shown_value
from gram_fast.generating.batch import Batch, Row, Written
from gram_fast.generating.continuous import write_continuously
from gram_fast.generating.drawing import ending_ids, generation_config
from gram_fast.generating.generator import Generated, Generation, GenerationRequest, Sampling
from gram_fast.generating.token_texts import decode, tokens_of
from gram_fast.models.callers import in_eval_mode, plain_model
from gram_fast.models.supported import bytes_per_slot
from gram_fast.scoring.forks import check_forked_child, in_forked_children
from gram_fast.scoring.stops import stop_of_call
from gram_fast.scoring.surroundings import sheltered

# Answers side by side, where memory does not say fewer.
_MOST_ROWS = 64


class TransformersGenerator:
    """Writes answers with a loaded model, in batches whose prompts are read once for all of their answers.

    An answer is drawn by random numbers of its own, so that neither its batch nor the order of requests changes it, as
    far as the model's logits do not: they are rounded otherwise in a batch of another shape, which in float32 turns
    hardly any token about, and in bfloat16 some.

    Answers that have ended leave their batch at once, and a batch ends with its longest. On one core, for 4 prompts of
    208 to 256 tokens with 8 answers each of 1 to 128 tokens, 75 in the mean, by a random model of ten layers of the
    width of SmolLM2, it took 16 s; transformers' `generate`, which reads a prompt once an answer and goes on with
    answers that have ended, 34 to 42 s; its continuous batching 26 s.

    The model is the caller's. It computes in eval mode and without gradients, and is left as it was found between any
    two of the answers that `generate` yields.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, continuous: bool = False, max_batch_tokens: int | None = None
    ) -> None:
        """Checks the model.

        Args:
            model: a causal language model of transformers, in the wrappers of peft and torch.compile or without.
            tokenizer: the model's.
            continuous: whether transformers' continuous batching writes the answers, which refills a batch when one
                ends. It is made for GPUs with flash attention; on the CPU it is slower. It has one stream of random
                numbers for all answers of a call, so that their seeds are not kept to; it has no probabilities of
                other tokens; penalties that it does not know it ignores, with a warning; and until the iterator ends
                the model is in eval mode, with another attention.
            max_batch_tokens: most tokens of prompts and answers whose keys and values are held at once; None: as many
                as a quarter of the free memory holds.

        Raises InputError for another model or a wrong number, UnsupportedModelError as `plain_model` does.
        """
        if max_batch_tokens is not None and (type(max_batch_tokens) is not int or max_batch_tokens < 1):
            raise InputError(
                f"max_batch_tokens: expected an integer of at least 1, got {shown_value(max_batch_tokens)}"
            )
        self._model, self._tokenizer, self._continuous = plain_model(model), tokenizer, continuous
        config = self._model.config.get_text_config(decoder=True)
        # Llama 4 takes a token's column for its position, padding included.
        self._is_never_padded = bool(getattr(config, "attn_temperature_tuning", False))
        self._longest: int = getattr(config, "max_position_embeddings", None) or 2**31 - 1
        free = free_memory(self._model.device) // 4
        self.max_batch_tokens = max_batch_tokens or max(1, free // bytes_per_slot(config, self._model.dtype))
        """Most tokens of prompts and answers at once; halved, for later calls too, when memory runs out."""
        self._is_forked = False
        self._lock = threading.Lock()
        in_forked_children(self._after_fork)

    @property
    def name(self) -> str:
        """The engine and its model."""
        return f"transformers, {self._model.config.name_or_path or type(self._model).__name__}"

    @property
    def at_once(self) -> int:
        """Answers that it writes side by side."""
        return _MOST_ROWS

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Iterator[Generated]:
        """Yields answers as `TextGenerator` says. `num_tokens` counts the ending token too.

        A prompt that leaves no room for an answer in the model's positions is its request's error. Raises InputError in
        a forked child where the model cannot run.
        """
        if self._is_forked:
            check_forked_child(self._model.device, 1)
        config = generation_config(self._model, ending_ids(self._model, self._tokenizer), sampling)
        rows: list[Row] = []
        for number, request in enumerate(requests):
            found = self._rows_of(number, request, sampling)
            if isinstance(found, GramFastError):
                yield number, found
            else:
                rows.extend(found)
        open_answers: dict[int, dict[int, Generation]] = {}
        write = self._write_continuously if self._continuous else self._write_in_batches
        with closing(write(rows, config, sampling)) as all_written:
            for written in all_written:
                row = written.row
                answers = open_answers.setdefault(row.request, {})
                answers[row.answer] = self._generation(written, frozenset(config.eos_token_id))
                if len(answers) == requests[row.request].n:
                    del open_answers[row.request]
                    yield row.request, [answers[answer] for answer in range(len(answers))]

    def _rows_of(self, number: int, request: GenerationRequest, sampling: Sampling) -> list[Row] | InputError:
        if request.ids is None:
            return InputError(f"a request to {self.name}: expected the token ids of its prompt, got its text alone")
        room = self._longest - len(request.ids)
        if room < 1:
            return InputError(
                f"a prompt of {len(request.ids)} tokens: expected fewer than the {self._longest} positions of the model"
            )
        limit = min(sampling.max_new_tokens, room)
        return [Row(number, answer, request.seed, request.ids, limit) for answer in range(request.n)]

    def _write_in_batches(self, rows: Sequence[Row], config: Any, sampling: Sampling) -> Generator[Written, None, None]:
        """Writes the longest first: where memory runs out, it is at the beginning."""
        is_stopped = stop_of_call()
        waiting = deque(sorted(rows, key=lambda row: (-len(row.ids) - row.limit, -len(row.ids), row.request)))
        while waiting:
            width = len(waiting[0].ids) + waiting[0].limit
            count = min(_MOST_ROWS, max(1, self.max_batch_tokens // width), len(waiting))
            if self._is_never_padded:
                lengths = [len(row.ids) for row in islice(waiting, count)]
                count = next((k for k, length in enumerate(lengths) if length != lengths[0]), count)
            rows_of_batch = [waiting.popleft() for _ in range(count)]
            batch = Batch(self._model, rows_of_batch, config, sampling.top_logprobs)
            while batch.open_rows:
                written = self._advance(batch, is_stopped)
                if written is None:
                    waiting.extendleft(reversed(batch.open_rows))
                    del batch  # and what it holds
                    self._halve(count, width)
                    break
                yield from written

    @sheltered
    def _advance(self, batch: Batch, is_stopped: Callable[[], bool]) -> list[Written] | None:
        """Writes until some answers of a batch end -> these; none where all have, None where memory ran out.

        That is raised, like every other error, where a batch cannot get smaller.
        """
        with self._lock, in_eval_mode(self._model):
            try:
                return batch.advance(is_stopped)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(batch.open_rows) == 1:
                    raise
        return None

    def _write_continuously(
        self, rows: Sequence[Row], config: Any, sampling: Sampling
    ) -> Generator[Written, None, None]:
        if sampling.top_logprobs:
            raise InputError("top_logprobs: continuous batching has no probabilities of other tokens, expected 0")
        return write_continuously(self._model, rows, config, self.max_batch_tokens)

    def _halve(self, count: int, width: int) -> None:
        before = min(self.max_batch_tokens, count * width)
        self.max_batch_tokens = before // 2
        give_memory_back(self._model.device)
        # At last: where warnings are errors, the next call starts with the smaller budget.
        warnings.warn(
            f"out of memory: batches of {before} tokens are halved to {self.max_batch_tokens}; pass "
            f"max_batch_tokens={self.max_batch_tokens} to start there",
            stacklevel=2,
        )

    def _generation(self, written: Written, ends: frozenset[int]) -> Generation:
        is_cut = written.ids[-1] not in ends
        ids = written.ids if is_cut else written.ids[:-1]
        if not written.likely:
            return Generation(decode(self._tokenizer, ids), len(written.ids), is_cut)
        tokens = tokens_of(self._tokenizer, ids, written.likely[: len(ids)])
        return Generation("".join(token.text for token in tokens), len(written.ids), is_cut, tokens)

    def _after_fork(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._is_forked, self._lock = True, threading.Lock()
