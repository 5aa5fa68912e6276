"""Tokenizes presentations in pieces that join to exactly the ids of the whole text.

The whole text of a presentation is cut at safe places (gram_fast/text/cuts.py) into

    head | prompt piece | A piece | B piece

where a piece is one slot with the template text around it. Each distinct piece is encoded once, so that work grows
with the number of responses. Where a tokenizer has no safe cut, every presentation is encoded whole: exact, but work
grows with the number of presentations.
"""

import json
import re
import secrets
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gram_fast.errors import UnsupportedModelError
from gram_fast.text.chat_marks import flags_of
from gram_fast.text.cuts import PROBES, CutProver
from gram_fast.text.dates import date_remedy
from gram_fast.text.messages import Message
from gram_fast.text.prompts import ChatText, PairTemplate, render_chat, slot_names
from gram_fast.text.thinking import THINKING_TAG, is_thinking
from gram_fast.text.tokenizer_check import check_ids, check_round_trip, tokenizer_errors

Ids = NDArray[np.int32]
"""Token ids, int32 [T]."""

# Characters of template text that are encoded on either side of a piece and dropped again.
_CONTEXT = 6
# Characters of a text that are encoded at first for each token of a limit, to see whether the text can keep to it: few
# texts have more than 8 characters a token.
_CHARACTERS = 16
# A beginning must have this many times the tokens of a limit before the whole text is taken to be over it. The cut
# changes tokens next to it, and not half of all that are before it.
_MARGIN = 2
# Characters of a literal, from the slot on, that are searched for a cut.
_WINDOW = 64
# Characters of the prompt's end in messages.
_SHOWN_END = 60
# A rationale, behind which labels of a judge that reasons are looked up.
_RATIONALE = "<think>\nResponse A is right.\n"


class PairTokenizer:
    """Tokenizes presentations for one tokenizer and one template.

    Special tokens, and added tokens that frame the chat template's turns, come from the template alone: their text in a
    slot stays text. For this, a private copy of the tokenizer has them under secret names.
    """

    def __init__(self, tokenizer: Any, template: PairTemplate) -> None:
        """`tokenizer`: a fast tokenizer of transformers.

        Warns where samples of text do not come back from their ids, and of a prompt that ends in a thinking block.
        Raises UnsupportedModelError on another kind of tokenizer, on one that loses plain text, and on labels that are
        not one token each.
        """
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise UnsupportedModelError(
                f"expected a tokenizer of the tokenizers library (a 'fast' one), got {type(tokenizer).__name__}"
            )
        self.num_ids = 1 + max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        """Token ids that the tokenizer may give are lower."""
        check_ids(self.num_ids - 1)
        self.template = template
        _check_frame(template, tokenizer)
        self.text = ChatText.render(template, tokenizer)
        self.date_remedy = date_remedy(template, tokenizer)
        """Variables of the chat template that would fix the date of today in the prompt; None where it has none."""
        _warn_of_variables(template, tokenizer, self.date_remedy)
        only = _template_only(tokenizer, template)
        self._secret_names = {token: f"\ue002{secrets.token_hex(12)}\ue003" for token in only}
        reacting = ChatText.reacting_words(template, tokenizer)
        self.markers = tuple(dict.fromkeys((*template.markers, *self._secret_names, *reacting)))
        self.plain = tokenizer
        """The tokenizer of transformers, to which special tokens in a text are what they say."""
        self._tokenizer = _private_copy(tokenizer, self._secret_names)
        self._secret_text = replace(self.text, literals=tuple(map(self._to_secret, self.text.literals)))
        with tokenizer_errors("read text"):
            self._check_private_copy(tokenizer)
            self.label_ids = (self._label_id(template.labels[0]), self._label_id(template.labels[1]))
            if self.label_ids[0] == self.label_ids[1]:
                raise UnsupportedModelError(
                    f"labels {template.labels} are the same token {self.label_ids[0]} to this tokenizer"
                )
            self.changes = check_round_trip(self._tokenizer, tokenizer.backend_tokenizer)
            self.frames = self._frames()
        self.ends_in_thinking = is_thinking(self.text.literals[-1].removeprefix(template.literals[-1].rstrip()))
        """Whether the prompt ends inside a thinking block that the chat template opens."""
        if self.changes:
            warnings.warn(self.changes, stacklevel=2)
        if self.ends_in_thinking and not template.reasons:
            warnings.warn(
                f"the prompt ends inside a thinking block, in {self.prompt_end!r}: the labels are read where the model "
                "thinks, unless the preset has an answer_prefix such as '</think>\\n\\n'",
                stacklevel=2,
            )
        if self.frames is None:
            warnings.warn(
                "this tokenizer has no safe place to cut the template: every pair is tokenized whole", stacklevel=2
            )

    @property
    def prompt_end(self) -> str:
        """The last characters of every prompt, for messages."""
        return self.text.literals[-1][-_SHOWN_END:]

    @property
    def head_ids(self) -> Ids:
        """Ids int32 [T] before the first piece, which all presentations share; empty when they are encoded whole."""
        return self.frames[0].before_ids if self.frames else np.empty(0, np.int32)

    def whole_ids(self, rows: Sequence[Sequence[str]]) -> list[Ids]:
        """Encodes the whole text of each (prompt, response in slot A, response in slot B) -> ids [T].

        A verifier's rows are (prompt, response).
        """
        return self._encode([self._secret_text.fill(*row) for row in rows])

    def places(self, rows: Sequence[Sequence[str]], which: Sequence[int]) -> list[NDArray[np.int32]]:
        """Finds, in the ids of each row's whole text, the tokens that begin in one of its texts or right behind it.

        `which`: the index of that text in each row. -> int32 [P], ascending.
        """
        found = []
        with tokenizer_errors("read text"):
            encoded = self._tokenizer.encode_batch([self._secret_text.fill(*row) for row in rows])
        for row, index, e in zip(rows, which, encoded, strict=True):
            begin = self._secret_text.place(*row, index=index)
            starts = np.array([start for start, _ in e.offsets])
            found.append(np.flatnonzero((starts >= begin) & (starts <= begin + len(row[index]))).astype(np.int32))
        return found

    def ids_between(self, literals: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Ids]:
        """Encodes each row of n texts between n + 1 literals -> ids [T].

        Special tokens come from the literals alone.
        """
        hidden = [self._to_secret(literal) for literal in literals]
        return self._encode(
            [hidden[0] + "".join(t + lit for t, lit in zip(row, hidden[1:], strict=True)) for row in rows]
        )

    def answer_ids(self, answers: Sequence[str]) -> list[Ids]:
        """Encodes what a judge writes behind the prompt, from its beginning on -> ids [T].

        It does not join with the prompt's last token, as the prompt was read when it was written. Tags of thinking are
        the checkpoint's tokens, where it has such; the text of other special tokens stays text.
        """
        return self._encode([THINKING_TAG.sub(lambda tag: self._secret_names.get(tag[0], tag[0]), a) for a in answers])

    def flags(self, text: str) -> tuple[str, ...]:
        """Finds the lines of the template, the special tokens, the words and the marks of chats in `text`.

        The words are those to which the chat template would react; to the judge they are text. The marks are those of
        any model's chat template: a policy's need not be the judge's.
        """
        return flags_of(text, self.markers)

    def long_beginning(self, text: str, limit: int) -> tuple[int, int] | None:
        """Finds a beginning of a long text that alone has far more than `limit` tokens -> (its characters, its tokens).

        None for a text that may keep to the limit, which is encoded whole afterwards. Encoding millions of characters
        only to find too many tokens would take gigabytes.
        """
        size = _CHARACTERS * limit
        while size < len(text):
            (ids,) = self._encode([text[:size]])
            if len(ids) > _MARGIN * limit:
                return size, len(ids)
            size *= 4
        return None

    def pieces(self, frame: "Frame", texts: Iterable[str]) -> dict[str, Ids] | None:
        """Encodes the piece of one slot for each distinct text -> ids [T] by text.

        None when a text changes the tokens beyond a cut, which gram_fast/text/cuts.py tests but cannot rule out.
        """
        distinct = list(dict.fromkeys(texts))
        cut = [frame.cut(ids) for ids in self._encode([frame.left + text + frame.right for text in distinct])]
        return None if any(ids is None for ids in cut) else dict(zip(distinct, cut, strict=True))  # type: ignore[arg-type]

    def moves_a_cut(self, text: str, is_prompt: bool) -> bool:
        """Whether a prompt or response changes the tokens beyond a cut, wherever the template shows it."""
        frames = zip(self.frames or (), self.text.slots, strict=True)
        return any(self.pieces(f, [text]) is None for f, slot in frames if (slot == "input") == is_prompt)

    def _encode(self, texts: list[str]) -> list[Ids]:
        with tokenizer_errors("read text"):
            encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(e.ids, np.int32) for e in encoded]

    def token_text(self, token_id: int) -> str:
        """Text of a token, for messages: a special token's name, else what the token decodes to."""
        name = self._tokenizer.id_to_token(token_id)
        if name is None:
            return f"token {token_id}"
        names = {secret: token for token, secret in self._secret_names.items()}
        return names.get(name) or self._tokenizer.decode([token_id], skip_special_tokens=False) or name

    def _to_secret(self, literal: str) -> str:
        if not self._secret_names:
            return literal
        names = sorted(self._secret_names, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, names)), lambda match: self._secret_names[match[0]], literal)

    def _check_private_copy(self, tokenizer: Any) -> None:
        sample = ("What is 2 + 2?", "4.", "It is five!\n")[: len(self.text.slots)]
        expected = tokenizer(self.text.fill(*sample), add_special_tokens=False)["input_ids"]
        if self.whole_ids([sample])[0].tolist() != list(expected):
            raise UnsupportedModelError("the tokenizer cannot be copied with its special tokens set apart")

    def _label_id(self, label: str) -> int:
        if self.template.reasons:
            begin = _RATIONALE + self.template.answer_prefix
            plain, with_label = self.answer_ids([begin, begin + label])
        else:
            sample = ("question", "one", "two")[: len(self.text.slots)]
            plain = self.whole_ids([sample])[0]
            with_label = self._encode([self._secret_text.fill(*sample) + label])[0]
        rest = with_label[len(plain) :]
        if len(rest) != 1 or not np.array_equal(with_label[: len(plain)], plain):
            raise UnsupportedModelError(
                f"label {label!r} is not one token after the prompt of this checkpoint: expected one more id, got "
                f"{rest.tolist()}"
            )
        return int(rest[0])

    def _frames(self) -> "tuple[Frame, ...] | None":
        """Finds the frame of each slot, in the template's order; None when a literal has no safe cut."""
        prover = CutProver(self._tokenizer)
        num_slots = len(self.text.slots)
        first, last = [0], []  # by literal: where the previous slot's piece ends, where the next slot's piece begins
        for index, literal in enumerate(self._secret_text.literals):
            secrets_in = [m.span() for m in re.finditer("\ue002[0-9a-f]+\ue003", literal)]
            if index > 0:
                end = min(_WINDOW, secrets_in[0][0] if secrets_in else len(literal))
                cuts = prover.safe_cuts(
                    literal[:end], follows_slot=True, precedes_slot=index < num_slots or end == _WINDOW
                )
                if not cuts and secrets_in and end == secrets_in[0][0]:
                    # An added token is taken out of the text first: nothing crosses its border.
                    cuts = [] if self._strips_left(literal[slice(*secrets_in[0])]) else [end]
                if not cuts:
                    return None
                first.append(cuts[0])
            if index < num_slots:
                begin = max(len(literal) - _WINDOW, secrets_in[-1][1] if secrets_in else 0)
                cuts = prover.safe_cuts(literal[begin:], follows_slot=index > 0 or begin > 0, precedes_slot=True)
                if not cuts:
                    return None
                last.append(begin + cuts[-1])
        frames = tuple(self._frame(slot, first, last) for slot in range(num_slots))
        return frames if self._compose_probes(frames) else None

    def _compose_probes(self, frames: "tuple[Frame, ...]") -> bool:
        """Whether composed ids equal those of the whole text, with awkward texts in all slots."""
        pieces = [self.pieces(frame, PROBES) for frame in frames]
        names = slot_names(self.text.slots)
        rows = list(zip(*(PROBES[k:] + PROBES[:k] for k in range(len(names))), strict=True))
        for row, whole in zip(rows, self.whole_ids(rows), strict=True):
            values = dict(zip(names, row, strict=True))
            composed = [frames[0].before_ids]
            for frame, of_slot, slot in zip(frames, pieces, self.text.slots, strict=True):
                if of_slot is None:
                    return False
                composed += [of_slot[values[slot]], frame.after_ids]
            if not np.array_equal(np.concatenate(composed), whole):
                return False
        return True

    def _strips_left(self, secret: str) -> bool:
        return any(t.content == secret and t.lstrip for t in self._tokenizer.get_added_tokens_decoder().values())

    def _frame(self, slot: int, first: list[int], last: list[int]) -> "Frame":
        before, after = self._secret_text.literals[slot], self._secret_text.literals[slot + 1]
        begin, end = last[slot], first[slot + 1]
        # The text up to the next slot's piece follows; after the last slot, all that is left.
        stop = last[slot + 1] if slot + 1 < len(last) else len(after)
        left_context = before[max(0, begin - _CONTEXT) : begin].rpartition("\ue003")[2]
        right_context = after[end : end + _CONTEXT].partition("\ue002")[0]
        left_ids, right_ids = self._encode([left_context])[0], self._behind(after[:end], right_context)
        return Frame(
            left=left_context + before[begin:],
            right=after[:end] + right_context,
            left_ids=left_ids,
            right_ids=right_ids,
            before_ids=self._encode([before[:begin]])[0] if slot == 0 else np.empty(0, np.int32),
            after_ids=self._behind(after[:end], after[end:stop]),
        )

    def _behind(self, before: str, text: str) -> Ids:
        """Encodes `text` as it follows `before`, with a cut between them."""
        return self._encode([before + text])[0][len(self._encode([before])[0]) :]


@dataclass(frozen=True)
class Frame:
    """Template text encoded with one slot: `left + slot + right`, of which the ids of the outer context are dropped."""

    left: str
    right: str
    left_ids: Ids
    """Ids of the context before the piece."""
    right_ids: Ids
    """Ids of the context after the piece."""
    before_ids: Ids
    """Ids of the head for the first slot, empty for the others."""
    after_ids: Ids
    """Ids of the template text from this piece to the next one or to the end."""

    def cut(self, ids: Ids) -> Ids | None:
        """Drops the ids of the context -> the piece's own; None when the slot's text changed those of the context."""
        begin, end = len(self.left_ids), len(ids) - len(self.right_ids)
        is_cut = np.array_equal(ids[:begin], self.left_ids) and np.array_equal(ids[end:], self.right_ids)
        return ids[begin:end] if is_cut and begin <= end else None

    @cached_property
    def key(self) -> tuple[str, str]:
        """Key that is equal for slots that encode a text to the same ids."""
        return (self.left, self.right)


def _template_only(tokenizer: Any, template: PairTemplate) -> list[str]:
    """Finds the added tokens that only the template may place: special ones, and those that frame chat turns."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    user: Message = {"role": "user", "content": "x"}
    turns = (template.frame or "").partition("{content}")[0]
    if tokenizer.chat_template:
        chat, kwargs = [user, {"role": "assistant", "content": "y"}, user], template.chat_template_kwargs
        try:
            turns += render_chat(tokenizer, chat, add_generation_prompt=False, kwargs=kwargs)
        except UnsupportedModelError:  # some templates take one turn only, all that a judge needs
            turns += template.chat(tokenizer, "x")
    # Words and white space that happen to be added tokens frame nothing.
    framing = [t.content for t in added if t.content in turns and re.search(r"[^\w\s]", t.content)]
    return [token.content for token in added if token.special or token.content in framing]


def _check_frame(template: PairTemplate, tokenizer: Any) -> None:
    """Raises UnsupportedModelError on a frame for another family of tokenizers, whose special tokens are text here."""
    added = {token.content for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values()}
    for name in re.findall(r"<\|[^<>|]*\|>", template.frame or ""):
        if name not in added:
            raise UnsupportedModelError(
                f"the preset's frame has {name}, which is no token of this checkpoint: expected a preset for its family"
            )


def _warn_of_variables(template: PairTemplate, tokenizer: Any, date_remedy: Mapping[str, str] | None) -> None:
    """Warns of a date that the chat template writes, and of variables that it does not read."""
    if date_remedy is not None:
        warnings.warn(
            "the chat template writes today's date into the judge's prompt, so that scores change from day to day: fix "
            f"it, as with chat_template_kwargs={dict(date_remedy)}",
            stacklevel=3,
        )
    for name, value in template.chat_template_kwargs.items():
        is_default = name == "enable_thinking" and value is False
        if name not in str(tokenizer.chat_template) and not is_default:
            warnings.warn(
                f"chat_template_kwargs: the checkpoint's chat template has no {name!r}, which changes nothing",
                stacklevel=3,
            )


def _private_copy(tokenizer: Any, names: dict[str, str]) -> Tokenizer:
    """Copies the tokenizer without truncation, padding and post-processing, with added tokens renamed by `names`."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["truncation"] = spec["padding"] = spec["post_processor"] = None
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    # A token that the model's vocabulary lists too is renamed there, else it would get a new id.
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, dict):
        spec["model"]["vocab"] = {names.get(token, token): index for token, index in vocab.items()}
    else:
        spec["model"]["vocab"] = [[names.get(token, token), score] for token, score in vocab]
    if spec["model"].get("unk_token") in names:
        spec["model"]["unk_token"] = names[spec["model"]["unk_token"]]
    with tokenizer_errors("be copied with its special tokens set apart, one of which it also merges"):
        copy = Tokenizer.from_str(json.dumps(spec))
    for token, name in names.items():
        if copy.token_to_id(name) != tokenizer.backend_tokenizer.token_to_id(token):
            raise UnsupportedModelError(f"the tokenizer does not keep the id of its added token {token!r} when copied")
    return copy
