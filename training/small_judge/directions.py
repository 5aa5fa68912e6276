"""Words that turn a request around: the largest for the smallest, ascending for descending."""

_OPPOSITES = {
    "smallest": "largest",
    "largest": "smallest",
    "biggest": "smallest",
    "lowest": "highest",
    "highest": "lowest",
    "low": "high",
    "high": "low",
    "ascending": "descending",
    "increasing": "decreasing",
    "maximum": "minimum",
    "larger": "smaller",
    "bigger": "smaller",
    "higher": "lower",
    "greater": "less",
    "above": "below",
    "over": "under",
    "more": "fewer",
    "most": "fewest",
    "heavier": "lighter",
    "heaviest": "lightest",
    "weightier": "less heavy",
    "longer": "shorter",
    "longest": "shortest",
    "letters_more": "fewer letters",
    "earlier": "later",
    "earliest": "latest",
    "first": "last",
    "before": "after",
}
UP = {word: word for word in _OPPOSITES} | {"letters_more": "more letters"}
DOWN = _OPPOSITES
