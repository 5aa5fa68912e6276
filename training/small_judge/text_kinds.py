"""Kinds of tasks about the form of a text: sentence edits, letter case, lists, brackets, spelling and JSON."""

import json
import random
from collections.abc import Sequence
from typing import Any

from gram_fast.training.small_judge.task import GIVE, Task, listed, make_task, with_at
from gram_fast.training.small_judge.words import NAMES, NOUNS, SENTENCES, WORDS


def replace_word(rng: random.Random) -> Task:
    """Replace one word of a sentence."""
    words, choices = _sentence(rng)
    place, other = rng.sample(sorted(choices), 2)
    new = rng.choice([word for word in choices[place] if word != words[place]])
    ask = rng.choice(('Replace "{}" with "{}": {}', 'Write "{1}" for "{0}" in this sentence: {2}'))
    wrong = [with_at(words, place, word) for word in choices[place] if word not in (new, words[place])]
    wrong += [with_at(words, other, word) for word in choices[other] if word != words[other]]
    return _edited(rng, "replace_word", ask.format(words[place], new, _text(words)), with_at(words, place, new), wrong)


def remove_word(rng: random.Random) -> Task:
    """Remove one word of a sentence."""
    words, choices = _sentence(rng)
    place = rng.choice(sorted(choices))
    ask = rng.choice(('Remove the word "{}": {}', 'Delete "{}" from this sentence: {}'))
    wrong = [words[:other] + words[other + 1 :] for other in choices if other != place]
    return _edited(
        rng, "remove_word", ask.format(words[place], _text(words)), words[:place] + words[place + 1 :], wrong
    )


def append_word(rng: random.Random) -> Task:
    """Append a word to a sentence."""
    (words, _), new = _sentence(rng), rng.choice(NOUNS)
    ask = rng.choice(('Add "{}" at the end: {}', 'Write this sentence with "{}" as its last word: {}'))
    wrong = [[*words, noun] for noun in rng.sample([noun for noun in NOUNS if noun != new], 2)]
    return _edited(rng, "append_word", ask.format(new, _text(words)), [*words, new], wrong)


def repeat(rng: random.Random) -> Task:
    """Repeat a sentence."""
    words, choices = _sentence(rng)
    ask = rng.choice(("Repeat exactly: {}", "Copy this sentence: {}"))
    wrong = [with_at(words, place, word) for place in choices for word in choices[place] if word != words[place]]
    return _edited(rng, "repeat", ask.format(_text(words)), words, wrong)


def change_case(rng: random.Random) -> Task:
    """Change words to upper case, lower case or initial capitals."""
    words = rng.sample(NOUNS, rng.randint(2, 4))
    cases = {"capital letters": str.upper, "small letters": str.lower, "initial capitals": str.capitalize}
    name = rng.choice(sorted(cases))
    given = rng.choice([case for other, case in cases.items() if other != name])
    ask = rng.choice(("Write in {}: {}", "Change to {}: {}"))
    prompt = ask.format(name, " ".join(map(given, words)))
    wrong = [" ".join(map(case, words)) for other, case in cases.items() if other != name]
    replaced = rng.choice([noun for noun in NOUNS if noun not in words])
    wrong.append(" ".join(map(cases[name], [*words[:-1], replaced])))
    return make_task(rng, "change_case", prompt, " ".join(map(cases[name], words)), wrong, GIVE)


def list_format(rng: random.Random) -> Task:
    """Format words as a list with a given marker."""
    return _formatted(rng, "list_format", list(_LINES)[:4], NOUNS)


def number_format(rng: random.Random) -> Task:
    """Format numbers as a list with a given marker, letters included."""
    return _formatted(rng, "number_format", list(_LINES), [str(n) for n in range(10, 100)])


def lettered(rng: random.Random) -> Task:
    """Format words as a list with letters."""
    return _formatted(rng, "lettered", ["letters"], NOUNS)


def wrap(rng: random.Random) -> Task:
    """Put a word in given quotes or brackets."""
    return _wrapped(rng, "wrap", list(_MARKS)[:4], WORDS)


def wrap_name(rng: random.Random) -> Task:
    """Put a name in given quotes or brackets, curly ones included."""
    return _wrapped(rng, "wrap_name", list(_MARKS), NAMES)


def wrap_curly(rng: random.Random) -> Task:
    """Put a word in curly brackets."""
    return _wrapped(rng, "wrap_curly", ["curly brackets"], WORDS)


def spell(rng: random.Random) -> Task:
    """Spell a word with hyphens between its letters."""
    word = rng.choice(WORDS)
    ask = rng.choice(('Spell "{}" with hyphens.', 'Write the letters of "{}" with hyphens between them.'))
    wrong = rng.sample([other for other in WORDS if other != word and abs(len(other) - len(word)) < 3], 3)
    return make_task(rng, "spell", ask.format(word), "-".join(word), ["-".join(other) for other in wrong], GIVE)


def json_object(rng: random.Random) -> Task:
    """Write a JSON object with one key."""
    keys, values = ("name", "city", "item", "title"), NAMES + NOUNS
    key, value = rng.choice(keys), rng.choice(values)
    ask = rng.choice(('Write a JSON object with key "{}" and value "{}".', 'As JSON, with "{}" set to "{}":'))
    wrong = [json.dumps({other: value}) for other in keys if other != key]
    wrong += [json.dumps({key: other}) for other in rng.sample([v for v in values if v != value], 3)]
    return make_task(rng, "json_object", ask.format(key, value), json.dumps({key: value}), wrong, GIVE)


def _edited(rng: random.Random, kind: str, prompt: str, right: list[str], wrong: list[list[str]]) -> Task:
    return make_task(rng, kind, prompt, _text(right), [_text(words) for words in wrong], GIVE)


_LINES = {"dashes": "- {}", "numbers": "{n}. {}", "plus signs": "+ {}", "stars": "* {}", "letters": "{letter}) {}"}


def _formatted(rng: random.Random, kind: str, names: list[str], material: Sequence[str]) -> Task:
    words = rng.sample(material, rng.randint(2, 4))
    name = rng.choice(names)

    def written(line: str, items: list[str]) -> str:
        return "\n".join(line.format(item, n=n + 1, letter="abcd"[n]) for n, item in enumerate(items))

    ask = rng.choice(("Write as a list with {}: {}", "Make a list with {} of: {}"))
    wrong = [written(line, words) for other, line in _LINES.items() if other != name]
    replaced = rng.choice([item for item in material if item not in words])
    wrong.append(written(_LINES[name], [*words[:-1], replaced]))
    phrasings = ("{}", "Here it is:\n{}")
    return make_task(rng, kind, ask.format(name, listed(words)), written(_LINES[name], words), wrong, phrasings)


_MARKS = {
    "double quotes": '"{}"',
    "square brackets": "[{}]",
    "angle brackets": "<{}>",
    "round brackets": "({})",
    "curly brackets": "{{{}}}",
}


def _wrapped(rng: random.Random, kind: str, names: list[str], material: Sequence[str]) -> Task:
    name, word = rng.choice(names), rng.choice(material)
    ask = rng.choice(("Put the word {} in {}.", "Write {} in {}.", "Set {} in {}.")).format(word, name)
    wrong = [mark.format(word) for other, mark in _MARKS.items() if other != name]
    wrong.append(_MARKS[name].format(rng.choice([other for other in material if other != word])))
    return make_task(rng, kind, ask, _MARKS[name].format(word), wrong, GIVE)


def _sentence(rng: random.Random) -> tuple[list[str], dict[int, tuple[str, ...]]]:
    """Draws a sentence -> its words, and the alternatives at each place that has any."""
    parts: Any = rng.choice(SENTENCES)
    choices = {place: part for place, part in enumerate(parts) if isinstance(part, tuple)}
    return [rng.choice(choices[place]) if place in choices else part for place, part in enumerate(parts)], choices


def _text(words: list[str]) -> str:
    return " ".join(words) + "."
