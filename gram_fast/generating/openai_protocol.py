"""What is posted to a server that speaks OpenAI's protocol, and what its answers say."""

from codecs import getincrementaldecoder
from collections.abc import Mapping
from typing import Any

import numpy as np

from gram_fast.errors import InputError
from gram_fast.generating.generator import Generation, GenerationRequest, Sampling, Token
from gram_fast.scoring.request import shares

Json = Mapping[str, Any]


class UnreadableError(Exception):
    """An answer that is not what the protocol says; the message says what was expected."""


def completion_body(model: str, request: GenerationRequest, sampling: Sampling) -> dict[str, Any]:
    """Of /v1/completions, with the prompt as token ids.

    `skip_special_tokens` is vLLM's and SGLang's: tags such as <think> stay where they are special tokens. Raises
    InputError on a request without ids.
    """
    if request.ids is None:
        raise InputError("a prompt that is posted by its token ids: expected them, got its text alone")
    body = {**_body(model, sampling), "prompt": request.ids.tolist(), "skip_special_tokens": False}
    return {**body, "logprobs": sampling.top_logprobs} if sampling.top_logprobs else body


def chat_body(model: str, request: GenerationRequest, sampling: Sampling) -> dict[str, Any]:
    """Of /v1/chat/completions, with the user message."""
    body = {**_body(model, sampling), "messages": [{"role": "user", "content": request.content}]}
    return {**body, "logprobs": True, "top_logprobs": sampling.top_logprobs} if sampling.top_logprobs else body


def _body(model: str, sampling: Sampling) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "max_tokens": sampling.max_new_tokens}
    return body if sampling.temperature is None else {**body, "temperature": sampling.temperature}


def read_answers(answer: Any, wants_tokens: bool) -> list[Generation]:
    """Reads the answers out of the JSON of either endpoint.

    Of several choices a server counts the tokens together: each has its share by its length in characters, as far as
    its own tokens were not asked for. Raises UnreadableError.
    """
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, Mapping) for choice in choices):
        raise UnreadableError("expected JSON with choices")
    texts = [_text(choice) for choice in choices]
    is_cut = [_is_cut(choice) for choice in choices]
    if wants_tokens:
        return [_with_tokens(*of_choice) for of_choice in zip(choices, texts, is_cut, strict=True)]
    usage = answer.get("usage")
    total = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    counts = shares(total if type(total) is int else 0, np.array([len(text) + 1 for text in texts]))
    return [Generation(*of_choice) for of_choice in zip(texts, counts, is_cut, strict=True)]


def _text(choice: Json) -> str:
    """The text of a choice; where the server has taken a thought out of it, with that."""
    message = choice.get("message")
    if not isinstance(message, Mapping):
        text, thought = choice.get("text"), None
    else:
        text, thought = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str):
        return f"<think>{thought}</think>{text or ''}"
    if not isinstance(text, str):
        raise UnreadableError("expected choices with a text")
    return text


def _is_cut(choice: Json) -> bool:
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or reason in ("abort", "error"):
        raise UnreadableError(f"expected an answer that has ended, got finish_reason {reason!r}")
    return reason == "length"


def _with_tokens(choice: Json, text: str, is_cut: bool) -> Generation:
    """An answer with its tokens, without the one that ended it.

    The text is the choice's own: tokens that are parts of a character may have no text that joins to it. An answer of a
    server that gives no log probabilities has no tokens: no other try would have them.
    """
    if choice.get("logprobs") is None:
        return Generation(text, 0, is_cut)
    try:
        tokens = _tokens(choice["logprobs"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UnreadableError("expected log probabilities of the tokens") from None
    has_end = not is_cut and bool(tokens) and not _ends_in(text, tokens[-1].text)
    return Generation(text, len(tokens), is_cut, tokens[:-1] if has_end else tokens)


def _ends_in(text: str, token: str) -> bool:
    """Whether a text ends in a token's, but for white space, of which servers take some away."""
    return bool(token) and text.strip().endswith(token.strip())


def _tokens(found: Json) -> list[Token]:
    """In the form of chat completions, which llama.cpp has for all, or in that of completions."""
    if "content" not in found:
        columns = (found["tokens"], found["token_logprobs"], found["top_logprobs"])
        return [
            Token(text, _floats({text: logprob, **(likely or {})}))
            for text, logprob, likely in zip(*columns, strict=True)
        ]
    # A token that ends within a character adds nothing yet.
    decoder = getincrementaldecoder("utf-8")("replace")
    return [
        Token(
            decoder.decode(_bytes(each)),
            _floats({_bytes(one).decode(errors="replace"): one["logprob"] for one in (each, *each["top_logprobs"])}),
        )
        for each in found["content"]
    ]


def _bytes(token: Json) -> bytes:
    """The bytes of a token, which may be a part of a character; those of its text where a server gives none."""
    own = token.get("bytes")
    return bytes(own) if isinstance(own, list) and own else token["token"].encode(errors="replace")


def _floats(likely: Json) -> dict[str, float]:
    return {str(text): float(value) for text, value in likely.items()}
