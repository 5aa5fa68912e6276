"""Rows of benchmarks and of their results, in memory and as files."""

import json

from gram_fast.evaluation.rows import Place, Result


def refuse(error):
    raise error


def result(score, slots=None, place=None, **fields):
    """A scored pair; `slots`: P(chosen better) with the chosen response in slot A, and in slot B."""
    fields |= {"score_chosen": score, "score_rejected": 1 - score, "correct": score > 0.5}
    if slots is not None:
        fields |= dict(zip(("p_chosen_in_slot_a", "p_chosen_in_slot_b"), slots, strict=True))
    return Result(fields, place or Place("group"), "here")


def write(path, rows, as_array=False):
    path.write_text(json.dumps(rows) if as_array else "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
