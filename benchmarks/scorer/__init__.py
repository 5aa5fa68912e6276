"""From text to preferences, against the floor and every rival: python -m benchmarks.scorer.run."""
