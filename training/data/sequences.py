"""From pairs to token sequences with labels, and from sequences to packed batches.

One pair becomes one item: a few sequences that are always trained together.

    stage          sequences of a pair                 labels (at the row that predicts)
    pretrain       both responses after the prompt     the next token, for the assistant's turn
    finetune       order AB, order BA                  0 (A) or 1 (B) at the last token
    scalar         the chosen chat, the rejected one   0 at the last token of the chosen
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gram_fast.errors import InputError
from gram_fast.text.prompts import SLOTS, PairTemplate, render_chat
from gram_fast.text.tokens import Ids, PairTokenizer
from gram_fast.training.data.records import PairRecord

_IGNORED = -100
# Pairs that are encoded in one call of the tokenizer, which works through them on all cores.
_BATCH = 512


@dataclass(frozen=True)
class TokenizedPair:
    """The sequences of one pair, end to end."""

    input_ids: Ids
    """[T]"""
    labels: NDArray[np.int32]
    """[T], -100 where nothing is asked."""
    lengths: NDArray[np.int64]
    """[S], sum T."""

    @classmethod
    def join(cls, sequences: Sequence[tuple[Ids, NDArray[np.int32]]]) -> "TokenizedPair":
        """An item of (input_ids, labels) sequences."""
        ids, labels = zip(*sequences, strict=True)
        return cls(np.concatenate(ids), np.concatenate(labels), np.array([len(i) for i in ids]))


PairEncoder = Callable[[Sequence[PairRecord]], list[TokenizedPair]]


def finetune_encoder(tokenizer: PairTokenizer) -> PairEncoder:
    """Each labeled pair in both orders: exactly the ids that the judge scores."""

    def encode(records: Sequence[PairRecord]) -> list[TokenizedPair]:
        texts = [
            (r.prompt, *pair) for r in records for pair in ((r.response_a, r.response_b), (r.response_b, r.response_a))
        ]
        ids = tokenizer.whole_ids(texts)
        items = []
        for n, record in enumerate(records):
            label = 0 if record.preferred == "A" else 1
            ab, ba = ids[2 * n : 2 * n + 2]
            items.append(TokenizedPair.join([(ab, _last(ab, label)), (ba, _last(ba, 1 - label))]))
        return items

    return encode


def scalar_encoder(tokenizer: PairTokenizer, chat: Any) -> PairEncoder:
    """Prompt and response as a chat of two turns; `chat`: the transformers tokenizer with the chat template."""
    prompt, response = "\ue000", "\ue001"
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    text = render_chat(chat, turns, add_generation_prompt=False)  # type: ignore[arg-type]
    before, _, rest = text.partition(prompt)
    between, _, after = rest.partition(response)

    def encode(records: Sequence[PairRecord]) -> list[TokenizedPair]:
        rows = []
        for r in records:
            chosen_first = (r.response_a, r.response_b) if r.preferred == "A" else (r.response_b, r.response_a)
            rows += [(r.prompt, response) for response in chosen_first]
        ids = tokenizer.ids_between((before, between, after), rows)
        pairs = zip(ids[0::2], ids[1::2], strict=True)
        return [TokenizedPair.join([(c, _last(c, 0)), (j, np.full(len(j), _IGNORED, np.int32))]) for c, j in pairs]

    return encode


def pretrain_encoder(tokenizer: PairTokenizer, chat: Any) -> PairEncoder:
    """Both responses after the prompt, in GRAM's format; `chat`: the transformers tokenizer with the chat template."""
    question, answers = pretraining_literals(tokenizer.template)
    prompt, output = "\ue000", "\ue001"
    user = {"role": "user", "content": question[0] + prompt + question[1]}
    opening = render_chat(chat, [user]).partition(prompt)
    both = [user, {"role": "assistant", "content": output}]
    closing = render_chat(chat, both, add_generation_prompt=False).rpartition(output)[2]  # type: ignore[arg-type]
    swapped = tokenizer.template.slots.index("response_a") > tokenizer.template.slots.index("response_b")

    def encode(records: Sequence[PairRecord]) -> list[TokenizedPair]:
        prompts = tokenizer.ids_between((opening[0], opening[2]), [(r.prompt,) for r in records])
        responses = [(r.response_b, r.response_a) if swapped else (r.response_a, r.response_b) for r in records]
        outputs = tokenizer.ids_between((*answers[:2], answers[2] + closing.rstrip("\n")), responses)
        items = []
        for before, after in zip(prompts, outputs, strict=True):
            # The last token predicts nothing: it is left out, and labels[t] is the token behind row t.
            ids = np.concatenate([before, after])
            labels = np.where(np.arange(1, len(ids)) < len(before), _IGNORED, ids[1:]).astype(np.int32)
            items.append(TokenizedPair.join([(ids[:-1], labels)]))
        return items

    return encode


def pretraining_literals(template: PairTemplate) -> tuple[tuple[str, str], tuple[str, str, str]]:
    """The text around the prompt (the instruction) and around the two responses (the output) of stage 1.

    They are taken from the judge's template: from the paragraph that leads to the prompt, to the paragraph that ends
    the second response. For the preset `gram` that is GRAM's own format of pre-training data. Raises InputError for a
    template whose prompt is not its first slot.
    """
    if template.slots[0] != SLOTS[0]:
        raise InputError(f"stage 1 needs a template whose first slot is {{{SLOTS[0]}}}, not {{{template.slots[0]}}}")
    lead, between, middle, last = template.literals
    gap = between[: len(between) - len(between.lstrip("\n"))]
    instruction = (lead.rpartition("\n\n")[2], gap)
    return instruction, (between[len(gap) :], middle, last.partition("\n\n")[0])


def tokenize_pairs(
    records: Iterable[PairRecord], encode: PairEncoder, cutoff_len: int, on_long: Callable[[PairRecord, int], None]
) -> Iterator[TokenizedPair]:
    """Items of all records whose sequences have at most `cutoff_len` tokens; the others go to `on_long`, uncut."""
    stream = iter(records)
    while some := list(islice(stream, _BATCH)):
        for record, item in zip(some, encode(some), strict=True):
            if (longest := int(item.lengths.max())) > cutoff_len:
                on_long(record, longest)
            else:
                yield item


def collate(items: Sequence[TokenizedPair]) -> dict[str, torch.Tensor]:
    """Packs items end to end, without padding.

    For example, two items of one sequence each:

        input_ids  [7 8 9] and [7 5]   ->   input_ids     [[7 8 9 7 5]]
        labels     [. 9 3] and [. 2]   ->   labels        [[. 9 3 . 2]]   (. is -100)
                                            position_ids  [[0 1 2 0 1]]
                                            lengths       [3 2]
    """
    lengths = torch.from_numpy(np.concatenate([item.lengths for item in items]))
    return {
        "input_ids": torch.from_numpy(np.concatenate([item.input_ids for item in items])).long()[None],
        "labels": torch.from_numpy(np.concatenate([item.labels for item in items])).long()[None],
        "position_ids": torch.cat([torch.arange(int(length)) for length in lengths])[None],
        "lengths": lengths,
    }


def _last(ids: Ids, label: int) -> NDArray[np.int32]:
    labels = np.full(len(ids), _IGNORED, np.int32)
    labels[-1] = label
    return labels
