"""The judge from text to preferences, against a lower bound and rivals: python -m benchmarks.scorer.run."""
