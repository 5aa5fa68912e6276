"""From preferences to answers: groups of candidates come in, winners, scores and comparisons go out."""
