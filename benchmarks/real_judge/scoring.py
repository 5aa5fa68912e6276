"""Scores the pairs of a test set, by a judge in both orders or by the rewards of a scalar head."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.special import expit
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.two_modes import orders
from gram_fast import PairwiseJudge
from gram_fast.comparing.modes import Mode
from gram_fast.evaluation.rows import SLOT_FIELDS, Place, Result

Row = dict[str, Any]
# Tokens of a padded batch of the scalar head.
_TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 131072}
# Pairs of a call of the judge: between two calls it can be stopped.
_PAIRS_AT_ONCE = {"cpu": 18, "cuda": 288}


class Generative:
    """The judge of a checkpoint."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        """`options` are those of PairwiseJudge.from_pretrained."""
        self._judge = PairwiseJudge.from_pretrained(folder, **options)
        self._at_once = _PAIRS_AT_ONCE[options["device"]]

    def score(self, rows: Sequence[Row], mode: Mode = "full") -> Iterator[list[Result]]:
        """Scores rows in both orders, some at a time, in their order."""
        for some in (rows[start : start + self._at_once] for start in range(0, len(rows), self._at_once)):
            pairs = [(row["chosen"], row["rejected"]) for row in some]
            found = self._judge.compare_many([row["prompt"] for row in some], pairs, mode=mode)
            yield [result(row, c.p, (c.p_ab, c.p_ba)) for row, c in zip(some, found, strict=True)]

    def orders(self, group: Row) -> list[tuple[int, ...]]:
        """Ranks the candidates of a group in both modes -> those of `two_modes.orders`."""
        return orders(self._judge, group["prompt"], group["candidates"])


class Scalar:
    """The scalar head of a checkpoint, in batches that are padded and hold texts of about the same length."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        """`options` are those of the judge, of which device and dtype count."""
        self._device = options["device"]
        dtype = getattr(torch, options["dtype"])
        self._model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).to(self._device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def score(self, rows: Sequence[Row]) -> Iterator[list[Result]]:
        """Scores rows: P(chosen better) is the sigmoid of the rewards' difference. They come at once, at the end."""
        texts = list({(row["prompt"], row[key]): None for row in rows for key in ("chosen", "rejected")})
        ids = [self._ids(*text) for text in texts]
        rewards: dict[tuple[str, str], float] = {}
        for batch in _by_length([len(one) for one in ids], _TOKENS_AT_ONCE[self._device]):
            padded = self._tokenizer.pad({"input_ids": [ids[n] for n in batch]}, return_tensors="pt").to(self._device)
            logits = self._model(**padded).logits[:, 0].float().tolist()
            rewards |= zip((texts[n] for n in batch), logits, strict=True)
            yield []
        margins = [rewards[row["prompt"], row["chosen"]] - rewards[row["prompt"], row["rejected"]] for row in rows]
        yield [result(row, float(expit(margin))) for row, margin in zip(rows, margins, strict=True)]

    def _ids(self, prompt: str, response: str) -> list[int]:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return list(self._tokenizer.apply_chat_template(turns, return_dict=False))


def result(row: Row, p: float, by_slot: Sequence[float | None] | None = None) -> Result:
    """Makes the result of a pair from P(chosen better)."""
    scores = {
        "score_chosen": p,
        "score_rejected": 1 - p,
        **dict(zip(SLOT_FIELDS, by_slot or (None, None), strict=True)),
    }
    return Result({**row, **scores}, Place(row["group"], row["item"], row["cell"]), row["prompt"][:60])


def _by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Groups texts, the longest first, into batches that have at most so many tokens when padded, or one text."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
