"""Comparers: pairs of candidates to preferences, P(first better than second), on one device or several."""
