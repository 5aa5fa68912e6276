"""From pairs of candidates to preferences: groups and rounds of pairs come in, P(first better) of each goes out."""
