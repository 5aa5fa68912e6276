"""Proofs: what GRAM-R2's proving model (arXiv 2509.02492) writes, and the reversible rule between them and rationales.

    answer of the judge        proof that Response A is better
    <think>                    Here is my justification for why the selected response is the better one.
    body                 <->   body
    </think>                   Thus, Response A is better.
    <answer>
    A
    </answer>

The first and last sentence are the paper's. The prompt of its prover is not published: `prover_template` is ours.
"""

from dataclasses import replace

from gram_fast.errors import InputError, shown_value
from gram_fast.text.prompts import PairTemplate
from gram_fast.training.data.formats import Label

OPENING = "Here is my justification for why the selected response is the better one."
"""First sentence of every proof."""


def conclusion(label: Label) -> str:
    """Last sentence of a proof."""
    return f"Thus, Response {label} is better."


def write_proof(body: str, label: Label) -> str:
    """Makes the proof of a label of the text of a rationale."""
    return f"{OPENING}\n{body}\n{conclusion(label)}"


def read_proof(proof: str, label: Label) -> str:
    """Inverts `write_proof` -> the text of the rationale, to the letter; white space around the proof is ignored.

    Raises InputError, which says what is wrong, for text that is no proof and for the proof of the other label.
    """
    begin, end = f"{OPENING}\n", f"\n{conclusion(label)}"
    text, other = proof.strip(), conclusion("B" if label == "A" else "A")
    if not text.startswith(begin):
        raise InputError(f"expected a proof, which begins with {OPENING!r} and a newline, got {shown_value(text[:60])}")
    if text.endswith(f"\n{other}"):
        raise InputError(f"expected the proof that Response {label} is better, got one that ends with {other!r}")
    if not text.endswith(end) or len(text) < len(begin) + len(end):
        raise InputError(
            f"expected a proof, which ends with the line {conclusion(label)!r}, got {shown_value(text[-60:])}"
        )
    return text[len(begin) : len(text) - len(end)]


def prover_template(template: PairTemplate, label: Label) -> PairTemplate:
    """The prompt of a proving model: the judge's text, and below it which response is selected.

    What is written behind it is the proof.
    """
    request = (
        f"\n\n[Selected Response]\nResponse {label} is better. Do not judge again, but justify this selection: "
        f'begin with "{OPENING}", and end with "{conclusion(label)}"'
    )
    literals = (*template.literals[:-1], template.literals[-1] + request)
    return replace(template, literals=literals, reasons=True, answer_prefix="", answer_suffix="")
