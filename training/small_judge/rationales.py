"""Rationales of preferences between two responses, for judges that reason before they answer: written and checked.

A rationale computes the right answer, then says what each response answers and whether that is right:

    ascending
    Answer: 15, 31, 48, 72
    A: 15, 48 ...: wrong
    B: 15, 31, 48, 72: right
    B is better.

The first line is the working, which some problems have none of. A line break within an answer is written as " / ". What
a response answers is quoted up to the first place that differs from the right answer, so that nothing further back has
to be compared for the verdict. Where both responses are right, or both wrong, there is no last line.
"""

import re
from itertools import zip_longest

from gram_fast.training.small_judge.task import Answer, Problem, Task, numbered

CLAIMS = ("working", "answer", "quote A", "verdict A", "quote B", "verdict B", "conclusion", "consistency")
"""What `check_rationale` checks, in the order in which a rationale claims it."""

_LINES = {
    "answer": re.compile(r"Answer: (.*)"),
    "A": re.compile(r"A: (.*): (right|wrong)"),
    "B": re.compile(r"B: (.*): (right|wrong)"),
    "conclusion": re.compile(r"([AB]) is better\."),
}
_CUT = " ..."


def rationale(task: Task, response_a: str, response_b: str) -> str:
    """Writes the rationale of a comparison of two responses to a task's prompt: three to five lines.

    A response in no wording of the task's kind is taken for its answer as a whole.
    """
    problem = task.problem
    verdicts = {"A": is_right(task, response_a), "B": is_right(task, response_b)}
    lines = [worked(task)]
    for slot, response in (("A", response_a), ("B", response_b)):
        lines.append(f"{slot}: {_quote(problem, read_answer(task, response))}: {_verdict(verdicts[slot])}")
    if better := _better(verdicts):
        lines.append(f"{better} is better.")
    return "\n".join(lines)


def worked(task: Task) -> str:
    """Writes the right answer as the first lines of a rationale do: the working, if any, and the answer."""
    answer = f"Answer: {_right(task.problem)}"
    return f"{task.problem.working}\n{answer}" if task.problem.working else answer


def check_rationale(task: Task, response_a: str, response_b: str, body: str) -> list[str]:
    """Checks a rationale, whoever wrote it -> the names in `CLAIMS` of what is false in it or missing.

    - "working": what stands outside the other lines is the working of the problem.
    - "answer": it is the right answer.
    - "quote A", "quote B": it is what the response answers, or a beginning that already differs from the right answer.
    - "verdict A", "verdict B": the response is right or wrong, as is said.
    - "conclusion": it names the one response that is right; where there is not exactly one, it is left out.
    - "consistency": the conclusion follows from the rationale's own verdicts, true or not.
    """
    problem = task.problem
    found, rest = _parse(body)
    truth = {slot: is_right(task, response) for slot, response in (("A", response_a), ("B", response_b))}
    said = {slot: found[slot][1] == _verdict(True) for slot in truth if slot in found}
    conclusion = found["conclusion"][0] if "conclusion" in found else None
    right = _entries(problem, _right(problem))
    holds = {
        "working": " ".join(rest).split() == problem.working.split(),
        "answer": "answer" in found and _entries(problem, found["answer"][0]) == right,
        "conclusion": conclusion == _better(truth),
        "consistency": len(said) == 2 and conclusion == _better(said),
    }
    for slot, response in (("A", response_a), ("B", response_b)):
        whole = _entries(problem, _shown(problem, read_answer(task, response)))
        holds[f"quote {slot}"] = slot in found and _is_quote(problem, found[slot][0], whole, right)
        holds[f"verdict {slot}"] = slot in said and said[slot] == truth[slot]
    return [claim for claim in CLAIMS if not holds[claim]]


def is_right(task: Task, response: str) -> bool:
    """Checks whether the answer in a response is right; where any words are, also with other words than the task's."""
    problem, answer = task.problem, read_answer(task, response)
    return len(answer) == len(problem.right) if problem.any_words else answer == problem.right


def read_answer(task: Task, response: str) -> Answer:
    """Finds the answer in a response: a text, or a list where the task asks for one.

    It is what the most explicit of the kind's wordings leaves; a response in none of them is its own answer.
    """
    problem, mark = task.problem, "\0"
    is_list = isinstance(problem.right, list)
    answer = response
    for wording in problem.answers + task.answers:
        before, after = problem.response([mark] if is_list else mark, wording).split(mark)
        if response.startswith(before) and response.removeprefix(before).endswith(after):
            answer = min(answer, response.removeprefix(before).removesuffix(after), key=len)
    return re.split(r", |\s", answer) if is_list else answer


def _right(problem: Problem) -> str:
    """The right answer in one line: how many words, where any are right."""
    return f"{len(problem.right)} {problem.fields['words']}" if problem.any_words else _shown(problem, problem.right)


def _shown(problem: Problem, answer: Answer) -> str:
    """An answer in one line."""
    if isinstance(answer, list):
        return numbered(answer) if problem.any_words else ", ".join(answer)
    return " / ".join(answer.splitlines())


def _quote(problem: Problem, answer: Answer) -> str:
    """An answer in one line, up to the first of its entries that is not that of the right answer."""
    shown = _shown(problem, answer)
    if problem.any_words:
        return shown
    entries, right = _entries(problem, shown), _entries(problem, _right(problem))
    places = (n for n, (one, other) in enumerate(zip_longest(entries, right), 1) if one != other)
    kept = entries[: next(places, None)]
    return (", " if isinstance(answer, list) else " ").join(kept) + _CUT * (len(kept) < len(entries))


def _verdict(right: bool) -> str:
    return "right" if right else "wrong"


def _better(verdicts: dict[str, bool]) -> str | None:
    """The one response that is right, if there is exactly one."""
    better = [slot for slot, right in verdicts.items() if right]
    return better[0] if len(better) == 1 else None


def _parse(body: str) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Splits a rationale into what the lines of `_LINES` say, by their names, and the other lines."""
    found: dict[str, tuple[str, ...]] = {}
    rest: list[str] = []
    for line in body.splitlines():
        for name, form in _LINES.items():
            if name not in found and (match := form.fullmatch(line)):
                found[name] = match.groups()
                break
        else:
            rest.append(line)
    return found, rest


def _entries(problem: Problem, shown: str) -> list[str]:
    """The entries of a list, however they are separated, or the words of a text."""
    return re.findall(r"[^\s,]+", shown) if isinstance(problem.right, list) else shown.split()


def _is_quote(problem: Problem, quote: str, whole: list[str], right: list[str]) -> bool:
    """Checks whether a quotation is the whole answer, or its beginning and already different from the right answer.

    Words that are counted are all quoted.
    """
    kept = _entries(problem, quote.removesuffix(_CUT))
    is_beginning = quote.endswith(_CUT) and whole[: len(kept)] == kept
    return (is_beginning and not problem.any_words and kept != right[: len(kept)]) or _entries(problem, quote) == whole
