"""Kinds of tasks about numbers: sums, plain or in a story, and comparisons."""

import random

from gram_fast.training.small_judge.directions import DOWN, UP
from gram_fast.training.small_judge.task import Problem, forms, marked, ranked, some_numbers
from gram_fast.training.small_judge.wordings import GIVE_LIST, SAY, YES_OR_NO
from gram_fast.training.small_judge.words import NAMES, NOUNS, THINGS


def addition(rng: random.Random) -> Problem:
    """Add two numbers, the second of one or two digits."""
    a, b = _summands(rng)
    asks = (
        "What is {a} + {b}?",
        "Add {a} and {b}.",
        "Compute {a} plus {b}.",
        "How much is {a} plus {b}?",
        "What do you get when you add {b} to {a}?",
        "{a} + {b} = ?",
        "What is {a} plus {b}?",
        "Calculate {a} + {b}.",
        "What is the sum of {a} and {b}?",
        "Please work out {a} + {b}.",
        "{a} plus {b}?",
        "Give me the sum of {a} and {b}.",
        "If you add {a} and {b}, what is the result?",
        "{a}+{b}",
        "Tell me how much {a} and {b} are together.",
        "Could you add {a} and {b} for me?",
        "How much are {a} and {b} together?",
    )
    answers = ("{a} + {b} = {answer}", "{a} plus {b} is {answer}.", "The sum is {answer}.", "That makes {answer}.")
    return Problem(asks, {"a": a, "b": b}, str(a + b), _near(a + b), (*SAY, *answers), _added(a, b))


def subtraction(rng: random.Random) -> Problem:
    """Subtract two numbers, the second of one or two digits."""
    b, rest = _summands(rng)
    a = b + rest
    b = rng.choice((b, rest))
    asks = (
        "What is {a} - {b}?",
        "Subtract {b} from {a}.",
        "Compute {a} minus {b}.",
        "How much is {a} minus {b}?",
        "What do you get when you take {b} from {a}?",
        "{a} - {b} = ?",
        "What is {a} minus {b}?",
        "Calculate {a} - {b}.",
        "What is the difference between {a} and {b}?",
        "Please work out {a} - {b}.",
        "{a} minus {b}?",
        "Take {b} away from {a}.",
        "If you subtract {b} from {a}, what is the result?",
        "{a}-{b}",
        "What is left of {a} without {b}?",
        "Could you subtract {b} from {a} for me?",
        "There are {a}. Someone takes {b} away. How many are there now?",
        "Someone has {a} and loses {b}. How many are left?",
        "Of {a}, someone gives away {b}. How many are left?",
        "Someone has {a} and loses {b}. How many remain?",
        "Someone has {a} and sells {b}. How many remain?",
        "Someone had {a} and gave {b} away. How many are left now?",
    )
    answers = ("{a} - {b} = {answer}", "{a} minus {b} is {answer}.", "The rest is {answer}.", "That leaves {answer}.")
    return Problem(asks, {"a": a, "b": b}, str(a - b), _near(a - b), (*SAY, *answers), _subtracted(a, b))


def times(rng: random.Random) -> Problem:
    """Multiply two small numbers; wrong answers stand beside the right one in the table."""
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    asks = (
        "What is {a} times {b}?",
        "Multiply {a} by {b}.",
        "Compute {a} x {b}.",
        "How much is {a} times {b}?",
        "What do you get when you multiply {a} by {b}?",
        "{a} * {b} = ?",
        "What is {a} * {b}?",
        "Calculate {a} times {b}.",
        "What is the product of {a} and {b}?",
        "Please work out {a} x {b}.",
        "{a} times {b}?",
        "Give me the product of {a} and {b}.",
        "If you multiply {a} and {b}, what is the result?",
        "{a}*{b}",
        "What are {a} times {b}?",
        "Could you multiply {a} by {b} for me?",
    )
    wrong = [str(a * (b + 1)), str(a * (b - 1)), str((a + 1) * b), str((a - 1) * b)]
    answers = ("{a} x {b} = {answer}", "{a} times {b} is {answer}.", "The product is {answer}.", "That makes {answer}.")
    return Problem(asks, {"a": a, "b": b}, str(a * b), wrong, (*SAY, *answers), f"{a} times {b}")


def buying(rng: random.Random) -> Problem:
    """Add two numbers in a story."""
    a, b = _summands(rng)
    asks = (
        "{name} has {a} {things} and buys {b} more. How many {things} are there now?",
        "{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?",
        "There are {a} {things}. {name} brings {b} more. How many {things} are there?",
        "{name} owns {a} {things} and gets {b} more. How many is that?",
        "{name} has {a} {things}. Then {name} gets {b} more {things}. How many does {name} have now?",
        "How many {things} does {name} have after buying {b} more, with {a} at first?",
        "{name} had {a} {things} and bought {b} more.\nHow many {things} does {name} have now?",
        "{a} {things} are on the table. {name} adds {b}. How many {things} are on the table now?",
        "{name} collects {things}. Yesterday there were {a}, today {b} were added. How many are there?",
        "{name} finds {a} {things} and later {b} more. How many {things} are that together?",
        "Say how many {things} {name} has: first {a}, then {b} more.",
        "{name} bought {a} {things} on Monday and {b} on Tuesday. How many {things} did {name} buy?",
        "If {name} has {a} {things} and receives {b} more, how many {things} does {name} have?",
        "Count the {things}: {name} had {a} and was given {b}.",
        "With {a} {things} at home and {b} more from the shop, how many {things} does {name} have?",
        "{name} has {a} {things} and makes {b} more. What is the number of {things} now?",
    )
    return Problem(asks, _story(rng, a, b), str(a + b), _near(a + b), (*SAY, *_STORY_ANSWERS), _added(a, b))


def giving(rng: random.Random) -> Problem:
    """Subtract two numbers in a story."""
    b, rest = _summands(rng)
    a = b + rest
    asks = (
        "{name} has {a} {things} and gives away {b} of them. How many {things} are there now?",
        "{name} has {a} {things} and loses {b}. How many {things} does {name} have now?",
        "There are {a} {things}. {name} takes {b} away. How many {things} are there now?",
        "{name} owns {a} {things} and sells {b}. How many are left?",
        "{name} has {a} {things}. Then {name} gives away {b} {things}. How many does {name} have now?",
        "How many {things} are left when {name} has {a} {things} and loses {b}?",
        "{name} had {a} {things} and gave {b} away.\nHow many {things} does {name} have now?",
        "{a} {things} are on the table. {name} takes {b} away. How many {things} are on the table now?",
        "{name} had {a} {things} yesterday and gave {b} away today. How many remain?",
        "{name} finds {a} {things} and later loses {b}. How many {things} are left?",
        "If {name} has {a} {things} and gives away {b}, how many {things} does {name} have?",
        "Count the {things}: {name} had {a} and gave {b} away.",
    )
    return Problem(asks, _story(rng, a, b), str(rest), _near(rest), (*SAY, *_STORY_ANSWERS), _subtracted(a, b))


def larger(rng: random.Random) -> Problem:
    """Name the larger or the smaller of two numbers."""
    a, b = _two(rng)
    words, right = rng.choice(((UP, max(a, b)), (DOWN, min(a, b))))
    asks = (
        "Which number is {larger}, {a} or {b}?",
        "Name the {larger} of {a} and {b}.",
        "Which is {bigger}: {a} or {b}?",
        "What is the {larger} number, {a} or {b}?",
        "Of the two numbers {a} and {b}, which one is {larger}?",
        "{a} or {b}: which is {larger}?",
        "Pick the {larger} number: {a}, {b}",
        "Compare {a} and {b}. Which one is {bigger}?",
        "Tell me which of {a} and {b} is {higher}.",
        "Which of these two is the {higher} number: {a} or {b}?",
        "Here are two numbers: {a} and {b}. Write the {larger} one.",
        "{a}, {b}\nWhich number is {higher}?",
        "Choose the {bigger} number from {a} and {b}.",
        "Between {a} and {b}, which is the {larger}?",
        "Please give me the {larger} one of {a} and {b}.",
        "Is {a} or {b} the {larger} number?",
    )
    answers = ("The {larger} number is {answer}.", "{answer} is {larger}.", "The {bigger} one is {answer}.")
    working = f"{words['larger']}: {_rising([a, b])}"
    return Problem(asks, {**words, "a": a, "b": b}, str(right), [str(a + b - right)], (*SAY, *answers), working)


def is_larger(rng: random.Random) -> Problem:
    """Say whether one of two numbers is larger, or smaller, than the other."""
    a, b = _two(rng)
    words = rng.choice((UP, DOWN))
    asks = (
        "Is {a} {larger} than {b}?",
        "Is {a} {greater} than {b}? Yes or no?",
        "Answer yes or no: is {a} {bigger} than {b}?",
        "{a} is {larger} than {b}. Is that right?",
        "Is it true that {a} is {larger} than {b}?",
        "Say yes or no. {a} is {higher} than {b}.",
        "Is the number {a} {bigger} than {b}?",
        "Would you say that {a} is {larger} than {b}?",
        "True or not: {a} is {greater} than {b}? Answer yes or no.",
        "Please tell me if {a} is {larger} than {b}.",
        "Does {a} count as {larger} than {b}?",
        "Compare {a} with {b}. Is it {larger}?",
        "Yes or no: {a} is {larger} than {b}?",
        "Check this: {a} is {bigger} than {b}. Is it so?",
        "Can you say whether {a} is {higher} than {b}?",
        "{a} {larger} than {b}?",
    )
    right, wrong = ("Yes", "No") if (a > b) == (words is UP) else ("No", "Yes")
    working = f"{a} {words['larger']} than {b}: {_rising([a, b])}"
    return Problem(asks, {**words, "a": a, "b": b}, right, [wrong], YES_OR_NO, working)


def extreme(rng: random.Random) -> Problem:
    """Name the largest or the smallest of some numbers."""
    numbers = some_numbers(rng, rng.randint(3, 5))
    words, right = rng.choice(((UP, max(numbers)), (DOWN, min(numbers))))
    asks = (
        "What is the {largest} number in {items}?",
        "Name the {largest} of {items}.",
        "Which of these numbers is the {largest}: {items}?",
        "Find the {biggest} number: {items}",
        "Which number is the {highest} of {items}?",
        "{items}: which one is {largest}?",
        "What is the {maximum} of {items}?",
        "Pick the {largest} number from this list: {items}",
        "{lines}\nWhich of these is the {highest}?",
        "Please tell me the {largest} of these numbers: {items}",
        "Give me the {biggest} of {items}.",
        "Here are some numbers: {items}. Which is the {largest}?",
        "Write down the {highest} number of {spaced}.",
        "Look at {items} and name the {maximum}.",
        "Out of {items}, which number is {largest}?",
        "The {largest} of {items} is?",
    )
    answers = ("The {largest} number is {answer}.", "{answer} is the {largest}.", "The {highest} one is {answer}.")
    items = [str(n) for n in numbers]
    wrong = [n for n in items if n != str(right)]
    working = f"{words['largest']}: {_rising(numbers)}"
    return Problem(asks, {**words, **forms(items)}, str(right), wrong, (*SAY, *answers), working)


def more(rng: random.Random) -> Problem:
    """Decide which of two people has more or fewer things."""
    (a, b), (x, y) = rng.sample(NAMES, 2), rng.sample(range(10, 100), 2)
    words = rng.choice((UP, DOWN))
    right, wrong = (a, b) if (x > y) == (words is UP) else (b, a)
    asks = (
        "{a} has {x} {things}. {b} has {y} {things}. Who has {more} {things}?",
        "{a} has {x} {things} and {b} has {y}. Who has {more}?",
        "Who has {more} {things}: {a} with {x} or {b} with {y}?",
        "{a} owns {x} {things}, {b} owns {y}. Which of them has {more}?",
        "Between {a} with {x} {things} and {b} with {y}, who has {more}?",
        "{a}: {x} {things}\n{b}: {y} {things}\nWho has {more}?",
        "There are {x} {things} for {a} and {y} for {b}. Who gets {more}?",
        "{a} bought {x} {things}, {b} bought {y}. Who bought {more}?",
        "Name the one with {more} {things}: {a} has {x}, {b} has {y}.",
        "Given that {a} has {x} {things} and {b} has {y}, tell me who has {more}.",
        "{a} found {x} {things}. {b} found {y}. Who found {more}?",
        "Say who has the {most} {things}. {a} has {x}, {b} has {y}.",
        "{a} ({x} {things}) or {b} ({y} {things}): who has {more}?",
        "Who of the two has {more} {things}? {a} has {x} and {b} has {y}.",
        "In a game {a} won {x} {things} and {b} won {y}. Who won {more}?",
        "{a} sells {x} {things} and {b} sells {y}. Who sells {more} {things}?",
    )
    fields = {**words, "a": a, "b": b, "x": x, "y": y, "things": rng.choice(THINGS)}
    answers = (*SAY, "{answer} has {more}.", "{answer} does.", "{answer} has.")
    return Problem(asks, fields, right, [wrong], answers, f"{words['more']}: {ranked({a: x, b: y})}")


def weight(rng: random.Random) -> Problem:
    """Decide which of two things is heavier or lighter."""
    (a, b), (x, y) = rng.sample(NOUNS, 2), rng.sample(range(10, 100), 2)
    words = rng.choice((UP, DOWN))
    right, wrong = (a, b) if (x > y) == (words is UP) else (b, a)
    asks = (
        "The {a} weighs {x} kilos. The {b} weighs {y} kilos. Which has {more} kilos?",
        "The {a} has {x} kilos and the {b} has {y}. Which has {more}?",
        "Which has {more} kilos: the {a} with {x} or the {b} with {y}?",
        "Which number of kilos is {larger}: {x} of the {a} or {y} of the {b}? Name the thing.",
        "The {a} has {x} kilos, the {b} has {y}. Which of them has {more}?",
        "{a}: {x} kilos\n{b}: {y} kilos\nWhich has {more}?",
        "There are {x} kilos of {a} and {y} of {b}. Of which are there {more}?",
        "Name the thing with {more} kilos: the {a} has {x}, the {b} has {y}.",
        "Say which has the {most} kilos. The {a} has {x}, the {b} has {y}.",
        "The {a} ({x} kilos) or the {b} ({y} kilos): which has {more}?",
        "Which of the two has {more} kilos? The {a} has {x} and the {b} has {y}.",
        "Between the {a} with {x} kilos and the {b} with {y}, which has {more}?",
    )
    fields = {**words, "a": a, "b": b, "x": x, "y": y}
    answers = (*SAY, "The {answer}.", "The {answer} has {more}.")
    return Problem(asks, fields, right, [wrong], answers, f"{words['more']}: {ranked({a: x, b: y})}")


def above(rng: random.Random) -> Problem:
    """Keep the numbers of a list that are above a limit."""
    return _kept(rng, True)


def below(rng: random.Random) -> Problem:
    """Keep the numbers of a list that are below a limit."""
    return _kept(rng, False)


def _kept(rng: random.Random, up: bool) -> Problem:
    """A problem whose answer is part of a list; wrong are the rest, and the part with one entry more or less."""
    numbers = some_numbers(rng, 5)
    low, high = sorted(numbers)[(cut := rng.randint(1, 3)) : cut + 2]
    if high - low < 2:
        return _kept(rng, up)
    limit = rng.randint(low + 1, high - 1)
    asks = (
        "Keep the numbers {above} {limit}: {items}",
        "Which of these numbers are {greater} than {limit}: {items}?",
        "Write only the numbers that are {larger} than {limit}: {items}",
        "From {items}, keep those {above} {limit}.",
        "List the numbers {over} {limit} in {items}.",
        "Keep the numbers {greater} than {limit}: {items}",
        "{items}\nWhich of them are {above} {limit}?",
        "Take these numbers: {spaced}. Which are {over} {limit}?",
        "Please list every number {above} {limit}: {items}",
        "Remove all numbers that are not {greater} than {limit}: {items}",
        "{lines}\nKeep only what is {larger} than {limit}.",
        "What numbers in this list are {higher} than {limit}? {items}",
        "Find all numbers {over} {limit}: {items}",
        "Select the numbers {larger} than {limit} from {items}.",
        "Of the numbers {items}, name those {above} {limit}.",
        "Show me the numbers in {items} that are {greater} than {limit}.",
    )
    kept = [str(n) for n in numbers if (n > limit) == up]
    rest = [str(n) for n in numbers if (n > limit) != up]
    with_one = [str(n) for n in numbers if str(n) in kept or str(n) == rest[0]]
    wrong = [rest, with_one if rng.random() < 0.5 else kept[1:] or with_one]
    words, items = UP if up else DOWN, [str(n) for n in numbers]
    fields = {**words, **forms(items), "limit": limit}
    return Problem(asks, fields, kept, wrong, GIVE_LIST, f"{words['above']} {limit}: {marked(items, kept)}")


_STORY_ANSWERS = ("{name} has {answer} {things}.", "{answer} {things}", "There are {answer} {things}.", "{answer} now.")


def _story(rng: random.Random, a: int, b: int) -> dict[str, object]:
    return {"name": rng.choice(NAMES), "things": rng.choice(THINGS), "a": a, "b": b}


def _summands(rng: random.Random) -> tuple[int, int]:
    """Two numbers, the second of one digit in six of ten cases, with a sum below a hundred in all."""
    if rng.random() < 0.6:
        return rng.randint(2, 80), rng.randint(2, 9)
    a = rng.randint(10, 80)
    return a, rng.randint(10, 99 - a) if a < 89 else 10


def _added(a: int, b: int) -> str:
    """Adds two numbers below a hundred column by column, the carry last: "47+38: 7+8=15, 4+3+1=8"."""
    ones = a % 10 + b % 10
    carry = ones // 10
    return f"{a}+{b}: {a % 10}+{b % 10}={ones}, {a // 10}+{b // 10}+{carry}={a // 10 + b // 10 + carry}"


def _subtracted(a: int, b: int) -> str:
    """Subtracts numbers below a hundred column by column, what was borrowed last: "55-38: 15-8=7, 5-3-1=1"."""
    borrowed = int(a % 10 < b % 10)
    ones = a % 10 + 10 * borrowed
    tens = a // 10 - b // 10 - borrowed
    return f"{a}-{b}: {ones}-{b % 10}={ones - b % 10}, {a // 10}-{b // 10}-{borrowed}={tens}"


def _rising(numbers: list[int]) -> str:
    return "<".join(map(str, sorted(numbers)))


def _near(right: int) -> list[str]:
    return [str(right + d) for d in (1, -1, 2, -2, 10, -10) if right + d > 0]


def _two(rng: random.Random) -> list[int]:
    """Two numbers, in half of the cases of three digits and similar: exchanged, or different in one digit or by one."""
    if rng.random() < 0.5:
        return some_numbers(rng, 2)
    while True:
        a = rng.randint(100, 999)
        b = rng.choice((int(str(a)[::-1]), a + 9, a - 9, a + 90, a - 90, a + 1, a - 1))
        if 100 <= b <= 999 and a != b:
            return rng.sample((a, b), 2)
