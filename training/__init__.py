"""Training of generative pairwise judges: data, objectives, both stages of GRAM and a scalar baseline."""
