"""Kinds of tasks about numbers: sums and differences, plain or in a story, comparisons and selections."""

import random
import re
from collections.abc import Callable

from gram_fast.training.small_judge.task import GIVE, Task, listed, make_choice, make_task
from gram_fast.training.small_judge.words import NAMES, NOUNS


def addition(rng: random.Random) -> Task:
    """Add two numbers."""
    a, b = rng.randint(2, 60), rng.randint(2, 9)
    ask = rng.choice(("What is {} + {}?", "Add {} and {}.", "Compute {} plus {}.", "How much is {} plus {}?"))
    return _number(rng, "addition", ask.format(a, b), a + b, f"{a} + {b} = {{}}")


def subtraction(rng: random.Random) -> Task:
    """Subtract two numbers."""
    a, b = rng.randint(12, 70), rng.randint(2, 9)
    ask = rng.choice(("What is {} - {}?", "Compute {} minus {}.", "How much is {} minus {}?"))
    return _number(rng, "subtraction", ask.format(a, b), a - b, f"{a} - {b} = {{}}")


def buying(rng: random.Random) -> Task:
    """Add two numbers in a story."""
    name, noun = rng.choice(NAMES), rng.choice(NOUNS)
    a, b = rng.randint(2, 60), rng.randint(2, 9)
    got = rng.choice(("buys", "finds", "gets"))
    prompt = f"{name} has {a} {noun}s and {got} {b} more. How many {noun}s are there now?"
    return _number(rng, "buying", prompt, a + b, f"{a} + {b} = {{}}")


def giving(rng: random.Random) -> Task:
    """Subtract two numbers in a story."""
    name, noun = rng.choice(NAMES), rng.choice(NOUNS)
    a, b = rng.randint(12, 70), rng.randint(2, 9)
    lost = rng.choice(("gives away", "loses", "sells"))
    prompt = f"{name} has {a} {noun}s and {lost} {b} of them. How many {noun}s are there now?"
    return _number(rng, "giving", prompt, a - b, f"{a} - {b} = {{}}")


def larger_or_smaller(rng: random.Random) -> Task:
    """Name the larger or the smaller of two similar numbers."""
    a = rng.randint(100, 999)
    b = rng.choice([n for n in (int(str(a)[::-1]), a + 9, a - 9, a + 90, a - 90, a + 1) if 100 <= n <= 999 and n != a])
    a, b = rng.sample((a, b), 2)
    word = rng.choice(("larger", "smaller"))
    best = max(a, b) if word == "larger" else min(a, b)
    ask = rng.choice((f"Which number is {word}, {a} or {b}?", f"Name the {word} of {a} and {b}."))
    return make_choice(rng, "larger_or_smaller", ask, str(best), [str(a + b - best)])


def extreme(rng: random.Random) -> Task:
    """Name the largest or the smallest of some numbers."""
    numbers = rng.sample(range(10, 100), rng.randint(3, 5))
    word, best = rng.choice((("largest", max(numbers)), ("smallest", min(numbers))))
    ask = rng.choice(("What is the {} number in {}?", "Name the {} of {}."))
    others = [str(n) for n in numbers if n != best]
    return make_choice(rng, "extreme", ask.format(word, listed(numbers)), str(best), others)


def weight(rng: random.Random) -> Task:
    """Decide which of two things weighs more or less."""
    (a, b), (x, y) = rng.sample(NOUNS, 2), rng.sample(range(10, 100), 2)
    word = rng.choice(("more", "less"))
    right, wrong = (a, b) if (x > y) == (word == "more") else (b, a)
    prompt = f"The {a} weighs {x} kilos. The {b} weighs {y} kilos. Which weighs {word}?"
    return make_choice(rng, "weight", prompt, right, [wrong])


def above(rng: random.Random) -> Task:
    """Keep the numbers of a list that are above a limit."""
    return _kept(rng, "above", ("greater than", "above"), lambda n, limit: n > limit)


def below(rng: random.Random) -> Task:
    """Keep the numbers of a list that are below a limit."""
    return _kept(rng, "below", ("less than", "below"), lambda n, limit: n < limit)


def _number(rng: random.Random, kind: str, prompt: str, right: int, written_out: str) -> Task:
    wrong = [right + d for d in (1, -1, 2, -2, 10, -10) if right + d > 0]
    return make_choice(rng, kind, prompt, str(right), [str(n) for n in wrong], written_out)


def _kept(rng: random.Random, kind: str, words: tuple[str, ...], keep: Callable[[int, int], bool]) -> Task:
    """A task whose answer is part of a list; wrong answers are the rest, and the part with one entry more or less."""
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
    prompt = f"Keep the numbers {rng.choice(words)} {limit}: {listed(numbers)}"
    return make_task(
        rng, kind, prompt, listed(right), [listed(other) for other in wrong], GIVE,
        lambda text: [int(n) for n in re.findall(r"\d+", text)] == [n for n in numbers if keep(n, limit)],
    )  # fmt: skip
