"""Wordings that kinds of tasks share: frames around a request and ways to answer. Training sees four of five."""

FRAMES = (
    "{lower}",
    "Please help me: {lower}",
    "Hi! {ask}",
    "Question: {ask}",
    "{ask}\nThanks!",
    "A small task: {lower}",
    "Task: {ask}",
    "Hello, can you help me? {ask}",
    "{ask}\nPlease answer briefly.",
    "One more thing. {ask}",
    "Tell me: {lower}",
    "Now this: {lower}",
    "{ask}\nThank you.",
    "Here is a task for you.\n{ask}",
    "Quick question: {lower}",
)
"""Frames around a request; `{lower}` is the request with a small first letter."""

SAY = (
    "{answer}",
    "{answer}.",
    "The answer is {answer}.",
    "It is {answer}.",
    "That would be {answer}.",
    "Answer: {answer}",
    "**{answer}**",
    "It's {answer}.",
    "Sure! The answer is {answer}.",
    "My answer: {answer}.",
    "{answer} is the answer.",
    "The answer is **{answer}**.",
    "I think it is {answer}.",
    '"{answer}"',
    "The right answer is {answer}.",
    "Of course: {answer}",
)
"""Answers to a question, of one word or number."""

YES_OR_NO = (
    "{answer}",
    "{answer}.",
    "{answer}!",
    "The answer is {answer}.",
    "I would say {answer}.",
    "Answer: {answer}",
    "**{answer}**",
    "My answer is {answer}.",
    "{answer} is the answer.",
    "In short: {answer}.",
    "Sure! The answer is {answer}.",
    'The answer is "{answer}".',
    "I think the answer is {answer}.",
    "The answer is **{answer}**.",
    "That is easy: {answer}.",
    '"{answer}"',
)
"""Answers to a question about what is so."""

GIVE = (
    "{answer}",
    "Here it is: {answer}",
    "Sure: {answer}",
    "Result: {answer}",
    "Here is the result: {answer}",
    "Sure! Here it is: {answer}",
    "Here you go: {answer}",
    "Of course: {answer}",
    "Done: {answer}",
    "Certainly! {answer}",
    "Answer: {answer}",
    "Sure, here it is:\n{answer}",
    "The result is: {answer}",
    "Here it is:\n{answer}",
    "As you asked: {answer}",
    "Here is what you asked for:\n{answer}",
)
"""Results of an instruction whose every character counts."""

GIVE_LINES = (
    "{answer}",
    "Here it is:\n{answer}",
    "Sure:\n{answer}",
    "Result:\n{answer}",
    "Here is the result:\n{answer}",
    "Sure! Here it is:\n{answer}",
    "Here you go:\n{answer}",
    "Of course:\n{answer}",
    "Done:\n{answer}",
    "Certainly!\n{answer}",
    "Answer:\n{answer}",
    "Sure, here it is:\n\n{answer}",
    "The list:\n{answer}",
    "Here is what you asked for:\n{answer}",
    "As you asked:\n{answer}",
    "Here is your list:\n{answer}",
)
"""Results of several lines."""

GIVE_LIST = (
    "{items}",
    "Here it is: {items}",
    "Sure: {items}",
    "Result: {items}",
    "Here is the result: {items}",
    "{items}.",
    "{spaced}",
    "Sure! Here it is: {items}",
    "{lines}",
    "Certainly! {items}",
    "Answer: {items}",
    "Here it is:\n{lines}",
    "**{items}**",
    "The list is {items}.",
    "As you asked: {items}",
    "Of course: {spaced}",
)
"""Results that are a list: `{items}` with commas, `{spaced}` with blanks, `{lines}` on lines of their own."""

ONLY = (
    "{spaced}",
    "{items}",
    "{spaced}.",
    "**{spaced}**",
    '"{items}"',
    "{lines}",
    '"{spaced}"',
    "{spaced}!",
    "{items}.",
    "*{spaced}*",
    "({spaced})",
    "> {spaced}",
    "**{items}**",
    "[{items}]",
    "{spaced} ...",
    "- {spaced}",
)
"""Answers without a word beside those asked for."""


def trained(wordings: tuple[str, ...]) -> tuple[str, ...]:
    """The wordings of training: all but each fifth."""
    return tuple(wording for place, wording in enumerate(wordings) if place % 5 != 4)


def held_out(wordings: tuple[str, ...]) -> tuple[str, ...]:
    """The wordings that no training data has: each fifth."""
    return wordings[4::5]


def every(wordings: tuple[str, ...]) -> tuple[str, ...]:
    """All wordings: for kinds that are never trained."""
    return wordings
