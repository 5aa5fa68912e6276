"""Kinds of tasks whose answer is a list: sorted, reversed, copied or with one change."""

import random
from collections.abc import Callable

from gram_fast.training.small_judge.directions import DOWN, UP
from gram_fast.training.small_judge.task import Problem, forms, others, some_numbers, with_at
from gram_fast.training.small_judge.wordings import GIVE_LIST
from gram_fast.training.small_judge.words import BY_LETTER, CITIES, NAMES, NOUNS

_SORT_NUMBERS = (
    "Sort from {smallest} to {largest}: {items}",
    "Put these numbers in {ascending} order: {items}",
    "Sort these numbers in {increasing} order: {items}",
    "{items}\nSort these from {low} to {high}.",
    "Arrange the numbers {items} from the {lowest} to the {highest}.",
    "Order these numbers from {smallest} to {largest}: {spaced}",
    "Can you sort {items} in {ascending} order?",
    "Sort {ascending}: {items}",
    "Please put {items} in order, the {smallest} first.",
    "What is {items} in {ascending} order?",
    "Here are some numbers: {items}. List them from {low} to {high}.",
    "Sort the following numbers, beginning with the {smallest}:\n{lines}",
    "Rank these numbers from {lowest} to {highest}: {items}",
    "List {items} in {increasing} order.",
    "{lines}\nWrite these numbers again, the {smallest} first and the {largest} last.",
    "{items} - sort these in {ascending} order, please.",
    "Arrange in {increasing} order: {items}",
    "How do the numbers {items} look when sorted from {low} to {high}?",
    "Please sort these numbers: {items}. The {smallest} comes first.",
    "Give me {items} sorted from {smallest} to {largest}.",
)
_SORT_WORDS = (
    "Sort these words alphabetically: {items}",
    "Put in alphabetical order: {items}",
    "Sort from A to Z: {items}",
    "{items}\nSort these words by the alphabet.",
    "Arrange the words {items} alphabetically.",
    "Order these words from a to z: {spaced}",
    "Can you put {items} in alphabetical order?",
    "Sort alphabetically: {items}",
    "Please put these words in order of the alphabet: {items}",
    "What is the alphabetical order of {items}?",
    "Here are some words: {items}. List them in alphabetical order.",
    "Sort the following words from A to Z:\n{lines}",
    "Alphabetize: {items}",
    "List {items} in alphabetical order.",
    "{lines}\nWrite these again as they stand in a dictionary.",
    "{items} - in alphabetical order, please.",
    "Sort these words as in a dictionary: {items}",
    "Sort the words {items}.",
    "How are {items} sorted from A to Z?",
    "Please sort these words: {items}",
)
_SORT_WORDS_DOWN = (
    "Sort these words from Z to A: {items}",
    "Put in reverse alphabetical order: {items}",
    "Sort from Z to A: {items}",
    "{items}\nSort these words from z to a.",
    "Arrange the words {items} from Z to A.",
    "Order these words from z to a: {spaced}",
    "Can you put {items} in reverse alphabetical order?",
    "Sort in reverse alphabetical order: {items}",
    "Please put these words in order from Z to A: {items}",
    "What is the reverse alphabetical order of {items}?",
    "Here are some words: {items}. List them in reverse alphabetical order.",
    "Sort the following words from Z to A:\n{lines}",
    "Alphabetize from Z to A: {items}",
    "List {items} in reverse alphabetical order.",
    "{lines}\nWrite these again from Z to A, as they stand in a dictionary read from its end.",
    "{items} - in reverse alphabetical order, please.",
)


def sort_up(rng: random.Random) -> Problem:
    """Sort numbers in ascending order."""
    return _reordered(rng, _SORT_NUMBERS, "ascending", _numbers(rng), _sorted_up, UP)


def sort_down(rng: random.Random) -> Problem:
    """Sort numbers in descending order."""
    return _reordered(rng, _SORT_NUMBERS, "descending", _numbers(rng), _sorted_down, DOWN)


def sort_words(rng: random.Random) -> Problem:
    """Sort words alphabetically; their first letters differ."""
    return _reordered(rng, _SORT_WORDS, "A to Z", _words(rng), _sorted_up)


def sort_words_down(rng: random.Random) -> Problem:
    """Sort words from Z to A; their first letters differ."""
    return _reordered(rng, _SORT_WORDS_DOWN, "Z to A", _words(rng), _sorted_down)


def sort_names(rng: random.Random) -> Problem:
    """Sort names alphabetically; their first letters differ."""
    names = {name[0]: name for name in rng.sample(NAMES, 8)}
    some = rng.sample(sorted(names.values()), rng.randint(3, 5))
    return _reordered(rng, _SORT_WORDS, "A to Z", some, _sorted_up)


def reverse(rng: random.Random) -> Problem:
    """Reverse a list of words or numbers."""
    asks = (
        "Reverse this list: {items}",
        "Write in reverse order: {items}",
        "Turn this list around: {items}",
        "{items}\nWrite these from the last to the first.",
        "Give me {items} in reverse.",
        "Write this list backwards: {spaced}",
        "Can you reverse {items}?",
        "Reverse: {items}",
        "Please reverse the order of {items}.",
        "What is {items} in reverse order?",
        "Here is a list: {items}. Write it from back to front.",
        "Reverse the order of these lines:\n{lines}",
        "List {items} in the opposite order.",
        "Read this list from its end: {items}",
        "{lines}\nNow the same in reverse order.",
        "{items} - the other way around, please.",
    )
    return _reordered(rng, asks, "reversed", _items(rng), lambda items: items[::-1])


def copy(rng: random.Random) -> Problem:
    """Copy a list of words or numbers."""
    asks = (
        "Copy this list: {items}",
        "Repeat in the same order: {items}",
        "Write this list again: {items}",
        "{items}\nWrite the same list.",
        "Give me {items} in the same order.",
        "Write this list down as it is: {spaced}",
        "Can you repeat {items}?",
        "Copy: {items}",
        "Please copy the list {items} without a change.",
        "What does this list say: {items}?",
        "Here is a list: {items}. Keep its order and write it again.",
        "Copy these lines in the given order:\n{lines}",
        "List {items} in the order in which they stand.",
        "Do not sort this list, only repeat it: {items}",
        "{lines}\nNow the same in the same order.",
        "{items} - once more, please.",
    )
    return _reordered(rng, asks, "the same", _items(rng), list)


def recite(rng: random.Random) -> Problem:
    """Repeat six to twelve words; wrong answers have two words exchanged or one replaced."""
    words = rng.sample(NAMES + NOUNS + CITIES, rng.randint(6, 12))
    asks = (
        "Repeat these words: {spaced}",
        "Say once more: {spaced}",
        "Write these words again: {spaced}",
        "{spaced}\nRepeat this.",
        "Read these words back to me: {spaced}",
        "Type this once more: {items}",
        'Can you repeat "{spaced}"?',
        "Repeat: {spaced}",
        "Please repeat every word: {items}",
        "What words are these? {spaced}",
        "Here are some words: {spaced}. Write them down.",
        "Repeat word for word:\n{lines}",
        "Echo: {spaced}",
        "Say after me: {items}",
        "{lines}\nWrite all of these words in one go.",
        "{items} - repeat these words.",
    )
    a, b = rng.sample(range(len(words)), 2)
    exchanged = with_at(with_at(words, a, words[b]), b, words[a])
    wrong = [exchanged, with_at(words, a, others(NOUNS, words, 1, rng)[0])]
    return Problem(asks, forms(words), words, wrong, GIVE_LIST, "the same")


_SWAP_ENDS = (
    "Swap the first and the last: {items}",
    "Exchange the first and last entry: {items}",
    "Swap the two ends of this list: {items}",
    "{items}\nLet the first and the last change places.",
    "In {items}, exchange the first one with the last one.",
    "Swap the first and the last of these: {spaced}",
    "Can you swap the first and the last entry of {items}?",
    "Swap the ends: {items}",
    "Please exchange the first and the last of {items}.",
    "What is {items} with its first and last entry swapped?",
    "Here is a list: {items}. Exchange its ends and keep the rest.",
    "Swap the first and the last line:\n{lines}",
    "Put the last entry first and the first entry last: {items}",
    "Let the first and last of {items} trade places.",
    "{lines}\nWrite this again, but exchange the two ends.",
    "{items} - with the first and the last swapped, please.",
)


def swap_ends_of_numbers(rng: random.Random) -> Problem:
    """Swap the first and the last of some numbers."""
    return _reordered(rng, _SWAP_ENDS, "ends swapped", _numbers(rng, 4), _ends_swapped)


def swap_ends(rng: random.Random) -> Problem:
    """Swap the first and the last of some words."""
    return _reordered(rng, _SWAP_ENDS, "ends swapped", _words(rng, 4), _ends_swapped)


def append_number(rng: random.Random) -> Problem:
    """Append a number to a list of numbers; wrong answers append another one, or put it in front."""
    *numbers, new, other = map(str, some_numbers(rng, rng.randint(5, 7)))
    asks = (
        "Add {new} at the end: {items}",
        "Write this list with {new} as its last number: {items}",
        "Append {new} to {items}.",
        "{items}\nAdd {new} to the end of this list.",
        "Put {new} behind the last number of {items}.",
        "Append {new}: {spaced}",
        "Can you add {new} at the end of {items}?",
        "Extend the list {items} by {new}.",
        "Please append the number {new} to this list: {items}",
        "What is {items} with {new} added at the end?",
        "Here is a list: {items}. Write it with {new} at the end.",
        "Add {new} as the last line:\n{lines}",
        "Write {items} and then {new}.",
        "The list {items} gets a last number, {new}. Write the new list.",
        "{lines}\nWrite this with {new} as the last one.",
        "{items} - with {new} at its end, please.",
    )
    wrong = [[*numbers, other], [new, *numbers]]
    fields = {**forms(numbers), "new": new}
    return Problem(asks, fields, [*numbers, new], wrong, GIVE_LIST, f"{new} at the end")


def _reordered(
    rng: random.Random,
    asks: tuple[str, ...],
    working: str,
    items: list[str],
    order: Callable[[list[str]], list[str]],
    words: dict[str, str] = UP,
) -> Problem:
    """A problem whose answer is the list in the given order, which `working` names.

    Wrong are orders that other problems ask for.
    """
    right = order(items)
    wrong: list[list[str]] = []
    for other in (_sorted_up(items), _sorted_down(items), items[::-1], items):
        if other != right and other not in wrong:
            wrong.append(other)
    return Problem(asks, {**words, **forms(items)}, right, wrong, GIVE_LIST, working)


def _ends_swapped(items: list[str]) -> list[str]:
    return [items[-1], *items[1:-1], items[0]]


def _sorted_up(items: list[str]) -> list[str]:
    return sorted(items, key=int if items[0].isdigit() else None)


def _sorted_down(items: list[str]) -> list[str]:
    return _sorted_up(items)[::-1]


def _numbers(rng: random.Random, at_least: int = 3) -> list[str]:
    """Draws `at_least` to five numbers."""
    return list(map(str, some_numbers(rng, rng.randint(at_least, 5))))


def _words(rng: random.Random, at_least: int = 3) -> list[str]:
    """Draws `at_least` to five nouns with different first letters."""
    return [rng.choice(words) for words in rng.sample(BY_LETTER, rng.randint(at_least, 5))]


def _items(rng: random.Random) -> list[str]:
    return _words(rng) if rng.random() < 0.5 else _numbers(rng)
