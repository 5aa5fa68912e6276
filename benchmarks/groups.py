"""Reads prompts and their responses from data files."""

import json
from pathlib import Path


def read_groups(path: Path) -> list[tuple[str, list[str]]]:
    """Reads (prompt, responses) from RM-Bench's JSON (prompt, chosen, rejected) or JSON lines (prompt, responses)."""
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        return [(row["prompt"], row["chosen"] + row["rejected"]) for row in json.loads(text)]
    return [(row["prompt"], row["responses"]) for row in map(json.loads, text.splitlines())]
