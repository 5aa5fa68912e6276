"""Preference tasks whose answer can be verified: what the small judge is trained and tested on.

A kind of task draws a prompt, a right answer and wrong ones that look right, and knows how to check any response to
that prompt. Phrasing is drawn apart from the answer, so it says nothing about it. `SEEN` kinds are for training and for
tests in distribution; `UNSEEN` kinds are for tests alone: each asks of other material, or in another story, for
something that training teaches.
"""

import json
import random
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gram_fast.training.words import CATEGORIES, CITIES, JOBS, MONTHS, NAMES, NOUNS, PETS, SENTENCES, WORDS


@dataclass(frozen=True)
class Task:
    """One prompt with responses to it."""

    kind: str
    prompt: str
    right: tuple[str, ...]
    """The right answer in every phrasing."""
    wrong: tuple[str, ...]
    """Wrong answers, each in every phrasing."""
    is_right: Callable[[str], bool]
    """Whether a response to the prompt is right, found without looking at `right`."""


Kind = Callable[[random.Random], Task]

_SAY = ("{}", "{}.", "The answer is {}.", "It is {}.", "Answer: {}")
_GIVE = ("{}", "Here it is: {}", "Sure: {}", "Result: {}")


def addition(rng: random.Random) -> Task:
    """The sum of two numbers."""
    a, b = rng.randint(2, 60), rng.randint(2, 9)
    ask = rng.choice(("What is {} + {}?", "Add {} and {}.", "Compute {} plus {}.", "How much is {} plus {}?"))
    return _number(rng, "addition", ask.format(a, b), a + b, f"{a} + {b} = {{}}")


def subtraction(rng: random.Random) -> Task:
    """The difference of two numbers."""
    a, b = rng.randint(12, 70), rng.randint(2, 9)
    ask = rng.choice(("What is {} - {}?", "Compute {} minus {}.", "How much is {} minus {}?"))
    return _number(rng, "subtraction", ask.format(a, b), a - b, f"{a} - {b} = {{}}")


def buying(rng: random.Random) -> Task:
    """A sum in a story."""
    name, noun = rng.choice(NAMES), rng.choice(NOUNS)
    a, b = rng.randint(2, 60), rng.randint(2, 9)
    got = rng.choice(("buys", "finds", "gets"))
    prompt = f"{name} has {a} {noun}s and {got} {b} more. How many {noun}s are there now?"
    return _number(rng, "buying", prompt, a + b, f"{a} + {b} = {{}}")


def giving(rng: random.Random) -> Task:
    """A difference in a story."""
    name, noun = rng.choice(NAMES), rng.choice(NOUNS)
    a, b = rng.randint(12, 70), rng.randint(2, 9)
    lost = rng.choice(("gives away", "loses", "sells"))
    prompt = f"{name} has {a} {noun}s and {lost} {b} of them. How many {noun}s are there now?"
    return _number(rng, "giving", prompt, a - b, f"{a} - {b} = {{}}")


def larger_or_smaller(rng: random.Random) -> Task:
    """One of two numbers that look alike."""
    a = rng.randint(100, 999)
    b = rng.choice([n for n in (int(str(a)[::-1]), a + 9, a - 9, a + 90, a - 90, a + 1) if 100 <= n <= 999 and n != a])
    a, b = rng.sample((a, b), 2)
    word = rng.choice(("larger", "smaller"))
    best = max(a, b) if word == "larger" else min(a, b)
    ask = rng.choice((f"Which number is {word}, {a} or {b}?", f"Name the {word} of {a} and {b}."))
    return _choice(rng, "larger_or_smaller", ask, str(best), [str(a + b - best)])


def extreme(rng: random.Random) -> Task:
    """The largest or the smallest of some numbers."""
    numbers = rng.sample(range(10, 100), rng.randint(3, 5))
    word, best = rng.choice((("largest", max(numbers)), ("smallest", min(numbers))))
    ask = rng.choice(("What is the {} number in {}?", "Name the {} of {}."))
    others = [str(n) for n in numbers if n != best]
    return _choice(rng, "extreme", ask.format(word, _listed(numbers)), str(best), others)


def weight(rng: random.Random) -> Task:
    """Which of two things weighs more or less."""
    (a, b), (x, y) = rng.sample(NOUNS, 2), rng.sample(range(10, 100), 2)
    word = rng.choice(("more", "less"))
    right, wrong = (a, b) if (x > y) == (word == "more") else (b, a)
    prompt = f"The {a} weighs {x} kilos. The {b} weighs {y} kilos. Which weighs {word}?"
    return _choice(rng, "weight", prompt, right, [wrong])


def sort_up(rng: random.Random) -> Task:
    """Numbers from smallest to largest."""
    asks = ("Sort from smallest to largest: {}", "Put these numbers in ascending order: {}")
    return _reordered(rng, "sort_up", asks, rng.sample(range(10, 100), rng.randint(3, 5)), sorted)


def sort_down(rng: random.Random) -> Task:
    """Numbers from largest to smallest."""
    asks = ("Sort from largest to smallest: {}", "Put these numbers in descending order: {}")
    return _reordered(rng, "sort_down", asks, rng.sample(range(10, 100), rng.randint(3, 5)), _sorted_down)


def sort_words(rng: random.Random) -> Task:
    """Words by the alphabet, first letters all different."""
    asks = ("Sort these words alphabetically: {}", "Put in alphabetical order: {}")
    return _reordered(rng, "sort_words", asks, _words(rng), sorted)


def reverse(rng: random.Random) -> Task:
    """A list of words or numbers backwards."""
    items = _words(rng) if rng.random() < 0.5 else rng.sample(range(10, 100), rng.randint(3, 5))
    return _reordered(
        rng, "reverse", ("Reverse this list: {}", "Write in reverse order: {}"), items, lambda items: items[::-1]
    )


def copy(rng: random.Random) -> Task:
    """A list of words or numbers as it is."""
    items = _words(rng) if rng.random() < 0.5 else rng.sample(range(10, 100), rng.randint(3, 5))
    return _reordered(rng, "copy", ("Copy this list: {}", "Repeat in the same order: {}"), items, list)


def recite(rng: random.Random) -> Task:
    """Many words in a row as they are; wrong ones have two exchanged, or one replaced."""
    words = rng.sample(NAMES + NOUNS + CITIES, rng.randint(6, 12))
    ask = rng.choice(("Repeat these words: {}", "Say once more: {}"))
    a, b = rng.sample(range(len(words)), 2)
    other = rng.choice([noun for noun in NOUNS if noun not in words])
    wrong = [_with(_with(words, a, words[b]), b, words[a]), _with(words, a, other)]
    right = " ".join(words)
    return _task(rng, "recite", ask.format(right), right, [" ".join(some) for some in wrong], _GIVE)


def swap_ends_of_numbers(rng: random.Random) -> Task:
    """Numbers of which the first and the last change places."""
    return _ends_swapped(rng, "swap_ends_of_numbers", rng.sample(range(10, 100), rng.randint(4, 5)))


def swap_ends(rng: random.Random) -> Task:
    """Words of which the first and the last change places."""
    return _ends_swapped(rng, "swap_ends", _words(rng, 4))


def above(rng: random.Random) -> Task:
    """The numbers of a list that are above a limit."""
    return _kept(rng, "above", ("greater than", "above"), lambda n, limit: n > limit)


def below(rng: random.Random) -> Task:
    """The numbers of a list that are below a limit."""
    return _kept(rng, "below", ("less than", "below"), lambda n, limit: n < limit)


def replace_word(rng: random.Random) -> Task:
    """A sentence with one word replaced by another that fits."""
    words, choices = _sentence(rng)
    place, other = rng.sample(sorted(choices), 2)
    new = rng.choice([word for word in choices[place] if word != words[place]])
    ask = rng.choice(('Replace "{}" with "{}": {}', 'Write "{1}" for "{0}" in this sentence: {2}'))
    wrong = [_with(words, place, word) for word in choices[place] if word not in (new, words[place])]
    wrong += [_with(words, other, word) for word in choices[other] if word != words[other]]
    return _edited(rng, "replace_word", ask.format(words[place], new, _text(words)), _with(words, place, new), wrong)


def remove_word(rng: random.Random) -> Task:
    """A sentence without one of its words."""
    words, choices = _sentence(rng)
    place = rng.choice(sorted(choices))
    ask = rng.choice(('Remove the word "{}": {}', 'Delete "{}" from this sentence: {}'))
    wrong = [words[:other] + words[other + 1 :] for other in choices if other != place]
    return _edited(
        rng, "remove_word", ask.format(words[place], _text(words)), words[:place] + words[place + 1 :], wrong
    )


def append_number(rng: random.Random) -> Task:
    """A list of numbers with one more at its end."""
    *numbers, new = rng.sample(range(10, 100), rng.randint(4, 6))
    ask = rng.choice(("Add {} at the end: {}", "Write this list with {} as its last number: {}"))
    wrong = [[*numbers, n] for n in rng.sample([n for n in range(10, 100) if n != new], 2)]
    wrong.append([new, *numbers])
    prompt, right = ask.format(new, _listed(numbers)), _listed([*numbers, new])
    return _task(rng, "append_number", prompt, right, [_listed(some) for some in wrong], _GIVE)


def append_word(rng: random.Random) -> Task:
    """A sentence with a word more at its end."""
    (words, _), new = _sentence(rng), rng.choice(NOUNS)
    ask = rng.choice(('Add "{}" at the end: {}', 'Write this sentence with "{}" as its last word: {}'))
    wrong = [[*words, noun] for noun in rng.sample([noun for noun in NOUNS if noun != new], 2)]
    return _edited(rng, "append_word", ask.format(new, _text(words)), [*words, new], wrong)


def repeat(rng: random.Random) -> Task:
    """A sentence as it stands."""
    words, choices = _sentence(rng)
    ask = rng.choice(("Repeat exactly: {}", "Copy this sentence: {}"))
    wrong = [_with(words, place, word) for place in choices for word in choices[place] if word != words[place]]
    return _edited(rng, "repeat", ask.format(_text(words)), words, wrong)


def change_case(rng: random.Random) -> Task:
    """Words in capital letters, in small ones, or with a capital at the start."""
    words = rng.sample(NOUNS, rng.randint(2, 4))
    cases = {"capital letters": str.upper, "small letters": str.lower, "initial capitals": str.capitalize}
    name = rng.choice(sorted(cases))
    given = rng.choice([case for other, case in cases.items() if other != name])
    ask = rng.choice(("Write in {}: {}", "Change to {}: {}"))
    prompt = ask.format(name, " ".join(map(given, words)))
    wrong = [" ".join(map(case, words)) for other, case in cases.items() if other != name]
    replaced = rng.choice([noun for noun in NOUNS if noun not in words])
    wrong.append(" ".join(map(cases[name], [*words[:-1], replaced])))
    return _task(rng, "change_case", prompt, " ".join(map(cases[name], words)), wrong, _GIVE)


def list_format(rng: random.Random) -> Task:
    """A list in the format asked for."""
    return _formatted(rng, "list_format", list(_LINES)[:4], NOUNS)


def number_format(rng: random.Random) -> Task:
    """Numbers in the format asked for, with letters too."""
    return _formatted(rng, "number_format", list(_LINES), [str(n) for n in range(10, 100)])


def lettered(rng: random.Random) -> Task:
    """A list of words with letters."""
    return _formatted(rng, "lettered", ["letters"], NOUNS)


def wrap(rng: random.Random) -> Task:
    """A word between the marks asked for."""
    return _wrapped(rng, "wrap", list(_MARKS)[:4], WORDS)


def wrap_name(rng: random.Random) -> Task:
    """A name between the marks asked for, curly brackets too."""
    return _wrapped(rng, "wrap_name", list(_MARKS), NAMES)


def wrap_curly(rng: random.Random) -> Task:
    """A word in curly brackets."""
    return _wrapped(rng, "wrap_curly", ["curly brackets"], WORDS)


def fact(rng: random.Random) -> Task:
    """A question about one of several people in a passage."""
    people, attribute, passage = _passage(rng, 2, 3)
    person = rng.choice(people)
    ask = {"city": "Where does {} live?", "job": "What is the job of {}?", "pet": "Which animal does {} have?"}
    wrong = [other[attribute] for other in people if other is not person]
    prompt = f"{passage} {ask[attribute].format(person['name'])}"
    return _choice(rng, "fact", prompt, person[attribute], wrong, _TELLING[attribute].format(person["name"], "{}"))


def who(rng: random.Random) -> Task:
    """The person of a passage of whom something is true."""
    people, attribute, passage = _passage(rng, 2, 3)
    person = rng.choice(people)
    ask = {"city": "Who lives in {}?", "job": "Who works as a {}?", "pet": "Who has a {}?"}
    wrong = [other["name"] for other in people if other is not person]
    prompt = f"{passage} {ask[attribute].format(person[attribute])}"
    return _task(
        rng, "who", prompt, person["name"], wrong, (*_SAY, _TELLING[attribute].format("{}", person[attribute]))
    )


def table(rng: random.Random) -> Task:
    """An entry of a table."""
    names = rng.sample(NAMES, rng.randint(2, 4))
    values = rng.sample(range(10, 100), len(names))
    row = rng.randrange(len(names))
    rows = "\n".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
    ask = rng.choice(("Which number stands beside {}?", "What is the number of {}?"))
    wrong = [str(value) for value in values if value != values[row]]
    prompt = f"{rows}\n{ask.format(names[row])}"
    return _choice(rng, "table", prompt, str(values[row]), wrong, f"{names[row]}: {{}}")


def rearrange(rng: random.Random) -> Task:
    """Some entries of a table in the order asked for; wrong ones have two values exchanged, or one of another entry."""
    form, entries, asked, shown, separator = _entries(rng)
    prompt = f"{shown}\n{rng.choice(('Write this for {}', 'In this order: {}', 'Copy {}')).format(_listed(asked))}"

    def written(values: list[str]) -> str:
        return separator.join(form.format(name, value) for name, value in zip(asked, values, strict=True))

    right, *wrong = _mixed_up(rng, [entries[name] for name in asked], list(entries.values()))
    return _task(rng, "rearrange", prompt, written(right), list(map(written, wrong)), _GIVE)


def inverse(rng: random.Random) -> Task:
    """Some entries of a table with name and value exchanged."""
    form, entries, asked, shown, separator = _entries(rng)
    values = [entries[name] for name in asked]
    prompt = f"{shown}\nTurn around {_listed(values)}"

    def written(names: list[str]) -> str:
        return separator.join(form.format(value, name) for name, value in zip(names, values, strict=True))

    right, *wrong = _mixed_up(rng, asked, list(entries))
    return _task(rng, "inverse", prompt, written(right), list(map(written, wrong)), _GIVE)


def told(rng: random.Random) -> Task:
    """What a passage says of several people, in the order asked for."""
    people, attribute, passage = _passage(rng, 3, 5)
    asked = rng.sample(people, rng.randint(2, 3))
    ask = rng.choice(("What does the text say about {}?", "Repeat what is said of {}."))

    def written(values: list[str]) -> str:
        return " ".join(_TELLING[attribute].format(p["name"], v) for p, v in zip(asked, values, strict=True))

    right, *wrong = _mixed_up(rng, [p[attribute] for p in asked], [p[attribute] for p in people])
    prompt = f"{passage} {ask.format(_listed([p['name'] for p in asked]))}"
    return _task(rng, "told", prompt, written(right), list(map(written, wrong)), _GIVE)


def price(rng: random.Random) -> Task:
    """What one of several things costs."""
    things = rng.sample(NOUNS, rng.randint(2, 3))
    prices = rng.sample(range(10, 100), len(things))
    place = rng.randrange(len(things))
    told = " ".join(f"The {thing} costs {cost} euros." for thing, cost in zip(things, prices, strict=True))
    wrong = [str(cost) for cost in prices if cost != prices[place]]
    prompt = f"{told} How many euros is the {things[place]}?"
    return _choice(rng, "price", prompt, str(prices[place]), wrong)


def count(rng: random.Random) -> Task:
    """How many words a list has."""
    words = rng.sample(NOUNS, rng.randint(2, 8))
    ask = rng.choice(("How many words are in this list: {}?", "Count the words: {}"))
    wrong = [str(n) for n in range(2, 9) if n != len(words)]
    return _choice(rng, "count", ask.format(_listed(words)), str(len(words)), wrong)


def first_or_last(rng: random.Random) -> Task:
    """The first or the last word of a list."""
    words = rng.sample(NOUNS, rng.randint(3, 5))
    name, place = rng.choice((("first", 0), ("last", -1)))
    ask = rng.choice(("What is the {} word of: {}?", "Name the {} item: {}"))
    wrong = [word for word in words if word != words[place]]
    return _choice(rng, "first_or_last", ask.format(name, _listed(words)), words[place], wrong, f"The {name} is {{}}.")


def which_number(rng: random.Random) -> Task:
    """The first, second, third or last number of a list."""
    numbers = rng.sample(range(10, 100), rng.randint(4, 5))
    name, place = rng.choice((("first", 0), ("second", 1), ("third", 2), ("last", -1)))
    ask = rng.choice(("What is the {} number of: {}?", "Name the {} item: {}"))
    wrong = [str(n) for n in numbers if n != numbers[place]]
    prompt = ask.format(name, _listed(numbers))
    return _choice(rng, "which_number", prompt, str(numbers[place]), wrong, f"The {name} is {{}}.")


def second(rng: random.Random) -> Task:
    """The second word of a list."""
    words = rng.sample(NOUNS, rng.randint(3, 5))
    ask = rng.choice(("What is the second word of: {}?", "Name the second item: {}"))
    return _choice(rng, "second", ask.format(_listed(words)), words[1], [words[0], *words[2:]], "The second is {}.")


def category(rng: random.Random) -> Task:
    """The one word of a list that is of a category."""
    name = rng.choice(sorted(CATEGORIES))
    others = [rng.choice(CATEGORIES[other]) for other in rng.sample(sorted(set(CATEGORIES) - {name}), 3)]
    right = rng.choice(CATEGORIES[name])
    ask = rng.choice(("Which of these is a kind of {}: {}?", "Name the {} among: {}"))
    return _choice(rng, "category", ask.format(name, _listed(rng.sample([right, *others], 4))), right, others)


def spell(rng: random.Random) -> Task:
    """The letters of a word with hyphens between them."""
    word = rng.choice(WORDS)
    ask = rng.choice(('Spell "{}" with hyphens.', 'Write the letters of "{}" with hyphens between them.'))
    wrong = rng.sample([other for other in WORDS if other != word and abs(len(other) - len(word)) < 3], 3)
    return _task(rng, "spell", ask.format(word), "-".join(word), ["-".join(other) for other in wrong], _GIVE)


def month(rng: random.Random) -> Task:
    """Which of two months comes first or later in the year."""
    a, b = rng.sample(range(12), 2)
    word = rng.choice(("first", "later"))
    right = min(a, b) if word == "first" else max(a, b)
    ask = rng.choice(("Which month comes {} in the year, {} or {}?", "What comes {}, {} or {}?"))
    return _choice(rng, "month", ask.format(word, MONTHS[a], MONTHS[b]), MONTHS[right], [MONTHS[a + b - right]])


def json_object(rng: random.Random) -> Task:
    """A JSON object with one key."""
    keys, values = ("name", "city", "item", "title"), NAMES + NOUNS
    key, value = rng.choice(keys), rng.choice(values)
    ask = rng.choice(('Write a JSON object with key "{}" and value "{}".', 'As JSON, with "{}" set to "{}":'))
    wrong = [json.dumps({other: value}) for other in keys if other != key]
    wrong += [json.dumps({key: other}) for other in rng.sample([v for v in values if v != value], 3)]
    return _task(rng, "json_object", ask.format(key, value), json.dumps({key: value}), wrong, _GIVE)


SEEN: tuple[Kind, ...] = (
    addition, subtraction, buying, larger_or_smaller, extreme, sort_up, sort_down, sort_words, reverse, copy, recite,
    swap_ends_of_numbers, above, below, replace_word, remove_word, append_number, repeat, change_case, list_format,
    number_format, wrap, wrap_name, fact, who, table, rearrange, inverse, told, count, first_or_last, which_number,
    category, spell, month, json_object,
)  # fmt: skip
# What training draws from, some kinds more often. `recite` and `rearrange` ask for many words of what was read: from
# them the model learns to copy, then to look up, which the other kinds with their one looked-up word did not teach it
# in six times as many pairs. Sums are learned last.
TRAINED: tuple[Kind, ...] = (
    *SEEN, *4 * (recite, rearrange), inverse, told, fact, who, table, replace_word,
    *3 * (addition, subtraction), *2 * (buying,),
)  # fmt: skip
UNSEEN: tuple[Kind, ...] = (giving, weight, swap_ends, append_word, lettered, wrap_curly, price, second)


def tasks(kinds: tuple[Kind, ...], seed: int, without: Collection[str] = ()) -> Iterator[Task]:
    """Tasks of these kinds in turn, without end, whose prompts are not in `without`. Equal seeds give equal tasks."""
    rng = random.Random(seed)
    while True:
        for kind in kinds:
            task = kind(rng)
            while task.prompt in without:
                task = kind(rng)
            yield task


def distinct_tasks(kinds: tuple[Kind, ...], seed: int, count: int) -> list[Task]:
    """That many tasks of each kind, no prompt twice: a test, whose prompts training goes `without`."""
    found: dict[str, Task] = {}
    for kind in kinds:
        stream = tasks((kind,), seed, found)
        for task in islice(stream, count):
            found[task.prompt] = task
    return list(found.values())


def labeled_row(task: Task, rng: random.Random) -> dict[str, Any]:
    """A preference: one right response, one wrong."""
    return {
        "kind": task.kind,
        "prompt": task.prompt,
        "chosen": rng.choice(task.right),
        "rejected": rng.choice(task.wrong),
    }


def unlabeled_row(task: Task, rng: random.Random, share_right: float = 0.85) -> dict[str, Any]:
    """Two different responses, each right with probability `share_right`, as two draws from a policy would be."""
    responses: list[str] = []
    while len(responses) < 2:
        drawn = rng.choice(task.right if rng.random() < share_right else task.wrong)
        if drawn not in responses:
            responses.append(drawn)
    return {"kind": task.kind, "prompt": task.prompt, "responses": responses}


def _task(
    rng: random.Random,
    kind: str,
    prompt: str,
    right: str,
    wrong: list[str],
    phrasings: tuple[str, ...] = _SAY,
    is_right: Callable[[str], bool] | None = None,
) -> Task:
    """A task whose answer is a text: a response is right that is this text in some phrasing."""

    def matches(response: str) -> bool:
        return any(response == phrasing.replace("{}", right) for phrasing in phrasings)

    def phrase(answers: list[str]) -> tuple[str, ...]:
        return tuple(phrasing.replace("{}", answer) for answer in answers for phrasing in phrasings)

    rng.shuffle(wrong)
    return Task(kind, prompt, phrase([right]), phrase(wrong[:3]), is_right or matches)


def _choice(rng: random.Random, kind: str, prompt: str, right: str, wrong: list[str], *phrasings: str) -> Task:
    """A task whose answer is one word: a response is right whose last word that is."""
    return _task(
        rng, kind, prompt, right, wrong, (*_SAY, *phrasings), lambda text: re.findall(r"[\w']+", text)[-1:] == [right]
    )


def _number(rng: random.Random, kind: str, prompt: str, right: int, written_out: str) -> Task:
    wrong = [right + d for d in (1, -1, 2, -2, 10, -10) if right + d > 0]
    return _choice(rng, kind, prompt, str(right), [str(n) for n in wrong], written_out)


def _reordered(
    rng: random.Random, kind: str, asks: tuple[str, ...], items: list[Any], order: Callable[[list[Any]], list[Any]]
) -> Task:
    """A task whose answer is a list in another order; wrong ones are what other tasks would ask for."""
    right = order(items)
    orders = [sorted(items), _sorted_down(items), items[::-1], items]
    wrong = list(dict.fromkeys(_listed(other) for other in orders if other != right))
    expected = _listed(right).split(", ")
    prompt = rng.choice(asks).format(_listed(items))
    return _task(
        rng, kind, prompt, _listed(right), wrong, _GIVE, lambda text: text.rpartition(": ")[2].split(", ") == expected
    )


def _ends_swapped(rng: random.Random, kind: str, items: list[Any]) -> Task:
    asks = ("Swap the first and the last: {}", "Exchange the first and last entry: {}")
    return _reordered(rng, kind, asks, items, lambda items: [items[-1], *items[1:-1], items[0]])


def _kept(rng: random.Random, kind: str, words: tuple[str, ...], keep: Callable[[int, int], bool]) -> Task:
    """A task whose answer is a part of a list; wrong ones are the rest, and parts with one entry more or less."""
    numbers = rng.sample(range(10, 100), 5)
    ranked = sorted(numbers)
    cut = rng.randint(1, 3)
    limit = rng.randint(ranked[cut], ranked[cut + 1])
    if limit in numbers:
        return _kept(rng, kind, words, keep)
    right = [n for n in numbers if keep(n, limit)]
    rest = [n for n in numbers if n not in right]
    more = [n for n in numbers if n in right or n == rest[0]]
    wrong = [rest, more if rng.random() < 0.5 else right[1:] or more]
    prompt = f"Keep the numbers {rng.choice(words)} {limit}: {_listed(numbers)}"
    return _task(
        rng, kind, prompt, _listed(right), [_listed(other) for other in wrong], _GIVE,
        lambda text: [int(n) for n in re.findall(r"\d+", text)] == [n for n in numbers if keep(n, limit)],
    )  # fmt: skip


def _edited(rng: random.Random, kind: str, prompt: str, right: list[str], wrong: list[list[str]]) -> Task:
    return _task(rng, kind, prompt, _text(right), [_text(words) for words in wrong], _GIVE)


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
    return _task(rng, kind, ask.format(name, _listed(words)), written(_LINES[name], words), wrong, phrasings)


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
    return _task(rng, kind, ask, _MARKS[name].format(word), wrong, _GIVE)


_TELLING = {"city": "{} lives in {}.", "job": "{} works as a {}.", "pet": "{} has a {}."}
_VALUES = {"city": CITIES, "job": JOBS, "pet": PETS}


def _passage(rng: random.Random, low: int, high: int) -> tuple[list[dict[str, str]], str, str]:
    """`low` to `high` people with one attribute told of each, all different."""
    attribute = rng.choice(sorted(_TELLING))
    how_many = rng.randint(low, high)
    drawn = zip(rng.sample(NAMES, how_many), rng.sample(_VALUES[attribute], how_many), strict=True)
    people = [{"name": name, attribute: value} for name, value in drawn]
    return people, attribute, " ".join(_TELLING[attribute].format(p["name"], p[attribute]) for p in people)


def _entries(rng: random.Random) -> tuple[str, dict[str, str], list[str], str, str]:
    """A table: the form of an entry, values by name, two or more of the names, the table as text, what separates."""
    count = rng.randint(3, 6)
    numbers = tuple(str(n) for n in range(10, 100))
    values = rng.sample(rng.choice((CITIES, JOBS, PETS, NOUNS, numbers)), count)
    entries = dict(zip(rng.sample(NAMES, count), values, strict=True))
    form = rng.choice(("{} {}", "{}: {}", "{} - {}", "{} = {}", "{} has {}", "{} with the {}"))
    separator = rng.choice((", ", "; ", "\n", ". "))
    told = separator.join(form.format(name, value) for name, value in entries.items())
    return form, entries, rng.sample(sorted(entries), rng.randint(2, count)), told, separator


def _mixed_up(rng: random.Random, right: list[str], values: list[str]) -> Iterator[list[str]]:
    """`right`, then lists of other values in its places: two exchanged, and one of `values` for each not there."""
    yield right
    a, b = rng.sample(range(len(right)), 2)
    yield _with(_with(right, a, right[b]), b, right[a])
    for value in values:
        if value not in right:
            yield _with(right, rng.randrange(len(right)), value)


def _sentence(rng: random.Random) -> tuple[list[str], dict[int, tuple[str, ...]]]:
    """A sentence's words, and by place the words that fit there."""
    parts: Any = rng.choice(SENTENCES)
    choices = {place: part for place, part in enumerate(parts) if isinstance(part, tuple)}
    return [rng.choice(choices[place]) if place in choices else part for place, part in enumerate(parts)], choices


def _words(rng: random.Random, at_least: int = 3) -> list[str]:
    """Up to five words with different first letters."""
    by_letter: dict[str, list[str]] = {}
    for noun in NOUNS:
        by_letter.setdefault(noun[0], []).append(noun)
    return [rng.choice(by_letter[letter]) for letter in rng.sample(sorted(by_letter), rng.randint(at_least, 5))]


def _sorted_down(items: list[Any]) -> list[Any]:
    return sorted(items, reverse=True)


def _with(words: list[str], place: int, word: str) -> list[str]:
    return [*words[:place], word, *words[place + 1 :]]


def _text(words: list[str]) -> str:
    return " ".join(words) + "."


def _listed(items: list[Any]) -> str:
    return ", ".join(map(str, items))
