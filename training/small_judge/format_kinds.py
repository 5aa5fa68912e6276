"""Kinds of tasks about the form of a text: lists with markers, quotes and brackets."""

import random
from collections.abc import Sequence

from gram_fast.training.small_judge.task import Problem, forms, others
from gram_fast.training.small_judge.wordings import GIVE, GIVE_LINES
from gram_fast.training.small_judge.words import NAMES, NOUNS, WORDS

# Form of a line, and its names.
_LINES = {
    "- {item}": {"dashes": "dashes", "dash": "a dash", "sign": "-"},
    "{n}. {item}": {"dashes": "numbers", "dash": "a number", "sign": "1."},
    "+ {item}": {"dashes": "plus signs", "dash": "a plus sign", "sign": "+"},
    "* {item}": {"dashes": "stars", "dash": "a star", "sign": "*"},
    "{letter}) {item}": {"dashes": "letters", "dash": "a letter", "sign": "a)"},
}
_LISTS = list(_LINES)
_FORMAT = (
    "Write as a list with {dashes}: {items}",
    "Make a list with {dashes} of: {items}",
    "Make a list with {dashes}: {items}",
    "{items}\nWrite these as a list with {dashes}.",
    "Format {items} as a list in which each line begins with {dash}.",
    "List these with {dashes}: {items}",
    "Can you make a list with {dashes} of {items}?",
    "List with {dashes}: {spaced}",
    "Please write {items} as a list with {dashes}.",
    "Turn this into a list, each line with {dash} in front: {items}",
    "Here are some things: {items}. Make a list of them with {dashes}.",
    "Put {dash} in front of each line:\n{lines}",
    'Write a list whose first line begins with "{sign}": {items}',
    "Use {dashes} for a list of {items}.",
    "One line for each of {items}, and {dash} before each of them.",
    "{items} - as a list with {dashes}, please.",
)
# Form of a text in marks, and the name of the marks.
_MARKS = {
    '"{}"': "double quotes",
    "[{}]": "square brackets",
    "<{}>": "angle brackets",
    "({})": "round brackets",
    "{{{}}}": "curly brackets",
}
_QUOTED = list(_MARKS)
_WRAP = (
    "Put the word {word} in {marks}.",
    "Write {word} in {marks}.",
    "Set {word} in {marks}.",
    "{word}\nPut this in {marks}.",
    "Surround {word} with {marks}.",
    "Use {marks} around {word}.",
    "Can you put {word} in {marks}?",
    "{word} in {marks}",
    "Please write {word} in {marks}.",
    "Put {marks} around {word}.",
    "Here is a word: {word}. Write it in {marks}.",
    "What is {word} in {marks}?",
    "Add {marks} around the word {word}.",
    "In {marks}: {word}",
    "How does {word} look in {marks}?",
    "Wrap {word} in {marks}.",
)


def list_format(rng: random.Random) -> Problem:
    """Format words as a list with a given marker."""
    return _formatted(rng, _LISTS[:4], NOUNS)


def number_format(rng: random.Random) -> Problem:
    """Format numbers as a list with a given marker, letters included."""
    return _formatted(rng, _LISTS, tuple(str(n) for n in range(10, 100)))


def lettered(rng: random.Random) -> Problem:
    """Format words as a list with letters."""
    return _formatted(rng, _LISTS[4:], NOUNS)


def wrap(rng: random.Random) -> Problem:
    """Put a word in given quotes or brackets."""
    return _wrapped(rng, _QUOTED[:4], WORDS)


def wrap_name(rng: random.Random) -> Problem:
    """Put a name in given quotes or brackets, curly ones included."""
    return _wrapped(rng, _QUOTED, NAMES)


def wrap_curly(rng: random.Random) -> Problem:
    """Put a word in curly brackets."""
    return _wrapped(rng, _QUOTED[4:], WORDS)


def _formatted(rng: random.Random, lines: Sequence[str], material: tuple[str, ...]) -> Problem:
    """A problem whose answer is a list; wrong are lists with other markers or with another last entry.

    Markers that are never right in a kind of the training are not wrong there either.
    """
    items = rng.sample(material, rng.randint(2, 4))
    line = rng.choice(lines)
    choices = lines if len(lines) > 1 else _LISTS
    wrong = [_list_of(items, other) for other in rng.sample(choices, 3) if other != line]
    wrong.append(_list_of([*items[:-1], *others(material, items, 1, rng)], line))
    names = _LINES[line]
    working = f"each line with {names['dash']}: {names['sign']}"
    return Problem(_FORMAT, {**names, **forms(items)}, _list_of(items, line), wrong, GIVE_LINES, working)


def _list_of(items: list[str], line: str) -> str:
    return "\n".join(line.format(item=item, n=n + 1, letter="abcd"[n]) for n, item in enumerate(items))


def _wrapped(rng: random.Random, marks: Sequence[str], material: tuple[str, ...]) -> Problem:
    """A problem whose answer is a word in marks; wrong are other marks or another word, as in `_formatted`."""
    mark = rng.choice(marks)
    word, other_word = rng.sample(material, 2)
    choices = marks if len(marks) > 1 else _QUOTED
    wrong = [other.format(word) for other in rng.sample(choices, 3) if other != mark] + [mark.format(other_word)]
    fields = {"word": word, "marks": _MARKS[mark]}
    return Problem(_WRAP, fields, mark.format(word), wrong, GIVE, f"{word} in {_MARKS[mark]}")
