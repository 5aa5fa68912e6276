"""Kinds of tasks about a passage or a table: looking up what it says of a name."""

import random
from collections.abc import Iterator

from gram_fast.training.small_judge.task import GIVE, SAY, Task, listed, make_choice, make_task, with_at
from gram_fast.training.small_judge.words import CITIES, JOBS, NAMES, NOUNS, PETS


def fact(rng: random.Random) -> Task:
    """A question about one of several people in a passage."""
    people, attribute, passage = _passage(rng, 2, 3)
    person = rng.choice(people)
    ask = {"city": "Where does {} live?", "job": "What is the job of {}?", "pet": "Which animal does {} have?"}
    wrong = [other[attribute] for other in people if other is not person]
    prompt = f"{passage} {ask[attribute].format(person['name'])}"
    return make_choice(rng, "fact", prompt, person[attribute], wrong, _TELLING[attribute].format(person["name"], "{}"))


def who(rng: random.Random) -> Task:
    """The person of a passage of whom something is true."""
    people, attribute, passage = _passage(rng, 2, 3)
    person = rng.choice(people)
    ask = {"city": "Who lives in {}?", "job": "Who works as a {}?", "pet": "Who has a {}?"}
    wrong = [other["name"] for other in people if other is not person]
    prompt = f"{passage} {ask[attribute].format(person[attribute])}"
    return make_task(
        rng, "who", prompt, person["name"], wrong, (*SAY, _TELLING[attribute].format("{}", person[attribute]))
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
    return make_choice(rng, "table", prompt, str(values[row]), wrong, f"{names[row]}: {{}}")


def rearrange(rng: random.Random) -> Task:
    """Some entries of a table in the order asked for; wrong ones have two values exchanged, or one of another entry."""
    form, entries, asked, shown, separator = _entries(rng)
    prompt = f"{shown}\n{rng.choice(('Write this for {}', 'In this order: {}', 'Copy {}')).format(listed(asked))}"

    def written(values: list[str]) -> str:
        return separator.join(form.format(name, value) for name, value in zip(asked, values, strict=True))

    right, *wrong = _mixed_up(rng, [entries[name] for name in asked], list(entries.values()))
    return make_task(rng, "rearrange", prompt, written(right), list(map(written, wrong)), GIVE)


def inverse(rng: random.Random) -> Task:
    """Some entries of a table with name and value exchanged."""
    form, entries, asked, shown, separator = _entries(rng)
    values = [entries[name] for name in asked]
    prompt = f"{shown}\nTurn around {listed(values)}"

    def written(names: list[str]) -> str:
        return separator.join(form.format(value, name) for name, value in zip(names, values, strict=True))

    right, *wrong = _mixed_up(rng, asked, list(entries))
    return make_task(rng, "inverse", prompt, written(right), list(map(written, wrong)), GIVE)


def told(rng: random.Random) -> Task:
    """What a passage says of several people, in the order asked for."""
    people, attribute, passage = _passage(rng, 3, 5)
    asked = rng.sample(people, rng.randint(2, 3))
    ask = rng.choice(("What does the text say about {}?", "Repeat what is said of {}."))

    def written(values: list[str]) -> str:
        return " ".join(_TELLING[attribute].format(p["name"], v) for p, v in zip(asked, values, strict=True))

    right, *wrong = _mixed_up(rng, [p[attribute] for p in asked], [p[attribute] for p in people])
    prompt = f"{passage} {ask.format(listed([p['name'] for p in asked]))}"
    return make_task(rng, "told", prompt, written(right), list(map(written, wrong)), GIVE)


def price(rng: random.Random) -> Task:
    """What one of several things costs."""
    things = rng.sample(NOUNS, rng.randint(2, 3))
    prices = rng.sample(range(10, 100), len(things))
    place = rng.randrange(len(things))
    told = " ".join(f"The {thing} costs {cost} euros." for thing, cost in zip(things, prices, strict=True))
    wrong = [str(cost) for cost in prices if cost != prices[place]]
    prompt = f"{told} How many euros is the {things[place]}?"
    return make_choice(rng, "price", prompt, str(prices[place]), wrong)


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
    yield with_at(with_at(right, a, right[b]), b, right[a])
    for value in values:
        if value not in right:
            yield with_at(right, rng.randrange(len(right)), value)
