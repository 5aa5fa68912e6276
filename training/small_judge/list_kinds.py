"""Kinds of tasks about lists: sorting, copying, selecting entries by position, counting and categories."""

import random
from collections.abc import Callable
from typing import Any

from gram_fast.training.small_judge.task import GIVE, Task, listed, make_choice, make_task, with_at
from gram_fast.training.small_judge.words import CATEGORIES, CITIES, MONTHS, NAMES, NOUNS


def sort_up(rng: random.Random) -> Task:
    """Sort numbers in ascending order."""
    asks = ("Sort from smallest to largest: {}", "Put these numbers in ascending order: {}")
    return _reordered(rng, "sort_up", asks, rng.sample(range(10, 100), rng.randint(3, 5)), sorted)


def sort_down(rng: random.Random) -> Task:
    """Sort numbers in descending order."""
    asks = ("Sort from largest to smallest: {}", "Put these numbers in descending order: {}")
    return _reordered(rng, "sort_down", asks, rng.sample(range(10, 100), rng.randint(3, 5)), _sorted_down)


def sort_words(rng: random.Random) -> Task:
    """Sort words alphabetically; their first letters differ."""
    asks = ("Sort these words alphabetically: {}", "Put in alphabetical order: {}")
    return _reordered(rng, "sort_words", asks, _words(rng), sorted)


def reverse(rng: random.Random) -> Task:
    """Reverse a list of words or numbers."""
    items = _words(rng) if rng.random() < 0.5 else rng.sample(range(10, 100), rng.randint(3, 5))
    return _reordered(
        rng, "reverse", ("Reverse this list: {}", "Write in reverse order: {}"), items, lambda items: items[::-1]
    )


def copy(rng: random.Random) -> Task:
    """Copy a list of words or numbers."""
    items = _words(rng) if rng.random() < 0.5 else rng.sample(range(10, 100), rng.randint(3, 5))
    return _reordered(rng, "copy", ("Copy this list: {}", "Repeat in the same order: {}"), items, list)


def recite(rng: random.Random) -> Task:
    """Repeat six to twelve words; wrong answers have two words exchanged or one replaced."""
    words = rng.sample(NAMES + NOUNS + CITIES, rng.randint(6, 12))
    ask = rng.choice(("Repeat these words: {}", "Say once more: {}"))
    a, b = rng.sample(range(len(words)), 2)
    other = rng.choice([noun for noun in NOUNS if noun not in words])
    wrong = [with_at(with_at(words, a, words[b]), b, words[a]), with_at(words, a, other)]
    right = " ".join(words)
    return make_task(rng, "recite", ask.format(right), right, [" ".join(some) for some in wrong], GIVE)


def swap_ends_of_numbers(rng: random.Random) -> Task:
    """Swap the first and the last of some numbers."""
    return _ends_swapped(rng, "swap_ends_of_numbers", rng.sample(range(10, 100), rng.randint(4, 5)))


def swap_ends(rng: random.Random) -> Task:
    """Swap the first and the last of some words."""
    return _ends_swapped(rng, "swap_ends", _words(rng, 4))


def append_number(rng: random.Random) -> Task:
    """Append a number to a list of numbers."""
    *numbers, new = rng.sample(range(10, 100), rng.randint(4, 6))
    ask = rng.choice(("Add {} at the end: {}", "Write this list with {} as its last number: {}"))
    wrong = [[*numbers, n] for n in rng.sample([n for n in range(10, 100) if n != new], 2)]
    wrong.append([new, *numbers])
    prompt, right = ask.format(new, listed(numbers)), listed([*numbers, new])
    return make_task(rng, "append_number", prompt, right, [listed(some) for some in wrong], GIVE)


def count(rng: random.Random) -> Task:
    """Count the words of a list."""
    words = rng.sample(NOUNS, rng.randint(2, 8))
    ask = rng.choice(("How many words are in this list: {}?", "Count the words: {}"))
    wrong = [str(n) for n in range(2, 9) if n != len(words)]
    return make_choice(rng, "count", ask.format(listed(words)), str(len(words)), wrong)


def first_or_last(rng: random.Random) -> Task:
    """Name the first or the last word of a list."""
    words = rng.sample(NOUNS, rng.randint(3, 5))
    return _entry(rng, "first_or_last", "word", words, (("first", 0), ("last", -1)))


def which_number(rng: random.Random) -> Task:
    """Name the first, second, third or last number of a list."""
    numbers = [str(n) for n in rng.sample(range(10, 100), rng.randint(4, 5))]
    return _entry(rng, "which_number", "number", numbers, (("first", 0), ("second", 1), ("third", 2), ("last", -1)))


def second(rng: random.Random) -> Task:
    """Name the second word of a list."""
    words = rng.sample(NOUNS, rng.randint(3, 5))
    ask = rng.choice(("What is the second word of: {}?", "Name the second item: {}"))
    return make_choice(rng, "second", ask.format(listed(words)), words[1], [words[0], *words[2:]], "The second is {}.")


def category(rng: random.Random) -> Task:
    """Name the word of a list that belongs to a category."""
    name = rng.choice(sorted(CATEGORIES))
    others = [rng.choice(CATEGORIES[other]) for other in rng.sample(sorted(set(CATEGORIES) - {name}), 3)]
    right = rng.choice(CATEGORIES[name])
    ask = rng.choice(("Which of these is a kind of {}: {}?", "Name the {} among: {}"))
    return make_choice(rng, "category", ask.format(name, listed(rng.sample([right, *others], 4))), right, others)


def month(rng: random.Random) -> Task:
    """Decide which of two months comes first or later in the year."""
    a, b = rng.sample(range(12), 2)
    word = rng.choice(("first", "later"))
    right = min(a, b) if word == "first" else max(a, b)
    ask = rng.choice(("Which month comes {} in the year, {} or {}?", "What comes {}, {} or {}?"))
    return make_choice(rng, "month", ask.format(word, MONTHS[a], MONTHS[b]), MONTHS[right], [MONTHS[a + b - right]])


def _reordered(
    rng: random.Random, kind: str, asks: tuple[str, ...], items: list[Any], order: Callable[[list[Any]], list[Any]]
) -> Task:
    """A task whose answer is the list in the given order; wrong answers are orders that other tasks ask for."""
    right = order(items)
    orders = [sorted(items), _sorted_down(items), items[::-1], items]
    wrong = list(dict.fromkeys(listed(other) for other in orders if other != right))
    expected = listed(right).split(", ")
    prompt = rng.choice(asks).format(listed(items))
    return make_task(
        rng, kind, prompt, listed(right), wrong, GIVE, lambda text: text.rpartition(": ")[2].split(", ") == expected
    )


def _entry(rng: random.Random, kind: str, noun: str, items: list[str], places: tuple[tuple[str, int], ...]) -> Task:
    """A task whose answer is the entry of a list at one of the named places."""
    name, place = rng.choice(places)
    ask = rng.choice((f"What is the {{}} {noun} of: {{}}?", "Name the {} item: {}"))
    wrong = [item for item in items if item != items[place]]
    return make_choice(rng, kind, ask.format(name, listed(items)), items[place], wrong, f"The {name} is {{}}.")


def _ends_swapped(rng: random.Random, kind: str, items: list[Any]) -> Task:
    asks = ("Swap the first and the last: {}", "Exchange the first and last entry: {}")
    return _reordered(rng, kind, asks, items, lambda items: [items[-1], *items[1:-1], items[0]])


def _words(rng: random.Random, at_least: int = 3) -> list[str]:
    """Draws `at_least` to five nouns with different first letters."""
    by_letter: dict[str, list[str]] = {}
    for noun in NOUNS:
        by_letter.setdefault(noun[0], []).append(noun)
    return [rng.choice(by_letter[letter]) for letter in rng.sample(sorted(by_letter), rng.randint(at_least, 5))]


def _sorted_down(items: list[Any]) -> list[Any]:
    return sorted(items, reverse=True)
