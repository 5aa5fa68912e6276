"""Self-training of a judge that reasons, as in GRAM-R2 (arXiv 2509.02492): proofs of labels, and rounds of training."""
