"""Training of generative pairwise judges: both stages of GRAM, judges that reason, and a scalar reward baseline."""
