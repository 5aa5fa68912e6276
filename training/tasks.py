"""Preference tasks whose answer can be verified: what the small judge is trained and tested on.

A kind of task draws a prompt, a right answer and wrong ones that look right, and knows how to check any response to
that prompt. Phrasing is drawn apart from the answer, so it says nothing about it. `SEEN` kinds are for training and for
tests in distribution; `UNSEEN` kinds are for tests alone: each is near to something that training asks for.
"""

import json
import random
import re
from collections.abc import Callable, Collection, Iterator
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
    """The sum of two numbers up to two digits."""
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    ask = rng.choice(("What is {} + {}?", "Add {} and {}.", "Compute {} plus {}.", "How much is {} plus {}?"))
    return _number(rng, "addition", ask.format(a, b), a + b)


def subtraction(rng: random.Random) -> Task:
    """The difference of two numbers up to two digits."""
    a, b = sorted((rng.randint(2, 99), rng.randint(2, 99)), reverse=True)
    ask = rng.choice(("What is {} - {}?", "Compute {} minus {}.", "How much is {} minus {}?"))
    return _number(rng, "subtraction", ask.format(a, b), a - b)


def buying(rng: random.Random) -> Task:
    """A sum in a story."""
    name, noun = rng.choice(NAMES), rng.choice(NOUNS)
    a, b = rng.randint(2, 49), rng.randint(2, 49)
    got = rng.choice(("buys", "finds", "gets"))
    return _number(
        rng, "buying", f"{name} has {a} {noun}s and {got} {b} more. How many {noun}s does {name} have now?", a + b
    )


def giving(rng: random.Random) -> Task:
    """A difference in a story."""
    name, noun = rng.choice(NAMES), rng.choice(NOUNS)
    a, b = sorted((rng.randint(2, 49), rng.randint(2, 49)), reverse=True)
    lost = rng.choice(("gives away", "loses", "sells"))
    return _number(
        rng, "giving", f"{name} has {a} {noun}s and {lost} {b} of them. How many {noun}s does {name} have now?", a - b
    )


def larger_or_smaller(rng: random.Random) -> Task:
    """One of two numbers that look alike."""
    a = rng.randint(100, 999)
    b = rng.choice([n for n in (int(str(a)[::-1]), a + 9, a - 9, a + 90, a - 90, a + 1) if 100 <= n <= 999 and n != a])
    a, b = rng.sample((a, b), 2)
    word = rng.choice(("larger", "smaller"))
    best = max(a, b) if word == "larger" else min(a, b)
    ask = rng.choice((f"Which number is {word}, {a} or {b}?", f"Name the {word} of {a} and {b}."))
    return _choice(rng, "larger_or_smaller", ask, str(best), [str(a + b - best)])


def largest(rng: random.Random) -> Task:
    """The largest of some numbers."""
    numbers = rng.sample(range(10, 100), rng.randint(3, 5))
    ask = rng.choice(("What is the largest number in {}?", "Which of {} is the largest?"))
    others = [str(n) for n in sorted(numbers)[:-1]]
    return _choice(rng, "largest", ask.format(_listed(numbers)), str(max(numbers)), others)


def smallest(rng: random.Random) -> Task:
    """The smallest of some numbers."""
    numbers = rng.sample(range(10, 100), rng.randint(3, 5))
    ask = rng.choice(("What is the smallest number in {}?", "Which of {} is the smallest?"))
    others = [str(n) for n in sorted(numbers)[1:]]
    return _choice(rng, "smallest", ask.format(_listed(numbers)), str(min(numbers)), others)


def sort_up(rng: random.Random) -> Task:
    """Numbers from smallest to largest."""
    numbers = rng.sample(range(10, 100), rng.randint(3, 5))
    ask = rng.choice(("Sort from smallest to largest: {}", "Put these numbers in ascending order: {}"))
    return _ordered(rng, "sort_up", ask.format(_listed(numbers)), [str(n) for n in sorted(numbers)])


def sort_down(rng: random.Random) -> Task:
    """Numbers from largest to smallest."""
    numbers = rng.sample(range(10, 100), rng.randint(3, 5))
    ask = rng.choice(("Sort from largest to smallest: {}", "Put these numbers in descending order: {}"))
    return _ordered(rng, "sort_down", ask.format(_listed(numbers)), [str(n) for n in sorted(numbers, reverse=True)])


def sort_words(rng: random.Random) -> Task:
    """Words by the alphabet, first letters all different."""
    by_letter: dict[str, list[str]] = {}
    for noun in NOUNS:
        by_letter.setdefault(noun[0], []).append(noun)
    words = [rng.choice(by_letter[letter]) for letter in rng.sample(sorted(by_letter), rng.randint(3, 4))]
    ask = rng.choice(("Sort these words alphabetically: {}", "Put in alphabetical order: {}"))
    return _ordered(rng, "sort_words", ask.format(_listed(words)), sorted(words))


def reverse(rng: random.Random) -> Task:
    """A list of words backwards."""
    words = rng.sample(NOUNS, rng.randint(3, 5))
    ask = rng.choice(("Reverse this list: {}", "Write these words in reverse order: {}"))
    return _ordered(rng, "reverse", ask.format(_listed(words)), words[::-1])


def above(rng: random.Random) -> Task:
    """The numbers of a list that are above a limit."""
    return _kept(rng, "above", ("greater than", "above"), lambda n, limit: n > limit)


def below(rng: random.Random) -> Task:
    """The numbers of a list that are below a limit."""
    return _kept(rng, "below", ("less than", "below"), lambda n, limit: n < limit)


def replace_word(rng: random.Random) -> Task:
    """A sentence with one word replaced."""
    words, new = _sentence(rng), rng.choice(NOUNS)
    place = rng.choice(_unique_places(words))
    old = words[place]
    ask = rng.choice(('Replace "{}" with "{}": {}', 'Write "{1}" for "{0}" in this sentence: {2}'))
    wrong = [[*words[:other], new, *words[other + 1 :]] for other in range(1, len(words)) if other != place]
    return _edited(
        rng, "replace_word", ask.format(old, new, _text(words)), [*words[:place], new, *words[place + 1 :]], wrong
    )


def remove_word(rng: random.Random) -> Task:
    """A sentence without one of its words."""
    words = _sentence(rng)
    place = rng.choice(_unique_places(words))
    ask = rng.choice(('Remove the word "{}": {}', 'Delete "{}" from this sentence: {}'))
    wrong = [words[:other] + words[other + 1 :] for other in range(1, len(words)) if other != place]
    return _edited(
        rng, "remove_word", ask.format(words[place], _text(words)), words[:place] + words[place + 1 :], [*wrong, words]
    )


def append_word(rng: random.Random) -> Task:
    """A sentence with a word more at its end."""
    words, new = _sentence(rng), rng.choice(NOUNS)
    ask = rng.choice(('Add "{}" at the end: {}', 'Write this sentence with "{}" as its last word: {}'))
    wrong = [[*words[:place], new, *words[place:]] for place in range(1, len(words))]
    return _edited(rng, "append_word", ask.format(new, _text(words)), [*words, new], [*wrong, words])


def repeat(rng: random.Random) -> Task:
    """A sentence as it stands."""
    words = _sentence(rng)
    ask = rng.choice(("Repeat exactly: {}", "Copy this sentence: {}"))
    wrong = [[*words[:place], rng.choice(NOUNS), *words[place + 1 :]] for place in range(1, len(words))]
    wrong = [other for other in wrong if other != words] + [words[:-1]]
    return _edited(rng, "repeat", ask.format(_text(words)), words, wrong)


def change_case(rng: random.Random) -> Task:
    """Words in capital or small letters."""
    words = rng.sample(NOUNS, rng.randint(2, 4))
    upper = rng.random() < 0.5
    given, right = (words, [w.upper() for w in words]) if upper else ([w.upper() for w in words], words)
    ask = rng.choice(("Write in {} letters: {}", "Change to {} letters: {}"))
    prompt = ask.format("capital" if upper else "small", " ".join(given))
    wrong = [[*right[:place], given[place], *right[place + 1 :]] for place in range(len(words))]
    return _task(rng, "change_case", prompt, " ".join(right), [" ".join(w) for w in [*wrong, given]], _GIVE)


def bullets(rng: random.Random) -> Task:
    """A list in the format asked for."""
    return _list_format(rng, "bullets", {"dashes": "- {}", "numbers": "{n}. {}", "plus signs": "+ {}"})


def stars(rng: random.Random) -> Task:
    """A list with stars."""
    return _list_format(rng, "stars", {"stars": "* {}"})


_MARKS = {"double quotes": '"{}"', "square brackets": "[{}]", "angle brackets": "<{}>"}


def wrap(rng: random.Random) -> Task:
    """A word between the marks asked for."""
    return _wrapped(rng, "wrap", list(_MARKS))


def wrap_round(rng: random.Random) -> Task:
    """A word in round brackets."""
    return _wrapped(rng, "wrap_round", ["round brackets"])


def fact(rng: random.Random) -> Task:
    """A question about one of several people in a passage."""
    people, attribute, passage = _passage(rng)
    person = rng.choice(people)
    ask = {"city": "Where does {} live?", "job": "What is the job of {}?", "pet": "Which animal does {} have?"}
    right = person[attribute]
    wrong = [other[attribute] for other in people if other is not person]
    return _choice(rng, "fact", f"{passage} {ask[attribute].format(person['name'])}", right, wrong)


def who(rng: random.Random) -> Task:
    """The person of a passage of whom something is true."""
    people, attribute, passage = _passage(rng)
    person = rng.choice(people)
    ask = {"city": "Who lives in {}?", "job": "Who works as a {}?", "pet": "Who has a {}?"}
    wrong = [other["name"] for other in people if other is not person]
    return _choice(rng, "who", f"{passage} {ask[attribute].format(person[attribute])}", person["name"], wrong)


def fact_check(rng: random.Random) -> Task:
    """Whether a statement agrees with a passage."""
    people, attribute, passage = _passage(rng)
    person, claimed = rng.choice(people), rng.choice(people)[attribute]
    ask = {"city": "Does {} live in {}?", "job": "Does {} work as a {}?", "pet": "Does {} have a {}?"}
    answers = ["Yes", "No"] if person[attribute] == claimed else ["No", "Yes"]
    prompt = f"{passage} {ask[attribute].format(person['name'], claimed)}"
    return _choice(rng, "fact_check", prompt, answers[0], answers[1:], ("{}", "{}.", "Answer: {}", "I say: {}."))


def table(rng: random.Random) -> Task:
    """An entry of a table."""
    names = rng.sample(NAMES, rng.randint(3, 5))
    values = rng.sample(range(10, 100), len(names))
    row = rng.randrange(len(names))
    rows = "\n".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
    ask = rng.choice(("Which number stands beside {}?", "What is the number of {}?"))
    wrong = [str(value) for value in values if value != values[row]]
    return _choice(rng, "table", f"{rows}\n{ask.format(names[row])}", str(values[row]), wrong)


def count(rng: random.Random) -> Task:
    """How many words a list has."""
    words = rng.sample(NOUNS, rng.randint(2, 8))
    ask = rng.choice(("How many words are in this list: {}?", "Count the words: {}"))
    n = len(words)
    return _choice(rng, "count", ask.format(_listed(words)), str(n), [str(n + 1), str(n - 1), str(n + 2)])


def nth(rng: random.Random) -> Task:
    """The first, second, third or fourth word of a list."""
    words = rng.sample(NOUNS, rng.randint(4, 6))
    place = rng.randrange(4)
    ordinal = ("first", "second", "third", "fourth")[place]
    ask = rng.choice(("What is the {} word of: {}?", "Name the {} item: {}"))
    wrong = [word for word in words if word != words[place]]
    return _choice(rng, "nth", ask.format(ordinal, _listed(words)), words[place], wrong)


def last(rng: random.Random) -> Task:
    """The last word of a list."""
    words = rng.sample(NOUNS, rng.randint(4, 6))
    ask = rng.choice(("What is the last word of: {}?", "Name the last item: {}"))
    return _choice(rng, "last", ask.format(_listed(words)), words[-1], words[:-1])


def category(rng: random.Random) -> Task:
    """The one word of a list that is of a category."""
    name = rng.choice(sorted(CATEGORIES))
    others = [rng.choice(CATEGORIES[other]) for other in rng.sample(sorted(set(CATEGORIES) - {name}), 3)]
    right = rng.choice(CATEGORIES[name])
    ask = rng.choice(("Which of these is a kind of {}: {}?", "Name the {} among: {}"))
    return _choice(rng, "category", ask.format(name, _listed(rng.sample([right, *others], 4))), right, others)


def contains(rng: random.Random) -> Task:
    """Whether a list has a word."""
    words = rng.sample(NOUNS, rng.randint(4, 6))
    asked = rng.choice(words) if rng.random() < 0.5 else rng.choice([noun for noun in NOUNS if noun not in words])
    answers = ["Yes", "No"] if asked in words else ["No", "Yes"]
    ask = rng.choice(("Is {} in this list: {}?", 'Does the word "{}" occur in: {}?'))
    phrasings = ("{}", "{}.", "Answer: {}", "I say: {}.")
    return _choice(rng, "contains", ask.format(asked, _listed(words)), answers[0], answers[1:], phrasings)


def spell(rng: random.Random) -> Task:
    """The letters of a word with hyphens between them."""
    word = rng.choice(WORDS)
    ask = rng.choice(('Spell "{}" with hyphens.', 'Write the letters of "{}" with hyphens between them.'))
    letters = list(word)
    places = range(len(letters) - 1)
    swapped = [
        letters[:p] + letters[p : p + 2][::-1] + letters[p + 2 :] for p in places if letters[p] != letters[p + 1]
    ]
    wrong = [*swapped, *(letters[:p] + letters[p + 1 :] for p in places)]
    return _task(rng, "spell", ask.format(word), "-".join(letters), ["-".join(w) for w in wrong], _GIVE)


def month(rng: random.Random) -> Task:
    """Which of two months comes first or later in the year."""
    a, b = rng.sample(range(12), 2)
    word = rng.choice(("first", "later"))
    right = min(a, b) if word == "first" else max(a, b)
    ask = rng.choice(("Which month comes {} in the year, {} or {}?", "What comes {}, {} or {}?"))
    return _choice(rng, "month", ask.format(word, MONTHS[a], MONTHS[b]), MONTHS[right], [MONTHS[a + b - right]])


def json_object(rng: random.Random) -> Task:
    """A JSON object with one key."""
    key, value = rng.choice(("name", "city", "item", "title")), rng.choice(NAMES + NOUNS)
    ask = rng.choice(('Write a JSON object with key "{}" and value "{}".', 'As JSON, with "{}" set to "{}":'))
    wrong = [
        json.dumps({value: key}),
        json.dumps({key: value})[:-1],
        f"{{{key}: {value}}}",
        json.dumps([key, value]),
        json.dumps({key: rng.choice([noun for noun in NOUNS if noun != value])}),
    ]
    return _task(rng, "json_object", ask.format(key, value), json.dumps({key: value}), wrong, ("{}", "{}\n", "\n{}"))


SEEN: tuple[Kind, ...] = (
    addition, subtraction, buying, larger_or_smaller, largest, sort_up, sort_words, reverse, above, replace_word,
    remove_word, repeat, change_case, bullets, wrap, fact, fact_check, count, nth, category, contains, spell, month,
    json_object,
)  # fmt: skip
UNSEEN: tuple[Kind, ...] = (giving, smallest, sort_down, below, append_word, stars, wrap_round, who, table, last)


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


def unlabeled_row(task: Task, rng: random.Random, share_right: float = 0.7) -> dict[str, Any]:
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


def _choice(
    rng: random.Random, kind: str, prompt: str, right: str, wrong: list[str], phrasings: tuple[str, ...] = _SAY
) -> Task:
    """A task whose answer is one word: a response is right whose last word that is."""
    return _task(rng, kind, prompt, right, wrong, phrasings, lambda text: re.findall(r"[\w']+", text)[-1:] == [right])


def _number(rng: random.Random, kind: str, prompt: str, right: int) -> Task:
    wrong = {right + d for d in (1, -1, 2, -2, 10, -10)} | {int(str(right)[::-1])}
    return _choice(rng, kind, prompt, str(right), [str(n) for n in sorted(wrong) if n >= 0 and n != right])


def _ordered(rng: random.Random, kind: str, prompt: str, right: list[str]) -> Task:
    """A task whose answer is a list; wrong ones have two entries swapped."""
    pairs = [(i, j) for i in range(len(right)) for j in range(i)]
    wrong = []
    for i, j in pairs:
        other = right.copy()
        other[i], other[j] = other[j], other[i]
        wrong.append(_listed(other))
    return _task(
        rng, kind, prompt, _listed(right), wrong, _GIVE, lambda text: text.rpartition(": ")[2].split(", ") == right
    )


def _kept(rng: random.Random, kind: str, words: tuple[str, ...], keep: Callable[[int, int], bool]) -> Task:
    numbers = rng.sample(range(10, 100), 5)
    limit = sorted(numbers)[rng.randint(1, 3)] + rng.choice((-1, 1))
    while limit in numbers:
        limit += 1
    right = [n for n in numbers if keep(n, limit)]
    rest = [n for n in numbers if n not in right]
    if not right or not rest:
        return _kept(rng, kind, words, keep)
    wrong = [[n for n in numbers if n in right and n != out] for out in right if len(right) > 1]
    wrong += [[n for n in numbers if n in right or n == extra] for extra in rest]
    prompt = f"Keep the numbers {rng.choice(words)} {limit}: {_listed(numbers)}"
    answers = [_listed(other) for other in wrong]
    return _task(
        rng, kind, prompt, _listed(right), answers, _GIVE,
        lambda text: [int(n) for n in re.findall(r"\d+", text)] == [n for n in numbers if keep(n, limit)],
    )  # fmt: skip


def _edited(rng: random.Random, kind: str, prompt: str, right: list[str], wrong: list[list[str]]) -> Task:
    texts = [_text(words) for words in wrong if words != right]
    return _task(rng, kind, prompt, _text(right), texts, _GIVE)


def _list_format(rng: random.Random, kind: str, formats: dict[str, str]) -> Task:
    words = rng.sample(NOUNS, rng.randint(2, 4))
    every = {"dashes": "- {}", "numbers": "{n}. {}", "plus signs": "+ {}", "stars": "* {}"}
    name = rng.choice(sorted(formats))

    def written(line: str, items: list[str]) -> str:
        return "\n".join(line.format(item, n=n) for n, item in enumerate(items, start=1))

    ask = rng.choice(("Write as a list with {}: {}", "Make a list with {} of: {}"))
    wrong = [written(line, words) for other, line in every.items() if other != name]
    wrong += [written(formats[name], words[:-1]), written(formats[name], [*words, words[0]])]
    return _task(
        rng, kind, ask.format(name, _listed(words)), written(formats[name], words), wrong, ("{}", "Here it is:\n{}")
    )


def _wrapped(rng: random.Random, kind: str, names: list[str]) -> Task:
    marks = {**_MARKS, "round brackets": "({})"}
    name, word = rng.choice(names), rng.choice(WORDS)
    ask = rng.choice(("Put the word {} in {}.", "Write {} in {}.", "Set {} in {}.")).format(word, name)
    wrong = [mark.format(word) for other, mark in marks.items() if other != name] + [word]
    wrong.append(marks[name].format(rng.choice([other for other in WORDS if other != word])))
    return _task(rng, kind, ask, marks[name].format(word), wrong, _GIVE)


def _passage(rng: random.Random) -> tuple[list[dict[str, str]], str, str]:
    """People with one attribute told of each, all different."""
    attribute, values, telling = rng.choice(
        (
            ("city", CITIES, ("{} lives in {}.", "{} has a flat in {}.")),
            ("job", JOBS, ("{} works as a {}.", "{} is a {}.")),
            ("pet", PETS, ("{} has a {}.", "{} keeps a {}.")),
        )
    )
    how_many = rng.randint(2, 4)
    drawn = zip(rng.sample(NAMES, how_many), rng.sample(values, how_many), strict=True)
    people = [{"name": name, attribute: value} for name, value in drawn]
    told = [rng.choice(telling).format(person["name"], person[attribute]) for person in people]
    return people, attribute, " ".join(told)


def _sentence(rng: random.Random) -> list[str]:
    parts: Any = rng.choice(SENTENCES)
    return [rng.choice(part) if isinstance(part, tuple) else part for part in parts]


def _unique_places(words: list[str]) -> list[int]:
    """Places, the first left out, of words that occur once."""
    lower = [word.lower() for word in words]
    return [place for place in range(1, len(words)) if lower.count(lower[place]) == 1]


def _text(words: list[str]) -> str:
    return " ".join(words) + "."


def _listed(items: list[Any]) -> str:
    return ", ".join(map(str, items))
