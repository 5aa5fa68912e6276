"""Kinds of tasks whose answer is chosen: an entry of a list, how many there are, whether one is there."""

import random

from gram_fast.training.small_judge.directions import DOWN, UP
from gram_fast.training.small_judge.task import Problem, forms, marked, numbered, others, ranked
from gram_fast.training.small_judge.wordings import ONLY, SAY, YES_OR_NO
from gram_fast.training.small_judge.words import BY_LETTER, CATEGORIES, MONTHS, NAMES, NOUNS, SENTENCES, WORDS

_COUNT = (
    "How many {things} are in this list: {items}?",
    "Count the {things}: {items}",
    "How many {things} do you see here: {items}?",
    "{items}\nHow many {things} is that?",
    "Tell me the number of {things} in {items}.",
    "How many {things} are these: {spaced}?",
    "Can you count the {things} in {items}?",
    "Count: {items}",
    "Please count these {things}: {items}",
    "What is the number of {things} in this list: {items}?",
    "Here are some {things}: {items}. How many are there?",
    "How many lines are these?\n{lines}",
    "How long is the list {items}?",
    "Give me the length of this list: {items}",
    "{lines}\nCount the {things} above.",
    "{items} - how many {things} are there?",
)
_ENTRY = (
    "What is the {place} {thing} of: {items}?",
    "Name the {place} item: {items}",
    "Which {thing} is the {place} of {items}?",
    "{items}\nWhat is the {place} {thing}?",
    "Tell me which {thing} comes {place} in {items}.",
    "What is the {place} one of these: {spaced}?",
    "Can you name the {place} {thing} of {items}?",
    "The {place} of {items} is?",
    "Please give me the {place} {thing} in this list: {items}",
    "Which one is {place} in {items}?",
    "Here is a list: {items}. What is its {place} {thing}?",
    "What is the {place} line?\n{lines}",
    "Pick the {place} {thing}: {items}",
    "Find the {place} entry of {items}.",
    "{lines}\nWhich {thing} stands in {place} place?",
    "{items} - what is the {place} {thing}?",
)
_CONTAINS = (
    "Is {word} in this list: {items}?",
    "Does this list contain {word}: {items}?",
    "Answer yes or no: is {word} one of {items}?",
    "{items}\nIs {word} among them?",
    "Can you find {word} in {items}?",
    "Is {word} one of these: {spaced}?",
    "Look for {word} in {items}. Is it there?",
    "Does {items} include {word}?",
    "Please check whether {word} is in this list: {items}",
    "Say yes or no. {word} is in {items}.",
    "Here is a list: {items}. Does it have {word} in it?",
    "Is {word} one of the lines below?\n{lines}",
    "Among {items}, is there {word}?",
    "Yes or no: {word} is one of {items}?",
    "{lines}\nIs {word} written there?",
    "{items} - is {word} in this list?",
)


def count(rng: random.Random) -> Problem:
    """Count the words of a list."""
    return _counted(rng, NOUNS, "words")


def count_numbers(rng: random.Random) -> Problem:
    """Count the numbers of a list."""
    return _counted(rng, _NUMBERS, "numbers")


def exact_words(rng: random.Random) -> Problem:
    """Answer with a given number of words; wrong answers have more or fewer."""
    n = rng.randint(1, 7)
    asks = (
        "Answer with exactly {n} {words}.",
        "Write exactly {n} {words}.",
        "Reply with {n} {words}, no more and no fewer.",
        "Say something in exactly {n} {words}.",
        "Give me an answer that is {n} {words} long.",
        "What do you see? Answer in {n} {words}.",
        "Write {n} {words}.",
        "Use exactly {n} {words}.",
        "Please answer with {n} {words}.",
        "Your answer must have exactly {n} {words}.",
        "Can you write {n} {words}?",
        "List {n} {words}.",
        "In exactly {n} {words}: what is in your room?",
        "Name any {n} {words}.",
        "Limit your answer to {n} {words}, neither more nor less.",
        "Tell me about {name} in exactly {n} {words}.",
    )
    number = rng.choice((str(n), _NUMERALS[n - 1]))
    fields = {"n": number, "words": "word" if n == 1 else "words", "name": rng.choice(NAMES)}
    wrong = [_some_words(rng, other) for other in rng.sample([m for m in range(1, 9) if m != n], 3)]
    return Problem(asks, fields, _some_words(rng, n), wrong, ONLY, any_words=True)


def first_or_last(rng: random.Random) -> Problem:
    """Name the first or the last word of a list."""
    return _entry(rng, rng.sample(NOUNS, rng.randint(3, 5)), "word", ("first", "last"))


def which_number(rng: random.Random) -> Problem:
    """Name the first, second, third or last number of a list."""
    return _entry(rng, rng.sample(_NUMBERS, rng.randint(4, 5)), "number", ("first", "second", "third", "last"))


def second(rng: random.Random) -> Problem:
    """Name the second word of a list."""
    return _entry(rng, rng.sample(NOUNS, rng.randint(3, 5)), "word", ("second",))


def contains(rng: random.Random) -> Problem:
    """Say whether a word is in a list."""
    return _contained(rng, NOUNS)


def contains_number(rng: random.Random) -> Problem:
    """Say whether a number is in a list."""
    return _contained(rng, _NUMBERS)


def category(rng: random.Random) -> Problem:
    """Name the word of a list that belongs to a category."""
    asks = (
        "Which of these is a kind of {category}: {items}?",
        "Name the {category} among: {items}",
        "Which one belongs to the category {category}: {items}?",
        "{items}\nWhich of these is a {category}?",
        "Find the word for a kind of {category} in {items}.",
        "Which word means a {category}: {spaced}?",
        "Can you find the {category} in this list? {items}",
        "The {category} in {items} is?",
        "Please name the {category}: {items}",
        "What in this list is a kind of {category}? {items}",
        "Here are some words: {items}. Which is a kind of {category}?",
        "Which line names a {category}?\n{lines}",
        "Pick the {category}: {items}",
        "Only one of {items} is a {category}. Which?",
        "{lines}\nWhich of the things above would you call a {category}?",
        "{items} - which one is a {category}?",
    )
    name, *rest = rng.sample(sorted(CATEGORIES), rng.randint(3, 4))
    right, *wrong = (rng.choice(CATEGORIES[of]) for of in (name, *rest))
    items = rng.sample([right, *wrong], len(rest) + 1)
    of = dict(zip((right, *wrong), (name, *rest), strict=True))
    working = f"{name}: " + ", ".join(f"{item} {of[item]}" for item in items)
    answers = (*SAY, "{answer} is a kind of {category}.", "The {category} is {answer}.", "The word is {answer}.")
    return Problem(asks, {**forms(items), "category": name}, right, wrong, answers, working)


def month(rng: random.Random) -> Problem:
    """Decide which of two months comes earlier or later in the year."""
    asks = (
        "Which month comes {earlier} in the year, {a} or {b}?",
        "What comes {first} in a year, {a} or {b}?",
        "Which is {earlier}: {a} or {b}?",
        "{a} or {b}: which comes {earlier}?",
        "Of {a} and {b}, which month is the {earlier} one?",
        "Which month is {earlier} in the year: {a}, {b}?",
        "Name the {earlier} month: {a}, {b}",
        "Is {a} or {b} {earlier} in the year?",
        "Please tell me which month comes {first}, {a} or {b}.",
        "In the calendar, which comes {earlier}: {a} or {b}?",
        "Between {a} and {b}, which is {earlier} in the year?",
        "{a}, {b}\nWhich month comes {first}?",
        "Which of the months {a} and {b} is {earlier}?",
        "Pick the month that comes {earlier}: {a} or {b}.",
        "Which of the two is {earlier} in a year, {a} or {b}?",
        "Compare {a} and {b}. Which comes {first} in the year?",
    )
    a, b = rng.sample(range(12), 2)
    words, right = rng.choice(((UP, min(a, b)), (DOWN, max(a, b))))
    answers = (*SAY, "{answer} comes {first}.", "{answer} is {earlier}.", "The {earlier} month is {answer}.")
    fields = {**words, "a": MONTHS[a], "b": MONTHS[b]}
    working = f"{words['earlier']}: {ranked({MONTHS[n]: n + 1 for n in (a, b)})}"
    return Problem(asks, fields, MONTHS[right], [MONTHS[a + b - right]], answers, working)


def longer(rng: random.Random) -> Problem:
    """Name the longer or the shorter of two words, whose lengths differ by two letters or more."""
    asks = (
        "Which word is {longer}, {a} or {b}?",
        "Which of these words is {longer}: {a}, {b}?",
        "Name the {longer} word: {a}, {b}",
        "{a} or {b}: which word is {longer}?",
        'Of "{a}" and "{b}", which is the {longer} word?',
        "Choose the {longer} word: {a} or {b}.",
        "Which word has {letters_more}, {a} or {b}?",
        "Write the {longer} of the two words {a} and {b}.",
        "Please tell me which word is {longer}: {a} or {b}.",
        "Which has {letters_more}: {a} or {b}?",
        "Between {a} and {b}, which word is {longer}?",
        "{a}, {b}\nWhich word is the {longer} one?",
        "Pick the {longer} word from {a} and {b}.",
        'Which is the {longer} word, "{a}" or "{b}"?',
        "By its letters, is {a} or {b} {longer}?",
        "Compare the words {a} and {b}. Which is {longer}?",
    )
    a, b = rng.sample(WORDS, 2)
    if abs(len(a) - len(b)) < 2:
        return longer(rng)
    words = rng.choice((UP, DOWN))
    right, wrong = (a, b) if (len(a) > len(b)) == (words is UP) else (b, a)
    answers = (*SAY, "{answer} is {longer}.", "The {longer} word is {answer}.", "{answer} has {letters_more}.")
    working = f"{words['longer']}: {ranked({word: len(word) for word in (a, b)})}"
    return Problem(asks, {**words, "a": a, "b": b}, right, [wrong], answers, working)


def starting(rng: random.Random) -> Problem:
    """Name the word of a list that starts with a letter."""
    asks = (
        "Which of these words starts with {letter}: {items}?",
        "Which word begins with {letter}: {items}?",
        'Name the word that starts with "{letter}": {items}',
        "{items}\nWhich word starts with {letter}?",
        "Find the word with {letter} as its first letter in {items}.",
        "Which of these begins with the letter {letter}: {spaced}?",
        "Can you find a word that begins with {letter}? {items}",
        "The word that starts with {letter} in {items} is?",
        "Please name the word beginning with {letter}: {items}",
        "In which word is {letter} the first letter: {items}?",
        "Here are some words: {items}. Which one starts with {letter}?",
        "Which line starts with {letter}?\n{lines}",
        'Pick the word that begins with "{letter}": {items}',
        "Only one of {items} starts with {letter}. Which?",
        "{lines}\nWhich of the words above begins with the letter {letter}?",
        "{items} - which one begins with {letter}?",
    )
    items = [rng.choice(words) for words in rng.sample(BY_LETTER, rng.randint(2, 4))]
    right, *wrong = rng.sample(items, len(items))
    answers = (*SAY, "{answer} starts with {letter}.", "The word is {answer}.", "{answer} begins with {letter}.")
    return Problem(asks, {**forms(items), "letter": right[0]}, right, wrong, answers, f"first letter {right[0]}")


_NUMBERS = tuple(str(n) for n in range(10, 100))
_NUMERALS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


def _counted(rng: random.Random, material: tuple[str, ...], things: str) -> Problem:
    items = rng.sample(material, rng.randint(2, 8))
    wrong = [str(n) for n in range(2, 9) if n != len(items)]
    answers = (*SAY, "{answer} {things}", "There are {answer} {things}.", "There are {answer}.")
    return Problem(_COUNT, {**forms(items), "things": things}, str(len(items)), wrong, answers, numbered(items))


def _entry(rng: random.Random, items: list[str], thing: str, places: tuple[str, ...]) -> Problem:
    """A problem whose answer is the entry of a list at one of the named places."""
    place = rng.choice(places)
    right = items[{"first": 0, "second": 1, "third": 2, "last": -1}[place]]
    answers = (*SAY, "The {place} is {answer}.", "The {place} {thing} is {answer}.", "{answer} is the {place}.")
    wrong = [item for item in items if item != right]
    fields = {**forms(items), "thing": thing, "place": place}
    return Problem(_ENTRY, fields, right, wrong, answers, f"{place}: {numbered(items)}")


def _contained(rng: random.Random, material: tuple[str, ...]) -> Problem:
    items = rng.sample(material, rng.randint(2, 6))
    word, right, wrong = items.pop(), "No", "Yes"
    if rng.random() < 0.5:
        word, right, wrong = rng.choice(items), "Yes", "No"
    working = f"{word}: {marked(items, [word])}"
    return Problem(_CONTAINS, {**forms(items), "word": word}, right, [wrong], YES_OR_NO, working)


def _some_words(rng: random.Random, count: int) -> list[str]:
    """Words of a list, or the beginning of a sentence."""
    if rng.random() < 0.5:
        return rng.sample(WORDS, count)
    parts = rng.choice(SENTENCES)[:count]
    words = [rng.choice(part) if isinstance(part, tuple) else part for part in parts]
    return words + others(NOUNS, words, count - len(words), rng)
