"""Reads pairs of the formats from rows that a test makes."""

import json
from pathlib import Path

from gram_fast.text.prompts import PairTemplate
from gram_fast.training.data.records import read_pair_records

EXAMPLES = Path(__file__).parents[2] / "training" / "examples"
GRAM = PairTemplate.load("gram")
ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}
"""A pair."""
CHAT = {
    "conversations": [{"from": "human", "value": "p"}],
    "chosen": {"from": "gpt", "value": "a"},
    "rejected": {"from": "gpt", "value": "b"},
}
"""The same pair as chat messages of the sharegpt format."""
START_A, END_A = "[The Start of Assistant A's Answer]", "[The End of Assistant A's Answer]"
START_B, END_B = "[The Start of Assistant B's Answer]", "[The End of Assistant B's Answer]"


def read(source, template=GRAM, **options):
    return list(read_pair_records(str(source), template=template, **options))


def texts(records):
    return [(r.prompt, r.response_a, r.response_b, r.preferred) for r in records]


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path
