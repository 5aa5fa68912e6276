"""Encoders of judges that reason: a pair with its rationale and label, or with the proof of its label.

    stage          sequence of a pair                        labels
    reason         prompt, then rationale and verdict        the next token, behind the prompt
    prove          prompt with the label, then the proof     the next token, behind the prompt

The tokens of the answer are those of PairTokenizer.answer_ids: the prompt had been read when it was written. What the
chat template writes behind the assistant's text is predicted too, so that the model ends where its answer does.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gram_fast.errors import InputError
from gram_fast.generating.drawing import with_own_end
from gram_fast.models.files import find_file, find_source, read_object
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.thinking import is_thinking
from gram_fast.text.tokens import Ids, PairTokenizer
from gram_fast.training.data.answers import AnswerForm
from gram_fast.training.data.formats import Label
from gram_fast.training.data.records import PairRecord
from gram_fast.training.data.sequences import PairEncoder, TokenizedPair, chat_turns
from gram_fast.training.proofs import prover_template, write_proof


def reason_encoder(tokenizer: PairTokenizer, chat: Any, lambda_correct: float = 0.0) -> PairEncoder:
    """Encoder of judges that reason: each labeled pair as it stands, its answer with the rationale that it has, if any.

    `chat` is the transformers tokenizer whose chat template is used. With `lambda_correct`, a pair has a second
    sequence, the better response as a chat of two turns. All n tokens of its answer share the weight n lambda: they
    count as often as those of the answer, times lambda.
    """
    form = AnswerForm.of(tokenizer.template, tokenizer.ends_in_thinking)
    *_, closing = chat_turns(tokenizer.template, chat)
    correct = _chat_encoder(tokenizer, chat, closing)

    def encode(records: Sequence[PairRecord]) -> list[TokenizedPair]:
        prompts = tokenizer.whole_ids([(r.prompt, r.response_a, r.response_b) for r in records])
        answers = _closed(tokenizer, [_answer(form, record) for record in records], closing)
        pairs = list(map(TokenizedPair.continued, prompts, answers))
        if not lambda_correct:
            return pairs
        return [
            _beside(pair, before, said, lambda_correct * len(pair.labels))
            for pair, (before, said) in zip(pairs, correct(records), strict=True)
        ]

    return encode


def prove_encoder(tokenizer: PairTokenizer, chat: Any) -> PairEncoder:
    """Encoder of the proving model of a judge: each pair as it stands, with the proof that its rationale makes.

    `tokenizer` is the judge's; `chat` as for `reason_encoder`.
    """
    labels: tuple[Label, Label] = ("A", "B")
    by_label = {label: PairTokenizer(chat, prover_template(tokenizer.template, label)) for label in labels}
    *_, closing = chat_turns(tokenizer.template, chat)

    def encode(records: Sequence[PairRecord]) -> list[TokenizedPair]:
        prompts = [by_label[_label(r)].whole_ids([(r.prompt, r.response_a, r.response_b)])[0] for r in records]
        proofs = [write_proof(_rationale(r), _label(r)) for r in records]
        return list(map(TokenizedPair.continued, prompts, _closed(tokenizer, proofs, closing)))

    return encode


def check_ending(name: str, config: Any, template: PairTemplate, chat: Any, **hub: Any) -> None:
    """Raises InputError where the chat template writes nothing behind an answer at which engines end one.

    A model that is trained on such answers would never end its own. `name`, `config` and `hub`: of the checkpoint, as
    in `load_config`; its generation configuration says which tokens end an answer. `chat` as for `reason_encoder`.
    """
    source = find_source(name, **hub)
    file = find_file(source.name, "generation_config.json", **source.hub)
    known = read_object(file).get("eos_token_id") if file else config.get_text_config(decoder=True).eos_token_id
    ends = with_own_end(known, chat)
    *_, closing = chat_turns(template, chat)
    if not set(ends) & set(chat(closing, add_special_tokens=False)["input_ids"]):
        names = " or ".join(repr(chat.convert_ids_to_tokens(end)) for end in ends) or "an eos_token, which it lacks"
        raise InputError(
            f"checkpoint {name!r}: expected a chat template that writes a token behind the assistant's text which ends "
            f"an answer, {names}, found {closing!r}: the answers of a model that is trained on it would not end"
        )


def _label(record: PairRecord) -> Label:
    if record.preferred is None:
        raise InputError(f"{record.where}: expected a labeled pair, this one has no label")
    return record.preferred


def _rationale(record: PairRecord) -> str:
    if record.rationale is None:
        raise InputError(f"{record.where}: expected a rationale, of which a proof is made, found none")
    return record.rationale


def _answer(form: AnswerForm, record: PairRecord) -> str:
    try:
        return form.write(record.rationale, "AB".index(_label(record)))
    except InputError as error:
        raise InputError(f"{record.where}: {error}") from None


def _closed(tokenizer: PairTokenizer, answers: Sequence[str], closing: str) -> list[Ids]:
    """Ids of answers, each with those of the text behind it, with which its last token does not join."""
    [end] = tokenizer.ids_between((closing,), [()])
    return [np.concatenate([ids, end]) for ids in tokenizer.answer_ids(answers)]


def _chat_encoder(
    tokenizer: PairTokenizer, chat: Any, closing: str
) -> Callable[[Sequence[PairRecord]], list[tuple[Ids, Ids]]]:
    """Encoder of the better response as a chat -> ids up to it, and its own with those behind it."""
    prompt = "\ue000"
    before, _, between = replace(tokenizer.template, reasons=False).chat(chat, prompt).partition(prompt)
    if is_thinking(between):
        # Some templates open a thought before every answer that is to be written, and in no answer that was.
        before, between, _ = chat_turns(tokenizer.template, chat)

    def encode(records: Sequence[PairRecord]) -> list[tuple[Ids, Ids]]:
        better = [r.response_a if _label(r) == "A" else r.response_b for r in records]
        prompts = tokenizer.ids_between((before, between), [(r.prompt,) for r in records])
        said = tokenizer.ids_between(("", closing), [(response,) for response in better])
        return list(zip(prompts, said, strict=True))

    return encode


def _beside(pair: TokenizedPair, before: Ids, said: Ids, weight: float) -> TokenizedPair:
    """The pair with a second sequence, of which the tokens behind `before` are predicted and share a weight."""
    start = len(pair.input_ids) + len(before) - 1
    return replace(
        pair,
        input_ids=np.concatenate([pair.input_ids, before, said]),
        lengths=np.append(pair.lengths, len(before) + len(said)),
        next_positions=np.arange(start, start + len(said), dtype=np.int32),
        next_tokens=said,
        next_weights=np.full(len(said), weight / max(1, len(said)), np.float32),
    )
