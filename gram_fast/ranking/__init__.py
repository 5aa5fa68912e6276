"""Ranks candidates by pairwise comparisons: tournament strategies, how they are played, and scores."""
