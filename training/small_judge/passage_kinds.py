"""Kinds of tasks about a passage or a table: looking up a value by name or a name by value.

Each has easy steps, drawn at random: passages and tables of one or two entries, and wrong answers that are nowhere in
the passage beside those that are right for another entry.
"""

import random
from dataclasses import dataclass

from gram_fast.training.small_judge.task import Problem, others, with_at
from gram_fast.training.small_judge.wordings import GIVE, SAY
from gram_fast.training.small_judge.words import CITIES, JOBS, NAMES, NOUNS, PETS

_PLACES = (
    "{passage} %s",
    "{passage}\n%s",
    "%s\n{passage}",
    'Read this: "{passage}" %s',
    "Text: {passage}\nQuestion: %s",
    "%s {passage}",
)
"""Where a question stands beside its passage. Not a multiple of five, so that a held-out question has any place."""


def _placed(*questions: str) -> tuple[str, ...]:
    return tuple(_PLACES[n % len(_PLACES)] % question for n, question in enumerate(questions))


@dataclass(frozen=True)
class _Attribute:
    """What a passage says of people."""

    values: tuple[str, ...]
    tellings: tuple[str, ...]
    fact_asks: tuple[str, ...]
    who_asks: tuple[str, ...]


_ATTRIBUTES = (
    _Attribute(
        CITIES,
        ("{name} lives in {value}.", "The home of {name} is {value}.", "In {value} lives {name}."),
        _placed(
            "Where does {name} live?",
            "In which city does {name} live?",
            "What is the city of {name}?",
            "Where is the home of {name}?",
            "Which city is the home of {name}?",
            "Tell me where {name} lives.",
            "Which city does {name} live in?",
            "Name the city in which {name} lives.",
            "Where do you find {name}?",
            "At which place does {name} live?",
            "Where {name} lives?",
            "Please say where {name} lives.",
            "{name} lives in which city?",
            "What city does {name} live in?",
            "Say in which city the home of {name} is.",
            "Do you know where {name} lives?",
        ),
        _placed(
            "Who lives in {value}?",
            "Whose home is {value}?",
            "Which person lives in {value}?",
            "Name the person who lives in {value}.",
            "Whose city is {value}?",
            "Tell me who lives in {value}.",
            "Who has a home in {value}?",
            "{value} is the home of whom?",
            "Who of them lives in {value}?",
            "Who can be found in {value}?",
            "What is the name of the person who lives in {value}?",
            "Please say who lives in {value}.",
            "In {value} lives who?",
            "Who is it that lives in {value}?",
            "Say whose home {value} is.",
            "Do you know who lives in {value}?",
        ),
    ),
    _Attribute(
        JOBS,
        ("{name} works as a {value}.", "The job of {name} is {value}.", "{name} is a {value}."),
        _placed(
            "What is the job of {name}?",
            "What does {name} work as?",
            "Which job does {name} have?",
            "What work does {name} do?",
            "As what does {name} work?",
            "Tell me the job of {name}.",
            "What is the work of {name}?",
            "Name the job of {name}.",
            "What job does {name} do?",
            "Which work does {name} do?",
            "What does {name} do for a living?",
            "Please say what job {name} has.",
            "{name} works as what?",
            "What is {name} by trade?",
            "Say which job {name} has.",
            "Do you know the job of {name}?",
        ),
        _placed(
            "Who works as a {value}?",
            "Whose job is {value}?",
            "Which person is a {value}?",
            "Name the person who works as a {value}.",
            "Whose work is that of a {value}?",
            "Tell me who is a {value}.",
            "Who has the job of a {value}?",
            "{value} is the job of whom?",
            "Who of them is a {value}?",
            "Who is the {value}?",
            "What is the name of the person who works as a {value}?",
            "Please say who works as a {value}.",
            "The {value} is who?",
            "Who is it that works as a {value}?",
            "Say whose job {value} is.",
            "Do you know who is a {value}?",
        ),
    ),
    _Attribute(
        PETS,
        ("{name} has a {value}.", "The pet of {name} is a {value}.", "A {value} belongs to {name}."),
        _placed(
            "Which animal does {name} have?",
            "What is the pet of {name}?",
            "Which pet does {name} have?",
            "What animal belongs to {name}?",
            "What kind of pet has {name}?",
            "Tell me the pet of {name}.",
            "What pet does {name} have?",
            "Name the animal of {name}.",
            "Which animal is the pet of {name}?",
            "Which animal is with {name}?",
            "What is the animal of {name}?",
            "Please say which pet {name} has.",
            "{name} has which animal?",
            "What animal does {name} keep?",
            "Say what pet belongs to {name}.",
            "Do you know the pet of {name}?",
        ),
        _placed(
            "Who has a {value}?",
            "Whose pet is a {value}?",
            "Which person has a {value}?",
            "Name the person who has a {value}.",
            "Whose animal is a {value}?",
            "Tell me who has a {value}.",
            "To whom does the {value} belong?",
            "A {value} is the pet of whom?",
            "Who of them has a {value}?",
            "Who is with the {value}?",
            "What is the name of the person who has a {value}?",
            "Please say who has a {value}.",
            "The {value} belongs to whom?",
            "Who is it that has a {value}?",
            "Say whose pet the {value} is.",
            "Do you know who has a {value}?",
        ),
    ),
)


def fact(rng: random.Random) -> Problem:
    """Answer a question about one of several people in a passage."""
    about, telling, people, passage = _passage(rng, 1, 4)
    name, right = rng.choice(list(people.items()))
    wrong = _wrong(rng, right, list(people.values()), about.values)
    answers = (*SAY, telling.replace("{value}", "{answer}"))
    sentence = telling.format(name=name, value=right)
    return Problem(about.fact_asks, {"passage": passage, "name": name}, right, wrong, answers, sentence)


def who(rng: random.Random) -> Problem:
    """Name the person of a passage for whom something is true."""
    about, telling, people, passage = _passage(rng, 1, 4)
    right, value = rng.choice(list(people.items()))
    wrong = _wrong(rng, right, list(people), NAMES)
    answers = (*SAY, telling.replace("{name}", "{answer}"))
    sentence = telling.format(name=right, value=value)
    return Problem(about.who_asks, {"passage": passage, "value": value}, right, wrong, answers, sentence)


_TELL = _placed(
    "What does the text say about {listed}?",
    "Repeat what is said of {listed}.",
    "Repeat the sentences about {listed}.",
    "What is written about {listed}?",
    "Read to me what stands there about {listed}.",
    "What do you learn about {listed}?",
    "Copy what the text says of {listed}.",
    "Write what you know about {listed}.",
    "Tell me about {listed}.",
    "What is known about {listed}?",
    "Please repeat the text, but only about {listed}.",
    "What can you say about {listed}?",
    "In this order, what is said about {listed}?",
    "Give me the sentences about {listed}.",
    "Say again what the text tells of {listed}.",
    "Only about {listed}: what is said?",
)


def told(rng: random.Random) -> Problem:
    """Repeat what a passage says about one or more people, in a given order."""
    about, telling, people, passage = _passage(rng, 1, 5)
    asked = rng.sample(list(people), rng.randint(1, min(3, len(people))))

    def written(values: list[str]) -> str:
        return " ".join(telling.format(name=name, value=value) for name, value in zip(asked, values, strict=True))

    right = [people[name] for name in asked]
    wrong = _mixed_up(rng, right, list(people.values()), about.values)
    fields = {"passage": passage, "listed": ", ".join(asked)}
    return Problem(_TELL, fields, written(right), list(map(written, wrong)), GIVE, f"about {fields['listed']}")


_TABLE = _placed(
    "Which number stands beside {name}?",
    "What is the number of {name}?",
    "Which number does {name} have?",
    "What number belongs to {name}?",
    "Which number is written after {name}?",
    "Look up {name}.",
    "Tell me the number of {name}.",
    "{name}?",
    "What is the value for {name}?",
    "Find the number of {name}.",
    "Name the number beside {name}.",
    "What does the table say for {name}?",
    "Please give me the number of {name}.",
    "Which value has {name}?",
    "Say what number is behind {name}.",
    "What stands beside {name}?",
)


def table(rng: random.Random) -> Problem:
    """Look up an entry of a table."""
    count = rng.randint(1, 5)
    keys = rng.sample(rng.choice((NAMES, NOUNS, CITIES)), count)
    entries = dict(zip(keys, rng.sample(_NUMBERS, count), strict=True))
    form, separator = rng.choice(_ENTRY_FORMS[:5]), rng.choice(("\n", "\n", ", ", "; "))
    name, right = rng.choice(list(entries.items()))
    fields = {"passage": _shown(entries, form, separator), "name": name}
    answers = (*SAY, "{name}: {answer}", "{name} has {answer}.", "The number of {name} is {answer}.")
    wrong = _wrong(rng, right, list(entries.values()), _NUMBERS)
    return Problem(_TABLE, fields, right, wrong, answers, form.format(name, right))


_REARRANGE = _placed(
    "Write this for {listed}",
    "In this order: {listed}",
    "Copy {listed}",
    "Write the entries of {listed}.",
    "Give the entries in the order {listed}.",
    "Only {listed}, in this order",
    "Repeat the entries for {listed}.",
    "Rearrange: {listed}",
    "Please write only {listed} with what belongs to them.",
    "What are the entries of {listed}?",
    "Keep {listed} in this order.",
    "Show me {listed}.",
    "List the entries for {listed} in this order.",
    "Can you write this in the order {listed}?",
    "Pick out {listed} from the entries.",
    "Write down what stands there for {listed}.",
)


def rearrange(rng: random.Random) -> Problem:
    """Write entries of a table in a given order."""
    form, separator, entries, values_of = _entries(rng)
    asked = rng.sample(list(entries), rng.randint(1, len(entries)))

    def written(values: list[str]) -> str:
        return _shown(dict(zip(asked, values, strict=True)), form, separator)

    right = [entries[name] for name in asked]
    wrong = _mixed_up(rng, right, list(entries.values()), values_of)
    fields = {"passage": _shown(entries, form, separator), "listed": ", ".join(asked)}
    return Problem(_REARRANGE, fields, written(right), list(map(written, wrong)), GIVE, f"only {fields['listed']}")


_INVERSE = _placed(
    "Turn around {listed}",
    "Turn around the entries with {listed}.",
    "Write {listed} first and the name after it.",
    "Swap the two sides for {listed}.",
    "For {listed}, write the name behind the value.",
    "Turn the entries of {listed} around.",
    "Exchange name and value for {listed}.",
    "Inverse: {listed}",
    "Please turn around the entries that have {listed}.",
    "What do {listed} look like with their names behind them?",
    "Put the names behind {listed}.",
    "The other way around for {listed}",
    "Write the entries with {listed}, the name last.",
    "Can you turn around {listed}?",
    "Start with {listed} and add whose each is.",
    "Value first, then name: {listed}",
)


def inverse(rng: random.Random) -> Problem:
    """Write entries of a table, given by value, with name and value exchanged."""
    form, separator, entries, _ = _entries(rng)
    asked = rng.sample(list(entries), rng.randint(1, len(entries)))
    values = [entries[name] for name in asked]

    def written(names: list[str]) -> str:
        return _shown(dict(zip(values, names, strict=True)), form, separator)

    wrong = _mixed_up(rng, asked, list(entries), NAMES)
    fields = {"passage": _shown(entries, form, separator), "listed": ", ".join(values)}
    return Problem(_INVERSE, fields, written(asked), list(map(written, wrong)), GIVE, f"turn {fields['listed']}")


_PRICE = _placed(
    "How many euros is the {thing}?",
    "What is the price of the {thing}?",
    "What does the {thing} cost?",
    "Which price does the {thing} have?",
    "How many euros does the {thing} cost?",
    "Tell me the price of the {thing}.",
    "Find the price of the {thing}.",
    "Name the price of the {thing}.",
    "What is the number of euros for the {thing}?",
    "How much is the {thing}?",
    "Please give me the price of the {thing}.",
    "Do you know the price of the {thing}?",
)


def price(rng: random.Random) -> Problem:
    """Name the price of one of several things."""
    count = rng.randint(1, 3)
    prices = dict(zip(rng.sample(NOUNS, count), rng.sample(_NUMBERS, count), strict=True))
    thing, right = rng.choice(list(prices.items()))
    sentences = {thing: f"The {thing} costs {cost} euros." for thing, cost in prices.items()}
    wrong = _wrong(rng, right, list(prices.values()), _NUMBERS)
    fields = {"passage": " ".join(sentences.values()), "thing": thing}
    return Problem(_PRICE, fields, right, wrong, (*SAY, "{answer} euros"), sentences[thing])


_NUMBERS = tuple(str(n) for n in range(10, 100))
_ENTRY_FORMS = ("{} {}", "{}: {}", "{} - {}", "{} = {}", "{} has {}", "{} with the {}")


def _passage(rng: random.Random, low: int, high: int) -> tuple[_Attribute, str, dict[str, str], str]:
    """Draws `low` to `high` people -> what is told of them, the sentence for it, values by name, and the passage."""
    about = rng.choice(_ATTRIBUTES)
    telling = rng.choice(about.tellings)
    count = rng.randint(low, high)
    people = dict(zip(rng.sample(NAMES, count), rng.sample(about.values, count), strict=True))
    return about, telling, people, " ".join(telling.format(name=n, value=v) for n, v in people.items())


def _entries(rng: random.Random) -> tuple[str, str, dict[str, str], tuple[str, ...]]:
    """Draws a table of one to six entries -> format of an entry, separator, values by name, what values there are."""
    count = rng.randint(1, 2) if rng.random() < 0.3 else rng.randint(3, 6)
    material = rng.choice((CITIES, JOBS, PETS, NOUNS, _NUMBERS))
    entries = dict(zip(rng.sample(NAMES, count), rng.sample(material, count), strict=True))
    return rng.choice(_ENTRY_FORMS), rng.choice((", ", "; ", "\n", ". ")), entries, material


def _shown(entries: dict[str, str], form: str, separator: str) -> str:
    return separator.join(form.format(*entry) for entry in entries.items())


def _wrong(rng: random.Random, right: str, present: list[str], material: tuple[str, ...]) -> list[str]:
    """The other values of a passage, or one that is nowhere in it."""
    rest = [value for value in present if value != right]
    return rest if rest and rng.random() < 0.7 else others(material, present, 1, rng)


def _mixed_up(rng: random.Random, right: list[str], present: list[str], material: tuple[str, ...]) -> list[list[str]]:
    """Returns `right` with two values exchanged, and with one of them replaced by one of another entry, or of none."""
    place = rng.randrange(len(right))
    left_over = [value for value in present if value not in right]
    wrong = [with_at(right, place, value) for value in rng.sample(left_over, min(2, len(left_over)))]
    if len(right) > 1:
        a, b = rng.sample(range(len(right)), 2)
        wrong.append(with_at(with_at(right, a, right[b]), b, right[a]))
    if not wrong or rng.random() < 0.3:
        wrong.append(with_at(right, place, others(material, present, 1, rng)[0]))
    return wrong
