"""Training of generative pairwise judges. Empty so far."""
