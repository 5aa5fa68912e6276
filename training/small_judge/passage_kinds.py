"""Kinds of tasks about a passage or a table: looking up a value by name or a name by value."""

import random
from collections.abc import Iterator

from gram_fast.training.small_judge.task import GIVE, SAY, Task, listed, make_choice, make_task, with_at
from gram_fast.training.small_judge.words import CITIES, JOBS, NAMES, NOUNS, PETS


def fact(rng: random.Random) -> Task:
    """Answer a question about one of several people in a passage."""
    people, attribute, passage = _passage(rng, 2, 3)
    person = rng.choice(people)
    ask = {"city": "Where does {} live?", "job": "What is the job of {}?", "pet": "Which animal does {} have?"}
    wrong = [other[attribute] for other in people if other is not person]
    prompt = f"{passage} {ask[attribute].format(person['name'])}"
    return make_choice(rng, "fact", prompt, person[attribute], wrong, _TELLING[attribute].format(person["name"], "{}"))


def who(rng: random.Random) -> Task:
    """Name the person of a passage for whom something is true."""
    people, attribute, passage = _passage(rng, 2, 3)
    person = rng.choice(people)
    ask = {"city": "Who lives in {}?", "job": "Who works as a {}?", "pet": "Who has a {}?"}
    wrong = [other["name"] for other in people if other is not person]
    prompt = f"{passage} {ask[attribute].format(person[attribute])}"
    return make_task(
        rng, "who", prompt, person["name"], wrong, (*SAY, _TELLING[attribute].format("{}", person[attribute]))
    )


def table(rng: random.Random) -> Task:
    """Look up an entry of a table."""
    names = rng.sample(NAMES, rng.randint(2, 4))
    values = rng.sample(range(10, 100), len(names))
    row = rng.randrange(len(names))
    rows = "\n".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
    ask = rng.choice(("Which number stands beside {}?", "What is the number of {}?"))
    wrong = [str(value) for value in values if value != values[row]]
    prompt = f"{rows}\n{ask.format(names[row])}"
    return make_choice(rng, "table", prompt, str(values[row]), wrong, f"{names[row]}: {{}}")


def rearrange(rng: random.Random) -> Task:
    """Write entries of a table in a given order; wrong answers have two values exchanged or one of another entry."""
    form, entries, asked, shown, separator = _entries(rng)
    prompt = f"{shown}\n{rng.choice(('Write this for {}', 'In this order: {}', 'Copy {}')).format(listed(asked))}"

    def written(values: list[str]) -> str:
        return separator.join(form.format(name, value) for name, value in zip(asked, values, strict=True))

    right, *wrong = _mixed_up(rng, [entries[name] for name in asked], list(entries.values()))
    return make_task(rng, "rearrange", prompt, written(right), list(map(written, wrong)), GIVE)


def inverse(rng: random.Random) -> Task:
    """Write entries of a table, given by value, with name and value exchanged."""
    form, entries, asked, shown, separator = _entries(rng)
    values = [entries[name] for name in asked]
    prompt = f"{shown}\nTurn around {listed(values)}"

    def written(names: list[str]) -> str:
        return separator.join(form.format(value, name) for name, value in zip(names, values, strict=True))

    right, *wrong = _mixed_up(rng, asked, list(entries))
    return make_task(rng, "inverse", prompt, written(right), list(map(written, wrong)), GIVE)


def told(rng: random.Random) -> Task:
    """Repeat what a passage says about several people, in a given order."""
    people, attribute, passage = _passage(rng, 3, 5)
    asked = rng.sample(people, rng.randint(2, 3))
    ask = rng.choice(("What does the text say about {}?", "Repeat what is said of {}."))

    def written(values: list[str]) -> str:
        return " ".join(_TELLING[attribute].format(p["name"], v) for p, v in zip(asked, values, strict=True))

    right, *wrong = _mixed_up(rng, [p[attribute] for p in asked], [p[attribute] for p in people])
    prompt = f"{passage} {ask.format(listed([p['name'] for p in asked]))}"
    return make_task(rng, "told", prompt, written(right), list(map(written, wrong)), GIVE)


def price(rng: random.Random) -> Task:
    """Name the price of one of several things."""
    things = rng.sample(NOUNS, rng.randint(2, 3))
    prices = rng.sample(range(10, 100), len(things))
    place = rng.randrange(len(things))
    passage = " ".join(f"The {thing} costs {cost} euros." for thing, cost in zip(things, prices, strict=True))
    wrong = [str(cost) for cost in prices if cost != prices[place]]
    prompt = f"{passage} How many euros is the {things[place]}?"
    return make_choice(rng, "price", prompt, str(prices[place]), wrong)


_TELLING = {"city": "{} lives in {}.", "job": "{} works as a {}.", "pet": "{} has a {}."}


_VALUES = {"city": CITIES, "job": JOBS, "pet": PETS}


def _passage(rng: random.Random, low: int, high: int) -> tuple[list[dict[str, str]], str, str]:
    """Draws `low` to `high` people with different values of one attribute -> people, attribute, passage about them."""
    attribute = rng.choice(sorted(_TELLING))
    how_many = rng.randint(low, high)
    drawn = zip(rng.sample(NAMES, how_many), rng.sample(_VALUES[attribute], how_many), strict=True)
    people = [{"name": name, attribute: value} for name, value in drawn]
    return people, attribute, " ".join(_TELLING[attribute].format(p["name"], p[attribute]) for p in people)


def _entries(rng: random.Random) -> tuple[str, dict[str, str], list[str], str, str]:
    """Draws a table -> format of an entry, values by name, two or more of the names, the table as text, separator."""
    count = rng.randint(3, 6)
    numbers = tuple(str(n) for n in range(10, 100))
    values = rng.sample(rng.choice((CITIES, JOBS, PETS, NOUNS, numbers)), count)
    entries = dict(zip(rng.sample(NAMES, count), values, strict=True))
    form = rng.choice(("{} {}", "{}: {}", "{} - {}", "{} = {}", "{} has {}", "{} with the {}"))
    separator = rng.choice((", ", "; ", "\n", ". "))
    shown = separator.join(form.format(name, value) for name, value in entries.items())
    return form, entries, rng.sample(sorted(entries), rng.randint(2, count)), shown, separator


def _mixed_up(rng: random.Random, right: list[str], values: list[str]) -> Iterator[list[str]]:
    """Yields `right`, `right` with two values exchanged, and for each other value `right` with it at a random place."""
    yield right
    a, b = rng.sample(range(len(right)), 2)
    yield with_at(with_at(right, a, right[b]), b, right[a])
    for value in values:
        if value not in right:
            yield with_at(right, rng.randrange(len(right)), value)
