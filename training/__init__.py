"""Training of generative pairwise judges: both stages of GRAM and a scalar reward baseline."""
