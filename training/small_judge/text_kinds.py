"""Kinds of tasks about a text: sentence edits, letter case, spelling and JSON."""

import json
import random
from typing import Any

from gram_fast.training.small_judge.task import Problem, others, with_at
from gram_fast.training.small_judge.wordings import GIVE
from gram_fast.training.small_judge.words import NAMES, NOUNS, SENTENCES, WORDS


def replace_word(rng: random.Random) -> Problem:
    """Replace one word of a sentence."""
    words, choices = _sentence(rng)
    asks = (
        'Replace "{old}" with "{new}": {text}',
        'Write "{new}" for "{old}" in this sentence: {text}',
        'Change the word "{old}" to "{new}": {text}',
        '{text}\nReplace the word "{old}" with "{new}".',
        'In "{text}", put "{new}" where "{old}" stands.',
        "Replace {old} with {new}: {text}",
        'Can you write "{new}" instead of "{old}" in this sentence? {text}',
        "Exchange {old} for {new}: {text}",
        'Please change "{old}" into "{new}": {text}',
        'Use "{new}" in place of "{old}" here: {text}',
        'Here is a sentence: {text} Write it with "{new}" instead of "{old}".',
        "What is this sentence with {new} instead of {old}? {text}",
        'Swap out "{old}" for "{new}" in: {text}',
        "Change {old} to {new} in this sentence.\n{text}",
        'Let "{new}" take the place of "{old}" in this sentence: {text}',
        '"{text}" Now with {new} instead of {old}, please.',
    )
    place, other = rng.sample(sorted(choices), 2)
    new = rng.choice([word for word in choices[place] if word != words[place]])
    wrong = [with_at(words, place, word) for word in choices[place] if word not in (new, words[place])]
    wrong += [with_at(words, other, word) for word in choices[other] if word != words[other]]
    old, right = words[place], with_at(words, place, new)
    return _edited(rng, asks, words, right, wrong, f"{new} for {old}", old=old, new=new)


def remove_word(rng: random.Random) -> Problem:
    """Remove one word of a sentence."""
    words, choices = _sentence(rng)
    asks = (
        'Remove the word "{old}": {text}',
        'Delete "{old}" from this sentence: {text}',
        "Remove {old}: {text}",
        '{text}\nDelete the word "{old}".',
        'Leave out "{old}" and write the rest of "{text}"',
        'Take the word "{old}" out: {text}',
        'Can you remove "{old}" from this sentence? {text}',
        "Delete {old}: {text}",
        'Please delete the word "{old}": {text}',
        'What is this sentence without "{old}"? {text}',
        'Here is a sentence: {text} Write it without the word "{old}".',
        "Write this without {old}: {text}",
        'Strike out "{old}": {text}',
        "Remove the word {old} from this sentence.\n{text}",
        'Give me this sentence without the word "{old}": {text}',
        '"{text}" Now without {old}, please.',
        "Leave out {old}: {text}",
    )
    place = rng.choice(sorted(choices))
    wrong = [words[:other] + words[other + 1 :] for other in choices if other != place]
    old, right = words[place], words[:place] + words[place + 1 :]
    return _edited(rng, asks, words, right, wrong, f"without {old}", old=old)


def append_word(rng: random.Random) -> Problem:
    """Append a word to a sentence."""
    words, _ = _sentence(rng)
    asks = (
        'Add "{new}" at the end: {text}',
        'Write this sentence with "{new}" as its last word: {text}',
        'Append "{new}" to this sentence: {text}',
        '{text}\nAdd "{new}" to the end of this sentence.',
        'Put "{new}" behind the last word of "{text}"',
        "Append {new}: {text}",
        'Can you add "{new}" at the end of this sentence? {text}',
        'Please append the word "{new}" to this sentence: {text}',
        'What is this sentence with "{new}" added at the end? {text}',
        'Here is a sentence: {text} Write it with "{new}" at the end.',
        "Add {new} as the last word.\n{text}",
        "{text} - with {new} at its end, please.",
    )
    new, *more = rng.sample(NOUNS, 3)
    wrong = [[*words, noun] for noun in more]
    return _edited(rng, asks, words, [*words, new], wrong, f"{new} at the end", new=new)


def repeat(rng: random.Random) -> Problem:
    """Repeat a sentence."""
    words, choices = _sentence(rng)
    asks = (
        "Repeat exactly: {text}",
        "Copy this sentence: {text}",
        "Write this sentence again: {text}",
        "{text}\nRepeat this sentence.",
        "Say the following sentence once more: {text}",
        "Repeat this: {text}",
        'Can you repeat "{text}"',
        "Copy: {text}",
        "Please write the same sentence: {text}",
        "What does this sentence say? {text}",
        "Here is a sentence: {text} Write it once more.",
        "Repeat the sentence word for word.\n{text}",
        'Copy what stands in quotes: "{text}"',
        "Do not change this sentence, only repeat it: {text}",
        "Read this back to me: {text}",
        '"{text}" Once more, please.',
    )
    wrong = [with_at(words, place, word) for place in choices for word in choices[place] if word != words[place]]
    return _edited(rng, asks, words, words, wrong, "the same")


_CASES = {
    str.upper: {"capitals": "capital letters", "uppercase": "uppercase", "upper": "upper case"},
    str.lower: {"capitals": "small letters", "uppercase": "lowercase", "upper": "lower case"},
    str.title: {"capitals": "initial capitals", "uppercase": "title case", "upper": "title case"},
}


def change_case(rng: random.Random) -> Problem:
    """Change words to upper case, lower case or initial capitals."""
    asks = (
        "Write in {capitals}: {text}",
        "Change to {capitals}: {text}",
        "Write this in {uppercase}: {text}",
        "{text}\nWrite these words in {capitals}.",
        'Turn "{text}" into {uppercase}.',
        "Convert to {uppercase}: {text}",
        "Can you write {text} in {capitals}?",
        "{text} in {upper}, please.",
        "Please change these words to {uppercase}: {text}",
        "What is {text} in {capitals}?",
        "Here are some words: {text}. Write them in {upper}.",
        "Put in {upper}: {text}",
        "Use {capitals} for these words: {text}",
        "Rewrite in {uppercase}: {text}",
        "How do you write {text} in {upper}?",
        'Write "{text}" with {capitals}.',
    )
    words = rng.sample(NOUNS, rng.randint(2, 4))
    right, given, other = rng.sample(list(_CASES), 3)
    text = " ".join(words)
    replaced = " ".join([*words[:-1], *others(NOUNS, words, 1, rng)])
    wrong = [given(text), other(text), right(replaced)]
    fields = {**_CASES[right], "text": given(text)}
    return Problem(asks, fields, right(text), wrong, GIVE, _CASES[right]["uppercase"])


def spell(rng: random.Random) -> Problem:
    """Spell a word with hyphens between its letters."""
    asks = (
        'Spell "{word}" with hyphens.',
        'Write the letters of "{word}" with hyphens between them.',
        "Spell {word} with a hyphen between its letters.",
        "{word}: spell it with hyphens.",
        "How is {word} spelled, letter by letter with hyphens?",
        "Spell the word {word}, with hyphens.",
        'Can you spell "{word}"? Put hyphens between the letters.',
        "Spell: {word}",
        "Please spell {word} letter by letter.",
        'What are the letters of "{word}"? Put hyphens between them.',
        "Here is a word: {word}. Spell it with hyphens.",
        "Write {word} letter by letter with hyphens.",
        'Put a hyphen between the letters of "{word}".',
        "How do you spell {word}? Use hyphens.",
        "Take {word} apart into its letters, with hyphens between them.",
        "{word}\nSpell this word with hyphens.",
    )
    word = rng.choice(WORDS)
    similar = [other for other in WORDS if other != word and abs(len(other) - len(word)) < 3]
    return Problem(asks, {"word": word}, "-".join(word), ["-".join(rng.choice(similar))], GIVE, f"letters of {word}")


def json_object(rng: random.Random) -> Problem:
    """Write a JSON object with one key."""
    asks = (
        'Write a JSON object with key "{key}" and value "{value}".',
        'As JSON, with "{key}" set to "{value}":',
        "Give me JSON in which {key} is {value}.",
        "{key}: {value}\nWrite this as JSON.",
        'Make a JSON object that has "{value}" under "{key}".',
        'Write JSON with the key "{key}" and the value "{value}".',
        "Can you write {key} = {value} as a JSON object?",
        "JSON with {key} {value}",
        'Please write a JSON object whose key "{key}" has the value "{value}".',
        "What is the JSON object for {key} {value}?",
        "Here is an entry: {key} {value}. Write it as JSON.",
        'Create a JSON object: key "{key}", value "{value}"',
        "Convert to JSON: {key} = {value}",
        'Return JSON with "{key}" as the key and "{value}" as the value.',
        "Put the {key} {value} into a JSON object.",
        "Set {key} to {value} in a JSON object.",
    )
    keys, values = ("name", "city", "item", "title"), NAMES + NOUNS
    key, *other_keys = rng.sample(keys, 3)
    value, *other_values = rng.sample(values, 3)
    wrong = [json.dumps({other: value}) for other in other_keys] + [json.dumps({key: other}) for other in other_values]
    fields = {"key": key, "value": value}
    answers = (*GIVE, "```json\n{answer}\n```")
    return Problem(asks, fields, json.dumps({key: value}), wrong, answers, f"key {key}, value {value}")


def _edited(
    rng: random.Random,
    asks: tuple[str, ...],
    words: list[str],
    right: list[str],
    wrong: list[list[str]],
    working: str,
    **fields: str,
) -> Problem:
    some = rng.sample(wrong, min(3, len(wrong)))
    return Problem(asks, {"text": _text(words), **fields}, _text(right), list(map(_text, some)), GIVE, working)


def _sentence(rng: random.Random) -> tuple[list[str], dict[int, tuple[str, ...]]]:
    """Draws a sentence -> its words, and the alternatives at each place that has any."""
    parts: Any = rng.choice(SENTENCES)
    choices = {place: part for place, part in enumerate(parts) if isinstance(part, tuple)}
    return [rng.choice(choices[place]) if place in choices else part for place, part in enumerate(parts)], choices


def _text(words: list[str]) -> str:
    return " ".join(words) + "."
