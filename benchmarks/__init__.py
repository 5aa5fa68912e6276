"""Measurements, a script or folder a question; run from the repository's root: python -m benchmarks.NAME."""
