"""Reads prompts and their responses from data files."""

import json
from pathlib import Path
from typing import Any


def read_groups(path: Path) -> list[tuple[str, list[str]]]:
    """Reads (prompt, responses) from the rows of a file, which is JSON lines unless it ends in .json.

    A row has `prompt`, and `responses` or `chosen` and `rejected`: lists in RM-Bench, one text each in JudgeBench as
    GRAM has it.
    """
    text = path.read_text("utf-8")
    rows = json.loads(text) if path.suffix == ".json" else map(json.loads, text.splitlines())
    return [(row["prompt"], responses_of(row)) for row in rows]


def responses_of(row: dict[str, Any]) -> list[str]:
    """Lists the responses of a row, chosen ones first."""
    if "responses" in row:
        return list(row["responses"])
    return [text for part in (row["chosen"], row["rejected"]) for text in ([part] if isinstance(part, str) else part)]
