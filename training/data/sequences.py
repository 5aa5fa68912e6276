"""Tokenizes pair records into labelled sequences and packs them into batches without padding.

The sequences of one pair are always in the same batch. Every label has the position of the token that predicts it.

    stage          sequences of a pair                 labels
    pretrain       both responses after the prompt     the next token, in the assistant's turn
    finetune       order AB, order BA                  0 (A) or 1 (B), at the last tokens
    scalar         chosen chat, rejected chat          1 and 0, at the last tokens

In stage 2 a pair is read in one of two modes: full, where response B reads A, or factored, where neither response reads
the other. Sequences of judges that reason are in gram_fast/training/reasoning.py.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gram_fast.errors import InputError
from gram_fast.text.encoded import EncodedTexts
from gram_fast.text.prompts import SLOTS, PairTemplate, render_chat
from gram_fast.text.tokens import Ids, PairTokenizer
from gram_fast.training.data.packing import pack
from gram_fast.training.data.records import PairRecord

# Pairs encoded in one call of the tokenizer, which spreads them over all cores.
_BATCH = 512


@dataclass(frozen=True)
class TokenizedPair:
    """The token sequences of one pair, concatenated, with their labels."""

    input_ids: Ids
    """int32 [T]."""
    lengths: NDArray[np.int64]
    """int64 [S], tokens of each sequence; they sum to T."""
    label_positions: NDArray[np.int32]
    """int32 [R]: index in `input_ids` of the token that predicts each label, in ascending order."""
    labels: NDArray[np.int32]
    """int32 [R]."""
    next_positions: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """int32 [N]: index in `input_ids` of tokens that predict the next one on their path as well (`lm_weight`)."""
    next_tokens: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """int32 [N]: the tokens that they predict."""
    next_weights: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    """float32 [N]: weight of each of them in the loss, beside 1 for a label."""
    parts: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 4), np.int64))
    """int64 [S, 4]: tokens of the parts of each sequence of a factored pair, shared, first, second and tail; [0, 4] of
    any other."""
    prompt: int = 0
    """Digest of the prompt, by which pairs of one prompt are known."""

    @property
    def sequences(self) -> list[Ids]:
        """Its S sequences."""
        return np.split(self.input_ids, self.lengths.cumsum()[:-1])

    @classmethod
    def labelled_at_the_ends(cls, sequences: Sequence[Ids], labels: Sequence[int]) -> "TokenizedPair":
        """Concatenates sequences, each with one label at its last token."""
        lengths = np.array([len(ids) for ids in sequences])
        ends = (lengths.cumsum() - 1).astype(np.int32)
        return cls(np.concatenate(sequences), lengths, ends, np.array(labels, np.int32))

    @classmethod
    def continued(cls, before: Ids, said: Ids) -> "TokenizedPair":
        """One sequence, of which all tokens behind `before` are predicted.

        The last token predicts nothing and is left out.
        """
        ids = np.concatenate([before, said[:-1]])
        return cls(ids, np.array([len(ids)]), np.arange(len(before) - 1, len(ids), dtype=np.int32), said)


PairEncoder = Callable[[Sequence[PairRecord]], list[TokenizedPair]]
"""Tokenizes pair records for one training stage."""


def finetune_encoder(
    tokenizer: PairTokenizer, lm_weight: float = 0.0, modes: Sequence[str] = ("full",), seed: int = 0
) -> PairEncoder:
    """Encoder of stage 2: each labeled pair in both orders, with exactly the token ids that the judge scores.

    With `lm_weight`, the tokens that begin in the better response or right behind it are predicted as well, each with a
    share of that weight, so that a sequence counts as one whatever the length of the response. Around an empty response
    none may begin.

    `modes`: "full", "factored" or both, of which a pair has the one that `seed` and its texts draw (`drawn_mode`). The
    encoder raises InputError for a pair that a factored judge cannot read.
    """

    def encode(records: Sequence[PairRecord]) -> list[TokenizedPair]:
        drawn = [drawn_mode(record, modes, seed) for record in records]
        encoded = {
            mode: iter(read([record for record, its in zip(records, drawn, strict=True) if its == mode]))
            for mode, read in (("full", full), ("factored", factored))
        }
        pairs = [next(encoded[mode]) for mode in drawn]
        if not lm_weight:
            return pairs
        better = tokenizer.places(_in_both_orders(records), [1 + label for r in records for label in _labels(r)])
        return [_predicting(pair, better[2 * n : 2 * n + 2], lm_weight) for n, pair in enumerate(pairs)]

    def full(records: Sequence[PairRecord]) -> list[TokenizedPair]:
        ids = tokenizer.whole_ids(_in_both_orders(records))
        return [
            TokenizedPair.labelled_at_the_ends(ids[2 * n : 2 * n + 2], _labels(record))
            for n, record in enumerate(records)
        ]

    def factored(records: Sequence[PairRecord]) -> list[TokenizedPair]:
        parts = _factored_parts(tokenizer, records)
        return [
            replace(
                TokenizedPair.labelled_at_the_ends([np.concatenate(order) for order in both], _labels(record)),
                parts=np.array([[len(part) for part in order] for order in both]),
            )
            for both, record in zip(parts, records, strict=True)
        ]

    return encode


def drawn_mode(record: PairRecord, modes: Sequence[str], seed: int) -> str:
    """The mode in which a pair is read, the same wherever and whenever it is drawn."""
    return modes[_digest("\0".join((str(seed), record.prompt, record.response_a, record.response_b))) % len(modes)]


def _in_both_orders(records: Sequence[PairRecord]) -> list[tuple[str, str, str]]:
    """Prompt and responses of each record, in order AB and in order BA."""
    return [(r.prompt, *pair) for r in records for pair in ((r.response_a, r.response_b), (r.response_b, r.response_a))]


def _labels(record: PairRecord) -> tuple[int, int]:
    """Of a record in both orders."""
    return (0, 1) if record.preferred == "A" else (1, 0)


def _factored_parts(tokenizer: PairTokenizer, records: Sequence[PairRecord]) -> list[list[list[Ids]]]:
    """The parts of each record in both orders. Raises InputError that names a record which cannot be cut."""
    if not records:
        return []
    prompts, groups = [r.prompt for r in records], [(r.response_a, r.response_b) for r in records]
    try:
        texts = EncodedTexts.of(tokenizer, prompts, groups, is_factored=True)
    except InputError as error:
        if len(records) == 1:
            raise InputError(f"{records[0].where}: {error}") from None
        return [parts for record in records for parts in _factored_parts(tokenizer, [record])]
    encoded = texts.round([(g, *order) for g in range(len(records)) for order in ((0, 1), (1, 0))], 0)
    parts = [[encoded.segments[number] for number in numbers] for numbers in encoded.sequences]
    parts = [[np.concatenate([texts.head_ids, prompt]), *others] for prompt, *others in parts]
    return [parts[n : n + 2] for n in range(0, len(parts), 2)]


def _predicting(pair: TokenizedPair, places: Sequence[NDArray[np.int32]], weight: float) -> TokenizedPair:
    """The pair with the tokens at some places of each sequence to predict, which share the sequence's weight."""
    starts = pair.lengths.cumsum() - pair.lengths
    asked = [place[place > 0] for place in places]
    predicted = np.concatenate([start + place for start, place in zip(starts, asked, strict=True)])
    positions = predicted - 1
    for start, (shared, first, *_) in zip(starts, pair.parts, strict=False):
        # The second part stands behind the shared one, as the first does.
        positions[predicted == start + shared + first] = start + shared - 1
    return replace(
        pair,
        next_positions=positions.astype(np.int32),
        next_tokens=pair.input_ids[predicted],
        next_weights=np.concatenate([np.full(len(place), weight / max(1, len(place)), np.float32) for place in asked]),
    )


def scalar_encoder(tokenizer: PairTokenizer, chat: Any) -> PairEncoder:
    """Encoder of the scalar baseline: each response as a chat of two turns, prompt and response.

    `chat` is the transformers tokenizer whose chat template is used.
    """
    literals = chat_turns(tokenizer.template, chat)

    def encode(records: Sequence[PairRecord]) -> list[TokenizedPair]:
        rows = []
        for r in records:
            chosen_first = (r.response_a, r.response_b) if r.preferred == "A" else (r.response_b, r.response_a)
            rows += [(r.prompt, response) for response in chosen_first]
        ids = tokenizer.ids_between(literals, rows)
        return [TokenizedPair.labelled_at_the_ends(pair, (1, 0)) for pair in zip(ids[0::2], ids[1::2], strict=True)]

    return encode


def pretrain_encoder(tokenizer: PairTokenizer, chat: Any) -> PairEncoder:
    """Encoder of stage 1: both responses after the prompt, in GRAM's format.

    `chat` is the transformers tokenizer whose chat template is used. All that it writes behind the assistant's text is
    predicted too, as in LLaMA-Factory, with which GRAM trains: for Qwen, the newline behind <|im_end|>.
    """
    question, answers = pretraining_literals(tokenizer.template)
    prompt = "\ue000"
    opening = tokenizer.template.chat(chat, question[0] + prompt + question[1]).partition(prompt)
    *_, closing = chat_turns(tokenizer.template, chat)
    swapped = tokenizer.template.slots.index("response_a") > tokenizer.template.slots.index("response_b")

    def encode(records: Sequence[PairRecord]) -> list[TokenizedPair]:
        prompts = tokenizer.ids_between((opening[0], opening[2]), [(r.prompt,) for r in records])
        responses = [(r.response_b, r.response_a) if swapped else (r.response_a, r.response_b) for r in records]
        outputs = tokenizer.ids_between((*answers[:2], answers[2] + closing), responses)
        return list(map(TokenizedPair.continued, prompts, outputs))

    return encode


def chat_turns(template: PairTemplate, chat: Any) -> tuple[str, str, str]:
    """What the chat template of a transformers tokenizer writes around a prompt and the assistant's text behind it."""
    prompt, said = "\ue000", "\ue001"
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": said}]
    text = str(render_chat(chat, turns, add_generation_prompt=False, kwargs=template.chat_template_kwargs))  # type: ignore[arg-type]
    before, _, rest = text.partition(prompt)
    between, _, closing = rest.partition(said)
    return before, between, closing


def pretraining_literals(template: PairTemplate) -> tuple[tuple[str, str], tuple[str, str, str]]:
    """Returns the texts around the prompt (instruction) and around the two responses (output) of stage 1.

    They are the part of the judge's template from the paragraph before the prompt to the paragraph that ends the second
    response; for the preset `gram`, GRAM's own format of pre-training data. Raises InputError for a template whose
    first slot is not the prompt.
    """
    if template.slots[0] != SLOTS[0]:
        raise InputError(f"stage 1 needs a template whose first slot is {{{SLOTS[0]}}}, not {{{template.slots[0]}}}")
    lead, between, middle, last = template.literals
    gap = between[: len(between) - len(between.lstrip("\n"))]
    instruction = (lead.rpartition("\n\n")[2], gap)
    return instruction, (between[len(gap) :], middle, last.partition("\n\n")[0])


def within_embedding(encode: PairEncoder, tokenizer: PairTokenizer, rows: int) -> PairEncoder:
    """The encoder, which raises InputError on a token that a model with embeddings of `rows` tokens lacks."""
    if tokenizer.num_ids <= rows:
        return encode

    def checked(records: Sequence[PairRecord]) -> list[TokenizedPair]:
        pairs = encode(records)
        for record, pair in zip(records, pairs, strict=True):
            if (highest := int(max(pair.input_ids.max(), pair.labels.max()))) >= rows:
                raise InputError(
                    f"{record.where}: it has token {highest}, {tokenizer.token_text(highest)!r}, but the model has "
                    f"embeddings of {rows} tokens: expected a checkpoint that was resized with its tokenizer"
                )
        return pairs

    return checked


OnLong = Callable[[PairRecord, int], None]
"""Callback that receives a record that is left out, and how many tokens it has at least."""


def without_endless(
    records: Iterable[PairRecord], tokenizer: PairTokenizer, cutoff_len: int, on_long: OnLong
) -> Iterator[PairRecord]:
    """Passes records on, except those of which one text is so long that its beginning tells: it goes to `on_long`."""
    for record in records:
        texts = (record.prompt, record.response_a, record.response_b, record.rationale or "")
        found = next(filter(None, (tokenizer.long_beginning(text, cutoff_len) for text in texts)), None)
        if found is None:
            yield record
        else:
            on_long(record, found[1])


def tokenize_pairs(
    records: Iterable[PairRecord], encode: PairEncoder, cutoff_len: int, on_long: OnLong
) -> Iterator[TokenizedPair]:
    """Tokenizes records, except those with a sequence of more than `cutoff_len` tokens, and marks their prompts.

    Such a record goes to `on_long` with the length of its longest sequence; nothing is truncated.
    """
    stream = iter(records)
    while some := list(islice(stream, _BATCH)):
        for record, pair in zip(some, encode(some), strict=True):
            if (longest := int(pair.lengths.max())) > cutoff_len:
                on_long(record, longest)
            else:
                yield replace(pair, prompt=_digest(record.prompt))


def collate(pairs: Sequence[TokenizedPair], shares: bool = False, multiple: int = 1) -> dict[str, torch.Tensor]:
    """Packs tokenized pairs into one batch, end to end and without padding; with `shares`, as their token tree.

    Factored pairs stand behind the others, as a token tree in any case. It is filled up to a `multiple` of tokens, by a
    sequence without labels.

    Returns int64 input_ids and position_ids [1, T]; labels [R] with label_positions [R], indices of packed tokens; and
    the tables of `gram_fast.ops.Spans`. Two pairs of one sequence each, whose last two tokens and whose last one
    predict:

        input_ids        [7 8 9] and [7 5]   ->   input_ids        [[7 8 9 7 5]]   or   [[7 8 9 5]]
        label_positions  [1 2]   and [1]          position_ids     [[0 1 2 0 1]]        [[0 1 2 1]]
        labels           [9 3]   and [2]          label_positions  [1 2 4]              [1 2 3]
                                                  labels           [9 3 2]              [9 3 2]

    Pairs that predict next tokens as well add next_positions, next_tokens and float32 next_weights [N].
    """
    pairs = sorted(pairs, key=lambda pair: len(pair.parts))
    sequences = [ids for pair in pairs if not len(pair.parts) for ids in pair.sequences]
    factored = [
        np.split(ids, sizes.cumsum()[:-1])
        for pair in pairs
        if len(pair.parts)
        for ids, sizes in zip(pair.sequences, pair.parts, strict=True)
    ]
    packed = pack(sequences, factored, shares).filled(multiple)
    starts = np.cumsum([0, *(len(pair.input_ids) for pair in pairs)])
    positions = [start + pair.label_positions for start, pair in zip(starts, pairs, strict=False)]
    next_positions = np.concatenate([start + pair.next_positions for start, pair in zip(starts, pairs, strict=False)])
    batch = {
        "input_ids": packed.input_ids[None],
        "position_ids": packed.position_ids[None],
        **packed.spans._asdict(),
        "label_positions": torch.from_numpy(packed.places[np.concatenate(positions)]),
        "labels": torch.from_numpy(np.concatenate([pair.labels for pair in pairs])).long(),
    }
    if len(next_positions):
        batch["next_positions"] = torch.from_numpy(packed.places[next_positions])
        batch["next_tokens"] = torch.from_numpy(np.concatenate([pair.next_tokens for pair in pairs])).long()
        batch["next_weights"] = torch.from_numpy(np.concatenate([pair.next_weights for pair in pairs]))
    return batch


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
