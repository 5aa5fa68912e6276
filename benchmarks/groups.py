"""Reads the prompts and responses that benchmarks measure with."""

import json
from pathlib import Path


def read_groups(path: Path) -> list[tuple[str, list[str]]]:
    """(prompt, responses) of RM-Bench's JSON or of JSON lines."""
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        return [(row["prompt"], row["chosen"] + row["rejected"]) for row in json.loads(text)]
    return [(row["prompt"], row["responses"]) for row in map(json.loads, text.splitlines())]
